"""Partial correlation: what is left of the correlation of measure and target when a third thing is held fixed."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.special import ndtr
from scipy.stats import t as student

from analysis.statistics.ceiling import COEFFICIENTS
from analysis.statistics.evidence import Evidence, Rows, constant
from analysis.statistics.intervals import PERFECT, freedom_of, jackknife_error, leave_one_out, stabilised_interval
from analysis.statistics.kendall import weighted_kendall
from analysis.statistics.randomness import source_of
from analysis.statistics.resampling import MINIMUM, NO_CLAIM, check_resampling, mid_ranks, weighted_pearson
from analysis.statistics.statistic import INTERVAL, SHOWN, Statistic, chance, number, of_leading, whole, words
from analysis.statistics.units import nearest, variants

HYPER_CONTROLS = ("lr", "batch_size", "weight_decay", "model_options", "width", "epochs")
MEASURE_CONTROLS = ("train_loss",)  # what training reached
MATCHED = ("dCE", "base_information")  # of the same perturbation as the measure of forgetting
FORGETTING = ("F_", "selectivity", "dH", "KL", "cw", "wc", "M_gap")


@dataclass(frozen=True)
class Partial:
    """A partial correlation.

    Attributes:
        value: The coefficient; NaN where it is not defined, with the reason in `warnings`.
        low: Lower end of its interval (jackknife on Fisher's z scale); NaN below 5 units.
        high: Upper end, likewise.
        p: Permutation p-value; NaN if not asked for.
        n: Units in which everything is finite.
        warnings: What a reader must know.
    """

    value: float
    low: float
    high: float
    p: float
    n: int
    warnings: str = ""


def partial_correlation(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    controls: Float[np.ndarray, "k n"],
    *,
    coefficient: str = "kendall",
    level: float = 0.95,
    permutations: int = 0,
    generator: np.random.Generator | None = None,
) -> Partial:
    """The correlation of x and y given controls z, from the inverse P of the matrix of all pairwise coefficients.

    -P_xy/√(P_xx P_yy), for one control (t_xy - t_xz t_yz)/√((1-t_xz²)(1-t_yz²)). For Pearson's r this is the
    correlation of the residuals, for Spearman's of the ranks' residuals; for tau_b it is Kendall's partial tau, which
    is no correlation of residuals: it can differ from 0 where x and y are independent given z.

    Args:
        x: The measure, a value a unit (a configuration).
        y: The target.
        controls: What is held fixed, a row each; units where anything is not finite are left out.
        coefficient: "kendall", "spearman" or "pearson".
        level: Coverage of the interval.
        permutations: For the p-value; 0 for none. Residuals of x on the controls (of ranks, for the rank coefficients)
            are permuted and put back on their fit, so what x shares with the controls stays in the null.
        generator: Source of the permutations; None means a fresh one from seed 0.

    Raises:
        ValueError: If shapes differ, or the coefficient is unknown.

    Source:
        Kendall (1942), Biometrika 32(3-4); permutation of residuals: Freedman and Lane (1983), JBES 1(4), on x.
    """
    check_resampling(draws=permutations, level=level)
    if coefficient not in COEFFICIENTS:
        raise ValueError(f"`coefficient` must be one of {COEFFICIENTS}, got {coefficient!r}.")
    if controls.ndim != 2 or not x.shape == y.shape == controls.shape[1:]:
        raise ValueError(
            f"`controls` must be one row of values a control, as many as `x` and `y`, got {x.shape}, {y.shape} and "
            f"{controls.shape}."
        )
    generator = source_of(generator)
    used = np.isfinite(x) & np.isfinite(y) & np.isfinite(controls).all(axis=0)
    stack, n = np.concatenate([x[None], y[None], controls])[:, used], int(used.sum())
    if n < len(controls) + 3:
        return Partial(math.nan, math.nan, math.nan, math.nan, n, f"{n} units are too few for {len(controls)} controls")
    if (still := (stack == stack[:, :1]).all(axis=1)).any():
        what = ["measure", "target", *["control"] * len(controls)]
        names = dict.fromkeys(w for w, s in zip(what, still, strict=True) if s)
        return Partial(math.nan, math.nan, math.nan, math.nan, n, f"constant {' and '.join(names)}")
    value = float(_from_matrix(_matrix(stack, coefficient)))
    if math.isnan(value):
        return Partial(value, math.nan, math.nan, math.nan, n, "the controls determine the measure or the target")
    notes = [NO_CLAIM] if n < MINIMUM else []
    low = high = p = math.nan
    if n >= MINIMUM:
        left_out = _from_matrix(np.moveaxis(leave_one_out(coefficient, stack, stack), 2, 0))
        freedom = freedom_of(coefficient, n - len(controls))
        ends = stabilised_interval(np.array(value), jackknife_error(left_out), level=level, freedom=freedom)
        low, high = (float(e) for e in ends)
        if abs(value) > 1 - 1e-12:
            notes.append(PERFECT)
        if permutations:
            null = _null(stack, coefficient, permutations, generator)
            p = (1 + int((np.abs(null) >= abs(value) - 1e-9).sum())) / (1 + permutations)
    return Partial(value, low, high, p, n, "; ".join(notes))


def partial_of(
    xy: Float[np.ndarray, "*shape"], xz: Float[np.ndarray, "*shape"], yz: Float[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """(r_xy - r_xz r_yz)/√((1-r_xz²)(1-r_yz²)); NaN where the control orders x or y by itself."""
    room = (1 - xz**2) * (1 - yz**2)
    value = np.full(room.shape, np.nan)
    np.divide(xy - xz * yz, np.sqrt(np.maximum(room, 0.0)), out=value, where=room > 1e-12)
    return np.clip(value, -1.0, 1.0)


def partial_table(
    x: Float[np.ndarray, "m n"],
    y: Float[np.ndarray, "t n"],
    z: Float[np.ndarray, " n"],
    *,
    coefficient: str,
    level: float,
) -> tuple[Float[np.ndarray, "m t"], ...]:
    """Partial correlation of many measures and targets given one control: value, interval ends, two-sided p.

    Interval and p rest on the jackknife on Fisher's z scale (p of the normal distribution; Student's for Pearson's r).
    """
    n, both = x.shape[1], np.concatenate([y, z[None]])
    plain = _correlations(coefficient, x, both)
    of_y = _correlations(coefficient, y, z[None])[:, 0]
    value = partial_of(plain[:, :-1], plain[:, -1:], of_y[None])
    left = leave_one_out(coefficient, x, both)
    left_y = leave_one_out(coefficient, y, z[None])[:, 0]
    error = jackknife_error(partial_of(left[:, :-1], left[:, -1:] + 0 * left[:, :-1], left_y[None] + 0 * left[:, :-1]))
    low, high = stabilised_interval(value, error, level=level, freedom=freedom_of(coefficient, n - 1))
    room = 1 - value**2
    score = np.abs(np.arctanh(np.where(room > 1e-14, value, 0.0)))
    score = np.divide(score * room, error, out=np.full(value.shape, np.nan), where=(error > 0) & (room > 1e-14))
    freedom = freedom_of(coefficient, n - 1)
    p = 2 * (student.sf(score, freedom) if math.isfinite(freedom) else ndtr(-score))
    return value, low, high, p


def _correlations(coefficient: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    once = np.ones((1, x.shape[1]), dtype=np.int64)
    if coefficient == "kendall":
        return weighted_kendall(x, y, once)[:, :, 0]
    if coefficient == "spearman":
        x, y = mid_ranks(x), mid_ranks(y)
    return weighted_pearson(x, y, once)[:, :, 0]


def _matrix(stack: np.ndarray, coefficient: str) -> np.ndarray:
    return _correlations(coefficient, stack, stack)


def _from_matrix(r: Float[np.ndarray, "*shape v v"]) -> Float[np.ndarray, "*shape"]:
    """The partial correlation of the first two variables, from their matrix; NaN where the controls fix one of them."""
    if r.shape[-1] == 3:
        return partial_of(r[..., 0, 1], r[..., 0, 2], r[..., 1, 2])
    finite = np.isfinite(r).all(axis=(-2, -1))
    safe = np.where(finite[..., None, None], r, np.eye(r.shape[-1]))
    # Controls that repeat each other leave the matrix singular: the pseudo-inverse holds their span fixed once.
    rest = safe[..., 2:, 2:]
    cross = safe[..., :2, 2:]
    left = safe[..., :2, :2] - cross @ np.linalg.pinv(rest, rcond=1e-10, hermitian=True) @ np.swapaxes(cross, -1, -2)
    room = left[..., 0, 0] * left[..., 1, 1]
    value = np.full(room.shape, np.nan)
    ok = finite & (left[..., 0, 0] > 1e-10) & (left[..., 1, 1] > 1e-10)
    np.divide(left[..., 0, 1], np.sqrt(np.maximum(room, 0.0)), out=value, where=ok)
    clipped: Float[np.ndarray, "*shape"] = np.clip(value, -1.0, 1.0)
    return clipped


def _null(stack: np.ndarray, coefficient: str, permutations: int, generator: np.random.Generator) -> np.ndarray:
    rows = stack if coefficient == "pearson" else mid_ranks(stack)
    x, z = rows[0], np.concatenate([np.ones((1, rows.shape[1])), rows[2:]])
    fitted = z.T @ np.linalg.lstsq(z.T, x, rcond=None)[0]
    moved = fitted + generator.permuted(np.tile(x - fitted, (permutations, 1)), axis=1)
    # Fits with equal controls are equal up to rounding alone: ties must stay ties.
    moved = np.round(moved, 9 - int(np.floor(np.log10(max(np.abs(x).max(), 1e-300)))))
    rest = rows[1:]
    between = _correlations(coefficient, rest, rest)
    with_x = _correlations(coefficient, moved, rest)
    r = np.empty((permutations, len(rows), len(rows)))
    r[:, 1:, 1:] = between
    r[:, 0, 1:] = r[:, 1:, 0] = with_x
    r[:, 0, 0] = 1.0
    return _from_matrix(r)


def table(evidence: Evidence) -> Rows:
    """tau_b of measure and target with one control held fixed, p from the jackknife."""
    data, settings = evidence.data, evidence.settings
    rows: Rows = []
    for control, measures, hyper in _controls(evidence):
        finite = np.isfinite(data.values[control].to_numpy()) if hyper is None else np.True_
        for block in evidence.blocks(measures, [t for t in evidence.targets if t != control]):
            runs = block.runs & finite
            z = data.average([control], runs)[0] if hyper is None else hyper.to_numpy(dtype=np.float64)
            block = evidence.block(block.measures, block.targets, runs, np.isfinite(z))
            z, n = z[block.used], block.n
            still = n > 0 and constant(z)
            value, low, high, p = (np.full(block.shape, math.nan) for _ in range(4))
            if n > 3 and not still:
                value, low, high, p = partial_table(block.x, block.y, z, coefficient="kendall", level=settings.level)
            claim = n >= MINIMUM and settings.draws > 0
            ordered = np.isnan(value) & ~block.still & (n >= MINIMUM and not still)
            remarks = (
                "constant control" * still,
                "too few configurations for a control" * (0 < n <= 3),
                np.where(ordered, "the control orders the measure or the target by itself", ""),
                np.where((np.abs(value) > 1 - 1e-12) & claim, PERFECT, ""),
            )
            ends = (low, high, p) if claim else (math.nan,) * 3
            rows += block.rows(control, "kendall", value, *ends, n, remarks=remarks)
    return rows


def _controls(evidence: Evidence) -> Iterator[tuple[str, list[str], pd.Series | None]]:
    """Each control with the measures that it is held fixed for, and its values if it is a hyper-parameter."""
    data, measures = evidence.data, evidence.measures
    hyper = {c.removeprefix("hp."): pd.to_numeric(data.hyper[c], errors="coerce") for c in data.hyper.columns}
    matched: dict[str, list[str]] = {}
    if evidence.controls is None:
        fixed = [m for m in MEASURE_CONTROLS for m in variants("controls", [m], data, strict=False)]
        varied = [h for h in HYPER_CONTROLS if h in hyper and hyper[h].nunique() > 1]
        for kind, measure in product(MATCHED, measures):
            name = data.measure[measure]
            control = kind + measure[len(name) :]
            if name.startswith(FORGETTING) and control in data.values.columns and control != measure:
                matched.setdefault(control, []).append(measure)
    else:
        fixed, varied = [], []
        for name in evidence.controls:
            bare = name.removeprefix("hp.")
            meant = variants("controls", [name], data, strict=False) or [name] * (name in data.values.columns)
            if not (bare in hyper or meant):
                raise ValueError(
                    f"`controls` names {name!r}, which is not in the table{nearest(name, [*hyper, *data.values])}"
                )
            fixed += meant
            varied += [] if meant else [bare]
    yield from ((control, [m for m in measures if m != control], None) for control in fixed)
    yield from ((control, some, None) for control, some in matched.items())
    yield from ((name, measures, hyper[name]) for name in varied)


def _shown(rows: pd.DataFrame, leading: Sequence[str]) -> pd.DataFrame:
    """At most four controls of a measure."""
    rows = of_leading(rows, leading)
    known = rows[np.isfinite(rows["value"].to_numpy(dtype=float))]
    few: pd.DataFrame = known.groupby("measure", sort=False).head(4).head(3 * SHOWN)
    return few


STATISTIC = Statistic(
    name="partial",
    columns="measure target control coefficient value low high p n_configurations warnings",
    table=table,
    title="With one thing held fixed",
    note=(
        "Kendall's partial τ with `{target}`, one control held fixed; at most four controls per measure. Intervals and "
        "p from the jackknife. It is not a correlation of residuals: it may differ from 0 even if only the control "
        "links the two."
    ),
    shown={
        "Held fixed": words("control"),
        "Partial τ": number("value"),
        **INTERVAL,
        "p": chance("p"),
        "n": whole("n_configurations"),
    },
    words=("Held fixed",),
    chosen=_shown,
)
