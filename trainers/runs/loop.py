"""The training loop: one run, from a configuration to checkpoints, readable from top to bottom."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from landscape.memory import explained
from landscape.ranks import Ranks
from trainers.backend import USUAL, Backend
from trainers.config import TrainConfig, train_config
from trainers.data.splits import DataBundle
from trainers.files.lock import Lock, locked
from trainers.randomness import derive, seeded
from trainers.runs.folder import Run, load_data
from trainers.runs.limits import Interrupted, Limits
from trainers.runs.records import StepLog
from trainers.runs.sharing import normalises, shared_out
from trainers.runs.signals import Deadline, StopSignals
from trainers.runs.tracking import Trackers, check_trackers
from trainers.runs.training import Training
from trainers.runtime import device_of
from trainers.sharpness_aware.methods.own import import_methods
from trainers.weights.known import remember

__all__ = ["Training", "fit"]

KEPT = "; the same command, also with `--checkpoint-activations`, goes on from the run's last snapshot"

Progress = Callable[[dict[str, Any]], None]


def fit(
    config: TrainConfig | Mapping[str, Any],
    *,
    out: str | Path = "runs",
    device: str = "cpu",
    workers: int = 0,
    checkpoint_activations: bool = False,
    backend: Backend = USUAL,
    trust: bool = False,
    progress: Progress | None = None,
    stop: Callable[[int], bool] | None = None,
    snapshot_seconds: float = 30.0,
    time_limit: float | str | None = None,
    log_steps: int | None = None,
    track: str | Sequence[str] = (),
    signals: bool = True,
    ranks: Ranks | None = None,
    other_ranks: bool = False,
) -> Run:
    """Train one run into the folder `out`/<run id>; skip it if it is finished, continue it if it was interrupted.

    However it is stopped, the same call continues it, and ends with the same weights, buffers, losses and records as if
    it had never been stopped, bit for bit on the CPU.

    Args:
        config: What decides the result.
        out: Folder of runs.
        device: Where to train.
        workers: Processes that read, ahead, data which are not in memory, or transform them one by one; they change no
            bit.
        checkpoint_activations: Compute the activations of the model's blocks again in backward passes instead of
            keeping them: less memory for one more forward pass, and the same numbers.
        backend: How torch computes; its flags are set for this call.
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
        ranks: The processes that train the run together, each on its part of every batch; None is all of the process
            group of `torch.distributed`, or this one alone where there is none. The leader reads and writes the folder.
        other_ranks: Go on also where another number of processes began: the rest then differs by rounding and by the
            draws of dropout and noise from what those would have computed.

    Returns:
        The run. Its status says "diverged" where the loss or a weight was no longer finite, "interrupted", with the
        reason, where `stop` or `time_limit` ended the call, and where `early_stopping` ended it "finished" with it.

    Raises:
        ValueError: For a bad configuration or argument; with several processes if they see other configurations, data
            or weights than the leader, or are another number than began the run.
        landscape.ranks.PeerError: If another process failed.
        PermissionError: For a module:function without `trust`.
        ImportError: If a tracker is not installed.
        trainers.files.lock.BusyError: If another process trains this run.
        MemoryError: If a device has no room, with what would fit; the run can be continued from its last snapshot.
        OSError: If the disk is full, with the file's name; what was there before is kept.
        KeyboardInterrupt: After SIGINT, once the snapshot is written.
        SystemExit: With 128 + its number, after another signal.
    """
    deadline, ranks = Deadline(time_limit, begun=time.monotonic()), Ranks.of() if ranks is None else ranks
    if not isinstance(config, TrainConfig):
        import_methods(config, trust=trust)
        config = train_config(config)
    remember(out, config.init)
    import_methods(config, trust=trust)
    config = config.resolved()
    check_trackers(track)
    if config.executor == "population":
        if ranks.count > 1:
            raise ValueError(
                f"`executor` 'population' trains in one process, and here are {ranks.count} of torchrun: leave it out."
            )
        return _alone_in_a_population(
            config, log_steps, out=out, device=device, workers=workers, checkpoint_activations=checkpoint_activations,
            backend=backend, trust=trust, progress=progress, stop=stop, snapshot_seconds=snapshot_seconds,
            time_limit=time_limit, track=track, signals=signals,
        )  # fmt: skip
    config, data = (config, None) if ranks.count == 1 else _together(config, ranks, trust=trust)
    run = Run(Path(out) / config.run_id)
    log = StepLog(run.folder, log_steps if ranks.leads else None)
    if ranks.led(lambda: run.finished):
        if ranks.leads:
            run.tidy()
        return run
    purpose = "training" if ranks.leads else f"training of process {ranks.rank}"
    with StopSignals(active=signals) as asked, seeded(derive(config.seed, purpose)), ExitStack() as stack:
        stack.enter_context(backend.flags())
        data = load_data(config, trust=trust) if data is None else data
        with explained(device_of(device), examples=None, option=""):
            training = ranks.alike(
                lambda: Training(
                    config, run, data=data, device=device, trust=trust, diagnose=log_steps is not None, workers=workers,
                    checkpoint_activations=checkpoint_activations, backend=backend, ranks=ranks,
                )
            )  # fmt: skip
        stack.callback(training.reader.close)
        if ranks.count > 1:
            ranks.require_same(training.facts)
        held: list[Lock] = []
        ranks.led(lambda: held.append(stack.enter_context(locked(run.folder))))
        if not ranks.led(lambda: run.finished):  # else the process that held the lock until now has done it
            training.begin(log, other_ranks=other_ranks)
            trackers = stack.enter_context(Trackers(track if ranks.leads else (), run, config, training.step))
            limits = Limits(training, log, held[0] if held else None, deadline, asked, snapshot_seconds, ranks)
            stack.enter_context(explained(training.device, examples=config.chunk, option="`micro_batch`", then=KEPT))
            try:
                _train(training, log, trackers, limits, progress or (lambda _: None), stop or (lambda _: False))
            except Interrupted as reason:
                limits.interrupt(reason)
    asked.leave(run.folder)
    return run


def _alone_in_a_population(config: TrainConfig, log_steps: int | None, **how: Any) -> Run:
    """A population of one."""
    from trainers.sweep.together import fit_together  # which trains as this module does

    if log_steps is not None:
        raise ValueError(f"`log_steps` {log_steps} is not for `executor` 'population', which reads no single step.")
    return fit_together([config], **how)[0]


def _together(config: TrainConfig, ranks: Ranks, *, trust: bool) -> tuple[TrainConfig, DataBundle]:
    """The configuration of a run that several processes train, and its data, once all have the same in mind."""

    def read() -> tuple[TrainConfig, DataBundle]:
        data = load_data(config, trust=trust)
        return shared_out(config, ranks.count, normalised=normalises(config, data, trust=trust)), data

    ranks.require_same(lambda: {"configuration": config.run_id})
    return ranks.alike(read)


def _train(
    training: Training,
    log: StepLog,
    trackers: Trackers,
    limits: Limits,
    progress: Progress,
    stop: Callable[[int], bool],
) -> None:
    """From where the run is to its end; `limits` may raise `Interrupted` before any piece of work."""
    config, reason = training.config, ""
    while training.epoch < config.epochs:
        while training.position < training.batches:
            with limits.allow("step"):
                training.train_step()
            if log.due(training.step):
                trackers.log(log.add(training.step_row()), "step", training.step)
            limits.keep()
        with limits.allow("epoch end"):
            row = training.end_epoch()  # evaluates
        trackers.log(row, "epoch", training.step)
        if training.ranks.leads:
            progress(row)
        problem = training.problem()
        if problem:
            training.finish("diverged", log, problem)
            return
        if training.epoch in config.checkpoints:
            training.save_checkpoint()
        training.keep_best()
        if reason := training.enough():
            break
        asked = training.ranks.led(lambda: stop(training.epoch))
        if asked and training.epoch < config.epochs:
            raise Interrupted("stopped on request")
    training.save_checkpoint()
    training.finish("finished", log, reason)
