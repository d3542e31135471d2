"""Several processes: who shares a perturbation, whose noise is whose, and the one average of gradients a step."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from landscape.batchnorm import tracking_modules
from landscape.params import Params
from trainers.randomness import derive
from trainers.sharpness_aware.gates import _mixed

Sharing = Literal["chunk", "batch", "group", "global"]


@dataclass
class Ranks:
    """The processes that train one model.

    Attributes:
        model: The model; every DistributedDataParallel in it stays silent inside `quiet()`.
        group: All ranks; None is torch's default group where there is one.
        circle: The ranks that share a perturbation; None where each has its own.
        alone: Average nothing: the ranks' gradients agree already, or are not to be averaged.
    """

    model: nn.Module
    group: Any = None
    circle: Any = None
    alone: bool = False
    size: int = field(default=1, init=False)
    rank: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if dist.is_available() and dist.is_initialized():
            self.size, self.rank = dist.get_world_size(self.group), dist.get_rank(self.group)
            if self.rank < 0:
                raise ValueError("`group` must hold this process's rank.")
        self._wrappers: list[DistributedDataParallel] = []
        for module in self.model.modules():
            if isinstance(module, DistributedDataParallel):
                self.watch(module)

    def watch(self, wrapper: DistributedDataParallel) -> None:
        """Keep one more DistributedDataParallel silent inside `quiet()`.

        Raises:
            ValueError: For one with a static graph, which torch cannot run without synchronisation.
        """
        if wrapper.static_graph:
            raise ValueError(
                "DistributedDataParallel with `static_graph=True` cannot leave gradients unsynchronised (torch raises "
                "inside `no_sync`), and the first pass of a step must: leave `static_graph` out."
            )
        if wrapper not in self._wrappers:
            self._wrappers.append(wrapper)

    @property
    def several(self) -> bool:
        """Whether there are processes to average over."""
        return self.size > 1 and not self.alone

    @property
    def circle_size(self) -> int:
        """Number of ranks that share a perturbation."""
        return 1 if self.circle is None else dist.get_world_size(self.circle)

    @property
    def whole(self) -> bool:
        """Whether all ranks share each perturbation."""
        return self.several and self.circle_size == self.size

    def quiet(self) -> AbstractContextManager[None]:
        """A block in which DistributedDataParallel leaves gradients alone: forward and backward must both be inside."""
        return _no_sync(self._wrappers) if self._wrappers else nullcontext()

    def average(
        self, tensors: list[Tensor], weight: float, *, circle: bool = False, flags: list[float] | None = None
    ) -> float:
        """Replace tensors by their averages over ranks, weighted by `weight`, in one all-reduce; returns Σ weights.

        Half-precision tensors travel, and are added up, in float32.

        Args:
            tensors: The same shapes on every rank.
            weight: This rank's weight.
            circle: Average over the ranks that share a perturbation only.
            flags: Numbers that travel with the tensors and are averaged as well, in place.
        """
        group, size = (self.circle, self.circle_size) if circle else (self.group, self.size)
        if size == 1 or not self.several:
            return weight
        kind = _sum_type(tensors)
        device = tensors[0].device if tensors else self._device()
        tail = torch.tensor([*(flags or []), 1.0], dtype=kind, device=device)
        flat = torch.cat([t.detach().reshape(-1).to(device, kind) for t in tensors] + [tail])
        flat *= weight
        dist.all_reduce(flat, group=group)
        *raised, total = flat[-len(tail) :].tolist()
        flat /= total or 1.0
        if flags is not None:
            flags[:] = [r / (total or 1.0) for r in raised]
        pieces = flat[: -len(tail)].split([t.numel() for t in tensors])
        with torch.no_grad():
            torch._foreach_copy_(tensors, [piece.view(t.shape) for piece, t in zip(pieces, tensors, strict=True)])
        return float(total)

    def mean(self, number: float, weight: float) -> float:
        """The weighted mean of a number over ranks."""
        if not self.several:
            return number
        held = torch.tensor([number], dtype=torch.float64, device=self._device())
        self.average([held], weight)
        return float(held)

    def buffers(self) -> None:
        """Make buffers equal on all ranks: running statistics become their means, all others those of rank 0."""
        if self.size == 1:
            return
        running = [
            b for module in tracking_modules(self.model) for b in module.buffers(recurse=False) if b.is_floating_point()
        ]
        first = dist.get_global_rank(self.group, 0) if self.group is not None else 0
        with torch.no_grad():
            for buffer in running:
                total = buffer.detach().clone()
                dist.all_reduce(total, group=self.group)
                buffer.copy_(total / self.size)
            known = {id(b) for b in running}
            for buffer in self.model.buffers():
                if id(buffer) not in known:
                    dist.broadcast(buffer, first, group=self.group)

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


@contextmanager
def _no_sync(wrappers: list[DistributedDataParallel]) -> Iterator[None]:
    with ExitStack() as stack:
        for wrapper in wrappers:
            stack.enter_context(wrapper.no_sync())
        yield


def _sum_type(tensors: list[Tensor]) -> torch.dtype:
    """The type in which tensors are added up: the widest of theirs, at least float32."""
    kind = torch.float32
    for t in tensors:
        kind = torch.promote_types(kind, t.dtype)
    return kind


def bare(model: nn.Module) -> nn.Module:
    """The model inside data-parallel wrappers and `torch.compile`."""
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def circle_of(sharing: Sharing, group: Any, group_size: int | None) -> Any:
    """The ranks that share a perturbation: blocks of `group_size` consecutive ones, or all; None for one rank alone.

    Raises:
        ValueError: If `group_size` is missing, or does not divide the number of ranks.
    """
    if sharing in ("chunk", "batch") or not (dist.is_available() and dist.is_initialized()):
        return None
    everyone = dist.group.WORLD if group is None else group
    size = dist.get_world_size(everyone)
    if sharing == "global":
        return everyone if size > 1 else None
    if group_size is None or group_size < 1 or size % group_size:
        raise ValueError(
            f"`group_size` must divide the number of ranks, {size}, for `sharing` 'group', got {group_size!r}."
        )
    if group_size in (1, size):
        return everyone if size > 1 and group_size == size else None
    ranks = dist.get_process_group_ranks(everyone)
    start = circle_index(sharing, dist.get_rank(everyone), group_size) * group_size
    mine = ranks[start : start + group_size]
    return dist.new_group(mine, use_local_synchronization=True)  # only the members need to call


def circle_index(sharing: Sharing, rank: int, group_size: int | None) -> int:
    """Which of the circles of ranks that share a perturbation a rank belongs to."""
    if sharing == "global":
        return 0
    return rank // (group_size or 1) if sharing == "group" else rank


def zeros_where_missing(grads: Params, theta: Params) -> Params:
    """All parameters' gradients, zero where a rank has none: an average needs the same tensors on every rank."""
    return {n: grads[n] if n in grads else torch.zeros_like(w) for n, w in theta.items()}


@dataclass
class Noise:
    """A method's random draws, made afresh each step from (seed, circle of ranks, step) alone.

    Ranks that share a perturbation draw the same, others differ; and a resumed run draws on every rank what it would
    have drawn, whichever rank's state was saved.

    Attributes:
        generator: The method's own.
        seed: Of the run.
        circle: Number of the circle of ranks.
    """

    generator: Generator
    seed: int
    circle: int = 0

    def begin(self, t: int) -> None:
        """Seed the generator for step `t`."""
        self.generator.manual_seed(_mixed(derive(self.seed, f"noise of rank {self.circle}"), t))
