"""Which training method is better: each at the configuration chosen on validation data, paired over seeds."""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
from scipy import stats

from analysis.score import direction
from analysis.statistics.resampling import holm
from analysis.table import SEEDS

EXACT = 16  # seeds up to which all sign flips are visited
FLIPS = 20_000
ROUNDING = 1e-6  # relative; errors are kept in single precision


def compare_methods(
    runs: pd.DataFrame,
    *,
    baseline: str,
    group: str = "method",
    by: Sequence[str] = (),
    target: str = "test_error",
    choose: str | None = "validation_error",
    configuration: str = "configuration",
    seed: str | Sequence[str] = SEEDS,
    level: float = 0.95,
    seed_of_flips: int = 0,
) -> pd.DataFrame:
    """Compare groups of runs with a baseline, at one configuration each.

    For each group and each value of `by`, the configuration with the best mean of `choose` over its seeds is taken (the
    lowest; of R², precision and accuracy the highest, see `analysis.score.direction`), among those without a diverged
    seed if there is one. Its values of the target are then paired with the baseline's by seed (runs of one seed share
    their data, their initial weights and the order of their batches).

    The difference has a t interval and the p-value of a paired t test, which takes differences over seeds for normal;
    beside it stands the p-value of the sign-flip permutation test, which does not, and which with n pairs cannot fall
    below 2/2^n. Holm's correction of the t tests is over the whole table. What is chosen on validation data of the same
    seeds is chosen with their luck; a group with more configurations has more of it.

    Args:
        runs: One row a run, with the columns named below; runs that did not finish have NaN.
        baseline: The group that others are compared with.
        group: Column of the groups.
        by: Columns whose values are compared separately.
        target: Column to compare.
        choose: Column that chooses the configuration; None takes the target itself, which is optimistic.
        configuration: Column that tells configurations apart.
        seed: Columns by which runs are paired, of those that the table has.
        level: Coverage of the intervals.
        seed_of_flips: Of the sign flips where there are too many to visit all.

    Returns:
        One row a group and cell: the columns of `by`, group, configuration, configurations (how many to choose from),
        seeds, mean, deviation, difference (to the baseline; of errors, negative is better), low, high, p, p_flip,
        p_holm, pairs, warnings.

    Raises:
        ValueError: If a column is missing, or the baseline is not there.

    Source:
        Our definition.
    """
    pairing = [seed] if isinstance(seed, str) else [name for name in seed if name in runs.columns] or [seed[0]]
    needed = [group, *by, target, configuration, *pairing, *([choose] if choose else [])]
    missing = [name for name in needed if name not in runs.columns]
    if missing:
        raise ValueError(f"`runs` lacks the columns {missing}; it has {sorted(runs.columns)}.")
    if baseline not in set(runs[group]):
        raise ValueError(f"`baseline` {baseline!r} is no {group} of these runs; there are {sorted(set(runs[group]))}.")
    if not 0 < level < 1:
        raise ValueError(f"`level` must be between 0 and 1, got {level!r}.")
    rows = []
    for cell, here in runs.groupby(list(by), dropna=False, sort=True) if by else [((), runs)]:
        where = dict(zip(by, cell if isinstance(cell, tuple) else (cell,), strict=True))
        against = chosen(here[here[group] == baseline], target, choose, configuration, pairing)
        for name in sorted(set(here[group]), key=lambda name: (name != baseline, str(name))):
            of_group = here[here[group] == name]
            found = chosen(of_group, target, choose, configuration, pairing)
            row = {**where, "group": name, "configuration": found.name, "seeds": len(found)}
            row |= {
                "configurations": of_group[configuration].nunique(),
                "mean": found.mean(),
                "deviation": found.std(),
                **_paired(found, against, level, seed_of_flips, itself=name == baseline),
            }
            rows.append(row)
    table = pd.DataFrame(rows)
    table["p_holm"] = math.nan
    tested = table["p"].notna()
    if tested.any():
        table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"].to_numpy(dtype=float))
    return table


