"""Every measure against every target: tau_b, Spearman, Pearson, with intervals, p-values and what to beware of.

The unit is the configuration, averaged over its seeds. For each measure and target the average is over the runs in
which both are finite; a configuration without such a run is left out and counted, never filled in.
"""

import difflib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from analysis.measures.targets import TARGETS
from analysis.statistics.ceiling import COEFFICIENTS, noise_ceiling
from analysis.statistics.comparison import MINIMUM, NO_CLAIM, paired_difference
from analysis.statistics.kendall import kendall_pvalues, weighted_kendall
from analysis.statistics.resampling import (
    bootstrap_counts,
    check_resampling,
    correlation_pvalues,
    holm,
    mid_ranks,
    percentile_interval,
    permutation_orders,
    significant,
    weighted_pearson,
    weighted_spearman,
)
from analysis.table import wide, with_variant

# Measures of the table that are targets of correlation unless the caller names others; larger is worse in all.

# Measures that are no candidate explanation: parts of the targets, or what training reached.
CONTROLS = (
    *("train_error", "train_loss", "train_clean_error", "test_loss", "validation_error", "validation_loss"),
    *("ood_gap", "ood_error_severity", "ece", "ece_adaptive", "brier"),
)  # what describes the targets themselves, or the training error: not measures that might explain them

GROUP = ("hp.method", "hp.ascent")
GROUP_MINIMUM = 3  # a method with fewer configurations has no correlation of its own

_RESAMPLED: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "kendall": weighted_kendall,
    "spearman": weighted_spearman,
    "pearson": weighted_pearson,
}
COLUMNS = (
    *("measure", "target", "coefficient", "value", "low", "high", "p", "p_holm", "n_configurations", "n_runs"),
    *("dropped", "within", "within_low", "within_high", "groups", "reversal", "warnings"),
)

_ROWS = 1 << 21  # (measures, targets, draws) numbers held at once


@dataclass(frozen=True)
class Correlations:
    """What the statistics say, as tables.

    Attributes:
        table: One row a (measure, target, coefficient): `value` with its bootstrap interval `low`, `high`; permutation
            `p` and `p_holm` (over the measures, for each target and coefficient); `n_configurations`, `n_runs`,
            `dropped` (configurations without a run in which both are finite); `within`, the mean over methods of the
            coefficient inside each, with its interval; `groups`, the methods in that mean; `reversal`, True where
            pooled and within have opposite signs; `warnings`.
        comparisons: One row a (forgetting, sharpness, target): `difference` of |tau_b| with its interval.
        ceilings: One row a (target, coefficient): what noise over seeds lets any measure reach.
        warnings: What holds for the whole analysis.
    """

    table: pd.DataFrame
    comparisons: pd.DataFrame
    ceilings: pd.DataFrame
    warnings: list[str]


@dataclass(frozen=True)
class Units:
    """Runs and the configurations they belong to.

    Attributes:
        values: One row a run, one column a variant, inf as NaN.
        measure: Name of the measure behind each variant.
        configuration: For each run, the number of its configuration.
        methods: For each configuration, the label of its method group.
    """

    values: pd.DataFrame
    measure: dict[str, str]
    configuration: Int[np.ndarray, " r"]
    methods: list[str]

    def average(self, columns: Sequence[str], runs: Bool[np.ndarray, " r"]) -> Float[np.ndarray, "v c"]:
        """Mean of each column over the given runs of each configuration; NaN for a configuration without one.

        Rounded to 12 significant digits: equal error rates must stay equal whatever seeds they came from.
        """
        x = self.values.loc[runs, list(columns)].to_numpy().T
        c = len(self.methods)
        belongs = np.zeros((int(runs.sum()), c))
        belongs[np.arange(len(belongs)), self.configuration[runs]] = 1.0
        number = belongs.sum(axis=0)
        mean = significant(x @ (belongs / np.maximum(number, 1)))  # divided first: a sum of huge values overflows
        mean[:, number == 0] = np.nan
        return mean


