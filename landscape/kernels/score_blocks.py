"""Softmax attention and its first and second derivative, block by block, so that no n × m matrix is ever whole.

With scores S = scale · QKᵀ + mask, weights P = softmax(S) by row, and outputs O = PV, each function here goes over
blocks of (example, head, query row). A block of scores and the few buffers of its size stay in the cache of a CPU, or
within a bounded share of a GPU's memory; everything that is kept between blocks has the size of Q, K or V.

Two habits save passes over the n × m buffers. A number per row is added to a matrix product by one more column in its
factors, XYᵀ + u1ᵀ = [X u][Y 1]ᵀ, so factors are laid out side by side with a column of ones. And exponentials are taken
to base 2, the faster one on CPUs; so a row's normaliser is kept as log₂ Σ_j 2^(S_ij log₂ e).

Shapes: Q (b, h, n, d), K (b, h, m, d), V (b, h, m, e), O and its cotangent (b, h, n, e), normaliser (b, h, n, 1). Real
dtypes below float32 are computed in float32.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Queries = Float[Tensor, "b h n d"]
Keys = Float[Tensor, "b h m d"]
Values = Float[Tensor, "b h m e"]
Outputs = Float[Tensor, "b h n e"]
PerQuery = Float[Tensor, "b h n 1"]
Mask = Float[Tensor, "b h n m"] | Bool[Tensor, "b h n m"]

CPU_BLOCK_BYTES = 2 * 2**20  # of one buffer of scores, a thread; measured: flat from 1 to 4 MiB, slower outside
GPU_BLOCK_BYTES = 256 * 2**20
CAUSAL_ROWS = 128  # in a block where half of the scores need no work
LOG2_E = math.log2(math.e)


class Rule(NamedTuple):
    """What turns queries and keys into scores.

    Attributes:
        mask: Added to the scores where it is real; where it is boolean, False hides a key. Broadcast by strides.
        causal: Hide key j from query i where j > i.
        scale: Factor of QKᵀ.
    """

    mask: Mask | None
    causal: bool
    scale: float


@dataclass(frozen=True)
class _Block:
    """Some query rows of some heads of some examples, and the keys that they may see: the first m."""

    examples: slice
    heads: slice
    rows: slice
    m: int
    rule: Rule

    def queries(self, t: Tensor) -> Tensor:
        """This block of a tensor with one row a query."""
        return t[self.examples, self.heads, self.rows]

    def keys(self, t: Tensor) -> Tensor:
        """This block of a tensor with one row a key."""
        return t[self.examples, self.heads, : self.m]

    def write(self, target: Tensor, value: Tensor) -> None:
        """Set this block of a tensor with one row a query."""
        place = self.queries(target)
        place.copy_(value.view(place.shape))

    def add(self, target: Tensor, *terms: Tensor) -> None:
        """Add to this block of a tensor with one row a key."""
        place = self.keys(target)
        for term in terms:
            place += term.view(place.shape)

    def hide_(self, scores: Tensor) -> Tensor:
        """Apply the mask to scores to base 2, in place."""
        rule = self.rule
        if rule.mask is not None:
            mask = self.queries(rule.mask)
            whole = scores.view(mask.shape)
            if mask.dtype == torch.bool:
                whole.masked_fill_(mask.logical_not(), -math.inf)
            else:
                whole.add_(mask, alpha=LOG2_E)
        if rule.causal:
            hidden = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).triu_(self.rows.start + 1)
            scores.masked_fill_(hidden, -math.inf)
        return scores


def _blocks(q: Tensor, k: Tensor, rule: Rule) -> Iterator[_Block]:
    """Cover all rows of all heads by blocks of about the same bytes."""
    (b, h, n, _), m = q.shape, k.shape[2]
    size = CPU_BLOCK_BYTES * torch.get_num_threads() if q.device.type == "cpu" else GPU_BLOCK_BYTES
    budget = max(1, size // (q.element_size() * m))  # in rows of scores
    rows = min(n, budget, CAUSAL_ROWS) if rule.causal else min(n, budget)
    heads = min(h, max(1, budget // rows))
    examples = max(1, budget // (rows * heads)) if heads == h else 1
    for i in range(0, b, examples):
        for j in range(0, h, heads):
            for start in range(0, n, rows):
                seen = min(start + rows, m) if rule.causal else m
                yield _Block(
                    slice(i, i + examples), slice(j, j + heads), slice(start, min(start + rows, n)), seen, rule
                )


def _side_by_side(*parts: tuple[Tensor, float] | float) -> Tensor:
    """Lay out tensors (b, h, rows, ·), each times a factor, and columns of a constant as (b h, rows, sum of widths)."""
    widths = [1 if isinstance(part, float) else part[0].shape[-1] for part in parts]
    shape = next(part[0].shape[:-1] for part in parts if not isinstance(part, float))
    like = next(part[0] for part in parts if not isinstance(part, float))
    whole = like.new_empty((*shape, sum(widths)))
    for part, place in zip(parts, whole.split(widths, dim=-1), strict=True):
        if isinstance(part, float):
            place.fill_(part)
        elif part[1] == 1.0:
            place.copy_(part[0])
        else:
            torch.mul(part[0], part[1], out=place)
    return whole.flatten(0, 1)


class _Scratch:
    """Buffers of a block's size, made once and cut for blocks that are smaller."""

    def __init__(self) -> None:
        self._buffers: dict[int, Tensor] = {}

    def empty(self, index: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Buffer number `index`, with this shape and anything in it."""
        size = math.prod(shape)
        if index not in self._buffers or self._buffers[index].numel() < size:
            self._buffers[index] = like.new_empty(size)
        return self._buffers[index][:size].view(shape)

    def product(self, index: int, left: Tensor, right: Tensor) -> Tensor:
        """The matrices left rightᵀ, in buffer number `index`."""
        shape = (left.shape[0], left.shape[1], right.shape[1])
        return torch.bmm(left, right.mT, out=self.empty(index, shape, left))


def attend(q: Queries, k: Keys, v: Values, rule: Rule) -> tuple[Outputs, PerQuery]:
    """Outputs O = PV, and the normaliser of each row to base 2: infinite where a row sees no key, whose output is 0."""
    given, (q, k, v) = q.dtype, _in_arithmetic(q, k, v)
    b, h, n, _ = q.shape
    # in memory the heads of a token lie together, so that joining them again costs nothing
    out = q.new_empty((b, n, h, v.shape[-1]), dtype=given).transpose(1, 2)
    normaliser = q.new_empty((b, h, n, 1))
    scratch = _Scratch()
    for block in _blocks(q, k, rule):
        keys, values = _side_by_side((block.keys(k), 1.0)), _side_by_side((block.keys(v), 1.0))
        scores = block.hide_(scratch.product(0, _side_by_side((block.queries(q), rule.scale * LOG2_E)), keys))
        top = scores.amax(-1, keepdim=True)
        top.masked_fill_(top == -math.inf, 0.0)
        weights = scores.sub_(top).exp2_()
        total = weights.sum(-1, keepdim=True)
        dead = total == 0
        block.write(normaliser, (top + total.log2()).masked_fill_(dead, math.inf))
        block.write(out, torch.bmm(weights, values).div_(total.masked_fill_(dead, 1.0)))
    return out, normaliser


def gradient(
    q: Queries, k: Keys, v: Values, out: Outputs, normaliser: PerQuery, seed: Outputs, rule: Rule
) -> tuple[Queries, Keys, Values]:
    """The gradient of ⟨seed, O⟩ in Q, K and V.

    With D_i = ⟨seed_i, O_i⟩ and the score gradient Z = P ∘ (seed Vᵀ - D1ᵀ):
    dQ = scale · ZK,  dK = scale · ZᵀQ,  dV = Pᵀ seed.
    """
    given, (q, k, v, out, seed) = q.dtype, _in_arithmetic(q, k, v, out, seed)
    d = q.shape[-1]
    dq, dk, dv = _like(q), _like(k).zero_(), _like(v).zero_()
    offset = torch.linalg.vecdot(seed, out).unsqueeze(-1)
    scratch = _Scratch()
    for block in _blocks(q, k, rule):
        queries = _side_by_side((block.queries(q), rule.scale * LOG2_E), (block.queries(normaliser), -1.0))
        seeds = _side_by_side((block.queries(offset), -1.0), (block.queries(seed), 1.0))
        keys = _side_by_side((block.keys(k), 1.0), 1.0)
        values = _side_by_side(1.0, (block.keys(v), 1.0))

        P = block.hide_(scratch.product(0, queries, keys)).exp2_()
        Z = scratch.product(1, seeds, values).mul_(P)
        block.write(dq, torch.bmm(Z, keys[..., :d]).mul_(rule.scale))
        block.add(dk, torch.bmm(Z.mT, queries[..., :d]).mul_(1 / LOG2_E))
        block.add(dv, torch.bmm(P.mT, seeds[..., 1:]))
    return dq.to(given), dk.to(given), dv.to(given)


def second_derivative(
    q: Queries,
    k: Keys,
    v: Values,
    out: Outputs,
    normaliser: PerQuery,
    seed: Outputs,
    aq: Queries,
    ak: Keys,
    av: Values,
    rule: Rule,
) -> tuple[Queries, Keys, Values, Outputs]:
    """The gradient of Φ = ⟨aq, dQ⟩ + ⟨ak, dK⟩ + ⟨av, dV⟩ in Q, K, V and the seed, for dQ, dK, dV of `gradient`.

    Φ is also ⟨seed, Ȯ⟩, with Ȯ the change of O as (Q, K, V) moves along (aq, ak, av). With G = seed Vᵀ - D1ᵀ and
    Z = P ∘ G as in `gradient`:
    Ṡ = scale · (aq Kᵀ + Q akᵀ),  R = Ṡ - r1ᵀ with r the rows' means of Ṡ under P,  Ṗ = P ∘ R,
    Ȯ = ṖV + P av,  w_i = ⟨seed_i, Ȯ_i⟩,
    X = Ṗ ∘ G + P ∘ (seed avᵀ - w1ᵀ),  which is ∂Φ/∂S, with rows that sum to zero, and
    ∂Φ/∂Q = scale · (Z ak + X K),  ∂Φ/∂K = scale · (Zᵀ aq + Xᵀ Q),  ∂Φ/∂V = Ṗᵀ seed,  ∂Φ/∂seed = Ȯ.

    Source:
        Our derivation.
    """
    given, (q, k, v, out, seed, aq, ak, av) = q.dtype, _in_arithmetic(q, k, v, out, seed, aq, ak, av)
    d, e, scale = q.shape[-1], v.shape[-1], rule.scale
    to_q, to_k, to_v, to_seed = _like(q), _like(k).zero_(), _like(v).zero_(), _like(seed)
    offset = torch.linalg.vecdot(seed, out).unsqueeze(-1)
    scratch = _Scratch()
    for block in _blocks(q, k, rule):
        queries = _side_by_side((block.queries(q), scale * LOG2_E), (block.queries(normaliser), -1.0))
        moves = _side_by_side((block.queries(q), scale), (block.queries(aq), scale), 0.0)
        seeds = _side_by_side((block.queries(offset), -1.0), (block.queries(seed), 1.0))
        keys = _side_by_side(1.0, (block.keys(av), 1.0), (block.keys(ak), 1.0), (block.keys(k), 1.0), 1.0)
        values = _side_by_side(1.0, (block.keys(v), 1.0))
        move, key = keys[..., e + 1 :].split([d, d, 1], dim=-1)[:2]

        P = block.hide_(scratch.product(0, queries, keys[..., -d - 1 :])).exp2_()
        G = scratch.product(1, seeds, values)
        means = torch.bmm(P, keys[..., 1:-1])  # of av, ak and K under P
        moves[..., -1] = torch.linalg.vecdot(moves[..., :-1], means[..., e:]).neg_()  # -r
        R = scratch.product(2, moves, keys[..., -2 * d - 1 :])
        moved = torch.mul(P, R, out=scratch.empty(3, P.shape, P))  # Ṗ
        change = torch.bmm(moved, values[..., 1:]).add_(means[..., :e])  # Ȯ
        block.write(to_seed, change)
        block.add(to_v, torch.bmm(moved.mT, seeds[..., 1:]))
        seeds[..., 0] = torch.linalg.vecdot(seeds[..., 1:], change).neg_()  # -w in place of -D
        X = moved.mul_(G).addcmul_(P, scratch.product(2, seeds, keys[..., : e + 1]))
        Z = P.mul_(G)
        block.write(to_q, torch.bmm(Z, move).baddbmm_(X, key).mul_(scale))
        block.add(to_k, torch.bmm(Z.mT, moves[..., d:-1]).baddbmm_(X.mT, moves[..., :d]))
    return to_q.to(given), to_k.to(given), to_v.to(given), to_seed.to(given)


def _in_arithmetic(*tensors: Tensor) -> list[Tensor]:
    return [t if t.dtype == torch.float64 else t.float() for t in tensors]


def _like(t: Tensor) -> Tensor:
    return torch.empty_like(t, memory_format=torch.contiguous_format)
