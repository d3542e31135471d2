"""From a recipe to axes and a grid around one checkpoint, and the numbers that stand beside the picture."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from analysis.forgetting.providers import PROVIDERS
from analysis.measures.subject import Subject
from analysis.surfaces.recipe import PERTURBATIONS, Recipe
from landscape import AscentStep, EmpiricalRisk, Hessian, Params, ascent_sharpness, obf_loss, top_eigenpairs, trace
from landscape.spectral.extremes import Which
from landscape.surfaces import Axes, Axis, Grid
from landscape.surfaces.directions import eigen_axes, gradient_axis, perturbation_axis, random_axes
from landscape.surfaces.normalisation import filters_of
from landscape.surfaces.second_order import SecondOrder, second_order
from landscape.surfaces.trajectory import LoadedPoints, ProjectedPath, Trajectory, trajectory_axes
from trainers.randomness import stream
from trainers.runs.checkpoint import read_weights
from trainers.runs.folder import Run
from trainers.sharpness_aware.methods import METHODS
from trainers.weights.places import PARAMS

MARGIN = 0.25  # of a trajectory's extent, left free around it
RISE = 1.0  # of the loss to second order, in nats, at the end of an axis of unit length
FURTHEST = 1e3
SHARPNESS_RADIUS = 0.05  # of the sharpness beside the picture


@dataclass(frozen=True, eq=False)
class Drawing:
    """What is to be scanned.

    Attributes:
        axes: Origin and directions.
        grid: Where.
        facts: What is known about the centre and the axes, in JSON.
        trajectory: The analysis of the run's checkpoints, for pca axes.
        steps: The checkpoints' steps, for pca axes.
    """

    axes: Axes
    grid: Grid
    facts: dict[str, Any] = field(default_factory=dict)
    trajectory: Trajectory | None = None
    steps: tuple[int, ...] = ()


def draw(subject: Subject, risk: EmpiricalRisk, recipe: Recipe, *, reach: Iterable[float] | None = None) -> Drawing:
    """Axes and grid around a checkpoint.

    Args:
        subject: The checkpoint.
        risk: On the examples of the recipe's first split.
        recipe: What is asked for.
        reach: Radius along each axis where the recipe leaves it open, such as another model's.

    Raises:
        ValueError: If an axis cannot be made, with the reason.
    """
    known: dict[str, list[Axis]] = {}
    told: list[str] = []
    trajectory: Trajectory | None = None
    steps: tuple[int, ...] = ()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        for kind in dict.fromkeys(recipe.axes):
            if kind == "pca":
                trajectory, steps = checkpoints_plane(subject, risk, recipe)
                known[kind] = list(trajectory.axes.axes)
            else:
                known[kind] = _axes_of(kind, recipe.axes.count(kind), subject, risk, recipe)
    told += [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]
    taken = {kind: iter(axes) for kind, axes in known.items()}
    centred = trajectory is not None and recipe.centred and set(recipe.axes) == {"pca"}
    origin = trajectory.axes.origin if trajectory is not None and centred else dict(risk.theta)
    axes = Axes(origin, tuple(next(taken[kind]) for kind in recipe.axes))
    facts: dict[str, Any] = {"warnings": told} if told else {}
    expansion = _expansion(risk, axes, facts)
    if trajectory is not None and set(recipe.axes) == {"pca"}:
        grid = trajectory_grid(trajectory, recipe)
        facts |= {
            "explained": trajectory.explained.tolist(),
            "explained_null": trajectory.null.tolist(),
            "centred": trajectory.centred,
        }
    else:
        defaults = tuple(reach) if reach is not None else _reach(recipe, axes, expansion)
        grid = Grid.around(recipe.reach(defaults), recipe.counts, axes=len(axes))
    if recipe.numbers:
        facts = _joined(facts, numbers(risk.at(origin), subject, recipe))
    return Drawing(axes, grid, facts, trajectory, steps)


def known_facts(risk: EmpiricalRisk, axes: Axes, subject: Subject, recipe: Recipe) -> dict[str, Any]:
    """The loss to second order over a slice, and the numbers at its origin, in JSON."""
    facts: dict[str, Any] = {}
    _expansion(risk, axes, facts)
    return _joined(facts, numbers(risk.at(axes.origin), subject, recipe)) if recipe.numbers else facts


def _joined(facts: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Facts of two sources; the warnings of both are kept."""
    told = [*facts.get("warnings", []), *more.get("warnings", [])]
    return {**facts, **more, **({"warnings": told} if told else {})}


