"""Sheets: one surface each, computed from a checkpoint and a recipe, kept in a file, and read back."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from analysis.measures.checkpoints import Checkpoint
from analysis.measures.subject import Subject
from analysis.progress import quiet
from analysis.surfaces.between import Fit, Tell, passages, plane_drawing, silent, surface_of
from analysis.surfaces.computing import AXES, Computation, Task, Track, write_axes
from analysis.surfaces.drawing import Drawing, draw, known_facts, trajectory_grid
from analysis.surfaces.files import read_surface, write_surface
from analysis.surfaces.journal import Journal
from analysis.surfaces.places import label, surface_risks
from analysis.surfaces.recipe import Recipe
from analysis.surfaces.trajectory import SurfacePath, Trail, trail
from landscape import EmpiricalRisk
from landscape.surfaces import Surface
from landscape.surfaces.refinement import Refinement
from landscape.surfaces.scan import assemble
from trainers.files.lock import locked
from trainers.files.writing import write_bytes
from trainers.runtime import HERE, Runtime
from trainers.sweep.parallel import single_threaded


@dataclass(frozen=True, eq=False, repr=False)
class Sheet:
    """One surface with what belongs to it.

    Attributes:
        name: Of the model, for legends and titles.
        surface: The values.
        paths: Trajectories over it.
        file: Where it is kept.
    """

    name: str
    surface: Surface
    paths: tuple[SurfacePath, ...] = ()
    file: Path | None = None

    def __repr__(self) -> str:
        return f"Sheet({self.name!r}, {self.surface!r})"

    @classmethod
    def read(cls, path: str | Path) -> "Sheet":
        """A sheet from its file."""
        surface, paths = read_surface(path)
        return cls(str(surface.context.get("name", Path(path).stem)), surface, tuple(paths), Path(path))


def folder_of(checkpoint: Checkpoint) -> Path:
    """Where surfaces of a checkpoint are kept."""
    return checkpoint.cache.index.parent.parent / "surfaces"


def file_of(checkpoint: Checkpoint, recipe: Recipe, *others: Checkpoint, reach: Sequence[float] | None = None) -> Path:
    """The file of a surface: named by its axes, the checkpoint's step, and what decides its values."""
    about = [[c.run_id, c.step, c.cache.stamp()["sha256"], dict(c.context)] for c in (checkpoint, *others)]
    key = recipe.key(about, list(reach or ()))
    return folder_of(checkpoint) / f"{recipe.title}-{checkpoint.step}-{key[:8]}.npz"


def scan_checkpoint(
    checkpoint: Checkpoint,
    recipe: Recipe,
    *,
    others: Sequence[Checkpoint] = (),
    reach: Sequence[float] | None = None,
    runtime: Runtime = HERE,
    track: Track = quiet,
    announce: Tell = silent,
    wait: float = 0.0,
) -> Sheet:
    """The surface around a checkpoint: read back if it is there, else computed, or what is left of it.

    Args:
        checkpoint: Where.
        recipe: What.
        others: Runs whose trajectories are shown too, for pca axes.
        reach: Radius along each axis where the recipe leaves it open.
        runtime: Where; the processes of `torchrun` join.
        track: Shows progress.
        announce: Told what is done, and what it will take.
        wait: Seconds to wait for another process that computes the same surface.

    Raises:
        BusyError: If another process computes the same surface.
        PeerError: If another process of `torchrun` failed.
    """
    with runtime.joined() as among:
        return _scan(checkpoint, recipe, others, reach, among, track, announce, wait)


def _scan(
    checkpoint: Checkpoint, recipe: Recipe, others: Sequence[Checkpoint], reach: Sequence[float] | None,
    runtime: Runtime, track: Track, announce: Tell, wait: float,
) -> Sheet:  # fmt: skip
    team, device = runtime.ranks, runtime.devices[0]
    path = team.alike(lambda: file_of(checkpoint, recipe, *others, reach=reach))
    parts = path.with_suffix(".parts")
    with ExitStack() as lock:
        if team.led(lambda: _claimed(lock, path, path.exists, wait)):
            if team.leads:
                announce(f"axes of {checkpoint.run_id}, step {checkpoint.step}")
            subject = team.alike(
                lambda: checkpoint.load(recipe.seed, device).read_by(runtime.workers).by(runtime.backend)
            )
            risk = next(iter(surface_risks(subject, recipe).values()))
            drawing, trails = team.alike(
                lambda: single_threaded(_drawn, subject, risk, recipe, (checkpoint, *others), reach)
            )
            journal = Journal(parts, {"file": path.name, "grid": list(drawing.grid.shape), "torch": torch.__version__})

            def begin() -> None:
                journal.open()
                write_axes(drawing.axes, parts / AXES)

            team.led(begin)
            names = tuple((axis.name, axis.unit) for axis in drawing.axes.axes)
            work = Computation(Task(checkpoint, recipe, parts / AXES, names, str(path)), journal, runtime, track=track)
            if team.leads:
                announce(work.estimate(len(drawing.grid)))
            surface = _computed(work, drawing, context_of(subject, checkpoint, recipe) | drawing.facts, recipe)
            paths = tuple(t.path(work.evaluate(t.points)) for t in trails)

            def end() -> None:  # all have what they need of the journal
                write_surface(surface, path, paths)
                journal.remove()

            team.led(end)
    return team.alike(lambda: Sheet.read(path))


