from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim import batchnorm
from fedsim.errors import InputError
from fedsim.models import checkpoints
from fedsim.models.building import build
from fedsim.models.catalog import MLP, PreActResNet18
from fedsim.runs import RunFolder
from fedsim.server.app import Rounds
from fedsim.simulation import simulate


class Silent:
    def rounds(self, done: int, total: int, record: Any) -> None: ...
    def attack(self, name: str, done: int, total: int, note: str) -> None: ...
    def warn(self, text: str) -> None: ...


def test_a_run_goes_on_from_the_model_that_another_has_stored(tmp_path: Path, small: Any) -> None:
    folder = RunFolder.create(tmp_path / "whole")
    whole = small(rounds=4, save_rounds=[0, 2], clients={"batches": "in_order"})
    simulate(whole, folder, Silent())
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["round-0.safetensors", "round-2.safetensors"]
    start = Rounds(small(checkpoint=str(folder.checkpoint(0))))
    fresh = Rounds(small())
    assert all(torch.equal(start.parameters[name], fresh.parameters[name]) for name in fresh.parameters)
    later = Rounds(small(checkpoint=str(folder.checkpoint(2))))
    assert not torch.equal(later.parameters["fc1.weight"], fresh.parameters["fc1.weight"])


def test_statistics_are_stored_with_the_parameters(tmp_path: Path) -> None:
    source = build(PreActResNet18(), (1, 8, 8), 3, seed=1)
    with torch.no_grad():
        for layer in batchnorm.layers(source).values():
            layer.running_mean.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr]
    path = tmp_path / "model.safetensors"
    path.write_bytes(checkpoints.pack(dict(source.named_parameters()), batchnorm.statistics(source), {"round": 1}))
    target = build(PreActResNet18(), (1, 8, 8), 3, seed=2)
    checkpoints.load(target, path)
    for name, value in source.state_dict().items():
        assert torch.equal(value, target.state_dict()[name]), name


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="checkpoint"):
        checkpoints.load(build(MLP(), (1, 8, 8), 3, seed=0), path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(checkpoints.pack(dict(build(MLP((4,)), (1, 8, 8), 3, seed=0).named_parameters()), {}, {}))
    with pytest.raises(InputError, match="another model"):
        checkpoints.load(build(MLP((5,)), (1, 8, 8), 3, seed=0), path)
    with pytest.raises(InputError, match="another model"):
        checkpoints.load(build(MLP((4, 4)), (1, 8, 8), 3, seed=0), path)


@pytest.mark.parametrize(
    ("changed", "word"),
    [({"clients": {"batchnorm": "group_norm"}}, "group_norm"), ({"model": {"bottleneck_beta": 0.5}}, "model")],
)
def test_a_checkpoint_of_a_model_that_only_looks_the_same_is_refused(
    tmp_path: Path, small: Any, changed: dict[str, Any], word: str
) -> None:
    # Parameters have the same names and shapes in each of them.
    base = {"model": {"name": "preact_resnet18", "bottleneck": 4}, "clients": {"batchnorm": "share_batch"}}
    source = small(**base)
    network = batchnorm.apply_policy(build(source.model.settings, (1, 8, 8), 10, seed=1), source.clients.batchnorm)
    path = tmp_path / "model.safetensors"
    facts = checkpoints.model_facts(source)
    path.write_bytes(checkpoints.pack(dict(network.named_parameters()), batchnorm.statistics(network), facts))
    other = small(**{key: {**value, **changed.get(key, {})} for key, value in base.items()})
    fresh = batchnorm.apply_policy(build(other.model.settings, (1, 8, 8), 10, seed=2), other.clients.batchnorm)
    with pytest.raises(InputError, match=word):
        checkpoints.load(fresh, path, checkpoints.model_facts(other))
    checkpoints.load(network, path, facts)
