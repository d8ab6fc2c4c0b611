from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim.adversaries.base import Job, Observation, Situation
from fedsim.adversaries.inversion.closed_form import april
from fedsim.adversaries.inversion.recipes.april import April
from fedsim.clients.defenses.noise import GradientNoise
from fedsim.data.dataset import Normalisation
from fedsim.errors import InputError
from fedsim.models.building import build
from fedsim.models.catalog import MLP, ViT
from fedsim.models.vit import Attention, VisionTransformer, patches
from fedsim.protocol import Batch

VictimOf = Callable[..., tuple[Observation, Batch]]
CPU = torch.device("cpu")
ONE = Situation("vit", False, "local", "fedsgd", True, (1,))
PAPER: dict[str, Any] = {"norm": "post", "first_skip": False}
SMALL: dict[str, Any] = {"patch": 4, "dim": 32, "heads": 4}
PARTS = ("query", "key", "value")


def psnr(guess: Tensor, truth: Tensor) -> float:
    return float(-10 * (guess - truth).square().mean().clamp(min=1e-15).log10())


def double(**settings: Any) -> tuple[VisionTransformer, dict[str, Tensor], dict[str, Tensor], Tensor]:
    """A model in float64, its parameters, its gradient on one image, and the image's patches (4, 16)."""
    network = build(ViT(**{**SMALL, **settings}), (1, 8, 8), 3, seed=0).double()
    assert isinstance(network, VisionTransformer)
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.startswith("blocks.0.norm1"):  # as after training: neither 1 nor 0
                value += 0.3 * torch.randn(value.shape, generator=rng, dtype=value.dtype)
    image = torch.randn(1, 1, 8, 8, generator=rng, dtype=torch.float64)
    values = dict(network.named_parameters())
    loss = nn.functional.cross_entropy(network(image), torch.tensor([1]))
    slopes = dict(zip(values, torch.autograd.grad(loss, list(values.values())), strict=True))
    return network, {name: value.detach() for name, value in values.items()}, slopes, patches(image, 4)[0]


def of_attention(tensors: dict[str, Tensor]) -> list[Tensor]:
    return [tensors[f"blocks.0.attention.{part}.weight"] for part in PARTS]


def test_the_identity_of_self_attention() -> None:
    """Equation (3), and that it fails once something else reads the embedding."""
    torch.manual_seed(0)
    layer = Attention(8, heads=2, bias=True).double()
    tokens = torch.randn(1, 5, 8, dtype=torch.float64, requires_grad=True)
    weights = [getattr(layer, part).weight for part in PARTS]
    for skip in (False, True):
        loss = (layer(tokens) + skip * tokens).sin().square().sum()
        slope, *slopes = torch.autograd.grad(loss, [tokens, *weights])
        right = sum(weight.T @ one for weight, one in zip(weights, slopes, strict=True))
        assert torch.allclose(slope[0].T @ tokens[0], right) is not skip  # type: ignore[arg-type]


def test_from_the_embeddings_gradient_by_hand() -> None:
    """Two patches of one pixel: every number of equation (4) is chosen, and the pixels are 2 and -3."""
    eye = torch.eye(3, dtype=torch.float64)
    known = april.Embedding(
        weight=torch.tensor([[1.0], [2.0], [0.0]], dtype=torch.float64),
        rest=torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64),
        first=torch.tensor([5.0, 0.0, 0.0], dtype=torch.float64),
    )
    tokens = torch.tensor([[5.0, 0, 0], [2, 4, 1], [-2, -6, 0]], dtype=torch.float64)
    gradient = torch.tensor([[7.0, 0, 1], [1, 1, 0], [0, 1, 1]], dtype=torch.float64)
    # With W_Q = W_K = W_V = 1, B is the sum of the three gradients.
    thirds = [gradient.T @ tokens / 3] * 3
    found = april.from_embedding_gradient(gradient, [eye] * 3, thirds, known)
    torch.testing.assert_close(found.patches, torch.tensor([[2.0], [-3.0]], dtype=torch.float64))
    assert found.residual < 1e-7
    assert found.condition == pytest.approx(3**0.5)  # of [[1, 1, 0], [0, 1, 1]]: singular values sqrt(3) and 1


def test_the_span_by_hand() -> None:
    """The rows of the gradients lie in the plane of the first two axes, one of which is given."""
    rows = torch.tensor([[1.0, 2, 0, 0], [3, 0, 0, 0], [0, 0, 0, 0], [0, 1e-6, 0, 0]], dtype=torch.float64)
    given = torch.tensor([[4.0, 0, 0, 0], [0, 0, 0, 0]])
    found = april.span([rows, rows, rows], given, rank=1)
    assert found.complement.shape == (4, 2)
    torch.testing.assert_close(found.complement[:2], torch.zeros(2, 2, dtype=torch.float64))
    torch.testing.assert_close(found.complement.T @ found.complement, torch.eye(2, dtype=torch.float64))


