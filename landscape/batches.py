"""Batches of data: pairs (inputs, targets) of tensors, or of nested dicts, lists and tuples of them."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

Batch = tuple[Any, Any]


def as_batches(data: Any) -> list[Batch]:
    """Turn a pair of tensors, a list of batches or a DataLoader into a list of (inputs, targets)."""
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor):
        return [data]
    if isinstance(data, dict):
        return [(data, data)]
    return [(b, b) if isinstance(b, dict) else (b[0], b[1]) for b in data]


def batch_size(batch: Batch) -> int:
    """Number of examples of one batch: the length of its first tensor."""
    first = batch[0]
    while isinstance(first, dict | list | tuple):
        first = next(iter(first.values())) if isinstance(first, dict) else first[0]
    return len(first)


def slice_batch(batch: Batch, start: int, stop: int) -> Batch:
    """Examples start to stop of a batch."""
    x, y = (map_tensors(lambda t: t[start:stop], part) for part in batch)
    return x, y


def map_tensors(f: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply f to every tensor of nested dicts, lists and tuples; leave the rest."""
    if isinstance(tree, Tensor):
        return f(tree)
    if isinstance(tree, dict):
        return {key: map_tensors(f, value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)([map_tensors(f, value) for value in tree])
    return tree
