"""How often a step waits for a number from its device, counted on the CPU through torch's dispatch.

On a GPU each such read stops the device until the number has arrived. What counts: a number of a tensor (`float(t)`,
`bool(t)`, `t.item()`), a comparison of tensors that gives one, a tensor as a list or as an array of numpy, and
operators whose result has as many entries as there are hits, since the host must know how many; and a copy from a
device to the CPU. Draws of the host's
own, from a generator on the CPU, count too where they are read this way.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select, aten._unique2}
AS_A_WHOLE = {torch.Tensor.tolist, torch.Tensor.numpy}


class Reads(TorchDispatchMode):
    """Counts reads inside its block."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        self.count += packet in READS or (packet is aten.index and _masked(args[1])) or _copied(args, result)
        return result


def _masked(indices: Any) -> bool:
    """Whether an index chooses as many entries as a mask has true ones."""
    return any(i is not None and i.dtype == torch.bool for i in indices)


def _copied(args: Any, result: Any) -> bool:
    """Whether a tensor went from a device to the CPU."""
    given = args[0] if args and isinstance(args[0], torch.Tensor) else None
    return isinstance(result, torch.Tensor) and given is not None and result.device.type == "cpu" != given.device.type


class _Whole(TorchFunctionMode):
    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads.count += func in AS_A_WHOLE
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Reads]:
    """A block whose reads are counted."""
    with Reads() as reads, _Whole(reads):
        yield reads
