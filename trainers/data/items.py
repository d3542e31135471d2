"""A user's data sets, read item by item: into memory where they fit, else when an item is needed."""

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from landscape.memory import free_bytes
from trainers.data.rereading import item, same
from trainers.reference import call

MEMORY_SHARE = 8  # an eighth of the free memory may go into a data set, on which several processes may work


@dataclass(frozen=True)
class Pixels:
    """How stored bytes become inputs: (v / 255 - mean) / std, by channel.

    Attributes:
        mean: One number, or one a channel.
        std: Likewise, > 0.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __call__(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        """Inputs of images (n, c, h, w), on their device."""
        mean, std = (torch.tensor(v, dtype=dtype, device=stored.device).view(-1, 1, 1) for v in (self.mean, self.std))
        return stored.to(dtype).div_(255).sub_(mean).div_(std)


class ItemInputs(Dataset[Tensor]):
    """The inputs of map-style data sets of pairs (x, y), one after the other, read when they are asked for.

    Args:
        sets: Train, a validation set if there is one, and test.
        where: What they are called, for messages.
        y: The targets of all, which each item must have when it is read.
        shape: Of one input, where it is known; None reads the first.
        dtype: Of inputs, where the shape is given.

    Raises:
        ValueError: If an item cannot be read or is not like the first one of its set: when it is asked for.
    """

    def __init__(
        self,
        sets: Sequence[Any],
        where: Sequence[str],
        y: Shaped[Tensor, "n ..."],
        *,
        shape: tuple[int, ...] | None = None,
        dtype: torch.dtype = torch.uint8,
    ) -> None:
        self.sets, self.where, self.y = sets, where, y
        self._labels = None if y.is_floating_point() or y.ndim > 1 else y.tolist()
        self.ends = list(accumulate(len(dataset) for dataset in sets))
        if shape is None:
            first = as_input(pair(sets[0], 0, self.where[0])[0], self.where[0])
            shape, dtype = tuple(first.shape), first.dtype
        self.shape, self.dtype, self.bytes_each = shape, dtype, math.prod(shape) * dtype.itemsize

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, i: int) -> Tensor:
        part = bisect(self.ends, i)
        j, where = i - (self.ends[part - 1] if part else 0), self.where[part]
        x, y = pair(self.sets[part], j, where)
        if not isinstance(x, Tensor) or x.dtype != self.dtype or x.shape != self.shape:
            x = as_input(x, where)
            if tuple(x.shape) != self.shape or x.dtype != self.dtype:
                raise ValueError(
                    f"`dataset` {where}: all inputs must be alike, got {x.dtype} {tuple(x.shape)} in item {j} and "
                    f"{self.dtype} {self.shape} before."
                )
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise ValueError(f"`dataset` {where}: item {j} holds NaN or infinite numbers: leave it out, or fill it in.")
        if self._labels is not None and isinstance(y, int):
            agrees = y == self._labels[i]  # the same, in a tenth of the time
        else:
            agrees = same(y := torch.as_tensor(y).to(self.y.dtype), self.y[i])
        if not agrees:
            raise ValueError(
                f"`dataset` {where}: item {j} has label {torch.as_tensor(y).tolist()}, not {self.y[i].tolist()}."
            )
        return x


def in_memory(sets: Sequence[Any], where: Sequence[str]) -> bool:
    """Whether data sets are read into memory: as their attribute `in_memory` says, or else if they fit easily."""
    needed, said = 0, [bool(dataset.in_memory) for dataset in sets if hasattr(dataset, "in_memory")]
    for dataset, place in zip(sets, where, strict=True):
        if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            return True  # and refused
        if not said and not isinstance(dataset, TensorDataset) and call(f"`dataset` {place}", len, dataset):
            first = item(dataset, 0, place)
            x = first[0] if isinstance(first, tuple | list) and first else None
            needed += len(dataset) * int(getattr(x, "nbytes", 0))
    return all(said) if said else needed <= free_bytes("cpu") // MEMORY_SHARE


def pixels_of(dataset: Any, channels: int, where: str) -> Pixels:
    """How a data set says that its bytes become inputs, by its attributes `mean` and `std`.

    Raises:
        ValueError: If these are not one number, or one a channel, with `std` above 0.
    """
    numbers = []
    for key, usual in (("mean", 0.0), ("std", 1.0)):
        values = getattr(dataset, key, usual)
        try:
            numbers.append(tuple(torch.as_tensor(values, dtype=torch.float64).reshape(-1).tolist()))
        except (TypeError, ValueError, RuntimeError):
            numbers.append(())
        good = len(numbers[-1]) in (1, channels) and all(math.isfinite(v) for v in numbers[-1])
        if not good or (key == "std" and min(numbers[-1]) <= 0):
            raise ValueError(
                f"`dataset` {where}: `{key}` must be one number or one for each of {channels} channels, in units of "
                f"v / 255, with `std` above 0, got {values!r}."
            )
    return Pixels(*numbers)


def require_map_style(dataset: Any, where: str) -> None:
    """Check that a data set has items and a length.

    Raises:
        ValueError: If not, or it is empty.
    """
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        hint = "; give its `dataset`" if hasattr(dataset, "dataset") else ""
        raise ValueError(
            f"`dataset` {where} must be a map-style torch Dataset, with a length and items, "
            f"got {type(dataset).__name__}{hint}."
        )
    if call(f"`dataset` {where}, asked for its length,", len, dataset) == 0:
        raise ValueError(f"`dataset` {where} is empty.")


def pair(dataset: Any, i: int, where: str) -> tuple[Any, Any]:
    """An item (x, y) of a data set.

    Raises:
        ValueError: If it cannot be read or is something else.
    """
    found = item(dataset, i, where)
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise ValueError(f"`dataset` {where} must have items (x, y), got {type(found).__name__}.")
    return found[0], found[1]


def read(dataset: Any, where: str, *, labels: bool) -> tuple[Tensor, Shaped[Tensor, "n ..."]]:
    """All inputs and targets of a data set, in memory; `labels` says whether these must be labels.

    Raises:
        ValueError: If they are no data that can be learned from; the message says why.
    """
    require_map_style(dataset, where)
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        x, y = (t.detach().cpu() for t in dataset.tensors)
    else:
        items = [pair(dataset, i, where) for i in range(len(dataset))]
        try:
            inputs = [torch.as_tensor(a) for a, _ in items]
            y = torch.stack([torch.as_tensor(b) for _, b in items])
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"`dataset` {where}: an item is not a pair (array, label), the labels all alike ({error}); "
                "turn images into tensors with a transform."
            ) from error
        shapes = {tuple(a.shape) for a in inputs}
        if len(shapes) > 1:
            raise ValueError(f"`dataset` {where}: all inputs must have one shape, got {sorted(shapes)[:3]}.")
        x = torch.stack(inputs)
    _require_numbers(x, where, axes=4)
    y = targets_as_stored(y, where, labels=labels)
    if x.is_floating_point() and not bool((finite := torch.isfinite(x).flatten(1).all(1)).all()):
        bad = (~finite).nonzero()[:, 0].tolist()
        raise ValueError(
            f"`dataset` {where}: {len(bad)} of {len(x)} inputs hold NaN or infinite numbers, such as item {bad[0]}: "
            f"leave them out, or fill them in."
        )
    return _stored(x), y


def targets_of(dataset: Any, where: str, *, labels: bool) -> Shaped[Tensor, "n ..."]:
    """The targets alone: the data set's own `targets`, as torchvision's have them, or what all items say when read.

    Raises:
        ValueError: If there is not one an item, or they are no labels where they must be.
    """
    require_map_style(dataset, where)
    y = getattr(dataset, "targets", None)
    if y is None:
        y = [pair(dataset, i, where)[1] for i in range(len(dataset))]
    try:
        y = torch.stack([torch.as_tensor(b) for b in y])
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`dataset` {where}: its labels are not all alike ({error}).") from error
    if len(y) != len(dataset):
        raise ValueError(f"`dataset` {where}: `targets` has {len(y)} labels for {len(dataset)} items.")
    return targets_as_stored(y, where, labels=labels)


def targets_as_stored(y: Tensor, where: str, *, labels: bool) -> Tensor:
    """Targets as they are kept, int64 or float32.

    Raises:
        ValueError: If they must be labels, and are not whole numbers from 0, one an example.
    """
    if labels and (y.is_floating_point() or y.is_complex() or y.ndim != 1 or int(y.min()) < 0):
        raise ValueError(
            f"`dataset` {where}: labels must be whole numbers from 0, one an example, got {y.dtype} of shape "
            f"{tuple(y.shape[1:])} per example; numbers are for `task` 'regression', several marks for 'multilabel'."
        )
    return y.to(torch.float32 if y.is_floating_point() else torch.int64)


def as_input(x: Any, where: str) -> Tensor:
    """One input as it is stored.

    Raises:
        ValueError: If it is no tensor or array of numbers.
    """
    try:
        x = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"`dataset` {where}: an item is not a pair (array, label) ({error}); turn images into tensors with a "
            "transform."
        ) from error
    _require_numbers(x, where, axes=3)
    return _stored(x)


def _require_numbers(x: Tensor, where: str, *, axes: int) -> None:
    pixels = x.dtype == torch.uint8 and x.ndim == axes
    if (x.dtype in (torch.uint8, torch.bool) and not pixels) or x.is_complex():
        raise ValueError(
            f"`dataset` {where}: inputs are {x.dtype}; scale them to floating point first, or give images (c, h, w) of "
            "torch.uint8."
        )


def _stored(x: Tensor) -> Tensor:
    return x if x.dtype == torch.uint8 else x.to(torch.float32 if x.is_floating_point() else torch.int64)
