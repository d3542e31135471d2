"""Rank correlation of measure and target given baselines: what is left when something else is held fixed.

A control with at most three levels makes strata: models are compared where it is equal. Any other control is ordered,
and what its ranks tell of the ranks of measure and target by a straight line is taken away. Where both occur the line
is fitted inside the cells. A line through two levels would assume that they shift everything alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from analysis.statistics.arguments import check_resampling
from analysis.statistics.controls import BESIDE, asked, unfair, usual
from analysis.statistics.correlation_rows import STILL
from analysis.statistics.evidence import SLOW_PERMUTATIONS, Block, Evidence, Rows, joined
from analysis.statistics.exchangeability import INSIDE_CELLS, differ, differ_in_cells
from analysis.statistics.intervals import PERFECT, stabilised_interval
from analysis.statistics.kendall import EXACT_LIMIT
from analysis.statistics.max_t import Seen, step_down
from analysis.statistics.orders import Orders, orders_inside
from analysis.statistics.randomness import source_of
from analysis.statistics.resampling import MINIMUM, NO_CLAIM, mid_ranks
from analysis.statistics.statistic import INTERVAL, SHOWN, Cell, Statistic, chance, number, of_leading, whole, words
from analysis.statistics.strata import CELL_MINIMUM, Strata, stratified_kendall, stratified_leave_one_out
from analysis.statistics.units import Units

MOST_LEVELS = 3  # of a control that makes strata
PERMUTATIONS = (
    9999  # at most, for each control, and `SLOW_PERMUTATIONS` above 100 configurations: there are many controls
)
STRATA, RESIDUALS = "kendall in strata", "spearman of residuals"
SAID = {STRATA: "τ in strata", RESIDUALS: "ranks' residuals", "kendall": "linear partial τ"}  # the last: earlier tables
DETERMINED = "the controls determine the measure or the target"
CONSTANT = "constant control"
ALIKE = "configurations of one method, variant or cell are alike in both: interval and p take them as exchangeable"

_BLOCK = 1 << 21  # (measures, permutations) numbers held at once
_NOTHING = 1e-10  # of a sum of squares: what is left of it is rounding


@dataclass(frozen=True)
class Partial:
    """A rank correlation given controls.

    Attributes:
        value: The coefficient; NaN where it is not defined, with the reason in `warnings`.
        low: Lower end of its interval (jackknife on Fisher's z scale); NaN below 5 units.
        high: Upper end, likewise.
        p: Permutation p-value; NaN if not asked for.
        n: Units used: everything is finite, and their cell has at least three.
        coefficient: "kendall in strata" or "spearman of residuals".
        warnings: What a reader must know.
    """

    value: float
    low: float
    high: float
    p: float
    n: int
    coefficient: str
    warnings: str = ""


@dataclass(frozen=True)
class Given:
    """What is held fixed, in units that can be used.

    Attributes:
        cells: The number of each unit's cell.
        ranked: Controls whose order counts, a row each; none of them is constant.
        used: Which of the given units these are.
        note: What was left out.
    """

    cells: Int[np.ndarray, " n"]
    ranked: Float[np.ndarray, "k n"]
    used: Bool[np.ndarray, " c"]
    note: str

    @property
    def coefficient(self) -> str:
        """Which of the two is defined."""
        return RESIDUALS if len(self.ranked) else STRATA

    @property
    def freedom(self) -> int:
        """Degrees of freedom of a correlation: n - 2, less one for each ranked control and each further cell."""
        return len(self.cells) - 1 - len(self.ranked) - len(np.unique(self.cells))

    @property
    def reason(self) -> str:
        """Why nothing can be told; empty where something can."""
        if not len(self.cells):
            return f"no cell of {CELL_MINIMUM} configurations" if self.note else ""
        if not len(self.ranked) and (self.cells == self.cells[0]).all():
            return CONSTANT
        return "too few configurations for so many controls" if self.freedom < 1 else ""


def given(controls: Float[np.ndarray, "k c"], named: Float[np.ndarray, "s c"], used: Bool[np.ndarray, " c"]) -> Given:
    """Sort controls into cells and what is ranked.

    Args:
        controls: What has an order: a row each. With at most three levels it makes cells.
        named: What has none, whatever its number of levels.
        used: Units in which all else is finite; those with a control that is not are left out too.
    """
    used = used & np.isfinite(controls).all(axis=0) & np.isfinite(named).all(axis=0)
    few = np.array([len(np.unique(z[used])) <= MOST_LEVELS for z in controls], dtype=bool)
    strata = np.concatenate([controls[few], named])
    cells = np.zeros(int(used.sum()), dtype=np.int64)
    if len(strata) and len(cells):
        cells = np.unique(strata[:, used], axis=1, return_inverse=True)[1].reshape(-1).astype(np.int64)
    size = np.bincount(cells)
    kept, ranked = size[cells] >= CELL_MINIMUM, controls[~few]
    note = f"{int((size < CELL_MINIMUM).sum())} of {len(size)} cells have fewer than {CELL_MINIMUM} configurations"
    note = "" if kept.all() else f"{note}: left out"
    used = used.copy()
    used[used] = kept
    ranked = ranked[:, used]
    varies = (ranked != ranked[:, :1]).any(axis=1) if ranked.size else np.zeros(len(ranked), dtype=bool)
    return Given(cells[kept], ranked[varies], used, note)


def partial_correlation(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    controls: Float[np.ndarray, "k n"],
    *,
    named: Float[np.ndarray, "s n"] | None = None,
    level: float = 0.95,
    permutations: int = 0,
    generator: np.random.Generator | None = None,
) -> Partial:
    """The rank correlation of x and y given controls.

    With cells alone it is the stratified tau_b, Σ_c (C_c - D_c)/√(Σ_c (n0_c - n1_c) Σ_c (n0_c - n2_c)) over the pairs
    inside cells: n0_c in all, n1_c tied in x, n2_c tied in y. With ranked controls it is Pearson's correlation of
    residuals: ranks (over all units) of x and y, cell means removed, regressed on the ranks of the controls, cell means
    removed.

    Args:
        x: The measure, a value a unit (a configuration).
        y: The target.
        controls: What is held fixed, a row each; those with at most three levels make cells. Units where anything is
            not finite are left out, and those in cells of fewer than three.
        named: Numbers of names without an order, a row each: they make cells, however many there are.
        level: Coverage of the interval.
        permutations: For the p-value, which takes the target's residuals (in cells alone, the target) to be
            exchangeable inside cells; 0 for none. All orders are enumerated where there are no more.
        generator: Source of the permutations; None means a fresh one from seed 0.

    Raises:
        ValueError: If shapes differ.

    Source:
        Stratified: Quade (1974), in Measurement in the Social Sciences. Ranks' residuals: Conover (1999), Practical
        Nonparametric Statistics, 3rd ed., 5.4; their permutation: Freedman and Lane (1983), JBES 1(4). Both at once,
        and which control is which, is our choice.
    """
    check_resampling(draws=permutations, level=level)
    named = np.empty((0, *x.shape)) if named is None else named
    if not (x.ndim == 1 and controls.ndim == named.ndim == 2) or not (
        x.shape == y.shape == controls.shape[1:] == named.shape[1:]
    ):
        raise ValueError(
            f"`controls` and `named` must be one row of values a control, as many as `x` and `y`, got {x.shape}, "
            f"{y.shape}, {controls.shape} and {named.shape}."
        )
    held = given(controls, named, np.isfinite(x) & np.isfinite(y))
    x, y = x[None, held.used], y[None, held.used]
    n = x.shape[1]
    value, low, high, p, why = (v[0, 0] for v in partials(x, y, held, level, permutations, source_of(generator)))
    notes = (held.note, NO_CLAIM * (n < MINIMUM), str(why), PERFECT * bool(abs(value) > 1 - 1e-12 and n >= MINIMUM))
    return Partial(float(value), float(low), float(high), float(p), n, held.coefficient, joined(*notes))


def partials(
    x: Float[np.ndarray, "m n"],
    y: Float[np.ndarray, "t n"],
    held: Given,
    level: float,
    permutations: int,
    generator: np.random.Generator,
    *,
    interval: bool = True,
) -> tuple[np.ndarray, ...]:
    """Many measures and targets given the same: value, interval's ends, p, and why a value is NaN; shape (m, t).

    The interval, if asked for, is the weighted delete-one jackknife on Fisher's z scale, with quantiles of Student's t
    with `Given.freedom` degrees of freedom.
    """
    shape = len(x), len(y)
    value, low, high, p = (np.full(shape, math.nan) for _ in range(4))
    if held.reason or not len(held.cells):
        return value, low, high, p, np.full(shape, held.reason, dtype=object)
    value, left_out = _of_residuals(x, y, held, interval) if len(held.ranked) else _in_strata(x, y, held)
    if x.shape[1] >= MINIMUM:
        if interval:
            low, high = stabilised_interval(value, _error(left_out, held), level=level, freedom=held.freedom)
        if permutations:
            orders = orders_inside(held.cells, count=permutations, generator=generator)
            p = (_p_of_residuals if len(held.ranked) else _p_in_strata)(x, y, held, orders)
            p[np.isnan(value)] = math.nan
    why = np.where(np.isnan(value), "constant in every cell" if not len(held.ranked) else DETERMINED, "").astype(object)
    lone = np.isfinite(value) & ~np.isfinite(low) & (interval and x.shape[1] >= MINIMUM)
    why[lone] = "without one configuration nothing is left to order: no interval"
    return value, low, high, p, why


def _error(left_out: Float[np.ndarray, "m t n"], held: Given) -> Float[np.ndarray, "m t"]:
    """Standard error √(Σ (1 - h_i) (θ_i - mean θ)²), h_i the share of unit i in its own fit by cells and controls.

    With nothing held fixed h_i = 1/n, and this is the usual jackknife; with much it would be too wide without them.

    Source:
        Hinkley (1977), Technometrics 19(3); Wu (1986), Annals of Statistics 14(4).
    """
    own = 1 - (_basis(mid_ranks(held.ranked), held.cells) ** 2).sum(axis=0)
    centred = left_out - left_out.mean(axis=-1, keepdims=True)
    error: Float[np.ndarray, "m t"] = np.sqrt((own * centred**2).sum(axis=-1))
    return error


def _in_strata(x: np.ndarray, y: np.ndarray, held: Given) -> tuple[np.ndarray, np.ndarray]:
    """Stratified tau_b, and without each unit in turn."""
    strata = Strata.of(held.cells)
    return stratified_kendall(x, y, strata)[:, :, 0], stratified_leave_one_out(x, y, strata)


def _of_residuals(x: np.ndarray, y: np.ndarray, held: Given, jackknife: bool) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of the residuals of ranks, and without each unit in turn, ranked anew."""
    ranks = [mid_ranks(v) for v in (x, y, held.ranked)]
    left_out = np.empty((len(x), len(y), x.shape[1]))
    for i in range(x.shape[1] * jackknife):
        rest = np.arange(x.shape[1]) != i
        fewer = [r[:, rest] - (r[:, rest] > r[:, [i]]) - 0.5 * (r[:, rest] == r[:, [i]]) for r in ranks]
        a, b = _residuals(fewer[:2], fewer[2], held.cells[rest])
        left_out[:, :, i] = a @ b.T
    a, b = _residuals(ranks[:2], ranks[2], held.cells)
    return np.clip(a @ b.T, -1, 1), np.clip(left_out, -1, 1)


def _residuals(rows: Sequence[np.ndarray], z: np.ndarray, cells: np.ndarray) -> list[np.ndarray]:
    """What cells and z leave of each row, at length one; NaN where that is nothing."""
    basis = _basis(z, cells)
    found = []
    for r in rows:
        centred = r - r.mean(axis=1, keepdims=True)
        left = centred - (centred @ basis.T) @ basis
        size, whole = (left**2).sum(axis=1), (centred**2).sum(axis=1)
        length = np.where(size > _NOTHING * np.maximum(whole, 1), np.sqrt(size), math.nan)
        found.append(left / length[:, None])
    return found


def _basis(z: np.ndarray, cells: np.ndarray) -> Float[np.ndarray, "r n"]:
    """Orthonormal rows that span the cells' indicators and z; controls that repeat each other count once."""
    member = (cells == np.unique(cells)[:, None]).astype(np.float64)
    member /= np.sqrt(member.sum(axis=1, keepdims=True))
    centred = z - (z @ member.T) @ member
    _, size, rows = np.linalg.svd(centred, full_matrices=False)
    return np.concatenate([member, rows[size > 1e-8 * max(1.0, float(np.abs(z).max(initial=0.0)))]])


def _p_in_strata(x: np.ndarray, y: np.ndarray, held: Given, orders: Orders) -> np.ndarray:
    """Permutation p of stratified tau_b of each measure and target."""
    m, used = len(x), np.ones(x.shape[1], dtype=bool)
    seen = ([Seen(np.arange(m), x, row, used, held.cells)] for row in y)
    none = np.zeros(m, dtype=bool)
    return np.stack([step_down("kendall", s, orders, candidates=none, cells=held.cells).p for s in seen], axis=1)


def _p_of_residuals(x: np.ndarray, y: np.ndarray, held: Given, orders: Orders) -> np.ndarray:
    """Permutation p of each measure and target: residuals of the target change places, and are fitted again."""
    basis = _basis(mid_ranks(held.ranked), held.cells)
    a, b = _residuals((mid_ranks(x), mid_ranks(y)), mid_ranks(held.ranked), held.cells)
    reached = np.zeros((len(x), len(y)))
    step = max(16, _BLOCK // max(x.shape))
    for j, row in enumerate(b):
        observed = np.abs(a @ row)[:, None]
        for start in range(0, orders.number, step):
            moved = row[orders.base[start : start + step]]
            length = np.sqrt(np.maximum(1 - ((moved @ basis.T) ** 2).sum(axis=1), _NOTHING))
            reached[:, j] += (np.abs(a @ moved.T) / length >= observed - 1e-9).sum(axis=1)
    return np.asarray(orders.share(reached))


def partial_of(
    xy: Float[np.ndarray, "*shape"], xz: Float[np.ndarray, "*shape"], yz: Float[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """(r_xy - r_xz r_yz)/√((1-r_xz²)(1-r_yz²)); NaN where the control orders x or y by itself."""
    room = (1 - xz**2) * (1 - yz**2)
    value = np.full(room.shape, np.nan)
    np.divide(xy - xz * yz, np.sqrt(np.maximum(room, 0.0)), out=value, where=room > 1e-12)
    return np.clip(value, -1.0, 1.0)


def table(evidence: Evidence) -> Rows:
    """Measures and targets given baselines and hyper-parameters, one by one and together."""
    data, settings = evidence.data, evidence.settings
    rows: Rows = []
    controls = (
        usual(data, evidence.measures)
        if evidence.controls is None
        else asked(evidence.controls, data, evidence.measures)
    )
    for control, measures in controls:
        finite = control.finite(data)
        for block in evidence.blocks(measures, [t for t in evidence.targets if t not in control.measures]):
            runs = block.runs & finite
            used = evidence.block(block.measures, block.targets, runs).used
            held = given(*control.values(data, runs), used)
            of_cells = bool((runs == block.runs).all()) and _are_cells(held, data.cells, used)
            block = evidence.block(block.measures, block.targets, runs, held.used)
            orders = min(settings.permutations, PERMUTATIONS if block.n <= EXACT_LIMIT else SLOW_PERMUTATIONS)
            value, low, high, p, why = partials(
                block.x, block.y, held, settings.level, orders * (not of_cells), settings.generator(10, block.n),
                interval=settings.draws > 0 and not of_cells,
            )  # fmt: skip
            alike = np.where(_alike(block, held, data) & (np.isfinite(low) | np.isfinite(p)), ALIKE, "")
            if of_cells:
                low, high, p, alike = _of_cells(evidence, block)
            why[block.still & (why != CONSTANT)] = ""  # said already
            seen = np.array([[unfair(m, control.measures)] * len(block.targets) for m in block.measures], dtype=object)
            perfect = np.where((np.abs(value) > 1 - 1e-12) & np.isfinite(low), PERFECT, "")
            rows += block.rows(
                control.name,
                held.coefficient,
                value,
                low,
                high,
                p,
                block.n,
                remarks=(held.note, why, perfect, alike, seen),
            )
    return rows


def _are_cells(held: Given, cells: Int[np.ndarray, " c"], used: Bool[np.ndarray, " c"]) -> bool:
    """Whether what is held fixed makes the cells of equal hyper-parameters, and nothing but cells."""
    if held.reason or held.coefficient != STRATA:
        return False
    own, theirs = (
        {tuple(np.flatnonzero(where)[rows].tolist()) for rows in Strata.of(labels).groups}
        for labels, where in ((held.cells, held.used), (cells[used], used))
    )
    return own == theirs


def _of_cells(evidence: Evidence, block: Block) -> tuple[np.ndarray, ...]:
    """Interval's ends and p of stratified tau_b as the table of correlations has them, and what changes places."""
    rows = evidence.correlations
    rows = rows[rows["coefficient"] == "kendall"].set_index(["measure", "target"])
    rows = rows.reindex(pd.MultiIndex.from_product([block.measures, block.targets]))
    low, high, p = (
        rows[f"stratified_{name}"].to_numpy(dtype=np.float64).reshape(block.shape) for name in ("low", "high", "p")
    )
    moved = rows["stratified_permuted"].fillna("").to_numpy(dtype=object).reshape(block.shape)
    said = np.where((moved == "") | (moved == INSIDE_CELLS), "", moved + " change places")
    if evidence.settings.permutations:
        said[np.isfinite(low) & np.isnan(p)] = f"{STILL} inside cells"
    return low, high, p, said


def _alike(block: Block, held: Given, data: Units) -> Bool[np.ndarray, "m t"]:
    """Where what the controls leave of measure and target differs by method, by variant, or by cell in both."""
    found = np.zeros(block.shape, dtype=bool)
    if held.reason or not block.n:
        return found
    for labels in (np.unique(data.methods, return_inverse=True)[1], data.variants, data.cells):
        groups = labels[block.used]
        if len(held.ranked):
            left = _residuals((mid_ranks(block.x), mid_ranks(block.y)), mid_ranks(held.ranked), held.cells)
            found |= differ(left[0], left[1], groups)
        else:
            found |= differ_in_cells(block.x, block.y, Strata.of(held.cells), groups)
    return found


def _shown(rows: pd.DataFrame, leading: Sequence[str]) -> pd.DataFrame:
    """At most four controls of a measure: what is held fixed together says most."""
    rows = rows.iloc[np.argsort(~rows["control"].str.contains(BESIDE, regex=False).to_numpy(), kind="stable")]
    rows = of_leading(rows, leading)
    known = rows[np.isfinite(rows["value"].to_numpy(dtype=float))]
    few: pd.DataFrame = known.groupby("measure", sort=False).head(4).head(3 * SHOWN)
    return few


STATISTIC = Statistic(
    name="partial",
    columns="measure target control coefficient value low high p n_configurations warnings",
    table=table,
    title="Given baselines",
    note=(
        "Rank correlation with `{target}` given what is known without the measure. Controls with at most three levels "
        "make strata: τ over pairs of models in which they are equal. Others are ordered: correlation of the residuals "
        "of ranks, fitted inside the strata if there are any. Intervals: jackknife; p: permutations inside the strata; "
        "both take configurations as exchangeable, also where those of one method are alike (remarks in the CSV file). "
        "Where the strata are the cells of equal hyper-parameters, both are those of τ inside cells."
    ),
    shown={
        "Held fixed": words("control"),
        "Coefficient": Cell(("coefficient",), lambda name: SAID.get(name, str(name))),
        "Partial": number("value"),
        **INTERVAL,
        "p": chance("p"),
        "n": whole("n_configurations"),
    },
    words=("Held fixed", "Coefficient"),
    chosen=_shown,
)
