"""Batches that are read anew in every pass over them, as a DataLoader gives them."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from landscape.examples import Batch, Places, batch_size, parts_of, require_counted
from landscape.memory import require
from landscape.trees import tensors

MARKED = 2**14  # entries of a tensor that are compared between passes
Weight = Callable[[Any, Any], float]


class LoadedBatches:
    """Batches that are read anew in every pass, and never kept.

    All passes see the same random numbers, so that a loader that shuffles or augments gives the same batches in each:
    the risk is that of one draw. The caller's random states (torch's, NumPy's, Python's, the loader's own) stay what
    they were. The first pass notes the size of each batch, what it counts for and a mark of its content; every later
    one must find the same. Single batches are found from the start: all but the first few take long.

    Args:
        read: Begins a pass.
        sizes: Number of examples in each batch, where that is known: nothing is marked then before there are weights.
        bytes: Of all tensors, likewise.
        generators: Where reading draws its random numbers beside the global states; None means that it draws none.

    Raises:
        ValueError: In a pass, if it finds other batches than the first did.
    """

    def __init__(
        self,
        read: Callable[[], Iterable[Batch]],
        *,
        sizes: list[int] | None = None,
        bytes: int = 0,
        generators: Sequence[Generator] | None = (),
    ) -> None:
        self._read = read
        self._sources = None if generators is None else _Sources(generators)
        self._start = None if self._sources is None else self._sources.seeded()
        self._sizes, self.bytes = sizes, bytes
        self._marks: list[int] | None = None
        self._weights: dict[Weight, list[float]] = {}

    @property
    def sizes(self) -> list[int]:
        """Number of examples in each batch."""
        self.note()
        assert self._sizes is not None
        return self._sizes

    def weights(self, weight: Weight) -> list[float]:
        """What each batch counts for by a function of (inputs, targets)."""
        self.note(weight)
        return self._weights[weight]

    def note(self, weight: Weight | None = None) -> None:
        """Note what is told of the batches, with what they count for by `weight`; in one pass, unless it is known.

        Raises:
            ValueError: If there is no `weight`, and several batches do not tell how many examples they have.
        """
        if self._sizes is not None and (weight is None or weight in self._weights):
            return
        sizes, marks, weights, held = list[int](), list[int](), list[float](), 0
        for batch in self if self._marks is not None else self._pass():
            if weight is None and sizes:
                require_counted([batch, batch])
            sizes.append(batch_size(batch))
            marks.append(_mark(batch))
            held += sum(t.numel() * t.element_size() for t in _tensors(batch))
            if weight is not None:
                weights.append(float(weight(*batch)))
        self._sizes, self._marks, self.bytes = sizes, marks, held
        if weight is not None:
            self._weights[weight] = weights

    def cut(self, where: Sequence[Places]) -> "LoadedBatches":
        """The same data in smaller batches: for each batch, the parts of it at these places."""
        sizes = [b - a for places in where for a, b in places]
        return LoadedBatches(partial(self._parts, where), sizes=sizes, bytes=self.bytes, generators=None)

    def _parts(self, where: Sequence[Places]) -> Iterator[Batch]:
        for batch, n, places in zip(self, self.sizes, where, strict=True):
            yield from parts_of(batch, n, places)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, i: int) -> Batch:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        return next(islice(self, i % len(self), None))

    def __iter__(self) -> Iterator[Batch]:
        if self._marks is None:
            yield from self._pass()
            return
        i = -1
        for i, batch in enumerate(self._pass()):
            if i >= len(self._marks) or _mark(batch) != self._marks[i]:
                raise _other(i)
            yield batch
        if i + 1 < len(self._marks):
            raise _other(i + 1)

    def _pass(self) -> Iterator[Batch]:
        if self._sources is None:
            yield from self._read()
            return
        own, batches, end = self._start, None, object()
        while True:
            callers = self._sources.states()
            self._sources.set(own)
            try:
                batches = iter(self._read()) if batches is None else batches
                batch: Any = next(batches, end)
            finally:
                own = self._sources.states()
                self._sources.set(callers)
            if batch is end:
                return
            yield batch


class _Sources:
    """Where random numbers come from while data are read: the global states, and a loader's own generators."""

    def __init__(self, generators: Sequence[Generator]) -> None:
        self.generators = generators

    def states(self) -> tuple[Any, ...]:
        """As they are."""
        own = [g.get_state() for g in self.generators]
        return torch.get_rng_state(), np.random.get_state(), random.getstate(), *own  # noqa: NPY002 - the user's

    def set(self, states: Any) -> None:
        """Put them back."""
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])
        for generator, state in zip(self.generators, states[3:], strict=True):
            generator.set_state(state)

    def seeded(self) -> tuple[Any, ...]:
        """The global ones from seed 0, a loader's own as they are now."""
        _, _, _, *own = self.states()
        numpy, python = np.random.RandomState(0), random.Random(0)
        return Generator().manual_seed(0).get_state(), numpy.get_state(), python.getstate(), *own


Batches = Sequence[Batch] | LoadedBatches


def in_memory(batches: Batches, what: str) -> Sequence[Batch]:
    """All batches at once.

    Args:
        batches: Of a risk.
        what: What needs them, for the message.

    Raises:
        MemoryError: If they are loaded, and estimated not to fit when they are put together.
    """
    if not isinstance(batches, LoadedBatches):
        return batches
    batches.sizes  # noqa: B018 (which notes how large they are)
    require(
        2 * batches.bytes, "cpu", what=f"{what}, which holds all examples in memory,", instead="take fewer examples"
    )
    return list(batches)


def cut_batches(batches: Batches, sizes: Sequence[int], where: Sequence[Places]) -> Batches:
    """The parts of batches of these sizes at these places; a list of them, unless they are read anew in every pass."""
    if isinstance(batches, LoadedBatches):
        return batches.cut(where)
    return [part for batch, n, places in zip(batches, sizes, where, strict=True) for part in parts_of(batch, n, places)]


def _tensors(batch: Batch) -> Iterator[Tensor]:
    return tensors(batch[0] if batch[0] is batch[1] else batch)


def _mark(batch: Batch) -> int:
    """A number that other content would hardly give."""
    seen: list[Any] = []
    for t in _tensors(batch):
        seen.append((tuple(t.shape) if t.layout == torch.strided and not t.is_nested else None, t.dtype))
        if seen[-1][0] is not None and t.numel():
            some = t.detach().reshape(-1)[:: max(1, t.numel() // MARKED)].contiguous()
            seen.append(some.view(torch.uint8).cpu().numpy().tobytes())
    return hash(tuple(seen))


def _other(i: int) -> ValueError:
    return ValueError(
        f"`data` gave other batches when it was gone through again, from batch {i} on, though all passes see the same "
        "random numbers: leave what changes it out, or pass list(data), which keeps the batches of one pass."
    )
