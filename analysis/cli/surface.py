"""`landscape surface`: loss and error around models, along training and between them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from analysis.measures.checkpoints import data_options
from analysis.path import find_own_modules
from analysis.progress import track
from analysis.surfaces.crew import crew
from analysis.surfaces.places import checkpoint_of
from analysis.surfaces.recipe import AxisKind, Between, recipe
from trainers.config import Option

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
    metrics: tuple[str, ...] = ("loss", "error"),
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
    out_folder: Annotated[Path | None, tyro.conf.arg(name="out")] = None,
    vtk: bool = False,
    cost: bool = False,
    jobs: int | None = None,
    trust: bool = False,
    model: str | None = None,
    model_options: dict[str, Option] | None = None,
    dataset: str = "digits",
    train_size: int | None = None,
    validation_size: int | None = None,
    label_noise: float = 0.0,
    data_seed: int = 0,
) -> int:
    """Draw loss and error around a trained model, of several side by side, along training, or between models.

    What was computed is kept: the same command goes on where it was stopped, and only draws where nothing is left.
    Under torchrun the processes share the work.

    Args:
        models: A run's folder, RUN/checkpoints/STEP, or a file of weights; several are compared on common axes. Files
            of surfaces (.npz) are only drawn again.
        axes: One (a line), two (a plane) or three (a volume) of random, top, bottom (Hessian eigenvectors), gradient,
            sam, asam, obf, own (perturbations), pca (the plane of training; other runs' paths are drawn over it).
        between: Instead: the line between two models with its barrier, a fitted curve, or the plane through three.
        align: Permute the units of the other models to fit the first before going between them.
        points: Points along each axis; 101 on a line, 51 in a plane, 17 in a volume if left out.
        radius: Reach along each axis, in its own unit; what suits the axes if left out.
        normalise: Random directions: scaled filter by filter, layer by layer, or not.
        metrics: What is evaluated: loss, error, "error by class", or module:function.
        splits: On what.
        examples: Examples of each split, chosen once at random; None for all.
        batch_size: Examples of a forward pass; it matters for batch statistics.
        mode: Normalisation layers: running statistics, each batch's own, or estimated anew at each point.
        refine: Evaluate only where the surface bends by more than this share of its range, such as 0.01.
        precision: Of the evaluation; the run's own if left out.
        rho: Radius of perturbation axes; the run's own, or the method's default, if left out.
        batch: Examples that gradient and perturbation axes are made of; all of the first split if left out.
        centred: For pca: through the mean of the checkpoints instead of the last.
        numbers: Compute eigenvalues, trace and sharpness to stand beside the picture.
        seed: Of directions and examples.
        step: Another checkpoint of the runs than the last.
        out_folder: Folder of figures.
        vtk: Write files for ParaView too.
        cost: Only say what it would take.
        jobs: Processes; one a core if left out.
        trust: Import a model or dataset that a run names as module:function.
        model: For files of weights: the model's name or module:function.
        model_options: For files of weights: the model's sizes.
        dataset: For files of weights: the data's name or module:function.
        train_size: For files of weights: training examples.
        validation_size: For files of weights: examples kept for validation; 500, or none of fewer, if left out.
        label_noise: For files of weights: label noise of the training data.
        data_seed: For files of weights: seed of the split and the noise.
    """
    from analysis.curves import fitted
    from analysis.surfaces.survey import read_survey, survey, time_needed

    if models and all(m.suffix == ".npz" for m in models):
        return show_survey(read_survey(*models, out=out_folder), vtk=vtk)
    find_own_modules(model, dataset, *metrics, trust=trust)
    chosen = recipe(
        axes=axes, between=between, align=align, points=points, radius=radius, normalise=normalise, metrics=metrics,
        splits=splits, examples=examples, batch_size=batch_size, mode=mode, refine=refine, precision=precision, rho=rho,
        batch=batch, centred=centred, numbers=numbers, seed=seed,
    )  # fmt: skip
    data = data_options(dataset, train_size, validation_size, label_noise, data_seed)
    places = [
        checkpoint_of(m, step=step, trust=trust, model=model, model_options=model_options, data=data) for m in models
    ]
    if cost:
        print(time_needed(places, chosen, jobs=jobs))
        return 0

    def announce(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    command = "landscape surface " + " ".join(str(m) for m in models)
    with crew() as team:
        found = survey(
            places, chosen, out=out_folder, jobs=jobs, track=track, announce=announce, command=command, fit=fitted
        )
        return show_survey(found, vtk=vtk) if team.leads else 0


def show_survey(found: "Survey", *, vtk: bool) -> int:
    """Write a survey's figures, and print how to read them and where they are."""
    page, *_ = found.write(vtk=vtk)
    print(found.notes())
    for sheet in found.sheets:
        print(f"surface: {sheet.file}")
    print(f"figures: {found.folder.resolve()}\npage: {page.resolve()}")
    return 0
