"""The robust sign error: how often, in the worst environment, does the measure order two models the wrong way round?

An environment is a pair of configurations that differ in one hyper-parameter alone, each with its seeds. A measure that
is good on average may fail in every environment of one kind; the maximum shows it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from analysis.statistics.evidence import ALL, NO_GRID, Evidence, Rows, joined
from analysis.statistics.grid import axis_pairs, joint, levels
from analysis.statistics.kendall import BLOCK
from analysis.statistics.statistic import Statistic, number, of_leading, whole

ESS = 12.0  # environments with a smaller effective number of seed pairs are left out of the weighted error


@dataclass(frozen=True)
class SignErrors:
    """Sign errors over the environments of one axis, or of all.

    Attributes:
        mean: Mean over environments; NaN without any.
        median: Median.
        p90: 90th percentile.
        maximum: The robust error: 0.5 is a coin, 1 is always wrong.
        kept: Environments that count.
        environments: All environments.
    """

    mean: float
    median: float
    p90: float
    maximum: float
    kept: int
    environments: int


@dataclass(frozen=True)
class Environments:
    """All environments of a set of runs, with their pairs of runs.

    Attributes:
        first: Run of the first configuration, for each pair.
        second: Run of the second.
        environment: Number of the environment of each pair; non-decreasing, every number occurs.
        axis: For each environment, the hyper-parameter in which it differs.
    """

    first: Int[np.ndarray, " q"]
    second: Int[np.ndarray, " q"]
    environment: Int[np.ndarray, " q"]
    axis: list[str]


def sign_probability(difference: Float[np.ndarray, "*shape"], *, test_size: float) -> Float[np.ndarray, "*shape"]:
    """P = max(0, 1 - 2 exp(-2 n (d/2)²))²: at least this sure that an error that differs by d on n examples differs so.

    Source:
        Dziugaite et al. (2020), NeurIPS, section 4 (Hoeffding's bound for each of two models).
    """
    half = np.minimum(np.abs(difference), 2.0) / 2  # rates differ by 1 at most
    sure: Float[np.ndarray, "*shape"] = np.maximum(0.0, 1 - 2 * np.exp(-2 * test_size * half**2)) ** 2
    return sure


def sign_weight(difference: Float[np.ndarray, "*shape"], *, test_size: float) -> Float[np.ndarray, "*shape"]:
    """max(0, P - 1/2): pairs whose order in the target may be chance weigh nothing."""
    weight: Float[np.ndarray, "*shape"] = np.maximum(0.0, sign_probability(difference, test_size=test_size) - 0.5)
    return weight


def environments(names: Sequence[str], codes: Int[np.ndarray, "k n"]) -> Environments:
    """The environments of runs whose hyper-parameter levels (seeds apart) are given."""
    configuration = joint(codes)
    _, representative = np.unique(configuration, return_index=True)
    runs = [np.flatnonzero(configuration == c) for c in range(len(representative))]
    first, second, label = [], [], []
    axis: list[str] = []
    for pairs in axis_pairs(names, codes[:, representative]):
        for a, b in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
            i, j = runs[a], runs[b]
            first.append(np.repeat(i, len(j)))
            second.append(np.tile(j, len(i)))
            label.append(np.full(len(i) * len(j), len(axis)))
            axis.append(pairs.name)
    none = np.zeros(0, dtype=np.int64)
    one, other, number = (np.concatenate(a) if a else none for a in (first, second, label))
    return Environments(one, other, number, axis)


def environment_errors(
    x: Float[np.ndarray, "m r"], y: Float[np.ndarray, "t r"], places: Environments, *, test_size: Sequence[float | None]
) -> tuple[Float[np.ndarray, "m t e"], Float[np.ndarray, "m t e"]]:
    """Weighted mean sign error of each environment, and its effective number of pairs (Σw)²/Σw².

    Pairs with a value that is not finite weigh nothing; without weight an environment is NaN.

    Args:
        x: m measures of r runs.
        y: t targets of the same runs.
        places: Which pairs of runs make which environment.
        test_size: For each target, the examples it was measured on; None weighs all pairs the same, as for targets
            that are no error rates.
    """
    shape = (len(x), len(y), len(places.axis))
    error, size = np.full(shape, math.nan), np.zeros(shape)
    if not len(places.axis):
        return error, size
    starts = np.flatnonzero(np.diff(places.environment, prepend=-1))
    difference = x[:, places.first] - x[:, places.second]
    known_x, sign_x = np.isfinite(difference), np.sign(np.nan_to_num(difference))
    for k, (row, n) in enumerate(zip(y, test_size, strict=True)):
        gap = row[places.first] - row[places.second]
        known = np.isfinite(gap)
        gap = np.where(known, gap, 0.0)
        weight = known.astype(np.float64) if n is None else np.where(known, sign_weight(gap, test_size=n), 0.0)
        step = max(1, BLOCK // max(len(gap), 1))
        for s in range(0, len(x), step):
            rows = slice(s, s + step)
            used = known_x[rows] * weight
            wrong = (1 - sign_x[rows] * np.sign(gap)) / 2
            total, squares = (np.add.reduceat(v, starts, axis=1) for v in (used, used**2))
            np.divide(np.add.reduceat(used * wrong, starts, axis=1), total, out=error[rows, k], where=total > 0)
            np.divide(total**2, squares, out=size[rows, k], where=squares > 0)
    return error, size


def summary(errors: Float[np.ndarray, " e"], sizes: Float[np.ndarray, " e"], *, minimum_ess: float) -> SignErrors:
    """Mean, median, 90th percentile and maximum over the environments that are defined and large enough."""
    kept = errors[np.isfinite(errors) & (sizes >= minimum_ess - 1e-9)]
    if not len(kept):
        return SignErrors(math.nan, math.nan, math.nan, math.nan, 0, len(errors))
    ordered = np.sort(kept)
    middle, tail = quantile(ordered, 0.5), quantile(ordered, 0.9)
    return SignErrors(float(kept.mean()), middle, tail, float(ordered[-1]), len(kept), len(errors))


def quantile(ordered: Float[np.ndarray, " n"], q: float) -> float:
    """A quantile of sorted values, linear between them: NumPy's, without its tens of microseconds a call."""
    place = (len(ordered) - 1) * q
    below = int(place)
    low, high = float(ordered[below]), float(ordered[min(below + 1, len(ordered) - 1)])
    part = place - below
    return high - (high - low) * (1 - part) if part >= 0.5 else low + (high - low) * part


def robust_sign_error(
    x: Float[np.ndarray, " r"],
    y: Float[np.ndarray, " r"],
    coordinates: Mapping[str, Sequence[Any]],
    *,
    test_size: float | None = None,
    minimum_ess: float | None = None,
) -> dict[str, SignErrors]:
    """Sign errors of a measure, for each hyper-parameter and over "all".

    For each pair of seeds of an environment the error is (1 - sign(dx) sign(dy))/2, which is 0.5 for ties.

    Args:
        x: The measure, a value a run, seeds not averaged.
        y: The target; in units of an error rate if `test_size` is given.
        coordinates: For each hyper-parameter, the seed not among them, its value in each run.
        test_size: Examples behind the target: pairs weigh by how sure their order is. None: all the same.
        minimum_ess: Least effective number of pairs; None is 12 with `test_size` and 1 without. 12 needs four seeds.

    Raises:
        ValueError: If shapes differ or `test_size` is not positive.

    Source:
        Dziugaite et al. (2020), NeurIPS.
    """
    names, codes = levels(coordinates)
    if not x.shape == y.shape == codes.shape[1:]:
        raise ValueError(f"`x`, `y` and `coordinates` must agree, got {x.shape}, {y.shape} and {codes.shape[1:]}.")
    if test_size is not None and not test_size > 0:
        raise ValueError(f"`test_size` must be a number of examples > 0, or None, got {test_size!r}.")
    least = minimum_ess if minimum_ess is not None else (1.0 if test_size is None else ESS)
    places = environments(names, codes)
    error, size = (a[0, 0] for a in environment_errors(x[None], y[None], places, test_size=[test_size]))
    axis = np.array(places.axis, dtype=object)
    found = {name: summary(error[axis == name], size[axis == name], minimum_ess=least) for name in names}
    return {**found, "all": summary(error, size, minimum_ess=least)}


def table(evidence: Evidence) -> Rows:
    """Sign errors for each axis and over all, pairs of seeds all alike ("equal") or by their certainty ("weighted")."""
    data, targets = evidence.data, evidence.targets
    names, codes, note = evidence.grid()
    rows: Rows = []
    places = environments(names, codes[:, data.configuration])
    axis = np.array(places.axis, dtype=object)
    y = data.values[targets].to_numpy().T
    # Hoeffding's bound is for rates in [0, 1], so only errors are weighted.
    sizes = [data.draws[t] if "error" in data.measure[t] and data.draws[t] > 1 else None for t in targets]
    rules = {
        "equal": (1.0, "no pair of runs in which both are finite"),
        "weighted": (ESS, f"no environment has {ESS:g} effective pairs of seeds: at least 4 seeds are needed"),
    }
    for s in range(0, len(evidence.measures), 16):
        some = evidence.measures[s : s + 16]
        x = data.values[some].to_numpy().T
        for weighting, (least, none_kept) in rules.items():
            use = [None] * len(targets) if weighting == "equal" else sizes
            error, ess = environment_errors(x, y, places, test_size=use)
            for (i, measure), (j, target) in product(enumerate(some), enumerate(targets)):
                if measure == target or (weighting == "weighted" and sizes[j] is None):
                    continue
                for name in (ALL, *names):
                    here = slice(None) if name == ALL else axis == name
                    found = summary(error[i, j, here], ess[i, j, here], minimum_ess=least)
                    no_pair = NO_GRID if name == ALL else "no pair"
                    remark = no_pair if not found.environments else none_kept if not found.kept else ""
                    rows.append((measure, target, name, weighting, *vars(found).values(), joined(remark, note)))
    return rows


def _shown(rows: pd.DataFrame, leading: Sequence[str]) -> pd.DataFrame:
    return of_leading(rows[(rows["axis"] == ALL) & (rows["weighting"] == "equal")], leading)


STATISTIC = Statistic(
    name="sign_errors",
    columns="measure target axis weighting mean median p90 max kept environments warnings",
    table=table,
    title="Sign errors over environments",
    note=(
        "How often the measure orders two runs the wrong way round for `{target}`, over environments: pairs of "
        "configurations that differ in one hyper-parameter (Dziugaite et al. 2020). 0.5 is chance; `Worst` is the "
        "robust error. Errors weighted by their certainty, and each hyper-parameter, are in the CSV file."
    ),
    shown={
        "Mean": number("mean"),
        "Median": number("median"),
        "90 %": number("p90"),
        "Worst": number("max"),
        "Environments": whole("kept"),
    },
    chosen=_shown,
    reads="axis weighting",
)
