"""How groups of hidden units act on the axes of tensors."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

Permutations = Mapping[str, Int[Tensor, " _"]]
"""By group: π, such that unit i of the permuted model is unit π(i) of the model."""


@dataclass(frozen=True)
class Layout:
    """How the groups act on one axis of a tensor.

    Attributes:
        size: Entries of the axis.
        kind: "group", "fixed", "product" of layouts in C order, or "row" of layouts, one after the other.
        group: Name of the group, where it is one.
        parts: The layouts of a product or row.
    """

    size: int
    kind: Literal["group", "fixed", "product", "row"] = "fixed"
    group: str = ""
    parts: tuple["Layout", ...] = ()

    @property
    def groups(self) -> list[str]:
        """Names of the groups, in order, repeated where they come twice."""
        return [self.group] if self.kind == "group" else [g for part in self.parts for g in part.groups]

    def index(self, permutations: Permutations) -> Int[Tensor, " n"]:
        """Where each entry of the permuted axis comes from; groups without a permutation stay as they are."""
        if self.kind == "group" and self.group in permutations:
            return permutations[self.group]
        if self.kind in ("group", "fixed"):
            return torch.arange(self.size)
        pieces = [part.index(permutations) for part in self.parts]
        if self.kind == "row":
            starts = _starts(self.parts)
            return torch.cat([piece + start for piece, start in zip(pieces, starts, strict=True)])
        return _combined(pieces, [part.size for part in self.parts])

    def entries(self, group: str) -> Int[Tensor, "n m"]:
        """The entries that belong to each unit of a group, one unit a row; m is 0 where it does not act."""
        if self.kind == "group" and self.group == group:
            return torch.arange(self.size)[:, None]
        found = [part.entries(group) for part in self.parts]
        acting = [i for i, entries in enumerate(found) if entries.numel()]
        if not acting:
            return torch.empty(0, 0, dtype=torch.long)
        if self.kind == "row":
            starts = _starts(self.parts)
            return torch.cat([found[i] + starts[i] for i in acting], dim=1)
        at = acting[0]
        sizes = [part.size for part in self.parts]
        rows = []
        for unit in found[at]:
            pieces = [unit if i == at else torch.arange(n) for i, n in enumerate(sizes)]
            rows.append(_combined(pieces, sizes))
        return torch.stack(rows)

    def beside(self, group: str) -> set[str]:
        """Other groups that act on the very entries on which a group acts."""
        if self.kind == "product" and group in self.groups:
            return set(self.groups) - {group}
        return set[str]().union(*(part.beside(group) for part in self.parts)) if self.parts else set()


def moved(t: Tensor, layouts: Sequence[Layout], permutations: Permutations) -> Tensor:
    """A tensor with the entries of its axes in new places."""
    for axis, layout in enumerate(layouts):
        if any(group in permutations for group in layout.groups):
            t = t.index_select(axis, layout.index(permutations).to(t.device))
    return t


def _starts(parts: Sequence[Layout]) -> list[int]:
    return [sum(part.size for part in parts[:i]) for i in range(len(parts))]


def _combined(pieces: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Entries of a product whose factors take the given entries, the last factor fastest."""
    total = torch.zeros(1, dtype=torch.long)
    for i, piece in enumerate(pieces):
        total = (total[:, None] + piece * math.prod(sizes[i + 1 :])).flatten()
    return total
