"""What ends a call of `fit` before its run is over, and the snapshots from which the next call goes on."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from trainers.files.lock import Lock
from trainers.runs.records import StepLog
from trainers.runs.signals import Deadline, StopSignals
from trainers.runs.training import Training


class Interrupted(Exception):  # noqa: N818 - no error: the run can be continued
    """Something asks to stop; the text says what."""


class Limits:
    """Signals, time limit and lock of one call, looked at between two pieces of work; and its snapshots.

    Args:
        training: The run.
        log: Its log of steps, of which a snapshot lists the parts.
        lock: On its folder.
        deadline: The time limit.
        signals: Those that ask to stop.
        snapshot_seconds: Least time between two snapshots; at most a twentieth of the time goes into them, unless 0.
    """

    def __init__(
        self,
        training: Training,
        log: StepLog,
        lock: Lock,
        deadline: Deadline,
        signals: StopSignals,
        snapshot_seconds: float,
    ) -> None:
        self.training, self.log, self.lock = training, log, lock
        self.deadline, self.signals, self.snapshot_seconds = deadline, signals, snapshot_seconds
        self.saved, self.first = time.monotonic(), training.step

    @contextmanager
    def allow(self, work: str) -> Iterator[None]:
        """A block of work, of which the time is remembered.

        Raises:
            Interrupted: Before it, if a signal asks to stop, or it and a snapshot may not fit into the time limit.
        """
        if self.signals.received:
            raise Interrupted(f"stopped by {self.signals.received}")
        if not self.deadline.allows(self.cost(work) + self.cost("snapshot")):
            raise Interrupted(f"the time limit of {self.deadline.limit:g} s was near")
        start = time.monotonic()
        yield
        self.training.took(work, time.monotonic() - start)

    def keep(self) -> None:
        """Make sure that the folder is still this process's, and write a snapshot where it is time for one."""
        self.lock.check()
        cost = 19 * self.cost("snapshot") if self.snapshot_seconds else 0.0
        if time.monotonic() - self.saved > max(self.snapshot_seconds, cost):
            self.snapshot()

    def snapshot(self) -> None:
        """Write a snapshot, and the parts of the step log that belong to it."""
        start = time.monotonic()
        self.training.snapshot(self.log)
        self.saved = time.monotonic()
        self.training.took("snapshot", self.saved - start)

    def cost(self, work: str) -> float:
        """How long a kind of work takes at its slowest, as measured in this call or those before; else a guess."""
        longest, steps = self.training.longest, self.training.step - self.first
        if work == "snapshot":  # weights and two moments of them
            return longest.get(work, 3 * longest.get("checkpoint", 0.0))
        if work == "epoch end" and steps:  # half an epoch; no guess keeps a call from getting anywhere
            return longest.get(work, 0.5 * self.training.batches * longest.get("step", 0.0))
        return longest.get(work, 0.0)

    def interrupt(self, reason: Interrupted) -> None:
        """Write a snapshot and the status."""
        self.snapshot()
        self.training.write_status("interrupted", self.told(reason, self.training))

    def told(self, reason: Interrupted, training: Training) -> str:
        """What the status of an interrupted run says."""
        total = training.config.epochs * training.batches
        return f"{reason} after step {training.step} of {total}; the same command continues"
