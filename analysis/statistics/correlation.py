"""Every measure against every target: tau_b, Spearman, Pearson, with intervals, p-values and what to beware of.

The unit is the configuration, averaged over its seeds. For each measure and target the average is over the runs in
which both are finite; a configuration without such a run is left out and counted, never filled in.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from analysis.measures.catalogue.targets import DESCRIPTIONS, TARGETS, of_scores
from analysis.statistics import ceiling, comparison
from analysis.statistics.catalogue import STATISTICS
from analysis.statistics.ceiling import COEFFICIENTS
from analysis.statistics.evidence import Evidence, Settings, joined
from analysis.statistics.intervals import (
    PERFECT,
    RESAMPLED,
    bca_interval,
    check_interval,
    freedom_of,
    jackknife_error,
    leave_one_out,
    stabilised_interval,
)
from analysis.statistics.kendall import kendall_pvalues
from analysis.statistics.resampling import (
    MINIMUM,
    NO_CLAIM,
    benjamini_hochberg,
    check_resampling,
    correlation_pvalues,
    holm,
    mid_ranks,
    percentile_interval,
)
from analysis.statistics.sign_error import check_orientation
from analysis.statistics.units import Units, units, variants
from analysis.table import SEED_COLUMNS

__all__ = ["CONTROLS", "Correlations", "Units", "correlate", "units"]

# Measures that are no candidate explanation: they describe the targets, or what training reached.
CONTROLS = (*DESCRIPTIONS, "cross_entropy", "bin_accuracy", "share_forgotten")

SIZES = ("hp.model", "hp.model_options")  # what decides the shape of a model
MOST_SAID = 3  # remarks on a target that are repeated
GROUP_MINIMUM = 3  # a method with fewer configurations has no correlation of its own

COLUMNS = (
    *("measure", "target", "coefficient", "value", "low", "high", "p", "p_holm", "n_configurations", "n_runs"),
    *("dropped", "within", "within_low", "within_high", "groups", "reversal", "warnings"),
    *("p_holm_all", "p_bh", "interval"),
)

_ROWS = 1 << 21  # (measures, targets, draws) numbers held at once


@dataclass(frozen=True)
class Correlations:
    """What the statistics say, as tables.

    Attributes:
        table: One row a (measure, target, coefficient): `value` with its interval `low`, `high`; permutation `p`,
            `p_holm` (over the measures, for each target and coefficient), and, over all measures and targets of the
            coefficient, `p_holm_all` for claims and `p_bh` (Benjamini-Hochberg) for screening; `n_configurations`,
            `n_runs`, `dropped` (configurations without a run in which both are finite); `within`, the mean over methods
            of the coefficient inside each, with its interval; `groups`, the methods in that mean; `reversal`, True
            where pooled and within have opposite signs; `interval`, its kind; `warnings`.
        comparisons: One row a (forgetting, sharpness, target): `difference` of |tau_b| with its interval.
        ceilings: One row a (target, coefficient): what noise over seeds lets any measure reach.
        warnings: What holds for the whole analysis.
        further: The tables of `STATISTICS` that were asked for, by name; each is an attribute too, empty where it was
            not.
        permutations: How many were drawn for each p-value, where not all orders were visited.
    """

    table: pd.DataFrame
    comparisons: pd.DataFrame
    ceilings: pd.DataFrame
    warnings: list[str]
    further: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    permutations: int = 0

    def __getattr__(self, name: str) -> pd.DataFrame:
        if name not in STATISTICS:
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        return self.further.get(name, pd.DataFrame())


def correlate(
    table: pd.DataFrame,
    *,
    targets: Sequence[str] | None = None,
    measures: Sequence[str] | None = None,
    exclude: Sequence[str] = CONTROLS,
    compare: Sequence[tuple[str, str]] = (),
    group: str | Sequence[str] | None = None,
    seed_column: str | Sequence[str] = SEED_COLUMNS,
    draws: int = 2000,
    permutations: int | None = None,
    level: float = 0.95,
    seed: int = 0,
    interval: str = "stabilised",
    tables: Sequence[str] | None = None,
    controls: Sequence[str] | None = None,
    representatives: Mapping[str, str] | None = None,
    oriented: str = "pooled",
) -> Correlations:
    """Correlate measures with generalisation, configuration by configuration.

    Intervals are over configurations (for `within`, over those inside each method): by default the delete-one jackknife
    on Fisher's z scale, which covers where percentiles of a bootstrap do not (docs/statistics.md). p-values permute
    the target over configurations, or enumerate all orders where there are no more than `permutations`. Resamples
    depend on `seed` and the number of configurations alone, so all measures on the same configurations see the same
    ones, and adding a measure changes no other row, but for the corrections. Signs are as measured: nothing is flipped.

    Args:
        table: The long measures table joined with `hp.*` columns; each run's last checkpoint is used.
        targets: Variants to be explained, or measures for all their variants; None for all in `TARGETS`, and the same
            of the scores of tasks of one's own.
        measures: Variants or measures that may explain; None for all but `TARGETS`, the targets and `exclude`.
        exclude: Variants or measures left out when `measures` is None.
        compare: Pairs of variants (forgetting, sharpness) whose |tau_b| are compared on each target.
        group: Columns that make a method; None for `hp.method` and `hp.ascent`, whichever the table has.
        seed_column: Columns that tell runs of one configuration apart.
        draws: Bootstrap resamples; 0 for no intervals of any kind.
        permutations: Random permutations; 0 for no p-values, None for 9,999.
        level: Coverage of the intervals, inside (0, 1).
        seed: Fixes all randomness.
        interval: "stabilised", "bca" or "percentile"; the last two resample configurations `draws` times. With "bca"
            the interval of `within` is a percentile interval.
        tables: Which further tables to make, of `STATISTICS`; None for all, () for none.
        controls: Variants, measures or hyper-parameters (without "hp.") held fixed in `partial`; None for the final
            train loss, the usual hyper-parameters where they vary, and for a measure of forgetting the rise of the loss
            and the information before, under the same perturbation.
        representatives: For families of measures the one that stands for each; None for the usual ones.
        oriented: Which sign of a measure is right in `sign_errors`: its "pooled" one, or the "expected" one.

    Returns:
        The tables. Below 5 configurations a row has its value and a warning, and no interval or p-value.

    Raises:
        ValueError: If the table has no `hp.*` columns, no measure or no target; if a name is unknown; if `draws`,
            `permutations` or `level` is out of range.

    Source:
        Unit, comparison and flags are our definition; within against pooled: Simpson (1951), JRSS B 13(2).
    """
    check_resampling(draws=draws, level=level)
    permutations = 9999 if permutations is None else permutations
    if permutations < 0:
        raise ValueError(f"`permutations` must be >= 0 (0 for no p-values), got {permutations!r}.")
    check_interval(interval)
    check_orientation(oriented)
    if unknown := [t for t in tables or () if t not in STATISTICS]:
        raise ValueError(f"`tables` names {unknown[0]!r}; there are {list(STATISTICS)}.")
    data = units(table, group=group, seed_column=seed_column)
    known = list(data.values.columns)
    wanted = of_scores(TARGETS, known) if targets is None else targets
    chosen_targets = variants("targets", wanted, data, strict=targets is not None)
    if not chosen_targets:
        raise ValueError(f"`table` has none of the targets {list(wanted)}: name some of {known[:20]} in `targets`.")
    if measures is None:
        left_out = {*chosen_targets, *variants("exclude", of_scores((*TARGETS, *exclude), known), data, strict=False)}
        chosen = [v for v in known if v not in left_out]
    else:
        chosen = variants("measures", measures, data, strict=True)
    if not chosen:
        raise ValueError(f"`table` has no measure besides the targets {chosen_targets}: name some in `measures`.")
    settings = Settings(draws, permutations, level, seed, interval, representatives or {}, oriented)
    evidence = Evidence(data, chosen, chosen_targets, settings, controls=controls)
    evidence = replace(evidence, correlations=_table(evidence))
    return Correlations(
        evidence.correlations,
        comparison.table(evidence, comparison.named(compare, data)),
        ceiling.table(evidence),
        _overall(data, chosen_targets),
        {name: s.made(evidence) for name, s in STATISTICS.items() if tables is None or name in tables},
        permutations,
    )


def defaults() -> dict[str, Any]:
    """The settings of `correlate` that it takes where it is told nothing, as a JSON file holds them."""
    given = {p.name: p.default for p in inspect.signature(correlate).parameters.values() if p.default is not p.empty}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


def _table(evidence: Evidence) -> pd.DataFrame:
    """All rows: measures and targets that are finite in the same runs go through in one block."""
    frames = []
    data, settings = evidence.data, evidence.settings
    for block in evidence.blocks():
        methods = [m for m, keep in zip(data.methods, block.used, strict=True) if keep]
        numbers = _block(block.x, block.y, methods, settings)
        index = pd.MultiIndex.from_product(
            [COEFFICIENTS, block.measures, block.targets], names=["coefficient", "measure", "target"]
        )
        shape = (len(COEFFICIENTS), *block.shape)
        frame = pd.DataFrame({k: np.broadcast_to(v, shape).ravel() for k, v in numbers.items()}, index=index)
        frame["n_configurations"], frame["n_runs"] = block.n, int(block.runs.sum())
        frame["dropped"] = len(block.used) - block.n
        loose = [_loose(data, name, block.runs) for name in block.measures]
        remarks = [joined(*block.remarks(i, j), loose[i]) for i, j in np.ndindex(block.shape)] * len(COEFFICIENTS)
        perfect = (frame["value"].abs() > 1 - 1e-12) & np.isfinite(frame["low"])
        frame["warnings"] = [joined(r, PERFECT * p) for r, p in zip(remarks, perfect.tolist(), strict=True)]
        frames.append(frame.reset_index())
    whole = pd.concat(frames, ignore_index=True)
    whole = whole[whole["measure"] != whole["target"]]
    places = {"measure": evidence.measures, "target": evidence.targets, "coefficient": list(COEFFICIENTS)}
    for name, order in places.items():
        whole[f"at_{name}"] = whole[name].map({v: k for k, v in enumerate(order)})
    whole = whole.sort_values(["at_target", "at_coefficient", "at_measure"], ignore_index=True)
    whole["p_holm"] = whole.groupby(["target", "coefficient"], sort=False)["p"].transform(lambda p: holm(p.to_numpy()))
    by_coefficient = whole.groupby("coefficient", sort=False)["p"]
    whole["p_holm_all"] = by_coefficient.transform(lambda p: holm(p.to_numpy()))
    whole["p_bh"] = by_coefficient.transform(lambda p: benjamini_hochberg(p.to_numpy()))
    whole["interval"] = settings.interval
    clear = np.minimum(whole["value"].abs(), whole["within"].abs()) > 1e-12  # rounding alone is no sign
    whole["reversal"] = clear & (whole["value"] * whole["within"] < 0)
    whole["groups"] = whole["groups"].astype(int)
    return whole[list(COLUMNS)]


def _loose(data: Units, name: str, runs: Bool[np.ndarray, " r"]) -> str:
    """How many of a measure's values did not converge; the iteration was cut short, whatever the correlation says."""
    count = int((data.loose[name] & runs).sum()) if name in data.loose else 0
    return f"{count} of {int(runs.sum())} values did not converge" if count else ""


