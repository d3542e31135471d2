"""The surface around a model in memory, on data in memory: nothing is read, and nothing kept until it is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from analysis.measures.subject import Subject
from analysis.surfaces.computing import metrics_of
from analysis.surfaces.drawing import draw
from analysis.surfaces.recipe import recipe
from analysis.surfaces.sheets import Sheet
from analysis.surfaces.survey import Survey
from landscape import EmpiricalRisk
from landscape.naming import nearest
from landscape.surfaces import scan
from trainers.data.splits import DataBundle

OPTIONS = ("axes", "normalise", "radius", "points", "metrics", "mode", "seed", "batch", "rho", "numbers")


def surface_of_model(
    model: torch.nn.Module,
    loss: Callable[[Any, Any], Tensor],
    data: Any,
    *,
    out: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Survey:
    """Draw the loss, and the error where targets are labels, around a model.

    Args:
        model: Any module; it stays as it was.
        loss: Mean loss of one batch, called as loss(outputs, targets).
        data: A pair (inputs, targets), a list of batches or a DataLoader; see `EmpiricalRisk.from_model`. All of it is
            evaluated at each point.
        out: Folder where `write` of the result puts figures; "surfaces" if left out.
        progress: A function told(points done, points in all), such as `analysis.shown()`.
        options: Of `Recipe`: axes, normalise, radius, points, metrics, mode, seed, batch, rho, numbers.

    Returns:
        The surface; a notebook shows it as a figure with the note on how to read it.

    Raises:
        ValueError: If an option is for runs alone, or an axis needs what a model in memory does not have.
    """
    if strange := [name for name in options if name not in OPTIONS]:
        raise ValueError(
            f"`{strange[0]}` is no option of a surface around a model in memory, which has {', '.join(OPTIONS)}."
            f"{nearest(strange[0], OPTIONS)}"
        )
    chosen = recipe(**options)
    risk = EmpiricalRisk.from_model(model, loss, data, mode=chosen.mode)
    name = type(model).__name__
    subject = Subject(model, cast(DataBundle, None), name)  # axes that look at a run's data ask for the run first
    drawing = draw(subject, risk, chosen)
    context = {
        "name": name,
        "loss": getattr(loss, "__name__", type(loss).__name__),
        "recipe": chosen.model_dump(mode="json"),
    }
    metrics = metrics_of(chosen) if "metrics" in chosen.model_fields_set else None
    found = scan(
        {"train": risk}, drawing.axes, drawing.grid, metrics=metrics, progress=progress, context=context | drawing.facts
    )
    return Survey(chosen, (Sheet(name, found),), Path("surfaces" if out is None else out))
