"""The loop, on bowls whose bottom is known and on a real step: progress, ends, and what each trial keeps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_plans import TRUTH, convolutional, stack, victim
from torch import Tensor

from fedsim import progress
from fedsim.adversaries.inversion import engines, loop
from fedsim.adversaries.inversion.engines import Engine
from fedsim.adversaries.inversion.lbfgs import run_lbfgs
from fedsim.adversaries.inversion.loop import REPORT_EVERY, Budget, Search, Trial, run
from fedsim.adversaries.inversion.optimisers import SGD, Adam
from fedsim.adversaries.inversion.step import Guess

BOTTOM = 0.5
Evaluate = Callable[[Guess], tuple[Tensor, Guess]]


def bowl(guess: Guess) -> tuple[Tensor, Guess]:
    """sum (x - 1/2)^2 of each trial."""
    away = {name: x - BOTTOM for name, x in guess.items()}
    values = torch.stack([a.flatten(1).square().sum(1) for a in away.values()]).sum(0)
    return values, {name: 2 * a for name, a in away.items()}


def engine(evaluate: Evaluate = bowl) -> Engine:
    return Engine("eager", evaluate, 1)


def start(trials: int = 1, value: float = 3.0) -> Guess:
    """Trials that start further and further away."""
    return {"images": torch.stack([torch.full((1, 1, 2, 2), value + place) for place in range(trials)])}


def descend(
    evaluate: Evaluate = bowl,
    begin: Guess | None = None,
    steps: int = 100,
    seeds: tuple[int, ...] = (0,),
    budget: Budget | None = None,
    optimiser: Adam | SGD = SGD(0.1),  # noqa: B008
    **search: Any,
) -> list[Trial]:
    options = {"factors": [1.0], **search}
    rngs = [torch.Generator().manual_seed(seed) for seed in seeds]
    return run(engine(evaluate), begin or start(), Search(optimiser, **options), budget or Budget(steps), rngs)


def wolfe(evaluate: Evaluate = bowl, begin: Guess | None = None, budget: Budget | None = None, **search: Any) -> Trial:
    how = Search(Adam(1.0), [1.0], **search)
    return run_lbfgs(engine(evaluate), begin or start(), how, budget or Budget(100), 0, 100)


def test_a_step_is_taken_from_each_look_to_the_next() -> None:
    (trial,) = descend(steps=50)
    # Each step of a bowl by SGD leaves 1 - 2 * 0.1 of the way: the objective falls by 0.64.
    expected = [(step, 4 * 2.5**2 * 0.64**step) for step in (0, 20, 40, 50)]
    assert [step for step, _ in trial.history] == [0, 20, 40, 50]
    for (_, found), (_, value) in zip(trial.history, expected, strict=True):
        assert found == pytest.approx(value, rel=1e-2)
    assert (trial.status, trial.steps) == ("done", 50)
    assert trial.objective == trial.history[-1][1]
    assert trial.guess["images"].flatten().tolist() == pytest.approx([0.5 + 2.5 * 0.8**50] * 4, rel=1e-4)


def test_what_is_kept_is_what_the_objective_is_of() -> None:
    for budget in (Budget(33), Budget(1000, patience=2), Budget(1000, seconds=1e-9)):
        for trial in descend(begin=start(3), budget=budget):
            values, _ = bowl({"images": trial.guess["images"][None]})
            assert values[0].item() == pytest.approx(trial.objective, rel=1e-6)


def test_factors_scale_the_steps_one_by_one() -> None:
    (trial,) = descend(steps=3, factors=[1.0, 0.0, 0.5])
    assert trial.guess["images"].flatten()[0].item() == pytest.approx(0.5 + 2.5 * 0.8 * 1 * 0.9)


@pytest.mark.parametrize("way", ["loop", "lbfgs"])
def test_the_objective_falls_and_whoever_listens_hears_of_it(way: str) -> None:
    plan, known = victim(convolutional())
    real = engines.choose("eager", plan, [known], stack(1), 1, None, 100)
    heard: list[tuple[int, int, str]] = []
    search, budget = Search(Adam(0.1 if way == "loop" else 1.0), [1.0]), Budget(100)
    with progress.listening(lambda done, total, note: heard.append((done, total, note))):
        if way == "loop":
            (trial,) = run(real, stack(1), search, budget, [torch.Generator()])
        else:
            trial = run_lbfgs(real, stack(1), search, budget, 0, 100)
    assert trial.objective < 0.1 * trial.history[0][1]
    assert trial.status == "done" or (way == "lbfgs" and trial.status == "plateau")
    assert [done for done, _, _ in heard][:2] == [0, REPORT_EVERY]
    assert {total for _, total, _ in heard} == {100}
    assert heard[0][2] == f"objective {trial.history[0][1]:.4g}"
    assert [done for done, _, _ in heard] == sorted(done for done, _, _ in heard)
    if way == "loop":
        assert heard[-1] == (100, 100, f"objective {trial.objective:.4g}")


def test_lbfgs_finds_the_truth_behind_a_gradient() -> None:
    plan, known = victim(convolutional(), objective="squared_l2")
    real = engines.choose("eager", plan, [known], stack(1), 1, None, 100)
    begin = {"images": TRUTH[None] + 0.3 * stack(1)["images"]}
    trial = run_lbfgs(real, begin, Search(Adam(1.0), [1.0]), Budget(200), 0, 200)
    assert trial.objective < 1e-7
    assert (trial.guess["images"] - TRUTH).abs().max() < 0.05


def test_the_box_is_kept_at_every_step_and_by_the_first_guess() -> None:
    edge = torch.full((1, 1, 1, 1), 2.0)
    seen: list[Tensor] = []

    def watched(guess: Guess) -> tuple[Tensor, Guess]:
        seen.append(guess["images"])
        values, slopes = bowl(guess)
        return values, {name: -slope for name, slope in slopes.items()}  # uphill, out of the box

    (trial,) = descend(watched, steps=5, low=edge / 2, high=edge)
    assert all(((x >= 1) & (x <= 2)).all() for x in seen)
    assert torch.equal(trial.guess["images"], torch.full((1, 1, 2, 2), 2.0))
    assert wolfe(low=edge / 2, high=edge).guess["images"].unique().tolist() == [1.0]


def breaks(trial: int, after: int) -> Evaluate:
    """A bowl on which one trial's numbers are none after so many calls."""
    calls = 0

    def evaluate(guess: Guess) -> tuple[Tensor, Guess]:
        nonlocal calls
        calls += 1
        values, slopes = bowl(guess)
        if calls > after:
            values[trial] = math.nan
            slopes["images"][trial] = math.nan
        return values, slopes

    return evaluate


