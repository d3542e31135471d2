"""Blocks of the entries of a vector, and sums over them that take no further vector."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]
Region = slice | Tensor
Blocks = Mapping[str, Region]
"""Names of blocks of parameters, each with its entries: a slice, or a tensor of indices."""

WHOLE = 2**17  # entries that are worked on at once, and
PIECE = 2**14  # how many at a time where there are more


@dataclass(frozen=True, eq=False)
class Regions:
    """The whole of p entries, and some blocks of them.

    Attributes:
        p: Number of entries.
        blocks: The blocks.
    """

    p: int
    blocks: Sequence[Region] = ()

    def __len__(self) -> int:
        return 1 + len(self.blocks)

    @cached_property
    def cut(self) -> list[tuple[slice, list[tuple[int, Region]]]]:
        """Pieces of the entries, each with the numbers of the regions that it meets and what it holds of them."""
        regions: list[Region] = [slice(None), *self.blocks]
        if self.p <= WHOLE:
            return [(slice(0, self.p), list(enumerate(regions)))]
        within = ([(i, _within(region, piece, self.p)) for i, region in enumerate(regions)] for piece in pieces(self.p))
        met = ([(i, part) for i, part in parts if part is not None] for parts in within)
        return list(zip(pieces(self.p), met, strict=True))

    @property
    def sizes(self) -> Array:
        """The number of entries of each region."""
        return np.array([count(region, self.p) for region in (slice(None), *self.blocks)])

    def sums(self, term: Callable[..., Tensor], *vectors: Tensor) -> Array:
        """Σ over the entries of each region, in float64: (regions, n), for a term of the vectors' entries.

        The vectors are columns, and `term` maps pieces of them to a tensor of shape (entries, n).
        """
        found: list[Array | None] = [None] * len(self)
        for piece, parts in self.cut:
            values = term(*(t[piece] for t in vectors))
            for i, part in parts:
                new, known = small(values[part].sum(0, dtype=torch.float64)), found[i]
                found[i] = new if known is None else known + new
        return np.stack([each for each in found if each is not None])


def pieces(p: int) -> Iterator[slice]:
    """Slices that divide p entries into as many as are worked on at once."""
    size = p if p <= WHOLE else PIECE
    return (slice(a, min(a + size, p)) for a in range(0, p, size))


def check_blocks(blocks: Blocks | None, p: int) -> dict[str, Region]:
    """The blocks, where every one names entries that exist; slices that run down are turned round."""
    found = {
        name: _upward(region, p) if isinstance(region, slice) else region for name, region in (blocks or {}).items()
    }
    for name, region in found.items():
        if isinstance(region, Tensor):
            whole = region.ndim == 1 and not (region.is_floating_point() or region.dtype == torch.bool)
            if not whole or (len(region) and not bool(((region >= 0) & (region < p)).all())):
                raise ValueError(f"`blocks` must hold whole numbers from 0 to {p - 1}, got {region!r} for {name!r}.")
        if not count(region, p):
            raise ValueError(f"`blocks` has no entries of 0 to {p - 1} for {name!r}, got {region!r}.")
    return found


def count(region: Region, p: int) -> int:
    """The number of entries of a region."""
    return len(range(*region.indices(p))) if isinstance(region, slice) else len(region)


def small(t: Tensor) -> Array:
    """A small tensor as a float64 array."""
    return np.asarray(t.detach().double().cpu().numpy())


def _upward(region: slice, p: int) -> slice:
    """The same entries in ascending order; torch takes no negative step."""
    entries = range(*region.indices(p))
    return slice(entries[-1], entries[0] + 1, -entries.step) if entries and entries.step < 0 else region


def _within(region: Region, piece: slice, p: int) -> Region | None:
    """What a piece holds of a region, counted from its start; None for nothing."""
    if isinstance(region, Tensor):
        inside = region[(region >= piece.start) & (region < piece.stop)] - piece.start
        return inside if len(inside) else None
    start, stop, step = region.indices(p)
    first = max(start, start + -(-(piece.start - start) // step) * step)
    stop = min(stop, piece.stop)
    return slice(first - piece.start, stop - piece.start, step) if first < stop else None
