"""What permutations act on an axis of a tensor: units, products of them (a flattened image), or rows of them (a pad).

A tree of units is kept for every axis. Where an operation needs two axes to be permuted alike, their trees are made
equal, which splits or joins units. What remains free can be permuted without changing what the model computes.
"""

import math
from collections.abc import Sequence
from itertools import count
from typing import Literal

Kind = Literal["unit", "product", "row"]
_NUMBERS = count()


class Units:
    """A node of the tree: a free or fixed unit, a product of nodes in C order, or a row of nodes, one after the other.

    Attributes:
        size: Entries of the axis.
        kind: "unit", "product" or "row".
        parts: The nodes below, of a product or row.
        why: For a unit that must stay put, the reason; None for a free one.
        number: Counts units in order of creation.
    """

    __slots__ = ("kind", "link", "number", "parts", "size", "why")

    def __init__(self, size: int, kind: Kind = "unit", parts: Sequence["Units"] = (), why: str | None = None) -> None:
        self.size, self.kind, self.parts, self.why = size, kind, list(parts), why
        self.link: Units | None = None
        self.number = next(_NUMBERS)


def free(size: int) -> Units:
    """A unit that may be permuted; one entry has nothing to permute."""
    return Units(size) if size > 1 else fixed(size, "one entry")


def fixed(size: int, why: str) -> Units:
    """A unit that stays put."""
    return Units(size, why=why)


def resolved(node: Units) -> Units:
    """The node that stands for this one."""
    while node.link is not None:
        node = node.link
    return node


def pin(node: Units, why: str) -> None:
    """Make everything in a node stay put."""
    node = resolved(node)
    if node.kind == "unit":
        node.why = node.why or why
    for part in node.parts:
        pin(part, why)


def product(parts: Sequence[Units]) -> Units:
    """One axis made of several, the last one fastest."""
    kept = [p for p in map(resolved, parts) if p.size != 1]
    size = math.prod(p.size for p in parts)
    if all(p.kind == "unit" and p.why for p in kept):
        return fixed(size, kept[0].why or "" if kept else "one entry")
    return kept[0] if len(kept) == 1 else Units(size, "product", kept)


def row(parts: Sequence[Units]) -> Units:
    """One axis made of several, one after the other."""
    kept = [p for p in map(resolved, parts) if p.size != 0]
    size = sum(p.size for p in kept)
    if kept and all(p.kind == "unit" and p.why for p in kept):
        return fixed(size, kept[0].why or "")
    return kept[0] if len(kept) == 1 else Units(size, "row", kept)


def unify(a: Units, b: Units, why: str) -> None:
    """Make two nodes be permuted alike; what cannot be reconciled stays put, for the reason `why`."""
    a, b = resolved(a), resolved(b)
    if a is b:
        return
    if a.size != b.size:
        pin(a, why)
        pin(b, why)
    elif a.kind == "unit" and a.why:
        pin(b, a.why)
    elif b.kind == "unit" and b.why:
        pin(a, b.why)
    elif a.kind == "unit" or b.kind == "unit":
        # two units: the older stands for both; a unit and a tree: the tree
        older = a if (b.kind == "unit" and (a.kind != "unit" or a.number < b.number)) else b
        (b if older is a else a).link = older
    elif a.kind == b.kind:
        _unify_parts(a, b, why)
    else:
        pin(a, why)
        pin(b, why)


def split(node: Units, sizes: Sequence[int], why: str = "an operation that cuts it") -> list[Units]:
    """The parts of an axis that is seen as several axes of these sizes, the last one fastest."""
    node, wanted = resolved(node), [s for s in sizes if s != 1]
    if len(wanted) <= 1:
        found = [node] if wanted else []
    elif node.kind == "unit":
        found = [free(s) if node.why is None else fixed(s, node.why) for s in wanted]
        if node.why is None:
            node.kind, node.parts = "product", list(found)
    else:
        taken = _grouped(node.parts, wanted) if node.kind == "product" else None
        if taken is None:
            pin(node, why)
        found = [fixed(s, why) for s in wanted] if taken is None else [product(group) for group in taken]
    rest = iter(found)
    return [next(rest) if s != 1 else fixed(1, "one entry") for s in sizes]


def cut(node: Units, sizes: Sequence[int], why: str = "an operation that cuts it") -> list[Units]:
    """The parts of an axis that is cut into pieces of these sizes, one after the other; none for size 0."""
    node, wanted = resolved(node), [s for s in sizes if s]
    if len(wanted) <= 1:
        return [node] if wanted else []
    if node.kind == "unit":
        found = [free(s) if node.why is None else fixed(s, node.why) for s in wanted]
        if node.why is None:
            node.kind, node.parts = "row", list(found)
        return found
    if node.kind == "product":
        first, inner = resolved(node.parts[0]), node.size // node.parts[0].size
        if all(s % inner == 0 for s in wanted):
            pin(first, why)
            return [product([fixed(s // inner, why), *node.parts[1:]]) for s in wanted]
    else:
        pieces, groups = list(node.parts), []
        for size in wanted:
            group: list[Units] = []
            while size:
                piece = resolved(pieces.pop(0))
                if piece.size > size:
                    piece, rest = cut(piece, [size, piece.size - size], why)
                    pieces.insert(0, rest)
                group.append(piece)
                size -= piece.size
            groups.append(row(group))
        return groups
    pin(node, why)
    return [fixed(s, why) for s in wanted]


def units(node: Units) -> list[Units]:
    """The units of a node, in order."""
    node = resolved(node)
    return [node] if node.kind == "unit" else [u for part in node.parts for u in units(part)]


def _grouped(parts: Sequence[Units], sizes: Sequence[int]) -> list[list[Units]] | None:
    """Share out the factors of a product to axes of given sizes, splitting factors where that is possible."""
    rest, groups = [resolved(p) for p in parts], []
    for size in sizes:
        group: list[Units] = []
        while size > 1:
            if not rest:
                return None
            part = resolved(rest.pop(0))
            if part.size > size:
                if part.size % size:
                    return None
                part, remainder = split(part, [size, part.size // size])
                rest.insert(0, remainder)
            if size % part.size:
                return None
            group.append(part)
            size //= part.size
        groups.append(group)
    return groups


def _unify_parts(a: Units, b: Units, why: str) -> None:
    """Make two products, or two rows, equal part by part, dividing the larger part where they do not match."""
    left, right = list(a.parts), list(b.parts)
    while left and right:
        x, y = resolved(left.pop(0)), resolved(right.pop(0))
        size = min(x.size, y.size)
        if x.size > size:
            x, *rest = _divided(x, size, a.kind, why)
            left = [*rest, *left]
        elif y.size > size:
            y, *rest = _divided(y, size, a.kind, why)
            right = [*rest, *right]
        if x.size != y.size:
            pin(a, why)
            pin(b, why)
            return
        unify(x, y, why)


def _divided(node: Units, size: int, kind: Kind, why: str) -> list[Units]:
    """A node as a first part of some size and the rest, or as it is where it does not divide."""
    if kind == "row":
        return cut(node, [size, node.size - size], why)
    return [node] if node.size % size else split(node, [size, node.size // size], why)