@pytest.mark.parametrize("after", [0, 1, REPORT_EVERY + 1, 60])
@pytest.mark.parametrize("group", [0.0, 0.01])
def test_nan_ends_a_trial_with_its_last_finite_guess_and_the_others_go_on(after: int, group: float) -> None:
    begin = start(3)
    broken = descend(breaks(1, after), begin, 80, group=group, restarts=3)
    assert [trial.status for trial in broken] == ["done", "nan", "done"]
    # The last look at which all was well: 0, 20, 40, ...; the broken guess counts as of there.
    looks = max(0, math.ceil(after / REPORT_EVERY))
    assert [step for step, _ in broken[1].history] == [REPORT_EVERY * look for look in range(looks)]
    if looks == 0:
        assert broken[1].objective == math.inf
        assert torch.equal(broken[1].guess["images"], begin["images"][1])
    for trial in broken:
        assert torch.isfinite(trial.guess["images"]).all()
        assert all(math.isfinite(value) for _, value in trial.history)
    for trial in (broken[0], broken[2]):
        assert trial.steps == 80
        assert trial.guess["images"].flatten().tolist() == pytest.approx([BOTTOM] * 4, abs=1e-3)


def test_when_all_trials_are_broken_the_loop_ends() -> None:
    calls = 0

    def evaluate(guess: Guess) -> tuple[Tensor, Guess]:
        nonlocal calls
        calls += 1
        return bowl(guess)[0] * math.nan, bowl(guess)[1]

    assert {trial.status for trial in descend(evaluate, start(2), 1000)} == {"nan"}
    assert calls <= 2 * REPORT_EVERY


