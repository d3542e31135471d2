"""When a step is perturbed: the first part of a sharpness-aware method."""

from dataclasses import dataclass
from typing import Protocol


class Gate(Protocol):
    """Tells whether optimizer step t (from 0) is perturbed, or a plain step of the base optimizer."""

    def __call__(self, t: int) -> bool: ...


@dataclass(frozen=True)
class Always:
    """Every step is perturbed."""

    def __call__(self, t: int) -> bool:
        return True


@dataclass(frozen=True)
class Never:
    """No step is perturbed: the base optimizer."""

    def __call__(self, t: int) -> bool:
        return False


@dataclass(frozen=True)
class Window:
    """Steps from `start` up to, not including, `end` are perturbed; `end=None` leaves it open."""

    start: int = 0
    end: int | None = None

    def __call__(self, t: int) -> bool:
        return t >= self.start and (self.end is None or t < self.end)
