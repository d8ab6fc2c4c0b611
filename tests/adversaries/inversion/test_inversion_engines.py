"""The ways to run a step give the same numbers, and what cannot be run is said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_plans import HARD, convolutional, images, normalised, stack, victim
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from fedsim.adversaries.inversion import engines, loop, objectives
from fedsim.adversaries.inversion.engines import choose
from fedsim.adversaries.inversion.local_steps import LocalSteps
from fedsim.adversaries.inversion.optimisers import Adam
from fedsim.adversaries.inversion.step import Guess, Knowledge, Plan, Weights, step
from fedsim.errors import InputError

EVERYTHING = Weights(tv=0.1, l2=0.1, orthogonality=0.1, statistics=0.2, features=0.1, task=0.1)


def victims(model: nn.Module, mode: str = "none", **options: Any) -> tuple[Plan, list[Knowledge]]:
    """Two victims of one model with images, labels and statistics of their own, and a third like the first but for
    its target.
    """
    plan, first = victim(model, mode=mode, **options)
    again = convolutional() if mode == "none" else normalised()
    _, second = victim(again, mode=mode, **{**options, "labels": HARD.flip(0), "truth": images(4)})
    third = {**first, "target": [value * 1.5 + 0.01 for value in first["target"]]}
    return plan, [first, second, third]


def one_by_one(plan: Plan, known: list[Knowledge], restarts: int, guess: Guess) -> tuple[Tensor, Guess]:
    """What the step itself gives for each trial."""
    values, slopes = [], []
    for trial in range(len(known) * restarts):
        value, slope = step(plan, known[trial // restarts], {name: x[trial] for name, x in guess.items()})
        values.append(value)
        slopes.append(slope)
    return torch.stack(values), {name: torch.stack([slope[name] for slope in slopes]) for name in guess}


def check(found: tuple[Tensor, Guess], expected: tuple[Tensor, Guess], **tolerance: float) -> None:
    torch.testing.assert_close(found[0], expected[0], **tolerance)
    torch.testing.assert_close(found[1], expected[1], **tolerance)


@pytest.mark.parametrize("together", [1, 2, 4, 5, 9, 100, None])
@pytest.mark.parametrize("mode", ["none", "exact", "own_statistics", "infer", "proxy"])
def test_together_is_one_by_one(mode: str, together: int | None) -> None:
    """With three restarts of three victims, calls of two, four or five trials cross from one victim to the next."""
    model = convolutional() if mode == "none" else normalised()
    plan, known = victims(model, mode, weights=EVERYTHING, last="4" if mode == "none" else "6")
    guess = stack(9)
    engine = choose("eager", plan, known, guess, 3, together, 10)
    assert (engine.name, engine.together) == ("eager", min(together or 1, 9))
    for _ in range(2):
        check(engine.evaluate(guess), one_by_one(plan, known, 3, guess))


def test_together_with_masks_sought_labels_and_local_steps() -> None:
    plan, known = victims(convolutional(), local=LocalSteps((1, 1), 3, 0.5, momentum=0.5), objective="angular")
    for place, one in enumerate(known):
        one["labels"] = torch.zeros(0)
        one["masks"] = [(value > 0.01 * place).double() for value in one["target"]]
        one["square"] = objectives.squared_length(one["target"], plan.layers, one["masks"])
    rng = torch.Generator().manual_seed(1)
    guess = {**stack(6), "labels": torch.randn(6, 2, 3, dtype=torch.float64, generator=rng)}
    expected = one_by_one(plan, known, 2, guess)
    for together in (4, 6):
        check(choose("eager", plan, known, guess, 2, together, 10).evaluate(guess), expected)


def test_the_same_call_gives_the_same_bits() -> None:
    plan, known = victims(convolutional())
    for together in (1, 3):
        first, second = (choose("eager", plan, known, stack(3), 1, together, 10).evaluate(stack(3)) for _ in range(2))
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1]["images"], second[1]["images"])


def test_compiled_is_eager() -> None:
    """One compilation serves all victims, so that nothing of the first can have got into it."""
    reason = engines.no_compiler()
    if reason:
        pytest.skip(reason)
    plan, known = victims(convolutional(), weights=Weights(tv=0.1))
    guess = stack(3)
    engine = choose("compiled", plan, known, guess, 1, 1, 10)
    assert (engine.name, engine.notes) == ("compiled", [])
    check(engine.evaluate(guess), one_by_one(plan, known, 1, guess))


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("mode", ["none", "exact", "own_statistics", "infer", "proxy"])
def test_an_iteration_waits_for_no_value(mode: str, together: int) -> None:
    """On the device `meta`, whose tensors have no values, so that asking for one is an error, as it is in a capture."""
    model = convolutional() if mode == "none" else normalised()
    weights = replace(EVERYTHING, task_kind="squared")
    plan, known = victim(model, mode=mode, weights=weights, last="4" if mode == "none" else "6")
    plan.frame.to("meta")
    known, guess = torch.utils._pytree.tree_map(lambda value: value.to("meta"), (known, stack(2)))
    edge = torch.ones(1, 1, 1, 1, device="meta")
    search = loop.Search(Adam(0.1), [1.0, 0.5], -edge, edge, group=0.1, restarts=2)
    engine = choose("eager", plan, [known], guess, 2, together, 10)
    assert loop._Iteration(engine, guess, search, []).ahead(3, look_at=0).device.type == "meta"


@pytest.mark.parametrize("kind", ["cross_entropy", "squared"])
def test_every_prior_can_be_traced(kind: str) -> None:
    plan, known = victims(convolutional(), weights=replace(EVERYTHING, task_kind=kind), last="4")
    make_fx(lambda knowledge, guess: step(plan, knowledge, guess))(known[0], {"images": stack(1)["images"][0]})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_cuda_graph_without_cuda_is_refused_with_the_remedy() -> None:
    plan, known = victims(convolutional())
    with pytest.raises(InputError, match='"cudagraph" needs a CUDA device; use "auto", "eager" or "compiled"'):
        choose("cudagraph", plan, known, stack(3), 1, None, 10)


class _Compilations:
    """Stands for the compiler: counts, and runs the step as it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.count, self._error = 0, error
        monkeypatch.setattr(engines, "no_compiler", lambda: None)
        monkeypatch.setattr(engines, "_compiled", self)

    def __call__(self, one: Any, knowledge: Knowledge, guess: Guess) -> Any:
        self.count += 1
        if self._error:
            raise self._error
        return one


