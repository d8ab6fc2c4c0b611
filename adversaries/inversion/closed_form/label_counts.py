"""How many images of each class a batch holds, read off the gradient of its classification layer. Tensors alone.

Of a batch of N images with features h_n, predictions p_n (after the softmax) and one-hot labels y_n, the gradient of
the mean cross-entropy is, by the layer's bias, b = mean (p_n - y_n), and by its weight, W = mean (p_n - y_n) h_n^T.
With c images of class k among the N, b_k = (mean prediction of k) - c / N. That is what every function here goes by.

`weight` (classes, features) and `bias` (classes,) are gradients of the mean loss. Counts are int64 (classes,).
"""

from __future__ import annotations

import torch
from torch import Tensor


def single(weight: Tensor, bias: Tensor | None) -> Tensor:
    """The class of a batch of one, as a count (iDLG: Zhao, Mopuri and Bilen, 2020, section 3).

    Of one image, p - y is negative for its class alone: so is the bias gradient. Without a bias, the rows of the weight
    gradient are p - y times one and the same h, so the row of the label, and no other, points against all others,
    whatever the signs of h. With two classes the rows only oppose each other; there features are taken as not negative.
    """
    if bias is not None:
        place = bias.argmin()
    elif len(weight) == 2:
        place = weight.sum(1).argmin()
    else:
        along = weight @ weight.T
        # Of the label that is -(1 - p)^2 |h|^2, of another class -p^2 |h|^2, which is less in size.
        place = (along.sum(1) - along.diagonal()).argmin()
    return torch.zeros(len(weight), dtype=torch.int64, device=weight.device).index_fill(0, place.reshape(1), 1)


def distinct(weight: Tensor, count: int) -> Tensor:
    """The `count` classes with the smallest entries, one image each (GradInversion: Yin et al., CVPR 2021).

    Where features are not negative, an entry of W_k can only be negative if the batch holds class k. It is right only
    if no class occurs twice; count is at most the number of classes.
    """
    smallest = weight.amin(1).topk(count, largest=False).indices
    return torch.zeros(len(weight), dtype=torch.int64, device=weight.device).index_fill(0, smallest, 1)


def greedy(rows: Tensor, impact: float, count: int, counts: Tensor | None = None) -> Tensor:
    """Until there are `count` images: the class with the lowest entry gets one, and its `impact` (< 0) is taken off.

    counts: the images given before, whose impact is off already.
    """
    rows = rows.clone()
    counts = torch.zeros(len(rows), dtype=torch.int64, device=rows.device) if counts is None else counts.clone()
    for _ in range(count - int(counts.sum())):
        lowest = rows.argmin()
        counts[lowest] += 1
        rows[lowest] -= impact
    return counts


def from_bias(bias: Tensor, count: int) -> Tensor:
    """c = N (p - b), with the unknown mean prediction p taken as even, in whole images.

    An image costs its class exactly 1 / N, so giving the lowest entry an image and 1 / N back, N times, is the division
    into whole numbers: an even p is the same for every class, so it drops out of the comparison.
    """
    return greedy(bias, -1 / count, count)


def llg(rows: Tensor, impact: float, offset: Tensor | float, count: int) -> Tensor:
    """LLG (Wainakh et al., PETS 2022, algorithm 1): negative rows first, then the offset off, then greedily.

    rows: (classes,) sums over the rows of the weight gradient; if features are not negative, then only the row of a
    class in the batch can be. impact: what an image takes from its class's row, < 0. offset: what a row has without
    images of its class. Of more negative rows than images, which a defense's noise can bring about, the lowest count.
    """
    first = [place for place in rows.argsort()[:count].tolist() if rows[place] < 0]
    counts = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    counts[first] = 1
    return greedy(rows - offset - impact * counts, impact, count, counts)


def shared_impact(rows: Tensor, count: int) -> float:
    """The impact of an image, from the gradient alone: the negative rows' sum over N, times 1 + 1 / classes (LLG)."""
    return float(rows.clamp(max=0).sum()) / count * (1 + 1 / len(rows))


