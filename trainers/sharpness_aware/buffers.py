"""Buffers that a forward pass updates, of whatever class: kept as they are while further passes are made."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.loss import _Loss

_RUNNING = frozenset({"running_mean", "running_var", "num_batches_tracked"})
_TORCHS = (_BatchNorm.forward, SyncBatchNorm.forward, _InstanceNorm.forward)


def normalises_as_torch(module: nn.Module) -> bool:
    """Whether running statistics can be switched off: torch's own normalisation, or a class with its `forward`."""
    return isinstance(module, _NormBase) and type(module).forward in _TORCHS


@dataclass
class _Kept:
    """The buffers of one module as they were: the tensors themselves, and copies of those that can be written to."""

    place: dict[str, Tensor | None]
    apart: frozenset[str]  # names that are not looked at
    held: dict[str, Tensor | None]
    copies: dict[str, Tensor]


class Buffers:
    """The buffers of modules, but for running statistics that can be switched off (`landscape.frozen_statistics`).

    They are copied and written back, since nothing else holds for every class: they may be counted up in place, be
    replaced by other tensors, change their shape, or come into being inside a pass.

    Args:
        modules: The modules.
        everything: Also the running statistics that can be switched off.
    """

    def __init__(self, modules: Iterable[nn.Module], *, everything: bool = False) -> None:
        self._whole: list[dict[str, Tensor | None]] = []  # of modules all of whose buffers count
        self._running: list[dict[str, Tensor | None]] = []  # of modules whose statistics are switched off
        for module in modules:
            if isinstance(module, _Loss):
                continue  # their weights are constants
            (self._running if normalises_as_torch(module) and not everything else self._whole).append(module._buffers)

    def __bool__(self) -> bool:
        return any(self._whole) or any(len(place) > len(_RUNNING) for place in self._running)

    @torch.no_grad()
    def take(self) -> list[_Kept]:
        """The buffers as they are, for `put_back`."""
        kept = []
        copies: dict[int, Tensor] = {}  # a buffer may be in several places
        for places, apart in ((self._whole, frozenset[str]()), (self._running, _RUNNING)):
            for place in places:
                held = {name: b for name, b in place.items() if name not in apart}
                written = {name: b for name, b in held.items() if b is not None and _writable(b)}
                for b in written.values():
                    if id(b) not in copies:
                        copies[id(b)] = b.detach().clone()
                kept.append(_Kept(place, apart, held, {name: copies[id(b)] for name, b in written.items()}))
        return kept

    @contextmanager
    def still(self) -> Iterator[None]:
        """A block after which the buffers are as they were before."""
        kept = self.take()
        try:
            yield
        finally:
            put_back(kept)


@torch.no_grad()
def put_back(kept: list[_Kept]) -> None:
    """Make buffers as they were when they were taken: the same tensors, with the same values."""
    to: list[Tensor] = []
    values: list[Tensor] = []
    for k in kept:
        for name in [name for name in k.place if name not in k.held and name not in k.apart]:
            del k.place[name]
        k.place.update(k.held)
        for name, value in k.copies.items():
            b: Any = k.held[name]
            if b.shape != value.shape:
                b.data = value.clone()
            else:
                to.append(b)
                values.append(value)
    if to:
        torch._foreach_copy_(to, values)


def changed(kept: list[_Kept]) -> bool:
    """Whether a buffer differs from what was taken."""
    return any(
        {name: id(b) for name, b in k.place.items() if name not in k.apart} != {n: id(b) for n, b in k.held.items()}
        or any(not torch.equal(k.held[name], value) for name, value in k.copies.items())  # type: ignore[arg-type]
        for k in kept
    )


def _writable(b: Tensor) -> bool:
    """Whether a buffer can be written to in place at all: one that was expanded cannot."""
    return b.layout != torch.strided or all(step or n <= 1 for step, n in zip(b.stride(), b.shape, strict=True))
