"""Leave one method out: do measures predict the target of models trained by a method never seen?

Ridge regression and nearest neighbours on standardised measures, beside the mean of the training configurations and
beside ridge regression on hyper-parameters alone. Means, scales and penalties are taken from the training methods only.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from analysis.statistics.evidence import Evidence, Rows, constant, joined
from analysis.statistics.kendall import weighted_kendall
from analysis.statistics.randomness import source_of
from analysis.statistics.resampling import MINIMUM, NO_CLAIM, bootstrap_counts, check_resampling, percentile_interval
from analysis.statistics.slopes import scaled
from analysis.statistics.statistic import INTERVAL, Statistic, number, whole, words
from analysis.statistics.units import MAXIMUM_LEVELS

MODELS = ("ridge", "neighbours")
PENALTIES = tuple(float(v) for v in np.logspace(-2, 4, 13))
NEIGHBOURS = (1, 3, 5, 9, 15)
FAR = 10.0  # standard deviations of the training groups; a model further out counts as this far

Fitted = Callable[[Float[np.ndarray, "n f"]], Float[np.ndarray, "n k"]]


@dataclass(frozen=True)
class Prediction:
    """How well a target is predicted for methods left out.

    Attributes:
        r2: 1 - Σ(y - ŷ)²/Σ(y - mean of the training methods)²: above 0 where better than the mean; may be far below 0.
        r2_low: Lower end of its interval, from a bootstrap over configurations with the predictions as they are.
        r2_high: Upper end.
        tau: tau_b of ŷ with y inside each method left out, averaged over methods: the mean baseline has none.
        mae: Mean absolute error, in units of the target.
        mae_baseline: That of the mean of the training methods.
        predicted: ŷ for each unit, NaN where left out.
        penalties: The penalty (or number of neighbours) chosen for each method left out.
        n: Units predicted.
        groups: Methods left out in turn.
        warnings: What a reader must know.
    """

    r2: float
    r2_low: float
    r2_high: float
    tau: float
    mae: float
    mae_baseline: float
    predicted: Float[np.ndarray, " n"]
    penalties: tuple[float, ...]
    n: int
    groups: int
    warnings: str = ""


def leave_one_group_out(
    features: Float[np.ndarray, "n f"],
    y: Float[np.ndarray, " n"],
    groups: Sequence[Any],
    *,
    model: str = "ridge",
    penalties: Sequence[float] | None = None,
    draws: int = 2000,
    level: float = 0.95,
    generator: np.random.Generator | None = None,
) -> Prediction:
    """Predict y of each group from the others.

    Ridge minimises Σ(y - a - f·b)² + penalty·|b|² over features standardised on the training groups, and held within
    ten of their standard deviations. The penalty (the
    number of neighbours) is the one with the least squared error when each training group is left out in turn; with a
    single training group each tenth of it is.

    Args:
        features: A row a unit (a configuration); units with a value that is not finite are left out.
        y: The target.
        groups: The method of each unit.
        model: "ridge" or "neighbours".
        penalties: What to choose from; None for `PENALTIES` or `NEIGHBOURS`.
        draws: Bootstrap resamples for the interval of R²; 0 for none.
        level: Its coverage.
        generator: Source of the resamples; None means a fresh one from seed 0.

    Raises:
        ValueError: If shapes differ, the model is unknown, or a penalty is not positive.

    Source:
        Hoerl and Kennard (1970), Technometrics 12(1); nested choice: Varma and Simon (2006), BMC Bioinformatics 7.
    """
    check_resampling(draws=draws, level=level)
    generator = source_of(generator)
    if model not in MODELS:
        raise ValueError(f"`model` must be one of {MODELS}, got {model!r}.")
    if features.ndim != 2 or y.shape != features.shape[:1] or len(groups) != len(y):
        raise ValueError(
            f"`features`, `y` and `groups` must have a row a unit, got {features.shape}, {y.shape} and {len(groups)}."
        )
    choices = tuple(penalties) if penalties is not None else PENALTIES if model == "ridge" else NEIGHBOURS
    if not choices or min(choices) <= 0:
        raise ValueError(f"`penalties` must be numbers > 0, got {choices!r}.")
    used = np.isfinite(features).all(axis=1) & np.isfinite(y)
    names = [repr(g) for g, u in zip(groups, used.tolist(), strict=True) if u]
    label = np.unique(np.array(names, dtype=object), return_inverse=True)[1] if names else np.zeros(0, dtype=np.int64)
    x, t, g, n = features[used], y[used], int(label.max(initial=-1)) + 1, int(used.sum())
    predicted, nan = np.full(len(y), np.nan), math.nan
    lost = int((~used).sum())
    notes = [f"{lost} configurations that are not finite left out"] if lost else []
    reason = ""
    if n < MINIMUM or g < 2:
        reason = NO_CLAIM if n < MINIMUM else "one method: none to leave out"
    elif not x.shape[1]:
        reason = "no feature"
    elif (t == t[0]).all():
        reason = "constant target"
    if reason:
        return Prediction(nan, nan, nan, nan, nan, nan, predicted, (), n, g, "; ".join([*notes, reason]))
    fit = _ridge if model == "ridge" else _neighbours
    t, power = scaled(t)
    guess, base = np.empty(n), np.empty(n)
    chosen = []
    for k in range(g):
        train, test = label != k, label == k
        if train.sum() < 2:
            guess[test] = base[test] = t[train].mean()
            chosen.append(nan)
            continue
        inner = label[train] if len(np.unique(label[train])) > 1 else np.arange(int(train.sum())) % 10
        best = choices[0]
        if len(choices) > 1:
            best = choices[_best(x[train], t[train], inner, fit, choices)]
        chosen.append(float(best))
        guess[test] = fit(x[train], t[train], (best,))(x[test])[:, 0]
        base[test] = t[train].mean()
    predicted[used] = np.ldexp(guess, power)
    wrong, wrong_base = (t - guess) ** 2, (t - base) ** 2
    low = high = nan
    if draws:
        counts = bootstrap_counts(n, draws=draws, generator=generator).astype(np.float64)
        below = counts @ wrong_base
        ratio = np.divide(counts @ wrong, below, out=np.full(draws, np.nan), where=below > 0)
        low, high = (float(e) for e in percentile_interval(1 - ratio, level=level))
    inside = []
    for k in range(g):
        rows = np.flatnonzero(label == k)
        if len(rows) >= 3:
            once = np.ones((1, len(rows)), dtype=np.int64)
            inside.append(float(weighted_kendall(guess[None, rows], t[None, rows], once)[0, 0, 0]))
    defined = [v for v in inside if math.isfinite(v)]
    if g < 5:
        notes.append(f"{g} methods: hardly a sample of methods")
    r2 = 1 - float(wrong.sum() / wrong_base.sum()) if wrong_base.sum() > 0 else nan
    return Prediction(
        r2, low, high, float(np.mean(defined)) if defined else nan, float(np.ldexp(np.abs(t - guess).mean(), power)),
        float(np.ldexp(np.abs(t - base).mean(), power)), predicted, tuple(chosen), n, g, "; ".join(notes),
    )  # fmt: skip


def _best(
    x: np.ndarray, y: np.ndarray, label: Int[np.ndarray, " n"], fit: Callable[..., Fitted], choices: Sequence[float]
) -> int:
    """The choice with the least squared error when each label is left out in turn; of equals, the smoother one."""
    error = np.zeros(len(choices))
    for k in np.unique(label):
        train = label != k
        if train.sum() < 2:
            continue
        made = fit(x[train], y[train], choices)(x[~train])
        error += ((made - y[~train, None]) ** 2).sum(axis=0)
    return len(choices) - 1 - int(error[::-1].argmin())


def standardiser(x: Float[np.ndarray, "n f"]) -> tuple[Float[np.ndarray, " f"], Float[np.ndarray, " f"]]:
    """Mean and standard deviation of each feature; 1 for a constant one, which then says nothing."""
    top = np.abs(x).max(axis=0)
    unit = np.where(top > 0, top, 1.0)
    mean = (x / unit).mean(axis=0)
    spread = (x / unit - mean).std(axis=0)
    return mean * unit, np.where(spread > 1e-12, spread, np.inf) * unit


def _place(z: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Standardised features, held within `FAR` deviations: nothing is extrapolated without end."""
    with np.errstate(over="ignore"):
        held: np.ndarray = np.clip((z - mean) / spread, -FAR, FAR)
    return held


