"""Directions in weight space that a loss surface is drawn along, each an `Axis` with the recipe that made it."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from landscape.objectives import obf_loss
from landscape.operators.curvature import RiskOperator
from landscape.params import Params, dot, length, select, unflatten
from landscape.perturbation import AbsWeight, AscentStep, Perturbation, random_direction
from landscape.precision import in_own_precision
from landscape.randomness import source_of
from landscape.risk import EmpiricalRisk
from landscape.spectral.eigenpairs import Eigenpairs, top_eigenpairs
from landscape.spectral.extremes import Which
from landscape.surfaces.axes import MOST_AXES, Axis
from landscape.surfaces.normalisation import UNITS, Filters, How, Normalised, OneDimensional, normalised

Scale = Literal["length", "curvature"]

NEAR_TIE = 0.99  # entries this close to the largest count as largest, so that rounding does not choose between them


@in_own_precision
def random_axes(
    theta: Params,
    generator: Generator | None = None,
    *,
    count: int = 2,
    normalise: How = "filter",
    one_dimensional: OneDimensional = "zero",
    filters: Mapping[str, Filters | None] | None = None,
    parameters: str | Iterable[str] | None = None,
) -> tuple[Axis, ...]:
    """Random directions d ~ N(0, I), by default filter-normalised with biases and normalisation layers standing still.

    They are not orthogonalised, which would spoil the norms of the filters: their cosine is about N(0, 1/p), and
    `Axes.cosines` gives it. Along one of them the curvature dᵀHd/‖d‖² is tr(H)/p on average without normalisation:
    random directions show the mean curvature, not the sharpest one.

    Args:
        theta: The weights, by name.
        generator: Source of all randomness; drawn on its device, in the weights' dtype, tensor by tensor, all of the
            first direction before the second. None means a fresh one from seed 0.
        count: How many, from 1 to 3.
        normalise: See `normalised`.
        one_dimensional: See `normalised`.
        filters: See `filters_of`; needed for models with transposed convolutions.
        parameters: Names, globs or modules that move; None means all. The others stand still, and are not drawn.

    Returns:
        The axes; coordinate 1 is the direction itself. The recipe holds the seed, and whether the generator was fresh:
        if it had been used before, the seed alone does not give these directions again.

    Raises:
        ValueError: If `count` is out of range, a name chooses nothing, or nothing would move.

    Warns:
        RuntimeWarning: If filters of zero norm stand still.

    Source:
        Li et al. (2018), NeurIPS, section 4.
    """
    if not 1 <= count <= MOST_AXES:
        raise ValueError(f"`count` must be from 1 to {MOST_AXES} directions, got {count}.")
    generator = source_of(generator)
    chosen = {name: theta[name].detach() for name in select(list(theta), parameters)}
    again = Generator(generator.device).manual_seed(generator.initial_seed())
    source = {
        "seed": generator.initial_seed(),
        "fresh": torch.equal(generator.get_state(), again.get_state()),
        "device": generator.device.type,
        "dtype": "/".join(sorted({str(t.dtype).removeprefix("torch.") for t in chosen.values()})),
    }
    axes = []
    for i in range(count):
        raw = random_direction(chosen, generator)
        made = normalised(raw, chosen, how=normalise, one_dimensional=one_dimensional, filters=filters)
        if not i:
            _warn(made)
        recipe = {"kind": "random", "number": i + 1, **source, **made.recipe}
        axes.append(Axis(made.direction, f"random direction {i + 1}", UNITS[normalise], recipe))
    return tuple(axes)


def eigen_axes(
    pairs: Eigenpairs,
    theta: Params,
    *,
    indices: Sequence[int] = (0, 1),
    scale: Scale = "length",
    matrix: str = "Hessian",
) -> tuple[Axis, ...]:
    """Eigenvectors as axes, with their signed eigenvalues in their names.

    The sign of an eigenvector is arbitrary. So that pictures can be compared, the first entry whose modulus is within
    1 % of the largest is made positive.

    Args:
        pairs: From `top_eigenpairs`; of either end of the spectrum, or of both.
        theta: The parameters that the operator differentiates by, in its order.
        indices: Which of the pairs, by their places; with which="both", k=1 the default is the top and the bottom one.
        scale: "length": unit vectors, so that coordinates are l2 lengths in weight space. "curvature": v / √|λ|, so
            that coordinate a changes the loss by ± a²/2 to second order, and contours of a plane of two positive
            eigenvalues are circles.
        matrix: What they are eigenvectors of, for the name.

    Returns:
        One axis an index. The recipe holds the eigenvalue, its residual and whether the iteration converged.

    Raises:
        ValueError: If there are no vectors, their length does not fit θ, an index is out of range, or scale="curvature"
            meets an eigenvalue that is zero within its residual.
    """
    p = sum(t.numel() for t in theta.values())
    if pairs.vectors is None:
        raise ValueError("`pairs` has no vectors: call top_eigenpairs with vectors=True.")
    if pairs.vectors.shape[0] != p:
        raise ValueError(
            f"`pairs` has vectors of length {pairs.vectors.shape[0]}, `theta` has {p} entries: give the parameters "
            "that the operator differentiates by, in its order."
        )
    if scale not in ("length", "curvature"):
        raise ValueError(f"`scale` must be 'length' or 'curvature', got {scale!r}.")
    axes = []
    for i in indices:
        if not 0 <= i < len(pairs.values):
            raise ValueError(f"`indices` must be from 0 to {len(pairs.values) - 1}, got {i}: ask for more pairs.")
        value, residual = float(pairs.values[i]), float(pairs.residuals[i])
        factor = sign_of(pairs.vectors[:, i])
        if scale == "curvature":
            if abs(value) <= residual or value == 0:
                raise ValueError(
                    f"`scale` = 'curvature' needs eigenvalues that are not zero; number {i} is {value:.3g} with "
                    f"residual {residual:.1g}: use scale='length'."
                )
            factor /= math.sqrt(abs(value))
        recipe = {
            "kind": "eigenvector",
            "matrix": matrix,
            "eigenvalue": value,
            "residual": residual,
            "converged": pairs.converged,
            "which": pairs.which,
            "index": i,
            "scale": scale,
            "products": pairs.products,
            "path": pairs.path,
        }
        unit = "weights" if scale == "length" else "1/√|λ|"
        name = f"{matrix} eigenvector, λ = {value:.4g}"
        axes.append(Axis(unflatten(factor * pairs.vectors[:, i], theta), name, unit, recipe))
    return tuple(axes)


@in_own_precision
def hessian_axes(
    operator: RiskOperator,
    *,
    generator: Generator | None = None,
    which: Which = "largest",
    count: int = 2,
    scale: Scale = "length",
    tol: float | None = None,
    max_products: int | None = None,
) -> tuple[Axis, ...]:
    """The extreme eigenvectors of a curvature operator as axes.

    Args:
        operator: `Hessian`, or another operator of a risk; parameters that it does not differentiate by stand still.
        generator: Source of the start vectors; None means a fresh one from seed 0.
        which: "largest", "smallest" or "magnitude"; "both" gives one top and one bottom eigenvector for `count` = 2.
        count: How many; even for "both".
        scale: See `eigen_axes`.
        tol: See `top_eigenpairs`.
        max_products: See `top_eigenpairs`.

    Raises:
        ValueError: As `top_eigenpairs` and `eigen_axes`, or if `count` is odd for "both".
    """
    if not 1 <= count <= MOST_AXES or (which == "both" and count % 2):
        raise ValueError(f"`count` must be from 1 to {MOST_AXES}, and even for which='both', got {count}.")
    k = count // 2 if which == "both" else count
    pairs = top_eigenpairs(operator, k, which=which, tol=tol, max_products=max_products, generator=generator)
    name = type(operator).__name__
    return eigen_axes(pairs, operator.point.theta, indices=range(count), scale=scale, matrix=name)


@in_own_precision
def gradient_axis(risk: EmpiricalRisk, *, theta: Params | None = None) -> Axis:
    """∇L/‖∇L‖ at θ: the direction of steepest ascent, of length 1. Descent is towards negative coordinates.

    Args:
        risk: The risk L; for the gradient of a batch, `risk.on(batch)`.
        theta: θ; None means the risk's own.

    Raises:
        ValueError: If the gradient vanishes or is not finite.
    """
    loss, gradient = risk.value_and_gradient(theta)
    size = length(gradient)
    if not (math.isfinite(size) and size > 0):
        raise ValueError(
            f"the gradient of `risk` has norm {size}: it gives no direction. Choose another point or data."
        )
    recipe = {"kind": "gradient", "norm": size, "loss": loss, "examples": risk.n, "mode": risk.mode}
    return Axis({name: g / size for name, g in gradient.items()}, "gradient", "weights", recipe)


@in_own_precision
def perturbation_axis(
    risk: EmpiricalRisk,
    perturbation: Perturbation,
    *,
    ascent: Callable[[Any, Any], Tensor] | None = None,
    raw: Params | None = None,
    theta: Params | None = None,
    name: str | None = None,
) -> Axis:
    """The displacement ε that a sharpness-aware method makes: coordinate 0 is w, coordinate 1 is w + ε.

    The perturbation is the object that the optimizers use: `AscentStep(rho)` is SAM's, with `metric=AbsWeight(eta)`
    ASAM's, and with `ascent=functools.partial(obf_loss, C=..., gamma=...)` it is OBF's.

    Args:
        risk: The risk L; for the perturbation of a batch, `risk.on(batch)`.
        perturbation: Maps (θ, raw direction) to ε.
        ascent: Objective that is ascended in place of the risk's loss, called as ascent(outputs, targets).
        raw: Another raw direction than a gradient, such as `random_direction` draws.
        theta: θ; None means the risk's own.
        name: For the axis label; None makes one.

    Returns:
        The axis. Its recipe holds ‖ε‖, the norm of the raw direction, and the rise ⟨∇A, ε⟩ of the ascended objective A
        to first order.

    Raises:
        ValueError: If both `ascent` and `raw` are given, or ε vanishes or is not finite.

    Source:
        Foret et al. (2021), eq. 2; Kwon et al. (2021), eq. 6; Vani et al. (2024) for OBF.
    """
    if ascent is not None and raw is not None:
        raise ValueError("`ascent` and `raw` are two ways to say what is ascended: give one of them.")
    point = risk.theta if theta is None else theta
    objective = risk if ascent is None else replace(risk, loss=ascent)
    climbed = objective.gradient(point) if raw is None else raw
    delta = perturbation({n: point[n] for n in climbed}, climbed)
    size = length(delta)
    if not (math.isfinite(size) and size > 0):
        raise ValueError(
            f"the displacement of `perturbation` has length {size}: a radius of 0, or a raw direction that vanishes or "
            "is not finite, gives no axis."
        )
    recipe = {
        "kind": "perturbation",
        "perturbation": described(perturbation),
        "ascent": "given direction" if raw is not None else "loss" if ascent is None else described(ascent),
        "length": size,
        "raw_norm": length(climbed),
        "first_order_rise": dot(climbed, delta) if raw is None else None,
        "examples": risk.n,
        "mode": risk.mode,
    }
    label = _method(perturbation, ascent, raw) if name is None else name
    return Axis(dict(delta), label, f"‖ε‖ = {size:.3g}", recipe)


@in_own_precision
def difference_axis(
    start: Params,
    end: Params,
    *,
    buffers: tuple[Params, Params] | None = None,
    name: str = "difference",
) -> Axis:
    """The line from one model to another: coordinate 0 is `start`, coordinate 1 is `end`, to rounding.

    Args:
        start: Parameters by name.
        end: Those of the other model; taken to the dtypes and devices of `start`.
        buffers: Running statistics of both, which then move along too; entries that are not floating-point numbers
            are left out. None holds them, as is right where they are estimated afresh at each point.
        name: For the axis label.

    Raises:
        ValueError: If names or shapes differ, an entry is not finite, or the models are equal.
    """
    direction = _change(start, end, "end")
    moved = {} if buffers is None else _change(buffers[0], buffers[1], "buffers")
    if not direction and not moved:
        raise ValueError("`start` and `end` are equal: there is no line between them.")
    size = length(direction)
    recipe = {"kind": "difference", "length": size, "buffers": buffers is not None}
    return Axis(direction, name, f"distance {size:.3g}", recipe, moved)


@in_own_precision
def given_axis(
    vector: Float[Tensor, " p"] | Params,
    theta: Params,
    *,
    name: str = "given direction",
    unit: str = "weights",
    normalise: How = "none",
    one_dimensional: OneDimensional = "as drawn",
    filters: Mapping[str, Filters | None] | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> Axis:
    """A direction of the user's own.

    Args:
        vector: One vector in the order of θ, or tensors by name; parameters that it lacks stand still.
        theta: The parameters by name.
        name: For the axis label.
        unit: What coordinate 1 stands for; the default is right for a vector of length 1.
        normalise: See `normalised`; by default the vector is taken as it is.
        one_dimensional: See `normalised`.
        filters: See `filters_of`.
        recipe: What to note about it, in JSON.

    Raises:
        ValueError: If the length, a name or a shape does not fit, an entry is not finite, or the vector is zero.

    Warns:
        RuntimeWarning: If filters of zero norm stand still.
    """
    direction = unflatten(vector, theta) if isinstance(vector, Tensor) else dict(vector)
    bad = [n for n, t in direction.items() if not bool(t.isfinite().all())]
    if bad:
        raise ValueError(f"`vector` has entries that are not finite, in {bad}.")
    if not any(bool(t.any()) for t in direction.values()):
        raise ValueError("`vector` is zero: all points along it are the same.")
    made = normalised(direction, theta, how=normalise, one_dimensional=one_dimensional, filters=filters)
    _warn(made)
    direction = {n: t.detach().to(theta[n]) for n, t in made.direction.items()}
    shown = unit if normalise == "none" else UNITS[normalise]
    return Axis(direction, name, shown, {"kind": "given", **made.recipe, **(recipe or {})})


def sign_of(values: Tensor) -> float:
    """The sign of the first entry whose modulus is within 1 % of the largest: 1.0 or -1.0, and 1.0 for zeros."""
    sizes = values.abs()
    first = int((sizes >= NEAR_TIE * sizes.max()).int().argmax())
    return -1.0 if float(values[first]) < 0 else 1.0


def described(thing: object) -> Any:
    """A perturbation, metric or objective in JSON: the name of its type or function, and its settings."""
    if thing is None or isinstance(thing, str | bool | int):
        return thing
    if isinstance(thing, float):
        return thing if math.isfinite(thing) else str(thing)
    if isinstance(thing, Mapping):
        return {str(key): described(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [described(value) for value in thing]
    if isinstance(thing, partial):
        return {"kind": getattr(thing.func, "__name__", type(thing.func).__name__), **described(thing.keywords)}
    if is_dataclass(thing) and not isinstance(thing, type):
        return {"kind": type(thing).__name__, **{f.name: described(getattr(thing, f.name)) for f in fields(thing)}}
    return {"kind": getattr(thing, "__name__", type(thing).__name__)}


def _change(start: Params, end: Params, argument: str) -> Params:
    """The end minus the start, without tensors that are equal in both."""
    if set(start) != set(end):
        odd = sorted(set(start) ^ set(end))[:5]
        raise ValueError(f"`{argument}` does not have the names of the start, such as {odd}: of another architecture?")
    change: Params = {}
    for name, t in start.items():
        if end[name].shape != t.shape:
            raise ValueError(
                f"`{argument}` has `{name}` of shape {tuple(end[name].shape)}, the start has {tuple(t.shape)}: are "
                "they of the same architecture?"
            )
        if not t.is_floating_point():
            continue
        difference = end[name].detach().to(t) - t.detach()
        if not bool(difference.isfinite().all()):
            raise ValueError(f"`{name}` has entries that are not finite in one of the two models.")
        if bool(difference.any()):
            change[name] = difference
    return change


def _method(perturbation: Perturbation, ascent: Callable[..., Tensor] | None, raw: Params | None) -> str:
    """A label for the axis: the method's name where it has one."""
    objective = ascent.func if isinstance(ascent, partial) else ascent
    if raw is not None or not isinstance(perturbation, AscentStep) or objective not in (None, obf_loss):
        return "perturbation"
    plain = perturbation.metric is None and perturbation.p == 2
    adaptive = isinstance(perturbation.metric, AbsWeight) and perturbation.p == 2
    if objective is obf_loss:
        return (
            "OBF perturbation" if plain else "adaptive OBF perturbation" if adaptive else "OBF perturbation, own ball"
        )
    return "SAM perturbation" if plain else "ASAM perturbation" if adaptive else "ascent perturbation"


def _warn(made: Normalised) -> None:
    if made.warning:
        warnings.warn(made.warning, RuntimeWarning, stacklevel=4)
