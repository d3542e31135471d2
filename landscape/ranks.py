"""Several processes that share the data of one risk: sums over them, and who has which examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Ranks:
    """The processes of a group of `torch.distributed`, as `torchrun` starts them.

    Attributes:
        group: The group; None means all processes.
    """

    group: Any = None

    def __post_init__(self) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "`sharded` needs processes that know of each other: start the script by `torchrun` and call "
                "torch.distributed.init_process_group() first."
            )

    @property
    def rank(self) -> int:
        """This process's number."""
        return dist.get_rank(self.group)

    @property
    def count(self) -> int:
        """How many processes there are."""
        return dist.get_world_size(self.group)

    def sum_(self, t: Tensor) -> Tensor:
        """Add up over processes, in place; every process gets the same bits."""
        dist.all_reduce(t, group=self.group)
        return t

    def total(self, x: float, device: torch.device) -> float:
        """The sum of one number over processes, in float64 (float32 where the device has no float64)."""
        kind = torch.float32 if device.type == "mps" else torch.float64
        return float(self.sum_(torch.tensor([x], dtype=kind, device=device)))

    def places(self, sizes: Sequence[int], *, whole: bool) -> list[list[tuple[int, int]]]:
        """This process's part of each batch of these sizes: as many examples as any other's, or one less or more.

        Args:
            sizes: Of all batches, the same in every process.
            whole: Deal out whole batches in turn, for a risk where a batch is one fixed function.

        Raises:
            ValueError: If there is not one example, or batch, for each process.
        """
        rank, count = self.rank, self.count
        total = len(sizes) if whole else sum(sizes)
        if total < count:
            what = "batches" if whole else "examples"
            raise ValueError(f"`data` has {total} {what}, too few for {count} processes: use fewer processes.")
        if whole:
            return [[(0, n)] if i % count == rank else [] for i, n in enumerate(sizes)]
        first, last = total * rank // count, total * (rank + 1) // count
        ends = accumulate(sizes)
        inside = [(max(first - end + n, 0), min(last - end + n, n)) for end, n in zip(ends, sizes, strict=True)]
        return [[(a, b)] if a < b else [] for a, b in inside]

    def bounds(self, sizes: Sequence[int]) -> list[list[tuple[int, int]]]:
        """Where `share` cuts each batch of these sizes."""
        total, count, at = sum(sizes), self.count, 0
        edges = [total * r // count for r in range(count + 1)]
        found = []
        for n in sizes:
            inside = [0, *(e - at for e in edges if 0 < e - at < n), n]
            found.append(list(pairwise(inside)))
            at += n
        return found

    def require_equal(self, v: Tensor) -> None:
        """Check that all processes are about to multiply the same vectors.

        Raises:
            RuntimeError: If they differ.
        """
        mark = torch.stack([v.double().sum(), v.double().square().sum()]) if v.device.type != "mps" else v.sum()[None]
        low, high = mark.clone(), mark.clone()
        dist.all_reduce(low, op=dist.ReduceOp.MIN, group=self.group)
        dist.all_reduce(high, op=dist.ReduceOp.MAX, group=self.group)
        if not torch.equal(low, high):
            raise RuntimeError(
                "the processes multiply different vectors: give `generator` the same seed, and the model the same "
                "weights, in every process."
            )
