"""From what a fully connected layer was fed, back to the image: the second half of the Cocktail Party Attack."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.adversaries.inversion.priors import total_variation
from fedsim.errors import InputError

LOOK_EVERY = 20
"""Steps between two looks at the objective, which wait for the device."""

RESCALINGS = 8

Parameters = dict[str, Tensor]


def first_linear(model: nn.Module) -> tuple[str, nn.Linear] | None:
    """The name of the first fully connected layer and the layer, or None if there is none."""
    return next(((name, one) for name, one in model.named_modules() if isinstance(one, nn.Linear)), None)


class _Reached(Exception):
    """The layer was reached: what comes after it need not be computed."""


@dataclass(frozen=True)
class Extractor:
    """The part of a model before one of its layers. model: in the mode in which it is to run."""

    model: nn.Module
    parameters: Parameters
    layer: nn.Module

    def __call__(self, images: Tensor) -> Tensor:
        """What the layer is fed for normalised images (N, C, H, W). Raises InputError if it is never called."""
        caught: list[Tensor] = []

        def catch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            caught.append(inputs[0])
            raise _Reached

        handle = self.layer.register_forward_pre_hook(catch)
        try:
            functional_call(self.model, self.parameters, (images,))
        except _Reached:
            return caught[0]
        finally:
            handle.remove()
        raise InputError("the model's first fully connected layer is never called, so it has no input to recover")

    def map_shape(self, image: Tensor) -> tuple[int, int, int] | None:
        """(C, H, W) of the feature maps that are flattened into the layer's input, or None if there are none.

        The last output of a submodule before the layer that has four dimensions, and as many values as the input.
        """
        seen: list[torch.Size] = []

        def look(_: nn.Module, __: object, output: object) -> None:
            if isinstance(output, Tensor) and output.dim() == 4:
                seen.append(output.shape)

        handles = [one.register_forward_hook(look) for one in self.model.modules()]
        try:
            size = self(image).shape[1]
        finally:
            for handle in handles:
                handle.remove()
        fitting = [shape for shape in seen if math.prod(shape[1:]) == size and shape[2] > 1 and shape[3] > 1]
        return (fitting[-1][1], fitting[-1][2], fitting[-1][3]) if fitting else None


def invert(
    extract: Callable[[Tensor], Tensor],
    wanted: Tensor,
    start: Tensor,
    tv: float,
    iterations: int,
    step_size: float,
    tick: Callable[[int, float], None],
) -> tuple[Tensor, float]:
    """Images whose features are the wanted ones (N, features), and the mean of 1 - cosine(features, wanted) at the end.

    Minimises the sum over images of 1 - cosine + tv * total variation (as the paper does) with Adam, its step
    falling to 0 along a half cosine, then sets the scale of each image. start: (N, C, H, W), normalised. The cosine
    hardly depends on the scale, so total variation shrinks the images and weighs less and less: coarse structures are
    found before fine ones. For that reason nothing is clamped here.
    """
    x = start.clone().requires_grad_(True)
    adam = torch.optim.Adam([x], lr=step_size)
    for step in range(iterations):
        adam.param_groups[0]["lr"] = step_size * 0.5 * (1 + math.cos(math.pi * step / iterations))
        apart = 1 - F.cosine_similarity(extract(x), wanted, dim=1)
        (x.grad,) = torch.autograd.grad(apart.sum() + tv * len(x) * total_variation(x), x)
        if step % LOOK_EVERY == 0:
            tick(step, float(apart.detach().mean()))
        adam.step()
    with torch.no_grad():
        images = rescaled(extract, wanted, x.detach())
        return images, float((1 - F.cosine_similarity(extract(images), wanted, dim=1)).mean())


def rescaled(extract: Callable[[Tensor], Tensor], wanted: Tensor, images: Tensor) -> Tensor:
    """Each image (N, C, H, W) times the factor with which its features are as long as the wanted ones (N, features).

    Exact at once where features grow with the image in proportion (ReLU without biases), else repeated a few times;
    a factor outside [1e-3, 1e3] is held there.
    """
    length = torch.linalg.vector_norm(wanted, dim=1)
    factor = torch.ones_like(length)
    for _ in range(RESCALINGS):
        now = torch.linalg.vector_norm(extract(factor[:, None, None, None] * images), dim=1)
        factor = (factor * length / now.clamp_min(1e-12)).clamp(1e-3, 1e3)
    return factor[:, None, None, None] * images