def _block(
    x: Float[np.ndarray, "m n"], y: Float[np.ndarray, "t n"], methods: list[str], settings: Settings
) -> dict[str, Float[np.ndarray, "k m t"]]:
    """Values, intervals and p-values, of shape (coefficients, m, t), of finite data."""
    n = x.shape[1]
    names = ("value", "low", "high", "p", "within", "within_low", "within_high", "groups")
    out = {name: np.full((len(COEFFICIENTS), len(x), len(y)), np.nan) for name in names}
    out["groups"][:] = 0
    if n < 2:
        return out
    claim = n >= MINIMUM
    labels = sorted(set(methods))
    groups = [np.flatnonzero([m == label for m in methods]) for label in labels]
    groups = [g for g in groups if len(g) >= GROUP_MINIMUM]
    rank_x, rank_y = mid_ranks(x), mid_ranks(y)
    for k, name in enumerate(COEFFICIENTS):
        once = [np.ones((1, len(g)), dtype=np.int64) for g in groups]
        out["value"][k] = RESAMPLED[name](x, y, np.ones((1, n), dtype=np.int64))[:, :, 0]
        mean, number = _within(name, x, y, groups, once)
        out["within"][k], out["groups"][k] = mean[:, :, 0], number[:, :, 0]
    if claim and settings.permutations:
        orders, exact = settings.orders(n)
        out["p"][0] = kendall_pvalues(x, y, orders, exact=exact)
        out["p"][1] = correlation_pvalues(rank_x, rank_y, orders, exact=exact)
        out["p"][2] = correlation_pvalues(x, y, orders, exact=exact)
    if claim and settings.draws:
        _add_intervals(out, x, y, groups, settings)
    if len(labels) == 1:
        for end in ("", "_low", "_high"):
            out[f"within{end}"] = out[end[1:] or "value"].copy()
    for end in ("low", "high"):
        out[end][np.isnan(out["value"])] = np.nan
        out[f"within_{end}"][np.isnan(out["within"])] = np.nan
    return out


