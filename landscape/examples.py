"""The examples of a batch: counted, cut out, taken, and put together again."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import rnn
from torch.utils.data import DataLoader

from landscape.items import Items, examples, holds_items
from landscape.trees import map_nodes, tensors

Batch = tuple[Any, Any]
Places = Sequence[tuple[int, int]]  # where parts of a batch begin and end


def is_object(data: Any) -> bool:
    """Whether it is a batch of a class of its own: a dataclass, or graphs as libraries make them."""
    if isinstance(data, Tensor | np.ndarray | type | list | tuple | Mapping | DataLoader | torch.nn.Module):
        return False
    return is_dataclass(data) or _is_opaque(data)


def batch_size(batch: Batch) -> int:
    """Number of examples of one batch, see `landscape.items.examples`; 1 for an object that does not tell.

    Raises:
        ValueError: If it has no tensor and no list of examples.
    """
    n = examples(*batch)
    if n is not None:
        return n
    if is_object(batch[0]):
        return 1
    raise ValueError(
        "`data` has a batch without a tensor of examples: give tensors, or dicts, lists and tuples of them."
    )


def require_counted(batches: Sequence[Batch]) -> None:
    """Check that each of several batches tells how many examples it has.

    Raises:
        ValueError: If one does not, with `weight` as the way out.
    """
    for batch in batches if len(batches) > 1 else []:
        if is_object(batch[0]) and examples(*batch) is None:
            raise ValueError(
                f"`data` has batches of type {type(batch[0]).__name__} that do not tell how many examples they have: "
                "give `weight`, what a batch counts for, or pairs (batch, targets) with one target each."
            )


def slice_batch(batch: Batch, start: int, stop: int) -> Batch:
    """Examples start to stop of a batch; tensors of another length than the batch (a mask for all, say) stay whole.

    Raises:
        ValueError: If the batch has a part that cannot be cut, such as a batch of graphs.
    """
    size = batch_size(batch)
    if start <= 0 and stop >= size and not can_be_cut(batch):
        return batch
    return _selected(batch, size, slice(start, stop))


def take(batch: Batch, index: Tensor) -> Batch:
    """The examples of a batch with these numbers, in this order; errors as `slice_batch`."""
    return _selected(batch, batch_size(batch), index)


def places(n: int, size: int) -> Places:
    """Where the parts of n examples begin and end, of at most `size` each."""
    return [(i, min(i + size, n)) for i in range(0, n, size)] if n > size else [(0, n)]


def parts_of(batch: Batch, n: int, where: Places) -> list[Batch]:
    """The parts of a batch of n examples at these places."""
    return [batch if (a, b) == (0, n) else slice_batch(batch, a, b) for a, b in where]


def split_batches(batches: Iterable[Batch], size: int) -> list[Batch]:
    """Cut every batch into parts of at most `size` examples."""
    return [part for batch in batches for n in [batch_size(batch)] for part in parts_of(batch, n, places(n, size))]


def joined(batches: Sequence[Batch]) -> Batch:
    """All examples in one batch.

    Raises:
        ValueError: If the batches differ in form, or in more than their number of examples.
    """
    if len(batches) == 1:
        return batches[0]
    sizes = [batch_size(b) for b in batches]
    try:
        inputs = join([b[0] for b in batches], sizes)
        own = all(b[0] is b[1] for b in batches)
        return inputs, inputs if own else join([b[1] for b in batches], sizes)
    except (RuntimeError, TypeError, KeyError) as error:
        raise ValueError(
            f"`data` has batches that cannot be put together ({str(error).partition(chr(10))[0]}), as chunks of all "
            "examples need: give all examples in one batch."
        ) from error


def by_example(batch: Batch) -> bool:
    """Whether all parts are plain tensors with one row an example, so that a batch may be cut and stacked anywhere."""
    n = examples(*batch)
    plain = all(_is_plain(leaf) for leaf in _leaves(batch))
    return plain and all(t.ndim and len(t) == n for part in batch for t in tensors(part))


def can_be_cut(batch: Batch) -> bool:
    """Whether examples can be taken out of a batch."""
    return not any(_is_opaque(leaf) for leaf in _leaves(batch))


def _leaves(batch: Batch) -> list[Any]:
    found: list[Any] = []

    def note(part: Any) -> Any:
        if isinstance(part, Items | rnn.PackedSequence) or not (
            isinstance(part, Mapping | list | tuple) or is_dataclass(part)
        ):
            found.append(part)
        return part

    for part in batch:
        if isinstance(part, Tensor):
            found.append(part)
        else:
            map_nodes(note, part)
    return found


def _is_plain(leaf: Any) -> bool:
    if isinstance(leaf, Tensor):
        return leaf.layout == torch.strided and not leaf.is_nested
    return not isinstance(leaf, rnn.PackedSequence | Items) and not _is_opaque(leaf)


def _is_opaque(leaf: Any) -> bool:
    """Whether it is an object of unknown parts that holds data, as batches of graphs do."""
    if isinstance(leaf, Tensor | rnn.PackedSequence | list | tuple | Mapping | torch.dtype | torch.device):
        return False
    return not is_dataclass(leaf) and (hasattr(leaf, "to") or hasattr(leaf, "num_graphs"))


def _selected(batch: Batch, size: int, which: slice | Tensor) -> Batch:
    inputs = select(batch[0], size, which)
    return inputs, inputs if batch[0] is batch[1] else select(batch[1], size, which)


def select(tree: Any, size: int, which: slice | Tensor) -> Any:
    """Some of the examples of inputs, targets or outputs that have `size` of them; errors as `slice_batch`."""

    def cut(part: Any) -> Any:
        if isinstance(part, Tensor):
            return _rows(part, which) if part.ndim and part.size(0) == size else part
        if isinstance(part, rnn.PackedSequence):
            return _sequences(part, which)
        if holds_items(part, size):
            some = part[which] if isinstance(which, slice) else [part[i] for i in which.tolist()]
            return Items(some) if isinstance(part, list) else tuple(some)
        if _is_opaque(part):
            raise ValueError(
                f"`data` has a batch of type {type(part).__name__}, which cannot be cut into examples: give smaller "
                "batches, and leave out `m` and `micro_batch`."
            )
        return part

    return map_nodes(cut, tree)


def _rows(t: Tensor, which: slice | Tensor) -> Tensor:
    if _is_plain(t):
        return t[which] if isinstance(which, slice) else t[which.to(t.device)]
    numbers = torch.arange(t.size(0))[which]
    if t.is_nested:
        parts = t.unbind()
        nested: Tensor = torch.nested.as_nested_tensor([parts[i] for i in numbers.tolist()], layout=t.layout)
        return nested
    rows: Tensor = t.to_sparse_coo().index_select(0, numbers.to(t.device))
    return rows if t.layout == torch.sparse_coo else rows.to_sparse(layout=t.layout)


def _sequences(packed: rnn.PackedSequence, which: slice | Tensor) -> rnn.PackedSequence:
    padded, lengths = rnn.pad_packed_sequence(packed, batch_first=True)
    few = lengths[which] if isinstance(which, slice) else lengths[which.cpu()]
    rows = _rows(padded, which)[:, : int(few.max()) if len(few) else 0]
    return rnn.pack_padded_sequence(rows, few, batch_first=True, enforce_sorted=False)


def join(parts: Sequence[Any], sizes: Sequence[int]) -> Any:
    """Inputs, targets or outputs of several batches as those of one; what are no rows must be the same in all.

    Raises:
        TypeError: If it is not, or the parts differ in form.
    """
    first = parts[0]
    if len({type(part) for part in parts}) > 1:
        raise TypeError(f"a {type(first).__name__} and another type in one place")
    if isinstance(first, Tensor):
        if all(t.ndim and t.size(0) == n for t, n in zip(parts, sizes, strict=True)):
            return torch.cat(list(parts))
        if all(torch.equal(first, t) for t in parts[1:]):
            return first
        raise TypeError("tensors of another length than the batch that differ")
    if all(holds_items(part, n) for part, n in zip(parts, sizes, strict=True)):
        return Items(item for part in parts for item in part)
    if isinstance(first, Mapping):
        whole = copy.copy(first)
        for key in first:
            whole[key] = join([part[key] for part in parts], sizes)  # type: ignore[index]
        return whole
    if isinstance(first, list | tuple) and not isinstance(first, rnn.PackedSequence):
        columns = [join(column, sizes) for column in zip(*parts, strict=True)]
        return type(first)(*columns) if hasattr(first, "_fields") else type(first)(columns)
    if is_dataclass(first):
        other = copy.copy(first)
        for field in fields(first):
            column = [getattr(part, field.name) for part in parts]
            object.__setattr__(other, field.name, join(column, sizes))
        return other
    if isinstance(first, str | int | float | bool | None) and all(part == first for part in parts):
        return first
    raise TypeError(f"parts of type {type(first).__name__}")
