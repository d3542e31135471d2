"""Does one measure correlate more strongly with a target than another? The paired difference of |tau|, with intervals.

Two p-values, or two intervals side by side, do not answer it: both measures see the same configurations, so their
errors go together. Here both are computed in the same resamples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from analysis.measures.registry import entry_of, expected_sign
from analysis.statistics.arguments import check_resampling
from analysis.statistics.evidence import Evidence, joined
from analysis.statistics.kendall import BLOCK, tau_of_sums
from analysis.statistics.partial import partial_of
from analysis.statistics.randomness import source_of
from analysis.statistics.resampling import (
    MINIMUM,
    NO_CLAIM,
    bootstrap_counts,
    percentile_interval,
    significant,
)
from analysis.statistics.strata import CELL_MINIMUM, Strata, stratified_kendall
from analysis.statistics.units import Units, single, without_rounding
from landscape.naming import nearest

COLUMNS = (
    *("forgetting", "sharpness", "target", "pairs", "tau_forgetting", "tau_sharpness", "difference", "low", "high"),
    *("low_draws", "high_draws", "signed", "signed_low", "signed_high", "n_configurations", "draws", "warnings"),
)
POOLED, STRATIFIED = "pooled", "stratified"
HUGE = 960  # binary digits before the point from which on sums over runs might overflow
DRAWS_MINIMUM = 4  # of the data; two would show half of their variance


@dataclass(frozen=True)
class PairedDifference:
    """|tau_b(first, target)| - |tau_b(second, target)| over the same configurations.

    Attributes:
        tau_first: tau_b of the first measure with the target, with its sign.
        tau_second: tau_b of the second measure with the target, with its sign.
        difference: The difference of their absolute values; above 0 where the first explains more.
        low: Lower end of its interval over configurations, the draws of the data as they are; NaN below 5
            configurations.
        high: Upper end, likewise.
        low_draws: Lower end of its interval over configurations and draws of the data; NaN with fewer than 4 draws.
        high_draws: Upper end, likewise.
        signed: The difference of the two taus, each times the sign that is expected of it.
        signed_low: Lower end of its interval, over draws of the data too where there are at least 4.
        signed_high: Upper end, likewise.
        n_configurations: Configurations in which all three are finite; with cells, those in a cell of at least 3.
        draws: Draws of the data behind them.
        warnings: What a reader must know; empty where there is nothing.
    """

    tau_first: float = math.nan
    tau_second: float = math.nan
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    low_draws: float = math.nan
    high_draws: float = math.nan
    signed: float = math.nan
    signed_low: float = math.nan
    signed_high: float = math.nan
    n_configurations: int = 0
    draws: int = 0
    warnings: str = ""


@dataclass(frozen=True)
class _Runs:
    """What is compared, by configuration and run, and where the pairs are.

    Attributes:
        values: First, second, target, and what is held fixed if anything; NaN in all where one is not finite.
        draw: Number of the draw of the data of each run.
        strata: The cells whose pairs count; one with all configurations for all pairs.
    """

    values: Float[np.ndarray, "v n k"]
    draw: Int[np.ndarray, " k"]
    strata: Strata

    @property
    def n(self) -> int:
        """Configurations."""
        return int(self.values.shape[1])

    @property
    def draws(self) -> int:
        """Draws of the data that have a run."""
        return len(np.unique(self.draw[np.isfinite(self.values[0]).any(axis=0)]))

    @property
    def shared(self) -> int:
        """Those of them that several configurations have."""
        of_draw = (np.isfinite(self.values[0])[:, self.draw == d].any(axis=1).sum() for d in np.unique(self.draw))
        return sum(int(n) > 1 for n in of_draw)

    def averages(self, weights: Int[np.ndarray, "d k"]) -> tuple[Float[np.ndarray, "v d n"], Bool[np.ndarray, "d n"]]:
        """Means over runs, each counted as often as given, and which configurations have any; 0 where one has none."""
        known = np.isfinite(self.values[0])
        number = weights @ known.T.astype(np.float64)
        share = np.where(known, self.values, 0.0)
        total = np.stack([weights @ row.T for row in share])
        means = significant(total / np.maximum(number, 1))
        return without_rounding(means.reshape(-1, self.n)).reshape(means.shape), number > 0


def paired_difference(
    first: Float[np.ndarray, "*n"],
    second: Float[np.ndarray, "*n"],
    target: Float[np.ndarray, "*n"],
    *,
    given: Float[np.ndarray, "*n"] | None = None,
    cells: Int[np.ndarray, " c"] | None = None,
    draw_of: Int[np.ndarray, " k"] | None = None,
    signs: tuple[int, int] | None = None,
    draws: int = 2000,
    level: float = 0.95,
    generator: np.random.Generator | None = None,
) -> PairedDifference:
    """Compare how strongly two measures correlate with one target.

    Configurations are resampled with all their runs, inside cells where there are cells. Where there are at least four
    draws of the data, a second interval resamples these as well, independently of the configurations (two-way, or
    pigeonhole, bootstrap): the means over runs are then taken anew in each resample.

    Args:
        first: One measure, a value a configuration, or a row a configuration and a column a run; runs with NaN or inf
            in any of the three are left out.
        second: The other measure.
        target: What both are to explain.
        given: A third measure to hold fixed: all taus are then partial taus given it. None for plain ones.
        cells: For each configuration the number of its cell: pairs inside cells alone count, of cells with at least 3
            configurations. None for all pairs.
        draw_of: For each run the number of its draw of the data; None for one draw of all.
        signs: Expected signs of both taus; 0 where nothing is expected, then the sign that it has is taken, and that is
            said. None takes those that they have.
        draws: Resamples; 0 for no interval.
        level: Coverage aimed at, inside (0, 1).
        generator: Source of all randomness; None means a fresh one from seed 0.

    Returns:
        The difference with percentile intervals. Where a tau is near 0 its absolute value is biased upward, and the
        difference with it: this is said where the interval of a tau contains 0, and `signed` does not fold.

    Raises:
        ValueError: If the shapes differ, or `draws` or `level` is out of range.

    Source:
        Our definition (the claim "forgetting correlates more strongly than flatness", as one number); over draws of the
        data: Owen and Eckles (2012), Ann. Appl. Stat. 6(3).
    """
    check_resampling(draws=draws, level=level)
    runs = _sorted([first, second, target, *([] if given is None else [given])], cells, draw_of)
    held = "or constant target" if given is None else "constant target, or ordered by what is held fixed"
    return _compared(runs, signs, draws, level, source_of(generator), held)


def _sorted(
    rows: list[Float[np.ndarray, "..."]], cells: Int[np.ndarray, " c"] | None, draw_of: Int[np.ndarray, " k"] | None
) -> _Runs:
    """The runs in which everything is finite, of the configurations that have one in a cell that counts."""
    shapes = [row.shape for row in rows]
    if len(set(shapes[:3])) > 1:
        raise ValueError(
            f"`first`, `second` and `target` must hold one value a configuration each, or one a run, got shapes "
            f"{shapes[0]}, {shapes[1]} and {shapes[2]}."
        )
    if shapes[-1] != shapes[0]:
        raise ValueError(f"`given` must hold one value a configuration, got shapes {shapes[-1]} and {shapes[0]}.")
    values = np.stack([row[:, None] if row.ndim == 1 else row for row in rows]).astype(np.float64)
    draw = np.zeros(values.shape[2], dtype=np.int64) if draw_of is None else np.unique(draw_of, return_inverse=True)[1]
    cell = np.zeros(values.shape[1], dtype=np.int64) if cells is None else cells
    if draw.shape != values.shape[2:] or cell.shape != values.shape[1:2]:
        raise ValueError(
            f"`cells` must hold one number a configuration and `draw_of` one a run, got shapes {cell.shape} and "
            f"{draw.shape} for {shapes[0]}."
        )
    finite = np.asarray(np.isfinite(values).all(axis=0))
    size = np.frexp(np.abs(np.where(finite, values, 0)).max(axis=(1, 2), initial=0.0))[1]
    values = np.ldexp(values, -np.maximum(size - HUGE, 0)[:, None, None])  # a power of two, so that no sum overflows
    values = np.where(finite, values, np.nan)
    used = np.flatnonzero(finite.any(axis=1))
    strata = Strata.whole(len(used))
    if cells is not None:
        every = Strata.of(cell[used])
        used = used[np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *every.groups]))]
        strata = replace(Strata.of(cell[used]), dropped=every.dropped)
    return _Runs(values[:, used], draw, strata)


def _compared(
    runs: _Runs,
    signs: tuple[int, int] | None,
    draws: int,
    level: float,
    generator: np.random.Generator,
    held: str,
) -> PairedDifference:
    n, of_data = runs.n, runs.draws
    lost = runs.strata.dropped
    few = f"{lost} cells with fewer than {CELL_MINIMUM} configurations left out" if lost else ""
    if n < 2:
        none = "no run in which all are finite" if not (n or lost) else ""
        return PairedDifference(n_configurations=n, draws=of_data, warnings=joined(none, NO_CLAIM, few))
    whole = runs.averages(np.ones((1, len(runs.draw)), dtype=np.int64))[0][:, 0]
    tau = _taus(whole, np.ones((1, n), dtype=np.int64), runs.strata)[:, 0]
    constant = [name for name, t in zip(("first", "second"), tau, strict=True) if math.isnan(t)]
    notes = [f"constant {' and '.join(constant)} measure, {held}"] if constant else []
    expected = np.array(signs or (0, 0))
    sign = np.where(expected == 0, np.where(tau < 0, -1, 1), expected)
    turned = np.array([1.0, -1.0])
    found = {
        "tau_first": tau[0], "tau_second": tau[1], "difference": np.abs(tau) @ turned, "signed": (sign * tau) @ turned,
    }  # fmt: skip
    if n < MINIMUM:
        notes.append(NO_CLAIM)
    elif draws and not constant:
        counts = runs.strata.resampled(n, lambda size, _: bootstrap_counts(size, draws=draws, generator=generator))
        drawn = _taus(whole, counts, runs.strata)
        found["low"], found["high"] = percentile_interval(turned @ np.abs(drawn), level=level)
        if of_data >= DRAWS_MINIMUM > runs.shared:
            notes.append(
                f"{runs.shared} of {of_data} draws of the data are shared by configurations: too few to resample, the "
                "interval over configurations holds the others"
            )
        elif of_data >= DRAWS_MINIMUM:
            drawn = _moving_taus(runs, counts, bootstrap_counts(of_data, draws=draws, generator=generator))
            found["low_draws"], found["high_draws"] = percentile_interval(turned @ np.abs(drawn), level=level)
        elif of_data > 1:
            notes.append(f"{of_data} draws of the data: too few to resample, the interval holds for these")
        found["signed_low"], found["signed_high"] = percentile_interval(turned @ (sign[:, None] * drawn), level=level)
        low, high = percentile_interval(drawn, level=level)
        folded = [name for name, a, b in zip(("first", "second"), low, high, strict=True) if a <= 0 <= b]
        if folded:
            what = "intervals of both taus contain" if len(folded) == 2 else f"interval of the {folded[0]} tau contains"
            notes.append(f"the {what} 0, where |tau| is too large: read the signed difference")
    unsigned = [name for name, s in zip(("first", "second"), signs or (1, 1), strict=True) if s == 0]
    if unsigned and not constant:
        notes.append(f"no expected sign of the {' and '.join(unsigned)}: signed by what it has")
    return PairedDifference(
        **{name: float(value) for name, value in found.items()},
        n_configurations=n, draws=of_data, warnings=joined(*notes, few),
    )  # fmt: skip


def _taus(rows: Float[np.ndarray, "v n"], counts: Int[np.ndarray, "d n"], strata: Strata) -> Float[np.ndarray, "2 d"]:
    """Both measures' tau_b with the target in each resample; partial given the fourth row, if there is one."""
    plain = stratified_kendall(rows[:2], rows[2:], strata, counts)
    if len(rows) == 3:
        return plain[:, 0]
    fixed = stratified_kendall(rows[2:3], rows[3:], strata, counts)[0]
    return partial_of(plain[:, 0], plain[:, 1], np.broadcast_to(fixed, (2, len(counts))))


