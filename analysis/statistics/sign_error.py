"""The robust sign error: how often, in the worst environment, does the measure order two models the wrong way round?

An environment is a pair of configurations that differ in one hyper-parameter alone, each with its seeds. A measure that
is good on average may fail in every environment of one kind; the maximum shows it.

Wrong is what goes against the sign that the measure has over all configurations, or against the sign that is expected
of it: a measure that orders models backwards throughout is as good as one that orders them forwards.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from analysis.measures.registry import expected_sign
from analysis.score import is_share
from analysis.statistics.evidence import ALL, NO_GRID, Evidence, Rows, joined
from analysis.statistics.grid import axis_pairs, joint, levels
from analysis.statistics.kendall import BLOCK, weighted_kendall
from analysis.statistics.resampling import significant
from analysis.statistics.statistic import SIGNS, Cell, Statistic, number, of_leading, whole
from analysis.statistics.units import Units

ORIENTATIONS = ("pooled", "expected")
SURE = math.sqrt(2 * math.log(2 / (1 - math.sqrt(0.5))))  # √n times the difference from which a pair has weight
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


def oriented_errors(
    errors: Float[np.ndarray, "*shape e"], sign: Float[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape e"]:
    """Sign errors of measures whose right sign is given: 1 - e where it is negative."""
    return np.where(sign[..., None] < 0, 1 - errors, errors)


def resolved(rate: float, test_size: float, seeds: float = 1, *, agreement: float | None = None) -> float:
    """How far apart two error rates must be to be told apart: 2 √(2p(1-p)/(n s)), or 2 √(2p(1-p)(1-c)/n).

    Args:
        rate: The error rate p.
        test_size: Test examples n of one seed.
        seeds: Seeds s of each model, each with a test set of its own.
        agreement: Where all seeds share one test set, the share c of its examples on which the models agree by more
            than chance; more seeds then add nothing. None where each has its own.

    Source:
        Two standard errors of a difference of binomial rates.
    """
    spread = 2 * rate * (1 - rate)
    spread *= 1 / seeds if agreement is None else 1 - agreement
    return 2 * math.sqrt(spread / test_size)


def robust_sign_error(
    x: Float[np.ndarray, " r"],
    y: Float[np.ndarray, " r"],
    coordinates: Mapping[str, Sequence[Any]],
    *,
    sign: float | None = None,
    test_size: float | None = None,
    minimum_ess: float | None = None,
) -> dict[str, SignErrors]:
    """Sign errors of a measure, for each hyper-parameter and over "all".

    For each pair of seeds of an environment the error is (1 - sign · sign(dx) sign(dy))/2, which is 0.5 for ties.

    Args:
        x: The measure, a value a run, seeds not averaged.
        y: The target; in units of an error rate if `test_size` is given.
        coordinates: For each hyper-parameter, the seed not among them, its value in each run.
        sign: The right sign, for example the expected one; None takes that of tau_b over all configurations. As that is
            taken from the same runs, the mean error of a measure that tells nothing is then a little below 0.5.
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
    error = oriented_errors(error, np.asarray(_pooled_sign(x, y, joint(codes)) if sign is None else sign))
    axis = np.array(places.axis, dtype=object)
    found = {name: summary(error[axis == name], size[axis == name], minimum_ess=least) for name in names}
    return {**found, "all": summary(error, size, minimum_ess=least)}


def _pooled_sign(x: Float[np.ndarray, " r"], y: Float[np.ndarray, " r"], configuration: Int[np.ndarray, " r"]) -> float:
    """Sign of tau_b of the means over the runs of each configuration in which both are finite."""
    used = np.isfinite(x) & np.isfinite(y)
    known, place = np.unique(configuration[used], return_inverse=True)
    size = np.bincount(place)
    a, b = (np.bincount(place, weights=v[used]) / size for v in (x, y))
    if len(known) < 2:
        return 0.0
    tau = weighted_kendall(significant(a)[None], significant(b)[None], np.ones((1, len(known)), dtype=np.int64))
    return float(np.sign(np.nan_to_num(tau[0, 0, 0])))


def _lacking(data: Units, target: str, places: Environments, test_size: float) -> str:
    """What the weighted form would need: seeds, or test examples, for the differences that these environments have."""
    values = data.values[target].to_numpy(dtype=np.float64)
    configuration = data.configuration
    seeds = float(np.bincount(configuration).mean())
    mean = data.average([target], np.isfinite(values))[0]
    starts = np.flatnonzero(np.diff(places.environment, prepend=-1))
    gaps = np.abs(mean[configuration[places.first[starts]]] - mean[configuration[places.second[starts]]])
    source = "test_error" if data.measure[target] == "gap_error" and "test_error" in data.values.columns else target
    rates = data.values[source].to_numpy(dtype=np.float64)  # of which a gap has its noise
    gaps, rates = gaps[np.isfinite(gaps)], rates[np.isfinite(rates)]
    apart = 100 * SURE / test_size**0.5
    text = f"no environment has {ESS:g} effective pairs of seeds (4 seeds, and runs {apart:.1f} points apart)"
    if not len(gaps) or not len(rates) or (np.abs(rates) > 1).any():
        return text
    gap, rate = float(np.median(gaps)), float(np.abs(rates).mean())
    own = len(np.unique(data.draws_of_data)) >= seeds
    told = resolved(rate, test_size, seeds) if own else resolved(rate, test_size, agreement=0.0)
    sets = f"{seeds:.3g} seeds with {test_size:.0f} test examples each" if own else f"{test_size:.0f} test examples"
    text += (
        f"; {sets} tell errors apart from {100 * told:.1f} points, and half of the environments differ by less than "
        f"{100 * gap:.1f}"
    )
    if not gap > 0 or gap >= told:
        return text
    more = (told / gap) ** 2
    needed = f"{math.ceil(test_size * more):,} test examples" + (" each" if own else "")
    return f"{text}: that needs about {needed}" + (f", or {math.ceil(seeds * more):,} seeds" if own else "")