@pytest.mark.parametrize("after", [0, 1, 4])
def test_lbfgs_ends_at_nan_with_the_last_finite_guess(after: int) -> None:
    begin = start()
    trial = wolfe(breaks(0, after), begin)
    assert trial.status == "nan"
    assert torch.isfinite(trial.guess["images"]).all()
    assert torch.equal(trial.guess["images"], begin["images"][0])
    assert trial.objective == (math.inf if after == 0 else 25)


def test_without_progress_of_any_trial_the_loop_ends() -> None:
    (patient,) = descend(steps=1000)
    assert (patient.status, patient.steps) == ("done", 1000)

    def sum_of_walls(guess: Guess) -> tuple[Tensor, Guess]:
        values, slopes = bowl(guess)
        return values + 1, slopes

    (trial,) = descend(sum_of_walls, budget=Budget(1000, patience=3))
    # 26 after 0 steps, 1.003 after 20, 1 after 40; the looks at 60, 80 and 100 bring nothing worth a thousandth.
    assert trial.status == "plateau"
    assert [step for step, _ in trial.history][-1] == trial.steps == 100
    assert trial.objective == pytest.approx(1)


def test_one_trial_that_goes_on_falling_keeps_the_others_company() -> None:
    begin = {"images": torch.stack([torch.full((1, 1, 2, 2), BOTTOM), torch.full((1, 1, 2, 2), 3.0)])}
    trials = descend(begin=begin, budget=Budget(200, patience=1), optimiser=SGD(0.001))
    assert [trial.steps for trial in trials] == [200, 200]


@pytest.mark.parametrize("way", ["loop", "lbfgs"])
def test_the_time_limit_ends_it(way: str) -> None:
    budget = Budget(10**9, seconds=0.0)
    trial = descend(budget=budget)[0] if way == "loop" else wolfe(budget=budget)
    assert trial.status == "time"
    assert trial.steps == 0


def test_lbfgs_ends_where_nothing_leads_down_any_more() -> None:
    calls = 0

    def counted(guess: Guess) -> tuple[Tensor, Guess]:
        nonlocal calls
        calls += 1
        return bowl(guess)

    trial = wolfe(counted, budget=Budget(10_000))
    assert trial.status == "plateau"
    assert trial.steps < 20
    assert calls < 50
    assert trial.guess["images"].flatten().tolist() == pytest.approx([BOTTOM] * 4, abs=1e-6)


def test_lbfgs_takes_no_more_steps_than_it_may() -> None:
    def valley(guess: Guess) -> tuple[Tensor, Guess]:
        x = guess["images"].clone().requires_grad_()
        with torch.enable_grad():
            a, b = x.flatten(1)[:, :-1], x.flatten(1)[:, 1:]
            value = (100 * (b - a * a) ** 2 + (1 - a) ** 2).sum(1)  # Rosenbrock's
            (slope,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), {"images": slope}

    short, long = (wolfe(valley, start(value=-1.0), Budget(steps)) for steps in (7, 400))
    assert short.steps == 7
    assert [step for step, _ in short.history] == [0, 7]
    assert long.objective < 1e-6 < short.objective
    assert long.guess["images"].flatten().tolist() == pytest.approx([1.0] * 4, abs=1e-2)


def test_lbfgs_moves_everything_in_the_guess() -> None:
    begin = {**start(), "labels": torch.full((1, 1, 3), -2.0)}
    assert wolfe(begin=begin).guess["labels"].flatten().tolist() == pytest.approx([BOTTOM] * 3, abs=1e-5)
    assert descend(begin=begin)[0].guess["labels"].flatten().tolist() == pytest.approx([BOTTOM] * 3, abs=1e-5)


