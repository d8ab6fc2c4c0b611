"""Labels for inputs that are known exactly, and the test of both: does the model give the same gradient again?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.models.loss import training_loss

Parameters = Mapping[str, Tensor]


def slopes(model: nn.Module, parameters: Parameters, layer: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (b, classes), and their derivatives by the outputs of `layer`, (b, classes, m).

    images: (b, C, H, W), normalised. The model must treat images one by one.
    """
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, given, output: seen.append(output))
    try:
        with torch.enable_grad():
            inner = {name: value.detach().requires_grad_() for name, value in parameters.items()}
            logits = functional_call(model, inner, (images,))
    finally:
        handle.remove()
    classes = logits.shape[1]
    # The images are independent, so the derivative of a class's sum is that of each image's own logit.
    each = [torch.autograd.grad(logits[:, one].sum(), seen[0], retain_graph=True)[0] for one in range(classes)]
    return logits.detach(), torch.stack(each, 1)


def soft_labels(logits: Tensor, derivatives: Tensor, arrived: Tensor, count: int) -> Tensor:
    """The label weights y of each image, from the derivative of the mean cross-entropy by the layer's outputs.

    That derivative is J^T (softmax(logits) - y) / count; solved for y in least squares.
    logits: (b, classes). derivatives: J, (b, classes, m). arrived: (b, m). count: images in the mean. Returns
    (b, classes), near to one-hot rows if the inputs are right and the labels are hard.
    """
    answer = (torch.linalg.pinv(derivatives.transpose(1, 2)) @ (count * arrived[:, :, None]))[:, :, 0]
    return torch.softmax(logits, 1) - answer


def gradient_residual(
    model: nn.Module, parameters: Parameters, gradient: Parameters, images: Tensor, labels: Tensor
) -> float:
    """The distance of the gradient that images and labels give from the one received, relative to its length.

    images: normalised, (b, C, H, W). labels: int64 (b,) or weights (b, classes). gradient: by parameter name.
    """
    with torch.enable_grad():
        inner = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        loss = training_loss(model, functional_call(model, inner, (images,)), labels)
        made = torch.autograd.grad(loss, list(inner.values()), allow_unused=True)
    gap = size = 0.0
    for name, value in zip(inner, made, strict=True):
        got = gradient[name].to(images.dtype)
        again = torch.zeros_like(got) if value is None else value
        gap += float((again - got).square().sum())
        size += float(got.square().sum())
    return float((gap / size) ** 0.5) if size > 0 else float("inf")
