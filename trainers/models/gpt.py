"""A small transformer of text."""

from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from trainers.models.vit import EncoderBlock


class Transformer(nn.Module):
    """Tokens and learned positions, blocks, LayerNorm, and logits, by the embedding's own rows where `tied`.

    Attributes:
        embed: Vectors of the tokens, (V, d).
        positions: One vector a place, (T, d).
        blocks: In turn.
        norm: LayerNorm before the logits.
        head: Linear layer to the logits; None where they are products with the embedding.
    """

    def __init__(
        self, context: int, vocabulary: int, width: int, depth: int, heads: int, dropout: float, *, tied: bool,
        causal: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(context, width))
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads, dropout, causal=causal) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = None if tied else nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Int[Tensor, "n t"]) -> Float[Tensor, "n v t"]:
        """Logits at each place, with the vocabulary on the second axis."""
        x = self.norm(self.blocks(self.embed(tokens) + self.positions[: tokens.shape[1]]))
        weight = self.embed.weight if self.head is None else self.head.weight
        logits: Tensor = x @ weight.T
        return logits.transpose(1, 2)


def gpt(
    shape: tuple[int, ...],
    classes: int,
    *,
    width: Annotated[int, Field(ge=1)] = 128,
    depth: Annotated[int, Field(ge=1)] = 4,
    heads: Annotated[int, Field(ge=1)] = 4,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    tied: bool = True,
    causal: bool = True,
) -> nn.Module:
    """Transformer with LayerNorm before each part, attention, learned positions and weights of deviation 0.02.

    Attention goes through `scaled_dot_product_attention`, so torch picks the kernel.

    Args:
        shape: (T,), the tokens of a sequence.
        classes: Tokens of the vocabulary.
        width: Of a token.
        depth: Number of blocks.
        heads: Attention heads, which must divide `width`.
        dropout: Probability of dropping an entry of what a block adds.
        tied: Logits are products with the tokens' own vectors.
        causal: Each place sees those before it alone; False for hidden tokens.

    Raises:
        ValueError: If inputs are no sequences, or sizes do not fit.

    Source:
        Radford et al. (2019), "Language models are unsupervised multitask learners".
    """
    if len(shape) != 1:
        raise ValueError(f"`shape` must be (tokens,) of a sequence with model 'gpt', got {shape}: take another model.")
    if width % heads:
        raise ValueError(f"`heads` must divide `width` {width}, got {heads}.")
    return Transformer(shape[0], classes, width, depth, heads, dropout, tied=tied, causal=causal)
