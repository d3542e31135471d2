"""`landscape list`: methods, measures, models, datasets and augmentations by name."""

from collections.abc import Mapping
from typing import Any, Literal

import tyro

from analysis.cli.output import show_table
from analysis.measures.registry import MEASURES
from trainers.data.augmentation import AUGMENTATIONS
from trainers.data.loading import DATASETS
from trainers.data.sources.named import SCHEMES
from trainers.models.building import MODELS
from trainers.models.libraries import HELP
from trainers.options import knobs
from trainers.sharpness_aware.methods import METHODS


def list_names(
    what: tyro.conf.Positional[Literal["methods", "measures", "models", "datasets", "augmentations"]],
) -> int:
    """Print the methods, measures, models, datasets or augmentations, with one line of help each.

    Args:
        what: Which list to print.
    """
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
        registries = {"models": MODELS, "datasets": {**DATASETS, **SCHEMES}, "augmentations": AUGMENTATIONS}
        entries = registries[what]
        shown = {name: thing.help for name, thing in entries.items()} | (HELP if what == "models" else {})
        show_table(("name", "what it is"), list(shown.items()), fold=["what it is"])
    return 0