def chosen(
    runs: pd.DataFrame,
    target: str = "test_error",
    choose: str | None = "validation_error",
    configuration: str = "configuration",
    seed: Sequence[str] = ("seed",),
) -> pd.Series:
    """The target by seed at the configuration with the best mean of `choose`, whose number is the series' name.

    Configurations with fewer runs that were lost (diverged, or without a finite value) come first. Arguments as for
    `compare_methods`; empty, with the name NaN, where there is no run.
    """
    if runs.empty:
        return pd.Series(dtype=float, name=math.nan)
    by = choose or target
    finite = np.isfinite(runs[by].to_numpy(dtype=float)) & np.isfinite(runs[target].to_numpy(dtype=float))
    scores = runs.assign(_lost=~finite).groupby(configuration).agg(lost=("_lost", "sum"), score=(by, "mean"))
    scores["score"] *= direction(by)
    best = scores.sort_values(["lost", "score"], kind="stable").index[0]
    rows = runs[(runs[configuration] == best) & finite]
    found: pd.Series = rows.groupby(list(seed))[target].mean()
    return found.rename(best)


def edge_of_grid(runs: pd.DataFrame, configuration: object, axis: str = "rho") -> str:
    """Where a configuration lies on an edge of its group's grid, in words; empty where it does not.

    A radius of 0 is no edge: there is none below it, and the method is its base optimizer there.

    Args:
        runs: Those of one group, with the columns `configuration` and the axis.
        configuration: Its number.
        axis: The setting.
    """
    values = runs[axis].dropna() if axis in runs else pd.Series(dtype=float)
    grid = sorted(values.unique())
    mine = values[runs.loc[values.index, "configuration"] == configuration]
    if len(grid) < 2 or mine.empty or grid[0] < mine.iloc[0] < grid[-1] or (axis == "rho" and mine.iloc[0] == 0):
        return ""
    return f"{axis} is the {'largest' if mine.iloc[0] == grid[-1] else 'smallest'} of its grid"


def _paired(found: pd.Series, against: pd.Series, level: float, seed: int, *, itself: bool) -> dict[str, object]:
    nothing = dict.fromkeys(("difference", "low", "high", "p", "p_flip"), math.nan)
    if itself:
        return {**nothing, "pairs": len(found), "warnings": ""}
    both = sorted(set(found.index) & set(against.index))
    if not both:
        return {**nothing, "pairs": 0, "warnings": "no seed in common with the baseline"}
    differences = (found[both] - against[both]).to_numpy(dtype=float)
    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return {**nothing, "difference": mean, "pairs": n, "warnings": "one seed: no deviation, no test"}
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    if error <= ROUNDING * max(float(found[both].abs().max()), float(against[both].abs().max())):
        note = "all differences are equal: no test"
        return {**nothing, "difference": mean, "pairs": n, "warnings": note}
    reach = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    note = f"{n} seeds: intervals rest on few differences" if n < 5 else ""
    return {
        "difference": mean,
        "low": mean - reach,
        "high": mean + reach,
        "p": float(2 * stats.t.sf(abs(mean) / error, n - 1)),
        "p_flip": sign_flip_pvalue(differences, seed=seed),
        "pairs": n,
        "warnings": note,
    }


def sign_flip_pvalue(differences: np.ndarray, *, seed: int = 0) -> float:
    """Two-sided p-value of the mean of paired differences under random signs: exact for up to 16 pairs.

    Args:
        differences: One a pair.
        seed: Of the signs drawn where there are too many to visit all.
    """
    x = np.asarray(differences, dtype=float)
    n = len(x)
    if n <= EXACT:
        signs = np.array(list(product((1.0, -1.0), repeat=n)))
        extra = 0
    else:
        signs = np.random.default_rng(seed).choice([1.0, -1.0], size=(FLIPS, n))
        extra = 1
    sums = np.abs(signs @ x)
    hits = int((sums >= abs(x.sum()) * (1 - 1e-12)).sum())
    return (hits + extra) / (len(signs) + extra)
