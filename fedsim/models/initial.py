"""The model that a federation starts from. Clients, server and attackers build it by the same rule."""

from __future__ import annotations

from torch import nn

from fedsim import batchnorm, seeding
from fedsim.data.dataset import ImageData
from fedsim.experiment import Experiment
from fedsim.models.building import build


def initial_model(experiment: Experiment, data: ImageData) -> nn.Module:
    """The experiment's model as its BatchNorm policy has it built, with weights that depend on the seed alone."""
    model = build(experiment.model.settings, data.shape, data.classes, seeding.derive(experiment.seed, "model"))
    return batchnorm.apply_policy(model, experiment.clients.batchnorm)
