from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch

from fedsim import metrics
from fedsim.metrics.lpips import _network, weights_file
from fedsim.metrics.pixels import HIGHEST_PSNR


def images(count: int = 4, side: int = 16, channels: int = 3) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(side))


def test_psnr_by_hand_and_of_an_exact_copy() -> None:
    truth = torch.zeros(2, 1, 4, 4)
    guess = torch.stack([torch.full((1, 4, 4), 0.1), torch.zeros(1, 4, 4)])
    assert metrics.psnr(guess, truth).tolist() == pytest.approx([20.0, HIGHEST_PSNR], abs=1e-4)


def test_ssim_is_one_for_a_copy_and_near_zero_for_noise() -> None:
    truth = images()
    assert metrics.ssim(truth, truth).tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    assert metrics.ssim(truth.flip(0), truth).abs().max() < 0.2


def test_ssim_of_two_even_grays_by_hand() -> None:
    """No variance: only the luminance term (2ab + c1) / (a^2 + b^2 + c1) of Wang et al. is left, c1 = 0.01^2."""
    first, second = torch.full((1, 1, 12, 12), 0.2), torch.full((1, 1, 12, 12), 0.6)
    by_hand = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert metrics.ssim(first, second).item() == pytest.approx(by_hand, abs=1e-4)


@pytest.mark.parametrize("side", [3, 8, 9, 10, 11, 28])
def test_ssim_takes_images_smaller_than_its_window(side: int) -> None:
    truth = images(2, side, 1)
    values = metrics.ssim(truth, truth)
    assert values.tolist() == pytest.approx([1.0, 1.0], abs=1e-5)


def test_matching_undoes_a_permutation() -> None:
    truth = images(6)
    shuffled = torch.tensor([3, 0, 5, 1, 4, 2])
    order = metrics.match(truth[shuffled], truth)
    assert torch.equal(shuffled[order], torch.arange(6))


def test_matching_is_one_to_one_where_the_nearest_would_be_taken_twice() -> None:
    truth = torch.tensor([0.0, 0.1]).reshape(2, 1, 1, 1)
    guess = torch.tensor([0.05, 0.9]).reshape(2, 1, 1, 1)
    # Both images are nearest to the first guess; in all it is best to give it to the first image.
    assert metrics.match(guess, truth).tolist() == [0, 1]


def test_matching_with_fewer_and_with_more_guesses() -> None:
    truth = images(4)
    assert metrics.match(truth[[2]], truth).tolist() == [-1, -1, 0, -1]
    assert metrics.match(torch.cat([images(3, 16) * 0, truth]), truth).tolist() == [3, 4, 5, 6]


def test_label_accuracy_counts_with_multiplicity_in_any_order() -> None:
    truth = torch.tensor([1, 1, 2, 9])
    assert metrics.label_accuracy(torch.tensor([9, 2, 1, 1]), truth) == 1.0
    assert metrics.label_accuracy(torch.tensor([1, 2, 2, 2]), truth) == 0.5
    assert metrics.label_accuracy(torch.tensor([0]), truth) == 0.0
    assert metrics.label_accuracy(torch.tensor([1]), torch.tensor([[0.2, 0.8]])) == 1.0


def test_lpips_without_weights_says_why_and_does_not_crash(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*_: object, **__: object) -> None:
        raise OSError("the network is switched off for this test")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    _network.cache_clear()
    scores, reason = metrics.lpips(images(), images())
    _network.cache_clear()
    assert scores is None
    assert reason is not None
    assert reason.startswith("not available: the weights of squeeze are not at squeezenet1_1-b8a52dc0.pth")
    assert capsys.readouterr() == ("", "")


def test_lpips_with_weights() -> None:
    if not weights_file("squeeze").is_file():
        pytest.skip(f"no weights at {weights_file('squeeze')}; set TORCH_HOME to a cache that has them")
    truth = images(2, 32)
    same, _ = metrics.lpips(truth, truth)
    other, _ = metrics.lpips(truth.flip(0), truth)
    gray, _ = metrics.lpips(images(2, 28, 1), images(2, 28, 1).flip(0))
    assert same is not None and other is not None and gray is not None
    assert same.tolist() == [0.0, 0.0]
    assert (other > 0.01).all()
    assert gray.shape == (2,)
