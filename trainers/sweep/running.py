"""Many runs: which there are, which part of them is ours, and training them so that none can stop the others."""

import itertools
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainers.config import TrainConfig
from trainers.files.lock import PATIENCE, BusyError, locked
from trainers.files.writing import write_json
from trainers.runs.folder import Run
from trainers.runs.loop import fit
from trainers.runs.signals import seconds_of
from trainers.runs.tracking import check_trackers
from trainers.runtime import Runtime
from trainers.sharpness_aware.methods.own import import_methods
from trainers.sweep.alike import populations, why_alone
from trainers.sweep.cluster import on_ray
from trainers.sweep.parallel import Stopped, in_parallel, log, single_threaded, stopped_by_signals
from trainers.sweep.search import RandomSearch, combinations
from trainers.sweep.together import fit_together
from trainers.weights.known import remember

INTERRUPTED = 128 + signal.SIGINT  # exit code
OUT_OF_TIME = 75  # exit code EX_TEMPFAIL: try again


def expand(
    base: Mapping[str, Any],
    grid: Mapping[str, Any],
    variants: Sequence[Mapping[str, Any]] = ({},),
    *,
    random: RandomSearch | Mapping[str, Any] | None = None,
) -> list[TrainConfig]:
    """All runs of a sweep: a grid, and random draws if wanted, for each variant, on top of a base configuration.

    Keys are those of a configuration; a key with a dot is one option, such as `model_options.width`. A condition sets
    a key only in the runs where others have given values: {values: [0.05, 0.1], when: {method: [sam, gsam]}}. It may
    name several keys, all of which must hold, or what a key must not be, {not: sgd}; `takes_rho: true` means every
    method with a radius. What is not given counts with its default.

    Args:
        base: Keys and values common to all runs.
        grid: Key to list of values; crossed with everything.
        variants: Further keys, such as a method with its radii; a list as value is crossed within the variant, and a
            distribution, such as {log_uniform: [0.01, 1.0]}, is drawn from.
        random: `draws`, `seed` and `space`, which gives keys their distributions: {uniform: [low, high]}, also
            log_uniform, integers, log_integers (bounds included) and {choice: [...]}. Every combination of the grid and
            every variant gets the same draws, as many different ones as `draws` says.

    Returns:
        The configurations without repetition, in order. More draws, or another order of keys, change none of those
        that were there.

    Raises:
        ValueError: For an empty list, an unknown key or distribution, a condition that no run meets, more draws than
            there are, or a configuration that is not valid.
    """
    if random is not None and not isinstance(random, RandomSearch):
        parsed = RandomSearch.parse(random, where="`random`")
        assert isinstance(parsed, RandomSearch)
        random = parsed
    return combinations(base, grid, variants, random)