def checkpoints_plane(subject: Subject, risk: EmpiricalRisk, recipe: Recipe) -> tuple[Trajectory, tuple[int, ...]]:
    """Principal axes of a run's checkpoints up to this one, loaded a few at a time.

    Raises:
        ValueError: If there is no run, or it kept too few checkpoints.
    """
    if subject.run is None:
        raise ValueError("`axes` has 'pca', which needs the checkpoints of a run; weights from elsewhere have none.")
    steps = tuple(step for step in subject.run.checkpoints() if step <= subject.step)
    needed = recipe.axes.count("pca") + 1
    if len(steps) < needed:
        raise ValueError(
            f"`axes` has 'pca' {needed - 1} times, which needs {needed} checkpoints; {subject.run.folder} kept "
            f"{len(steps)}: train with `checkpoints` (epochs after which to keep one)."
        )
    points = loaded(subject.run, steps, risk.theta)
    found = trajectory_axes(points, centred=recipe.centred, count=recipe.axes.count("pca"), times=steps)
    return found, steps


def loaded(run: Run, steps: tuple[int, ...], like: Params) -> LoadedPoints:
    """A run's weights at some steps, by the names and in the dtypes of a point."""

    def load(i: int) -> Params:
        stored = read_weights(run.checkpoint(steps[i]) / PARAMS)
        if missing := [name for name in like if name not in stored or stored[name].shape != like[name].shape]:
            raise ValueError(f"{run.folder} has another architecture: `{missing[0]}` is missing or of another shape.")
        return {name: stored[name].to(t) for name, t in like.items()}

    return LoadedPoints(load, len(steps))


def trajectory_grid(trajectory: Trajectory, recipe: Recipe, others: Iterable[ProjectedPath] = ()) -> Grid:
    """A grid that holds the paths, with a margin; the recipe's radius counts from the origin."""
    if recipe.radius is not None:
        return Grid.around(recipe.reach(()), recipe.counts, axes=len(trajectory.axes))
    origin = torch.zeros(1, len(trajectory.axes), dtype=torch.float64)
    places = torch.cat([origin, trajectory.coordinates, *(path.coordinates for path in others)])
    return grid_around(places, recipe)


def grid_around(places: Tensor, recipe: Recipe, *, margin: float = MARGIN) -> Grid:
    """A grid that holds some points, one a row, with a share of their extent left free on all sides."""
    low, high = places.min(0).values, places.max(0).values
    room = margin * (high - low)
    return Grid.between(list(zip((low - room).tolist(), (high + room).tolist(), strict=True)), recipe.counts)


def numbers(risk: EmpiricalRisk, subject: Subject, recipe: Recipe) -> dict[str, Any]:
    """Eigenvalues, trace and sharpness at the centre, on the examples of the picture; a failure is a warning."""
    found: dict[str, Any] = {"parameters": sum(t.numel() for t in risk.theta.values())}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # what it says is in the operator's note
            hessian = Hessian(risk)
            pairs = top_eigenpairs(
                hessian, 1, which="both", vectors=False, generator=stream(recipe.seed, "surface eigenvalues")
            )
            whole = trace(hessian, generator=stream(recipe.seed, "surface trace"))
        found |= {
            "top_eigenvalue": float(pairs.values[0]),
            "bottom_eigenvalue": float(pairs.values[1]),
            "eigenvalue_residuals": pairs.residuals.tolist(),
            "eigenvalues_converged": pairs.converged,
            "trace": whole.value,
            "trace_stderr": whole.stderr,
        }
        steps = {"ascent sharpness, ρ = 0.05": AscentStep(SHARPNESS_RADIUS)}
        own = subject.own
        if own is not None and own.provider in ("sam", "asam"):
            steps[f"own ascent sharpness, {own.provider.upper()}, ρ = {own.step.rho:g}"] = own.step
        found["sharpness"] = {name: ascent_sharpness(risk, step).value for name, step in steps.items()}
    except (RuntimeError, ValueError, NotImplementedError) as error:
        found["warnings"] = [f"no curvature at the centre: {str(error).splitlines()[0]}"]
    return found


