"""Curves of low loss between models: fitting one is training, so `analysis.surfaces`, which measures, is handed it."""

import functools
from typing import Any, Literal, cast

from torch import nn

from analysis.measures.subject import Subject
from analysis.surfaces import survey
from analysis.surfaces.between import Curve, Tell
from analysis.surfaces.in_memory import surface_of_model
from analysis.surfaces.recipe import Recipe
from landscape.paths import ModelState
from trainers.randomness import stream
from trainers.runs.connectivity import fit_curve

SETTINGS: dict[str, Any] = {"epochs": 30, "lr": 0.05, "bends": 1}


def fitted(
    subject: Subject, start: ModelState, end: ModelState, recipe: Recipe, tell: Tell
) -> tuple[Curve, dict[str, Any]]:
    """A curve of low loss, fitted on the subject's training data, and the settings of the fit."""
    train = subject.data.train
    data = (train.x, train.y) if recipe.precision is None else (train.x.to(next(subject.model.parameters())), train.y)
    kind = cast(Literal["bezier", "polygon"], recipe.between)
    curve = fit_curve(
        subject.model, subject.task.loss, start, end, data, kind=kind, **SETTINGS,
        generator=stream(recipe.seed, "curve"),
        progress=lambda s: tell(f"fitting the {kind} curve: epoch {s.epoch} of {s.epochs}, loss {s.loss:.4f}"),
    )  # fmt: skip
    return curve, dict(SETTINGS)


@functools.wraps(survey.surface)
def surface(*models: Any, **options: Any) -> survey.Survey:
    """See `survey.surface`."""
    if not (models and isinstance(models[0], nn.Module)):
        return survey.surface(*models, fit=fitted, **options)
    if len(models) != 3:
        raise ValueError(
            f"`models` begins with a model in memory and has {len(models)} parts: "
            "give analysis.surface(model, loss, data)."
        )
    return surface_of_model(*models, **options)
