"""Where computing happens: what does not decide the result of a run."""

import torch


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
