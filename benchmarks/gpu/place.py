"""Where the script computes, how time is taken there, and how large its problems are."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from benchmarks.gpu.bare import ABSENT  # noqa: F401  (first: it lets the packages be imported)
from benchmarks.pairing import Step, mirrored


@dataclass(frozen=True)
class Place:
    """A device and the sizes of problems on it.

    Attributes:
        device: Where.
        full: Sizes of a GPU; else those that show only that it runs.
    """

    device: torch.device
    full: bool

    @classmethod
    def of(cls, device: str, *, quick: bool = False) -> "Place":
        """One by name; small on a CPU.

        Raises:
            ValueError: If there is no such device.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        made = torch.device(device)
        if made.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"`device` {device!r} is not there: this machine has no CUDA; use --device cpu.")
        if made.type == "cuda":
            torch.cuda.set_device(made)
            allow_tf32(False)
        else:
            torch.set_num_threads(1)
        return cls(made, full=made.type == "cuda" and not quick)

    @property
    def cuda(self) -> bool:
        """Whether it is a CUDA device."""
        return self.device.type == "cuda"

    def size(self, full: int, small: int) -> int:
        """The size of a problem."""
        return full if self.full else small

    def wait(self) -> None:
        """Until the device has done all that it was asked to."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def now(self) -> float:
        """Seconds: of the clock once the device is idle, and on a CPU of the processor, which others share."""
        if not self.cuda:
            return time.process_time()
        self.wait()
        return time.perf_counter()

    def seconds(self, work: Callable[[], object]) -> float:
        """How long something takes, once."""
        began = self.now()
        work()
        return self.now() - began

    def times(
        self, steps: Mapping[str, Step], *, rounds: int = 5, inner: int = 1, warm_up: int = 2
    ) -> dict[str, list[float]]:
        """Seconds of each step in mirrored rounds, see `benchmarks.pairing`."""
        return mirrored(steps, rounds=rounds, inner=inner, warm_up=warm_up, clock=self.now)

    def peak(self, work: Callable[[], object]) -> float | None:
        """The most memory that something holds at once, beyond what is held before, in MiB; None on a CPU."""
        if not self.cuda:
            return None
        self.wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        self.wait()
        return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20


def allow_tf32(allowed: bool) -> None:
    """Whether products and convolutions of float32 may be computed in TF32; no, unless a part says so."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


def rate(count: int, seconds: list[float]) -> dict[str, float]:
    """Something a second, from seconds of several rounds: median and extremes."""
    return {"value": count / statistics.median(seconds), "low": count / max(seconds), "high": count / min(seconds)}