def test_noise_is_of_its_size_and_determined_by_the_seed() -> None:
    flat: Evaluate = lambda guess: (guess["images"].flatten(1).sum(1) * 0, {"images": guess["images"] * 0})  # noqa: E731
    begin = {"images": torch.zeros(1, 1, 1, 50, 50)}
    options: dict[str, Any] = {"begin": begin, "steps": 4, "optimiser": SGD(0.2), "langevin": 0.5}
    (first,), (again,), (other,) = (descend(flat, **options, seeds=(seed,)) for seed in (1, 1, 2))
    assert torch.equal(first.guess["images"], again.guess["images"])
    assert not torch.equal(first.guess["images"], other.guess["images"])
    assert first.guess["images"].std().item() == pytest.approx(0.2 * 0.5 * math.sqrt(4), rel=0.1)
    (halved,) = descend(flat, **options, seeds=(1,), factors=[0.5])
    torch.testing.assert_close(halved.guess["images"], first.guess["images"] / 2)


def test_a_victim_is_dealt_the_same_noise_in_whatever_company() -> None:
    options: dict[str, Any] = {"steps": 30, "langevin": 0.5, "restarts": 2}
    together = descend(begin=start(4), **options, seeds=(1, 2))
    alone = descend(begin={"images": start(4)["images"][2:]}, **options, seeds=(2,))
    for one, other in zip(together[2:], alone, strict=True):
        assert torch.equal(one.guess["images"], other.guess["images"])


def test_the_group_pulls_the_restarts_of_a_victim_together_and_not_its_neighbours() -> None:
    flat: Evaluate = lambda guess: (guess["images"].flatten(1).sum(1) * 0, {"images": guess["images"] * 0})  # noqa: E731
    trials = descend(flat, start(4), 100, group=4.0, restarts=2)
    found = [trial.guess["images"].mean().item() for trial in trials]
    assert found == pytest.approx([3.5, 3.5, 5.5, 5.5], abs=1e-4)
    assert trials[0].history[0][1] == pytest.approx(4 * 0.5**2), "the objective has the group's share"


def test_the_same_seed_gives_the_same_bits() -> None:
    plan, known = victim(convolutional())
    real = engines.choose("eager", plan, [known], stack(2), 2, 2, 50)
    search = Search(Adam(0.1), [1.0], langevin=0.1, group=0.1, restarts=2)
    first, second = (run(real, stack(2), search, Budget(50), [torch.Generator().manual_seed(3)]) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.guess["images"], other.guess["images"])
        assert one.history == other.history
    alike = replace(search, langevin=0.2)
    third = run(real, stack(2), alike, Budget(50), [torch.Generator().manual_seed(3)])
    assert not torch.equal(third[0].guess["images"], first[0].guess["images"])


def test_a_look_is_taken_every_so_many_steps() -> None:
    assert loop.REPORT_EVERY == 20, "the documentation of `patience` says so"


def test_what_cannot_be_captured_runs_eagerly_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def captured(*_: Any) -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(loop, "captured", captured)
    made = Engine("cudagraph", bowl, 1)
    (trial,) = run(made, start(), Search(SGD(0.1), [1.0]), Budget(100), [torch.Generator()])
    assert torch.equal(trial.guess["images"], descend()[0].guess["images"])
    assert made.name == "eager"
    assert made.notes == [
        "eager instead of cudagraph: RuntimeError: CUDA error: operation not permitted when stream is capturing"
    ]


def test_a_captured_iteration_works_on_its_state_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a launch of a graph does, without one: the outcome is that of the loop."""

    def captured(advance: Callable[[Guess], Guess], state: Guess) -> Callable[[], None]:
        def replay() -> None:
            for name, value in advance(state).items():
                state[name].copy_(value)

        return replay

    monkeypatch.setattr(loop, "captured", captured)
    search = {"optimiser": Adam(0.1), "factors": [1.0, 0.5], "langevin": 0.1, "group": 0.1, "restarts": 2}
    rngs = [torch.Generator().manual_seed(0)]
    found = run(Engine("cudagraph", bowl, 2), start(2), Search(**search), Budget(50), rngs)
    for one, other in zip(found, descend(begin=start(2), steps=50, **search), strict=True):
        assert torch.equal(one.guess["images"], other.guess["images"])
        assert one.history == other.history
