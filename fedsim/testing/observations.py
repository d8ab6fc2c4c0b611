"""What an adversary is shown of a scene: all that it may declare to need, and then no more than it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fedsim import batchnorm
from fedsim.adversaries.base import Observation, Situation
from fedsim.adversaries.storage import observation_from
from fedsim.testing.situations import CLASSES, GRADIENTS, MIXED, RATE, Played, Scene, play

PUBLIC = ("model", "image_shape", "classes", "mean", "std", "batchnorm", "algorithm", "loss")
"""Facts that everybody has who sees the global model."""

GRANTS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # a word of the threat model: (tensors that begin with one of these, facts)
    "sizes": ((), ("bytes_down", "bytes_up")),
    "global_model": (("model/",), PUBLIC),
    "training_details": ((), ("learning_rate", "batch_size", "momentum", "weight_decay")),
    "update": (("update/", "sum/"), ()),
    "num_examples": ((), ("num_examples", "num_steps")),
    "own_data": (("own/",), ()),
    "masked_update": (("masked/",), ()),
    "encrypted_shares": (("encrypted/", "keys/"), ()),
    "opened_shares": (("opened/",), ()),
    "colluders": (("colluder/",), ("colluders",)),
    "labels": (("known/labels",), ()),
    "batch_statistics": (("known/mean/", "known/var/"), ()),
    "running_statistics": (("known/running_mean/", "known/running_var/", "buffers/"), ()),
    "defenses": ((), ("defenses",)),
    "mixing_indices": (("known/mixing_indices",), ()),
    "mixing_coefficients": (("known/mixing_coefficients",), ()),
}
"""Of what is always there (`granted`, `clients`, `secure_aggregation`) nothing is said here."""

_SENT = {"share_batch": "batch_statistics", "share_running": "running_statistics"}
"""What the statistics beside an update tell, by policy."""


@dataclass(frozen=True, eq=False)
class Trial:
    """Something to try an adversary on.

    shown: one observation a round. shape: of an image. sizes: how many images each is of. situation, model: what is
    known before; None where the observations are the user's own. withheld: what it did not declare, by the path of the
    tensor or the name of the fact: the word that would grant it.
    """

    name: str
    shown: tuple[Observation, ...] = field(repr=False)
    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    situation: Situation | None
    model: nn.Module | None
    withheld: Mapping[str, str] = field(repr=False)


def word_of(path: str, policy: str) -> str | None:
    """The word that grants a tensor's path; None for one that every vantage shows."""
    if path.startswith("sent_buffers/"):
        return _SENT.get(policy, "update")
    return next((word for word, (starts, _) in GRANTS.items() if path.startswith(starts)), None) if path else None


def narrowed(seen: Observation, words: Set[str]) -> tuple[Observation, dict[str, str]]:
    """The observation with what these words grant and nothing more, on tensors of its own; and what was left out, with
    the word that would grant it.
    """
    withheld: dict[str, str] = {}
    local = seen.facts.get("algorithm") == "fedavg"
    if local and "update" in words:  # a run refuses an adversary that is to do without them there
        words = {*words, "training_details"}
    tensors: dict[str, Tensor] = {}
    for path, value in seen.tensors.items():
        word = word_of(path, str(seen.facts.get("batchnorm")))
        if word is None or word in words:
            tensors[path] = value.detach().clone()
        else:
            withheld[path] = word
    facts = dict(seen.facts)
    for word, (_, keys) in GRANTS.items():
        for key in keys if word not in words else ():
            if key in facts and not (key == "num_steps" and local and "training_details" in words):
                del facts[key]
                withheld[key] = word
    facts["granted"] = sorted(words)
    return replace(seen, tensors=MappingProxyType(tensors), facts=MappingProxyType(facts)), withheld


def undeclared(error: Exception | None, withheld: Mapping[str, str]) -> tuple[str, str] | None:
    """What a method asked for in vain that other needs would have granted: the path, and the word."""
    if not isinstance(error, KeyError) or not error.args:
        return None
    key = str(error.args[0])
    return next(((path, word) for path, word in withheld.items() if path == key or path.endswith(f"/{key}")), None)


