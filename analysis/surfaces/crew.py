"""The processes of `torchrun`, where a surface is computed by several of them, or by one alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist


@dataclass(frozen=True)
class Crew:
    """Who computes.

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

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.count > 1:
            dist.barrier()


ALONE = Crew()


@contextmanager
def crew() -> Iterator[Crew]:
    """The processes that `torchrun` started, or this one alone; a group that is there already is used."""
    if dist.is_available() and dist.is_initialized():
        yield Crew(dist.get_rank(), dist.get_world_size())
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
        dist.init_process_group("gloo")
        try:
            yield Crew(dist.get_rank(), dist.get_world_size())
        finally:
            dist.destroy_process_group()
    else:
        yield ALONE
