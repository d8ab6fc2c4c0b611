"""The contenders of attack_speed.py, and the scene that all of them attack.

`fedsim_iteration` and `run_fedsim` are all that knows the inside of fedsim's engine.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

if TYPE_CHECKING:
    from fedsim.adversaries.inversion.loop import _Iteration
    from fedsim.adversaries.inversion.step import Knowledge

SHAPE, CLASSES = (3, 32, 32), 10
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
STEP_SIZE = 0.1
TV = 0.1
WARM_UP = 3
"""Steps before the clock counts: allocations, and what an engine compiles or records."""

EAGER, COMPILED, CUDAGRAPH = "fedsim eager", "fedsim compiled", "fedsim cudagraph"
BREACHING, DOUBLE, ONCE = "breaching", "double backward", "forward+backward"
CONTENDERS = (EAGER, COMPILED, CUDAGRAPH, BREACHING, DOUBLE, ONCE)


class Absent(Exception):
    """Why a contender cannot take part."""


class Clock(NamedTuple):
    """Process CPU seconds and wall seconds: a moment, or what a step took."""

    cpu: float
    wall: float

    @classmethod
    def now(cls) -> Clock:
        """This moment."""
        return cls(time.process_time(), time.perf_counter())

    def since(self, before: Clock, steps: int = 1) -> Clock:
        """What each of the steps took."""
        return Clock((self.cpu - before.cpu) / steps, (self.wall - before.wall) / steps)


@dataclass(frozen=True)
class Task:
    """What one process is to do.

    check: `float32` or `float64` for the objective and the pixel gradient of the guess, in that precision, instead of
        timed steps; empty for timed steps, which are in float32.
    victims: how many batches to invert at once, each of its own client.
    """

    contender: str
    batch: int
    device: str
    batchnorm: str
    steps: int
    threads: int
    check: str = ""
    victims: int = 1


@dataclass(frozen=True)
class Outcome:
    """What came of it. steps: none where it was a check. objective, slope: none where steps were timed."""

    steps: list[Clock] = field(default_factory=list)
    objective: float | None = None
    slope: Tensor | None = None


@dataclass(frozen=True)
class Scene:
    """All that an attacker knows, and its first guess, on the device.

    model: in the mode in which the victim's gradient was taken. low, high: the box of valid pixels, (1, C, 1, 1).
    """

    model: nn.Module
    parameters: dict[str, Tensor]
    target: dict[str, Tensor]
    labels: Tensor
    guess: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Steps:
    """A way to attack. look: guess -> (objective, its derivative by the guess). advance: guess -> the next guess."""

    look: Callable[[Tensor], tuple[Tensor, Tensor]]
    advance: Callable[[Tensor], Tensor]


def fedsim_iteration(task: Task, scenes: list[Scene], signed: bool) -> _Iteration:
    """What fedsim's own loop repeats: a step on every scene at once, on the engine that is asked for. Raises Absent.

    signed: whether Adam takes the sign of the slope.
    """
    from fedsim.adversaries.base import Observation
    from fedsim.adversaries.inversion import engines, objectives, statistics
    from fedsim.adversaries.inversion.loop import Search, _Iteration
    from fedsim.adversaries.inversion.optimisers import Adam
    from fedsim.adversaries.inversion.step import Plan, Weights
    from fedsim.errors import InputError

    first = scenes[0]
    frame = copy.deepcopy(first.model)
    seen = Observation(0, 0, "server", {f"buffers/{name}": value for name, value in frame.named_buffers()}, {})
    norms = statistics.install(frame, "proxy" if task.batchnorm == "running" else "infer", seen, first.guess.device)
    plan = Plan(
        frame=frame,
        norms=norms,
        objective=objectives.cosine,
        layers=objectives.layer_weights("equal", len(first.parameters)),
        weights=Weights(tv=TV),
    )
    victims: list[Knowledge] = [
        {
            "parameters": scene.parameters,
            "buffers": {name: value.detach() for name, value in frame.named_buffers()},
            "target": list(scene.target.values()),
            "masks": [],
            "square": objectives.squared_length(list(scene.target.values()), [1.0] * len(scene.target)),
            "labels": scene.labels,
            "wanted": list(norms.wanted),
            "features": [],
        }
        for scene in scenes
    ]
    guess = {"images": torch.stack([scene.guess for scene in scenes])}
    wanted = task.contender.removeprefix("fedsim ")
    try:
        engine = engines.choose(wanted, plan, victims, guess, 1, None, task.steps)
    except InputError as error:
        raise Absent(str(error)) from error
    if engine.name != wanted:
        raise Absent("; ".join(engine.notes))
    search = Search(Adam(STEP_SIZE, signed), [1.0], first.low, first.high)
    return _Iteration(engine, guess, search, [torch.Generator()])


def run_fedsim(task: Task, scenes: list[Scene]) -> Outcome:
    """fedsim's own loop, without its look at the objective every twenty steps. Raises Absent."""
    from fedsim.adversaries.inversion.optimisers import Adam

    iteration = fedsim_iteration(task, scenes, signed=not task.check)
    if not task.check:
        return Outcome(timed(lambda: iteration.ahead(1, look_at=0), task.steps, task.device))
    value = iteration.ahead(1, look_at=0)
    # Adam's first moment after a first step: what that very step, compiled or recorded, found as the slope.
    slope = iteration._state["first/images"][0] / (1 - Adam.beta_1)
    return Outcome(objective=float(value), slope=slope)