def trials(needs: Set[str], own: Sequence[Observation] | None = None) -> Iterator[Trial]:
    """Everything that grants what is needed; of the user's own observations, each by itself."""
    if own is not None:
        for place, one in enumerate(own):
            name = f"observations[{place}]"
            seen, withheld = narrowed(one, needs)
            yield Trial(name, (seen,), tuple(one.facts["image_shape"]), (_images(one),), None, None, withheld)
        return
    vantages = ("client",) if "own_data" in needs else ("link", "server")
    for place, scene in enumerate(GRADIENTS):
        vantage = "server" if len(scene.clients) > 1 else vantages[place % len(vantages)]
        whole = [shown(scene, vantage, round_) for round_ in range(1, scene.rounds + 1)]
        if not all(needs <= set(one.facts["granted"]) for one in whole):
            continue
        parts = [narrowed(one, needs) for one in whole]
        yield Trial(
            f"{vantage}: {scene.name}",
            tuple(seen for seen, _ in parts),
            scene.shape,
            tuple(scene.batch * scene.steps * len(scene.clients) for _ in parts),
            situation(scene),
            scene.built(),
            parts[0][1],
        )


def _images(seen: Observation) -> int:
    labels = seen.tensors.get("known/labels")
    return int(seen.facts["num_examples"]) if labels is None else max(len(labels), int(seen.facts["num_examples"]))


def situation(scene: Scene) -> Situation:
    """What is known of a scene before round 0."""
    return Situation(
        model=scene.model,
        has_batchnorm=bool(batchnorm.layers(scene.built())),
        batchnorm=scene.policy,
        algorithm=scene.algorithm,
        one_gradient=scene.steps == 1,
        batch_sizes=(scene.batch,) * len(scene.clients),
        aggregate=len(scene.clients) > 1,
        defenses=(("mixup",) if scene.mixes else (),) * len(scene.clients),
    )


def shown(scene: Scene, vantage: str, round_: int, clients: Sequence[int] | None = None) -> Observation:
    """All that any threat model can show and grant of a round: of one client, or of the sum of several."""
    clients = scene.clients if clients is None else clients
    parts = [play(scene, client, round_) for client in clients]
    tensors: dict[str, Tensor] = _tensors(scene, vantage, parts)
    size = 4 * sum(value.numel() for value in parts[0].parameters.values())
    facts: dict[str, Any] = {
        "model": scene.describe(),
        "image_shape": list(scene.shape),
        "classes": CLASSES,
        "mean": list(scene.normalisation.mean),
        "std": list(scene.normalisation.std),
        "batchnorm": scene.policy,
        "algorithm": scene.algorithm,
        "loss": "cross_entropy",
        "learning_rate": RATE,
        "batch_size": scene.batch,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "bytes_down": size * len(parts),
        "bytes_up": size * len(parts),
        "num_examples": sum(len(one.private) for one in parts),
        "num_steps": scene.steps,
        "defenses": [{"name": "mixup", "k": MIXED, "law": "dirichlet", "upper": 0.75}] if scene.mixes else [],
    }
    if len(clients) > 1:
        facts["clients"] = list(clients)
    policy = scene.policy
    words = {
        "sizes",
        "global_model",
        "training_details",
        "defenses",
        *filter(None, (word_of(path, policy) for path in tensors)),
    }
    facts["granted"] = sorted(words | ({"num_examples"} if vantage != "client" else set()))
    return Observation(round_, clients[0], vantage, tensors, facts)


def _tensors(scene: Scene, vantage: str, parts: Sequence[Played]) -> dict[str, Tensor]:
    first = parts[0]
    tensors = {f"model/{name}": value for name, value in first.parameters.items()}
    tensors |= {f"buffers/{name}": value for name, value in first.buffers.items()}
    if vantage == "client":
        return tensors | {"own/images": first.private.images, "own/labels": first.private.labels}
    tensors |= {f"update/{name}": mean([one.update[name] for one in parts]) for name in first.update}
    sent = {"share_batch": first.statistics, "share_running": first.running}.get(scene.policy, {})
    tensors |= {f"sent_buffers/{name}": value for name, value in sent.items()}
    tensors["known/labels"] = torch.cat([one.trained.labels for one in parts])
    # What travels is not granted besides.
    statistics = {} if scene.policy == "share_batch" else dict(first.statistics)
    statistics |= {} if first.buffers else dict(first.running)
    for key, value in statistics.items():
        layer, _, kind = key.rpartition(".")
        tensors[f"known/{kind}/{layer}"] = value
    if scene.mixes:
        tensors |= {"known/mixing_indices": first.indices, "known/mixing_coefficients": first.coefficients}
    return tensors


def mean(values: Sequence[Tensor]) -> Tensor:
    """Of several clients with as many examples each."""
    return torch.stack(list(values)).mean(0) if len(values) > 1 else values[0]


def stored(folder: str | Path) -> list[Observation]:
    """What the adversaries of a run were shown, read from the run's folder, by round and client.

    For the `observations` of a check, where a plugin needs more than made-up ones hold (as of a secure aggregation).
    """
    found = [observation_from(path.read_bytes()) for path in sorted((Path(folder) / "captures").glob("*.safetensors"))]
    return sorted(found, key=lambda seen: (seen.round, seen.client))
