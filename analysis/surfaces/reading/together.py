"""Whether several surfaces may be compared: the same examples, axes, reach, mode and loss."""

from collections.abc import Mapping
from typing import Any

import torch

from analysis.surfaces.reading.remark import Level, Remark, fine, mind, wrong
from landscape.surfaces import Surface

SAME = {  # what must agree, and what it is called
    "data": "data set",
    "examples": "number of examples",
    "n": "number of examples",
    "split": "split",
    "indices_hash": "choice of examples",
    "mode": "treatment of normalisation layers",
    "loss": "loss",
    "dtype": "precision",
}
DECIDING = ("data", "examples", "n", "split", "indices_hash", "mode", "loss")


def same_context(surfaces: Mapping[str, Surface]) -> list[Remark]:
    """What the values depend on beside the weights."""
    found = []
    for key, what in SAME.items():
        seen = {name: s.context[key] for name, s in surfaces.items() if key in s.context}
        if len({_text(v) for v in seen.values()}) > 1:
            told = ", ".join(f"{name}: {_text(v)}" for name, v in seen.items())
            level: Level = "wrong" if key in DECIDING else "mind"
            found.append(
                Remark("comparison", level, f"They differ in the {what} ({told}): heights are not comparable.")
            )
    if not found:
        found.append(fine("comparison", "As far as is noted, they are of the same examples, loss and mode."))
    return found


def same_axes(surfaces: Mapping[str, Surface]) -> list[Remark]:
    """Whether the axes are of one kind, unit, seed and reach."""
    found = []
    kinds = {n: tuple(_kind(axis) for axis in s.axes) for n, s in surfaces.items()}
    if len(set(kinds.values())) > 1:
        told = "; ".join(
            f"{name}: {', '.join(' '.join(filter(None, k)) for k in kind)}" for name, kind in kinds.items()
        )
        found.append(wrong("axes", f"Their axes are not of one kind ({told}): widths are not comparable."))
    seeds = {tuple(str((axis.get("recipe") or {}).get("seed")) for axis in s.axes) for s in surfaces.values()}
    if len(seeds) > 1:
        text = "Their random directions have different seeds: part of the difference is that of the draws."
        found.append(mind("axes", text))
    grids = [s.grid.coordinates for s in surfaces.values()]
    ends = {tuple((float(c[0]), float(c[-1])) for c in grid) for grid in grids}
    if len(ends) > 1:
        text = "They do not reach equally far: compare at equal coordinates, not edge to edge."
        found.append(mind("axes", text))
    elif any(not torch.equal(a, b) for grid in grids[1:] for a, b in zip(grids[0], grid, strict=False)):
        found.append(fine("axes", "They have different grids over the same range."))
    own = {n for n, kind in kinds.items() if any(k[0] in ("eigenvector", "gradient", "perturbation") for k in kind)}
    if own and not found:
        text = (
            "Each model has axes of its own (eigenvectors, gradient or perturbation): they are not the same directions."
        )
        found.append(fine("axes", text))
    elif not found:
        found.append(fine("axes", "Axes are of one kind, unit and reach."))
    return found


def same_size(surfaces: Mapping[str, Surface]) -> list[Remark]:
    """Numbers of parameters."""
    sizes = {name: s.context["parameters"] for name, s in surfaces.items() if "parameters" in s.context}
    if len(set(sizes.values())) < 2:
        return []
    told = ", ".join(f"{name}: {v:,}" for name, v in sizes.items())
    text = f"The models have different numbers of weights ({told}): equal coordinates are not equal moves."
    return [mind("comparison", text)]


def _kind(axis: Mapping[str, Any]) -> tuple[str, str, str]:
    recipe = axis.get("recipe") or {}
    return str(recipe.get("kind", "")), str(recipe.get("normalise", "")), _unit(str(axis.get("unit", "")))


def _unit(unit: str) -> str:
    """Units that name a model's own length are one unit."""
    return unit.partition(" = ")[0]


def _text(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
