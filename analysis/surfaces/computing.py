"""Scanning a checkpoint in several processes: shared out by blocks, kept as they come, the same bits in any order."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from analysis.measures.checkpoints import Checkpoint
from analysis.surfaces.journal import Group, Journal
from analysis.surfaces.places import surface_risks
from analysis.surfaces.recipe import Recipe
from landscape.memory import explained
from landscape.surfaces import Axes, Axis
from landscape.surfaces.scanner import Scanner, Values
from trainers.backend import USUAL, Backend
from trainers.files.writing import write_atomically
from trainers.reference import is_reference, load_reference
from trainers.runtime import Runtime
from trainers.sweep.parallel import in_parallel, single_threaded

BUNDLE_SECONDS = 1.0  # of work that a killed process may lose
WORTH_TELLING = 3.0  # seconds of work below which progress is not shown
START_SECONDS = 15.0  # of work below which other processes are not worth starting
AXES = "axes.safetensors"

Point = tuple[float, ...]
Track = Callable[[Iterable[Any], str, int], Iterator[Any]]


@dataclass(frozen=True)
class Task:
    """What a process needs to evaluate points; small, so that it travels.

    Attributes:
        checkpoint: Gives the model and the data.
        recipe: What is evaluated.
        axes: File of the origin and the directions.
        names: For each axis: name and unit.
        key: Tells tasks apart.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    axes: Path
    names: tuple[tuple[str, str], ...]
    key: str


def write_axes(axes: Axes, path: Path) -> None:
    """Write origin and directions, for the processes that scan."""
    tensors = {f"origin/{name}": t for name, t in axes.origin.items()}
    for i, axis in enumerate(axes.axes):
        tensors |= {f"{i}/{name}": t for name, t in axis.direction.items()}
        tensors |= {f"{i}.buffers/{name}": t for name, t in axis.buffers.items()}
    kept = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    write_atomically(path, lambda aside: save_file(kept, aside))


def read_axes(path: Path, names: Sequence[tuple[str, str]], order: Sequence[str], device: str) -> Axes:
    """Read them back to a device, with the origin in the given order of names."""
    # copies of their own: in the file's buffer tensors begin anywhere, and sums over other alignments round otherwise
    stored = {name: t.clone().to(device) for name, t in load_file(path).items()}

    def part(start: str) -> dict[str, torch.Tensor]:
        found = {n.removeprefix(start): t for n, t in stored.items() if n.startswith(start)}
        return {name: found[name] for name in order if name in found} | found

    axes = tuple(Axis(part(f"{i}/"), name, unit, buffers=part(f"{i}.buffers/")) for i, (name, unit) in enumerate(names))
    return Axes(part("origin/"), axes)


def metrics_of(recipe: Recipe) -> dict[str, Any]:
    """Built-in metrics by name, and functions named as module:function, which are called as their last part.

    Raises:
        ValueError: If a reference names a class.
    """
    found: dict[str, Any] = {}
    for name in recipe.metrics:
        if is_reference(name):
            function = load_reference(name)
            if isinstance(function, type):
                raise ValueError(
                    f"`metrics` has {name!r}, which is a class: name a function of (outputs, targets), such as a "
                    "method of an object that the module has made."
                )
            found[name.rpartition(":")[2].replace("_", " ")] = function
        else:
            found[name] = name
    return found


_scanner: tuple[tuple[str, str], Scanner] | None = None  # one process evaluates many bundles of one task


def scanner_of(task: Task, device: str, workers: int = 0, backend: Backend = USUAL) -> Scanner:
    """The scanner of a task on a device; the last one is kept in memory."""
    global _scanner
    if _scanner is None or _scanner[0] != (task.key, device):
        _scanner = None  # let go of the old one first
        subject = task.checkpoint.load(task.recipe.seed, device).read_by(workers).by(backend)
        risks = surface_risks(subject, task.recipe)
        axes = read_axes(task.axes, task.names, next(iter(risks.values())).names, device)
        _scanner = ((task.key, device), Scanner(risks, axes, metrics=metrics_of(task.recipe)))
    return _scanner[1]


Block = tuple[int, np.ndarray]  # the number of its first point, and its points, one row each


