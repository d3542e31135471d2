"""Batches of data: pairs (inputs, targets) of tensors, or of nested dicts, lists and tuples of them."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

Batch = tuple[Any, Any]


def as_batches(data: Any) -> list[Batch]:
    """Turn a pair of tensors, a dict, a list of batches or a DataLoader into a list of (inputs, targets).

    A dict batch is its own target: it is passed to the model by keyword, and to the loss as it is.
    """
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor):
        return [data]
    if isinstance(data, Mapping):
        return [_pair(data)]
    if isinstance(data, Tensor) or not isinstance(data, Iterable):
        raise ValueError(
            f"`data` must be a pair (inputs, targets), a dict, a list of such batches or a DataLoader, "
            f"got {type(data).__name__}."
        )
    return [_pair(b) for b in data]


def _pair(batch: Any) -> Batch:
    if isinstance(batch, Mapping):  # a tokenizer's batches are mappings, but no dicts
        plain = dict(batch)
        return plain, plain
    if isinstance(batch, list | tuple) and len(batch) == 2:
        return batch[0], batch[1]
    what = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, list | tuple) else type(batch).__name__
    raise ValueError(
        f"`data` has a batch that is neither a pair (inputs, targets) nor a dict, but a {what}: several inputs make a "
        "tuple, ((a, b), targets)."
    )


def batch_size(batch: Batch) -> int:
    """Number of examples of one batch: the length of its first tensor.

    Raises:
        ValueError: If it has none.
    """
    for t in tensors(batch[0]):
        if t.ndim:
            return len(t)
    raise ValueError(
        "`data` has a batch without a tensor of examples: give tensors, or dicts, lists and tuples of them."
    )


def slice_batch(batch: Batch, start: int, stop: int) -> Batch:
    """Examples start to stop of a batch; tensors of another length than the batch (a mask for all, say) stay whole."""
    size = batch_size(batch)

    def cut(t: Tensor) -> Tensor:
        return t[start:stop] if t.ndim and len(t) == size else t

    if batch[0] is batch[1]:
        part = map_tensors(cut, batch[0])
        return part, part
    return map_tensors(cut, batch[0]), map_tensors(cut, batch[1])


def split_batches(batches: Iterable[Batch], size: int) -> list[Batch]:
    """Cut every batch into parts of at most `size` examples."""
    return [
        part
        for batch in batches
        for n in [batch_size(batch)]
        for part in ([slice_batch(batch, i, i + size) for i in range(0, n, size)] if n > size else [batch])
    ]


def map_tensors(f: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply f to every tensor of nested dicts, lists and tuples; leave the rest."""
    if isinstance(tree, Tensor):
        return f(tree)
    if isinstance(tree, dict):
        return {key: map_tensors(f, value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        parts = [map_tensors(f, value) for value in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors of nested mappings, lists, tuples and dataclasses (such as model outputs), in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from tensors(value)
    elif is_dataclass(tree) and not isinstance(tree, type):
        for field in fields(tree):
            yield from tensors(getattr(tree, field.name))


def cut_off(tree: Any) -> Any:
    """A copy of a model's outputs in which every tensor is a leaf of its own, cut off from the graph it came from."""
    leaves: dict[int, Any] = {}
    stack, seen = [tree], set[int]()
    while stack:
        part = stack.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, Tensor):
            leaves[id(part)] = part.detach().requires_grad_() if part.requires_grad else part
        elif isinstance(part, Mapping):
            stack += part.values()
        elif isinstance(part, list | tuple):
            stack += part
        if hasattr(part, "__dict__") and not isinstance(part, Tensor | type):  # any other object that holds tensors
            stack += vars(part).values()
    return copy.deepcopy(tree, leaves)
