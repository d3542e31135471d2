"""Several processes: who shares a perturbation, and the one average of gradients a step."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from landscape.params import Params

Sharing = Literal["chunk", "batch", "group", "global"]


@dataclass
class Ranks:
    """The processes that train one model.

    Attributes:
        model: The model; inside `quiet()` a DistributedDataParallel does not synchronise by itself.
        group: All ranks; None is torch's default group where there is one.
        circle: The ranks that share a perturbation; None where each has its own.
    """

    model: nn.Module
    group: Any = None
    circle: Any = None
    size: int = field(default=1, init=False)
    rank: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if dist.is_available() and dist.is_initialized():
            self.size, self.rank = dist.get_world_size(self.group), dist.get_rank(self.group)

    @property
    def several(self) -> bool:
        """Whether there is more than one process."""
        return self.size > 1

    @property
    def circle_size(self) -> int:
        """Number of ranks that share a perturbation."""
        return 1 if self.circle is None else dist.get_world_size(self.circle)

    def quiet(self) -> AbstractContextManager[None]:
        """A block in which DistributedDataParallel leaves gradients alone: forward and backward must both be inside."""
        if isinstance(self.model, DistributedDataParallel):
            return _no_sync(self.model)
        return nullcontext()

    def average(self, tensors: list[Tensor], weight: float, *, circle: bool = False) -> float:
        """Replace tensors by their averages over ranks, weighted by `weight`, in one all-reduce; returns Σ weights."""
        group, size = (self.circle, dist.get_world_size(self.circle)) if circle else (self.group, self.size)
        if size == 1 or not self.several:
            return weight
        first = tensors[0] if tensors else torch.zeros(())
        flat = torch.cat([t.reshape(-1) for t in tensors] + [first.new_ones(1)])
        flat *= weight
        dist.all_reduce(flat, group=group)
        total = float(flat[-1])
        flat /= total if total else 1.0
        pieces = flat[:-1].split([t.numel() for t in tensors])
        torch._foreach_copy_(tensors, [piece.view_as(t) for piece, t in zip(pieces, tensors, strict=True)])
        return total

    def mean(self, number: float, weight: float) -> float:
        """The weighted mean of a number over ranks."""
        if not self.several:
            return number
        held = torch.tensor([number], dtype=torch.float64, device=self._device())
        self.average([held], weight)
        return float(held)

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def buffers(self) -> None:
        """Replace floating-point buffers, such as running statistics, by their means over ranks."""
        held = [b for b in self.model.buffers() if b.is_floating_point()]
        if self.several and held:
            with torch.no_grad():
                self.average(held, 1.0)


@contextmanager
def _no_sync(model: DistributedDataParallel) -> Iterator[None]:
    with model.no_sync():
        yield


def circle_of(sharing: Sharing, group: Any, group_size: int | None) -> Any:
    """The process group that shares a perturbation: none, blocks of `group_size` consecutive ranks, or all.

    Raises:
        ValueError: If `group_size` is missing, or does not divide the number of ranks.
    """
    if sharing in ("chunk", "batch") or not (dist.is_available() and dist.is_initialized()):
        return None
    if sharing == "global":
        return dist.group.WORLD if group is None else group
    size = dist.get_world_size(group)
    if group_size is None or group_size < 1 or size % group_size:
        raise ValueError(
            f"`group_size` must divide the number of ranks, {size}, for `sharing` 'group', got {group_size!r}."
        )
    blocks = [list(range(i, i + group_size)) for i in range(0, size, group_size)]
    mine, _ = dist.new_subgroups_by_enumeration(blocks)
    return mine


def zeros_where_missing(grads: Params, parameters: dict[str, nn.Parameter]) -> Params:
    """All parameters' gradients, zero where a rank has none: an average needs the same tensors on every rank."""
    return {n: grads[n] if n in grads else torch.zeros_like(p) for n, p in parameters.items()}
