"""Leave one method out: do measures predict the target of models trained by a method never seen?

And do they better than what is known without them? Ridge regression and nearest neighbours on standardised features:
measures, hyper-parameters, baselines, and baselines with one measure added. Means, scales and penalties are taken from
the training methods only. Ridge regression is our own: many sets of features are fitted at once, and even one
by one in a twentieth of the time of scikit-learn's, with its numbers (tests).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.stats import t as student

from analysis.measures.registry import is_baseline
from analysis.statistics.arguments import check_resampling, one_of
from analysis.statistics.coefficients import mean_inside
from analysis.statistics.controls import baselines, unfair
from analysis.statistics.evidence import Evidence, Rows, constant, joined
from analysis.statistics.intervals import jackknife_error
from analysis.statistics.randomness import source_of
from analysis.statistics.resampling import MINIMUM, NO_CLAIM, bootstrap_counts, percentile_interval
from analysis.statistics.slopes import scaled
from analysis.statistics.statistic import INTERVAL, Cell, Statistic, number, words
from analysis.statistics.strata import Strata
from analysis.statistics.units import MAXIMUM_LEVELS, Units
from analysis.style import fixed, interval

MODELS = ("ridge", "neighbours")
PENALTIES = tuple(float(v) for v in np.logspace(-2, 4, 13))
NEIGHBOURS = (1, 3, 5, 9, 15)
TRAINING, ALL, HYPER = "training baselines", "all baselines", "hyper-parameters"
MOST_SHOWN = 6  # measures added, on a page of the report
FAR = 10.0  # standard deviations of the training groups; a model further out counts as this far

Fitted = Callable[[Float[np.ndarray, "b n f"]], Float[np.ndarray, "b n k"]]  # of sets of features, for k choices


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
    one_of("model", model, MODELS)
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
    t, power = scaled(t)
    guess, base, chosen = _left_out(x[None], t, label, model, choices)
    guess = guess[0]
    predicted[used] = np.ldexp(guess, power)
    wrong, wrong_base = (t - guess) ** 2, (t - base) ** 2
    low = high = nan
    if draws:
        counts = bootstrap_counts(n, draws=draws, generator=generator).astype(np.float64)
        below = counts @ wrong_base
        ratio = np.divide(counts @ wrong, below, out=np.full(draws, np.nan), where=below > 0)
        low, high = (float(e) for e in percentile_interval(1 - ratio, level=level))
    if g < 5:
        notes.append(f"{g} methods: hardly a sample of methods")
    r2 = 1 - float(wrong.sum() / wrong_base.sum()) if wrong_base.sum() > 0 else nan
    return Prediction(
        r2, low, high, float(_tau_inside(guess[None], t, label)[0]), float(np.ldexp(np.abs(t - guess).mean(), power)),
        float(np.ldexp(np.abs(t - base).mean(), power)), predicted, tuple(chosen[0].tolist()), n, g, "; ".join(notes),
    )  # fmt: skip


@dataclass(frozen=True)
class Gain:
    """What each of some measures adds to a prediction from baselines, for methods left out.

    Attributes:
        r2: R² of baselines and measure.
        tau: tau_b of the prediction with the target inside each method left out, averaged.
        mae: Mean absolute error.
        gain: R² of baselines and measure less that of the baselines on the same configurations.
        low: Lower end of its interval, over methods: delete-one jackknife over the methods left out with the
            predictions as they are, and quantiles of Student's t with one degree of freedom fewer than methods.
        high: Upper end.
        gain_tau: The same difference of `tau`.
        mae_baseline: Mean absolute error of the mean of the training methods, one number.
        n: Units.
        groups: Methods left out in turn.
    """

    r2: Float[np.ndarray, " m"]
    tau: Float[np.ndarray, " m"]
    mae: Float[np.ndarray, " m"]
    gain: Float[np.ndarray, " m"]
    low: Float[np.ndarray, " m"]
    high: Float[np.ndarray, " m"]
    gain_tau: Float[np.ndarray, " m"]
    mae_baseline: float
    n: int
    groups: int


def gain_over(
    baselines: Float[np.ndarray, "n f"],
    measures: Float[np.ndarray, "m n"],
    y: Float[np.ndarray, " n"],
    groups: Sequence[Any],
    *,
    level: float = 0.95,
) -> Gain:
    """Predict y of each group from the others, by ridge regression on baselines, and on baselines and one measure.

    Args:
        baselines: A row a unit, finite.
        measures: Each is added by itself; finite.
        y: The target, finite and not constant.
        groups: The method of each unit, of at least two.
        level: Coverage of the interval.

    Source:
        Our definition; the jackknife over groups: Efron and Tibshirani (1993), An Introduction to the Bootstrap, 11.
    """
    label = np.unique(np.array([repr(g) for g in groups], dtype=object), return_inverse=True)[1]
    t, power = scaled(y)
    both = np.concatenate([np.broadcast_to(baselines, (len(measures), *baselines.shape)), measures[:, :, None]], axis=2)
    guess, mean, _ = _left_out(both, t, label, "ridge", PENALTIES)
    alone = _left_out(baselines[None], t, label, "ridge", PENALTIES)[0]
    member = (label[:, None] == np.unique(label)).astype(np.float64)
    less, whole = ((t - alone) ** 2 - (t - guess) ** 2) @ member, ((t - mean) ** 2) @ member  # sums of each method
    g = member.shape[1]
    rest = whole.sum() - whole
    gain = less.sum(axis=1) / whole.sum()
    half = np.full(len(measures), math.nan)
    if (rest > 0).all():
        left_out = (less.sum(axis=1, keepdims=True) - less) / rest
        half = float(student.ppf((1 + level) / 2, g - 1)) * jackknife_error(left_out)
    tau = _tau_inside(guess, t, label)
    return Gain(
        1 - ((t - guess) ** 2).sum(axis=1) / whole.sum(), tau, np.ldexp(np.abs(t - guess).mean(axis=1), power),
        gain, gain - half, gain + half, tau - _tau_inside(alone, t, label),
        float(np.ldexp(np.abs(t - mean).mean(), power)), len(y), g,
    )  # fmt: skip


def _left_out(
    x: Float[np.ndarray, "b n f"],
    y: Float[np.ndarray, " n"],
    label: Int[np.ndarray, " n"],
    model: str,
    choices: Sequence[float],
) -> tuple[Float[np.ndarray, "b n"], Float[np.ndarray, " n"], Float[np.ndarray, "b g"]]:
    """For several sets of features at once: each unit predicted from the other groups, their mean, and the choices."""
    fit = _ridge if model == "ridge" else _neighbours
    guess, base = np.empty(x.shape[:2]), np.empty(len(y))
    chosen = np.full((len(x), int(label.max()) + 1), np.nan)
    for k in range(chosen.shape[1]):
        train, test = label != k, label == k
        base[test] = y[train].mean()
        if train.sum() < 2:
            guess[:, test] = base[test]
            continue
        inner = label[train] if len(np.unique(label[train])) > 1 else np.arange(int(train.sum())) % 10
        best = np.zeros(len(x), dtype=np.int64)
        if len(choices) > 1:
            best = _best(x[:, train], y[train], inner, fit, choices)
        chosen[:, k] = np.asarray(choices)[best]
        made = fit(x[:, train], y[train], choices)(x[:, test])
        guess[:, test] = np.take_along_axis(made, best[:, None, None], axis=2)[:, :, 0]
    return guess, base, chosen


def _tau_inside(
    guess: Float[np.ndarray, "b n"], y: Float[np.ndarray, " n"], label: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " b"]:
    """tau_b of each prediction with y inside each label of at least three units, averaged over those with one."""
    groups = Strata.of(label).groups
    return mean_inside("kendall", guess, y[None], groups)[0][:, 0, 0]


def _best(
    x: np.ndarray, y: np.ndarray, label: Int[np.ndarray, " n"], fit: Callable[..., Fitted], choices: Sequence[float]
) -> Int[np.ndarray, " b"]:
    """The choice with the least squared error when each label is left out in turn; of equals, the smoother one."""
    error = np.zeros((len(x), len(choices)))
    for k in np.unique(label):
        train = label != k
        if train.sum() < 2:
            continue
        made = fit(x[:, train], y[train], choices)(x[:, ~train])
        error += ((made - y[~train, None]) ** 2).sum(axis=1)
    found: Int[np.ndarray, " b"] = len(choices) - 1 - error[:, ::-1].argmin(axis=1)
    return found


def _standardiser(x: Float[np.ndarray, "b n f"]) -> tuple[Float[np.ndarray, "b 1 f"], Float[np.ndarray, "b 1 f"]]:
    """Mean and standard deviation of each feature; infinite for a constant one, which then says nothing."""
    top = np.abs(x).max(axis=1, keepdims=True)
    unit = np.where(top > 0, top, 1.0)
    mean = (x / unit).mean(axis=1, keepdims=True)
    spread = (x / unit - mean).std(axis=1, keepdims=True)
    return mean * unit, np.where(spread > 1e-12, spread, np.inf) * unit


def _place(z: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Standardised features, held within `FAR` deviations: nothing is extrapolated without end."""
    with np.errstate(over="ignore"):
        held: np.ndarray = np.clip((z - mean) / spread, -FAR, FAR)
    return held