def double_backward(scene: Scene) -> Steps:
    """The textbook: record the objective, gradient and all, and differentiate it by the guess."""
    from fedsim.adversaries.inversion.priors import total_variation

    parameters = {name: value.clone().requires_grad_(True) for name, value in scene.parameters.items()}

    def look(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_(True)
        loss = F.cross_entropy(functional_call(scene.model, parameters, (x,)), scene.labels)
        gradient = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        pairs = list(zip(gradient, scene.target.values(), strict=True))
        along = sum((g * t).sum() for g, t in pairs)
        lengths = sum(g.square().sum() for g, _ in pairs) * sum(t.square().sum() for _, t in pairs)
        total = 1 - along / lengths.sqrt() + TV * total_variation(x)  # type: ignore[union-attr]
        return total.detach(), torch.autograd.grad(total, x)[0]

    return Steps(look, lambda x: (x - 0.01 * look(x)[1].sign()).clamp(scene.low, scene.high))


def forward_backward(scene: Scene) -> Steps:
    """The gradient of the guess and nothing else. It does not attack: the guess stays as it is."""
    parameters = {name: value.clone().requires_grad_(True) for name, value in scene.parameters.items()}

    def advance(x: Tensor) -> Tensor:
        loss = F.cross_entropy(functional_call(scene.model, parameters, (x,)), scene.labels)
        torch.autograd.grad(loss, list(parameters.values()))
        return x

    def look(x: Tensor) -> tuple[Tensor, Tensor]:
        raise Absent("it has no objective")

    return Steps(look, advance)


class StampingLoss(nn.CrossEntropyLoss):
    """Looks at the clock whenever it is called, which breaching does once an iteration."""

    # Of the class, because breaching copies the loss that it is given.
    stamps: ClassVar[list[Clock]] = []

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.stamps.append(Clock.now())
        return super().forward(logits, labels)


def run_breaching(task: Task, scene: Scene) -> Outcome:
    """breaching's own attacker: its configuration `invertinggradients`, with labels given."""
    import breaching  # type: ignore[import-not-found]  # of its own environment

    side = SHAPE[-1]
    attacker = breaching.attacks.prepare_attack(
        scene.model,
        StampingLoss(),
        breaching.get_attack_config(
            "invertinggradients",
            [
                f"optim.max_iterations={WARM_UP + task.steps + 1}",
                f"optim.step_size={STEP_SIZE}",
                f"optim.signed={'null' if task.check else 'hard'}",
                f"impl.dtype={'double' if task.check == 'float64' else 'float'}",
                # It takes the mean over the border's pixels too.
                f"regularization.total_variation.scale={TV * side / (side - 1)}",
            ],
        ),
        {"device": scene.guess.device, "dtype": scene.guess.dtype},
    )
    # With buffers, breaching normalises by them; without, by the batch's own statistics.
    buffers = list(scene.model.buffers()) if task.batchnorm == "running" else None
    about = SimpleNamespace(shape=SHAPE, mean=MEAN, std=STD, modality="vision")
    payload = [{"parameters": list(scene.parameters.values()), "buffers": buffers, "metadata": about}]
    told = {"num_data_points": task.batch, "labels": scene.labels, "local_hyperparams": None}
    shared = [{"gradients": list(scene.target.values()), "buffers": None, "metadata": told}]
    if task.check:
        models, labels, _ = attacker.prepare_attack(payload, shared)
        attacker.objective.initialize(attacker.loss_fn, attacker.cfg.impl, None)
        candidate = scene.guess.clone().requires_grad_(True)
        optimizer, _ = attacker._init_optimizer([candidate])
        value = attacker._compute_objective(candidate, labels, models, optimizer, shared, 0)()
        return Outcome(objective=float(value), slope=candidate.grad)
    attacker.reconstruct(payload, shared, {}, initial_data=scene.guess)
    stamps = StampingLoss.stamps
    if scene.guess.is_cuda:
        # It waits for the device in each iteration, so the moments are no more than a forward pass off.
        return Outcome([stamps[WARM_UP + task.steps].since(stamps[WARM_UP], task.steps)])
    return Outcome([stamps[i + 1].since(stamps[i]) for i in range(WARM_UP, WARM_UP + task.steps)])


def timed(step: Callable[[], Any], steps: int, device: str) -> list[Clock]:
    """What each step took. On a GPU, which works on while Python goes ahead, what a step took on average."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(WARM_UP):
        step()
    out = []
    for _ in range(1 if device == "cuda" else steps):
        wait()
        before, block = Clock.now(), steps if device == "cuda" else 1
        for _ in range(block):
            step()
        wait()
        out.append(Clock.now().since(before, block))
    return out


def run(task: Task, scenes: list[Scene]) -> Outcome:
    """Do the task. scenes: one a victim. Raises Absent."""
    scene = scenes[0]
    if task.contender == BREACHING:
        return run_breaching(task, scene)
    if task.contender not in (DOUBLE, ONCE):
        return run_fedsim(task, scenes)
    how = double_backward(scene) if task.contender == DOUBLE else forward_backward(scene)
    if task.check:
        value, slope = how.look(scene.guess)
        return Outcome(objective=float(value), slope=slope)
    guess = scene.guess

    def step() -> None:
        nonlocal guess
        guess = how.advance(guess)

    return Outcome(timed(step, task.steps, task.device))


def network(batchnorm: str) -> nn.Module:
    """fedsim's CIFAR ResNet-18, with the weights that it is built with.

    batchnorm: what its layers normalise by, `running` (statistics, of random images) or `own` (the batch's).
    """
    from fedsim.models.building import build
    from fedsim.models.catalog import ResNet18

    model = build(ResNet18(), SHAPE, CLASSES, seed=1)
    images = torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        model(images)
    model.train(batchnorm == "own")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and batchnorm == "own":
            module.track_running_stats = False
    return model.to(memory_format=torch.channels_last)


def scene_for(task: Task, victim: int = 0) -> Scene:
    """The same for everybody who asks for the same task and the same victim: random images, labels and first guess."""
    rng = torch.Generator().manual_seed(100 + victim)
    model = network(task.batchnorm)
    images = torch.randn(task.batch, *SHAPE, generator=rng)
    labels = torch.randint(0, CLASSES, (task.batch,), generator=rng)
    guess = torch.randn(task.batch, *SHAPE, generator=rng)
    if task.check:
        # breaching counts the steps from the last row and column to zeros beyond them as total variation, fedsim does
        # not; here these steps are zero.
        guess[..., -1, :] = guess[..., :, -1] = 0
    low, high = ((edge - torch.tensor(MEAN).view(1, -1, 1, 1)) / torch.tensor(STD).view(1, -1, 1, 1) for edge in (0, 1))
    parameters = dict(model.named_parameters())
    target = torch.autograd.grad(F.cross_entropy(model(images), labels), list(parameters.values()))

    precision = torch.float64 if task.check == "float64" else torch.float32

    def there(value: Tensor) -> Tensor:
        value = value.detach().to(task.device, precision)
        return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value

    return Scene(
        model=model.to(task.device, precision),
        parameters={name: there(value) for name, value in parameters.items()},
        target={name: there(value) for name, value in zip(parameters, target, strict=True)},
        labels=labels.to(task.device),
        guess=there(guess.clamp(low, high)),
        low=there(low),
        high=there(high),
    )
