"""The model that a federation starts from. Clients, server and attackers build it by the same rule."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from fedsim import batchnorm, seeding
from fedsim.data.dataset import ImageData
from fedsim.experiment import Experiment
from fedsim.models import checkpoints
from fedsim.models.building import build


def initial_model(experiment: Experiment, data: ImageData) -> nn.Module:
    """The experiment's model as its BatchNorm policy has it built: with the weights of its checkpoint or, without one,
    weights that depend on the seed alone. Raises InputError where the checkpoint does not fit.
    """
    model = build(experiment.model.settings, data.shape, data.classes, seeding.derive(experiment.seed, "model"))
    model = batchnorm.apply_policy(model, experiment.clients.batchnorm)
    if experiment.checkpoint is not None:
        checkpoints.load(model, Path(experiment.checkpoint), checkpoints.model_facts(experiment))
    return model