def evaluate(
    task: Task, blocks: Sequence[Block], device: str, *, workers: int = 0, backend: Backend = USUAL
) -> list[tuple[int, Group]]:
    """Values and standard errors of some blocks."""
    scanner = scanner_of(task, device, workers, backend)
    found = []
    for number, points in blocks:
        with backend.flags(), explained(device, examples=task.recipe.batch_size, option="`--batch-size`"):
            values = scanner.evaluate([tuple(row) for row in points.tolist()])
        table = np.stack([torch.stack(values[c]).numpy() for c in scanner.columns], axis=-1)  # (2, points, metrics)
        found.append((number, np.ascontiguousarray(table.transpose(1, 0, 2))))
    return found


def told_time(points: int, seconds: float, jobs: int) -> str:
    """Points, and the time they take."""
    whole = points * seconds / jobs
    shown = f"{whole:.0f} s" if whole < 120 else f"{whole / 60:.0f} min" if whole < 7200 else f"{whole / 3600:.1f} h"
    return f"{points} points of {1000 * seconds:.3g} ms each: about {shown} on {jobs} core{'s' * (jobs > 1)}"


class Computation:
    """Evaluates lists of points in several processes, one list after another, and keeps what is done in a journal.

    A second computation of the same lists in the same order finds the first one's values in the journal. All ranks must
    ask for the same lists; each computes its share and keeps it in a journal of its own, and all get the whole, from
    each other: no process reads what another writes or removes.

    Args:
        task: What is evaluated; its axes lie in the journal's folder.
        journal: Open.
        runtime: Where, by which of the processes of `torchrun`, and how many each of them starts.
        track: Shows progress.
    """

    def __init__(self, task: Task, journal: Journal, runtime: Runtime, *, track: Track) -> None:
        self.task, self.journal, self.runtime, self.track = task, journal, runtime, track
        self.ranks, self.device = runtime.ranks, runtime.devices[0]
        self.scanner: Scanner = self.ranks.alike(
            lambda: single_threaded(scanner_of, task, self.device, runtime.workers, runtime.backend)
        )
        self._asked = 0
        self._writer = journal.writer(str(self.ranks.rank))
        self._done = self.ranks.led(journal.done)  # before any process writes

    def estimate(self, points: int) -> str:
        """How long so many points will take, in words, from a few at the origin."""
        each = single_threaded(self.scanner.seconds_per_point)
        return told_time(points, each, self.ranks.count * self.runtime.processes)

    def evaluate(self, points: Sequence[Point]) -> Values:
        """As `Scanner.evaluate`.

        Raises:
            OSError: As the disk does; what is done is kept.
            Stopped: After Ctrl-C or SIGTERM, likewise.
        """
        rows = np.array(points, dtype=np.float64).reshape(len(points), -1)
        blocks = [(self._asked + b.start, rows[b.start : b.stop]) for b in self.scanner.blocks(len(rows))]
        self._asked += len(rows)
        todo = [block for block in blocks if block[0] not in self._done]
        for found in self.ranks.each(lambda: self._compute(todo[self.ranks.rank :: self.ranks.count])):
            self._done |= found
        table = torch.from_numpy(np.concatenate([self._done[number] for number, _ in blocks]))
        return {c: (table[:, 0, i].clone(), table[:, 1, i].clone()) for i, c in enumerate(self.scanner.columns)}

    def _compute(self, blocks: list[Block]) -> dict[int, Group]:
        done: dict[int, Group] = {}
        if not blocks:
            return done
        with self._writer as writer:

            def keep(found: list[tuple[int, Group]]) -> None:
                writer.add(found)
                done.update(found)

            begun = time.perf_counter()
            evaluated = partial(evaluate, workers=self.runtime.workers, backend=self.runtime.backend)
            keep(single_threaded(evaluated, self.task, blocks[:1], self.device))
            spent = max(time.perf_counter() - begun, 1e-6)
            rest = blocks[1:]
            jobs = self.runtime.processes
            if spent * len(rest) < START_SECONDS:
                jobs = 1  # starting a process takes longer
            count = max(1, min(round(BUNDLE_SECONDS / spent), math.ceil(len(rest) / (4 * jobs)) or 1))
            bundles = [rest[i : i + count] for i in range(0, len(rest), count)]
            calls = [(self.task, bundle) for bundle in bundles]
            results = in_parallel(evaluated, calls, jobs=jobs, devices=self.runtime.devices)
            tell = self.ranks.leads and spent * len(rest) > WORTH_TELLING
            for found in self.track(results, "scanning", len(bundles)) if tell else results:
                keep(found)
        return done
