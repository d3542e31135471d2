"""`landscape surface`: loss and error around models, along training and between them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from analysis.cli.options import ELSEWHERE, HERE, Elsewhere, Here
from analysis.measures.checkpoints import Checkpoint, foreign_place
from analysis.path import find_own_modules
from analysis.progress import track
from analysis.surfaces.places import checkpoint_of
from analysis.surfaces.recipe import AxisKind, Between, recipe

if TYPE_CHECKING:
    from analysis.surfaces.survey import Survey


def surface(
    models: tyro.conf.Positional[tuple[Path, ...]],
    *,
    axes: tuple[AxisKind, ...] = ("random", "random"),
    between: Between | None = None,
    align: bool = False,
    points: tuple[int, ...] | None = None,
    radius: tuple[float, ...] | None = None,
    normalise: Literal["filter", "layer", "none"] = "filter",
    metrics: tuple[str, ...] | None = None,
    splits: tuple[Literal["train", "validation", "test"], ...] = ("train", "test"),
    examples: int | None = 512,
    batch_size: int = 512,
    mode: Literal["eval", "batch", "recalibrate"] = "eval",
    refine: float | None = None,
    precision: Literal["float32", "float64"] | None = None,
    rho: float | None = None,
    batch: int | None = None,
    centred: bool = False,
    numbers: bool = True,
    seed: int = 0,
    step: int | None = None,
    ema: bool = False,
    out_folder: Annotated[Path | None, tyro.conf.arg(name="out")] = None,
    vtk: bool = False,
    cost: bool = False,
    place: Here = HERE,
    trust: bool = False,
    weights: Elsewhere = ELSEWHERE,
) -> int:
    """Draw the loss and error around a trained model, around several side by side, along training, or between models.

    Computed points are kept: the same command continues where it was stopped, and only draws if all points are there.
    Under torchrun, the processes share the work.

    Args:
        models: A run's folder, RUN/checkpoints/STEP, or a file of weights; several are compared on common axes. Files
            of surfaces (.npz) are redrawn without computing anything.
        axes: One (a line), two (a plane) or three (a volume) of random, top, bottom (Hessian eigenvectors), gradient,
            sam, asam, obf, own (perturbations), pca (the plane of training; other runs' paths are drawn over it).
        between: Draw what lies between models instead: the line between two with its barrier, a fitted curve, or the
            plane through three.
        align: Permute the units of the other models to fit the first before going between them.
        points: Points along each axis; by default 101 on a line, 51 in a plane, 17 in a volume.
        radius: Reach along each axis, in its own unit; by default chosen to suit the axes.
        normalise: How random directions are scaled: by filter, by layer, or not at all.
        metrics: What to evaluate: loss, error, "error by class", or module:function; by default loss and error, or
            the loss alone for a task of your own.
        splits: Splits to evaluate on.
        examples: Examples of each split, chosen once at random; None for all.
        batch_size: Examples per forward pass; it matters for batch statistics.
        mode: BatchNorm uses running statistics (eval), those of each batch, or new ones estimated at each point.
        refine: Evaluate only where the surface bends by more than this share of its range, such as 0.01.
        precision: Precision of the evaluation; by default the run's own.
        rho: Radius of perturbation axes; by default the run's own, or that of the method.
        batch: Number of examples for gradient and perturbation axes; by default all of the first split.
        centred: For pca: through the mean of the checkpoints instead of the last one.
        numbers: Compute eigenvalues, trace and sharpness, to show them beside the picture.
        seed: Seed of directions and examples.
        step: Checkpoint of the runs; by default the last one.
        ema: Draw the average of weights (EMA, SWA) in files of weights instead of the weights themselves.
        out_folder: Folder of the figures.
        vtk: Write files for ParaView too.
        cost: Print how long it would take, and compute nothing.
        place: Where to compute.
        trust: Import a model or dataset that a run names as module:function.
        weights: For files of weights from elsewhere.
    """
    from analysis.curves import fitted
    from analysis.surfaces.survey import read_survey, survey, time_needed

    if models and all(m.suffix == ".npz" for m in models):
        return show_survey(read_survey(*models, out=out_folder), vtk=vtk)
    find_own_modules(weights.model, weights.dataset, weights.task, *(metrics or ()), trust=trust)
    runtime = place.runtime(trains=False)
    chosen = recipe(
        axes=axes, between=between, align=align, points=points, radius=radius, normalise=normalise, metrics=metrics,
        splits=splits, examples=examples, batch_size=batch_size, mode=mode, refine=refine, precision=precision, rho=rho,
        batch=batch, centred=centred, numbers=numbers, seed=seed,
    )  # fmt: skip
    places: list[Checkpoint] = [
        weights.of(*foreign, ema=ema)
        if (foreign := foreign_place(m)) is not None
        else checkpoint_of(m, step=step, trust=trust, moved=weights.dataset, ema=ema)
        for m in models
    ]
    if cost:
        print(time_needed(places, chosen, runtime))
        return 0

    def announce(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    command = "landscape surface " + " ".join(str(m) for m in models)
    with runtime.joined() as among:
        drawn = survey(
            places, chosen, out=out_folder, runtime=among, track=track, announce=announce, command=command, fit=fitted
        )
        return show_survey(drawn, vtk=vtk) if among.ranks.leads else 0


def show_survey(survey: "Survey", *, vtk: bool) -> int:
    """Write a survey's figures, and print how to read them and where they are."""
    page, *_ = survey.write(vtk=vtk)
    print(survey.notes())
    for sheet in survey.sheets:
        print(f"surface: {sheet.file}")
    print(f"figures: {survey.folder.resolve()}\npage: {page.resolve()}")
    return 0