def table(evidence: Evidence) -> Rows:
    """Sign errors for each axis and over all, pairs of seeds all alike ("equal") or by their certainty ("weighted")."""
    data, targets = evidence.data, evidence.targets
    names, codes, note = evidence.grid()
    rows: Rows = []
    places = environments(names, codes[:, data.configuration])
    axis = np.array(places.axis, dtype=object)
    y = data.values[targets].to_numpy().T
    # Hoeffding's bound is for rates in [0, 1], so only shares are weighted.
    sizes = [data.draws[t] if is_share(data.measure[t]) and data.draws[t] > 1 else None for t in targets]
    lacking = [
        _lacking(data, target, places, size) if size is not None and len(axis) else ""
        for target, size in zip(targets, sizes, strict=True)
    ]
    signs = _signs(evidence)
    for s in range(0, len(evidence.measures), 16):
        some = evidence.measures[s : s + 16]
        x = data.values[some].to_numpy().T
        sign = np.array([[signs[m, t][0] if m != t else 1 for t in targets] for m in some], dtype=np.float64)
        for weighting, least in (("equal", 1.0), ("weighted", ESS)):
            use = [None] * len(targets) if weighting == "equal" else sizes
            error, ess = environment_errors(x, y, places, test_size=use)
            error = oriented_errors(error, sign)
            for (i, measure), (j, target) in product(enumerate(some), enumerate(targets)):
                if measure == target or (weighting == "weighted" and sizes[j] is None):
                    continue
                oriented, remark = signs[measure, target][1:]
                none_kept = "no pair of runs in which both are finite" if weighting == "equal" else lacking[j]
                for name in (ALL, *names):
                    here = slice(None) if name == ALL else axis == name
                    found = summary(error[i, j, here], ess[i, j, here], minimum_ess=least)
                    no_pair = NO_GRID if name == ALL else "no pair"
                    problem = no_pair if not found.environments else none_kept if not found.kept else ""
                    rows.append((measure, target, name, weighting, *vars(found).values(), oriented, int(sign[i, j]),
                                 joined(problem, remark, note)))  # fmt: skip
    return rows


def _signs(evidence: Evidence) -> dict[tuple[str, str], tuple[float, str, str]]:
    """For each measure and target the right sign, where it is from, and a remark where that is not what was asked."""
    kendall = evidence.correlations[evidence.correlations["coefficient"] == "kendall"]
    found = {}
    for measure, target, value in zip(*(kendall[c].tolist() for c in ("measure", "target", "value")), strict=True):
        sign, oriented, remark = 0.0, evidence.settings.oriented, ""
        if oriented == "expected":
            sign = float(expected_sign(measure.partition("[")[0]))
            remark = "" if sign else "no expected sign: oriented by the pooled one"
        if not sign:
            sign, oriented = float(np.sign(np.nan_to_num(value))) or 1.0, "pooled"
            remark = remark if value else joined(remark, "pooled coefficient 0: as measured")
        found[measure, target] = sign, oriented, remark
    return found


def _shown(rows: pd.DataFrame, leading: Sequence[str]) -> pd.DataFrame:
    rows = of_leading(rows[(rows["axis"] == ALL) & (rows["weighting"] == "equal")], leading)
    return rows.sort_values("mean", kind="stable")


STATISTIC = Statistic(
    name="sign_errors",
    columns="measure target axis weighting mean median p90 max kept environments oriented sign warnings",
    table=table,
    title="Sign errors over environments",
    note=(
        "How often the measure orders two runs the wrong way round for `{target}`, over environments: pairs of "
        "configurations that differ in one hyper-parameter (Dziugaite et al. 2020). Wrong is against the sign that the "
        "measure has over all models (pooled), or that is expected of it: the column says which and whose. The "
        "lowest mean stands first; 0.5 is chance; Worst is the robust error. Errors weighted by their certainty, and "
        "each hyper-parameter, are in the CSV file."
    ),
    shown={
        "Right sign": Cell(("sign", "oriented"), lambda sign, of: f"{SIGNS.get(sign, '?')} {of}".strip()),
        "Mean": number("mean"),
        "Median": number("median"),
        "90 %": number("p90"),
        "Worst": number("max"),
        "Environments": whole("kept"),
    },
    words=("Right sign",),
    chosen=_shown,
    reads="axis weighting",
    later={"oriented": "", "sign": 0},
)