def _ridge(x: np.ndarray, y: np.ndarray, choices: Sequence[float]) -> Fitted:
    """The weights of every penalty, from eigenvalues of the smaller of the two Gram matrices."""
    mean, spread = _standardiser(x)
    placed = _place(x, mean, spread)
    turned = np.swapaxes(placed, 1, 2)
    tall = placed.shape[1] >= placed.shape[2]
    size, axes = np.linalg.eigh(turned @ placed if tall else placed @ turned)
    right = y - y.mean()
    target = (turned @ right)[:, :, None] if tall else np.broadcast_to(right[:, None], (len(x), len(y), 1))
    shrunk = (np.swapaxes(axes, 1, 2) @ target) / (np.maximum(size, 0.0)[:, :, None] + np.asarray(choices))
    weights = axes @ shrunk if tall else turned @ (axes @ shrunk)
    return lambda z: y.mean() + _place(z, mean, spread) @ weights


def _neighbours(x: np.ndarray, y: np.ndarray, choices: Sequence[float]) -> Fitted:
    """The mean of the nearest; of one set of features."""
    mean, spread = _standardiser(x)
    seen = _place(x, mean, spread)[0]

    def predict(z: np.ndarray) -> np.ndarray:
        new = _place(z, mean, spread)[0]
        distance = (new**2).sum(axis=1)[:, None] - 2 * new @ seen.T + (seen**2).sum(axis=1)[None]
        most = min(int(max(choices)), len(y))
        near = np.argpartition(distance, most - 1, axis=1)[:, :most]
        near = y[np.take_along_axis(near, np.take_along_axis(distance, near, axis=1).argsort(axis=1), axis=1)]
        total = np.cumsum(near, axis=1)
        counts = [min(int(k), len(y)) for k in choices]
        return np.stack([total[:, k - 1] / k for k in counts], axis=1)[None]

    return predict


