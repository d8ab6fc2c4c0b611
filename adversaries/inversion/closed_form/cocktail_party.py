"""Puts the parts of the Cocktail Party Attack together for one observation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from fedsim import batchnorm, progress
from fedsim.adversaries.base import Observation, Reconstruction
from fedsim.adversaries.inversion.closed_form import cocktail, feature_inversion
from fedsim.adversaries.inversion.closed_form.cocktail import Separation, Shape, Unmixed, Weights
from fedsim.adversaries.inversion.closed_form.feature_inversion import Extractor
from fedsim.adversaries.inversion.victim import Victim, rebuild
from fedsim.errors import InputError

if TYPE_CHECKING:
    from fedsim.adversaries.inversion.recipes.cocktail_party import CocktailParty

START = 0.1
"""The standard deviation of the first guess of feature inversion, in normalised space."""

PROBES = 16
"""Random images by which features are found to be never negative."""


@dataclass(frozen=True)
class Source:
    """What the layer is fed. pixels: the image itself, flattened. shape: (C, H, W) if it has one. low, high: its range,
    of a shape that fits (K, in); None where it has no end.
    """

    pixels: bool
    shape: Shape | None
    low: Tensor | None
    high: Tensor | None


def unfit(model: nn.Module, batch: int) -> str | None:
    """Why the attack cannot work on a model and a batch of that many images, or None."""
    found = feature_inversion.first_linear(model)
    if found is None:
        return "it separates what a fully connected layer mixes, but the model has none; choose mlp, convnet6 or lenet"
    name, layer = found
    if layer.out_features <= batch:
        return (
            f"it needs a first fully connected layer of more outputs than the {batch} images it sees the gradient of, "
            f"but {name} has {layer.out_features}; use a smaller batch_size or a wider layer"
        )
    modules = list(model.modules())
    if any("attention" in type(one).__name__.lower() for one in modules):
        return (
            "it needs a fully connected layer that is fed each image once, but a model with attention feeds it "
            "token by token; choose mlp or convnet6, or an attack on transformers such as april"
        )
    if set(modules[: modules.index(layer)]) & set(batchnorm.layers(model).values()):
        return (
            "it inverts features that depend on one image alone, but BatchNorm ties those of a batch together; "
            "choose a model without it, such as mlp or convnet6"
        )
    if layer.bias is None and any(one.weight.dim() > 2 for one in modules[: modules.index(layer)] if _weighted(one)):
        return (
            f"{name} is fed features and has no bias, without whose gradient they have no sign; choose a model whose "
            "layer has one, such as convnet6"
        )
    return None


def _weighted(module: nn.Module) -> TypeGuard[nn.Linear]:
    return isinstance(getattr(module, "weight", None), torch.Tensor)


def recover(settings: CocktailParty, seen: Observation, device: torch.device, rng: torch.Generator) -> Reconstruction:
    """The batch, as well as it can be separated. Raises InputError where the model or the gradient does not do."""
    victim = rebuild(seen, device)
    objection = unfit(victim.model, victim.shape[0])
    if objection:
        raise InputError(f"cocktail_party: {objection}")
    name, layer = feature_inversion.first_linear(victim.model)  # type: ignore[misc]  # `unfit` saw to it
    extract = Extractor(victim.model.eval(), victim.parameters, layer)
    source = _source(victim, extract, rng)
    problem = _problem(settings, victim, name, source)
    count = len(problem.mixture.white)
    total = settings.restarts * settings.iterations + (0 if source.pixels else settings.feature_iterations)
    starts = [cocktail.random_rotation(count, rng).to(device, torch.float32) for _ in range(settings.restarts)]
    trials = []
    for number, start in enumerate(starts):
        tick = _teller(number * settings.iterations, total, "separation")
        trials.append(cocktail.unmix(problem, start, settings.iterations, settings.step_size, tick))
    place = min(range(len(trials)), key=lambda one: trials[one].objective)
    best = trials[place]
    notes = _notes(settings, victim, name, source, trials, count)
    inputs = _inputs(settings, problem, best.matrix, source)
    if source.pixels:
        guess, first = (_as_images(one, victim) for one in (inputs, _inputs(settings, problem, starts[place], source)))
    else:
        first = START * torch.randn((count, *victim.shape[1:]), generator=rng).to(device)
        tick = _teller(settings.restarts * settings.iterations, total, "feature inversion")
        steps, size = settings.feature_iterations, settings.feature_step_size
        guess, apart = feature_inversion.invert(extract, inputs, first, settings.feature_tv, steps, size, tick)
        notes["1 - cosine of the inverted features"] = apart
    progress.report(total, total)
    return Reconstruction(
        images=_finished(guess, victim),
        labels=None,
        objective=best.objective,
        iterations=total,
        history=best.history,
        initial=_finished(first, victim),
        status="done" if math.isfinite(best.objective) else "nan",
        notes=notes,
    )


def _source(victim: Victim, extract: Extractor, rng: torch.Generator) -> Source:
    """What the layer is fed, by trying: the image itself comes through unchanged."""
    like = next(iter(victim.parameters.values()))
    low, high = victim.normalise.box(like)
    noise = torch.rand((PROBES, *victim.shape[1:]), generator=rng).to(like)
    probes = low + noise * (high - low)
    with torch.no_grad():
        fed = extract(probes)
        if fed.dim() != 2:
            raise InputError(
                f"cocktail_party: the first fully connected layer is fed {fed.dim()} dimensions, so its gradient "
                "mixes more inputs than there are images; choose a model that flattens, such as mlp or convnet6"
            )
        if fed.shape[1] == math.prod(victim.shape[1:]) and torch.equal(fed, probes.flatten(1)):
            shape = victim.shape[1:]
            return Source(True, shape, *(one.expand(1, *shape).flatten(1) for one in (low, high)))
        bottom = low.new_zeros(()) if float(fed.min()) >= 0 else None
        return Source(False, extract.map_shape(probes[:1]), bottom, None)


def _problem(settings: CocktailParty, victim: Victim, name: str, source: Source) -> Separation:
    weight, bias = victim.gradient[f"{name}.weight"], victim.gradient.get(f"{name}.bias")
    if bias is not None and not bool(bias.any()):
        bias = None
    if bias is None and not source.pixels:
        raise InputError(f"cocktail_party: {name} is fed features, and without its bias's gradient they have no sign")
    if not bool(torch.isfinite(weight).all()) or not bool(weight.any()):
        raise InputError(f"cocktail_party: the gradient of {name}.weight is zero or not finite; there is nothing mixed")
    weights = Weights(
        settings.negentropy,
        settings.decorrelation,
        settings.temperature,
        settings.relax,
        settings.tv,
        settings.box,
    )
    mixture = cocktail.mix(weight, bias, victim.shape[0], source.shape, settings.domain)
    return Separation(mixture.to(weight.device, torch.float32), weights, source.low, source.high)


def _inputs(settings: CocktailParty, problem: Separation, matrix: Tensor, source: Source) -> Tensor:
    values, bias = matrix @ problem.mixture.values, problem.mixture.bias
    if bias is not None and (settings.scale == "bias" or not source.pixels):
        return cocktail.scaled_by_bias(values, matrix @ bias)
    assert source.low is not None and source.high is not None  # of pixels; features without a bias are refused
    return cocktail.scaled_to_box(values, source.low, source.high)


def _as_images(inputs: Tensor, victim: Victim) -> Tensor:
    return inputs.reshape(len(inputs), *victim.shape[1:])


def _finished(guess: Tensor, victim: Victim) -> Tensor:
    """Pixels in [0, 1], one image for each in the batch: gray where there was no component for it."""
    images = victim.normalise.inverse(guess).nan_to_num(0.5).clamp(0, 1).float().cpu().contiguous()
    missing = victim.shape[0] - len(images)
    return torch.cat([images, torch.full((missing, *images.shape[1:]), 0.5)])


def _teller(before: int, total: int, what: str) -> Callable[[int, float], None]:
    def tick(step: int, value: float) -> None:
        progress.report(before + step, total, f"{what} {value:.4g}")

    return tick


def _notes(
    settings: CocktailParty, victim: Victim, name: str, source: Source, trials: list[Unmixed], count: int
) -> dict[str, object]:
    fed = "the image itself" if source.pixels else "features"
    notes: dict[str, object] = {"layer": f"{name}, which is fed {fed}"}
    if victim.gradient.get(f"{name}.bias") is None:
        notes["scale"] = "the layer has no bias, so sign and scale of each image are guesses that fill the pixel box"
    if count < victim.shape[0]:
        notes["components"] = f"the gradient is a mixture of {count} inputs only, not of {victim.shape[0]}"
    if len(trials) > 1:
        notes["objectives of the restarts"] = [trial.objective for trial in trials]
    return notes
