"""The processes of `torch.distributed`: who leads, what each does, sums over them, and who has which examples."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

_boards: list[Any] = []  # of the process group that there is
TOGETHER = 20.0  # seconds within which processes that fail alike do so
ENDED = "ended"  # where a process says on the board why it ends


class PeerError(ConnectionAbortedError):
    """Another process of `torchrun` could not do its part."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """The processes of a group, as `torchrun` starts them; without arguments this process alone.

    What sends messages is called by all processes, in the same order; alone it sends none. Where a function that is
    passed to `led` or `each` raises in one of them, all raise: none waits for one that will not come.

    Attributes:
        rank: This process's number.
        count: How many there are.
        group: Their process group; None is the default one.
        board: A store of `torch.distributed` on which a process that ends says why; None where there is none.
    """

    rank: int = 0
    count: int = 1
    group: Any = None
    board: Any = None

    @classmethod
    def of(cls, group: Any = None, *, needed_by: str = "") -> "Ranks":
        """The processes of a group; this one alone where no group was made.

        Args:
            group: A process group; None means all processes.
            needed_by: What cannot do without a group, for the message.

        Raises:
            RuntimeError: If no group was made and one is needed.
            ValueError: If this process is not in the group.
        """
        if not (dist.is_available() and dist.is_initialized()):
            if needed_by:
                raise RuntimeError(
                    f"{needed_by} needs processes that know of each other: start the script by `torchrun` and call "
                    "torch.distributed.init_process_group() first."
                )
            return cls()
        rank = dist.get_rank(group)
        if rank < 0:
            raise ValueError("`group` must hold this process's rank.")
        return cls(rank, dist.get_world_size(group), group, _boards[-1] if _boards else None)

    @property
    def leads(self) -> bool:
        """Whether this process does what one must do for all, such as writing files."""
        return self.rank == 0

    def block(self, size: int) -> "Ranks":
        """The processes of this one's block of `size` consecutive ranks."""
        if size == self.count:
            return self
        if size == 1:
            return Ranks()
        start = self.rank - self.rank % size
        members = dist.get_process_group_ranks(self.group)[start : start + size]
        group = dist.new_group(members, use_local_synchronization=True)  # only the members need to call
        return Ranks(self.rank - start, size, group)

    # -- calls and objects -----------------------------------------------------------------------------------------

    def led(self, function: Callable[[], T]) -> T:
        """What the leader's call gives, to all; the others do not call.

        Raises:
            BaseException: The leader's own, in all processes.
        """
        if self.count == 1:
            return function()
        answer: list[Any] = [None, None]
        if self.leads:
            try:
                answer[0] = function()
            except Exception as error:
                answer[1] = error
        with self._heard():
            dist.broadcast_object_list(answer, src=self._first, group=self.group)
        if answer[1] is not None:
            raise answer[1]
        shared: T = answer[0]
        return shared

    def each(self, function: Callable[[], T]) -> list[T]:
        """What the calls of all processes give, by rank, to all.

        Raises:
            PeerError: If another process's call failed; if this one's did, its own.
        """
        if self.count == 1:
            return [function()]
        mine: tuple[Any, str] = (None, "")
        failed: Exception | None = None
        try:
            mine = (function(), "")
        except Exception as error:
            mine, failed = (None, f"{type(error).__name__}: {error}"), error
        answers: list[Any] = [None] * self.count
        with self._heard():
            dist.all_gather_object(answers, mine, group=self.group)
        if failed is not None:
            raise failed
        for rank, (_, reason) in enumerate(answers):
            if reason:
                raise PeerError(f"process {rank} of {self.count} failed: {reason}")
        return [result for result, _ in answers]

    def alike(self, function: Callable[[], T]) -> T:
        """What this process's own call gives, which the others make too; it need not travel.

        Raises:
            PeerError: As `each`.
        """
        results: list[T] = []
        self.each(lambda: results.append(function()))
        return results[0]

    def wait(self) -> None:
        """Go on when all processes are here."""
        self.each(lambda: None)

    def require_same(self, facts: Callable[[], Mapping[str, Any]]) -> None:
        """Check that all processes see the same.

        Args:
            facts: Gives what must be the same, by what it is called in the message; small, such as digests.

        Raises:
            ValueError: In all processes, naming the first fact in which one differs from the leader.
            PeerError: As `each`.
        """
        first, *others = self.each(lambda: dict(facts()))
        for name, known in first.items():
            for rank, seen in enumerate(others, 1):
                if seen[name] != known:
                    raise ValueError(
                        f"process {rank} of {self.count} sees other {name} than process 0 ({seen[name]!r}, not "
                        f"{known!r}): start all processes with the same command, code and files."
                    )

    def all_fail(self, what: str, reason: str) -> bool:
        """Whether all processes fail at the same piece of work, and so may go on: none waits for a message of another.

        Args:
            what: A name for the work that no other has.
            reason: Why this one fails.
        """
        if self.count == 1:
            return True
        if self.board is None:
            return False
        self.board.set(f"{what}/{self.rank}", reason)
        end, names = time.monotonic() + TOGETHER, [f"{what}/{rank}" for rank in range(self.count)]
        while not self.board.check(names):
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    @staticmethod
    @contextmanager
    def hung_up(board: Any) -> Iterator[None]:
        """A block in which all `Ranks.of` this process know a board."""
        _boards.append(board)
        try:
            yield
        finally:
            _boards.pop()

    def tell(self, error: BaseException) -> None:
        """Leave word of why this process ends, for those that wait for it."""
        if self.board is not None and self.count > 1 and not isinstance(error, PeerError):
            with suppress(Exception):  # the board may have ended first
                self.board.set(ENDED, f"process {self.rank} of {self.count} failed: {type(error).__name__}: {error}")

    # -- tensors ---------------------------------------------------------------------------------------------------

    def sum_(self, t: Tensor) -> Tensor:
        """Add up over processes, in place; every process gets the same bits."""
        if self.count > 1:
            with self._heard():
                dist.all_reduce(t, group=self.group)
        return t

    def total(self, x: float, device: torch.device) -> float:
        """The sum of one number over processes, in float64 (float32 where the device has no float64)."""
        if self.count == 1:
            return x
        kind = torch.float32 if device.type == "mps" else torch.float64
        return float(self.sum_(torch.tensor([x], dtype=kind, device=device)))

    def average_(self, tensors: Sequence[Tensor], weight: float, flags: list[float] | None = None) -> float:
        """Replace tensors by their averages over processes, weighted by `weight`, in one message; returns Σ weights.

        Tensors of half precision travel, and are added up, in float32.

        Args:
            tensors: At least one; the same shapes in every process.
            weight: This process's weight.
            flags: Numbers that travel with the tensors and are averaged as well, in place.
        """
        if self.count == 1:
            return weight
        kind, device = torch.float32, tensors[0].device
        for t in tensors:
            kind = torch.promote_types(kind, t.dtype)
        tail = torch.tensor([*(flags or []), 1.0], dtype=kind, device=device)
        flat = torch.cat([t.detach().reshape(-1).to(device, kind) for t in tensors] + [tail])
        flat *= weight
        self.sum_(flat)
        *raised, total = flat[-len(tail) :].tolist()
        flat /= total or 1.0
        if flags is not None:
            flags[:] = [r / (total or 1.0) for r in raised]
        pieces = flat[: -len(tail)].split([t.numel() for t in tensors])
        with torch.no_grad():
            means = [piece.view(t.shape) for piece, t in zip(pieces, tensors, strict=True)]
            torch._foreach_copy_(list(tensors), means)
        return float(total)

    def gather(self, t: Tensor) -> list[Tensor]:
        """Every process's tensor, by rank, of the same shape and type in all of them."""
        parts = [torch.empty_like(t) for _ in range(self.count)]
        with self._heard():
            dist.all_gather(parts, t, group=self.group)
        return parts

    def follow_(self, t: Tensor) -> None:
        """Take over the leader's tensor, in place."""
        if self.count > 1:
            with self._heard():
                dist.broadcast(t, self._first, group=self.group)

    def require_equal(self, v: Tensor) -> None:
        """Check that all processes are about to multiply the same vectors.

        Raises:
            RuntimeError: If they differ.
        """
        if self.count == 1:
            return
        mark = torch.stack([v.double().sum(), v.double().square().sum()]) if v.device.type != "mps" else v.sum()[None]
        low, high = mark.clone(), mark.clone()
        with self._heard():
            dist.all_reduce(low, op=dist.ReduceOp.MIN, group=self.group)
            dist.all_reduce(high, op=dist.ReduceOp.MAX, group=self.group)
        if not torch.equal(low, high):
            raise RuntimeError(
                "the processes multiply different vectors: give `generator` the same seed, and the model the same "
                "weights, in every process."
            )

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """Say in a line that another process has ended, and why where it said so; torch shows its connections."""
        try:
            yield
        except RuntimeError as error:
            first = str(error).strip().splitlines()[0]
            said = re.sub(r"^\[\S+\] ", "", first)[:120]  # without torch's line of code
            reason = f"another process of `torchrun` has ended ({said}): see what it said"
            with suppress(Exception):
                if self.board is not None and self.board.check([ENDED]):
                    reason = self.board.get(ENDED).decode()
            raise PeerError(f"{reason}; the same command goes on.") from None

    @property
    def _first(self) -> int:
        """The leader's number among all processes."""
        return 0 if self.group is None else dist.get_global_rank(self.group, 0)

    # -- examples --------------------------------------------------------------------------------------------------

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
        cuts = []
        for n in sizes:
            inside = [0, *(e - at for e in edges if 0 < e - at < n), n]
            cuts.append(list(pairwise(inside)))
            at += n
        return cuts
