"""Batches of data in every form: pairs (inputs, targets), dicts and objects, in lists, loaders and splits."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.utils import rnn
from torch.utils.data import DataLoader, Dataset, IterableDataset, SequentialSampler, TensorDataset, default_collate

from landscape.calling import Signature
from landscape.examples import (
    Batch,
    batch_size,
    by_example,
    can_be_cut,
    is_object,
    joined,
    require_counted,
    slice_batch,
    split_batches,
    take,
)
from landscape.items import marked
from landscape.loaded import Batches, LoadedBatches
from landscape.trees import cut_off, map_nodes, map_tensors, tensors

__all__ = [
    "Batch",
    "Batches",
    "LoadedBatches",
    "as_batches",
    "batch_size",
    "by_example",
    "can_be_cut",
    "cut_off",
    "joined",
    "map_tensors",
    "read_batches",
    "require_counted",
    "slice_batch",
    "split_batches",
    "take",
    "tensors",
]

FORMS = "a pair (inputs, targets), a dict, a list of such batches or a DataLoader"


def as_batches(data: Any, model: torch.nn.Module | None = None) -> Batches:
    """Turn data into a sequence of pairs (inputs, targets).

    A pair, a dict, an object and a list of batches stay in memory as they are. What can be gone through again, such as
    a DataLoader, is read anew in every pass and never kept, see `LoadedBatches`; the tensors of a `TensorDataset` that
    one reads in their order are cut instead. What can be gone through once only, such as a generator, is kept.

    A dict, a dataclass or a batch of graphs is its own target: it is passed to the model, a dict by keyword, and to the
    loss as it is. Mappings of other types become dicts. Several inputs make a tuple; a list is one input, whose items
    may be the examples, see `landscape.items.marked`.

    Args:
        data: A pair, a dict, an object, a list of such batches, a DataLoader, or an object with a method `batches` that
            gives one of these, as the splits of `trainers` have.
        model: What takes the inputs, to tell several inputs from a list of examples.

    Raises:
        ValueError: If it has no such form.
    """
    data = _unsplit(data)
    if isinstance(data, LoadedBatches):
        return data
    if _is_batch(data) or isinstance(data, list | tuple | Iterator):
        return list(read_batches(data, model))
    batches = _opened(data)
    if isinstance(batches, list):
        return list(read_batches(batches, model))
    loader = _with_workers_of_its_own(batches)
    return LoadedBatches(partial(read_batches, loader, model), generators=_generators(batches))


def _with_workers_of_its_own(loader: Any) -> Any:
    """A loader whose workers do not live on between passes, since theirs would go on with other random numbers."""
    if not getattr(loader, "persistent_workers", False):
        return loader
    fresh = copy.copy(loader)
    vars(fresh)["persistent_workers"] = False  # a DataLoader lets nobody set it
    return fresh


def _generators(loader: Any) -> list[Generator]:
    """A DataLoader's own, and those of its samplers."""
    sampler, batched = getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
    holders = (loader, sampler, batched, getattr(batched, "sampler", None))
    found = [generator for h in holders if isinstance(generator := getattr(h, "generator", None), Generator)]
    return list({id(generator): generator for generator in found}.values())


def read_batches(data: Any, model: torch.nn.Module | None = None) -> Iterator[Batch]:
    """What `as_batches` gives, one batch at a time."""
    takes = None if model is None else Signature.of(model)
    data = _unsplit(data)
    for batch in [data] if _is_batch(data) else _opened(data):
        pair = _pair(batch)
        yield pair if takes is None or pair[0] is pair[1] else marked(pair, takes.positional, takes.required)


def _unsplit(data: Any) -> Any:
    return data.batches() if callable(getattr(data, "batches", None)) else data


def _is_batch(data: Any) -> bool:
    """Whether data is one batch, and not several."""
    if isinstance(data, tuple) and len(data) == 2:
        return not all(_may_be_batch(part) for part in data)
    return isinstance(data, Mapping) or is_object(data)


def _may_be_batch(part: Any) -> bool:
    if isinstance(part, list | tuple) and not isinstance(part, rnn.PackedSequence):
        return len(part) == 2 and not all(isinstance(item, Mapping) for item in part)
    return isinstance(part, Mapping)


def _opened(data: Any) -> Iterable[Any]:
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset) and type(data).__module__ != __name__:
        raise ValueError(
            f"`data` must be {FORMS}, got the data set {type(data).__name__}, whose items are single examples: use "
            "DataLoader(dataset, batch_size=...)."
        )
    if isinstance(data, Tensor | str | bytes | np.ndarray) or not isinstance(data, Iterable):
        raise ValueError(f"`data` must be {FORMS}, got {type(data).__name__}{_hint(data)}.")
    return _cut_tensors(data) if isinstance(data, DataLoader) else data


def _cut_tensors(loader: Any) -> Any:
    """The batches of a loader that goes through tensors in their order, cut out of these; else the loader."""
    data, size = loader.dataset, loader.batch_size
    plain = type(loader) is DataLoader and loader.collate_fn is default_collate and size is not None
    if not (plain and type(data) is TensorDataset and type(loader.sampler) is SequentialSampler):
        return loader
    if not all(t.is_contiguous() for t in data.tensors):  # which stacking single examples would make them
        return loader
    stop = len(data) - len(data) % size if loader.drop_last else len(data)
    return [[t[i : i + size] for t in data.tensors] for i in range(0, stop, size)]


def _hint(part: Any) -> str:
    if hasattr(part, "__array__") and not isinstance(part, Tensor):
        return ": use torch.from_numpy, in the model's dtype"
    return " (files are read by the caller)" if isinstance(part, str | bytes) or hasattr(part, "__fspath__") else ""


def _pair(batch: Any) -> Batch:
    if isinstance(batch, Mapping):  # a tokenizer's batches are mappings, but no dicts
        plain = _plain(dict(batch))
        return plain, plain
    if is_object(batch):
        return batch, batch
    if isinstance(batch, list | tuple) and len(batch) == 2 and not isinstance(batch[0], str):
        return _plain(batch[0]), _plain(batch[1])
    what = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, list | tuple) else type(batch).__name__
    way = "several inputs make a tuple, ((a, b), targets)"
    if isinstance(batch, list | tuple) and len(batch) > 2:
        way += ": say which is what by [((a, b), y) for a, b, y in loader]"
    raise ValueError(
        f"`data` has a batch that is neither a pair (inputs, targets) nor a dict, but a {what}{_hint(batch)}: {way}."
    )


def _plain(tree: Any) -> Any:
    """Inputs or targets with dicts in the place of other mappings.

    Raises:
        ValueError: If they hold an array of numbers that is no tensor.
    """

    def one(part: Any) -> Any:
        if isinstance(part, Mapping) and not isinstance(part, dict):
            return _plain(dict(part))
        if isinstance(part, np.ndarray) and part.dtype.kind in "fiubc":
            raise ValueError(f"`data` has a NumPy array of shape {part.shape}{_hint(part)}.")
        return part

    return tree if isinstance(tree, Tensor) else map_nodes(one, tree)