def _ridge(x: np.ndarray, y: np.ndarray, choices: Sequence[float]) -> Fitted:
    mean, spread = standardiser(x)
    u, s, v = np.linalg.svd(_place(x, mean, spread), full_matrices=False)
    shrink = s[:, None] / (s[:, None] ** 2 + np.asarray(choices)[None])
    weights = v.T @ (shrink * (u.T @ (y - y.mean()))[:, None])
    return lambda z: y.mean() + _place(z, mean, spread) @ weights


def _neighbours(x: np.ndarray, y: np.ndarray, choices: Sequence[float]) -> Fitted:
    mean, spread = standardiser(x)
    seen = _place(x, mean, spread)

    def predict(z: np.ndarray) -> np.ndarray:
        new = _place(z, mean, spread)
        distance = (new**2).sum(axis=1)[:, None] - 2 * new @ seen.T + (seen**2).sum(axis=1)[None]
        most = min(int(max(choices)), len(y))
        near = np.argpartition(distance, most - 1, axis=1)[:, :most]
        near = y[np.take_along_axis(near, np.take_along_axis(distance, near, axis=1).argsort(axis=1), axis=1)]
        total = np.cumsum(near, axis=1)
        counts = [min(int(k), len(y)) for k in choices]
        return np.stack([total[:, k - 1] / k for k in counts], axis=1)

    return predict


