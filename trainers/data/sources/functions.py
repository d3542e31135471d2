"""Data sets that a user's function returns."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from trainers.data.graphs import as_graph, of_nodes, packed
from trainers.data.items import ItemInputs, in_memory, pixels_of, read, targets_of
from trainers.data.rereading import PARTS, check_repeats
from trainers.data.sources.source import Shades, Source, bounds
from trainers.data.splits import DataBundle, Split
from trainers.reference import call


def from_function(
    function: Callable[..., Any],
    name: str,
    *,
    train_size: int | None,
    validation_size: int,
    seed: int,
    labels: bool = True,
) -> Source | DataBundle:
    """Read the data that a user's function returns.

    The function is called with those of the keyword arguments `train_size` (here the size of train and validation
    together, or None for all) and `seed` that it accepts, and returns two map-style `torch.utils.data.Dataset`s of (x,
    y), (train, test), or three, (train, validation, test): x an array or tensor of one shape, floating point, int64 for
    tokens or uint8 for images (c, h, w); y an integer label from 0. A `Split` may stand for a data set; one alone is
    split by the seed. A `DataBundle` is taken as it is, and graphs as `trainers.data.graphs.as_graph` reads them: one,
    whose nodes are the examples, or a list of several, each an example. The number of classes is the largest label plus
    one, or the length of the train set's `classes` where that is larger. Inputs of shape (c, h, w) count as images.
    Without `labels`, y is whatever the task takes, in tensors of one shape; in place of the number of classes stands
    the number of entries of one target.

    All are read into memory if that takes an eighth of what is free, or their attribute `in_memory` is True; otherwise
    items are read whenever they are needed, and a data set's `targets`, as torchvision's have them, save a first pass
    over its items for the labels. Images of uint8 stay what they are until they are used, as (v / 255 - mean) / std
    with the train set's `mean` and `std`, one number or one a channel; 0 and 1 where it has none.

    Raises:
        ValueError: If what it returns is something else, or other data when it is called or read again; the message
            says what.
    """
    wanted = {"train_size": None if train_size is None else train_size + validation_size, "seed": seed}
    parameters = inspect.signature(function).parameters
    everything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    arguments = {key: value for key, value in wanted.items() if key in parameters or everything}

    def sets_anew() -> list[Any]:
        return _sets(call(f"`dataset` {name!r}", function, **arguments), name)

    returned = call(f"`dataset` {name!r}", function, **arguments)
    if (source := _of_graphs(returned, name, tuple(arguments))) is not None:
        return source
    sets = _sets(returned, name)
    known = (function, *arguments.items())

    def check() -> None:
        if known not in _repeatable:
            check_repeats(sets, sets_anew, name)
            _repeatable.add(known)

    if isinstance(returned, DataBundle):
        check()
        return returned
    where = [f"{name!r}, {part}" for part in PARTS[len(sets)]]
    held = in_memory(sets, where)
    if held:
        read_in = [read(dataset, place, labels=labels) for dataset, place in zip(sets, where, strict=True)]
        first = read_in[0][0]
        for (x, _), part in zip(read_in[1:], PARTS[len(sets)][1:], strict=True):
            if x.shape[1:] != first.shape[1:] or x.dtype != first.dtype:
                raise ValueError(
                    f"`dataset` {name!r}: train and {part} inputs must be alike, got {first.dtype} "
                    f"{tuple(first.shape[1:])} and {x.dtype} {tuple(x.shape[1:])}."
                )
        targets = [y for _, y in read_in]
    else:
        targets = [targets_of(dataset, place, labels=labels) for dataset, place in zip(sets, where, strict=True)]
    check()
    every, named = torch.cat(targets), getattr(sets[0], "classes", ())
    inputs = torch.cat([x for x, _ in read_in]) if held else ItemInputs(sets, where, every)
    images = inputs.dtype in (torch.float32, torch.uint8) and len(inputs[0].shape) == 3
    pixels = pixels_of(sets[0], inputs[0].shape[0], where[0]) if inputs.dtype == torch.uint8 else None
    return Source(
        inputs=inputs,
        y=every,
        classes=max(int(every.max()) + 1, len(named) if hasattr(named, "__len__") else 0)
        if labels
        else max(1, every[0].numel()),
        **bounds(dict(zip(("train",) if len(sets) == 1 else PARTS[len(sets)], map(len, targets), strict=True))),
        images=images,
        shades=Shades.of(first) if held and images and pixels is None else None,
        pixels=pixels,
        names=tuple(map(str, named)) if isinstance(named, list | tuple) else (),
    )


_repeatable: set[Any] = set()  # functions, with their arguments, that gave the same data twice in this process


class _Pairs(Dataset[tuple[Tensor, Tensor]]):
    """A split as a data set of pairs."""

    in_memory = False

    def __init__(self, split: Split) -> None:
        self.split, self.targets = split, split.y
        if split.pixels is not None:
            self.mean, self.std = split.pixels.mean, split.pixels.std

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        inputs = self.split.inputs
        return inputs[i if isinstance(inputs, Tensor) else int(self.split.index[i])], self.split.y[i]


def _sets(result: Any, name: str) -> list[Any]:
    """The data sets in what a user's function returned."""
    if isinstance(result, DataBundle):
        return [_Pairs(split) for split in (result.train, result.validation, result.test) if len(split)]
    parts = [result] if isinstance(result, Split) else result
    if not isinstance(parts, tuple | list) or (len(parts) not in (2, 3) and not isinstance(result, Split)):
        raise ValueError(
            f"`dataset` {name!r} must return two data sets, (train, test), or three, (train, validation, test), a "
            f"`Split` or a `DataBundle`, got {type(result).__name__}"
            + (f" of length {len(result)}." if isinstance(result, tuple | list) else ".")
        )
    return [_as_set(part, name) for part in parts]


def _of_graphs(returned: Any, name: str, arguments: tuple[str, ...]) -> Source | None:
    """Examples that are the nodes of one graph, or graphs in a list; None where something else was returned."""
    where = f"`dataset` {name!r}"
    one = as_graph(returned, where)
    several = [as_graph(part, f"{where}, {i}") for i, part in enumerate(returned)] if isinstance(returned, list) else []
    many = [graph for graph in several if graph is not None]
    if one is None and (not many or len(many) < len(several)):
        return None
    if arguments:
        raise ValueError(
            f"{where} returns graphs, which are split here, by their masks or by the seed: let it take no "
            f"`{arguments[0]}`."
        )
    return of_nodes(one, where) if one is not None else packed(many, where)


def _as_set(part: Any, name: str) -> Any:
    if not isinstance(part, Split):
        return part
    if bool(part.noisy.any()):
        raise ValueError(
            f"`dataset` {name!r}: a split with noisy labels was returned: return a `DataBundle` instead, which is "
            f"taken as it is."
        )
    if not isinstance(part.inputs, Tensor):
        return _Pairs(part)
    found = TensorDataset(part.inputs, part.y)
    if part.pixels is not None:
        found.mean, found.std = part.pixels.mean, part.pixels.std  # type: ignore[attr-defined]
    return found
