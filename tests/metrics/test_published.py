"""The published evaluation's LPIPS, with a network that only reports what it was shown."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from fedsim import metrics
from fedsim.data.dataset import Normalisation
from fedsim.metrics import published

scores = importlib.import_module("fedsim.metrics.lpips")  # the function of the same name hides it
NORMALISE = Normalisation((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


class Network:
    """Stands in for LPIPS: the mean absolute difference of a pair. Keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[Tensor, Tensor, bool]] = []

    def __call__(self, guess: Tensor, truth: Tensor, normalize: bool) -> Tensor:
        self.shown.append((guess, truth, normalize))
        return (guess - truth).abs().mean((1, 2, 3), keepdim=True)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    found = Network()
    monkeypatch.setattr(scores, "_network", lambda net: found)
    return found


def even(*values: float) -> Tensor:
    """Images of one value each."""
    return torch.tensor(values)[:, None, None, None].expand(-1, 3, 32, 32).clone()


def varied(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_the_nearest_is_taken_with_replacement(network: Network) -> None:
    truth, guess = even(0.2, 0.9), even(0.25, 0.3, 0.2)
    found, note = published.lpips_inverted(guess, truth, NORMALISE)
    assert found is not None and note is None
    # All three reconstructions score by the first image; nothing is held against them for the second.
    unit = (1 / torch.tensor(NORMALISE.std)).mean()
    assert found.tolist() == pytest.approx([float(off * unit) for off in (0.05, 0.1, 0.0)], abs=1e-6)
    one_to_one = metrics.match(guess, truth)
    assert metrics.lpips(guess[one_to_one], truth)[0].max() > 0.5  # type: ignore[union-attr]


def test_inverted_images_are_shown_normalised_and_not_scaled_again(network: Network) -> None:
    guess, truth = varied(2), varied(2, seed=1)
    published.lpips_inverted(guess, truth, NORMALISE)
    assert len(network.shown) == 2
    for place, (left, right, normalize) in enumerate(network.shown):
        assert not normalize
        assert torch.allclose(left, NORMALISE(guess[[place]]).expand(2, -1, -1, -1))
        assert torch.allclose(right, NORMALISE(truth))
    metrics.lpips(guess, truth)
    assert network.shown[-1][2] is True and torch.equal(network.shown[-1][0], guess)


def test_decoded_images_are_stretched_one_by_one_and_the_truth_is_not(network: Network) -> None:
    guess, truth = varied(3) * 0.5 + 0.1, varied(3, seed=1)
    found, _ = published.lpips_decoded(guess, truth, NORMALISE)
    ((left, right, normalize),) = network.shown
    assert not normalize and found is not None and found.shape == (3,)
    assert torch.allclose(right, NORMALISE(truth))
    assert torch.allclose(left.amin((1, 2, 3)), torch.full((3,), -1.0))
    assert torch.allclose(left.amax((1, 2, 3)), torch.full((3,), 1.0))
    # All channels by one scale: what is equal across channels after normalisation stays so, and ratios are kept.
    normal = NORMALISE(guess[0]).squeeze(0)
    slope = 2 / (normal.max() - normal.min())
    assert torch.allclose(left[0] - left[0, 0, 0, 0], slope * (normal - normal[0, 0, 0]), atol=1e-5)
    # Brightness and contrast of a guess as a whole, in normalised units, make no difference; the truth's do.
    dimmed = NORMALISE.inverse(NORMALISE(guess) * 0.5 - 0.1)
    assert torch.allclose(published.lpips_decoded(dimmed, truth, NORMALISE)[0], found, atol=1e-5)  # type: ignore[arg-type]
    assert published.lpips_decoded(truth, truth, NORMALISE)[0].min() > 0.1  # type: ignore[union-attr]


def test_decoded_images_are_compared_by_place(network: Network) -> None:
    truth = varied(4)
    straight, _ = published.lpips_decoded(truth, truth, NORMALISE)
    turned, _ = published.lpips_decoded(truth.flip(0), truth, NORMALISE)
    assert straight is not None and turned is not None
    assert (turned > straight + 0.1).all()


def test_an_image_of_one_value_is_no_reason_to_fail(network: Network) -> None:
    found, _ = published.lpips_decoded(even(0.5), varied(1), Normalisation((0.5,), (0.2,)))
    assert found is not None and bool(found.isfinite().all())


def test_without_weights_there_is_a_word_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "_network", lambda net: f"not available: {net}")
    for score in (published.lpips_inverted, published.lpips_decoded):
        assert score(varied(2), varied(2), NORMALISE) == (None, "not available: vgg")