def units(
    table: pd.DataFrame,
    *,
    group: str | Sequence[str] | None = None,
    seed_column: str | Sequence[str] = "hp.seed",
) -> Units:
    """Sort the runs of a measures table into configurations and methods.

    Args:
        table: The long measures table, joined with `hp.*` columns; each run's last checkpoint is used.
        group: Columns that make a method, their values joined by "+"; None for `hp.method` and `hp.ascent`, whichever
            the table has.
        seed_column: Columns that tell runs of one configuration apart; every other `hp.*` column is part of the
            configuration.

    Returns:
        The runs, in an order that does not depend on the order of the table's rows.

    Raises:
        ValueError: If there are no rows, no `hp.*` columns, a run without any, or no such `group` column.
    """
    hyper = [c for c in table.columns if c.startswith("hp.")]
    if not hyper or table.empty:
        raise ValueError("`table` must have rows and `hp.*` columns: join the configurations with `join_config`.")
    if bare := sorted(table.loc[table[hyper].isna().all(axis=1), "run_id"].unique()):
        raise ValueError(f"`table` has runs without a configuration, {bare[:5]}: join theirs with `join_config`.")
    columns = [c for c in GROUP if c in hyper] if group is None else [group] if isinstance(group, str) else list(group)
    for name in columns:
        if name not in hyper:
            raise ValueError(f"`group` names {name!r}, which is no column of the table{_nearest(name, hyper)}")
    seeds = {seed_column} if isinstance(seed_column, str) else set(seed_column)
    values = wide(table).astype(np.float64)
    runs = table.drop_duplicates("run_id").set_index("run_id").loc[values.index, hyper]
    keys = [json.dumps([_text(v) for v in row]) for row in runs[[c for c in hyper if c not in seeds]].to_numpy()]
    names, configuration = np.unique(np.array(keys), return_inverse=True)
    first = runs.iloc[[int(np.argmax(configuration == c)) for c in range(len(names))]]
    labels = ["+".join(t for t in map(_text, row) if t) or "all" for row in first[columns].to_numpy()]
    named = with_variant(table[["measure", "options", "split"]].drop_duplicates())
    measure = dict(zip(named["variant"], named["measure"], strict=True))
    return Units(values.where(np.isfinite(values)), measure, configuration, labels)


def _text(value: object) -> str:
    return "" if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)) else str(value)


def correlate(
    table: pd.DataFrame,
    *,
    targets: Sequence[str] | None = None,
    measures: Sequence[str] | None = None,
    exclude: Sequence[str] = CONTROLS,
    compare: Sequence[tuple[str, str]] = (),
    group: str | Sequence[str] | None = None,
    seed_column: str | Sequence[str] = "hp.seed",
    draws: int = 2000,
    permutations: int = 9999,
    level: float = 0.95,
    seed: int = 0,
) -> Correlations:
    """Correlate measures with generalisation, configuration by configuration.

    Intervals are percentiles of a bootstrap over configurations (for `within`, over the configurations inside each
    method). p-values permute the target over configurations, or enumerate all orders where there are no more than
    `permutations`. Resamples depend on `seed` and the number of configurations alone, so all measures on the same
    configurations see the same ones, and adding a measure changes no other row, but for `p_holm`. Signs are as
    measured: nothing is flipped.

    Args:
        table: The long measures table joined with `hp.*` columns; each run's last checkpoint is used.
        targets: Variants to be explained, or measures for all their variants; None for all in `TARGETS`.
        measures: Variants or measures that may explain; None for all but `TARGETS`, the targets and `exclude`.
        exclude: Variants or measures left out when `measures` is None.
        compare: Pairs of variants (forgetting, sharpness) whose |tau_b| are compared on each target.
        group: Columns that make a method; None for `hp.method` and `hp.ascent`, whichever the table has.
        seed_column: Columns that tell runs of one configuration apart.
        draws: Bootstrap resamples; 0 for no intervals.
        permutations: Random permutations; 0 for no p-values.
        level: Coverage of the intervals, inside (0, 1).
        seed: Fixes all randomness.

    Returns:
        The tables. Below 5 configurations a row has its value and a warning, and no interval or p-value.

    Raises:
        ValueError: If the table has no `hp.*` columns, no measure or no target; if a name is unknown; if `draws`,
            `permutations` or `level` is out of range.

    Source:
        Unit, comparison and flags are our definition; within against pooled: Simpson (1951), JRSS B 13(2).
    """
    check_resampling(draws=draws, level=level)
    if permutations < 0:
        raise ValueError(f"`permutations` must be >= 0 (0 for no p-values), got {permutations!r}.")
    data = units(table, group=group, seed_column=seed_column)
    known = list(data.values.columns)
    wanted = TARGETS if targets is None else targets
    chosen_targets = _variants("targets", wanted, data, strict=targets is not None)
    if not chosen_targets:
        raise ValueError(f"`table` has none of the targets {list(wanted)}: name some of {known[:20]} in `targets`.")
    if measures is None:
        left_out = {*chosen_targets, *_variants("exclude", (*TARGETS, *exclude), data, strict=False)}
        chosen = [v for v in known if v not in left_out]
    else:
        chosen = _variants("measures", measures, data, strict=True)
    if not chosen:
        raise ValueError(f"`table` has no measure besides the targets {chosen_targets}: name some in `measures`.")
    pairs = [(_single("compare", a, data), _single("compare", b, data)) for a, b in compare]
    settings = _Settings(draws, permutations, level, seed)
    return Correlations(
        _table(data, chosen, chosen_targets, settings),
        _comparisons(data, pairs, chosen_targets, settings),
        _ceilings(data, chosen_targets, settings),
        _overall(data, chosen_targets),
    )


