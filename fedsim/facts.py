"""What is known of an experiment once its data and model are there: to everybody, and to the manifest."""

from __future__ import annotations

from typing import Any

import torch

from fedsim.clients.workbench import Workbench
from fedsim.experiment import Experiment
from fedsim.secagg.terms import public_facts


def public(experiment: Experiment, place: Workbench) -> dict[str, Any]:
    """The training protocol that every participant knows."""
    data, model = place.federation.data, experiment.model.describe()
    name = model.pop("name")
    return {
        "model": {"name": name, "settings": model},
        "image_shape": list(data.shape),
        "classes": data.classes,
        "mean": list(data.normalisation.mean),
        "std": list(data.normalisation.std),
        "batchnorm": experiment.clients.batchnorm,
        "algorithm": experiment.clients.algorithm,
        "loss": "cross_entropy",
        **_secure(experiment, place),
    }


def _secure(experiment: Experiment, place: Workbench) -> dict[str, Any]:
    """How a secure aggregation counts, which is public; nothing without one."""
    mode = experiment.server.secure_aggregation
    return {"secure_aggregation": {"name": mode.name, **public_facts(mode.settings, place.terms)}} if mode else {}


def for_manifest(experiment: Experiment, place: Workbench) -> dict[str, Any]:
    """The part of the manifest that needs data and model."""
    data = place.federation.data
    labels = [data.train.labels[share] for share in place.federation.shares]
    secure = {
        name: {key: value for key, value in facts.items() if key != "layout"}
        for name, facts in _secure(experiment, place).items()
    }
    return {
        **secure,
        "device": str(place.device),
        "threads": torch.get_num_threads(),
        "parameters": sum(value.numel() for value in place.model.parameters()),
        "classes": data.classes,
        "class_names": list(data.class_names),
        "image_shape": list(data.shape),
        "train_examples": len(data.train),
        "test_examples": len(data.test),
        "clients": [
            {
                "client": client,
                "examples": len(own),
                "labels": torch.bincount(own, minlength=data.classes).tolist(),
            }
            for client, own in enumerate(labels)
        ],
    }
