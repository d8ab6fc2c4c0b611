"""How the step is run: eagerly, compiled, or as a captured CUDA graph, for several trials at once or one by one.

A batch of trials is a stack of guesses: of each victim, `restarts` of them, victim by victim. Every engine gives the
same numbers up to rounding; on one kind of device each gives the same bits every time.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from fedsim.adversaries.inversion.calculus import TRANSFORMED
from fedsim.adversaries.inversion.step import Guess, Knowledge, Plan, step
from fedsim.errors import InputError

Evaluate = Callable[[Guess], tuple[Tensor, Guess]]
"""A stack of guesses -> (objectives (trials,), slopes likewise stacked)."""

Single = Callable[[Knowledge, Guess], tuple[Tensor, Guess]]

NODES_A_SECOND = 100
"""What inductor makes of a traced graph in a second, cold, on a slow core (measured: 3,185 nodes in 31 s)."""
SAVED = 0.4
"""The share of an eager step that compiling saves on a CPU (measured .5 on a ResNet-18 at batch 1, .4 at 16)."""
PASSES = 7
"""Forward passes that a step is worth: one forward, two backward, four through the backward."""
FLOPS_A_SECOND = 3e10
"""Of an eager step on a slow core. With this, `auto` estimates; it times nothing, so that it always decides alike."""


@dataclass
class Engine:
    """How steps are run, and what is to be said about it.

    name: `eager`, `compiled` or `cudagraph`. together: trials in one call. notes: why it is not what was asked for.
    """

    name: str
    evaluate: Evaluate
    together: int
    notes: list[str] = field(default_factory=list)


def choose(
    wanted: str, plan: Plan, victims: Sequence[Knowledge], guess: Guess, restarts: int, together: int | None, steps: int
) -> Engine:
    """An engine for `restarts` trials of each victim.

    wanted: `auto`, `eager`, `compiled` or `cudagraph`. guess: a stack as the engine will get it.
    together: trials in one call; None: all on a GPU (fewer, where memory ends), one on a CPU, where a batch of
        different weight gradients costs more than its parts. steps: how many are to come, which `auto` weighs.

    Raises InputError for `cudagraph` without a CUDA device.
    """
    trials = len(victims) * restarts
    cuda = guess["images"].device.type == "cuda"
    if wanted == "cudagraph" and not cuda:
        raise InputError('engine = "cudagraph" needs a CUDA device; use "auto", "eager" or "compiled"')
    size = min(trials, together or (trials if cuda else 1))
    notes: list[str] = []
    name = wanted
    if wanted == "auto":
        name = "cudagraph" if cuda else "compiled" if _pays(plan, victims[0], guess, steps * trials) else "eager"
    if name == "compiled":
        reason = no_compiler()
        if reason:
            name = "eager"
            notes.append(f"eager instead of compiled: {reason}")
    while True:
        chunks = _chunks(victims, restarts, size)
        evaluate = _evaluate(plan, chunks, restarts, compiled=name == "compiled")
        try:
            if name == "compiled" or (cuda and size > 1):
                evaluate(guess)  # compiles, and shows whether memory is enough
            return Engine(name, evaluate, size, notes)
        except torch.cuda.OutOfMemoryError:
            if size == 1:
                raise
            torch.cuda.empty_cache()
            size = -(-size // 2)
            notes.append(f"{size} of {trials} trials at once, for lack of memory")
        except Exception as error:
            if name != "compiled":
                raise
            # What a compiler cannot do is no reason not to attack.
            name = "eager"
            notes.append(f"eager instead of compiled: {in_a_line(error)}")


def in_a_line(error: Exception) -> str:
    """The kind of an error and the first line of its message."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first[:200]}"


def no_compiler() -> str | None:
    """Why nothing can be compiled on this machine; None if it can. Inductor takes the compiler that CXX names, or
    this.
    """
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    return None if shutil.which(compiler) else f"there is no C++ compiler ('{compiler}')"


def _pays(plan: Plan, victim: Knowledge, guess: Guess, steps: int) -> bool:
    """Whether compiling costs less than it saves in that many steps, by estimates that depend on the work alone."""
    from torch.utils.flop_counter import FlopCounterMode

    modules = sum(1 for module in plan.frame.modules() if not list(module.children()))
    local = plan.local.steps if plan.local else 1
    nodes = 50 * modules * local  # about so many operations a layer in a traced step
    images = guess["images"][0]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        functional_call(plan.frame, {**victim["parameters"], **victim["buffers"]}, (images,))
    plan.norms.take()
    passed = plan.local.passed / len(images) if plan.local else 1
    seconds = PASSES * passed * counter.get_total_flops() / FLOPS_A_SECOND
    return 2 * nodes / NODES_A_SECOND < SAVED * steps * seconds


