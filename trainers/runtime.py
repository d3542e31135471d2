"""Where computing happens: what does not decide the result of a run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from landscape.ranks import Ranks

LONGEST = timedelta(days=2)  # that processes wait for the slowest; of one that ends they hear at once


def device_of(text: str | torch.device) -> torch.device:
    """A device that is there.

    Args:
        text: cpu, cuda, cuda:1, mps, ...

    Raises:
        ValueError: If there is no such kind of device, or this machine has none.
    """
    try:
        device = torch.device(text)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        lines = str(error).strip().splitlines()
        why = f" ({lines[0].rstrip('.')[:120]})" if lines else ""
        raise ValueError(
            f"`device` {str(text)!r} is not there{why}; this machine has {', '.join(devices())}."
        ) from None
    return device


def devices() -> list[str]:
    """The devices of this machine."""
    found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    return [*found, "mps"] if torch.backends.mps.is_available() else found


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that `torchrun` started, or this one alone; a group that is there already is used.

    A group that is made here is gone at the end, and its threads with it: one that lives on can abort the process while
    Python shuts down.
    """
    started = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ
    if not started or dist.is_initialized():
        yield Ranks.of()
        return
    import torch.distributed.nn.functional  # noqa: F401 - imported later, its defaults would hold the group

    dist.init_process_group("gloo", timeout=LONGEST)
    try:
        yield Ranks.of()
    finally:
        dist.destroy_process_group()
