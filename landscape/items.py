"""How many examples a batch has, and which lists hold one item an example."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

SEQUENCE_AXES = 3  # an image or a series has at most so many axes, a batch of them one more


class Items(list[Any]):
    """A list whose items are examples: images of different sizes, texts, the boxes of each image."""


def examples(inputs: Any, targets: Any) -> int | None:
    """The number of examples of a batch; None where nothing tells it.

    It is the length on which inputs and targets agree: of tensors first, then of lists with one item an example. Where
    they agree on none (token losses on flattened targets, no targets) it is that of the inputs' first tensor. A target
    without any axis makes one example. A batch that is its own target has the length that most of its tensors have.

    Args:
        inputs: What the model gets.
        targets: What the loss gets; the inputs themselves for a batch that is its own target.
    """
    if targets is inputs:
        found = Counter(_rows(inputs)) or Counter(_lists(inputs))
        return found.most_common(1)[0][0] if found else None
    if isinstance(targets, Tensor) and targets.ndim == 0:
        return 1
    ours, theirs = list(_rows(inputs)), list(_rows(targets))
    for a, b in ((theirs, ours), (theirs, _lists(inputs)), (_lists(targets), ours), (_lists(targets), _lists(inputs))):
        known = set(b)
        for n in a:
            if n in known:
                return n
    for lengths in (ours, _lists(inputs), theirs, _lists(targets)):
        for n in lengths:
            return n
    return None


def count(leaf: Any) -> int | None:
    """Number of examples of a tensor, a packed sequence or a batch of graphs; None where it says nothing of them."""
    if isinstance(leaf, Tensor):
        return leaf.size(0) if leaf.ndim else None
    if isinstance(leaf, PackedSequence):
        return int(leaf.batch_sizes[0])
    if isinstance(leaf, list | tuple | Mapping | str) or leaf is None:
        return None
    for name in ("num_graphs", "batch_size"):
        found = getattr(leaf, name, None)
        if isinstance(found, int):
            return found
    return None


def holds_items(node: Any, n: int) -> bool:
    """Whether a list or tuple of a batch of n examples has one item an example."""
    if isinstance(node, Items):
        return True
    if not isinstance(node, list | tuple) or isinstance(node, PackedSequence) or hasattr(node, "_fields"):
        return False
    if len(node) != n:
        return False
    stacked = [_has_rows(part, n) for part in node]
    return not all(stacked) if isinstance(node, list) else not any(stacked)


def marked(inputs: Any, positional: float, required: int) -> Any:
    """Inputs in which a list of several inputs is a tuple, and a list of examples says so.

    A DataLoader makes lists of tuples, so that [a, b] may be two inputs of a model with two arguments, or two images of
    different sizes. What the model takes decides, and then what the tensors' lengths say.

    Args:
        inputs: A pair (inputs, targets).
        positional: How many arguments the model takes by position, at most.
        required: How many of them have no default.
    """
    x, y = inputs
    if not isinstance(x, list | tuple) or isinstance(x, Items | PackedSequence) or hasattr(x, "_fields"):
        return inputs
    n = examples(x, y)
    every = n is not None and all(_has_rows(part, n) for part in x)
    apart = isinstance(x, tuple) and not (n is not None and holds_items(x, n))
    if positional >= len(x) and (required > 1 or every or apart):
        return tuple(x), y
    if n is None or len(x) != n:
        return inputs
    parts = [t for t in x if isinstance(t, Tensor)]
    differ = len({t.shape for t in parts}) > 1 and all(t.ndim <= SEQUENCE_AXES for t in parts)
    if every and not differ:  # as many views as examples
        return inputs
    return Items(x), Items(y) if isinstance(y, list | tuple) and len(y) == n and not hasattr(y, "_fields") else y


def _rows(tree: Any) -> Iterator[int]:
    """Lengths of the tensors, in order, but for those in lists of examples."""
    if isinstance(tree, Tensor | PackedSequence):
        n = count(tree)
        if n is not None:
            yield n
    elif isinstance(tree, Mapping):
        for part in tree.values():
            yield from _rows(part)
    elif isinstance(tree, Items):
        return
    elif isinstance(tree, list):
        parts = [list(_rows(part)) for part in tree]
        if len({n for part in parts for n in part}) == 1 and all(parts) and not any(_is_record(t) for t in tree):
            yield parts[0][0]
    elif isinstance(tree, tuple):
        if not all(_is_record(part) for part in tree):
            for part in tree:
                yield from _rows(part)
    elif is_dataclass(tree) and not isinstance(tree, type):
        for field in fields(tree):
            yield from _rows(getattr(tree, field.name, None))
    else:
        n = count(tree)
        if n is not None:
            yield n


def _lists(tree: Any) -> Iterator[int]:
    """Lengths of the lists and tuples, the outer ones first."""
    if isinstance(tree, Mapping):
        for part in tree.values():
            yield from _lists(part)
    elif isinstance(tree, list | tuple) and not isinstance(tree, PackedSequence):
        if not hasattr(tree, "_fields"):
            yield len(tree)
        for part in tree:
            if not _is_record(part):
                yield from _lists(part)


def _is_record(part: Any) -> bool:
    """Whether it is what a list has of one example: a dict of boxes, a text, a number."""
    return isinstance(part, Mapping | str | int | float)


def _has_rows(part: Any, n: int) -> bool:
    found = [] if _is_record(part) else list(_rows(part))
    return bool(found) and all(k == n for k in found)
