"""How strongly each feature of a network's last hidden layer depends on the image: exact norms of its derivatives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim import batchnorm, progress
from fedsim.errors import InputError

IMAGES_AT_ONCE = 64
"""How many images go back through the network together, which bounds the memory."""


def feature_norms(
    model: nn.Module, parameters: Mapping[str, Tensor], images: Tensor, layer: str
) -> tuple[Tensor, Tensor]:
    """What goes into the fully connected layer `layer`, and how strongly it depends on the pixels.

    images: normalised, (N, C, H, W). Returns the features r, (N, F), and ||dR_i / dx_n||_2, (N, F), on the images'
    device, where R_i is the sum of feature i over the batch and x_n one image. Without BatchNorm in training that is
    the derivative of r_ni, for no feature depends on another image.

    It takes F passes back through the network, of `IMAGES_AT_ONCE` images each. BatchNorm layers normalise as the
    model's mode has them do; dropout and its kind are off. The model stays as it is, buffers and modes included.
    Raises InputError where the layer gets more than one vector an image.
    """
    device = images.device
    state = {name: value.to(device) for name, value in parameters.items()}
    # Copies, because a BatchNorm in training writes its running statistics into what it is called with.
    state |= {name: value.detach().clone() for name, value in model.named_buffers()}
    reached: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: reached.append(inputs[0]))
    try:
        with _certain(model), torch.enable_grad():
            images = images.detach().requires_grad_()
            functional_call(model, state, (images,))
    finally:
        handle.remove()
    if len(reached) != 1 or reached[0].dim() != 2:
        raise InputError(
            f"layer '{layer}' does not get one vector of features an image, so none can be pruned; "
            "choose a model that ends in one fully connected layer"
        )
    features = reached[0]
    count = features.shape[1]
    norms = torch.empty_like(features)
    step = max(1, IMAGES_AT_ONCE // len(images))
    for start in range(0, count, step):
        stop = min(start + step, count)
        # One pass back for each feature of the chunk, all at once: row p has ones in column start + p.
        ones = torch.eye(stop - start, count, device=device, dtype=features.dtype).roll(start, 1)
        (rows,) = torch.autograd.grad(
            features,
            images,
            ones[:, None].expand(-1, len(images), -1),
            retain_graph=True,
            is_grads_batched=True,
        )
        norms[:, start:stop] = rows.flatten(2).norm(dim=2).T
        progress.report(stop, count, "features")
    return features.detach(), norms.detach()


@contextmanager
def _certain(model: nn.Module) -> Iterator[None]:
    """All layers but BatchNorm in evaluation mode: no draw from the generator that the whole process shares."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = module.training and isinstance(module, batchnorm.Layer)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
