"""The training loop: one run, from a configuration to checkpoints, readable from top to bottom."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from trainers.config import TrainConfig, train_config
from trainers.files.lock import Lock, locked
from trainers.randomness import derive, seeded
from trainers.runs.folder import Run
from trainers.runs.records import StepLog, step_row
from trainers.runs.signals import Deadline, StopSignals
from trainers.runs.tracking import TRACKERS, Tracker, check_trackers, numbers
from trainers.runs.training import Training

__all__ = ["Training", "fit"]

Progress = Callable[[dict[str, Any]], None]


def fit(
    config: TrainConfig | Mapping[str, Any],
    *,
    out: str | Path = "runs",
    device: str = "cpu",
    workers: int = 0,
    trust: bool = False,
    progress: Progress | None = None,
    stop: Callable[[int], bool] | None = None,
    snapshot_seconds: float = 30.0,
    time_limit: float | str | None = None,
    log_steps: int | None = None,
    track: str | Sequence[str] = (),
    signals: bool = True,
) -> Run:
    """Train one run into the folder `out`/<run id>; skip it if it is finished, continue it if it was interrupted.

    However it is stopped, the same call continues it, and ends with the same weights, buffers, losses and records as if
    it had never been stopped, bit for bit on the CPU.

    Args:
        config: What decides the result.
        out: Folder of runs.
        device: Where to train.
        workers: Processes that read data which are not in memory; they change no bit.
        trust: Import a model or dataset that the configuration names as module:function.
        progress: Called after each epoch with its row of the history.
        stop: Called after each epoch with its number; True ends the call with a snapshot, and the run can be continued.
        snapshot_seconds: Least time between two snapshots from which a killed run continues. Where writing one takes
            long, they come further apart, so that at most a twentieth of the time goes into them; 0 writes one a step.
        time_limit: Seconds, or "HH:MM:SS", from the call on; the run stops before it, with a snapshot.
        log_steps: Log every so many steps to `steps.parquet` (`trainers.runs.records`), with the cosine between clean
            and perturbed gradient, which costs a few vector operations a step; None logs none.
        track: "tensorboard", "wandb" or both, beside the files.
        signals: Let SIGINT, SIGTERM, SIGHUP and SIGUSR1 end the run after the current step with a snapshot; a second
            one ends the process at once. Only in the main thread; the handlers there were are put back.

    Returns:
        The run. Its status says "diverged" where the loss or a weight was no longer finite, and "interrupted", with the
        reason, where `stop` or `time_limit` ended the call.

    Raises:
        ValueError: For a bad configuration or argument.
        PermissionError: For a module:function without `trust`.
        ImportError: If a tracker is not installed.
        trainers.files.lock.BusyError: If another process trains this run.
        OSError: If the disk is full, with the file's name; what was there before is kept.
        KeyboardInterrupt: After SIGINT, once the snapshot is written.
        SystemExit: With 128 + its number, after another signal.
    """
    deadline = Deadline(time_limit, begun=time.monotonic())
    config = (config if isinstance(config, TrainConfig) else train_config(config)).resolved()
    names = check_trackers(track)
    run = Run(Path(out) / config.run_id)
    log = StepLog(run.folder, log_steps)
    if run.finished:
        run.tidy()
        return run
    with StopSignals(active=signals) as asked, seeded(derive(config.seed, "training")), ExitStack() as stack:
        training = Training(config, run, device=device, trust=trust, diagnose=log_steps is not None, workers=workers)
        lock = stack.enter_context(locked(run.folder))
        if not run.finished:  # else the process that held the lock until now has done it
            training.begin(log)
            trackers = [TRACKERS[name](run, config.as_dict(), training.step) for name in names]
            for tracker in trackers:
                stack.callback(tracker.close)
            Work(training, log, trackers, lock, deadline, asked, snapshot_seconds).go(progress, stop)
    asked.leave()
    return run


class Work:
    """One call's work on a run: step after step, until the run has ended or something asks to stop."""

    def __init__(
        self,
        training: Training,
        log: StepLog,
        trackers: Sequence[Tracker],
        lock: Lock,
        deadline: Deadline,
        signals: StopSignals,
        snapshot_seconds: float,
    ) -> None:
        self.training, self.log, self.trackers, self.lock = training, log, trackers, lock
        self.deadline, self.signals, self.snapshot_seconds = deadline, signals, snapshot_seconds
        self.saved, self.first = time.monotonic(), training.step

    def go(self, progress: Progress | None, stop: Callable[[int], bool] | None) -> None:
        """Train until the end, or until a reason to stop."""
        training, config = self.training, self.training.config
        while training.epoch < config.epochs:
            while training.position < training.batches:
                if self.interrupted("step"):
                    return
                self.timed("step", training.train_step)
                self.note_step()
                self.lock.check()
                if self.due():
                    self.snapshot()
            if self.interrupted("epoch end"):
                return
            row = self.timed("epoch end", training.end_epoch)
            for tracker in self.trackers:
                tracker.log(numbers(row, "epoch"), training.step)
            if progress is not None:
                progress(row)
            problem = training.problem()
            if problem:
                training.finish("diverged", self.log, problem)
                return
            if training.epoch in config.checkpoints:
                training.save_checkpoint()
            if stop is not None and stop(training.epoch) and training.epoch < config.epochs:
                self.interrupt("stopped on request")
                return
        training.save_checkpoint()
        training.finish("finished", self.log)

    def note_step(self) -> None:
        """Log the step just taken, where it is due."""
        training = self.training
        if self.log.due(training.step):
            row = step_row(
                training.optimizer.last,
                step=training.step,
                epoch=training.epoch + 1,
                lr=training.tally.lr,
                seconds=training.clock(),
            )
            self.log.rows.append(row)
            for tracker in self.trackers:
                tracker.log(numbers(row, "step"), training.step)

    def due(self) -> bool:
        """Whether it is time for a snapshot."""
        cost = 19 * self.cost("snapshot") if self.snapshot_seconds else 0.0
        return time.monotonic() - self.saved > max(self.snapshot_seconds, cost)

    def snapshot(self) -> None:
        """Write a snapshot, and the parts of the step log that belong to it."""
        self.timed("snapshot", lambda: self.training.snapshot(self.log))
        self.saved = time.monotonic()

    def timed(self, work: str, function: Callable[[], Any]) -> Any:
        """Call a function and remember how long it took, for the time limit."""
        start = time.monotonic()
        result = function()
        self.training.took(work, time.monotonic() - start)
        return result

    def cost(self, work: str) -> float:
        """How long a kind of work takes at its slowest, as measured in this call or those before; else a guess."""
        known, steps = self.training.longest, self.training.step - self.first
        if work == "snapshot":  # weights and two moments of them
            return known.get(work, 3 * known.get("checkpoint", 0.0))
        if work == "epoch end" and steps:  # half an epoch; no guess keeps a call from getting anywhere
            return known.get(work, 0.5 * self.training.batches * known.get("step", 0.0))
        return known.get(work, 0.0)

    def interrupted(self, ahead: str) -> bool:
        """Stop here if a signal asks for it, or the work ahead and a snapshot may not fit into the time limit."""
        if self.signals.received:
            self.interrupt(f"stopped by {self.signals.received}")
        elif not self.deadline.allows(self.cost(ahead) + self.cost("snapshot")):
            self.interrupt(f"the time limit of {self.deadline.limit:g} s was near")
        else:
            return False
        return True

    def interrupt(self, reason: str) -> None:
        """Write a snapshot and the status."""
        self.snapshot()
        where = f"after step {self.training.step} of {self.training.config.epochs * self.training.batches}"
        self.training.write_status("interrupted", f"{reason} {where}; the same command continues")
