"""How far work of many items has come, and how long the rest may take."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Work:
    """What items cost beside each other, in any unit, and how many are worked on at once.

    Attributes:
        of: The cost of an item that was done; 0 for one that was done before.
        total: The cost of all.
        at_once: Processes.
    """

    of: Callable[[Any], float]
    total: float
    at_once: int = 1


class Pace:
    """The time left, from what items that ended have cost and half of what is worked on now.

    The pace is that since the beginning and, once two items a process have ended, that since the first ones ended: what
    processes take to start is in neither the rest nor its pace.

    Args:
        work: What there is to do.
        clock: Seconds.
    """

    def __init__(self, work: Work, clock: Callable[[], float] = time.monotonic) -> None:
        self.work, self.clock = work, clock
        self.begun, self.done, self.items = clock(), 0.0, 0
        self.started = (0.0, 0.0)  # seconds spent, and work done, when the processes had ended their first items

    def add(self, item: Any) -> None:
        """Count an item that has ended; one that cost nothing was there before."""
        cost = self.work.of(item)
        self.done += cost
        self.items += cost > 0
        if cost > 0 and self.items == self.work.at_once:
            self.started = (self.spent, self.done)

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return self.clock() - self.begun

    @property
    def left(self) -> float:
        """Seconds that the rest may take; NaN until an item has ended."""
        if not self.items:
            return math.nan
        rest = max(0.0, self.work.total - self.done)
        under_way = min((self.work.at_once - 1) * self.done / self.items, rest) / 2
        if self.items < 2 * self.work.at_once:
            return self.spent * (rest - under_way) / (self.done + under_way)
        seconds, done = self.started
        return (self.spent - seconds) * (rest - under_way) / (self.done - done)

    def __str__(self) -> str:
        known = "" if math.isnan(self.left) else f", about {self.left:.0f} s left"
        return f"after {self.spent:.0f} s{known}"
