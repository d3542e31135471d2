"""Memory, told before it is asked for: what a request needs, what is free, and what to ask for instead."""

import psutil
import torch

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


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


def readable(count: float) -> str:
    """Write a number of bytes in the unit that suits it: 3 * 2**29 is "1.5 GiB"."""
    size, unit = float(count), 0
    while abs(size) >= 1024 and unit < len(UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.3g} {UNITS[unit]}" if size < 100 and unit else f"{size:,.0f} {UNITS[unit]}"
