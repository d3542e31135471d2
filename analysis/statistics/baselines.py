"""What every measure is judged against: what training reached, its settings, and what a validation set says already."""

from collections.abc import Sequence

from analysis.measures.registry import is_baseline
from analysis.statistics.units import Units


def baselines(data: Units, targets: Sequence[str]) -> list[str]:
    """The baselines that were measured, but for the targets."""
    return [v for v in data.values.columns if is_baseline(v) and v not in targets]
