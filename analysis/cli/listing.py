"""`landscape list`: what there is, by name."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import tyro

from analysis.cli.output import show_entries
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

What = Literal["methods", "measures", "models", "datasets", "augmentations", "tasks", "figures", "statistics"]
KINDS: tuple[What, ...] = get_args(What)


def list_names(what: tyro.conf.Positional[What], *, task: str | None = None) -> int:
    """Print what there is of a kind by name, with one line of help each; piped, tabs divide what is said of each.

    Args:
        what: Which list to print.
        task: Say of each measure whether it applies to this task, a name of `landscape list tasks` or module:Class.
    """
    if task is not None and what != "measures":
        raise ValueError(f"`task` {task!r} is for `landscape list measures`, got {what!r}: leave it out.")
    show_entries(*(entries(what) if task is None else _for_task(task)))
    return 0


def entries(what: What) -> tuple[tuple[str, ...], Sequence[tuple[str, ...]]]:
    """What there is of a kind.

    Returns:
        Headings, the first of the name and the second of what it is; and a row an entry.
    """
    if what == "methods":
        return _methods()
    if what == "measures":
        return _measures()
    if what == "figures":
        from analysis.figures import FIGURES  # slow to import

        return ("name", "what it shows"), [(name, plate.title) for name, plate in FIGURES.items()]
    if what == "statistics":
        from analysis.statistics.catalogue import STATISTICS  # likewise

        titles = [(name, entry.title) for name, entry in STATISTICS.items()]
        return ("name", "what it answers"), [("correlations", "Each measure with each target"), *titles]
    registries: dict[str, Mapping[str, Any]]
    registries = {
        "models": MODELS, "datasets": {**DATASETS, **SCHEMES}, "augmentations": AUGMENTATIONS, "tasks": TASKS,
    }  # fmt: skip
    told = {name: thing.help for name, thing in registries[what].items()} | (HELP if what == "models" else {})
    if what == "tasks":
        told = {name: f"{text} Targets: {TASKS[name].targets}." for name, text in told.items()}
    return ("name", "what it is"), list(told.items())


def _methods() -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    columns = ("name", "what it is", "passes a step", "rho", "options", "rule", "source")
    return columns, [
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


def _measures() -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    columns = ("name", "what it is", "a larger value means", "expected sign with the gap", "invariant to", "taken")
    sign = {1: "+", -1: "-", 0: ""}
    return columns, [
        (name, e.help, e.higher_means, sign[e.sign], e.invariant, "always" if e.usual else "if named")
        for name, e in MEASURES.items()
    ]


def _for_task(task: str) -> tuple[tuple[str, ...], Sequence[tuple[str, ...]]]:
    """Whether each measure applies to a task."""
    find_own_modules(task)
    of_task = measured(named_task(task))
    shown = {name: lacking(of_task, e.needs) for name, e in MEASURES.items()}
    rows = [(name, MEASURES[name].help, f"no: {why}" if why else "yes") for name, why in shown.items()]
    return ("name", "what it is", f"for {task}"), rows
