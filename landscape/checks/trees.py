"""Examples in nested outputs and targets: some of them cut out, several put together."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from landscape.batches import can_be_cut


class UncutError(Exception):
    """Something cannot be cut into examples, or put together."""


def leaves(tree: Any) -> list[Tensor]:
    """The tensors of a tree."""
    found: list[Tensor] = []

    def note(ts: list[Tensor], _: list[int]) -> Tensor:
        found.append(ts[0])
        return ts[0]

    if tree is not None:
        rebuilt([tree], [0], note)
    return found


def join(trees: Sequence[Any], sizes: Sequence[int]) -> Any:
    """Examples of several trees in one; what is no row of examples must be the same in all."""

    def joined(ts: list[Tensor], sizes: list[int]) -> Tensor:
        if all(t.ndim and len(t) == n for t, n in zip(ts, sizes, strict=True)):
            return torch.cat(ts)
        if all(t.shape == ts[0].shape and torch.equal(t, ts[0]) for t in ts[1:]):
            return ts[0]
        raise UncutError

    return rebuilt(list(trees), list(sizes), joined, items=lambda lists: [i for part in lists for i in part])


def cut(tree: Any, n: int, where: slice | Tensor) -> Any:
    """Some of n examples."""

    def cut(ts: list[Tensor], _: list[int]) -> Tensor:
        t = ts[0]
        return t[where.to(t.device) if isinstance(where, Tensor) else where] if t.ndim and len(t) == n else t

    return rebuilt([tree], [n], cut, items=lambda lists: [lists[0][i] for i in torch.arange(n)[where].tolist()])


def rebuilt(
    trees: list[Any],
    sizes: list[int],
    of_tensors: Callable[[list[Tensor], list[int]], Tensor],
    items: Callable[[list[Any]], list[Any]] | None = None,
) -> Any:
    """One tree of the same kind, with a tensor made of those at the same place; lists of examples by `items`."""

    def down(parts: list[Any]) -> Any:
        first = parts[0]
        if isinstance(first, Tensor):
            return of_tensors(parts, sizes)
        if isinstance(first, list | tuple):
            lengths = all(len(p) == n for p, n in zip(parts, sizes, strict=True))
            rows = all(isinstance(t, Tensor) and t.ndim and len(t) == sizes[0] for t in first)
            if items is not None and lengths and not rows and isinstance(first, list):
                return items(parts)
            made = [down(list(p)) for p in zip(*parts, strict=True)]
            return type(first)(*made) if hasattr(first, "_fields") else type(first)(made)
        if isinstance(first, Mapping):
            other: Any = copy.copy(first)
            for key in first:
                other[key] = down([p[key] for p in parts])
            return other
        if is_dataclass(first) and not isinstance(first, type):
            other = copy.copy(first)
            for field in fields(first):
                setattr(other, field.name, down([getattr(p, field.name) for p in parts]))
            return other
        if len(parts) > 1 and not can_be_cut((first, None)):
            raise UncutError
        return first

    return down(trees)