def test_auto_is_eager_for_small_work_and_compiled_for_much_and_decides_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    compilations = _Compilations(monkeypatch)
    plan, known = victims(convolutional())
    guess = stack(3)
    assert {choose("auto", plan, known, guess, 1, None, 500).name for _ in range(3)} == {"eager"}
    assert compilations.count == 0
    assert {choose("auto", plan, known, guess, 1, None, 10**9).name for _ in range(3)} == {"compiled"}
    few = next(steps for steps in (10**power for power in range(20)) if _auto(plan, known, guess, steps) == "compiled")
    # Local steps make the step longer, and its compilation with it.
    local = replace(plan, local=LocalSteps((1, 1), 6, 0.1))
    assert _auto(local, known, guess, few // 10) == "eager"


def _auto(plan: Plan, known: list[Knowledge], guess: Guess, steps: int) -> str:
    return choose("auto", plan, known, guess, 1, None, steps).name


@pytest.mark.parametrize("together", [1, 2])
def test_a_kind_of_call_is_compiled_once(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    compilations = _Compilations(monkeypatch)
    plan, known = victims(convolutional())
    engine = choose("compiled", plan, known[:2], stack(8), 4, together, 10)
    engine.evaluate(stack(8))
    # Calls of two: within a victim all is shared.
    assert compilations.count == 1


def test_without_a_compiler_it_is_eager_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    compilations = _Compilations(monkeypatch)
    monkeypatch.setattr(engines, "no_compiler", lambda: "there is no C++ compiler ('g++')")
    plan, known = victims(convolutional())
    engine = choose("compiled", plan, known, stack(3), 1, None, 10)
    assert engine.name == "eager"
    assert engine.notes == ["eager instead of compiled: there is no C++ compiler ('g++')"]
    assert compilations.count == 0
    check(engine.evaluate(stack(3)), one_by_one(plan, known, 1, stack(3)))


def test_a_machine_without_a_compiler_is_known_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert engines.no_compiler() == "there is no C++ compiler ('no-such-compiler')"


def test_what_cannot_be_compiled_runs_eagerly_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    _Compilations(monkeypatch, RuntimeError("inductor does not know this operation\nand more"))
    plan, known = victims(convolutional())
    engine = choose("compiled", plan, known, stack(3), 1, None, 10)
    assert engine.name == "eager"
    assert engine.notes == ["eager instead of compiled: RuntimeError: inductor does not know this operation"]
    check(engine.evaluate(stack(3)), one_by_one(plan, known, 1, stack(3)))


def test_a_broken_step_is_no_reason_to_fall_back() -> None:
    plan, known = victims(convolutional())
    known[0]["labels"] = torch.tensor([1, 2, 0])
    with pytest.raises(ValueError, match="batch_size"):
        choose("eager", plan, known, stack(3), 1, None, 10).evaluate(stack(3))


def test_where_memory_ends_fewer_trials_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _Compilations(monkeypatch)
    plain = engines._evaluate

    def greedy(plan: Plan, chunks: Any, restarts: int, compiled: bool) -> engines.Evaluate:
        inner = plain(plan, chunks, restarts, compiled)

        def evaluate(guess: Guess) -> tuple[Tensor, Guess]:
            if len(chunks[0].trials) > 2:
                raise torch.cuda.OutOfMemoryError("no more")
            return inner(guess)

        return evaluate

    monkeypatch.setattr(engines, "_evaluate", greedy)
    plan, known = victims(convolutional())
    engine = choose("compiled", plan, known, stack(6), 2, 6, 10)
    assert engine.together == 2
    assert engine.notes[-1] == "2 of 6 trials at once, for lack of memory"
    check(engine.evaluate(stack(6)), one_by_one(plan, known, 2, stack(6)))
