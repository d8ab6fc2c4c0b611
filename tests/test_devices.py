"""The device that is chosen, and how it is set up."""

from __future__ import annotations

import pytest
import torch

from fedsim.devices import choose_device
from fedsim.errors import InputError


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)


@pytest.mark.parametrize("wanted", ["auto", "cuda", "cuda:1"])
def test_convolutions_on_a_gpu_are_repeatable_and_exact(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device(wanted) == torch.device("cuda" if wanted == "auto" else wanted)
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("wanted", ["auto", "cpu"])
def test_without_a_gpu_it_is_the_cpu(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(wanted) == torch.device("cpu")


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="'cuda:2' is not on this machine"):
        choose_device("cuda:2")