def table(evidence: Evidence) -> Rows:
    """The target of methods left out, predicted from measures, from hyper-parameters alone, and from both."""
    data, rows = evidence.data, []
    for target in evidence.targets:
        runs = data.values[target].notna().to_numpy()
        y = data.average([target], runs)[0]
        x = np.full((len(evidence.measures), len(y)), np.nan)
        for k, name in enumerate(evidence.measures):  # runs without one measure still have the others
            x[k] = data.average([name], runs & data.values[name].notna().to_numpy())[0]
        features, notes = _measure_features(x[:, np.isfinite(y)], np.isfinite(y))
        hyper = _hyper_features(data.hyper)
        sets = {"measures": (features, notes), "hyper-parameters": (hyper, ""),
                "both": (np.concatenate([features, hyper], axis=1), notes)}  # fmt: skip
        for (name, (columns, note)), model in product(sets.items(), MODELS):
            found = leave_one_group_out(
                columns, y, data.methods, model=model, draws=evidence.settings.draws, level=evidence.settings.level,
                generator=evidence.settings.generator(8),
            )  # fmt: skip
            rows.append((
                target, name, model, columns.shape[1], found.r2, found.r2_low, found.r2_high, found.tau, found.mae,
                found.mae_baseline, found.n, found.groups, joined(found.warnings, note),
            ))  # fmt: skip
    return rows


def _measure_features(
    x: Float[np.ndarray, "m n"], used: Bool[np.ndarray, " c"]
) -> tuple[Float[np.ndarray, "c f"], str]:
    """Measures known for nearly all configurations; positive ones that span a factor of ten on a log scale."""
    share = np.isfinite(x).mean(axis=1) if x.shape[1] else np.zeros(len(x))
    kept = x[share >= 0.9]
    low, high = (np.nan_to_num(f(kept, axis=1)) if kept.size else np.zeros(len(kept)) for f in (np.nanmin, np.nanmax))
    wide = (low > 0) & (high > 10 * low)
    kept[wide] = np.log(kept[wide])
    out = np.full((len(used), len(kept)), np.nan)
    out[used] = kept.T
    lost = len(x) - len(kept)
    return out, joined(
        f"{lost} measures missing in more than a tenth are left out" if lost else "",
        f"{int(wide.sum())} measures on a log scale" if wide.any() else "",
    )


def _hyper_features(hyper: pd.DataFrame) -> Float[np.ndarray, "c f"]:
    """Hyper-parameters that vary: numbers as they are, missing ones 0 with an indicator, names as indicators."""
    found: list[np.ndarray] = []
    for name in hyper.columns:
        number_of = pd.to_numeric(hyper[name], errors="coerce").to_numpy(dtype=np.float64)
        missing, known = hyper[name].isna().to_numpy(), np.isfinite(number_of)
        if known.any() and (known | missing).all():
            found += [np.where(known, number_of, 0.0), missing.astype(np.float64)]
        else:
            codes, labels = pd.factorize(hyper[name].map(str))
            found += [(codes == k).astype(np.float64) for k in range(min(len(labels), MAXIMUM_LEVELS))]
    kept = [f for f in found if not constant(f)]
    return np.stack(kept, axis=1) if kept else np.zeros((len(hyper), 0))


STATISTIC = Statistic(
    name="prediction",
    columns="target features model number r2 low high tau mae mae_of_mean n_configurations methods warnings",
    table=table,
    title="Predicting methods left out",
    note=(
        "`{target}` of each method in turn, predicted by models fitted on the other methods: from measures, "
        "from hyper-parameters alone, and from both. R² is relative to the mean of the training methods and may be far "
        "below 0. Mean error: mean absolute error, beside that of the mean."
    ),
    shown={
        "From": words("features"),
        "Features": whole("number"),
        "Model": words("model"),
        "R²": number("r2"),
        **INTERVAL,
        "τ within": number("tau"),
        "Mean error": number("mae", 4),
        "of the mean": number("mae_of_mean", 4),
        "Methods": whole("methods"),
    },
    words=("From", "Model"),
    chosen=lambda rows, _: rows,
)
