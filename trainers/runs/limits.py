"""What ends a call of `fit` before its run is over, and the snapshots from which the next call goes on."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from landscape.ranks import Ranks
from trainers.files.lock import Lock
from trainers.runs.records import StepLog
from trainers.runs.signals import Deadline, StopSignals
from trainers.runs.training import Training

MEETING = 1.0  # seconds of steps after which several processes ask each other whether to go on
AHEAD = 1000  # steps, at most


class Interrupted(Exception):  # noqa: N818 - no error: the run can be continued
    """Something asks to stop; the text says what."""


class Limits:
    """Signals, time limit and lock of one call, looked at between two pieces of work; and its snapshots.

    Several processes stop, and write snapshots, at the same step: they meet every second or so, and a signal to any one
    counts; of time the leader's clock.

    Args:
        training: The run.
        log: Its log of steps, of which a snapshot lists the parts.
        lock: On its folder.
        deadline: The time limit.
        signals: Those that ask to stop.
        snapshot_seconds: Least time between two snapshots; at most a twentieth of the time goes into them, unless 0.
        ranks: The processes that train together; the leader has the lock.
    """

    def __init__(
        self,
        training: Training,
        log: StepLog,
        lock: Lock | None,
        deadline: Deadline,
        signals: StopSignals,
        snapshot_seconds: float,
        ranks: Ranks,
    ) -> None:
        self.training, self.log, self.lock = training, log, lock
        self.deadline, self.signals, self.snapshot_seconds = deadline, signals, snapshot_seconds
        self.saved, self.first = time.monotonic(), training.step
        self.ranks, self.meeting, self.agreed = ranks, training.step, False

    @contextmanager
    def allow(self, work: str) -> Iterator[None]:
        """A block of work, of which the time is remembered.

        Raises:
            Interrupted: Before it, if a signal asks to stop, or it and a snapshot may not fit into the time limit.
        """
        if reason := self.reason(work):
            raise Interrupted(reason)
        start = time.monotonic()
        yield
        self.training.took(work, time.monotonic() - start)

    def reason(self, work: str) -> str:
        """Why not to begin a kind of work; empty where there is no reason."""
        if self.ranks.count == 1:
            return self._own_reason(self.cost(work))
        if work == "step" and self.training.step < self.meeting:
            return ""
        slowest = self.cost("step")
        steps = max(1, min(AHEAD, int(MEETING / slowest))) if slowest and self.snapshot_seconds else 1
        span = self.cost(work) * (steps if work == "step" else 1)
        said = self.ranks.each(lambda: (self._own_reason(span), self._due(), steps, self.signals.received))
        _, self.agreed, steps, _ = said[0]
        self.meeting = self.training.step + steps
        self.signals.received = next((signal for *_, signal in said if signal), "")  # all end as it asks
        return next((reason for reason, *_ in said if reason), "")

    def _own_reason(self, span: float) -> str:
        """That of this process; of several the leader alone looks at the time."""
        if self.signals.received:
            return f"stopped by {self.signals.received}"
        if self.ranks.leads and not self.deadline.allows(span + self.cost("snapshot")):
            return f"the time limit of {self.deadline.limit:g} s was near"
        return ""

    def _due(self) -> bool:
        """Whether it is time for a snapshot."""
        cost = 19 * self.cost("snapshot") if self.snapshot_seconds else 0.0
        return time.monotonic() - self.saved > max(self.snapshot_seconds, cost)

    def keep(self) -> None:
        """Make sure that the folder is still this process's, and write a snapshot where it is time for one."""
        if self.lock is not None:
            self.lock.check()
        due, self.agreed = self.agreed if self.ranks.count > 1 else self._due(), False
        if due:
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
        self.ranks.led(lambda: self.training.write_status("interrupted", self.told(reason, self.training)))

    def told(self, reason: Interrupted, training: Training) -> str:
        """What the status of an interrupted run says."""
        total = training.config.epochs * training.batches
        return f"{reason} after step {training.step} of {total}; the same command continues"
