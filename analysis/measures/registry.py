"""The measures by name: a literal registry of functions from a checkpoint to rows of the table.

A new measure is one function and one entry in the file of its family. Keyword-only arguments are its options, with
their defaults. Every value is stored raw; `sign` is the sign of correlation with the generalisation gap that the
measure's own theory predicts. What a row may be used for (as a baseline, as a candidate explanation) and which labels
it has seen is told here too, by the name of the measure or of a variant, as `F_mi[obf, iso-loss, m=64, held_out]`.
"""

import math
import re
from collections.abc import Sequence

from analysis.measures.catalogue import (
    baselines,
    complexity,
    curvature,
    forgetting,
    gradients,
    norms,
    sharpness,
    targets,
)
from analysis.measures.measure import Family, Measure, Rows
from analysis.measures.own import own_measure
from analysis.table import Row
from trainers.reference import is_reference


class Measures(dict[str, Measure]):
    """Measures by name; one of one's own, module:function, is imported when it is first asked for."""

    def __missing__(self, key: str) -> Measure:
        if not is_reference(key):
            raise KeyError(key)
        taken = {row: name for name, entry in self.items() for row in (name, *entry.rows)}
        self[key] = own_measure(key, taken)
        return self[key]


MEASURES = Measures(
    {
        **targets.MEASURES,
        **baselines.MEASURES,
        **curvature.MEASURES,
        **sharpness.MEASURES,
        **gradients.MEASURES,
        **norms.MEASURES,
        **complexity.MEASURES,
        **forgetting.MEASURES,
    }
)
BUILT_IN = tuple(MEASURES)

# Rows whose expected sign, or family, is not that of their registry entry; a sign of 0 where theory predicts none.
SIGNS = {**baselines.SIGNS, **curvature.SIGNS, **complexity.SIGNS, **forgetting.SIGNS}
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(targets.BASELINES, "baseline"),
    **curvature.FAMILIES,
    **forgetting.FAMILIES,
}

# Rows that would explain nothing: the loss and the entropy under other names, parts of a figure or of another row, and
# how deep the one direction is in which a point is no minimum.
NO_CANDIDATES = (
    *targets.TARGETS, *targets.DESCRIPTIONS, *targets.MORE, "cross_entropy", "output_entropy", "bin_accuracy",
    "share_forgotten", "bottom_eigenvalue", "KL_entry",
)  # fmt: skip
# Rows that the perturbation sets, equal for all models or to a setting of theirs: measure, and parts of its variants.
SET_BEFOREHAND: tuple[tuple[str, set[str]], ...] = (
    ("dCE", {"iso-loss", "exposed"}), *((size, {"own"}) for size in forgetting.SIZES), ("eps_rho", {"relative"}),
)  # fmt: skip
# Rows of the scores of tasks of one's own, in the place of the error.
OWN_BASELINE, OWN_TARGET = re.compile(r"(train|validation)_\w+"), re.compile(r"(test|gap|ood)_\w+")
ON_TRAINING = (
    *(row for key in ("train_outputs", "weight_norms", "path_norm") for row in MEASURES[key].rows if "margin" in row),
    *MEASURES["example_forgetting"].rows, "membership_auc", "F_mem", "train_error", "wrong_labels_fitted",
)  # fmt: skip
ON_HELD_OUT = (
    *MEASURES["spurious_forgetting"].rows, "membership_auc", "F_mem", "temperature", *targets.SCALED,
)  # fmt: skip


def entry_of(name: str) -> str | None:
    """The registry key of a row's measure name; None where no entry makes it."""
    if name in MEASURES:
        return name
    return next((key for key, entry in MEASURES.items() if name in entry.rows), None)


def family_of(row_name: str) -> Family | None:
    """What kind of quantity a row is; None where no entry makes it."""
    key = entry_of(row_name)
    return FAMILIES.get(row_name, MEASURES[key].family if key else None)


def expected_sign(row_name: str) -> int:
    """Expected sign of a row's correlation with the generalisation gap."""
    key = entry_of(row_name)
    return SIGNS.get(row_name, MEASURES[key].sign if key else 0)


def failed_rows(key: str, reason: str) -> Rows:
    """What stands in the table for a measure that failed: its rows, without values and with the reason."""
    entry = MEASURES[key]
    names = [name for name in entry.rows if name not in entry.sometimes]
    return [Row(name, math.nan, math.nan, 0, converged=False, warnings=reason) for name in names]


def names() -> Sequence[str]:
    """All names that a user may ask for."""
    return [*MEASURES, *(row for entry in MEASURES.values() for row in entry.rows)]


def is_baseline(name: str) -> bool:
    """Whether a row is what any measure must beat: errors, losses and confidence, the settings of training, ‖w‖."""
    base, _ = _parts(name)
    return family_of(base) == "baseline" or (entry_of(base) is None and OWN_BASELINE.fullmatch(base) is not None)


def is_candidate(name: str) -> bool:
    """Whether a row may explain which models generalise: no baseline, no target and nothing that is set beforehand."""
    base, parts = _parts(name)
    if is_baseline(base) or base in NO_CANDIDATES or (entry_of(base) is None and OWN_TARGET.fullmatch(base)):
        return False
    return not any(base == measure and settings <= parts for measure, settings in SET_BEFOREHAND)


def sees_held_out(name: str) -> bool:
    """Whether a row has seen labels of held-out examples, as the validation error has, which it must then beat."""
    base, parts = _parts(name)
    if base.startswith("validation_") or base in ON_HELD_OUT:
        return True
    if base.startswith("M_gap_") and not base.startswith("M_gap_tr_"):
        return base.removeprefix("M_gap_") in forgetting.LABELLED
    return base in forgetting.LABELLED and ("held_out" in parts or base in MEASURES["output_bias"].rows)


def sees_given_labels(name: str) -> bool:
    """Whether a row holds outputs against the training labels as given, or sorts examples by them.

    Where these are noisy, its classes and what it calls right are the noise's too. The training loss and what is
    derived from it are not meant: they are what was trained.
    """
    base, parts = _parts(name)
    if base in ON_TRAINING:
        return True
    if base.startswith("M_gap_"):
        return base.removeprefix("M_gap_tr_").removeprefix("M_gap_") in forgetting.LABELLED
    held_out = "held_out" in parts or base in MEASURES["output_bias"].rows
    return base in forgetting.LABELLED and not held_out


def marks(name: str, *, noisy: bool) -> tuple[str, ...]:
    """What a reader must know of a row beside its number; no defects.

    Args:
        name: Of the measure or variant.
        noisy: Whether training labels are noisy, as `hp.label_noise` says.

    Returns:
        Of "held-out labels" and "noisy labels" those that apply.
    """
    found = {"held-out labels": sees_held_out(name), "noisy labels": noisy and sees_given_labels(name)}
    return tuple(text for text, applies in found.items() if applies)


def _parts(name: str) -> tuple[str, set[str]]:
    """The measure of a variant, and what stands in its brackets."""
    base, _, options = name.partition("[")
    return base, set(options.rstrip("]").split(", ")) if options else set()
