"""Rules for operations that only change shapes."""

import math

from landscape.paths.calls import KERNEL, Call, Labels, broadcast, wrapped
from landscape.paths.structure import cut, fixed, free, pin, product, row, split


def reshape_rule(call: Call) -> list[Labels]:
    """Axes joined and split, last one fastest."""
    old, shape = list(call.of(call.given["self"])), list(call.made[0].shape)
    if not call.made[0].numel():
        return [[fixed(n, "no entry") for n in shape]]
    new: Labels = []
    i = j = 0
    while i < len(old) or j < len(shape):
        left, right = [old[i]] if i < len(old) else [], [shape[j]] if j < len(shape) else []
        i, j = i + len(left), j + len(right)
        while math.prod(u.size for u in left) != math.prod(right):
            if math.prod(u.size for u in left) < math.prod(right):
                left.append(old[i])
                i += 1
            else:
                right.append(shape[j])
                j += 1
        if right:
            new += split(product(left), right, f"a change of shape {call.where}")
    return [new]


def transpose_rule(call: Call) -> list[Labels]:
    """Two axes exchanged."""
    labels = list(call.of(call.given["self"]))
    if len(labels) > 1:
        a, b = call.given.get("dim0", -2) % len(labels), call.given.get("dim1", -1) % len(labels)
        labels[a], labels[b] = labels[b], labels[a]
    return [labels]


def permute_rule(call: Call) -> list[Labels]:
    """Axes in another order."""
    labels = call.of(call.given["self"])
    return [[labels[d % len(labels)] for d in call.given["dims"]]]


def unsqueeze_rule(call: Call) -> list[Labels]:
    """One axis of one entry more."""
    labels = list(call.of(call.given["self"]))
    labels.insert(call.given["dim"] % call.made[0].ndim, fixed(1, "one entry"))
    return [labels]


def squeeze_rule(call: Call) -> list[Labels]:
    """Axes of one entry dropped."""
    labels = call.of(call.given["self"])
    chosen = wrapped(call.given.get("dim"), len(labels))
    return [[u for d, u in enumerate(labels) if d not in chosen or u.size != 1]]


def select_rule(call: Call) -> list[Labels]:
    """Single entries picked out, which must stay put."""
    labels = list(call.of(call.given["self"]))
    pin(labels.pop(call.given["dim"] % len(labels)), f"an entry picked out {call.where}")
    return [labels for _ in call.made]


def slice_rule(call: Call) -> list[Labels]:
    """A piece of an axis."""
    labels = list(call.of(call.given["self"]))
    dim = call.given.get("dim", 0) % len(labels)
    size, start, step = labels[dim].size, call.given.get("start") or 0, call.given.get("step", 1)
    start = min(max(start + size if start < 0 else start, 0), size)
    kept = call.made[0].shape[dim]
    if step != 1:
        pin(labels[dim], f"an axis cut with a step {call.where}")
        labels[dim] = fixed(kept, KERNEL)
    elif kept != size:
        pieces = cut(labels[dim], [start, kept, size - start - kept], f"an axis cut {call.where}")
        labels[dim] = pieces[1 if start else 0] if kept else fixed(0, "no entry")
    return [labels]


def cut_rule(call: Call) -> list[Labels]:
    """All pieces of an axis."""
    labels = call.of(call.given["self"])
    dim = call.given.get("dim", 0) % len(labels)
    pieces = cut(labels[dim], [t.shape[dim] for t in call.made], f"an axis cut {call.where}")
    return [[piece if d == dim else u for d, u in enumerate(labels)] for piece in pieces]


def join_rule(call: Call) -> list[Labels]:
    """Tensors one after the other along an axis."""
    parts = [t for t in call.given["tensors"] if t.ndim == call.made[0].ndim]
    dim = call.given.get("dim", 0) % call.made[0].ndim
    rows = [list(call.of(t)) for t in parts]
    others = [[fixed(1, "") if d == dim else u for d, u in enumerate(labels)] for labels in rows]
    out = broadcast(call, others, call.made[0].shape)
    out[dim] = row([labels[dim] for labels in rows])
    return [out]


def stack_rule(call: Call) -> list[Labels]:
    """Tensors along a new axis."""
    dim = call.given.get("dim", 0) % call.made[0].ndim
    shape = [n for d, n in enumerate(call.made[0].shape) if d != dim]
    out = broadcast(call, call.given["tensors"], shape)
    out.insert(dim, fixed(call.made[0].shape[dim], "a stack"))
    return [out]


def pad_rule(call: Call) -> list[Labels]:
    """Zeros before and after, which may be permuted at will."""
    labels, widths = list(call.of(call.given["self"])), list(call.given["pad"])
    for i in range(len(widths) // 2):
        dim, (before, after) = len(labels) - 1 - i, widths[2 * i : 2 * i + 2]
        size = labels[dim].size
        if min(before, after) < 0:
            pieces = [max(-before, 0), size - max(-before, 0) - max(-after, 0), max(-after, 0)]
            labels[dim] = cut(labels[dim], pieces, f"an axis cut {call.where}")[1 if before < 0 else 0]
        labels[dim] = row([free(max(before, 0)), labels[dim], free(max(after, 0))])
    return [labels]
