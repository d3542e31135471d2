"""The noise ceiling: how well a measure could correlate with a target that is itself known only up to its seeds.

A target averaged over k seeds is the configuration's true value plus noise. How much the noise costs is told by the
correlation of one half of the seeds with the other half, and from it by what the true values themselves would reach.
That bounds measures whose own noise is independent of the target's, such as those of other runs. A measure of the same
runs shares what happened in each, and can exceed it: validation error does. What of such a measure is left across runs
is its correlation between halves: the measure of one half of the seeds, the target of the other.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from analysis.statistics.arguments import one_of
from analysis.statistics.evidence import Evidence, joined
from analysis.statistics.kendall import BLOCK
from analysis.statistics.randomness import source_of
from analysis.statistics.resampling import MINIMUM, NO_CLAIM, mid_ranks, significant

SHARED = "it is of the same runs and shares what happened in them"
SPLITS = 100
COLUMNS = (
    *("target", "coefficient", "split_half", "spearman_brown", "oracle_with_noise", "independent", "strongest"),
    *("strongest_value", "strongest_across", "n_configurations", "warnings"),
)
COEFFICIENTS = ("kendall", "spearman", "pearson")


@dataclass(frozen=True)
class Ceiling:
    """How far noise lets a correlation with one target go.

    Attributes:
        split_half: Mean correlation, over configurations, of two disjoint halves of the seeds, over random splits.
        spearman_brown: The same stepped up to all seeds: what the same runs, made again, would reach; 0 where the
            halves do not agree at all.
        oracle_with_noise: Mean correlation of the target with itself plus noise of its own standard error.
        independent: What the true values would reach: no measure whose noise is independent of the target's can be
            expected above it. Those of the same runs can.
        n_configurations: Configurations with two or more finite seeds; the others cannot be used.
        warnings: What a reader must know; empty where there is nothing.
    """

    split_half: float
    spearman_brown: float
    oracle_with_noise: float
    independent: float
    n_configurations: int
    warnings: str = ""


def noise_ceiling(
    seeds: Float[np.ndarray, "c s"],
    *,
    draw_of: Int[np.ndarray, "c s"] | None = None,
    coefficient: str = "kendall",
    splits: int = 100,
    generator: np.random.Generator | None = None,
) -> Ceiling:
    """Split-half reliability of a target, what its true values would reach, and oracle-with-noise.

    With k seeds a half has h = ⌊k/2⌋ of them (an odd one sits out). The Spearman-Brown step from h to k seeds is
    R = f r/(1 + (f-1) r) with f = k/h (means over configurations where they differ), exact for Pearson's correlation
    under independent noise of equal variance and a convention for the rank coefficients. True values reach √R, with
    the step taken on Pearson's scale: rank coefficients go there and back as those of a normal distribution do. The
    oracle is the seed mean plus normal noise with variance s²/k, s² the variance over seeds pooled over configurations.
    What a draw of the data adds to all models alike orders none of them and is no noise: it is taken out first.

    Args:
        seeds: The target, a row a configuration, a column a seed; NaN where there is no finite run.
        draw_of: Number of the draw of the data of each entry; None for one draw of all.
        coefficient: "kendall" (tau_b), "spearman" or "pearson".
        splits: Random splits of the seeds, and draws of the oracle's noise; at least 1.
        generator: Source of all randomness; None means a fresh one from seed 0.

    Returns:
        The ceilings; NaN with a reason in `warnings` where fewer than 3 configurations have two seeds, or the target
        is constant.

    Raises:
        ValueError: If the coefficient is unknown or `splits` is below 1.

    Source:
        Spearman (1910) and Brown (1910), Brit. J. Psychol. 3(3); √R: Lord and Novick (1968), Statistical Theories of
        Mental Test Scores, ch. 3; the oracle: Jiang et al. (2020).
    """
    one_of("coefficient", coefficient, COEFFICIENTS)
    if splits < 1:
        raise ValueError(f"`splits` must be at least 1, got {splits!r}.")
    generator = source_of(generator)
    finite = np.isfinite(seeds)
    usable = finite.sum(axis=1) >= 2
    known = bool(finite.any())
    values, finite = np.where(finite, seeds, np.nan)[usable], finite[usable]
    values, levels = _prepared(values, None if draw_of is None else draw_of[usable])
    n = len(values)
    if n < 3:
        reason = (
            "fewer than 3 configurations with two seeds"
            if n
            else "one seed a configuration: no noise ceiling"
            if known
            else "no run in which the target is finite"
        )
        return Ceiling(math.nan, math.nan, math.nan, math.nan, n, reason)
    k = finite.sum(axis=1)
    h = k // 2

    halves = _halves(finite, splits, generator)
    split_half = _mean(_rowwise(coefficient, *(_means(values, half) for half in halves)))

    mean = significant(np.nanmean(values, axis=1))
    free = max(float((k - 1).sum()) - (levels - 1), 1.0)
    pooled = np.nansum((values - mean[:, None]) ** 2) / free
    noisy = mean + generator.standard_normal((splits, n)) * np.sqrt(pooled / k)
    oracle = _mean(_rowwise(coefficient, noisy, np.broadcast_to(mean, noisy.shape)))

    warnings = [NO_CLAIM] if n < MINIMUM else []
    step = float(k.mean() / h.mean())
    brown = step * split_half / (1 + (step - 1) * split_half) if split_half > 0 else 0.0
    if math.isnan(split_half):
        brown = math.nan
        warnings.append("constant target")
    elif split_half <= 0:
        warnings.append("the halves of the seeds do not agree: the target is noise here")
    return Ceiling(split_half, brown, oracle, _of_true_values(split_half, step, coefficient), n, "; ".join(warnings))


def across_seeds(
    measure: Float[np.ndarray, "c s"],
    target: Float[np.ndarray, "c s"],
    *,
    draw_of: Int[np.ndarray, "c s"] | None = None,
    coefficient: str = "kendall",
    splits: int = 100,
    generator: np.random.Generator | None = None,
) -> float:
    """Mean correlation of a measure on one half of the seeds with the target on the other half.

    Nothing that happened in one run alone is in both, so noise that measure and target share does not help. Compare it
    with `Ceiling.split_half`, the target on both sides. NaN where fewer than 3 configurations have two runs in which
    both are finite.

    Args:
        measure: A row a configuration, a column a run; NaN where there is none.
        target: Of the same runs.
        draw_of: Number of the draw of the data of each entry; None for one draw of all.
        coefficient: "kendall" (tau_b), "spearman" or "pearson".
        splits: Random splits of the seeds; of each, both halves tell the measure in turn.
        generator: Source of all randomness; None means a fresh one from seed 0.

    Source:
        Our definition, after split-half reliability.
    """
    generator = source_of(generator)
    finite = np.isfinite(measure) & np.isfinite(target)
    usable = finite.sum(axis=1) >= 2
    if usable.sum() < 3:
        return math.nan
    of_data = None if draw_of is None else draw_of[usable]
    rows = [_prepared(np.where(finite, v, np.nan)[usable], of_data)[0] for v in (measure, target)]
    halves = _halves(finite[usable], splits, generator)
    (x, other_x), (other_y, y) = ([_means(v, half) for half in halves] for v in rows)
    return _mean(np.concatenate([_rowwise(coefficient, x, y), _rowwise(coefficient, other_x, other_y)]))


def _prepared(
    values: Float[np.ndarray, "c s"], draw_of: Int[np.ndarray, "c s"] | None
) -> tuple[Float[np.ndarray, "c s"], int]:
    """Values near 1, without what draws of the data add, and the number of draws."""
    _, exponent = np.frexp(np.nanmax(np.abs(values), initial=0.0))
    values = np.ldexp(values, -exponent)  # a power of two: nothing is rounded, and squares cannot overflow
    return (values, 1) if draw_of is None else without_draws(values, draw_of)


def without_draws(
    values: Float[np.ndarray, "c s"], draw_of: Int[np.ndarray, "c s"]
) -> tuple[Float[np.ndarray, "c s"], int]:
    """Values without what each draw of the data adds to all configurations, by least squares, and how many draws.

    Source:
        The two-way layout without interaction; for incomplete ones Searle (1971), Linear Models, ch. 7.
    """
    known = np.isfinite(values)
    found = np.unique(draw_of[known])
    if len(found) < 2:
        return values, len(found)
    row = np.nonzero(known)[0]
    shown = (draw_of[known][:, None] == found).astype(np.float64)
    size = np.bincount(row, minlength=len(values))

    def inside(columns: Float[np.ndarray, "r w"]) -> Float[np.ndarray, "r w"]:
        total = np.zeros((len(values), columns.shape[1]))
        np.add.at(total, row, columns)
        return columns - (total / np.maximum(size, 1)[:, None])[row]

    effect = np.linalg.lstsq(inside(shown), inside(values[known][:, None])[:, 0], rcond=None)[0]
    left = values.copy()
    left[known] -= shown @ effect
    return left, len(found)


def _halves(
    finite: Bool[np.ndarray, "c s"], splits: int, generator: np.random.Generator
) -> tuple[Bool[np.ndarray, "b c s"], Bool[np.ndarray, "b c s"]]:
    """Two disjoint halves of the finite seeds of each configuration, in each of many random splits."""
    keys = np.where(finite, generator.random((splits, *finite.shape)), np.inf)
    place = keys.argsort(axis=-1).argsort(axis=-1)
    h = (finite.sum(axis=1) // 2)[:, None]
    return place < h, (place >= h) & (place < 2 * h)


def _means(values: Float[np.ndarray, "c s"], half: Bool[np.ndarray, "b c s"]) -> Float[np.ndarray, "b c"]:
    """Means over a half, in each split."""
    total = np.where(half, np.nan_to_num(values), 0.0).sum(axis=-1)
    return significant(total / half.sum(axis=-1))


def _of_true_values(split_half: float, step: float, coefficient: str) -> float:
    """What true values reach with the mean over `step` times the seeds of a half, 0 where the halves do not agree."""
    if not split_half > 0:
        return math.nan if math.isnan(split_half) else 0.0
    scales: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
        "kendall": (lambda tau: math.sin(math.pi / 2 * tau), lambda r: 2 / math.pi * math.asin(r)),
        "spearman": (lambda rho: 2 * math.sin(math.pi / 6 * rho), lambda r: 6 / math.pi * math.asin(r / 2)),
        "pearson": (float, float),
    }
    to_pearson, back = scales[coefficient]
    r = min(to_pearson(split_half), 1.0)
    return back(math.sqrt(step * r / (1 + (step - 1) * r)))


def _mean(values: Float[np.ndarray, " b"]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _rowwise(coefficient: str, a: Float[np.ndarray, "b n"], b: Float[np.ndarray, "b n"]) -> Float[np.ndarray, " b"]:
    """The coefficient of each row of a with the same row of b."""
    rows: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "kendall": _kendall,
        "spearman": lambda u, v: _pearson(mid_ranks(u), mid_ranks(v)),
        "pearson": _pearson,
    }
    return rows[coefficient](a, b)


def _pearson(a: Float[np.ndarray, "b n"], b: Float[np.ndarray, "b n"]) -> Float[np.ndarray, " b"]:
    a, b = a - a[:, :1], b - b[:, :1]  # a constant row becomes exactly zero
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    return _ratio((a * b).sum(axis=1), (a * a).sum(axis=1), (b * b).sum(axis=1))


def _kendall(a: Float[np.ndarray, "b n"], b: Float[np.ndarray, "b n"]) -> Float[np.ndarray, " b"]:
    first, second = np.triu_indices(a.shape[1], 1)
    sums = np.zeros((3, len(a)))
    step = max(1, BLOCK // len(a))
    for start in range(0, len(first), step):
        i, j = first[start : start + step], second[start : start + step]
        u, v = np.sign(a[:, i] - a[:, j]), np.sign(b[:, i] - b[:, j])
        sums += np.stack([(u * v).sum(axis=1), np.abs(u).sum(axis=1), np.abs(v).sum(axis=1)])
    return _ratio(*sums)


def _ratio(
    both: Float[np.ndarray, " b"], one: Float[np.ndarray, " b"], other: Float[np.ndarray, " b"]
) -> Float[np.ndarray, " b"]:
    scale = np.sqrt(one * other)
    ratio = np.full(both.shape, np.nan)
    np.divide(both, scale, out=ratio, where=scale > 0)
    return ratio


def table(evidence: Evidence) -> pd.DataFrame:
    """The ceilings of each target, and beside them its strongest measure, on the same runs and across runs."""
    data, settings = evidence.data, evidence.settings
    place = pd.Series(data.configuration).groupby(data.configuration).cumcount().to_numpy()

    def by_seed(values: np.ndarray, missing: float) -> np.ndarray:
        seeds = np.full((len(data.methods), int(place.max()) + 1), missing)
        seeds[data.configuration, place] = values
        return seeds

    draw_of = by_seed(data.draws_of_data, -1).astype(np.int64)
    rows = []
    for target in evidence.targets:
        seeds = by_seed(data.values[target].to_numpy(), math.nan)
        for name in COEFFICIENTS:
            found = noise_ceiling(seeds, draw_of=draw_of, coefficient=name, generator=settings.generator(3))
            strongest, value = _strongest(evidence.correlations, target, name)
            across, notes = math.nan, found.warnings
            if strongest and math.isfinite(found.split_half):
                measure = by_seed(data.values[strongest].to_numpy(), math.nan)
                across = across_seeds(
                    measure, seeds, draw_of=draw_of, coefficient=name, splits=SPLITS, generator=settings.generator(3)
                )
                if abs(value) > found.independent:
                    notes = joined(notes, f"{strongest} exceeds the ceiling of independent runs: {SHARED}")
            rows.append((
                target, name, found.split_half, found.spearman_brown, found.oracle_with_noise, found.independent,
                strongest, value, across, found.n_configurations, notes,
            ))  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _strongest(correlations: pd.DataFrame, target: str, coefficient: str) -> tuple[str, float]:
    """The measure with the largest coefficient, whichever sign; "" where none has one."""
    here = correlations[(correlations["target"] == target) & (correlations["coefficient"] == coefficient)]
    values = here["value"].to_numpy(dtype=np.float64)
    if not np.isfinite(values).any():
        return "", math.nan
    at = int(np.nanargmax(np.abs(values)))
    return str(here["measure"].iloc[at]), float(values[at])
