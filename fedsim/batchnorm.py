"""Every rule about BatchNorm buffers: what a client sends, keeps and is sent, what the server averages, how a model is
put to train and to test. Nothing else in fedsim touches a buffer.

policy          a client sends        the server               a client starts a round with
share_batch     its batch statistics  moves its running ones   the server's running statistics
share_running   its running ones      averages them            the server's running statistics
local           nothing               has none                 its own (as SiloBN, Andreux et al. 2020)
freeze          nothing               keeps the initial ones   the initial ones, and normalises by them in training too
group_norm      (no BatchNorm is left: each layer becomes a GroupNorm)

Under `local` the layers' weights and biases are still shared, as in SiloBN; FedBN (Li et al. 2021) keeps those too.
The counter `num_batches_tracked` never leaves a client. Parameters of BatchNorm layers (weight, bias) are parameters
like any other and travel in the update.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedsim.experiment import BatchNormPolicy

Layer = _BatchNorm
"""A BatchNorm layer of any number of dimensions."""

MOMENTUM = 0.1
"""The share of a new batch in the server's running statistics under `share_batch`: torch's own default."""

_RUNNING = ("running_mean", "running_var")


def layers(model: nn.Module) -> dict[str, Layer]:
    """The BatchNorm layers of a model by name, in the order of its modules."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Layer)}


def apply_policy(model: nn.Module, policy: BatchNormPolicy | str) -> nn.Module:
    """The model as the policy has it built: for `group_norm` with every BatchNorm2d replaced, otherwise unchanged.

    A GroupNorm gets the largest number of groups up to 32 that divides the channels (Wu & He 2018 use 32), and the
    replaced layer's weight and bias.
    """
    if policy == "group_norm":
        for name, layer in layers(model).items():
            parent = model.get_submodule(name.rpartition(".")[0])
            channels = layer.num_features
            groups = max(g for g in range(1, min(32, channels) + 1) if channels % g == 0)
            norm = nn.GroupNorm(groups, channels, eps=layer.eps, affine=layer.affine)
            if layer.affine:
                norm.load_state_dict({"weight": layer.weight.data, "bias": layer.bias.data})
            setattr(parent, name.rpartition(".")[2], norm)
    return model


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the running statistics, as `LAYER.running_mean` and `LAYER.running_var`."""
    return {
        f"{name}.{kind}": getattr(layer, kind).detach().clone().cpu()
        for name, layer in layers(model).items()
        for kind in _RUNNING
        if getattr(layer, kind) is not None
    }


def load_statistics(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Write running statistics into a model. Names that the model lacks are an error, a missing one is left alone."""
    if not values:
        return
    found = layers(model)
    with torch.no_grad():
        for key, value in values.items():
            name, _, kind = key.rpartition(".")
            getattr(found[name], kind).copy_(value)


def broadcast(policy: str, running: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the server sends along with the parameters."""
    return dict(running) if policy in ("share_batch", "share_running", "freeze") else {}


def training_mode(model: nn.Module, policy: str, modules: Iterable[nn.Module] | None = None) -> None:
    """Put the model into the mode in which a client trains it. modules: all of the model's, where they are known."""
    if policy != "freeze" and all(module.training for module in modules or model.modules()):
        return
    model.train()
    if policy == "freeze":
        for layer in layers(model).values():
            layer.eval()


def testing_mode(model: nn.Module, policy: str) -> None:
    """Put the model into the mode in which the server evaluates it.

    Under `local` the server has no statistics of its own; it normalises the held-out images by their own batch, as
    SiloBN does for a site that it has not seen.
    """
    model.eval()
    if policy == "local":
        for layer in layers(model).values():
            layer.train()
            layer.track_running_stats = False
            # Without running statistics torch normalises by the batch and writes nothing.
            layer.running_mean = layer.running_var = None


@contextmanager
def recording(model: nn.Module) -> Iterator[list[dict[str, Tensor]]]:
    """Collect the batch statistics of every forward pass in the block: a dictionary for each pass.

    `LAYER.mean` and `LAYER.var` (biased, as BatchNorm normalises by it), each of shape (channels,).
    """
    passes: list[dict[str, Tensor]] = []
    found = layers(model)
    first = next(iter(found), None)

    def hook_for(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if name == first:
                passes.append({})
            x = inputs[0].detach()
            dims = [d for d in range(x.dim()) if d != 1]
            var, mean = torch.var_mean(x, dim=dims, unbiased=False)
            passes[-1][f"{name}.mean"], passes[-1][f"{name}.var"] = mean.cpu(), var.cpu()

        return hook

    handles = [layer.register_forward_pre_hook(hook_for(name)) for name, layer in found.items()]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def mean_statistics(passes: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean over passes of each recorded statistic; of one pass, exactly its own."""
    if not passes:
        return {}
    return {key: torch.stack([one[key] for one in passes]).mean(0) for key in passes[0]}


def sent(policy: str, model: nn.Module, passes: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What a client sends beside its update, after training."""
    if policy == "share_batch":
        return mean_statistics(passes)
    return statistics(model) if policy == "share_running" else {}


def aggregate(
    policy: str,
    running: Mapping[str, Tensor],
    replies: Sequence[Mapping[str, Tensor]],
    examples: Sequence[int],
    steps: Sequence[float],
) -> dict[str, Tensor]:
    """The server's running statistics after a round.

    share_running: the mean of the clients' statistics, weighted by their examples. share_batch: a moving average, as
    torch keeps it, over as many batches as a client took on (weighted) average: m = 1 - (1 - 0.1)^steps.
    """
    if not replies or policy not in ("share_batch", "share_running"):
        return dict(running)
    total = sum(examples)
    shares = [count / total for count in examples]
    if policy == "share_running":
        return {
            key: sum((share * reply[key] for share, reply in zip(shares, replies, strict=True)), torch.zeros(()))
            for key in running
        }
    momentum = 1 - (1 - MOMENTUM) ** sum(share * count for share, count in zip(shares, steps, strict=True))
    out = {}
    for key, old in running.items():
        batch_key = key.replace(".running_", ".")
        new = sum((share * reply[batch_key] for share, reply in zip(shares, replies, strict=True)), torch.zeros(()))
        out[key] = (1 - momentum) * old + momentum * new
    return out


def expected_keys(policy: str, model: nn.Module) -> set[str]:
    """The names that a client's reply must hold in its buffers under a policy."""
    if policy == "share_running":
        return set(statistics(model))
    if policy == "share_batch":
        return {f"{name}.{kind}" for name in layers(model) for kind in ("mean", "var")}
    return set()


def expected_shapes(policy: str, model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of those, by name, in alphabetical order."""
    found = layers(model)
    return {key: (found[key.rpartition(".")[0]].num_features,) for key in sorted(expected_keys(policy, model))}
