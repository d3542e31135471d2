"""What the axes are: what coordinate 1 means, how they meet, and what they can and cannot tell."""

import math
from typing import Any

from analysis.figures.surfaces.scales import compact
from analysis.surfaces.context import number
from analysis.surfaces.reading.remark import Remark, fine, mind, percent, wrong
from landscape.surfaces import Surface

SKEW, FLAT = 0.1, 0.99
MEANING = {
    "filter norms": "each filter moves by its own norm; biases and normalisation layers stand still",
    "layer norms": "each layer moves by its own norm; biases and normalisation layers stand still",
    "own sizes of the weights": "each weight moves by its own size",
    "unit filters": "each filter moves by a vector of length 1",
    "unit layers": "each layer moves by a vector of length 1",
    "as drawn": "each weight moves by a standard normal number",
    "weights": "a move of length 1 in weight space",
    "1/√|λ|": "a move of length 1/√|λ|, which changes the loss by ± 1/2 to second order",
}
SCALED = ("filter", "layer", "weight")
MODES = {
    "eval": "Normalisation layers keep the running statistics of the centre",
    "batch": "Normalisation layers use each batch's own statistics, so a point is not a mean over single examples",
    "recalibrate": "Running statistics are estimated anew at each point",
}


def _recipe(axis: Any) -> dict[str, Any]:
    return dict(axis.get("recipe") or {})


def meaning(surface: Surface) -> list[Remark]:
    """What coordinate 1 stands for, axis by axis."""
    texts = []
    for axis in surface.axes:
        unit, size = str(axis.get("unit", "")), axis.get("length")
        said = MEANING.get(unit, unit)
        long = f", {compact(float(size))} long" if isinstance(size, int | float) and unit != "weights" else ""
        texts.append(f"Coordinate 1 of “{axis.get('name', '')}”{long}: {said}." if said else "")
    kept = [t for t in dict.fromkeys(texts) if t]
    return [fine("unit", " ".join(kept))] if kept else []


def angles(surface: Surface) -> list[Remark]:
    """The cosines of the axes, against chance for random ones."""
    k = len(surface.grid.shape)
    if k == 1:
        return []
    cosines = surface.cosines
    worst = max((abs(float(cosines[i, j])), i, j) for i in range(k) for j in range(i + 1, k))
    value = float(cosines[worst[1], worst[2]])
    p = number(surface, "parameters")
    random = all(_recipe(axis).get("kind") == "random" for axis in surface.axes)
    angle = math.degrees(math.acos(max(-1.0, min(1.0, value))))
    text = f"The axes meet at an angle of {angle:.1f}° (cosine {compact(value, 2)})"
    chance = (
        f"; for random directions of {p:,.0f} weights about ±{compact(p**-0.5, 2)} is chance"
        if random and p > 0
        else ""
    )
    if worst[0] > FLAT:
        return [wrong("angle", f"{text}: they are nearly the same direction, and the picture is a line drawn twice.")]
    if worst[0] > SKEW:
        return [mind("angle", f"{text}{chance}. The picture is skewed: circles in weight space are ellipses in it.")]
    return [fine("angle", f"{text}{chance}.")]


def scaling(surface: Surface) -> list[Remark]:
    """Whether widths of random slices may be compared between models: the scale of weights that do not matter."""
    random = [_recipe(axis) for axis in surface.axes if _recipe(axis).get("kind") == "random"]
    if not random:
        return []
    how = str(random[0].get("normalise", ""))
    if how in SCALED:
        text = (
            "Directions are scaled by the weights, so that rescaling the layers of a ReLU network, or weights before a "
            "normalisation layer, which changes no output, does not change the picture."
        )
        return [fine("scale", text)]
    if not how:
        return []
    text = (
        "Directions are not scaled by the weights: a network with rescaled layers and the same outputs looks flatter "
        "or sharper. Compare no widths between models; draw filter-normalised directions for that."
    )
    return [mind("scale", text)]


def still(surface: Surface) -> list[Remark]:
    """What stands still along a direction against expectation, and other warnings kept with the surface."""
    given = surface.context.get("warnings") or []
    return [mind("warning", str(text)[:1].upper() + str(text)[1:]) for text in dict.fromkeys(given)]


def statistics_mode(surface: Surface) -> list[Remark]:
    """How normalisation layers were treated."""
    mode = str(surface.context.get("mode", ""))
    if mode not in MODES:
        return []
    return [Remark("normalisation layers", "mind" if mode == "batch" else "fine", f"{MODES[mode]} (mode {mode}).")]


def eigenvectors(surface: Surface) -> list[Remark]:
    """Whether the eigenvectors that are axes have converged."""
    found = []
    for number_, axis in enumerate(surface.axes, start=1):
        recipe = _recipe(axis)
        if recipe.get("converged") is False:
            residual = recipe.get("residual")
            size = f" (residual {compact(float(residual), 2)})" if isinstance(residual, int | float) else ""
            text = (
                f"Axis {number_} is not yet an eigenvector{size}: the iteration did not converge. Allow more products."
            )
            found.append(wrong("eigenvectors", text))
        elif isinstance(recipe.get("eigenvalue"), int | float) and recipe["eigenvalue"] < 0:
            text = f"Along axis {number_} the loss bends downwards, λ = {compact(float(recipe['eigenvalue']))}."
            found.append(mind("eigenvectors", text))
    return found


def variance(surface: Surface) -> list[Remark]:
    """What the plane of a trajectory holds of it, against a random walk."""
    shares = [float(v) for v in surface.context.get("explained") or []][: len(surface.grid.shape)]
    if not shares:
        return []
    null = [float(v) for v in surface.context.get("explained_null") or []][: len(shares)]
    each = ", ".join(percent(v) for v in shares)
    text = f"The picture holds {percent(sum(shares))} of the variance of the trajectory ({each})"
    if not null:
        return [fine("trajectory", f"{text}.")]
    text += f"; a random walk in high dimension would show {percent(sum(null))}"
    if sum(shares) <= sum(null) + 0.05:
        return [mind("trajectory", f"{text}: such a plane says nothing about the trajectory that chance would not.")]
    return [fine("trajectory", f"{text}.")]


def sharpness(surface: Surface) -> list[Remark]:
    """Sharpness measured at the centre, in the unit of the picture."""
    given = surface.context.get("sharpness") or {}
    texts = [f"{name} {_value(v)}" for name, v in dict(given).items()]
    return [fine("sharpness", f"At the centre: {'; '.join(texts)}.")] if texts else []


def _value(given: Any) -> str:
    """A number, a text, or a mapping with value and unit."""
    if isinstance(given, dict):
        return f"{_value(given.get('value', math.nan))} {given.get('unit', '')}".strip()
    return compact(float(given)) if isinstance(given, int | float) else str(given)
