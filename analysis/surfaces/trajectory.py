"""Trajectories over a surface: where training went, how far from the plane, and the loss there and on the plane."""

from dataclasses import dataclass, replace

import pandas as pd
import torch

from analysis.measures.checkpoints import Checkpoint, RunCheckpoint
from analysis.measures.subject import Subject
from analysis.surfaces.drawing import loaded
from analysis.surfaces.places import label, surface_risks
from analysis.surfaces.recipe import Recipe
from landscape import Params, displaced
from landscape.surfaces import Axes
from landscape.surfaces.scanner import Scanner, Values
from landscape.surfaces.trajectory import ProjectedPath, project_path


@dataclass(frozen=True, eq=False)
class SurfacePath:
    """Points of one run, projected on the axes of a surface.

    Attributes:
        name: Of the run, for the legend.
        table: A row a point, with the columns `step`, `a1` (and `a2`, `a3`: coordinates of its projection), `distance`
            (l2, off the plane), `loss` and `loss_stderr` (at the point itself), `plane_loss` (at its projection), and,
            where the run's perturbation is known, `p1` (`p2`): the coordinates of the perturbed point.
        look: The training method, which decides colour and marker.
    """

    name: str
    table: pd.DataFrame
    look: str = ""


@dataclass(frozen=True, eq=False)
class Trail:
    """A run's checkpoints on some axes.

    Attributes:
        name: For the legend.
        look: The training method.
        steps: Of the checkpoints.
        projected: Where they lie.
        losses: (value, standard error) at each, with its own weights and running statistics.
        perturbed: Where the run's own perturbation, of the gradient on the examples of the surface, moves each; None
            for runs without one.
    """

    name: str
    look: str
    steps: tuple[int, ...]
    projected: ProjectedPath
    losses: tuple[tuple[float, float], ...]
    perturbed: ProjectedPath | None

    @property
    def points(self) -> list[tuple[float, ...]]:
        """Where the loss of the plane is wanted."""
        return [tuple(row) for row in self.projected.coordinates.tolist()]

    def path(self, plane: Values | None) -> SurfacePath:
        """The table, with the plane's loss at the points."""
        columns = {"step": [float(step) for step in self.steps]}
        columns |= {f"a{i}": c.tolist() for i, c in enumerate(self.projected.coordinates.T, start=1)}
        columns["distance"] = self.projected.distances.tolist()
        columns["loss"], columns["loss_stderr"] = (list(c) for c in zip(*self.losses, strict=True))
        if plane is not None:
            columns["plane_loss"] = next(iter(plane.values()))[0].tolist()
        if self.perturbed is not None:
            columns |= {f"p{i}": c.tolist() for i, c in enumerate(self.perturbed.coordinates.T, start=1)}
        return SurfacePath(self.name, pd.DataFrame(columns), self.look)


def trail(subject: Subject, place: Checkpoint, axes: Axes, recipe: Recipe) -> Trail:
    """Follow a run over some axes, one checkpoint in memory at a time.

    Args:
        subject: Its last checkpoint.
        place: Where that is, and whether its modules are trusted.
        axes: The axes.
        recipe: Of the surface.

    Raises:
        ValueError: If it is no run, or of another architecture than the axes.
    """
    if subject.run is None or not isinstance(place, RunCheckpoint):
        raise ValueError(f"{subject.run_id} has no checkpoints along training: name runs for their trajectories.")
    steps = tuple(step for step in subject.run.checkpoints() if step <= subject.step)
    projected = project_path(axes, loaded(subject.run, steps, axes.origin))
    losses: list[tuple[float, float]] = []
    moved: list[Params] = []
    for step in steps:
        there = replace(place, step=step).load(recipe.seed, str(subject.risk.device))
        risk = next(iter(surface_risks(there, recipe).values()))
        at = Scanner(risk, replace(axes, origin=dict(risk.theta)), metrics=["loss"], batch_points=1)
        losses.append(at.centre()["loss"])
        if there.own is not None and there.own.provider in ("sam", "asam"):
            moved.append(displaced(risk.theta, there.own.step(risk.theta, risk.gradient())))
    finite = [p for p in moved if all(bool(torch.isfinite(t).all()) for t in p.values())]
    perturbed = project_path(axes, moved) if moved and len(finite) == len(moved) == len(steps) else None
    return Trail(label(subject), label(subject), steps, projected, tuple(losses), perturbed)
