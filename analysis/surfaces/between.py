"""What lies between models: the straight line and its barrier, fitted curves, and the plane through three."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from analysis.measures.subject import Subject
from analysis.surfaces.drawing import Drawing, grid_around
from analysis.surfaces.places import label, surface_risks, surface_splits
from analysis.surfaces.recipe import Recipe
from analysis.surfaces.trajectory import Trail
from landscape.paths import (
    Bezier,
    LinearPath,
    ModelState,
    Path,
    PathProfile,
    Plane,
    Polygon,
    StateEvaluator,
    align,
    barrier,
    line_coordinates,
    plane_through,
    profile,
    summarise,
)
from landscape.paths.states import check_same
from landscape.paths.summary import POINTS
from landscape.surfaces import Axes, Axis, Grid, Surface
from landscape.surfaces.scanner import Scanner
from landscape.surfaces.trajectory import ProjectedPath
from trainers.randomness import stream
from trainers.tasks.task import batch_weight

MARGIN = 0.3  # of the extent of three models, left free around them

Tell = Callable[[str], None]
Curve = Bezier | Polygon
# From the subject whose data it sees, both ends and what is being done, to a curve and how it was fitted; that is
# training, so it is handed over by who may train: see `analysis.curves`.
Fit = Callable[[Subject, ModelState, ModelState, Recipe, Tell], tuple[Curve, dict[str, Any]]]


def silent(_: str) -> None:
    """Say nothing."""


@dataclass(frozen=True, eq=False)
class Passage:
    """A way from one model to another, with the values along it.

    Attributes:
        name: Such as "line", or "line, aligned".
        path: The way.
        profile: Values at its points, by split and mode.
        facts: What is known of it, in JSON.
    """

    name: str
    path: Path
    profile: PathProfile
    facts: dict[str, Any]


def passages(
    subjects: Sequence[Subject], recipe: Recipe, *, fit: Fit | None = None, tell: Tell = silent
) -> Iterator[Passage]:
    """The straight line from the first model to the second, aligned too if asked for, and the curve if asked for.

    Args:
        subjects: Two checkpoints of one architecture; examples are the first one's.
        recipe: With `between` "line", "bezier" or "polygon".
        fit: Fits a curve, where one is asked for.
        tell: Told what is being done.

    Raises:
        ValueError: If there are not two, they differ in architecture, or `fit` is missing.
    """
    curved = recipe.between in ("bezier", "polygon")
    if curved and fit is None:
        raise ValueError(f"`fit` is needed for `between` {recipe.between!r}: give `analysis.curves.fitted`.")
    if len(subjects) != 2:
        raise ValueError(f"`between` {recipe.between!r} goes from one model to another: name two, got {len(subjects)}.")
    splits = surface_splits(subjects[0], recipe)
    first, second = states_of(subjects)
    model = subjects[0].model
    data = {name: split.batches(size=recipe.batch_size) for name, split in splits.items()}
    task = subjects[0].task
    evaluate = StateEvaluator(model, task.loss, data, weight=batch_weight(task))
    where = line_coordinates(points=recipe.counts[0]) if recipe.radius is None else _around(recipe)
    ends: dict[str, ModelState] = {"line": second}
    known: dict[str, dict[str, Any]] = {"line": {}}
    if recipe.align:
        tell("aligning")
        found = align(model, first, second, next(iter(data.values())), generator=stream(recipe.seed, "alignment"))
        ends["line, aligned"] = found.state
        known["line, aligned"] = {
            "distance_before": found.matching.distance_before,
            "distance_after": found.matching.distance,
            "left": [str(text) for text in found.groups.left],
        }
    for name, end in ends.items():
        tell(name)
        straight = LinearPath(first, end)
        yield Passage(
            name, straight, profile(straight, where, evaluate), {"distance": straight.distance, **known[name]}
        )
    if curved and fit is not None:
        curve, how = fit(subjects[0], first, list(ends.values())[-1], recipe, tell)
        t = torch.arange(POINTS, dtype=torch.float64) / (POINTS - 1)
        facts = {"distance": curve.straight, "fit": how}
        name = f"{recipe.between}{', aligned' * recipe.align}"
        yield Passage(name, curve, profile(curve, t, evaluate), facts)


def states_of(subjects: Sequence[Subject]) -> list[ModelState]:
    """Weights and running statistics of several models.

    Raises:
        ValueError: If two differ in architecture.
    """
    states = [ModelState.of(s.model) for s in subjects]
    for subject, state in zip(subjects[1:], states[1:], strict=True):
        check_same(states[0], state, (subjects[0].run_id, subject.run_id))
    return states


def plane_drawing(subjects: Sequence[Subject], recipe: Recipe) -> tuple[Drawing, list[Trail]]:
    """The plane through three models: axes, grid, and the models as points on it.

    Raises:
        ValueError: If there are not three, they differ in architecture, or lie on a line.
    """
    if len(subjects) != 3:
        raise ValueError(f"`between` 'plane' goes through three models: name three, got {len(subjects)}.")
    states = states_of(subjects)
    facts: dict[str, Any] = {}
    if recipe.align:
        some = next(iter(surface_splits(subjects[0], recipe).values()))
        generator = stream(recipe.seed, "alignment")
        found = [align(subjects[0].model, states[0], s, (some.x, some.y), generator=generator) for s in states[1:]]
        states = [states[0], *(a.state for a in found)]
        facts["aligned"] = [[a.matching.distance_before, a.matching.distance] for a in found]
    plane = _equal_units(plane_through(*states))
    if recipe.radius is not None:
        grid = Grid.around(recipe.reach(()), recipe.counts, axes=2)
    else:
        grid = grid_around(plane.coordinates, recipe, margin=MARGIN)
    points = []
    for i, subject in enumerate(subjects):
        at = ProjectedPath(plane.coordinates[i : i + 1], torch.zeros(1, dtype=torch.float64))
        risk = next(iter(surface_risks(subject, recipe).values()))
        scanner = Scanner(risk, Axes(dict(risk.theta), plane.axes.axes), metrics=["loss"], batch_points=1)
        points.append(Trail(label(subject), label(subject), (subject.step,), at, (scanner.centre()["loss"],), None))
    return Drawing(plane.axes, grid, facts), points


def _equal_units(plane: Plane) -> Plane:
    """The same plane with both axes as long as the way to the second model, so that circles are circles."""
    u, v = plane.axes.axes
    size = u.length / v.length
    unit = f"distance to the second model, {u.length:.3g}"
    second = Axis({n: size * t for n, t in v.direction.items()}, v.name, unit, v.recipe,
                  {n: size * t for n, t in v.buffers.items()})  # fmt: skip
    scale = torch.tensor([1.0, 1 / size], dtype=torch.float64)
    return Plane(Axes(plane.axes.origin, (replace(u, unit=unit), second)), plane.coordinates * scale)


def surface_of(passage: Passage, mode: str, subjects: Sequence[Subject], context: dict[str, Any]) -> Surface:
    """A passage as a line, in one mode of normalisation layers."""
    found = passage.profile
    values: dict[str, Tensor] = {}
    errors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {}
    for (split, there), metrics in found.examples.items():
        if there != mode:
            continue
        for metric in metrics:
            column = f"{split} {metric}"
            values[column], errors[column] = (
                getattr(found, kind)(split, mode, metric) for kind in ("values", "stderr")
            )
            facts[column] = _told(passage, split, mode, metric)
    at = int(found.coordinates.abs().argmin())
    line = isinstance(passage.path, LinearPath)
    axis = {
        "name": f"from {label(subjects[0])} to {label(subjects[1])}",
        "unit": "distance" if line else "t",
        "length": passage.facts["distance"],
        "recipe": {"kind": "difference" if line else "curve"},
    }
    told = {"name": passage.name, "mode": mode, "passage": passage.facts, "between": facts}
    return Surface(
        grid=Grid((found.coordinates,)),
        values=values,
        stderr=errors,
        computed=torch.ones(len(found.coordinates), dtype=torch.bool),
        centre={c: (float(values[c][at]), float(errors[c][at])) for c in values},
        axes=(axis,),
        gram=torch.tensor([[passage.facts["distance"] ** 2]], dtype=torch.float64),
        context={**context, **told},
    )


def _told(passage: Passage, split: str, mode: str, metric: str) -> dict[str, Any]:
    """Barriers of a line; minimum, maximum, mean and integral of a curve."""
    found = passage.profile
    if isinstance(passage.path, LinearPath):
        told = {}
        for definition in ("B_lin", "B_max"):
            b = barrier(found.coordinates, found.table(split, mode, metric), definition=definition)
            told[definition] = {"value": b.value, "stderr": b.stderr, "location": b.location}
        return told
    assert isinstance(passage.path, Bezier | Polygon)
    s = summarise(passage.path, found, subset=split, mode=mode, metric=metric)
    estimates = {"max": s.max, "min": s.min, "mean": s.mean, "integral": s.integral}
    told = {name: {"value": e.value, "stderr": e.stderr} for name, e in estimates.items()}
    return {**told, "argmax": s.argmax, "length": s.length, "straight": s.straight}


def _around(recipe: Recipe) -> Tensor:
    """The line from -radius to 1 + radius."""
    (reach,) = recipe.reach(())
    return line_coordinates(-reach, 1 + reach, recipe.counts[0])