@dataclass(frozen=True)
class _Chunk:
    """Trials that run in one call. dims: for each tensor of the knowledge, 0 if stacked by trial, None if shared."""

    trials: range
    knowledge: Knowledge
    dims: Any


def _chunks(victims: Sequence[Knowledge], restarts: int, size: int) -> list[_Chunk]:
    trials = len(victims) * restarts
    out = []
    for first in range(0, trials, size):
        some = range(first, min(first + size, trials))
        chosen = [victims[trial // restarts] for trial in some]
        out.append(_Chunk(some, *_stacked(chosen)))
    return out


def _stacked(chosen: Sequence[Knowledge]) -> tuple[Knowledge, Any]:
    """One knowledge for several trials, with what is equal in all of them once."""
    leaves = [torch.utils._pytree.tree_flatten(one)[0] for one in chosen]
    spec = torch.utils._pytree.tree_flatten(chosen[0])[1]
    values, dims = [], []
    for same in zip(*leaves, strict=True):
        shared = all(value is same[0] or torch.equal(value, same[0]) for value in same[1:])
        values.append(same[0] if shared else torch.stack(same))
        dims.append(None if shared else 0)
    return torch.utils._pytree.tree_unflatten(values, spec), torch.utils._pytree.tree_unflatten(dims, spec)


def _evaluate(plan: Plan, chunks: Sequence[_Chunk], restarts: int, compiled: bool) -> Evaluate:
    calls: dict[tuple[int, tuple[Any, ...]], Any] = {}

    def call_for(chunk: _Chunk, guess: Guess) -> Any:
        # Chunks of as many trials can still differ in what their trials share.
        key = (len(chunk.trials), tuple(torch.utils._pytree.tree_leaves(chunk.dims)))
        if key not in calls:
            one: Any = functools.partial(step, plan)
            if len(chunk.trials) > 1:
                one = torch.vmap(
                    functools.partial(step, plan, calculus=TRANSFORMED), in_dims=(chunk.dims, 0), randomness="error"
                )
            calls[key] = _compiled(one, chunk.knowledge, guess) if compiled else one
        return calls[key]

    def evaluate(guess: Guess) -> tuple[Tensor, Guess]:
        values, slopes = [], []
        for chunk in chunks:
            if len(chunk.trials) > 1:
                some = {name: x[chunk.trials.start : chunk.trials.stop] for name, x in guess.items()}
            else:
                some = {name: x[chunk.trials.start] for name, x in guess.items()}
            with torch.no_grad():
                value, slope = call_for(chunk, some)(chunk.knowledge, some)
            values.append(value.reshape(len(chunk.trials)))
            slopes.append({name: slope[name].reshape(len(chunk.trials), *guess[name].shape[1:]) for name in guess})
        return torch.cat(values), {name: torch.cat([slope[name] for slope in slopes]) for name in guess}

    return evaluate


def _compiled(one: Single, knowledge: Knowledge, guess: Guess) -> Single:
    """The step as inductor compiles it: traced once with its derivatives, to a graph of plain operations.

    `torch.compile` on the step itself fails on its inner derivatives; on the traced graph it works, but traces twice
    more. Inductor is handed the graph alone here, and its cache on disk then answers in seconds instead of a minute.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_cache()))
    # A module that inductor imports tells every machine without a GPU that it found none.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch._inductor import standalone_compile
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.graph import CodeGen

    names = list(guess)

    def flat(knowledge: Knowledge, guess: Guess) -> list[Tensor]:
        value, slopes = one(knowledge, guess)
        return [value, *(slopes[name] for name in names)]

    graph = make_fx(flat)(knowledge, guess)
    # What make_fx returns takes the two arguments apart itself; inductor wants the tensors one by one.
    graph.graph.set_codegen(CodeGen())
    graph.recompile()
    leaves = torch.utils._pytree.tree_leaves((knowledge, guess))
    compiled = standalone_compile(graph, leaves, dynamic_shapes="from_example_inputs")

    def call(knowledge: Knowledge, guess: Guess) -> tuple[Tensor, Guess]:
        value, *slopes = compiled(*torch.utils._pytree.tree_leaves((knowledge, guess)))
        return value, dict(zip(names, slopes, strict=True))

    return call


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fedsim" / "inductor"


def captured(advance: Callable[[Guess], Guess], state: Guess) -> Callable[[], None]:
    """`advance` as a CUDA graph that works on the tensors of `state` in place: the whole iteration in one launch.

    advance: a pure function of such a state. It runs a few times before, to make what libraries make on first use, and
    once while it is captured, which computes nothing: `state` stays as it is until the first launch.
    """
    # Streams and graphs are made on the current device, which need not be the one that the tensors are on.
    with torch.cuda.device(next(iter(state.values())).device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                advance(state)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for name, value in advance(state).items():
                state[name].copy_(value)
    return graph.replay