def _axes_of(kind: str, count: int, subject: Subject, risk: EmpiricalRisk, recipe: Recipe) -> list[Axis]:
    """The axes of one kind."""
    if kind == "random":
        return list(
            random_axes(
                risk.theta, stream(recipe.seed, "surface directions"), count=count, normalise=recipe.normalise,
                filters=filters_of(subject.model),
            )
        )  # fmt: skip
    if kind in ("top", "bottom"):
        which: Which = "largest" if kind == "top" else "smallest"
        pairs = top_eigenpairs(
            Hessian(risk), count, which=which, generator=stream(recipe.seed, f"surface {kind} eigenvectors")
        )
        return list(eigen_axes(pairs, risk.theta, indices=range(count)))
    batch = _batch(risk, recipe)
    if kind == "gradient":
        return [gradient_axis(batch)]
    return [_perturbation(kind, subject, batch, recipe)]


def _batch(risk: EmpiricalRisk, recipe: Recipe) -> EmpiricalRisk:
    """The examples that gradients of axes are taken on."""
    if recipe.batch is None:
        return risk
    if recipe.batch > risk.n:
        raise ValueError(f"`batch` must be at most the {risk.n} examples of the surface, got {recipe.batch}.")
    return risk.chunks(recipe.batch, generator=stream(recipe.seed, "surface batch"))[0]


def _perturbation(kind: str, subject: Subject, batch: EmpiricalRisk, recipe: Recipe) -> Axis:
    """The displacement that a method makes at this point."""
    own = subject.own
    config = None if subject.config is None else subject.config.resolved()
    if kind == "own":
        if own is None or own.provider not in PERTURBATIONS:
            raise ValueError(
                f"`axes` has 'own', but {subject.run_id} was not trained with a perturbation that is a function of one "
                "gradient: name sam, asam or obf."
            )
        kind, step = own.provider, own.step
    elif own is not None and own.provider == kind:
        step = own.step
    else:
        step = PROVIDERS[kind].step(METHODS[kind].rho or SHARPNESS_RADIUS)
    if recipe.rho is not None:
        step = replace(step, rho=recipe.rho)
    ascent = None
    if kind == "obf":
        options: dict[str, Any] = dict(config.method_options) if config is not None else {}
        options = {name: options[name] for name in ("C", "gamma") if name in options}
        ascent = partial(obf_loss, **options)
    return perturbation_axis(batch, step, ascent=ascent)


def _expansion(risk: EmpiricalRisk, axes: Axes, facts: dict[str, Any]) -> SecondOrder | None:
    """The loss to second order over the slice, into the facts; None where second derivatives fail."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            found = second_order(risk.at(axes.origin), axes)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        facts.setdefault("warnings", []).append(f"no second-order prediction: {str(error).splitlines()[0]}")
        return None
    facts["second_order"] = {
        "value": found.value,
        "slope": found.slope.tolist(),
        "curvature": found.curvature.tolist(),
        "note": found.note,
    }
    return found


def _reach(recipe: Recipe, axes: Axes, expansion: SecondOrder | None) -> tuple[float, ...]:
    """The usual radius of each axis: 1 for random directions, 2 for perturbations, its length for principal axes.

    Axes of length 1 (eigenvectors, gradient) all reach to where the sharpest of them raises the loss by 1 to second
    order, so that their units stay alike.
    """
    bends = [] if expansion is None else [abs(b) for b in expansion.directional.tolist()]
    units = [b for kind, b in zip(recipe.axes, bends, strict=False) if kind in ("top", "bottom", "gradient")]
    bend = max(units, default=0.0)
    far = float(f"{min(math.sqrt(2 * RISE / bend), FURTHEST):.2g}") if bend > 0 else 1.0
    usual = {"random": 1.0, **dict.fromkeys(PERTURBATIONS, 2.0)}
    return tuple(
        axis.length if kind == "pca" else usual.get(kind, far)
        for kind, axis in zip(recipe.axes, axes.axes, strict=True)
    )
