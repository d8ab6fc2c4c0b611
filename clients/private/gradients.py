"""Sums of clipped per-example gradients, by Opacus' hooks, on a model that is given back as it was."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn

from fedsim import batchnorm
from fedsim.protocol import Batch

Loss = Callable[[Batch], Tensor]
"""The mean loss of the model on a batch, a scalar."""


def clipped_sum(model: nn.Module, batch: Batch, limit: float, loss: Loss, chunk: int | None = None) -> list[Tensor]:
    """The sum over the batch's images of each one's gradient, scaled down to an L2 norm of at most `limit`.

    The norm is over all parameters together; one tensor a parameter, in the model's order. An empty batch sums to
    zero. An image whose gradient is not finite adds nothing: its scaled gradient would have no norm to speak of.
    chunk: at most so many images' gradients are held at a time; all of them if None.
    """
    weights = list(model.parameters())
    total = [torch.zeros_like(weight) for weight in weights]
    if not len(batch):  # no forward pass: layers need not cope with no images
        return total
    with per_example(model) as gradients:
        for start in range(0, len(batch), chunk or len(batch)):
            stop = start + (chunk or len(batch))
            samples = gradients(loss(Batch(batch.images[start:stop], batch.labels[start:stop])))
            for sum_, part in zip(total, _clipped(samples, limit), strict=True):
                sum_ += part
    return total


def _clipped(samples: Sequence[Tensor], limit: float) -> Iterator[Tensor]:
    norms = torch.stack([torch.linalg.vector_norm(sample.flatten(1), dim=1) for sample in samples]).norm(dim=0)
    finite = torch.isfinite(norms)
    if not finite.all():
        samples, norms = [sample[finite] for sample in samples], norms[finite]
    # A norm of zero must not divide; clamping the norm from below by the limit gives the factor min(1, C / norm).
    factors = limit / norms.clamp(min=limit)
    for sample in samples:
        yield (factors @ sample.flatten(1)).view(sample.shape[1:])


@contextmanager
def per_example(model: nn.Module) -> Iterator[Callable[[Tensor], list[Tensor]]]:
    """In the block, what is given turns the mean loss of a batch of the model into each image's own gradient.

    One tensor (N, ...) a parameter, in the model's order; zeros where the loss does not depend on it. BatchNorm layers
    in evaluation mode take part as the fixed scalings that they are. Raises NotImplementedError, or what torch raises,
    for layers that Opacus cannot follow. The model gets no new name in its state and keeps no hook.
    """
    with _fixed_norms(model):
        weights = list(model.parameters())
        wrapped = GradSampleModule(model, loss_reduction="mean")
        try:
            yield lambda loss: _samples(loss, weights)
        finally:
            wrapped.to_standard_module()
            for module in model.modules():  # Opacus leaves these two behind
                for name in ("activations", "max_batch_len"):
                    module.__dict__.pop(name, None)


def _samples(loss: Tensor, weights: Sequence[nn.Parameter]) -> list[Tensor]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing")  # the first layer's images need no gradient
        whole = torch.autograd.grad(loss, weights, allow_unused=True)
    found = [weight.grad_sample for weight in weights]  # type: ignore[attr-defined]
    size = next((len(sample) for sample in found if sample is not None), 0)
    out = []
    for weight, sample, gradient in zip(weights, found, whole, strict=True):
        if (sample is None) != (gradient is None) or isinstance(sample, list):
            raise NotImplementedError("a layer's parameters are used where Opacus' hooks do not see it")
        out.append(weight.new_zeros(size, *weight.shape) if sample is None else sample)
        weight.grad_sample = None  # type: ignore[attr-defined]
    return out


class _FixedNorm(nn.Module):
    """A BatchNorm layer in evaluation mode: a fixed scaling, with the layer's own weight and bias.

    Opacus refuses the layer itself, and its hooks pass over layers that are not in training mode.
    """

    def __init__(self, layer: batchnorm.Layer) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps
        # Not as buffers, which Opacus refuses.
        self.__dict__["fixed"] = (layer.running_mean, layer.running_var)

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = (value.view(-1, *[1] * (x.dim() - 2)) for value in self.__dict__["fixed"])
        weight, bias = (value.view(-1, *[1] * (x.dim() - 2)) for value in (self.weight, self.bias))
        return (x - mean) * torch.rsqrt(variance + self.eps) * weight + bias


@contextmanager
def _fixed_norms(model: nn.Module) -> Iterator[None]:
    fixed = {
        name: layer
        for name, layer in batchnorm.layers(model).items()
        if name and not layer.training and layer.affine and layer.running_mean is not None
    }
    try:
        for name, layer in fixed.items():
            _put(model, name, _FixedNorm(layer))
        yield
    finally:
        for name, layer in fixed.items():
            _put(model, name, layer)


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, layer)