def table(evidence: Evidence) -> Rows:
    """The target of methods left out: from sets of features, and from baselines with each measure added."""
    data, settings, rows = evidence.data, evidence.settings, []
    known = baselines(data)
    training = known["training"]
    every = [*(training or known["held out"]), *known["validation"]]
    apart = [name for names in known.values() for name in names]
    measures = [m for m in evidence.measures if m not in apart and not is_baseline(m)]
    sets = {
        "measures": (measures, False), HYPER: ([], True), "both": (measures, True),
        **{name: ([name], False) for name in apart}, TRAINING: (training, False), ALL: (every, False),
        f"{ALL} and {HYPER}": (every, True),
    }  # fmt: skip
    hyper = _hyper_features(data.hyper)
    for target in evidence.targets:
        runs = data.values[target].notna().to_numpy()
        y = data.average([target], runs)[0]
        alone: dict[str, float] = {}
        for (name, (names, with_hyper)), model in product(sets.items(), MODELS):
            if target in names or not (names or name in ("measures", HYPER)):
                continue
            x = _averages(names, data, target)
            features, note = _measure_features(x[:, np.isfinite(y)], np.isfinite(y))
            columns = np.concatenate([features, hyper], axis=1) if with_hyper else features
            found = leave_one_group_out(
                columns, y, data.methods, model=model, draws=settings.draws, level=settings.level,
                generator=settings.generator(8),
            )  # fmt: skip
            rows.append((
                target, name, "", model, columns.shape[1], found.r2, found.r2_low, found.r2_high, found.tau, found.mae,
                found.mae_baseline, *(math.nan,) * 4, found.n, found.groups, joined(found.warnings, note),
            ))  # fmt: skip
            if model == "ridge":
                alone[name] = found.r2
        for name, names in {TRAINING: training, ALL: every if every != training else []}.items():
            if names and target not in names:
                rows += _added(evidence, target, name, names, {k: alone[k] for k in (*names, TRAINING) if k in alone})
    return rows


