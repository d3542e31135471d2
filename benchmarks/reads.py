"""How often a step waits for a number from its device, counted on the CPU through torch's dispatch.

On a GPU each such read stops the device until the number has arrived. What counts: a number of a tensor (`float(t)`,
`bool(t)`, `t.item()`), a comparison of tensors that gives one, a tensor as a list or as an array of numpy, and
operators whose result has as many entries as there are hits, since the host must know how many. Draws of the host's
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
        self.count += func.overloadpacket in READS
        return func(*args, **(kwargs or {}))


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