@dataclass(frozen=True)
class _Settings:
    draws: int
    permutations: int
    level: float
    seed: int

    def generator(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *stream])

    def counts(self, n: int, method: int = -1) -> Int[np.ndarray, "d n"]:
        return bootstrap_counts(n, draws=self.draws, generator=self.generator(1, n, method + 1))

    def orders(self, n: int) -> tuple[Int[np.ndarray, "b n"], bool]:
        return permutation_orders(n, count=self.permutations, generator=self.generator(2, n))


def _table(data: Units, measures: list[str], targets: list[str], settings: _Settings) -> pd.DataFrame:
    """All rows: measures and targets that are finite in the same runs go through in one block."""
    frames = []
    for xs, ys, runs in _blocks(data, measures, targets):
        x, y = data.average(xs, runs), data.average(ys, runs)
        used = np.isfinite(x[0]) & np.isfinite(y[0])
        methods = [m for m, keep in zip(data.methods, used, strict=True) if keep]
        numbers = _block(x[:, used], y[:, used], methods, settings)
        shape = (len(COEFFICIENTS), len(xs), len(ys))
        index = pd.MultiIndex.from_product([COEFFICIENTS, xs, ys], names=["coefficient", "measure", "target"])
        frame = pd.DataFrame({k: np.broadcast_to(v, shape).ravel() for k, v in numbers.items()}, index=index)
        n = int(used.sum())
        frame["n_configurations"], frame["n_runs"], frame["dropped"] = n, int(runs.sum()), len(used) - n
        still_x, still_y = _constant(x[:, used]).tolist(), _constant(y[:, used]).tolist()
        frame["warnings"] = [_remarks(n, a, b) for a in still_x for b in still_y] * len(COEFFICIENTS)
        frames.append(frame.reset_index())
    whole = pd.concat(frames, ignore_index=True)
    whole = whole[whole["measure"] != whole["target"]]
    places = {"measure": measures, "target": targets, "coefficient": list(COEFFICIENTS)}
    for name, order in places.items():
        whole[f"at_{name}"] = whole[name].map({v: k for k, v in enumerate(order)})
    whole = whole.sort_values(["at_target", "at_coefficient", "at_measure"], ignore_index=True)
    whole["p_holm"] = whole.groupby(["target", "coefficient"], sort=False)["p"].transform(lambda p: holm(p.to_numpy()))
    clear = np.minimum(whole["value"].abs(), whole["within"].abs()) > 1e-12  # rounding alone is no sign
    whole["reversal"] = clear & (whole["value"] * whole["within"] < 0)
    whole["groups"] = whole["groups"].astype(int)
    return whole[list(COLUMNS)]


def _remarks(n: int, still_measure: bool, still_target: bool) -> str:
    if n == 0:
        return f"no run in which both are finite; {NO_CLAIM}"
    parts = ["constant measure"] * still_measure + ["constant target"] * still_target + [NO_CLAIM] * (n < MINIMUM)
    return "; ".join(parts)


def _constant(x: Float[np.ndarray, "v n"]) -> Bool[np.ndarray, " v"]:
    return (x == x[:, :1]).all(axis=1) if x.shape[1] else np.ones(len(x), dtype=bool)


def _blocks(
    data: Units, measures: list[str], targets: list[str]
) -> Iterator[tuple[list[str], list[str], Bool[np.ndarray, " r"]]]:
    """Measures and targets by the runs in which they are finite, in blocks of bounded size."""

    def by_mask(names: Iterable[str]) -> dict[bytes, list[str]]:
        found: dict[bytes, list[str]] = {}
        for name in names:
            found.setdefault(np.isfinite(data.values[name].to_numpy()).tobytes(), []).append(name)
        return found

    for mask_y, ys in by_mask(targets).items():
        for mask_x, xs in by_mask(measures).items():
            yield xs, ys, np.frombuffer(mask_x, dtype=bool) & np.frombuffer(mask_y, dtype=bool)


