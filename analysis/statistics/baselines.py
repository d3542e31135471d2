"""What every measure is judged against: what training reached, and what a validation set says already."""

from collections.abc import Sequence

from analysis.measures.catalogue.targets import of_scores
from analysis.statistics.units import Units

NAMES = (
    *("train_error", "train_loss", "train_clean_error", "validation_error", "validation_loss"),
    *("mean_entropy", "mean_confidence"),
)


def baselines(data: Units, targets: Sequence[str]) -> list[str]:
    """The baselines that were measured, but for the targets."""
    known = list(data.values.columns)
    names = set(of_scores(NAMES, known))
    return [v for v in known if data.measure[v] in names and v not in targets]
