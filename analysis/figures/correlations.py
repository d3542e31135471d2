"""Which correlations of measures with targets a figure shows: the strongest, the leading target, rows of a matrix."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.candidates import one_cell, strength_first
from analysis.results import StudyResults
from analysis.statistics.correlation_rows import BASELINE, completed
from analysis.statistics.resampling import MINIMUM
from analysis.style import family

KNOWN = 8  # baselines of a matrix
VARIANTS = 3  # of one measure in a figure, as long as there are others
SYMBOLS = {"kendall": "Kendall τ$_b$", "spearman": "Spearman ρ", "pearson": "Pearson r"}


def strongest(
    correlations: pd.DataFrame, *, target: str, coefficient: str = "kendall", top: int | None = None
) -> pd.DataFrame:
    """The candidates of one target and coefficient with a finite value, strongest first, by absolute value.

    Those on fewer than 5 configurations come after all others. Baselines, which are no candidates, are left out.

    Args:
        correlations: Table with the columns of `analysis.results.CORRELATIONS`.
        target: What is explained.
        coefficient: "kendall", "spearman" or "pearson".
        top: How many; of one family at most two in five, and of one measure at most three variants, as long as there
            are others, so that none fills the page.

    Raises:
        ValueError: If `coefficient` is not known, or `top` is below 1.
    """
    if coefficient not in SYMBOLS:
        raise ValueError(f"`coefficient` must be one of {list(SYMBOLS)}, got {coefficient!r}.")
    if top is not None and top < 1:
        raise ValueError(f"`top` must be at least 1, got {top!r}; leave it out to keep every measure.")
    rows = of_target(correlations, target, coefficient)
    kept = strength_first(rows[rows["role"] != BASELINE])
    if top is None:
        return kept
    return kept.iloc[_chosen(kept["measure"], top)]


def of_target(correlations: pd.DataFrame, target: str, coefficient: str = "kendall") -> pd.DataFrame:
    """Every row of one target and coefficient, candidates and baselines, with all columns.

    Where one cell holds all models, the coefficient inside cells is the pooled one again, and is left out.
    """
    here = (correlations["target"] == target) & (correlations["coefficient"] == coefficient)
    rows = completed(correlations[here])
    if one_cell(correlations, target):
        twice = rows.filter(regex="^stratified").select_dtypes("number").columns
        rows = rows.assign(**dict.fromkeys(twice, math.nan), cell_reversal=False)
    return rows


def leading(results: StudyResults) -> tuple[str, pd.DataFrame]:
    """The target the report leads with and its correlations, strongest first; "" and no row where there is none."""
    found = ((t, rows) for t in results.targets if len(rows := strongest(results.correlations, target=t)))
    return next(found, ("", results.correlations.iloc[:0]))


def _chosen(measures: pd.Series, top: int) -> np.ndarray:
    """Places of the measures to show, of a series in order of strength: none of its kind fills the page."""
    variants = measures.groupby(measures.str.split("[").str[0]).cumcount().to_numpy()
    of_family = measures.map(family).to_numpy()
    late = variants >= VARIANTS
    for name in set(of_family):
        early = np.flatnonzero((of_family == name) & ~late)
        late[early[math.ceil(0.4 * top) :]] = True
    return np.sort(np.argsort(late, kind="stable")[:top])


def matrix_rows(rows: pd.DataFrame, *, top: int) -> list[str]:
    """The candidates that a matrix of these rows (of one coefficient) shows: the strongest of all targets."""
    rows = completed(rows)
    rows = rows[rows["role"] != BASELINE]
    strength = rows["value"].abs() - 2.0 * (rows["n_configurations"] < MINIMUM)
    peak = rows.assign(peak=strength).groupby("measure")["peak"].max()
    peak = peak[np.isfinite(peak)].sort_values(ascending=False, kind="stable")
    return [str(m) for m in peak.index[_chosen(peak.index.to_series(), top)]]


def strongest_baselines(rows: pd.DataFrame, targets: Sequence[str]) -> list[str]:
    """The first `KNOWN` baselines by their absolute value with the first target that they have one with.

    Of each the strongest variant.
    """
    known = completed(rows)
    known = known[(known["role"] == BASELINE) & np.isfinite(known["value"].to_numpy(dtype=float))]
    place = known["target"].map({name: i for i, name in enumerate(targets)})
    base = known["measure"].str.split("[").str[0]
    order = known.assign(place=place, strength=-known["value"].abs(), base=base)
    order = order.sort_values(["place", "strength", "measure"]).drop_duplicates("base")
    return [str(name) for name in order["measure"].head(KNOWN)]