def _block(
    x: Float[np.ndarray, "m n"], y: Float[np.ndarray, "t n"], methods: list[str], settings: _Settings
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
        out["value"][k] = _RESAMPLED[name](x, y, np.ones((1, n), dtype=np.int64))[:, :, 0]
        mean, number = _within(name, x, y, groups, once)
        out["within"][k], out["groups"][k] = mean[:, :, 0], number[:, :, 0]
    if claim and settings.permutations:
        orders, exact = settings.orders(n)
        out["p"][0] = kendall_pvalues(x, y, orders, exact=exact)
        out["p"][1] = correlation_pvalues(rank_x, rank_y, orders, exact=exact)
        out["p"][2] = correlation_pvalues(x, y, orders, exact=exact)
    if claim and settings.draws:
        counts = settings.counts(n)
        inside = [settings.counts(len(g), k) for k, g in enumerate(groups)]
        step = max(1, _ROWS // (len(y) * settings.draws))
        for rows in (slice(s, s + step) for s in range(0, len(x), step)):
            for k, name in enumerate(COEFFICIENTS):
                drawn = _RESAMPLED[name](x[rows], y, counts)
                out["low"][k, rows], out["high"][k, rows] = percentile_interval(drawn, level=settings.level)
                drawn, _ = _within(name, x[rows], y, groups, inside)
                ends = percentile_interval(drawn, level=settings.level)
                out["within_low"][k, rows], out["within_high"][k, rows] = ends
    if len(labels) == 1:
        for end in ("", "_low", "_high"):
            out[f"within{end}"] = out[end[1:] or "value"].copy()
    for end in ("low", "high"):
        out[end][np.isnan(out["value"])] = np.nan
        out[f"within_{end}"][np.isnan(out["within"])] = np.nan
    return out


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
        part = _RESAMPLED[name](x[:, rows], y[:, rows], drawn)
        defined = np.isfinite(part)
        np.add(total, part, out=total, where=defined)
        number += defined
    return np.divide(total, number, out=np.full(shape, np.nan), where=number > 0), number


def _comparisons(data: Units, pairs: list[tuple[str, str]], targets: list[str], settings: _Settings) -> pd.DataFrame:
    rows = []
    for first, second in pairs:
        for target in targets:
            runs = data.values[[first, second, target]].notna().all(axis=1).to_numpy()
            a, b, y = data.average([first, second, target], runs)
            n = int(np.isfinite(y).sum())
            found = paired_difference(
                a, b, y, draws=settings.draws, level=settings.level, generator=settings.generator(1, n, 0)
            )
            rows.append((first, second, target, found.tau_first, found.tau_second, found.difference, found.low,
                         found.high, found.n_configurations, found.warnings))  # fmt: skip
    columns = "forgetting sharpness target tau_forgetting tau_sharpness difference low high n_configurations warnings"
    return pd.DataFrame(rows, columns=columns.split())


def _ceilings(data: Units, targets: list[str], settings: _Settings) -> pd.DataFrame:
    place = pd.Series(data.configuration).groupby(data.configuration).cumcount().to_numpy()
    rows = []
    for target in targets:
        seeds = np.full((len(data.methods), int(place.max()) + 1), np.nan)
        seeds[data.configuration, place] = data.values[target]
        for name in COEFFICIENTS:
            found = noise_ceiling(seeds, coefficient=name, generator=settings.generator(3))
            rows.append((target, name, found.split_half, found.spearman_brown, found.oracle_with_noise,
                         found.n_configurations, found.warnings))  # fmt: skip
    columns = "target coefficient split_half spearman_brown oracle_with_noise n_configurations warnings"
    return pd.DataFrame(rows, columns=columns.split())


def _overall(data: Units, targets: list[str]) -> list[str]:
    """What a reader of all tables must know."""
    found = []
    n, runs = len(data.methods), len(data.configuration)
    if n < MINIMUM:
        found.append(f"{n} configurations: {NO_CLAIM}")
    if runs == n and n > 1:
        found.append("every configuration has one run: no noise ceiling, and differences include the noise of the seed")
    if len(set(data.methods)) == 1:
        found.append("one method: within it and pooled are the same")
    lost = int(data.values[targets].isna().all(axis=1).sum())
    if lost:
        found.append(f"{lost} of {runs} runs have no finite target (diverged, or not measured) and are left out")
    return found


def _variants(argument: str, names: Sequence[str], data: Units, *, strict: bool) -> list[str]:
    """The variants meant by names of variants or measures, in order, each once.

    A name that is both stands for the variant alone if `strict`, as a caller's choice, else for all of the measure.
    """
    known = list(data.values.columns)
    found: dict[str, None] = {}
    for name in names:
        exact = name in known and (strict or data.measure[name] != name)
        meant = [name] if exact else [v for v in known if data.measure[v] == name]
        if strict and not meant:
            choices = [*known, *data.measure.values()]
            raise ValueError(f"`{argument}` names {name!r}, which is not in the table{_nearest(name, choices)}")
        found.update(dict.fromkeys(meant))
    return list(found)


def _single(argument: str, name: str, data: Units) -> str:
    meant = _variants(argument, [name], data, strict=True)
    if len(meant) > 1:
        raise ValueError(f"`{argument}` names {name!r}, which stands for {meant}: name one of them.")
    return meant[0]


def _nearest(name: str, choices: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(dict.fromkeys(choices)), n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else f"; it has {sorted(set(choices))[:20]}."