def _add_intervals(
    out: dict[str, np.ndarray],
    x: Float[np.ndarray, "m n"],
    y: Float[np.ndarray, "t n"],
    groups: list[Int[np.ndarray, " g"]],
    settings: Settings,
) -> None:
    """Ends of the intervals of `value` and `within`, of the kind asked for, block by block of measures."""
    n, level = x.shape[1], settings.level
    counts, inside = None, None
    if settings.interval != "stabilised":
        counts = settings.counts(n)
        inside = [settings.counts(len(g), k) for k, g in enumerate(groups)]
    step = max(1, _ROWS // (len(y) * max(settings.draws, n)))
    for k, name in enumerate(COEFFICIENTS):
        for rows in (slice(s, s + step) for s in range(0, len(x), step)):
            value, within = out["value"][k, rows], out["within"][k, rows]
            left_out = None if settings.interval == "percentile" else leave_one_out(name, x[rows], y)
            if counts is None or inside is None:
                assert left_out is not None
                error, freedom = jackknife_error(left_out), freedom_of(name, n)
                ends = stabilised_interval(value, error, level=level, freedom=freedom)
                error, freedom = _within_error(name, x[rows], y, groups)
                ends_within = stabilised_interval(within, error, level=level, freedom=freedom)
            else:
                drawn = RESAMPLED[name](x[rows], y, counts)
                ends = (
                    percentile_interval(drawn, level=level)
                    if left_out is None
                    else bca_interval(drawn, value, left_out, level=level)
                )
                ends_within = percentile_interval(_within(name, x[rows], y, groups, inside)[0], level=level)
            out["low"][k, rows], out["high"][k, rows] = ends
            out["within_low"][k, rows], out["within_high"][k, rows] = ends_within


def _within_error(
    name: str, x: Float[np.ndarray, "m n"], y: Float[np.ndarray, "t n"], groups: list[Int[np.ndarray, " g"]]
) -> tuple[Float[np.ndarray, "m t"], float]:
    """Standard error of the mean over groups, √Σs_g²/number, and its degrees of freedom."""
    squares, number = np.zeros((len(x), len(y))), np.zeros((len(x), len(y)))
    for rows in groups:
        defined = np.isfinite(RESAMPLED[name](x[:, rows], y[:, rows], np.ones((1, len(rows)), dtype=np.int64))[:, :, 0])
        error = jackknife_error(leave_one_out(name, x[:, rows], y[:, rows]))
        np.add(squares, error**2, out=squares, where=defined)
        number += defined
    error = np.divide(np.sqrt(squares), number, out=np.full(number.shape, np.nan), where=number > 0)
    free = sum(len(g) - 2 for g in groups)
    return error, freedom_of(name, free + 2)


def _within(
    name: str,
    x: Float[np.ndarray, "m n"],
    y: Float[np.ndarray, "t n"],
    groups: list[Int[np.ndarray, " g"]],
    counts: list[Int[np.ndarray, "d g"]],
) -> tuple[Float[np.ndarray, "m t d"], Float[np.ndarray, "m t d"]]:
    """Mean of the coefficient over the groups in which it is defined, each with the same weight, and their number."""
    shape = (len(x), len(y), len(counts[0]) if counts else 1)
    total, number = np.zeros(shape), np.zeros(shape)
    for rows, drawn in zip(groups, counts, strict=True):
        part = RESAMPLED[name](x[:, rows], y[:, rows], drawn)
        defined = np.isfinite(part)
        np.add(total, part, out=total, where=defined)
        number += defined
    return np.divide(total, number, out=np.full(shape, np.nan), where=number > 0), number


def _overall(data: Units, targets: list[str]) -> list[str]:
    """What a reader of all tables must know."""
    found = []
    n, runs = len(data.methods), len(data.configuration)
    if n < MINIMUM:
        found.append(f"{n} configurations: {NO_CLAIM}")
    if runs == n and n > 1:
        found.append("every configuration has one run: no noise ceiling, and differences include the noise of the seed")
    shaping = [c for c in data.hyper.columns if c in SIZES]
    shapes = len(data.hyper[shaping].astype(str).drop_duplicates()) if shaping else 1
    if shapes > 1:
        found.append(f"models of {shapes} shapes are mixed: norms and sharpness may tell the shape alone; see `within`")
    if len(set(data.methods)) == 1:
        found.append("one method: within it and pooled are the same")
    for name in targets:
        for text, count in list(data.said.get(name, {}).items())[:MOST_SAID]:
            found.append(f"{name}: {text} ({count} of {runs} runs)")
    lost = int(data.values[targets].isna().all(axis=1).sum())
    if lost:
        found.append(f"{lost} of {runs} runs have no finite target (diverged, or not measured) and are left out")
    return found
