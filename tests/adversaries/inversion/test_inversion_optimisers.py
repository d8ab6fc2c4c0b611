"""Steps on the guess against torch's optimisers, schedules, and first guesses."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.adversaries.base import Observation
from fedsim.adversaries.inversion.optimisers import SGD, Adam, schedule
from fedsim.adversaries.inversion.starts import first_guess
from fedsim.adversaries.inversion.victim import Victim, rebuild
from fedsim.errors import InputError
from fedsim.protocol import Batch

VictimOf = Callable[..., tuple[Observation, Batch]]
ONE = torch.ones(())


def run(optimiser: Adam | SGD, x: dict[str, Tensor], slopes: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    state = optimiser.start(x)
    for number, slope in enumerate(slopes, start=1):
        x, state = optimiser.step(x, slope, state, torch.tensor(float(number)), ONE)
    return x


@pytest.mark.parametrize("optimiser", [Adam(0.1), SGD(0.1, signed=True)])
def test_the_sign_of_nan_is_nan(optimiser: Adam | SGD) -> None:
    """A broken derivative has to show, and not to look like the bottom."""
    found = run(optimiser, {"images": torch.zeros(2)}, [{"images": torch.tensor([math.nan, 1.0])}])
    assert found["images"].isnan().tolist() == [True, False]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_twenty_steps_are_torchs(kind: str, signed: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    start = {"images": torch.randn(3, 4, generator=rng), "labels": torch.randn(2, generator=rng)}
    slopes = [{name: torch.randn(x.shape, generator=rng) for name, x in start.items()} for _ in range(20)]
    theirs = {name: x.clone().requires_grad_() for name, x in start.items()}
    reference: torch.optim.Optimizer
    if kind == "adam":
        reference = torch.optim.Adam(theirs.values(), lr=0.1, betas=(0.8, 0.95), eps=1e-6)
        ours: Adam | SGD = Adam(0.1, signed, 0.8, 0.95, 1e-6)
    else:
        reference, ours = torch.optim.SGD(theirs.values(), lr=0.1), SGD(0.1, signed)
    for slope in slopes:
        for name, x in theirs.items():
            x.grad = slope[name].sign() if signed else slope[name]
        reference.step()
    for name, x in run(ours, start, slopes).items():
        torch.testing.assert_close(x, theirs[name].detach(), rtol=1e-4, atol=1e-5)


def test_adam_is_torchs_by_default_too() -> None:
    theirs = torch.zeros(3).requires_grad_()
    reference, slope = torch.optim.Adam([theirs], lr=0.1), torch.tensor([1e-6, -3.0, 0.0])
    for _ in range(20):
        theirs.grad = slope
        reference.step()
    found = run(Adam(0.1, signed=False), {"images": torch.zeros(3)}, [{"images": slope}] * 20)
    torch.testing.assert_close(found["images"], theirs.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimiser", [Adam(0.1), SGD(0.1, signed=True)])
def test_the_first_signed_step_has_the_step_size_in_every_pixel_whatever_the_gradient(optimiser: Adam | SGD) -> None:
    x = {"images": torch.zeros(3)}
    slope = {"images": torch.tensor([1e-6, -1e6, 0.0])}
    moved, _ = optimiser.step(x, slope, optimiser.start(x), ONE, torch.tensor(0.5))
    assert moved["images"].tolist() == pytest.approx([-0.05, 0.05, 0], abs=1e-6)
    assert x["images"].abs().max() == 0, "a step is pure"


def test_the_step_size_drops_at_three_eighths_five_and_seven() -> None:
    factors = schedule("three_drops", 800)
    assert len(factors) == 800
    found = [factors[step] for step in (0, 299, 300, 499, 500, 699, 700, 799)]
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("cosine", [1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
    ],
)
def test_schedules_by_hand(kind: str, expected: list[float]) -> None:
    assert schedule(kind, 4) == pytest.approx(expected)


def test_warm_up_rises_evenly_to_where_the_rest_begins() -> None:
    assert schedule("constant", 6, warm_up=3) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    plain, warmed = schedule("cosine", 40), schedule("cosine", 40, warm_up=10)
    assert warmed[10:] == plain[10:]
    assert warmed[0] == pytest.approx(1 / 11)


def guess(victim: Victim, kind: str, count: int = 2, **more: Any) -> Tensor:
    options = {"patch": 3, "file": None, **more}
    return first_guess(kind, victim, count, torch.Generator().manual_seed(0), **options)


def test_first_guesses_are_what_they_are_called(victim_of: VictimOf) -> None:
    victim = rebuild(victim_of(2)[0], torch.device("cpu"))
    normal, uniform = guess(victim, "normal", 400), guess(victim, "uniform", 400)
    assert normal.shape == uniform.shape == (400, 1, 8, 8)
    assert normal.mean().item() == pytest.approx(0, abs=0.02)
    assert normal.std().item() == pytest.approx(1, abs=0.02)
    assert -1 <= uniform.min() < -0.99
    assert 0.99 < uniform.max() < 1
    assert uniform.std().item() == pytest.approx(1 / math.sqrt(3), abs=0.01)
    assert guess(victim, "zeros").abs().max() == 0


def test_the_patterned_guess_is_one_square_repeated_in_each_image(victim_of: VictimOf) -> None:
    found = guess(rebuild(victim_of(2)[0], torch.device("cpu")), "patterned")
    assert found.shape == (2, 1, 8, 8)
    assert torch.equal(found[..., 3:6, :], found[..., :3, :])
    assert torch.equal(found[..., :, 6:8], found[..., :, :2])
    assert len(found[0].unique()) == 9
    assert not torch.equal(found[0], found[1])
    assert found.abs().max() <= 1


def test_a_given_guess_is_read_and_normalised(victim_of: VictimOf, tmp_path: Path) -> None:
    seen, batch = victim_of(2)
    victim, file = rebuild(seen, torch.device("cpu")), tmp_path / "start.npy"
    np.save(file, batch.images.numpy())
    torch.testing.assert_close(guess(victim, "given", file=str(file)), victim.normalise(batch.images))


def test_a_file_that_does_not_fit_is_refused_by_name(victim_of: VictimOf, tmp_path: Path) -> None:
    victim = rebuild(victim_of(2)[0], torch.device("cpu"))
    wrong, bright, text = tmp_path / "wrong.npy", tmp_path / "bright.npy", tmp_path / "text.npy"
    np.save(wrong, np.zeros((2, 3, 8, 8)))
    np.save(bright, np.full((2, 1, 8, 8), 200.0))
    text.write_text("no array")
    cases = {None: "needs initial_file", wrong: "shape", bright: "outside", text: "read", tmp_path / "no.npy": "read"}
    for file, words in cases.items():
        with pytest.raises(InputError, match=words) as caught:
            guess(victim, "given", file=None if file is None else str(file))
        assert file is None or str(file) in str(caught.value)
