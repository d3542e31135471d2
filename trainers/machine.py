"""What a run was computed with: the device, torch, and the flags that its last digits may depend on."""

import platform
from pathlib import Path
from typing import Any

import torch

from trainers.backend import Backend


def machine(device: torch.device, backend: Backend) -> dict[str, Any]:
    """A record of a device and of how torch computes there."""
    found: dict[str, Any] = {"device": str(device), "name": processor(), "torch": torch.__version__}
    if device.type == "cuda":
        found |= {"name": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
        found["cudnn"] = torch.backends.cudnn.version()
    return found | backend.as_dict()


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
