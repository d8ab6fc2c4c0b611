"""A small vision transformer: Dosovitskiy et al., "An Image is Worth 16x16 Words" (ICLR 2021), for small images."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fedsim.errors import InputError


class Attention(nn.Module):
    """Multi-head self-attention: (N, T, D) -> (N, T, D).

    `query`, `key`, `value` and `out` are separate linear layers, so that the gradient of each can be read. Products and
    softmax are written out: the fused kernels cannot be differentiated twice.
    """

    def __init__(self, dim: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim, bias=bias)
        self.key = nn.Linear(dim, dim, bias=bias)
        self.value = nn.Linear(dim, dim, bias=bias)
        self.out = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (self._split(layer(tokens)) for layer in (self.query, self.key, self.value))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        mixed: Tensor = self.out((torch.softmax(scores, dim=-1) @ value).transpose(1, 2).flatten(2))
        return mixed

    def _split(self, tokens: Tensor) -> Tensor:
        """(N, T, D) -> (N, heads, T, D / heads)."""
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Attention, then a two-layer perceptron with GELU on each token: (N, T, D) -> (N, T, D).

    pre_norm: z + attention(norm1(z)), then y + mlp(norm2(y)); else norm1(z + attention(z)), then norm2(y + mlp(y)).
    skip: whether there is a residual connection around the attention ("z +" above); the perceptron keeps its own.
    """

    def __init__(self, dim: int, heads: int, hidden: int, *, pre_norm: bool, skip: bool, bias: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.skip = skip
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, bias)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = self.attention(self.norm1(tokens) if self.pre_norm else tokens)
        if self.skip:
            mixed = tokens + mixed
        if self.pre_norm:
            return mixed + self.mlp(self.norm2(mixed))
        mixed = self.norm1(mixed)
        out: Tensor = self.norm2(mixed + self.mlp(mixed))
        return out


class VisionTransformer(nn.Module):
    """Patches to tokens, `blocks`, and a linear `head` on the class token. (N, C, H, W), normalised -> (N, classes).

    Token 0 is `class_token` + `position[0]`; token 1 + i is `embed`(patch i) + `position`[1 + i], where the patches
    are counted row by row and the pixels within one by channel, row, column.
    """

    def __init__(
        self, shape: tuple[int, int, int], classes: int, patch: int, dim: int, blocks: list[Block], position_std: float
    ) -> None:
        super().__init__()
        channels, height, width = shape
        self.patch = patch
        self.embed = nn.Linear(channels * patch * patch, dim)
        self.class_token = nn.Parameter(nn.init.normal_(torch.empty(1, 1, dim), std=position_std))
        self.position = nn.Parameter(
            nn.init.normal_(torch.empty(1, 1 + (height // patch) * (width // patch), dim), std=position_std)
        )
        self.blocks = nn.Sequential(*blocks)
        # After pre-norm blocks nothing has normalised the sum yet.
        self.norm = nn.LayerNorm(dim) if blocks[-1].pre_norm else nn.Identity()
        self.head = nn.Linear(dim, classes)

    @property
    def first(self) -> Block:
        """The block that reads the embedding."""
        block = self.blocks[0]
        assert isinstance(block, Block)
        return block

    def forward(self, images: Tensor) -> Tensor:
        first = self.class_token.expand(images.shape[0], -1, -1)
        tokens = torch.cat([first, self.embed(patches(images, self.patch))], dim=1) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return logits


def patches(images: Tensor, patch: int) -> Tensor:
    """(N, C, H, W) -> (N, H / patch * W / patch, C * patch * patch): square tiles, row by row."""
    tiles = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # N, C, rows, patch, columns, patch
    return tiles.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatch(tiles: Tensor, shape: tuple[int, int, int], patch: int) -> Tensor:
    """The inverse of `patches` for images of `shape` (C, H, W): (N, tiles, C * patch * patch) -> (N, C, H, W)."""
    channels, height, width = shape
    grid = tiles.reshape(-1, height // patch, width // patch, channels, patch, patch)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, height, width)


def vit(
    shape: tuple[int, int, int],
    classes: int,
    *,
    patch: int = 4,
    dim: int = 192,
    depth: int = 2,
    heads: int = 12,
    mlp_ratio: float = 2.0,
    norm: str = "pre",
    first_skip: bool = True,
    qkv_bias: bool = True,
    position_std: float = 0.02,
) -> VisionTransformer:
    """The network. Weights and biases of linear layers are drawn as PyTorch does, the class token and the position
    embedding from N(0, position_std^2).

    Raises InputError if `patch` does not divide height and width of `shape`, or `heads` does not divide `dim`.
    """
    _, height, width = shape
    if height % patch or width % patch:
        common = math.gcd(height, width)
        fit = ", ".join(str(side) for side in range(1, common + 1) if common % side == 0)
        raise InputError(
            f"model vit: images of {height}x{width} cannot be cut into patches of {patch}x{patch}; "
            f"choose patch from {fit}"
        )
    if dim % heads:
        above = dim - dim % heads + heads
        raise InputError(f"model vit: dim = {dim} is not a multiple of heads = {heads}; choose dim = {above}")
    blocks = [
        Block(
            dim,
            heads,
            max(1, round(dim * mlp_ratio)),
            pre_norm=norm == "pre",
            skip=first_skip or place > 0,
            bias=qkv_bias,
        )
        for place in range(depth)
    ]
    return VisionTransformer(shape, classes, patch, dim, blocks, position_std)
