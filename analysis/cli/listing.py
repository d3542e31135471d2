"""`landscape list`: methods, measures, models, datasets, augmentations and tasks by name."""

from collections.abc import Mapping
from typing import Any, Literal

import tyro

from analysis.cli.output import show_table
from analysis.measures.needs import lacking
from analysis.measures.registry import MEASURES
from analysis.path import find_own_modules
from trainers.data.augmentation import AUGMENTATIONS
from trainers.data.loading import DATASETS
from trainers.data.sources.named import SCHEMES
from trainers.models.building import MODELS
from trainers.models.libraries import HELP
from trainers.options import knobs
from trainers.sharpness_aware.methods import METHODS
from trainers.tasks.registry import TASKS
from trainers.tasks.task import measured, named_task


def list_names(
    what: tyro.conf.Positional[Literal["methods", "measures", "models", "datasets", "augmentations", "tasks"]],
    *,
    task: str | None = None,
) -> int:
    """Print the methods, measures, models, datasets, augmentations or tasks, with one line of help each.

    Args:
        what: Which list to print.
        task: Say of each measure whether it applies to this task, a name of `landscape list tasks` or module:Class.
    """
    if task is not None and what != "measures":
        raise ValueError(f"`task` {task!r} is for `landscape list measures`, got {what!r}: leave it out.")
    if what == "methods":
        columns: tuple[str, ...] = ("name", "what it is", "passes a step", "rho", "options", "rule", "source")
        rows: list[tuple[str, ...]] = [
            (
                name,
                method.help,
                method.cost,
                "-" if method.rho is None else f"{method.rho:g}",
                ", ".join(f"{k}={p.default}" for k, p in knobs(method.compose).items()),
                method.rule,
                method.source,
            )
            for name, method in METHODS.items()
        ]
        show_table(columns, rows, fold=columns)
    elif what == "measures" and task is not None:
        find_own_modules(task)
        of_task = measured(named_task(task))
        shown = {name: lacking(of_task, e.needs) for name, e in MEASURES.items()}
        lines = [(name, f"no: {why}" if why else "yes", MEASURES[name].help) for name, why in shown.items()]
        show_table(("name", f"for {task}", "what it is"), lines, fold=[f"for {task}", "what it is"])
    elif what == "measures":
        columns = ("name", "what it is", "a larger value means", "expected sign with the gap", "invariant to", "taken")
        sign = {1: "+", -1: "-", 0: ""}
        rows = [
            (name, e.help, e.higher_means, sign[e.sign], e.invariant, "always" if e.usual else "if named")
            for name, e in MEASURES.items()
        ]
        show_table(columns, rows, fold=columns)
    else:
        registries: dict[str, Mapping[str, Any]]
        registries = {
            "models": MODELS, "datasets": {**DATASETS, **SCHEMES}, "augmentations": AUGMENTATIONS, "tasks": TASKS,
        }  # fmt: skip
        entries = registries[what]
        told = {name: thing.help for name, thing in entries.items()} | (HELP if what == "models" else {})
        if what == "tasks":
            told = {name: f"{text} Targets: {TASKS[name].targets}." for name, text in told.items()}
        show_table(("name", "what it is"), list(told.items()), fold=["what it is"])
    return 0
