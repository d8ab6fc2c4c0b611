"""Soteria: the gradient of the last layer is cut where the features tell most of the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from fedsim.errors import InputError
from fedsim.settings import OpenFraction

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from fedsim.clients.defenses.base import Site
    from fedsim.protocol import Update

_NO_LAYER = (
    "the model has no fully connected layer whose features could be pruned; "
    "choose a model with one (such as convnet6 or resnet18), or leave soteria out"
)


@dataclass(frozen=True)
class Soteria:
    """Zeroes, in the weight of the last fully connected layer, the columns of the features that tell most of an image.

    Source: Sun et al., "Soteria: Provable Defense against Privacy Leakage in Federated Learning from Representation
    Perspective" (CVPR 2021). Features r go into that layer (classes, F), and its weight's gradient is an outer product
    with r, so the gradient with column i at 0 is the one with r_i at 0. Nothing else of the update changes, the layer's
    bias included. Balunovic et al. (ICLR 2022) get round this defense by leaving that layer out of the match.

    ratio: the fraction of features to prune, in [0, 1).
    rule: `paper`, the k = round(ratio * F) features with the largest mean over the batch of |r_i| / ||dr_i / dx||_2
        (algorithm 1, with ||(dr_i/dx)^-1|| taken as 1 / ||dr_i/dx||, as the authors' code does; a feature that does not
        move with the image counts 0; of equal ones the first). `released`, as the authors' code has it: those with
        |v_i| below the `ratio` quantile of v, where v_i is the sum over the batch of ||dr_i/dx||_2 / (r_i + 0.1).
        There a dead unit (r_i = 0 for all images) comes first and a network of many loses only these, or nothing; and
        negative features can make the denominator vanish.

    dr_i/dx is taken at the broadcast parameters, on the first batch, by the normalised pixels; see
    `jacobian.feature_norms`. For fedavg too: what is pruned then is the update of all local steps.
    The cost is F passes back through the network a round: many times that of the training step itself.
    """

    ratio: OpenFraction = 0.5
    rule: Literal["paper", "released"] = "paper"

    reads_batches: ClassVar[bool] = True

    def objection_to(self, model: nn.Module, policy: str) -> str | None:
        """Why there are no features to prune in this model."""
        from fedsim.models.layers import last_linear

        return _NO_LAYER if last_linear(model) is None else None

    def perturb_at(self, update: Update, site: Site, rng: torch.Generator) -> tuple[Update, Mapping[str, Tensor]]:
        """The update with columns at 0. Nothing is remembered, nothing is drawn.

        Raises InputError for a model that does not end in a fully connected layer.
        """
        from fedsim.clients.defenses.jacobian import feature_norms
        from fedsim.models.layers import last_linear

        layer = last_linear(site.model)
        key = f"{layer}.weight"
        if layer is None or key not in update.tensors:
            raise InputError(f"defense soteria: {_NO_LAYER}")
        device = next(site.model.parameters()).device
        images = site.normalise(site.batches[0].images.to(device))
        features, norms = feature_norms(site.model, site.parameters, images, layer)
        pruned = self.choose(features, norms).to(update.tensors[key].device)
        weight = update.tensors[key].masked_fill(pruned, 0)
        return replace(update, tensors={**update.tensors, key: weight}), {}

    def choose(self, features: Tensor, norms: Tensor) -> Tensor:
        """Which features to prune, bool (F,). features, norms: (N, F), see `jacobian.feature_norms`."""
        import torch

        from fedsim.clients.defenses.selection import quantile

        if self.rule == "released":
            ratios = (norms / (features + 0.1)).sum(0)
            return ratios.abs() < quantile(ratios, self.ratio)
        told = torch.where(norms > 0, features.abs() / norms, 0).mean(0)
        pruned = torch.zeros(len(told), dtype=torch.bool, device=told.device)
        pruned[told.argsort(descending=True, stable=True)[: round(self.ratio * len(told))]] = True
        return pruned
