"""A small vision transformer."""

import math
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): the pre-norm form, with a GELU layer of four times the width.

    With `causal` a token sees those before it alone.
    """

    def __init__(self, dim: int, heads: int, dropout: float, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        layers: list[nn.Module] = [nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)]
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
        self.mlp = nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        """The tokens after attention and the layer of width 4d."""
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        mixed = self.out(mixed.transpose(1, 2).reshape(n, t, d))
        if self.dropout > 0:
            mixed = nn.functional.dropout(mixed, self.dropout, self.training)
        x = x + mixed
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VisionTransformer(nn.Module):
    """Patches to tokens, learned positions, encoder blocks, LayerNorm, mean over tokens, linear head.

    Attributes:
        patch: Side of a patch, in pixels or points.
        embed: Linear map of a patch to a token.
        positions: One learned vector a token, (t, d).
        blocks: The encoder.
        norm: LayerNorm before the mean.
        head: Linear layer to the logits.
    """

    def __init__(
        self, shape: tuple[int, ...], classes: int, patch: int, dim: int, depth: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(shape[0] * patch ** (len(shape) - 1), dim)
        tokens = math.prod(side // patch for side in shape[1:])
        self.positions = nn.Parameter(torch.empty(tokens, dim))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.blocks = nn.Sequential(*(EncoderBlock(dim, heads, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Float[Tensor, "n c *size"]) -> Float[Tensor, "n k"]:
        """Logits, one row an input."""
        tokens = self.embed(patches(x, self.patch)) + self.positions
        out: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return out


def patches(x: Float[Tensor, "n c *size"], side: int) -> Float[Tensor, "n t q"]:
    """Cut images (n, c, h, w), or signals (n, c, length), into t patches in reading order, of q entries each.

    The entries of a patch are in the order channel, row, column.
    """
    n, c = x.shape[:2]
    if x.ndim == 3:
        return x.reshape(n, c, -1, side).transpose(1, 2).flatten(2)
    h, w = x.shape[2] // side, x.shape[3] // side
    return x.reshape(n, c, h, side, w, side).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w, c * side * side)


def vit(
    shape: tuple[int, ...],
    classes: int,
    *,
    patch: Annotated[int, Field(ge=1)] = 2,
    dim: Annotated[int, Field(ge=1)] = 64,
    depth: Annotated[int, Field(ge=1)] = 4,
    heads: Annotated[int, Field(ge=1)] = 4,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> nn.Module:
    """Vision transformer with LayerNorm before each part, attention, learned positions and the mean over tokens.

    Attention goes through `scaled_dot_product_attention`, so torch picks the kernel. There is no class token.

    Args:
        shape: (c, h, w) of one image, or (c, length) of one signal.
        classes: Number of logits.
        patch: Side of a patch, which must divide the image's sides.
        dim: Width of a token.
        depth: Number of encoder blocks.
        heads: Attention heads, which must divide `dim`.
        dropout: Probability of dropping an entry of what a block adds.

    Raises:
        ValueError: If the sizes do not fit each other, or inputs are neither images nor signals.

    Source:
        Dosovitskiy et al. (2021), "An image is worth 16x16 words", ICLR; the mean in place of a class token after
        Beyer et al. (2022), "Better plain ViT baselines for ImageNet-1k".
    """
    if len(shape) not in (2, 3):
        raise ValueError(
            f"`shape` must be (c, h, w) for images or (c, length) for signals with model 'vit', got {shape}; try 'mlp'."
        )
    if any(side % patch for side in shape[1:]):
        common = math.gcd(*shape[1:])
        fitting = [p for p in range(1, common + 1) if common % p == 0]
        raise ValueError(f"`patch` must divide the sides {shape[1:]} of an input, got {patch}; use one of {fitting}.")
    if dim % heads:
        raise ValueError(f"`heads` must divide `dim` {dim}, got {heads}.")
    return VisionTransformer(shape, classes, patch, dim, depth, heads, dropout)
