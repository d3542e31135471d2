"""Memory: what a request needs, what is free, and what to ask for instead, ahead of it and where it ran out."""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
RAN_OUT = ("DefaultCPUAllocator", "MPS backend out of memory")  # what torch's errors say that have no type of their own


def free_bytes(device: torch.device | str) -> int:
    """Bytes that can be had on a device now.

    Args:
        device: On CUDA, what the driver has free and what torch's cache holds unused. Anywhere else, the machine's
            available memory, caches that can be dropped included; a limit set on a container or job is not seen.

    Returns:
        The number of bytes; an upper bound, because it may be in pieces or taken by others meanwhile.
    """
    device = torch.device(device)
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    return int(psutil.virtual_memory().available)


def require(needed: int, device: torch.device | str, *, what: str, instead: str) -> None:
    """Refuse a request that does not fit, before anything is allocated.

    Args:
        needed: Bytes.
        device: Where.
        what: The request, as the subject of the message: "The Lanczos basis of 300 vectors".
        instead: The way out: "lower `basis`, or put it on the CPU by `store`".

    Raises:
        MemoryError: If `needed` exceeds what is free, with both numbers and the way out.
    """
    free = free_bytes(device)
    if needed > free:
        raise MemoryError(f"{what} needs {readable(needed)}, but {readable(free)} is free on {device}: {instead}.")


@dataclass(frozen=True)
class Usage:
    """What the memory of a device is used for, in bytes.

    Attributes:
        total: What the device has.
        free: What nobody has taken.
        reserved: What this process holds, unused or not.
        held: What its tensors occupy.
        peak: The most that they have occupied.
    """

    total: int
    free: int
    reserved: int
    held: int
    peak: int

    @property
    def others(self) -> int:
        """What other processes hold, and the device itself."""
        return max(0, self.total - self.free - self.reserved)


def usage(device: torch.device | str) -> Usage | None:
    """What the memory of a device is used for; None where it does not tell, as a CPU."""
    device = torch.device(device)
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    held, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    return Usage(total, free, reserved, held, torch.cuda.max_memory_allocated(device))


def fullness(device: torch.device | str) -> str:
    """How full a device is, in words."""
    found = usage(device)
    if found is None:
        return f"{readable(free_bytes(device))} is free"
    held = f"{readable(found.free)} of {readable(found.total)} is free"
    return f"{held}, and other processes hold {readable(found.others)}" if found.others > found.total / 20 else held


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch's, of any device, or ours."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in RAN_OUT)
    )


def shortage(error: BaseException, device: torch.device | str, *, examples: int | None, option: str) -> str:
    """What ran out of memory in words, and how many examples a pass would fit.

    Of a pass of b examples, e bytes are each example's: (peak + what was asked for - what is held without it) / b. So
    (total that this process may have - what is held without it) / e would fit; the largest power of two below it, and
    at most b / 2, is named. On devices that do not tell their usage it is b / 2.

    Args:
        error: That `ran_out` knows. What the pass held must be free again.
        device: Where.
        examples: A pass, b; None where it is no question of them.
        option: The option that sets b.
    """
    if isinstance(error, MemoryError):  # refused before anything was allocated
        return str(error).rstrip(".") or "out of memory"
    asked = re.search(r"allocate ([\d.]+) (\w+)", str(error))
    wanted = float(asked[1]) * 1024 ** UNITS.index(asked[2]) if asked and asked[2] in UNITS else 0.0
    more = f": {readable(wanted)} more was asked for, and {fullness(device)}" if wanted else f": {fullness(device)}"
    if examples is None:
        return f"out of memory on {device}{more}"
    found, fitting = usage(device), examples // 2
    if found is not None:
        room, needed = found.free + found.reserved - found.held, found.peak + wanted - found.held
        fitting = min(fitting, int(examples * room / max(needed, 1.0)))
    way = "not even one would fit" if fitting < 1 else f"at most {2 ** (fitting.bit_length() - 1)} may fit ({option})"
    return f"out of memory on {device} with {examples} examples a pass{more}; {way}"


@contextmanager
def explained(device: torch.device | str, *, examples: int | None, option: str, then: str = "") -> Iterator[None]:
    """A block of work on a device that says in one line what ran out of memory.

    Args:
        device: Where.
        examples: A pass, as for `shortage`.
        option: Likewise.
        then: What is to be said further.

    Raises:
        MemoryError: For every error that `ran_out` knows.
    """
    try:
        yield
    except Exception as error:
        if not ran_out(error):
            raise
        traceback.clear_frames(error.__traceback__)  # which hold what the pass held
        raise MemoryError(f"{shortage(error, device, examples=examples, option=option)}{then}.") from None


def readable(count: float) -> str:
    """Write a number of bytes in the unit that suits it: 3 * 2**29 is "1.5 GiB"."""
    size, unit = float(count), 0
    while abs(size) >= 1024 and unit < len(UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.3g} {UNITS[unit]}" if size < 100 and unit else f"{size:,.0f} {UNITS[unit]}"
