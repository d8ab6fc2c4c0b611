"""The sign of each pixel that magnitudes leave open, from the smoothness of images."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from torch import Tensor

from fedsim.data.dataset import Normalisation


def smooth(images: Tensor, normalise: Normalisation) -> Tensor:
    """The images with a sign for each pixel and channel, the same in all of them, such that neighbours agree.

    Two neighbouring entries (in a row, in a column, or of two channels) go together over the images of natural scenes.
    A spanning tree of the strongest correlations carries the sign from one entry to all others. The one sign that is
    left for the whole goes to where fewer values are outside the valid pixels: the weakest link, under much noise.
    images: normalised, (P, C, H, W), right up to these signs.
    """
    shape = images.shape[1:]
    values = images.flatten(1).double().cpu()
    values = values / values.norm(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    places = np.arange(values.shape[1]).reshape(shape)
    pairs = [
        (np.take(places, range(size - 1), axis).ravel(), np.take(places, range(1, size), axis).ravel())
        for axis, size in enumerate(shape)
        if size > 1
    ]
    first, second = (np.concatenate([pair[side] for pair in pairs] or [places.ravel()[:0]]) for side in (0, 1))
    together = (values[:, first] * values[:, second]).sum(0).abs().numpy()
    # A length of 0 would mean no edge at all.
    graph = coo_matrix((1.001 - together.clip(max=1), (first, second)), shape=(places.size, places.size))
    order, parents = breadth_first_order(minimum_spanning_tree(graph), 0, directed=False)
    agree = (values[:, order[1:]] * values[:, parents[order[1:]]]).sum(0).numpy() >= 0
    signs = np.ones(places.size)
    for place, same in zip(order[1:], agree, strict=True):
        signs[place] = signs[parents[place]] if same else -signs[parents[place]]
    found = images * torch.from_numpy(signs).to(images).view(shape)
    return min((found, -found), key=lambda one: _outside(normalise.inverse(one)))


def _outside(images: Tensor) -> float:
    return float((images - images.clamp(0, 1)).square().mean())