def _moving_taus(
    runs: _Runs, counts: Int[np.ndarray, "d n"], of_data: Int[np.ndarray, "d w"]
) -> Float[np.ndarray, "2 d"]:
    """The same where each resample has draws of the data of its own, and so means of its own."""
    first, second = runs.strata.pairs()
    present = np.unique(runs.draw[np.isfinite(runs.values[0]).any(axis=0)])
    column = np.searchsorted(present, runs.draw).clip(max=len(present) - 1)  # runs of other draws hold nothing
    found = np.empty((2, len(counts)))
    step = max(1, BLOCK // (4 * max(len(first), 1)))
    for part in (slice(start, start + step) for start in range(0, len(counts), step)):
        means, known = runs.averages(of_data[part][:, column])
        drawn = counts[part] * known
        pair = (drawn[:, first] * drawn[:, second]).astype(np.float64)
        sign = np.sign(means[:, :, first] - means[:, :, second])
        score = np.einsum("xdp,ydp,dp->xyd", sign, sign, pair, optimize=["einsum_path", (0, 2), (0, 1)])
        untied = np.einsum("xdp,dp->xd", np.abs(sign), pair)
        tau = tau_of_sums(score, untied, untied)
        found[:, part] = (
            tau[:2, 2]
            if len(tau) == 3
            else partial_of(tau[:2, 2], tau[:2, 3], np.broadcast_to(tau[2, 3], tau[:2, 2].shape))
        )
    return found


def named(pairs: Sequence[tuple[str, str]], data: Units, targets: Sequence[str] = ()) -> list[tuple[str, str]]:
    """The pairs with each name as the one variant that it means, or as it is where the table has none or several.

    Raises:
        ValueError: If a name that the registry of measures does not know is none of the table's, or stands for several;
            if a pair holds one measure twice, or a target.
    """
    found = [(_meant(first, data), _meant(second, data)) for first, second in pairs]
    for pair in found:
        if pair[0] == pair[1]:
            raise ValueError(f"`compare` names {pair[0]!r} twice in a pair: nothing differs from itself.")
        if known := [name for name in pair if name in targets]:
            raise ValueError(f"`compare` names {known[0]!r}, which is a target: name measures, or other targets.")
    return found


def _meant(name: str, data: Units) -> str:
    if name in data.values.columns or entry_of(name.partition("[")[0]) is None:
        return single("compare", name, data)
    meant = [str(v) for v in data.values.columns if data.measure[v] == name]
    return meant[0] if len(meant) == 1 else name


def _lacking(name: str, data: Units) -> str:
    """Why a name of a pair cannot be compared; empty where it can."""
    if name in data.values.columns:
        return ""
    if several := [v for v in data.values.columns if data.measure[v] == name]:
        return f"{name} stands for {len(several)} variants, such as {several[0]}: name one of them"
    near = nearest(name, list(data.values.columns))
    return f"{name} was not measured{near and f' ({near.strip()})'}"


def table(evidence: Evidence, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Each pair on each target, over all pairs of configurations and over those inside cells; none is left out."""
    data, settings = evidence.data, evidence.settings
    rows = []
    for first, second in pairs:
        lacking = joined(*dict.fromkeys((_lacking(first, data), _lacking(second, data))))
        signs = expected_sign(first.partition("[")[0]), expected_sign(second.partition("[")[0])
        for target in evidence.targets:
            if lacking:
                nothing = tuple(vars(PairedDifference(warnings=lacking)).values())
                rows += [(first, second, target, kind, *nothing) for kind in (POOLED, STRATIFIED)]
                continue
            runs = data.values[[first, second, target]].notna().all(axis=1).to_numpy()
            values, draw_of = _by_draw(data, [first, second, target], runs)
            n = int(np.isfinite(values[0]).any(axis=1).sum())
            for kind, cells in ((POOLED, None), (STRATIFIED, data.cells)):
                found = paired_difference(
                    *values, cells=cells, draw_of=draw_of, signs=signs, draws=settings.draws, level=settings.level,
                    generator=settings.generator(1, n, 0),
                )  # fmt: skip
                rows.append((first, second, target, kind, *vars(found).values()))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _by_draw(
    data: Units, names: list[str], runs: Bool[np.ndarray, " r"]
) -> tuple[Float[np.ndarray, "v c k"], Int[np.ndarray, " k"]]:
    """Values by configuration and run, runs of one draw of the data in columns of their own, and the columns' draws."""
    runs_of = pd.DataFrame({"configuration": data.configuration, "draw": data.draws_of_data})
    place = runs_of.groupby(["configuration", "draw"]).cumcount().to_numpy()
    column, inverse = np.unique(np.stack([data.draws_of_data, place]), axis=1, return_inverse=True)
    values = np.full((len(names), len(data.methods), column.shape[1]), np.nan)
    values[:, data.configuration[runs], inverse.reshape(-1)[runs]] = data.columns(names, runs)
    return values, column[0]
