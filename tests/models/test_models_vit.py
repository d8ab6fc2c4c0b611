from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from fedsim.errors import InputError
from fedsim.models.building import build
from fedsim.models.catalog import ViT
from fedsim.models.vit import Attention, Block, VisionTransformer, patches, unpatch

SHAPE = (1, 8, 8)
SMALL: dict[str, Any] = {"patch": 4, "dim": 16, "heads": 2, "depth": 2}
KINDS: list[dict[str, Any]] = [
    {},
    {"norm": "post"},
    {"norm": "post", "first_skip": False},
    {"first_skip": False, "qkv_bias": False},
]


def small(**settings: Any) -> VisionTransformer:
    network = build(ViT(**{**SMALL, **settings}), SHAPE, 3, seed=0)
    assert isinstance(network, VisionTransformer)
    return network


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("settings", "shape", "size"),
    [
        # A block: 4 linear layers of the attention, the perceptron's two, two LayerNorms.
        (
            ViT(),
            (3, 32, 32),
            49 * 192 + 66 * 192 + 2 * (4 * 193 * 192 + 193 * 384 + 385 * 192 + 4 * 192) + 2 * 192 + 193 * 10,
        ),
        (
            ViT(patch=7, dim=20, depth=1, heads=5, mlp_ratio=1, norm="post", qkv_bias=False),
            (1, 28, 14),
            50 * 20 + 10 * 20 + (3 * 20 * 20 + 3 * 21 * 20 + 4 * 20) + 21 * 10,
        ),
    ],
)
def test_size_and_output(settings: ViT, shape: tuple[int, int, int], size: int) -> None:
    network = build(settings, shape, 10, seed=0)
    assert settings.batchnorm is False
    assert sum(parameter.numel() for parameter in network.parameters()) == size
    assert not any(isinstance(module, nn.BatchNorm2d | nn.Dropout) for module in network.modules())
    assert network(torch.zeros(2, *shape)).shape == (2, 10)


def test_patches_go_row_by_row_and_by_channel_within() -> None:
    image = torch.arange(2 * 2 * 4.0).reshape(1, 2, 2, 4)  # two channels of 2x4
    tiles = patches(image, 2)
    assert tiles.tolist() == [[[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]]
    assert torch.equal(unpatch(tiles, (2, 2, 4), 2), image)


def test_patches_do_not_mind_the_memory_layout() -> None:
    image = torch.randn(2, 3, 8, 4)
    assert torch.equal(patches(image.contiguous(memory_format=torch.channels_last), 4), patches(image, 4))


def test_attention_is_scaled_dot_product_attention() -> None:
    layer, tokens = Attention(6, heads=3, bias=True), torch.randn(2, 5, 6)
    parts = [part(tokens).reshape(2, 5, 3, 2).transpose(1, 2) for part in (layer.query, layer.key, layer.value)]
    wanted = layer.out(nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(2, 5, 6))
    torch.testing.assert_close(layer(tokens), wanted)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("pre_norm", [True, False])
def test_where_norm_and_residual_connection_stand(pre_norm: bool, skip: bool) -> None:
    block = Block(4, 2, 8, pre_norm=pre_norm, skip=skip, bias=True)
    tokens = torch.randn(1, 3, 4) * 5
    kept = tokens if skip else torch.zeros_like(tokens)
    if pre_norm:
        mixed = kept + block.attention(block.norm1(tokens))
        wanted = mixed + block.mlp(block.norm2(mixed))
    else:
        mixed = block.norm1(kept + block.attention(tokens))
        wanted = block.norm2(mixed + block.mlp(mixed))
    assert torch.equal(block(tokens), wanted)


def test_only_the_first_block_can_go_without_the_residual_connection() -> None:
    assert [block.skip for block in small(first_skip=False, depth=3).blocks] == [False, True, True]
    assert all(block.skip for block in small().blocks)


def test_tokens_are_embedded_patches_and_positions_behind_the_class_token() -> None:
    network, seen = small(), []
    network.blocks.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    image = images(1)
    network(image)
    embedded = patches(image, 4)[0] @ network.embed.weight.T + network.embed.bias
    torch.testing.assert_close(seen[0][0, 1:], embedded + network.position[0, 1:])
    torch.testing.assert_close(seen[0][0, 0], network.class_token[0, 0] + network.position[0, 0])


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_parameter_has_a_gradient_but_the_keys_bias(kind: dict[str, Any]) -> None:
    network = small(**kind)
    nn.functional.cross_entropy(network(images()), torch.tensor([0, 1])).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        largest = float(parameter.grad.abs().max())
        if name.endswith("key.bias"):  # adds the same number to all scores of a query: softmax does not see it
            assert largest < 1e-7, name
        else:
            assert largest > 1e-6, name


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_double_backward(kind: dict[str, Any]) -> None:
    network, batch = small(**kind), images().requires_grad_()
    loss = nn.functional.cross_entropy(network(batch), torch.tensor([0, 1]))
    slopes = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
    (again,) = torch.autograd.grad(torch.cat([slope.flatten() for slope in slopes]).square().sum(), batch)
    assert again.isfinite().all()
    assert again.abs().amax(dim=(1, 2, 3)).min() > 0


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[2]], ids=str)
def test_functional_transforms_give_the_same(kind: dict[str, Any]) -> None:
    network, batch = small(**kind), images(3)
    parameters = {name: value.detach() for name, value in network.named_parameters()}

    def loss(values: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        logits = functional_call(network, values, (image[None],))
        return nn.functional.cross_entropy(logits, torch.zeros(1, dtype=torch.int64))

    each = vmap(grad(loss), in_dims=(None, 0))(parameters, batch)
    traced = make_fx(grad(loss))(parameters, batch[0])
    for name, value in grad(loss)(parameters, batch[2]).items():
        torch.testing.assert_close(each[name][2], value, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(traced(parameters, batch[2])[name], value, rtol=1e-4, atol=1e-6)


def test_the_seed_decides_the_weights() -> None:
    one, same = (build(ViT(**SMALL), SHAPE, 3, seed=5).state_dict() for _ in range(2))
    other = build(ViT(**SMALL), SHAPE, 3, seed=6).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not torch.equal(one["position"], other["position"])


def test_position_std() -> None:
    assert abs(float(small(dim=128, position_std=0.5).position.detach().std()) - 0.5) < 0.05


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[2]], ids=str)
def test_it_learns(kind: dict[str, Any]) -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = torch.tensor(data.images[:100], dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(data.target[:100], dtype=torch.int64)
    network = build(ViT(**{**SMALL, **kind}), SHAPE, 10, seed=0)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(40):
        loss = nn.functional.cross_entropy(network(pixels), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"patch": 3}, r"8x8 cannot be cut into patches of 3x3; choose patch from 1, 2, 4, 8$"),
        ({"heads": 3}, r"dim = 16 is not a multiple of heads = 3; choose dim = 18$"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        small(**settings)