def part(configs: Sequence[TrainConfig], shard: tuple[int, int]) -> list[TrainConfig]:
    """One of n parts of a sweep, for array jobs: no run is in two, and together they are all.

    The runs are dealt out in the order of their hashes, so that the parts differ by at most one run, each has its share
    of slow and fast ones, and the order in which a grid is written changes nothing.

    Args:
        configs: The whole sweep.
        shard: (i, n): part i of n, counted from 0.

    Raises:
        ValueError: Unless 0 <= i < n.
    """
    i, n = shard
    if not 0 <= i < n:
        raise ValueError(
            f"`shard` must be (i, n) with 0 <= i < n, got {shard!r}: parts are counted from 0, as in --array=0-{n - 1}."
        )
    ids = [config.run_id for config in configs]
    ours = set(sorted(set(ids))[i::n])
    return [config for config, run_id in zip(configs, ids, strict=True) if run_id in ours]


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) from "i/n", as a command line has it.

    Raises:
        ValueError: If it is not two whole numbers; `part` checks their range.
    """
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    if not match:
        raise ValueError(f"`shard` must be i/n, such as 0/8 for the first of 8 parts, got {text!r}.")
    return int(match.group(1)), int(match.group(2))


def train_all(
    configs: Sequence[TrainConfig],
    *,
    out: str | Path,
    trust: bool = False,
    shard: tuple[int, int] | None = None,
    time_limit: float | str | None = None,
    track: str | Sequence[str] = (),
    **place: Any,
) -> Iterator[Run]:
    """Train runs in parallel, one process and one thread each; yields each as it ends.

    Finished runs are skipped, interrupted ones continued, failed ones tried again. A run that fails does not stop the
    others, even if its process dies: its status says why. A run that another process is training is left to it. Every
    executor but "population" gives the same results on processors of the same kind.

    Args:
        configs: What to train. Those whose `executor` is "population" are trained many at once in a process; executor
            "population" makes it that of all that can be.
        out: Folder of runs; with Ray on a file system that all its machines share.
        trust: As for `fit`.
        shard: (i, n) trains only part i of n, see `part`.
        time_limit: For all runs together: seconds, or "HH:MM:SS". Runs in progress then stop with a snapshot.
        track: As for `fit`.
        **place: A `Runtime` as `runtime`, or its fields: `jobs`, `device`, `executor`, `address`, `workers`,
            `checkpoint_activations`, `backend`. `jobs=1` trains in this process, where a debugger works but a crash
            ends everything.

    Raises:
        ValueError: For a bad `shard`, `time_limit`, `track` or field of `Runtime`.
        ImportError: For "ray", or a tracker, where it is not installed.
        Stopped: After Ctrl-C, SIGTERM or SIGUSR1, or when the time is over; what was done is kept, and the same call
            goes on from there. It is a `KeyboardInterrupt`.
    """
    runtime = Runtime.of(**place)
    end = None if time_limit is None else time.time() + seconds_of(time_limit)
    remember(out, *(config.init for config in configs))
    import_methods(configs, trust=trust)
    if runtime.executor == "population":
        configs = in_population(configs)
    for reason, count in Counter(why_alone(c) for c in map(_asked, configs) if c is not None).items():
        if reason:
            log.warning("%d of %d runs train one at a time, as no population holds %s", count, len(configs), reason)
    named = {config.run_id: config for config in (configs if shard is None else part(configs, shard))}
    how = {
        "trust": trust,
        "workers": runtime.workers,
        "track": check_trackers(track),
        "checkpoint_activations": runtime.checkpoint_activations,
        "backend": runtime.backend,
    }
    return _train(named, Path(out), runtime, how, end)


def _train(
    configs: Mapping[str, TrainConfig],
    out: Path,
    runtime: Runtime,
    how: Mapping[str, Any],
    end: float | None,
) -> Iterator[Run]:
    todo: dict[str, TrainConfig] = {}
    for run_id, config in configs.items():
        run = Run(out / run_id)
        if run.finished:
            yield run
        else:
            todo[run_id] = config
    pieces = len(runtime.devices) if runtime.devices != ("cpu",) else runtime.processes
    shared = [[c for c in some if c.run_id in todo] for some in populations(configs.values(), pieces)]
    calls: list[tuple[Any, ...]] = [(tuple(some), str(out.absolute()), how, end) for some in shared if some]
    if not calls:
        return
    if runtime.executor == "ray":
        calls = [(*call, runtime.device) for call in calls]
        results = on_ray(train_apart, calls, runtime, lost=worker_died, folder=out, moved=patiently)
    elif runtime.limit == 1:
        results = _here(calls, runtime.devices[0])
    else:
        results = in_parallel(
            train_apart, calls, jobs=runtime.limit, devices=runtime.devices, lost=worker_died, isolate=True
        )
    out_of_time = 0
    try:
        for run_id in itertools.chain.from_iterable(results):
            run = Run(out / run_id)
            if end is not None and run.status()["status"] == "interrupted":
                out_of_time += 1
            else:
                del todo[run_id]
                yield run
        if out_of_time:
            raise Stopped("stopped by the time limit", OUT_OF_TIME)
    except KeyboardInterrupt as stop:
        raise Stopped(
            f"{str(stop) or 'stopped'}: {len(configs) - len(todo)} of {len(configs)} runs are done and kept; the same "
            f"command goes on from there.",
            getattr(stop, "code", INTERRUPTED),
        ) from None


def in_population(configs: Sequence[TrainConfig]) -> list[TrainConfig]:
    """The same runs with executor "population", which those that no population holds do not keep when resolved."""
    return [config.model_copy(update={"executor": "population"}) for config in configs]


def _asked(config: TrainConfig) -> TrainConfig | None:
    """A run that is to be one of a population, resolved; None for others."""
    return config.resolved() if config.executor == "population" else None


def _here(calls: Sequence[tuple[Any, ...]], device: str) -> Iterator[list[str]]:
    """Train in this process; a signal that a run saw ends the sweep."""
    with stopped_by_signals():
        for call in calls:
            try:
                yield single_threaded(train_some, *call, device)
            except SystemExit as stop:  # as `fit` ends after a signal, its snapshot written
                code = stop.code if isinstance(stop.code, int) else INTERRUPTED
                raise Stopped(f"stopped by exit code {code}", code) from None


def train_one(
    config: TrainConfig,
    out: str,
    how: Mapping[str, Any],
    end: float | None = None,
    device: str = "cpu",
    patience: float = 0.0,
) -> str:
    """Train one run of a sweep and return its id; an exception becomes its status.

    Args:
        config: The run.
        out: Folder of runs.
        how: Further arguments of `fit`: `trust`, `workers`, `track`, `checkpoint_activations`, `backend`.
        end: `time.time()` at which the sweep's time is over.
        device: Where to train.
        patience: Seconds to wait for another process to let go of the run.
    """
    begun = time.monotonic()
    while True:
        limit: dict[str, Any] = {}
        if end is not None:
            limit["time_limit"] = end - time.time()
            if limit["time_limit"] <= 0:
                break
        try:
            fit(config, out=out, device=device, **how, **limit)
        except BusyError:  # another process trains it, and will give it its status
            if time.monotonic() - begun < patience:
                time.sleep(min(5.0, patience))
                continue
        except Exception as error:  # the sweep goes on, and says which run failed
            fail(config, out, f"{type(error).__name__}: {error}")
        break
    return config.run_id


def train_some(
    configs: Sequence[TrainConfig],
    out: str,
    how: Mapping[str, Any],
    end: float | None = None,
    device: str = "cpu",
    patience: float = 0.0,
) -> list[str]:
    """Train a population of a sweep, or one run by `train_one`, and return their ids.

    Args:
        configs: Runs that `populations` put together.
        out: As for `train_one`; so are the others.
        how: Further arguments of `fit`.
        end: The end of the sweep's time.
        device: Where to train.
        patience: Seconds to wait for another process.
    """
    if configs[0].resolved().executor == "alone":
        return [train_one(config, out, how, end, device, patience) for config in configs]
    begun, waiting = time.monotonic(), list(configs)
    while waiting:
        errors: list[tuple[TrainConfig, Exception]] = []
        limit: dict[str, Any] = {}
        if end is not None:
            limit["time_limit"] = end - time.time()
            if limit["time_limit"] <= 0:
                break
        try:
            fit_together(waiting, out=out, device=device, failed=errors, **how, **limit)
        except Exception as error:
            errors += [(config, error) for config in waiting]
        for config, why in errors:
            if not isinstance(why, BusyError):
                fail(config, out, f"{type(why).__name__}: {why}")
        waiting = [config for config, why in errors if isinstance(why, BusyError)]
        if time.monotonic() - begun >= patience:
            break
        time.sleep(min(5.0, patience) if waiting else 0.0)
    return [config.run_id for config in configs]


def train_apart(
    configs: Sequence[TrainConfig],
    out: str,
    how: Mapping[str, Any],
    end: float | None = None,
    device: str = "cpu",
    patience: float = 0.0,
) -> list[str]:
    """`train_some` in a process of a sweep, which stops when it is told and leaves the rest to the one that told it."""
    with suppress(KeyboardInterrupt, SystemExit):
        train_some(configs, out, how, end, device, patience)
    return [config.run_id for config in configs]


def patiently(call: tuple[Any, ...]) -> tuple[Any, ...]:
    """The call for runs whose machine went away: their locks count for a while, as nobody can ask that machine."""
    return (*call[:5], PATIENCE)


def worker_died(call: tuple[Any, ...], reason: str) -> list[str]:
    """Record runs whose process died; what they had finished stands."""
    configs, out = call[:2]
    for config in configs:
        fail(config, out, f"its process died ({reason}); the same command continues it. Out of memory? Use fewer jobs.")
    return [config.run_id for config in configs]


def fail(config: TrainConfig, out: str, reason: str) -> None:
    """Give a run the status "failed", unless another process has taken it on since, or finished it."""
    run = Run(Path(out) / config.run_id)
    with suppress(BusyError), locked(run.folder):
        if not run.finished:
            write_json(run.folder / "config.json", {**config.as_dict(), "run_id": config.run_id})
            run.write_status("failed", reason=reason)