def _claimed(lock: ExitStack, path: Path, there: Callable[[], bool], wait: float) -> bool:
    """Take the lock of a surface that is not there yet; False where it is, or another process made it meanwhile."""
    parts = path.with_suffix(".parts")
    if there() and not parts.exists():
        return False
    lock.enter_context(locked(path.parent, f"{path.stem}.lock", wait=wait))
    if there():
        shutil.rmtree(parts, ignore_errors=True)  # of a process that was killed when it had just written the file
        return False
    return True


def _drawn(
    subject: Subject, risk: EmpiricalRisk, recipe: Recipe, places: Sequence[Checkpoint], reach: Sequence[float] | None
) -> tuple[Drawing, list[Trail]]:
    """Axes and grid, and the trajectories over them."""
    device = str(subject.risk.device)
    subjects = [subject, *(other.load(recipe.seed, device) for other in places[1:])]
    if recipe.between == "plane":
        drawing, trails = plane_drawing(subjects, recipe)
        return replace(drawing, facts=drawing.facts | known_facts(risk, drawing.axes, subject, recipe)), trails
    drawing = draw(subject, risk, recipe, reach=reach)
    if drawing.trajectory is None:
        return drawing, []
    trails = [trail(s, place, drawing.axes, recipe) for s, place in zip(subjects, places, strict=True)]
    grid = trajectory_grid(drawing.trajectory, recipe, [t.projected for t in trails])
    return replace(drawing, grid=grid), trails


def _computed(work: Computation, drawing: Drawing, context: Mapping[str, Any], recipe: Recipe) -> Surface:
    """Scan the whole grid, or where it bends."""
    grid, scanner = drawing.grid, work.scanner
    origin = work.evaluate([(0.0,) * len(drawing.axes)])
    centre = {c: (float(v[0]), float(e[0])) for c, (v, e) in origin.items()}
    if recipe.refine is not None:
        found = Refinement(
            scanner, grid, levels=3, tolerance=recipe.refine,
            evaluate=lambda wanted: work.evaluate([grid.point(i) for i in wanted]),
        ).run(context=context)  # fmt: skip
    else:
        values = work.evaluate(list(grid.points()))
        found = assemble(
            scanner, grid, values, torch.ones(len(grid), dtype=torch.bool), centre=centre, context=context
        )  # fmt: skip
    axes = tuple(
        {"name": a.name, "unit": a.unit, "length": a.length, "recipe": dict(a.recipe)} for a in drawing.axes.axes
    )
    known = {k: v for k, v in found.context.items() if k != "failures"}  # which process met one is chance
    return replace(found, centre=centre, axes=axes, gram=drawing.axes.gram, context=known)


def context_of(subject: Subject, checkpoint: Checkpoint, recipe: Recipe) -> dict[str, Any]:
    """What decides the values, and what the model is called."""
    known: dict[str, Any] = {
        "name": label(subject),
        "run": checkpoint.run_id,
        "step": checkpoint.step,
        "epoch": subject.epoch,
        "data": subject.data.name,
        "loss": subject.task.name.replace("_", "-"),
        "recipe": recipe.model_dump(mode="json"),
    }
    if subject.config is not None:
        known |= {"method": subject.config.method, "rho": subject.config.resolved().rho}
    return known


def between_models(
    checkpoints: Sequence[Checkpoint], recipe: Recipe, *, runtime: Runtime, tell: Tell = silent, wait: float = 0.0,
    fit: Fit | None = None,
) -> list[Sheet]:  # fmt: skip
    """The line, and the curve, between two models: a sheet for each way and each mode of normalisation layers.

    Args:
        checkpoints: The models'.
        recipe: What.
        tell: Told what is being done.
        runtime: Where; of the processes of `torchrun` the leader alone computes.
        wait: Seconds to wait for another process that computes the same.
        fit: Fits a curve.

    Raises:
        BusyError: If another process computes the same.
        ValueError: If there are not two, or they differ in architecture.
    """
    team = runtime.ranks
    path = team.alike(lambda: file_of(checkpoints[0], recipe, *checkpoints[1:]))
    whole = path.parent / f"{path.stem}.whole"

    def files() -> list[Path]:
        return sorted(path.parent.glob(f"{path.stem}.*.npz"))

    def made() -> None:
        with ExitStack() as lock:
            if _claimed(lock, path, lambda: whole.exists() and bool(files()), wait):
                _make_between(checkpoints, recipe, path, runtime, tell, fit)
                write_bytes(whole, b"")

    team.led(made)
    return team.alike(lambda: [Sheet.read(p) for p in files()])


def _make_between(
    checkpoints: Sequence[Checkpoint], recipe: Recipe, path: Path, runtime: Runtime, tell: Tell, fit: Fit | None
) -> None:
    """Compute and write them."""
    loaded = (c.load(recipe.seed, runtime.devices[0]) for c in checkpoints)
    subjects = [subject.read_by(runtime.workers).by(runtime.backend) for subject in loaded]
    context = context_of(subjects[0], checkpoints[0], recipe) | {"models": [s.run_id for s in subjects]}
    for n, passage in enumerate(passages(subjects, recipe, fit=fit, tell=tell)):
        modes = list(dict.fromkeys(there for _, there in passage.profile.examples))
        for mode in modes:
            surface = surface_of(passage, mode, subjects, context | {"running_statistics": len(modes) > 1})
            write_surface(surface, path.with_suffix(f".{n}-{passage.name.replace(', ', '-')}-{mode}.npz"))
