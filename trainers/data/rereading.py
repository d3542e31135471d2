"""Whether data are the same when they are read again: what is measured later must be what was trained on."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from trainers.randomness import seeded
from trainers.reference import call

READ_AGAIN = 64  # items of each data set that are read twice
PARTS = {1: ("all",), 2: ("train", "test"), 3: ("train", "validation", "test")}  # by the number of sets


def check_repeats(sets: Sequence[Any], again: Callable[[], Sequence[Any]], name: str) -> None:
    """Read a few items of a user's data sets twice, and once more from data sets that are made anew.

    Every time the global random states are others, and they are put back afterwards.

    Args:
        sets: Train, a validation set if there is one, and test.
        again: Makes all anew.
        name: Of the data, for messages.

    Raises:
        ValueError: If an item differs, naming it and the way out.
    """
    places = [_places(len(dataset)) for dataset in sets]
    with other_randomness(1):
        first = _items(sets, places, name)
    with other_randomness(2):
        for part, dataset, index, before in zip(PARTS[len(sets)], sets, places, first, strict=True):
            for i, one in zip(index, before, strict=True):
                if not same(one, item(dataset, i, f"{name!r}, {part}")):
                    raise ValueError(
                        f"`dataset` {name!r}, {part}: item {i} differs when it is read again, as with random "
                        f"transforms (augmentation): measures must see what was trained on. Leave them out of the "
                        f"data set, or let the index alone decide what is random in an item."
                    )
    with other_randomness(3):
        anew = again()
        if [len(dataset) for dataset in anew] != [len(dataset) for dataset in sets] or not same(
            first, _items(anew, places, name)
        ):
            raise ValueError(
                f"`dataset` {name!r} gives other data when it is called again: measures must see what was trained on. "
                f"Let what is random in it be decided by its keyword argument `seed`, such as "
                f"torch.Generator().manual_seed(seed)."
            )


def item(dataset: Any, i: int, where: str) -> Any:
    """An item of a user's data set.

    Raises:
        ValueError: If it cannot be read, naming it.
    """
    try:
        return call(f"`dataset` {where}, item {i} of {len(dataset)},", dataset.__getitem__, i)
    except ValueError as error:
        if str(error.__cause__).startswith("`dataset`"):  # it names the item already
            raise error.__cause__ from None  # type: ignore[misc]
        raise


@contextmanager
def other_randomness(seed: int) -> Iterator[None]:
    """The global random states of torch, numpy and Python as seeded with `seed`; the earlier ones are back on exit."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - users draw from the global one
    try:
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        with seeded(seed):
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def same(a: Any, b: Any) -> bool:
    """Whether two items hold the same; NaN is the same as NaN, and what cannot be compared counts as the same."""
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    try:
        x, y = torch.as_tensor(a), torch.as_tensor(b)
    except (TypeError, ValueError, RuntimeError):
        return True  # no data; the reader says so
    return x.shape == y.shape and x.dtype == y.dtype and bool(torch.eq(x, y).logical_or((x != x) & (y != y)).all())


def _places(n: int) -> list[int]:
    """Items spread over a data set, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, n - 1, min(n, READ_AGAIN)).tolist()})


def _items(sets: Sequence[Any], places: Sequence[Sequence[int]], name: str) -> list[list[Any]]:
    return [
        [item(dataset, i, f"{name!r}, {part}") for i in index]
        for part, dataset, index in zip(PARTS[len(sets)], sets, places, strict=True)
    ]
