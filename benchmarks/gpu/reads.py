"""Numbers that are read back from a device: each makes the processor wait for all that it has asked for."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.place import Place

aten: Any = torch.ops.aten
READING = {  # operations that hand a number, or a size that data decide, to the processor
    aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default, aten.nonzero.default,
    aten.masked_select.default,
}  # fmt: skip


class Reads(TorchDispatchMode):
    """Counts what would be read back from a device, on a CPU as on a GPU; on a GPU copies to the CPU count too."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = args[0] if args and isinstance(args[0], Tensor) else None
        copied = isinstance(result, Tensor) and given is not None and result.device.type == "cpu" != given.device.type
        masked = function is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        self.count += function in READING or copied or masked
        return result


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
    with Reads() as reads:
        for _ in range(steps):
            step()
    with waits(place) as waited:
        for _ in range(steps if place.cuda else 0):
            step()
    return reads.count / steps, waited[0] / steps if waited else None
