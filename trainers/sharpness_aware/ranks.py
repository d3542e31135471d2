"""Several processes: who shares a perturbation, whose noise is whose, and the one average of gradients a step."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from landscape.batchnorm import tracking_modules
from landscape.params import Params
from landscape.ranks import Ranks
from trainers.randomness import derive
from trainers.sharpness_aware.gates import _mixed

Sharing = Literal["chunk", "batch", "group", "global"]


class Replicas:
    """The copies of one model on several processes, and the averages over them.

    Args:
        model: The model; every DistributedDataParallel in it stays silent inside `quiet()`.
        ranks: All processes.
        circle: Those that share a perturbation; this one alone where each has its own.
        alone: Average nothing: the processes' gradients agree already, or are not to be averaged.
    """

    def __init__(self, model: nn.Module, ranks: Ranks, circle: Ranks, *, alone: bool) -> None:
        self.model, self.ranks, self.circle = model, ranks, circle
        self.several = ranks.count > 1 and not alone  # whether there are processes to average over
        self.whole = self.several and circle.count == ranks.count  # whether all share each perturbation
        self._wrappers: list[DistributedDataParallel] = []
        for module in model.modules():
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

    def quiet(self) -> AbstractContextManager[None]:
        """A block in which DistributedDataParallel leaves gradients alone: forward and backward must both be inside."""
        return _no_sync(self._wrappers) if self._wrappers else nullcontext()

    def average(
        self, tensors: list[Tensor], weight: float, *, circle: bool = False, flags: list[float] | None = None
    ) -> float:
        """As `Ranks.average_`, over all processes, or over those that share a perturbation."""
        return (self.circle if circle else self.ranks).average_(tensors, weight, flags) if self.several else weight

    def mean(self, number: float, weight: float) -> float:
        """The weighted mean of a number over processes."""
        if not self.several:
            return number
        held = torch.tensor([number], dtype=torch.float64, device=next(self.model.parameters()).device)
        self.average([held], weight)
        return float(held)

    def buffers(self) -> None:
        """Make buffers equal on all ranks: running statistics become their means, all others those of rank 0."""
        if self.ranks.count == 1:
            return
        running = [
            b for module in tracking_modules(self.model) for b in module.buffers(recurse=False) if b.is_floating_point()
        ]
        averaged = {id(b) for b in running}
        with torch.no_grad():
            for buffer in running:
                buffer.copy_(self.ranks.sum_(buffer.detach().clone()) / self.ranks.count)
            for buffer in self.model.buffers():
                if id(buffer) not in averaged:
                    self.ranks.follow_(buffer)


@contextmanager
def _no_sync(wrappers: list[DistributedDataParallel]) -> Iterator[None]:
    with ExitStack() as stack:
        for wrapper in wrappers:
            stack.enter_context(wrapper.no_sync())
        yield


def bare(model: nn.Module) -> nn.Module:
    """The model inside data-parallel wrappers and `torch.compile`."""
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def circle_of(sharing: Sharing, ranks: Ranks, group_size: int | None) -> Ranks:
    """The ranks that share a perturbation: blocks of `group_size` consecutive ones, or all; this one where none do.

    Raises:
        ValueError: If `group_size` is missing, or does not divide the number of ranks.
    """
    if sharing in ("chunk", "batch") or ranks.count == 1:
        return Ranks()
    if sharing == "global":
        return ranks
    if group_size is None or group_size < 1 or ranks.count % group_size:
        raise ValueError(
            f"`group_size` must divide the number of ranks, {ranks.count}, for `sharing` 'group', got {group_size!r}."
        )
    return ranks.block(group_size)


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