def model_impact(features: Tensor, predictions: Tensor, count: int) -> tuple[float, Tensor]:
    """Impact and offset from dummy images run through the model (LLG*, the white-box variant of LLG).

    The paper labels batches of dummies with one class after another. A forward pass tells all of these gradients at
    once: with s_n the sum of features, row j of a batch labelled i is mean(p_nj s_n) - (i == j) mean(s_n). Hence
    the offset, row j averaged over the labels i != j, is mean(p_nj s_n), and the impact, row i of label i averaged
    over i, over N and times 1 + 1 / classes, is -(1 + 1 / classes) (1 - 1 / classes) mean(s_n) / N.

    features: (M, features). predictions: (M, classes), after the softmax. count: N, of the batch under attack.
    """
    sums, classes = features.sum(1), predictions.shape[1]
    offset = (predictions * sums[:, None]).mean(0)
    return -(1 - 1 / classes**2) * float(sums.mean()) / count, offset


def class_predictions(weight: Tensor, bias: Tensor, own_weight: Tensor, own_bias: Tensor) -> Tensor:
    """What the model predicts of the mean image of each class, (classes, classes), one class a row (iLRG).

    Class k's own images have most weight in row k of both gradients, so W_k / b_k is about their mean feature h_k.
    One deviation from the paper: no h_k is taken to be longer than their median. Where b_k is nearly zero, because
    the images of class k and the predictions of it cancel out, the quotient is far from any feature there is.

    own_weight, own_bias: the layer's parameters. Each row sums to 1.
    """
    length = weight.norm(dim=1) / bias.abs()  # inf or NaN where the bias gradient is zero
    longest = length[length.isfinite()].median() if length.isfinite().any() else length.new_zeros(())
    direction = torch.nn.functional.normalize(weight, dim=1) * torch.where(bias < 0, -1.0, 1.0)[:, None]
    features = direction * length.nan_to_num(0.0).clamp(max=longest)[:, None]
    return (features @ own_weight.T + own_bias).softmax(1)


def restore(predictions: Tensor, bias: Tensor, count: int) -> Tensor:
    """Amounts of images of each class, (classes,), not whole, none below 0 (iLRG: Ma et al., ICLR 2023).

    The least-squares solution of sum_j c_j q_jk - c_k = N b_k for every class k, and sum_j c_j = N, where q_j is the
    prediction of class j. Repeated and absent classes are no trouble. One deviation from the paper, which takes the
    pseudo-inverse and then drops what is negative: c >= 0 is a constraint of the solution.
    """
    from scipy.optimize import nnls

    system = torch.cat([torch.ones_like(predictions[:1]), predictions.T - torch.eye(len(bias)).to(predictions)])
    right = torch.cat([torch.ones_like(bias[:1]), bias]) * count
    amounts, _ = nnls(system.double().cpu().numpy(), right.double().cpu().numpy())
    return torch.from_numpy(amounts)


def whole(amounts: Tensor, count: int) -> Tensor:
    """Whole numbers from 0 on that sum to `count`: each rounded down, the largest remainders up.

    Negative amounts are zero. Where the others sum to more or less than `count`, what is missing goes to, or what is
    too much comes from, the classes whose amount is furthest off, one image at a time.
    """
    amounts = amounts.clamp(min=0)
    counts = amounts.floor().to(torch.int64)
    while int(counts.sum()) < count:
        counts[(amounts - counts).argmax()] += 1
    while int(counts.sum()) > count:
        over = (counts - amounts).masked_fill(counts == 0, -torch.inf)
        counts[over.argmax()] -= 1
    return counts


def contradiction(bias: Tensor, counts: Tensor) -> float:
    """The share of the batch, in [0, 1], whose labels cannot be right: 0 for the true labels.

    b + c / N is the mean prediction, which has no negative entry; a class below zero was given too few images.
    """
    return float((bias + counts / counts.sum()).clamp(max=0).sum().abs())
