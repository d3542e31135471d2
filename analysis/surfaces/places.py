"""What a surface is drawn of: a run, one of its checkpoints, or a file of weights, and the data it is evaluated on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from analysis.measures.checkpoints import Checkpoint, RunCheckpoint, WeightsFile, foreign_place
from analysis.measures.subject import Subject
from analysis.style import method_label
from analysis.surfaces.recipe import Recipe
from landscape import EmpiricalRisk
from trainers.data.loading import Split
from trainers.randomness import stream
from trainers.runs.folder import Run, has_runs, in_double
from trainers.tasks.registry import learns_labels


def checkpoint_of(
    path: str | Path,
    *,
    step: int | None = None,
    trust: bool = False,
    model: str | None = None,
    model_options: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    ema: bool = False,
    moved: str | None = None,
) -> Checkpoint:
    """The checkpoint that a path names.

    Args:
        path: A run's folder (its last checkpoint), RUN/checkpoints/STEP, or weights from elsewhere: a file, or a folder
            of Hugging Face as hf:FOLDER.
        step: Another checkpoint of the run.
        trust: Import a model or dataset that the run names as module:function.
        model: For a file of weights: name or module:function.
        model_options: For a file of weights: the model's sizes.
        data: For a file of weights: options of `trainers.load_dataset`, with the dataset under "name".
        ema: For a file of weights: take the average of weights in it.
        moved: For a run: where its data lie now, as `scheme:PATH`.

    Raises:
        FileNotFoundError: If there is nothing of the kind.
        ValueError: If it is a folder of several runs, or the run has no such checkpoint.
    """
    path = Path(path)
    if (foreign := foreign_place(path)) is not None:
        place, known = foreign
        if model is None and known is None:
            raise ValueError(f"`model` is needed to draw the weights in {path}: a name or module:function.")
        given = dict(model_options or {}), dict(data or {"name": "digits"})
        return WeightsFile(place, str(model or known), *given, ema=ema)
    if ema:
        raise ValueError(f"`ema` is for weights from elsewhere, and {path} is a run: leave it out.")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give a run's folder or a file of weights.")
    if path.parent.name == "checkpoints" and path.name.isdigit():
        path, step = path.parent.parent, int(path.name)
    if not (path / "config.json").exists():
        if path.is_dir() and has_runs(path):
            raise ValueError(f"{path} holds several runs: name one of them, or a few to compare (`{path}/runs/<id>`).")
        raise FileNotFoundError(f"{path} is no run and no file of weights: give a folder that `landscape train` made.")
    run = Run(path)
    steps = list(run.checkpoints())
    if not steps:
        status = run.status()
        raise ValueError(f"{path} has no checkpoint ({status['status']} {status['reason']}): train it first.")
    if step is None and (missing := run.missing()):
        raise ValueError(f"{path}: {missing}; or name another by `step`, one of {steps}.")
    if step is not None and step not in steps:
        raise ValueError(f"`step` must be one of {path}'s checkpoints {steps}, got {step}.")
    return RunCheckpoint(path.absolute(), steps[-1] if step is None else step, trust, dataset=moved)


def suited(recipe: Recipe, places: Sequence[Checkpoint]) -> Recipe:
    """The recipe; where it leaves the metrics open, without the error if a task learns no labels."""
    if "metrics" in recipe.model_fields_set:
        return recipe
    tasks = [Run(place.folder).config().task for place in places if isinstance(place, RunCheckpoint)]
    tasks += [place.task for place in places if isinstance(place, WeightsFile)]
    labelled = all(map(learns_labels, tasks))
    return recipe if labelled else recipe.model_copy(update={"metrics": ("loss",)})


def label(subject: Subject) -> str:
    """What a legend calls it: the method of a run, or the name of a file."""
    if subject.config is None:
        return subject.run_id
    return method_label(subject.config.method, subject.config.ascent)


def chosen_examples(split: Split, name: str, recipe: Recipe) -> Split:
    """The examples of a split that the surface is evaluated on: drawn once without replacement, in their order."""
    if recipe.examples is None or recipe.examples >= len(split):
        return split
    order = torch.randperm(len(split), generator=stream(recipe.seed, f"surface examples {name}"))
    index = order[: recipe.examples].sort().values
    return split.some(index)


def surface_splits(subject: Subject, recipe: Recipe) -> dict[str, Split]:
    """The examples of each split; with precision float64 the subject's own model becomes so too.

    Raises:
        ValueError: If a split has no example.
    """
    splits: dict[str, Split] = {
        name: chosen_examples(getattr(subject.data, name), name, recipe) for name in recipe.splits
    }
    for name, split in splits.items():
        if not len(split):
            raise ValueError(f"`splits` has {name!r}, which has no example in {subject.data.name!r}.")
    if recipe.precision == "float64":
        subject.model.double()  # which nothing else reads
        splits = {name: in_double(split) for name, split in splits.items()}
    return splits


def surface_risks(subject: Subject, recipe: Recipe) -> dict[str, EmpiricalRisk]:
    """The task's loss on the examples of each split, by split; the first is what axes are made of.

    Raises:
        ValueError: If a split has no example.
    """
    splits = surface_splits(subject, recipe)
    found: dict[str, EmpiricalRisk] = {}
    for name, split in splits.items():
        parts = split.batches(size=recipe.batch_size)
        if not found:
            found[name] = subject.risk_of(subject.model, parts, mode=recipe.mode)
        else:
            found[name] = next(iter(found.values())).on(parts)
    return found
