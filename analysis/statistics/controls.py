"""What is held fixed when a measure is judged: the baselines of a study, and its hyper-parameters of training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from analysis.measures.catalogue.targets import of_scores
from analysis.measures.registry import sees_held_out
from analysis.statistics.arguments import otherwise
from analysis.statistics.evidence import constant
from analysis.statistics.units import MAXIMUM_LEVELS, Units, of_method, variants

SCORED = {"training": ("train_loss", "train_error"), "validation": ("validation_error", "validation_loss")}
ENTROPY = {  # of the outputs: the first that a table has
    "training": (("mean_entropy", "train"), ("output_entropy", "train")),
    "held out": (("mean_entropy", "held_out"),),
}
MATCHED = "dCE"  # the rise of the loss under the same perturbation as a measure of forgetting
FORGETTING = ("F_", "selectivity", "dH", "KL", "cw", "wc", "M_gap")
SAME = 2e-3  # of the largest value: displacements of equal loss reach it within a thousandth either way
BESIDE = " + "  # between the names of what is held fixed together
UNFAIR = "sees held-out labels, which these baselines do not: judge it given the validation error"


@dataclass(frozen=True)
class Control:
    """What is held fixed together.

    Attributes:
        measures: Variants.
        hyper: Hyper-parameters, named without "hp.".
    """

    measures: tuple[str, ...] = ()
    hyper: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As the column `control` has it."""
        return BESIDE.join((*self.measures, *self.hyper))

    def finite(self, data: Units) -> Bool[np.ndarray, " r"]:
        """The runs in which all of the measures are."""
        return np.asarray(data.values[list(self.measures)].notna().all(axis=1).to_numpy(), dtype=bool)

    def values(
        self, data: Units, runs: Bool[np.ndarray, " r"]
    ) -> tuple[Float[np.ndarray, "k c"], Float[np.ndarray, "s c"]]:
        """What is ordered, measures averaged over the runs, and what only has names, as numbers of the names."""
        columns = {name: _column(data.hyper[f"hp.{name}"]) for name in self.hyper}
        ordered = [x for x, in_order in columns.values() if in_order]
        named = [x for x, in_order in columns.values() if not in_order]
        none = np.empty((0, len(data.methods)))
        measures = data.average(self.measures, runs) if self.measures else none
        return np.concatenate([measures, *(x[None] for x in ordered)]), np.concatenate(
            [none, *(x[None] for x in named)]
        )


def baselines(data: Units) -> dict[str, list[str]]:
    """The variants that a table has of what is known of a model without any measure of it.

    Returns:
        "training": loss, error (or the scores in its place) and entropy of the outputs on the training data;
        "validation": error and loss there; "held out": entropy of the outputs. What is constant is left out.
    """
    scored = {
        kind: variants("controls", of_scores(names, data.values.columns), data, strict=False)
        for kind, names in SCORED.items()
    }
    found = {kind: scored.get(kind, []) + _first(ENTROPY.get(kind, ()), data) for kind in (*SCORED, "held out")}
    return {kind: [v for v in names if not still(v, data)] for kind, names in found.items()}


def hyper_parameters(data: Units) -> list[str]:
    """Those of training, not of the method, that vary: numbers, or names of at most 12 levels; without "hp."."""
    found = []
    for column in data.hyper.columns:
        x, in_order = _column(data.hyper[column])
        levels = len(np.unique(x))
        if not of_method(column) and levels > 1 and (in_order or levels <= MAXIMUM_LEVELS):
            found.append(column.removeprefix("hp."))
    return found


def usual(data: Units, measures: Sequence[str]) -> Iterator[tuple[Control, list[str]]]:
    """What is always held fixed, with the measures it is held fixed for.

    Each baseline; those of training together, and all of them; each hyper-parameter; these together, and together with
    the training baselines and with all baselines; and for a measure of forgetting the rise of the loss under the same
    perturbation.
    """
    known, hyper = baselines(data), tuple(hyper_parameters(data))
    training, labelled = tuple(known["training"]), tuple(known["validation"])
    every = (*(training or known["held out"]), *labelled)
    each = [Control((name,)) for names in known.values() for name in names]
    together = [
        *(Control(training), Control(every)),
        *(Control((), (name,)) for name in hyper),
        *(Control((), hyper), Control(training, hyper), Control(every, hyper)),
    ]
    for control in dict.fromkeys([*each, *together]):
        if control.name:
            yield control, [m for m in measures if m not in control.measures]
    matched: dict[str, list[str]] = {}
    for measure in measures:
        name = data.measure.get(measure, measure)
        rise = MATCHED + measure[len(name) :]
        if name.startswith(FORGETTING) and rise in data.values.columns:
            matched.setdefault(rise, []).append(measure)
    yield from ((Control((rise,)), names) for rise, names in matched.items() if not still(rise, data))


def asked(names: Sequence[str], data: Units, measures: Sequence[str]) -> Iterator[tuple[Control, list[str]]]:
    """What a caller names, each by itself; names joined by " + " are held fixed together.

    Raises:
        ValueError: If a name is neither a measure of the table nor a hyper-parameter.
    """
    for text in names:
        found: list[Control] = []
        for name in text.split(BESIDE):
            bare = name.removeprefix("hp.")
            meant = variants("controls", [name], data, strict=False) or [name] * (name in data.values.columns)
            if not meant and f"hp.{bare}" not in data.hyper.columns:
                choices = [*(c.removeprefix("hp.") for c in data.hyper.columns), *data.values.columns]
                raise ValueError(f"`controls` names {name!r}, which is not in the table.{otherwise(name, choices)}")
            found += [Control((v,)) for v in meant] or [Control((), (bare,))]
        if BESIDE in text:
            found = [Control(sum((c.measures for c in found), ()), sum((c.hyper for c in found), ()))]
        yield from ((control, [m for m in measures if m not in control.measures]) for control in found)


def unfair(measure: str, against: Sequence[str]) -> str:
    """What is to be said of a measure that has seen labels of held-out examples, beside baselines that have not."""
    return UNFAIR if against and sees_held_out(measure) and not any(map(sees_held_out, against)) else ""


def still(name: str, data: Units) -> bool:
    """Whether a variant is constant over configurations, or as good as that."""
    values = data.average([name], data.values[name].notna().to_numpy())[0]
    values = values[np.isfinite(values)]
    return constant(values) or bool(np.ptp(values / np.abs(values).max()) <= SAME)


def _first(choices: Sequence[tuple[str, str]], data: Units) -> list[str]:
    """The variants of the first (measure, split) that there is; names leave the split of training data out."""
    for measure, split in choices:
        found = []
        for name in data.values.columns:
            parts = str(name).rstrip("]").replace("[", ", ").split(", ")
            elsewhere = parts[-1] in ("held_out", "validation", "exposed", "other_train")
            if data.measure[name] == measure and (parts[-1] == split or (split == "train" and not elsewhere)):
                found.append(str(name))
        if found:
            return found
    return []


def _column(values: pd.Series) -> tuple[Float[np.ndarray, " c"], bool]:
    """A hyper-parameter as numbers, and whether their order means something; else they stand for its names."""
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64)
    if np.isfinite(numbers).all():
        return numbers, True
    return pd.factorize(values.map(str))[0].astype(np.float64), False
