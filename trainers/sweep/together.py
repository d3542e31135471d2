"""Training a population: the loop of `trainers.runs.loop` for several runs at once."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from landscape.ranks import Ranks
from trainers.backend import USUAL, Backend
from trainers.config import TrainConfig
from trainers.data.splits import DataBundle
from trainers.files.lock import Lock, locked
from trainers.randomness import derive, seeded
from trainers.runs.folder import Run, data_options, load_data
from trainers.runs.limits import Interrupted, Limits
from trainers.runs.records import StepLog
from trainers.runs.signals import Deadline, StopSignals
from trainers.runs.tracking import Trackers, check_trackers
from trainers.runs.training import Training
from trainers.sweep.alike import group_of
from trainers.sweep.population import Population
from trainers.weights.known import remember

MOST = 512  # models of a population
WEIGHTS = 2**26  # entries of their weights; a step holds some ten times as many
INPUTS = {"cpu": 2**22, "other": 2**24}  # entries of the inputs of a step; activations are a multiple of them


@dataclass(frozen=True, eq=False)
class Member:
    """A run of a population, and what belongs to it alone."""

    training: Training
    log: StepLog
    lock: Lock
    trackers: Trackers


class SharedLimits(Limits):
    """The limits of several runs: one signal or time limit stops all, and all have snapshots of one step.

    The first run keeps how long the work of all takes.
    """

    def __init__(
        self, members: Sequence[Member], deadline: Deadline, signals: StopSignals, snapshot_seconds: float
    ) -> None:
        first = members[0]
        super().__init__(first.training, first.log, first.lock, deadline, signals, snapshot_seconds, Ranks())
        self.going = list(members)
        self.population: Population | None = None

    def keep(self) -> None:
        """As of one run."""
        for member in self.going:
            member.lock.check()
        super().keep()

    def snapshot(self) -> None:
        """Write a snapshot of each run that goes on."""
        start = time.monotonic()
        if self.population is not None:
            self.population.settle()
        for member in self.going:
            member.training.snapshot(member.log)
        self.saved = time.monotonic()
        self.training.took("snapshot", self.saved - start)

    def interrupt(self, reason: Interrupted) -> None:
        """Write snapshots and statuses."""
        self.snapshot()
        for member in self.going:
            member.training.write_status("interrupted", self.told(reason, member.training))


def fit_together(
    configs: Sequence[TrainConfig],
    *,
    out: str | Path = "runs",
    device: str = "cpu",
    workers: int = 0,
    checkpoint_activations: bool = False,
    backend: Backend = USUAL,
    trust: bool = False,
    progress: Callable[[dict[str, Any]], None] | None = None,
    stop: Callable[[int], bool] | None = None,
    snapshot_seconds: float = 30.0,
    time_limit: float | str | None = None,
    track: str | Sequence[str] = (),
    signals: bool = True,
    failed: list[tuple[TrainConfig, Exception]] | None = None,
) -> list[Run]:
    """Train a population: runs of one model and size at once, each into a folder of its own as by `fit`.

    Each step is that of a run by itself to rounding. Runs that diverge, or stop early, leave the population, and those
    that were stopped go on from their snapshots; where they stand at different steps, the last catch up first.

    Args:
        configs: Runs with `executor` "population" that are alike, see `trainers.sweep.alike.populations`.
        out: As for `fit`; so are the others.
        device: Where to train.
        workers: As for `fit`.
        checkpoint_activations: As for `fit`.
        backend: As for `fit`; steps of a population are not compiled.
        trust: As for `fit`.
        progress: Called after each epoch of each run.
        stop: As for `fit`.
        snapshot_seconds: As for `fit`.
        time_limit: As for `fit`.
        track: As for `fit`.
        signals: As for `fit`.
        failed: Gets each run that fails, or that another process trains, with the error, while the others go on; None
            raises it.

    Returns:
        The runs.

    Raises:
        ValueError: If they are not alike, their data are not in memory, or they are to be compiled.
        trainers.files.lock.BusyError: If another process trains one, and there is no `failed`.
        KeyboardInterrupt, SystemExit: As for `fit`.
    """
    deadline = Deadline(time_limit, begun=time.monotonic())
    remember(out, *(config.init for config in configs))
    configs = [config.resolved() for config in configs]
    if len({group_of(c) for c in configs}) > 1 or any(c.executor == "alone" for c in configs):
        raise ValueError(
            "`configs` must be of one population (`executor` 'population', and alike but for seeds, method, rates and "
            "radii): sort them with `trainers.sweep.alike.populations`, or train them with `train_all`."
        )
    if backend.compile:
        raise ValueError("`compile` is not for populations, whose steps `torch.func.vmap` takes: leave it out.")
    check_trackers(track)
    made = _Maker(Path(out), device, workers, checkpoint_activations, backend, trust, track)
    waiting = deque(configs)
    seed = derive(configs[0].seed, "training")
    with StopSignals(active=signals) as asked, seeded(seed), backend.flags():
        while waiting and not asked.received:
            errors: list[tuple[TrainConfig, Exception]] = []
            with ExitStack() as stack:
                members = list(made.members(waiting, stack, errors))
                if members:
                    limits = SharedLimits(members, deadline, asked, snapshot_seconds)
                    try:
                        _train(limits, progress or (lambda _: None), stop or (lambda _: False))
                    except Interrupted as reason:
                        limits.interrupt(reason)
                        waiting.clear()
                    except Exception as error:
                        errors += [(member.training.config, error) for member in limits.going]
            if errors and failed is None:
                raise errors[0][1]
            if failed is not None:
                failed += errors
    asked.leave(Path(out))
    return [made.run(config) for config in configs]


@dataclass(frozen=True)
class _Maker:
    """Makes the members of populations, with data that those of the same have in common."""

    out: Path
    device: str
    workers: int
    checkpoint_activations: bool
    backend: Backend
    trust: bool
    track: str | Sequence[str]
    data: dict[str, DataBundle] = field(default_factory=dict)

    def run(self, config: TrainConfig) -> Run:
        return Run(self.out / config.run_id)

    def members(
        self, waiting: deque[TrainConfig], stack: ExitStack, errors: list[tuple[TrainConfig, Exception]]
    ) -> Iterator[Member]:
        """As many as go into one population, ready to go on; what fails is an error."""
        count, most = 0, 1
        while waiting and count < most:
            config = waiting.popleft()
            try:
                member = self.member(config, stack)
            except Exception as error:
                errors.append((config, error))
                continue
            if member is not None:
                count, most = count + 1, largest(member.training)
                yield member

    def member(self, config: TrainConfig, stack: ExitStack) -> Member | None:
        """One run, where it stands; None for a finished one."""
        run = self.run(config)
        if run.finished:
            run.tidy()
            return None
        key = repr([data_options(config), config.precision])
        if key not in self.data:
            self.data[key] = load_data(config, trust=self.trust).to(self.device, workers=self.workers)
        training = Training(
            config, run, data=self.data[key], device=self.device, trust=self.trust, workers=self.workers,
            checkpoint_activations=self.checkpoint_activations, backend=self.backend,
        )  # fmt: skip
        stack.callback(training.reader.close)
        lock = stack.enter_context(locked(run.folder))
        if run.finished:  # by the process that held the lock until now
            return None
        log = StepLog(run.folder, None)
        training.begin(log)
        trackers = stack.enter_context(Trackers(self.track, run, config, training.step))
        return Member(training, log, lock, trackers)


def largest(training: Training) -> int:
    """How many models like a run's make a population that fits in memory."""
    weights = sum(p.numel() for p in training.model.parameters())
    inputs = training.config.batch_size * math.prod(training.data.shape)
    room = INPUTS["cpu" if training.device.type == "cpu" else "other"]
    return max(1, min(MOST, WEIGHTS // weights, room // inputs))


def _train(limits: SharedLimits, progress: Callable[[dict[str, Any]], None], stop: Callable[[int], bool]) -> None:
    """From where the runs are to their ends; `limits` may raise `Interrupted` before any piece of work."""
    while limits.going:
        behind = min(member.training.step for member in limits.going)
        moving = [m for m in limits.going if m.training.step == behind]
        until = min((m.training.step for m in limits.going if m not in moving), default=math.inf)
        population = limits.population = Population([m.training for m in moving])
        while all(member in limits.going for member in moving) and behind < until:
            while population.position < population.batches and behind < until:
                with limits.allow("step"):
                    population.step()
                behind += 1
                limits.keep()
            population.settle()
            if population.position == population.batches:
                with limits.allow("epoch end"):
                    ended = [member for member in moving if _end_epoch(member, progress)]
                limits.going = [member for member in limits.going if member not in ended]
                epoch = moving[0].training.epoch
                if stop(epoch) and epoch < moving[0].training.config.epochs:
                    raise Interrupted("stopped on request")
                if not ended:
                    population.begin()


def _end_epoch(member: Member, progress: Callable[[dict[str, Any]], None]) -> bool:
    """Evaluate a run and keep what is to be kept; whether it has ended."""
    training, log = member.training, member.log
    row = training.end_epoch()
    member.trackers.log(row, "epoch", training.step)
    progress(row)
    if problem := training.problem():
        training.finish("diverged", log, problem)
        return True
    if training.epoch in training.config.checkpoints:
        training.save_checkpoint()
    training.keep_best()
    reason = training.enough()
    if not reason and training.epoch < training.config.epochs:
        return False
    training.save_checkpoint()
    training.finish("finished", log, reason)
    return True