def test_the_rounding_of_large_rows_does_not_bury_small_ones() -> None:
    """Rows of length 10^4 with errors of 10^-3 along the fourth axis, and one of 10^-4 along the second."""
    rows = torch.tensor([[1e4, 0, 0, 1e-3], [1e4, 0, 0, -1e-3], [0, 1e-4, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    found = april.span([rows, rows, rows], torch.zeros(1, 4), rank=2)
    torch.testing.assert_close(found.complement[:2], torch.zeros(2, 2, dtype=torch.float64), rtol=0, atol=1e-6)


def test_what_noise_drowns_is_damped() -> None:
    """One unknown x of variance 1, two equations: 0.1 x = 0.3 and 0 x = 0.2, so that the noise's variance is 0.04."""
    inside, scale, right = (torch.tensor(value, dtype=torch.float64) for value in ([[0.3]], [[0.1]], [[0.3], [0.2]]))
    value, residual = april._damped(inside, scale, right)
    assert float(value) == pytest.approx(0.1 * 0.3 / (0.1**2 + 0.04))
    assert residual == pytest.approx((0.04 / 0.13) ** 0.5)
    exact, nothing = april._damped(inside, scale, inside)  # as many equations as unknowns: nothing tells the noise
    assert float(exact) == pytest.approx(3)
    assert nothing == 0


def test_behind_a_layer_norm() -> None:
    """A token's row, up to its spread, is the embedding's image and what is known of it."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(6).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    known = april.Embedding(*(torch.randn(*size, dtype=torch.float64) for size in ((6, 2), (3, 6), (6,))))
    behind, given = april.through_layer_norm(known, norm.weight.detach(), norm.bias.detach(), norm.eps)
    pixels = torch.randn(3, 2, dtype=torch.float64)
    tokens = pixels @ known.weight.T + known.rest
    spread = (tokens.var(dim=1, correction=0, keepdim=True) + norm.eps).sqrt()
    torch.testing.assert_close(pixels @ behind.weight.T + behind.rest, spread * (norm(tokens) - norm.bias))
    torch.testing.assert_close(given, torch.stack([norm(known.first), norm.bias]))


def test_exact_in_float64_by_the_embeddings_gradient() -> None:
    _, parameters, slopes, truth = double(**PAPER)
    known = april.embedding(parameters)
    found = april.from_embedding_gradient(slopes["position"][0], of_attention(parameters), of_attention(slopes), known)
    torch.testing.assert_close(found.patches, truth, rtol=0, atol=1e-6)
    assert found.residual < 1e-6


@pytest.mark.parametrize("kind", [{}, {"qkv_bias": False}, {"first_skip": False}, {"norm": "post"}, PAPER], ids=str)
def test_exact_in_float64_by_the_span(kind: dict[str, Any]) -> None:
    network, parameters, slopes, truth = double(**kind)
    known = april.embedding(parameters)
    given = known.first[None]
    if network.first.pre_norm:
        norm = network.first.norm1
        known, given = april.through_layer_norm(known, norm.weight.detach(), norm.bias.detach(), norm.eps)
    found = april.from_span(of_attention(slopes), known, given)
    torch.testing.assert_close(found.patches, truth, rtol=0, atol=1e-6)
    assert found.residual < 1e-6


@pytest.mark.parametrize(
    ("solve", "kind"), [("embedding", PAPER), ("span", {}), ("span", {"norm": "post"}), ("span", PAPER)], ids=str
)
def test_a_digit_is_read_off_the_gradient(victim_of: VictimOf, solve: Any, kind: dict[str, Any]) -> None:
    seen, batch = victim_of(1, ViT(**SMALL, **kind), "vit")
    found = April(solve).attack(Job((seen,)), CPU, torch.Generator())
    assert found.images is not None
    assert found.images.dtype == torch.float32
    assert found.images.shape == batch.images.shape
    assert psnr(found.images, batch.images) > 60
    assert found.objective < 1e-3
    assert found.labels is None
    again = April(solve).attack(Job((seen,)), CPU, torch.Generator().manual_seed(3))
    assert torch.equal(again.images, found.images)  # type: ignore[arg-type]


@pytest.mark.parametrize(("solve", "kind"), [("embedding", PAPER), ("span", {})], ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_colour_image_of_32_pixels(solve: Any, kind: dict[str, Any], seed: int) -> None:
    mean, std, settings = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), ViT(**kind)
    rng = torch.Generator().manual_seed(seed)
    image = nn.functional.interpolate(torch.rand(1, 3, 8, 8, generator=rng), size=32, mode="bilinear")
    model = build(settings, (3, 32, 32), 10, seed=seed)
    own = dict(model.named_parameters())
    loss = nn.functional.cross_entropy(model(Normalisation(mean, std)(image)), torch.tensor([3]))
    slopes = torch.autograd.grad(loss, list(own.values()))
    tensors = {f"model/{name}": value.detach() for name, value in own.items()}
    tensors |= {f"update/{name}": value for name, value in zip(own, slopes, strict=True)}
    facts = {
        "model": {"name": "vit", "settings": dataclasses.asdict(settings)},
        "image_shape": [3, 32, 32],
        "classes": 10,
        "mean": mean,
        "std": std,
        "batchnorm": "local",
        "algorithm": "fedsgd",
        "num_examples": 1,
    }
    plugin = April(solve)
    assert plugin.objection_to(model, ONE) is None
    found = plugin.attack(Job((Observation(1, 0, "link", tensors, facts),)), CPU, torch.Generator())
    assert found.images is not None
    assert psnr(found.images, image) > 40


@pytest.mark.parametrize(("solve", "kind"), [("embedding", PAPER), ("span", {})], ids=str)
def test_noise_is_seen_in_the_residual_and_damped(victim_of: VictimOf, solve: Any, kind: dict[str, Any]) -> None:
    results = []
    for defenses in ((), (GradientNoise(1e-3),)):
        seen, batch = victim_of(1, ViT(**SMALL, **kind), "vit", defenses)
        found = April(solve).attack(Job((seen,)), CPU, torch.Generator())
        assert found.images is not None
        results.append((found.objective, psnr(found.images, batch.images)))
    (clean, sharp), (noisy, blurred) = results
    assert noisy > 10 * clean
    assert blurred < sharp - 20
    gray = torch.full_like(batch.images, 0.3)  # the mean of the data set, which no information comes to
    assert blurred > psnr(gray, batch.images) - 3


@pytest.mark.parametrize(
    ("solve", "settings", "says"),
    [
        ("embedding", {}, r'blocks\.0\.norm1 .* set model\.norm = "post" and model\.first_skip = false, or solve'),
        (
            "embedding",
            {"norm": "post"},
            r'around blocks\.0\.attention .* set model\.first_skip = false, or solve = "span"',
        ),
        (
            "embedding",
            {**PAPER, "dim": 12},
            r"embed makes tokens of 12 .* 16 values a patch; set model\.dim = 16 or more",
        ),
        (
            "span",
            {"dim": 20},
            r"solve = 'span' needs 22 for 5 tokens and 16 values a patch; set model\.dim = 24 or more",
        ),
        ("span", {"norm": "post", "dim": 20}, r"needs 21 for"),
        ("span", {"depth": 1, "heads": 1}, r"2 independent directions .* for 4 patches; set model\.depth = 2"),
    ],
)
def test_what_it_does_not_work_on(solve: Any, settings: dict[str, Any], says: str) -> None:
    model = build(ViT(**{**SMALL, **settings}), (1, 8, 8), 10, seed=0)
    reason = April(solve).objection_to(model, ONE)
    assert reason is not None
    assert re.search(says, reason), reason


def test_one_block_is_enough_for_few_patches(victim_of: VictimOf) -> None:
    seen, batch = victim_of(1, ViT(**SMALL, depth=1), "vit")  # 8 directions for 4 patches
    found = April("span").attack(Job((seen,)), CPU, torch.Generator())
    assert found.images is not None
    assert psnr(found.images, batch.images) > 40


def test_other_models_and_several_images_are_refused(victim_of: VictimOf) -> None:
    seen, _ = victim_of(1)
    model = build(MLP(), (1, 8, 8), 10, seed=0)
    assert 'use model.name = "vit"' in str(April().objection_to(model, ONE))
    with pytest.raises(InputError, match="april does not fit model 'mlp'"):
        April().attack(Job((seen,)), CPU, torch.Generator())
    seen, _ = victim_of(2, ViT(**SMALL, **PAPER), "vit")
    with pytest.raises(InputError, match="one image, but the update is of 2"):
        April().attack(Job((seen,)), CPU, torch.Generator())
    assert "batch_size is 4" in str(April().objection(replace(ONE, batch_sizes=(4,))))
    assert "fedsgd" in str(April().objection(replace(ONE, algorithm="fedavg", one_gradient=False)))
    assert April().objection(ONE) is None


def test_settings_are_read_without_torch() -> None:
    code = "import sys, fedsim.adversaries.inversion.recipes.april; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
