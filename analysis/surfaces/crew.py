"""The processes of `torchrun`, where a surface is computed by several of them, or by one alone."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

LONGEST = timedelta(days=2)  # that processes wait for the slowest; of one that ends they hear at once

T = TypeVar("T")


class PeerError(ConnectionAbortedError):
    """Another process of `torchrun` could not do its part."""


@dataclass(frozen=True)
class Crew:
    """Who computes.

    All of its methods are called by all processes, in the same order. Where one raises, all do: none waits for one that
    will not come.

    Attributes:
        rank: This process's number.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process draws the axes, joins the parts and writes the file."""
        return self.rank == 0

    def led(self, function: Callable[[], T]) -> T:
        """What the leader's call gives, to all; the others do not call.

        Raises:
            BaseException: The leader's own, in all processes.
        """
        if self.count == 1:
            return function()
        found: list[Any] = [None, None]
        if self.leads:
            try:
                found[0] = function()
            except Exception as error:
                found[1] = error
        with _heard():
            dist.broadcast_object_list(found, src=0)
        if found[1] is not None:
            raise found[1]
        result: T = found[0]
        return result

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
        found: list[Any] = [None] * self.count
        with _heard():
            dist.all_gather_object(found, mine)
        if failed is not None:
            raise failed
        for rank, (_, reason) in enumerate(found):
            if reason:
                raise PeerError(f"process {rank} of {self.count} failed: {reason}")
        return [result for result, _ in found]

    def alike(self, function: Callable[[], T]) -> T:
        """What this process's own call gives, which the others make too; it need not travel.

        Raises:
            PeerError: As `each`.
        """
        found: list[T] = []
        self.each(lambda: found.append(function()))
        return found[0]

    def wait(self) -> None:
        """Go on when all processes are here."""
        self.each(lambda: None)


ALONE = Crew()


@contextmanager
def _heard() -> Iterator[None]:
    """Say in a line that another process has ended, where torch shows its connections."""
    try:
        yield
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise PeerError(
            f"another process of `torchrun` has ended ({first[:120]}): see what it said; the same command goes on."
        ) from None


@contextmanager
def crew() -> Iterator[Crew]:
    """The processes that `torchrun` started, or this one alone; a group that is there already is used.

    A group that is made here is gone at the end, and its threads with it: one that lives on can abort the process while
    Python shuts down.
    """
    if dist.is_available() and dist.is_initialized():
        yield Crew(dist.get_rank(), dist.get_world_size())
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
        import torch.distributed.nn.functional  # noqa: F401 - imported later, its defaults would hold the group

        dist.init_process_group("gloo", timeout=LONGEST)
        try:
            yield Crew(dist.get_rank(), dist.get_world_size())
        finally:
            dist.destroy_process_group()
    else:
        yield ALONE