def _added(evidence: Evidence, target: str, name: str, names: list[str], alone: dict[str, float]) -> Rows:
    """A row a measure that is none of these baselines: what it adds to them, on the runs in which all are finite.

    Baselines together may predict worse than one of them: a row says so where that one `alone` (its R²) does as well
    as all with the measure.
    """
    data, rows, nan = evidence.data, [], math.nan
    best = max(alone, key=lambda k: np.nan_to_num(alone[k], nan=-math.inf), default=name)
    finite = data.values[names].notna().all(axis=1).to_numpy()
    for block in evidence.blocks([m for m in evidence.measures if m not in names], [target]):
        block = evidence.block(block.measures, [target], block.runs & finite)
        methods = [m for m, u in zip(data.methods, block.used, strict=True) if u]
        said = ["one method: none to leave out"] if len(set(methods)) == 1 else []
        every = np.ones(block.n, dtype=bool)
        found = None
        if block.n >= MINIMUM and not said and not constant(block.y[0]):
            base, _ = _measure_features(data.average(names, block.runs)[:, block.used], every)
            added, _ = _measure_features(block.x, every)
            found = gain_over(base, added.T, block.y[0], methods, level=evidence.settings.level)
            said += [f"{found.groups} methods: hardly a sample of methods"] if found.groups < 5 else []
        for i, _, measure, _ in block.pairs():
            values, less = (nan,) * 10, ""
            if found is not None:
                values = (
                    found.r2[i], nan, nan, found.tau[i], found.mae[i], found.mae_baseline,
                    found.gain[i], found.low[i], found.high[i], found.gain_tau[i],
                )  # fmt: skip
                less = f"no better than {best} alone (R² {alone[best]:.2f})" if found.r2[i] <= alone[best] else ""
            rows.append((
                target, f"{name} + measure", measure, "ridge", len(names) + 1, *values, block.n, len(set(methods)),
                joined(*block.remarks(i, 0), *said, less, unfair(measure, names)),
            ))  # fmt: skip
    return rows


def _averages(names: Sequence[str], data: Units, target: str) -> Float[np.ndarray, "m c"]:
    """Each over the runs in which it and the target are finite: runs without one measure still have the others."""
    x = np.full((len(names), len(data.methods)), np.nan)
    place = {name: k for k, name in enumerate(names)}
    for some, _, runs in data.blocks(names, [target]):
        x[[place[name] for name in some]] = data.average(some, runs)
    return x


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


def _shown(rows: pd.DataFrame, leading: Sequence[str]) -> pd.DataFrame:
    """What is known without measures, and what the first of the leading ones add to it."""
    place = {name: k for k, name in enumerate(("", *leading[:MOST_SHOWN]))}
    rows = rows[rows["added"].isin(list(place))]
    order = np.lexsort([rows["added"].map(place).to_numpy()])
    return rows.iloc[order]


STATISTIC = Statistic(
    name="prediction",
    columns=(
        "target features added model number r2 low high tau mae mae_of_mean gain gain_low gain_high gain_tau "
        "n_configurations methods warnings"
    ),
    table=table,
    title="Predicting methods left out",
    note=(
        "`{target}` of each method in turn, predicted by models fitted on the other methods: from measures, "
        "hyper-parameters, baselines (training: loss, error and entropy of the outputs; all: also validation error and "
        "loss), and from baselines with one measure added. R² is relative to the mean of the training methods and may "
        "be far below 0; its interval is over configurations. Gain: R² less that of the baselines alone on the same "
        "configurations, its interval over the methods left out."
    ),
    shown={
        "From": words("features"),
        "Measure added": words("added"),
        "Model": words("model"),
        "R²": number("r2"),
        **INTERVAL,
        "τ within": number("tau"),
        "R² without": Cell(("r2", "gain"), lambda r2, gain: fixed(r2 - gain)),
        "Gain": Cell(("gain", "gain_low", "gain_high"), interval),
        "Mean error": number("mae", 4),
        "of the mean": number("mae_of_mean", 4),
    },
    words=("From", "Measure added", "Model"),
    chosen=_shown,
    later={"added": "", "gain": math.nan, "gain_low": math.nan, "gain_high": math.nan, "gain_tau": math.nan},
)
