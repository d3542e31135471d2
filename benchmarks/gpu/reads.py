"""Numbers that a step reads back, by torch's dispatch, and how often it waited for the device, by the driver."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from benchmarks.gpu.place import Place
from benchmarks.reads import counted


@contextmanager
def waits(place: Place) -> Iterator[list[int]]:
    """Counts how often the driver made the processor wait in a block; CUDA only, else the list stays empty."""
    counts: list[int] = []
    if not place.cuda:
        yield counts
        return
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield counts
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    counts.append(sum("synchroniz" in str(w.message) for w in told))


def read_in(step: Callable[[], object], place: Place, *, steps: int = 10) -> tuple[float, float | None]:
    """Numbers read back a step, and how often a step waited for the device (None without CUDA)."""
    for _ in range(2):
        step()
    with counted() as reads:
        for _ in range(steps):
            step()
    with waits(place) as waited:
        for _ in range(steps if place.cuda else 0):
            step()
    return reads.count / steps, waited[0] / steps if waited else None
