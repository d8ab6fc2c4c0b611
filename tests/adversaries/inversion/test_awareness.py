"""What each rule makes of knowing a defense, against values by hand and against the defenses themselves."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from defended import place
from torch import Tensor, nn

from fedsim.adversaries.inversion import awareness, maps
from fedsim.adversaries.inversion.awareness import Matched
from fedsim.adversaries.inversion.awareness.bottleneck import without_bottleneck
from fedsim.clients.defenses.clipping import GradientClipping
from fedsim.clients.defenses.outpost import Outpost
from fedsim.clients.defenses.pruning import GradientPruning
from fedsim.clients.defenses.quantisation import Quantisation
from fedsim.clients.defenses.sign import SignCompression
from fedsim.clients.defenses.sparsification import RandomSparsification
from fedsim.models import precode
from fedsim.protocol import Update


def tensors(seed: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng) for shape in [(4, 3, 3, 3), (5, 7), (5,)]]


def sent(defense: Any, whole: list[Tensor], memory: dict[str, Tensor] | None = None) -> list[Tensor]:
    update, rng = Update({str(place): value for place, value in enumerate(whole)}), torch.Generator().manual_seed(1)
    if isinstance(defense, Outpost | Quantisation | SignCompression | RandomSparsification):
        site: Any = type("Site", (), {"round": 1, "memory": memory or {}, "parameters": update.tensors})
        return list(defense.perturb_at(update, site, rng)[0].tensors.values())
    return list(defense.perturb(update, rng).tensors.values())


def know(target: list[Tensor], *defenses: dict[str, Any], objective: str = "cosine", **about: Any) -> Matched:
    return awareness.match(Matched(target, objective=objective), defenses, place(target, **about))


def through(matched: Matched, gradient: list[Tensor]) -> list[Tensor]:
    for one, given in zip(matched.maps, matched.given, strict=True):
        gradient, _ = one(gradient, given, matched.target)
    return gradient


NOISE = {"name": "gradient_noise", "kind": "gaussian", "std": 0.1}


@pytest.mark.parametrize("scope", ["tensor", "global"])
@pytest.mark.parametrize("ratio", [0.5, 0.9, 0.97])
def test_pruning_matches_exactly_the_entries_that_were_kept(ratio: float, scope: Any) -> None:
    pruned = sent(GradientPruning(ratio, scope), tensors(0))
    matched = know(pruned, {"name": "gradient_pruning", "ratio": ratio, "scope": scope})
    assert matched.masks is not None
    for mask, value in zip(matched.masks, pruned, strict=True):
        assert torch.equal(mask, (value != 0).float())


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_pruning_finds_the_kept_entries_below_small_noise(scope: Any) -> None:
    pruned = sent(GradientPruning(0.9, scope), tensors(0))
    rng = torch.Generator().manual_seed(0)
    noisy = [value + 1e-3 * torch.randn(value.shape, generator=rng) for value in pruned]
    # The objective of the noise, so that the masks are those of the pruning alone.
    matched = know(noisy, {"name": "gradient_pruning", "ratio": 0.9, "scope": scope}, NOISE, objective="squared_l2")
    assert matched.masks is not None
    for mask, value in zip(matched.masks, pruned, strict=True):
        assert torch.equal(mask, (value != 0).float())


@pytest.mark.parametrize("rescale", [False, True])
def test_random_sparsification_maps_the_whole_gradient_to_what_was_sent(rescale: bool) -> None:
    whole = tensors(0)
    target = sent(RandomSparsification(0.8, rescale), whole)
    matched = know(target, {"name": "random_sparsification", "ratio": 0.8, "rescale": rescale, "error_feedback": False})
    assert matched.masks is not None
    mapped = [g * mask for g, mask in zip(through(matched, whole), matched.masks, strict=True)]
    torch.testing.assert_close(mapped, target)
    assert len(matched.maps) == (2 if rescale else 0)


def test_soteria_leaves_out_the_columns_of_the_last_layer_that_are_zero() -> None:
    target = tensors(0)
    target[1][:, [1, 4]] = 0
    target[0][0] = 0  # zeros elsewhere are none of it
    matched = know(target, {"name": "soteria", "ratio": 0.3}, last="layer1")
    assert matched.masks is not None
    assert matched.masks[1].tolist() == [[1, 0, 1, 1, 0, 1, 1]] * 5
    assert matched.masks[0].item() == matched.masks[2].item() == 1
    assert "2 of 7 columns of layer1.weight" in matched.said[0]


def test_gaussian_noise_by_hand() -> None:
    # |t|^2 = 9 + 16 + 25 = 50, and of 3 entries with variance 4 the noise's share is 12.
    target = [torch.tensor([3.0, 4.0]), torch.tensor([5.0])]
    matched = know(target, {"name": "gradient_noise", "kind": "gaussian", "std": 2.0})
    assert (matched.objective, matched.maps) == ("squared_l2", ())
    assert matched.masks is not None
    assert [mask.item() for mask in matched.masks] == pytest.approx([0.5 / 38] * 2)


def test_laplace_noise_by_hand() -> None:
    target = [torch.tensor([3.0, 4.0]), torch.tensor([5.0])]
    matched = know(target, {"name": "gradient_noise", "kind": "laplace", "std": 2.0})
    assert matched.objective == "l1"
    assert matched.masks is not None
    # sqrt(2) |d| / s is the likelihood, and s^2 / 38 what one unit of it is worth.
    assert [mask.item() for mask in matched.masks] == pytest.approx([math.sqrt(2) * 2 / 38] * 2)
    # In the units of a squared distance: 2 s^2 times the likelihood.
    squares = know(target, {"name": "gradient_noise", "kind": "laplace", "std": 2.0}, objective="squared_l2")
    assert squares.masks is not None
    assert squares.masks[0].item() == pytest.approx(2 * 2.0**2 * math.sqrt(2) / 2.0)


def test_noise_is_in_the_units_of_the_update() -> None:
    """With fedavg the target is the update over rate and steps."""
    target = [torch.tensor([3.0, 4.0]), torch.tensor([5.0])]
    fedsgd = know(target, {"name": "gradient_noise", "kind": "laplace", "std": 2.0})
    fedavg = know(target, {"name": "gradient_noise", "kind": "laplace", "std": 0.2}, unit=0.1)
    torch.testing.assert_close(fedavg.masks, fedsgd.masks)


@pytest.mark.parametrize(("kind", "objective"), [("gaussian", "squared_l2"), ("laplace", "l1")])
def test_an_objective_that_is_the_likelihood_already_stays(kind: str, objective: str) -> None:
    matched = know(tensors(0), {"name": "gradient_noise", "kind": kind, "std": 0.1}, objective=objective)
    assert (matched.masks, matched.objective) == (None, objective)
    assert "already" in matched.said[0]


def test_noise_that_drowns_the_signal_leaves_a_finite_objective() -> None:
    matched = know(tensors(0), {"name": "gradient_noise", "kind": "gaussian", "std": 1e3})
    assert matched.masks is not None
    assert all(torch.isfinite(mask) and mask > 0 for mask in matched.masks)


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_clipping_maps_the_whole_gradient_to_what_was_sent(scope: Any) -> None:
    whole = tensors(0)
    target = sent(GradientClipping(3.0, scope), whole)
    settings = {"name": "gradient_clipping", "max_norm": 3.0, "scope": scope}
    matched = know(target, settings, objective="squared_l2")
    torch.testing.assert_close(through(matched, whole), target)
    # With fedavg: the target is in other units than the bound.
    other = know([t / 0.1 for t in target], settings, objective="squared_l2", unit=0.1)
    torch.testing.assert_close(through(other, [g / 0.1 for g in whole]), other.target)


def test_global_clipping_is_nothing_to_an_angle_until_noise_asks_for_the_length() -> None:
    settings = {"name": "gradient_clipping", "max_norm": 3.0, "scope": "global"}
    assert know(tensors(0), settings).maps == ()
    assert know(tensors(0), settings, NOISE).maps == (maps.clipped,)


def test_pruning_before_clipping_is_followed_in_this_order() -> None:
    whole = tensors(0)
    target = sent(GradientClipping(3.0), sent(GradientPruning(0.7), whole))
    pruning = {"name": "gradient_pruning", "ratio": 0.7, "scope": "tensor"}
    clipping = {"name": "gradient_clipping", "max_norm": 3.0, "scope": "global"}
    matched = know(target, pruning, clipping, objective="squared_l2")
    assert matched.maps == (maps.scaled, maps.clipped)
    torch.testing.assert_close(through(matched, whole), target)
    # The other way round the length is that of the whole gradient.
    target = sent(GradientPruning(0.7), sent(GradientClipping(3.0), whole))
    matched = know(target, clipping, pruning, objective="squared_l2")
    assert matched.maps == (maps.clipped,)
    assert matched.masks is not None
    mapped = [g * mask for g, mask in zip(through(matched, whole), matched.masks, strict=True)]
    torch.testing.assert_close(mapped, target)


@pytest.mark.parametrize("scale", ["mean", "none"])
def test_signs_of_large_entries_are_mapped_to_what_was_sent(scale: Any) -> None:
    whole = [5 * value.sign() for value in tensors(0)]
    target = [value / 0.1 for value in sent(SignCompression(scale), [0.1 * value for value in whole])]
    matched = know(target, {"name": "sign_compression", "scale": scale, "error_feedback": False}, unit=0.1)
    # Of entries of one size, the smooth sign is 1 / 1.1.
    torch.testing.assert_close(through(matched, whole), [value / 1.1 for value in target])


@pytest.mark.parametrize("norm", ["max", "l2"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_the_grid_of_quantisation_is_read_off(rounding: Any, norm: Any) -> None:
    whole = tensors(0)
    for value, coarse in zip(whole, sent(Quantisation(5, rounding, norm), whole), strict=True):
        size = value.abs().max() if norm == "max" else value.norm()
        found = awareness.coarse.grid(coarse, {"bits": 5, "norm": norm})
        torch.testing.assert_close(found, size / 15)


def test_quantisation_by_hand() -> None:
    # 3 bits and the largest entry as norm: steps of 1 and of 2, variances 1/12 and 4/12, the mean over entries 0.2.
    target = [torch.tensor([3.0, 1.0, 0.0]), torch.tensor([-6.0, 2.0, 0.0]) * 1.0]
    settings = {"name": "quantisation", "bits": 3, "rounding": "nearest", "norm": "max", "error_feedback": False}
    matched = know(target, settings)
    assert (matched.objective, matched.maps) == ("squared_l2", (maps.beyond_cells,))
    assert [half.item() for half in matched.given[0]] == pytest.approx([0.25, 0.5])
    floor = 0.1 * (1 / 12 + 4 / 12) / 2
    shares = [floor / (floor + 1 / 12), floor / (floor + 4 / 12)]
    square = 10 * shares[0] + 40 * shares[1]
    assert matched.masks is not None
    assert [mask.item() for mask in matched.masks] == pytest.approx([share / 2 / square for share in shares])
    # In the units of a squared distance, only the tensors' weights are left.
    squares = know(target, settings, objective="squared_l2")
    assert squares.masks is not None
    assert [mask.item() for mask in squares.masks] == pytest.approx(shares)


def test_stochastic_rounding_by_hand() -> None:
    # Steps of 1; entries of 4/3 in the mean, so that the rounding's variance is 1/6, and of 1/12: so 1/12.
    target = [torch.tensor([3.0, 1.0, 0.0]), torch.cat([torch.tensor([3.0]), torch.zeros(35)])]
    settings = {"name": "quantisation", "bits": 3, "rounding": "stochastic", "norm": "max", "error_feedback": False}
    matched = know(target, settings, objective="squared_l2")
    floor = 0.1 * (3 / 6 + 36 / 12) / 39
    assert matched.maps == ()
    assert matched.masks is not None
    expected = [floor / (floor + 1 / 6), floor / (floor + 1 / 12)]
    assert [mask.item() for mask in matched.masks] == pytest.approx(expected)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_tensor_that_was_rounded_to_nothing_says_nothing(rounding: str) -> None:
    target = [torch.tensor([2.0, 1.0]), torch.zeros(4)]
    settings = {"name": "quantisation", "bits": 2, "rounding": rounding, "norm": "l2", "error_feedback": False}
    matched = know(target, settings)
    assert matched.masks is not None
    assert matched.masks[0] > 0
    assert matched.masks[1] == 0
    assert all(torch.isfinite(value).all() for value in through(matched, [torch.ones(2), torch.ones(4)]))


def test_outpost_weighs_entries_by_their_noise() -> None:
    whole = tensors(0)
    target = sent(Outpost(decay=0.0, noise=0.5, share=0.2, ratio=0.5), whole)
    about: dict[str, Any] = {"parameters": [0.3 * value for value in whole]}
    settings = {"name": "outpost", "decay": 0.0, "noise": 0.5, "share": 0.2, "ratio": 0.5}
    matched = know(target, settings, **about)
    assert matched.masks is not None
    kept = [value for value, mask in zip(target, matched.masks, strict=True) for value in value[mask > 0]]
    tau = torch.stack(kept).square().mean()
    std = 0.5 * about["parameters"][0].var()
    values = matched.masks[0].unique().tolist()
    assert values == pytest.approx([0, float(tau / (tau + std**2)), 1])
    noisy = sum(int(((mask > 0) & (mask < 1)).sum()) for mask in matched.masks)
    assert noisy == pytest.approx(0.2 * sum(value.numel() for value in target), abs=1)


def test_an_update_that_outpost_left_alone_is_matched_as_it_is() -> None:
    settings = {"name": "outpost", "decay": 0.0, "noise": 0.5, "share": 0.4, "ratio": 0.8}
    matched = know(tensors(0), settings)
    assert matched.masks is None
    assert "as it is" in matched.said[0]


def test_dp_sgd_of_one_image_is_clipping_and_noise_and_of_more_leaves_the_angle() -> None:
    settings = {"name": "dp_sgd", "noise_multiplier": 0.5, "max_grad_norm": 2.0, "target_epsilon": None}
    one, target = know(tensors(0), settings), tensors(0)
    assert (one.maps, one.given[0][0].item(), one.objective) == ((maps.clipped,), 2.0, "squared_l2")
    noise = know(target, {"name": "gradient_noise", "kind": "gaussian", "std": 1.0})
    torch.testing.assert_close(one.masks, noise.masks)
    several = know(target, settings, images=4)
    assert (several.maps, several.masks, several.objective) == ((), None, "cosine")
    assert "not told" in know(target, {**settings, "target_epsilon": 8.0}).said[0]


def test_instahide_lets_pixels_have_either_sign() -> None:
    matched = know(tensors(0), {"name": "instahide", "k": 4})
    assert (matched.tv_absolute, matched.symmetric, matched.masks) == (True, True, None)
    mixed = know(tensors(0), {"name": "mixup", "k": 4})
    assert (mixed.tv_absolute, mixed.symmetric) == (False, False)


def test_the_gradients_behind_a_bottleneck_do_not_count() -> None:
    model = precode.insert(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), 2)
    names, target = zip(*((name, value.detach()) for name, value in model.named_parameters()), strict=True)
    matched = without_bottleneck(Matched(target), model, place(list(target), names=names))
    assert matched.masks is not None
    assert [mask.item() for mask in matched.masks] == [1, 1, 0, 0, 0, 0, 0, 0]
    plain = nn.Linear(3, 2)
    assert without_bottleneck(Matched(target), plain, place(list(target), names=names)).said == ()


def test_of_every_defense_it_is_said_what_was_made() -> None:
    target = sent(GradientPruning(0.9), tensors(0))
    matched = know(target, {"name": "gradient_pruning", "ratio": 0.9, "scope": "tensor"}, {"name": "from_elsewhere"})
    assert [text.partition(":")[0] for text in matched.said] == ["gradient_pruning", "from_elsewhere"]
    assert "no rule" in matched.said[1]
    assert know(tensors(0), {"name": "from_elsewhere"}).masks is None


def test_noise_before_a_defense_that_changes_it_is_left_alone() -> None:
    settings = {"name": "sign_compression", "scale": "mean", "error_feedback": False}
    matched = know(tensors(0), NOISE, settings)
    assert (matched.objective, matched.maps) == ("cosine", (maps.mean_sized_signs,))
    assert "sign_compression made of the noise" in matched.said[0]


def test_of_a_sum_of_clients_only_what_holds_for_it_is_used() -> None:
    target = sent(GradientPruning(0.5), tensors(0))
    matched = know(target, {"name": "gradient_pruning", "ratio": 0.9, "scope": "tensor"}, clients=2)
    assert matched.masks is not None
    assert torch.equal(matched.masks[0], (target[0] != 0).float())
    assert know(target, {"name": "gradient_clipping", "max_norm": 1.0, "scope": "tensor"}, clients=2).maps == ()
    two = know(target, {"name": "gradient_noise", "kind": "gaussian", "std": 0.2 * math.sqrt(2)}, clients=2)
    one = know(target, {"name": "gradient_noise", "kind": "gaussian", "std": 0.2})
    torch.testing.assert_close(two.masks, one.masks)


def test_error_feedback_after_the_first_round_is_said_to_be_unknown() -> None:
    settings = {"name": "sign_compression", "scale": "mean", "error_feedback": True}
    assert "earlier rounds" not in know(tensors(0), settings).said[0]
    assert "earlier rounds" in know(tensors(0), settings, round=2).said[0]
