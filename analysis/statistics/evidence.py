"""The further tables of `correlate`: the statistics of the family, for every measure and target of a measures table.

Each function takes the sorted runs, measures and targets, and gives one table with a `warnings` column. Measures and
targets that are finite in the same runs go through together.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from analysis.statistics.comparison import MINIMUM, NO_CLAIM
from analysis.statistics.granulated import axis_kendall, granulated_pvalues
from analysis.statistics.grid import axis_pairs, joint, levels
from analysis.statistics.information import (
    FEW_PAIRS,
    Rule,
    conditional_ratio,
    few,
    mean_and_error,
    ratio_of,
    shuffled,
    subsets,
)
from analysis.statistics.intervals import PERFECT
from analysis.statistics.mixed import intraclass_correlation, random_intercept
from analysis.statistics.partial import partial_table
from analysis.statistics.power import design_effect, power, required_models, smallest_effect
from analysis.statistics.prediction import MODELS, leave_one_group_out
from analysis.statistics.resampling import bootstrap_counts, permutation_orders
from analysis.statistics.selection import split_selection
from analysis.statistics.sign_error import ESS, environment_errors, environments, summary
from analysis.statistics.slopes import FEW_CLUSTERS, fixed_effects, inside_orders, simpson
from analysis.statistics.units import MAXIMUM_LEVELS, Units, nearest, variants

TABLES = (
    *("granulated", "information", "sign_errors", "partial"),
    *("multilevel", "selection", "prediction", "power"),
)
HYPER_CONTROLS = ("lr", "batch_size", "weight_decay", "model_options", "width", "epochs")
MEASURE_CONTROLS = ("train_loss",)  # what training reached
MATCHED = ("dCE", "base_information")  # of the same perturbation as the measure of forgetting
FORGETTING = ("F_", "selectivity", "dH", "KL", "cw", "wc", "M_gap")
ALL, NO_GRID = "all", "no two configurations differ in one hyper-parameter alone"

SLOW_PERMUTATIONS = 999
SHUFFLES = 10
SPLITS = 100


@dataclass(frozen=True)
class Settings:
    """What decides the resampling.

    Attributes:
        draws: Bootstrap resamples; 0 for no intervals.
        permutations: Random permutations; 0 for no p-values.
        level: Coverage of the intervals.
        seed: Of all randomness.
        interval: Kind of interval of the correlations.
    """

    draws: int
    permutations: int
    level: float
    seed: int
    interval: str = "stabilised"

    def generator(self, *stream: int) -> np.random.Generator:
        """Random numbers that depend on the seed and the stream alone."""
        return np.random.default_rng([self.seed, *stream])

    def counts(self, n: int, method: int = -1) -> Int[np.ndarray, "d n"]:
        """Resamples of n configurations, the same for all measures on as many."""
        return bootstrap_counts(n, draws=self.draws, generator=self.generator(1, n, method + 1))

    def orders(self, n: int) -> tuple[Int[np.ndarray, "b n"], bool]:
        """Permutations of n configurations, and whether they are all there are."""
        return permutation_orders(n, count=self.permutations, generator=self.generator(2, n))


@dataclass(frozen=True)
class Block:
    """Measures and targets that are finite in the same runs, averaged over the seeds.

    Attributes:
        measures: Their names, the rows of x.
        targets: Theirs, the rows of y.
        x: Averages.
        y: Averages.
        used: Which configurations those are.
        runs: Which runs they come from.
    """

    measures: list[str]
    targets: list[str]
    x: Float[np.ndarray, "m n"]
    y: Float[np.ndarray, "t n"]
    used: Bool[np.ndarray, " c"]
    runs: Bool[np.ndarray, " r"]

    def pairs(self) -> Iterator[tuple[int, int, str, str]]:
        """Places and names of every measure and target; nothing is related to itself."""
        for i, measure in enumerate(self.measures):
            for j, target in enumerate(self.targets):
                if measure != target:
                    yield i, j, measure, target

    def remarks(self, i: int, j: int) -> list[str]:
        """What holds for a measure and a target whatever the statistic."""
        n = self.x.shape[1]
        if n == 0:
            return [f"no run in which both are finite; {NO_CLAIM}"]
        still = ["constant measure"] * constant(self.x[i]) + ["constant target"] * constant(self.y[j])
        return still + [NO_CLAIM] * (n < MINIMUM)


def constant(x: Float[np.ndarray, " n"]) -> bool:
    """Whether all values are the same; of none, yes."""
    return not len(x) or bool((x == x[0]).all())


def blocks(data: Units, measures: Sequence[str], targets: Sequence[str]) -> Iterator[Block]:
    """The measures and targets, in blocks."""
    for xs, ys, runs in data.blocks(measures, targets):
        x, y = data.average(xs, runs), data.average(ys, runs)
        used = np.isfinite(x[0]) & np.isfinite(y[0])
        yield Block(xs, ys, x[:, used], y[:, used], used, runs)


def evidence(
    data: Units,
    measures: list[str],
    targets: list[str],
    correlations: pd.DataFrame,
    settings: Settings,
    *,
    tables: Sequence[str],
    controls: Sequence[str] | None,
) -> dict[str, pd.DataFrame]:
    """The tables asked for, by name, rows in the order of targets and measures."""
    made: dict[str, Callable[[], pd.DataFrame]] = {
        "granulated": lambda: granulated_table(data, measures, targets, settings),
        "information": lambda: information_table(data, measures, targets, settings),
        "sign_errors": lambda: sign_error_table(data, measures, targets),
        "partial": lambda: partial_rows(data, measures, targets, settings, controls=controls),
        "multilevel": lambda: multilevel_table(data, measures, targets, settings),
        "selection": lambda: selection_table(data, measures, targets, settings),
        "prediction": lambda: prediction_table(data, measures, targets, settings),
        "power": lambda: power_table(data, correlations),
    }
    return {name: _sorted(made[name](), measures, targets) for name in TABLES if name in tables}


def _sorted(frame: pd.DataFrame, measures: Sequence[str], targets: Sequence[str]) -> pd.DataFrame:
    keys = [
        frame[c].map({v: k for k, v in enumerate(order)}).fillna(len(order))
        for c, order in (("target", targets), ("measure", measures))
        if c in frame.columns
    ]
    if not len(frame):
        return frame.reset_index(drop=True)
    return frame.iloc[np.lexsort([k.to_numpy() for k in reversed(keys)])].reset_index(drop=True)


def _grid(data: Units) -> tuple[list[str], Int[np.ndarray, "k c"], str]:
    """The axes, their levels, and what was left out."""
    coordinates, many = data.coordinates()
    note = f"no axes, more than {MAXIMUM_LEVELS} levels: {', '.join(many)}" if many else ""
    if not coordinates:
        return [], np.zeros((0, len(data.methods)), dtype=np.int64), note
    return (*levels(coordinates), note)


def _join(*notes: str) -> str:
    return "; ".join(n for n in notes if n)


def granulated_table(data: Units, measures: list[str], targets: list[str], settings: Settings) -> pd.DataFrame:
    """Psi ("all") and its axes, with permutation p-values."""
    names, codes, note = _grid(data)
    rows: list[tuple[Any, ...]] = []
    permutations = min(settings.permutations, SLOW_PERMUTATIONS)
    for block in blocks(data, measures, targets):
        axes = axis_pairs(names, codes[:, block.used])
        psi = axis_kendall(block.x, block.y, axes)
        shape = (len(block.measures), len(block.targets))
        p, overall_p = np.full(psi.shape, math.nan), np.full(shape, math.nan)
        if permutations and axes and block.x.shape[1] >= MINIMUM:
            generator = settings.generator(4, block.x.shape[1])
            p, overall_p = granulated_pvalues(block.x, block.y, axes, permutations=permutations, generator=generator)
        defined = [k for k, a in enumerate(axes) if len(a.first)]
        mean = psi[defined].mean(axis=0) if defined else np.full(shape, math.nan)
        counts = [sum(v) for v in zip(*((a.eligible, a.total, len(a.first)) for a in axes), strict=True)] or [0, 0, 0]
        lacking = "" if defined else NO_GRID
        if defined and len(defined) < len(axes):
            lacking = f"no pair: {', '.join(a.name for a in axes if not len(a.first))}"
        for i, j, measure, target in block.pairs():
            remarks = _join(*block.remarks(i, j), lacking, note)
            still = constant(block.x[i]) or constant(block.y[j])
            p_all = math.nan if still else overall_p[i, j]
            rows.append((measure, target, ALL, mean[i, j], p_all, *counts, remarks))
            for k, axis in enumerate(axes):
                mark = "" if len(axis.first) else "no pair"
                own = (axis.eligible, axis.total, len(axis.first))
                value = math.nan if still else p[k, i, j]
                rows.append((measure, target, axis.name, psi[k, i, j], value, *own,
                             _join(*block.remarks(i, j), mark)))  # fmt: skip
    columns = "measure target axis psi p eligible_cells total_cells pairs warnings"
    return pd.DataFrame(rows, columns=columns.split())


def information_table(data: Units, measures: list[str], targets: list[str], settings: Settings) -> pd.DataFrame:
    """K with the set that attains it, its baseline, and the sign of Psi, as K has none."""
    names, codes, note = _grid(data)
    rows: list[tuple[Any, ...]] = []
    chosen = list(subsets(len(names)))
    rule = Rule()
    for block in blocks(data, measures, targets):
        n, shape = block.x.shape[1], (len(block.measures), len(block.targets))
        some = codes[:, block.used]
        best, fewest = np.full(shape, np.inf), np.zeros(shape)
        at, plain = np.full(shape, -1), np.full(shape, math.nan)
        for k, subset in enumerate(chosen if n > 1 else []):
            information, entropy, pairs = conditional_ratio(block.x, block.y, joint(some[list(subset)]), rule=rule)
            ratio = ratio_of(information, entropy)
            better = ratio < best  # NaN is not
            best, at, fewest = (np.where(better, new, old) for new, old in ((ratio, best), (k, at), (pairs, fewest)))
            if not subset:
                plain = ratio
        axes = axis_pairs(names, some) if names else []
        psi = axis_kendall(block.x, block.y, axes)
        defined = [k for k, a in enumerate(axes) if len(a.first)]
        sign = np.sign(psi[defined].mean(axis=0)) if defined else np.full(shape, math.nan)
        base, error = np.full(shape, math.nan), np.full(shape, math.nan)
        if settings.permutations and n > 1:
            for k in np.unique(at[at >= 0]):
                code = joint(some[list(chosen[k])])
                for i in np.flatnonzero((at == k).any(axis=1)).tolist():
                    here = np.flatnonzero(at[i] == k).tolist()
                    generator = settings.generator(5, n, int(k))
                    moved = shuffled(block.x[i], code, count=SHUFFLES, generator=generator)
                    null = ratio_of(*conditional_ratio(moved, block.y[here], code, rule=rule)[:2])
                    for c, j in enumerate(here):
                        base[i, j], error[i, j] = mean_and_error(null[:, c])
        for i, j, measure, target in block.pairs():
            known = at[i, j] >= 0
            value = float(best[i, j]) if known else math.nan
            label = "+".join(names[a] for a in chosen[at[i, j]]) or "none" if known else ""
            remarks = block.remarks(i, j)
            if known and fewest[i, j] < FEW_PAIRS:
                remarks.append(few(int(fewest[i, j])))
            if known and base[i, j] >= value:
                remarks.append("no more than chance gives")
            if not names:
                remarks.append("no hyper-parameter varies: nothing to condition on")
            rows.append((measure, target, value, label, sign[i, j], plain[i, j], base[i, j], error[i, j],
                         value - base[i, j], int(fewest[i, j]), len(chosen), _join(*remarks, note)))  # fmt: skip
    columns = (
        "measure target k subset sign_of_psi unconditional baseline baseline_stderr excess fewest_pairs subsets "
        "warnings"
    )
    return pd.DataFrame(rows, columns=columns.split())


def sign_error_table(data: Units, measures: list[str], targets: list[str]) -> pd.DataFrame:
    """Sign errors for each axis and over all, pairs of seeds all alike ("equal") or by their certainty ("weighted")."""
    names, codes, note = _grid(data)
    rows: list[tuple[Any, ...]] = []
    columns = "measure target axis weighting mean median p90 max kept environments warnings"
    places = environments(names, codes[:, data.configuration])
    axis = np.array(places.axis, dtype=object)
    y = data.values[targets].to_numpy().T
    # Hoeffding's bound is for rates in [0, 1], so only errors are weighted.
    sizes = [data.draws[t] if "error" in data.measure[t] and data.draws[t] > 1 else None for t in targets]
    for s in range(0, len(measures), 16):
        some = measures[s : s + 16]
        x = data.values[some].to_numpy().T
        for weighting in ("equal", "weighted"):
            use = [None if weighting == "equal" else n for n in sizes]
            error, ess = environment_errors(x, y, places, test_size=use)
            for i, measure in enumerate(some):
                for j, target in enumerate(targets):
                    if measure == target or (weighting == "weighted" and sizes[j] is None):
                        continue
                    for name in (ALL, *names):
                        here = slice(None) if name == ALL else axis == name
                        least = 1.0 if weighting == "equal" else ESS
                        found = summary(error[i, j, here], ess[i, j, here], minimum_ess=least)
                        remark = ""
                        if not found.environments:
                            remark = NO_GRID if name == ALL else "no pair"
                        elif not found.kept:
                            remark = (
                                f"no environment has {ESS:g} effective pairs of seeds: at least 4 seeds are needed"
                                if weighting == "weighted"
                                else "no pair of runs in which both are finite"
                            )
                        rows.append((measure, target, name, weighting, found.mean, found.median, found.p90,
                                     found.maximum, found.kept, found.environments, _join(remark, note)))  # fmt: skip
    return pd.DataFrame(rows, columns=columns.split())


def partial_rows(
    data: Units, measures: list[str], targets: list[str], settings: Settings, *, controls: Sequence[str] | None
) -> pd.DataFrame:
    """tau_b of measure and target with one control held fixed, p from the jackknife."""
    hyper = {c.removeprefix("hp."): pd.to_numeric(data.hyper[c], errors="coerce") for c in data.hyper.columns}
    if controls is None:
        fixed = [m for m in MEASURE_CONTROLS for m in variants("controls", [m], data, strict=False)]
        varied = [h for h in HYPER_CONTROLS if h in hyper and hyper[h].nunique() > 1]
    else:
        fixed, varied = [], []
        for name in controls:
            known = name.removeprefix("hp.") if name.removeprefix("hp.") in hyper else ""
            meant = variants("controls", [name], data, strict=False) or [name] * (name in data.values.columns)
            if not (known or meant):
                raise ValueError(
                    f"`controls` names {name!r}, which is not in the table{nearest(name, [*hyper, *data.values])}"
                )
            fixed += meant
            varied += [known] if known and not meant else []
    jobs: list[tuple[str, str, list[str]]] = [(c, c, [m for m in measures if m != c]) for c in fixed]
    if controls is None:
        for kind in MATCHED:
            by_control: dict[str, list[str]] = {}
            for measure in measures:
                name = data.measure[measure]
                control = kind + measure[len(name) :]
                if name.startswith(FORGETTING) and control in data.values.columns and control != measure:
                    by_control.setdefault(control, []).append(measure)
            jobs += [(control, control, some) for control, some in by_control.items()]
    rows: list[tuple[Any, ...]] = []
    for label, column, some in jobs:
        finite = np.isfinite(data.values[column].to_numpy())
        for block in blocks(data, some, [t for t in targets if t != column]):
            runs = block.runs & finite
            x, y = data.average(block.measures, runs), data.average(block.targets, runs)
            z = data.average([column], runs)[0]
            used = np.isfinite(x[0]) & np.isfinite(y[0]) & np.isfinite(z)
            part = Block(block.measures, block.targets, x[:, used], y[:, used], used, runs)
            rows += _partial_block(part, z[used], label, settings)
    for name in varied:
        for block in blocks(data, measures, targets):
            z = hyper[name].to_numpy(dtype=np.float64)[block.used]
            known_z = np.isfinite(z)
            part = Block(
                block.measures, block.targets, block.x[:, known_z], block.y[:, known_z], block.used, block.runs
            )
            rows += _partial_block(part, z[known_z], name, settings)
    columns = "measure target control coefficient value low high p n_configurations warnings"
    return pd.DataFrame(rows, columns=columns.split())


def _partial_block(block: Block, z: Float[np.ndarray, " n"], label: str, settings: Settings) -> list[tuple[Any, ...]]:
    n, shape = len(z), (len(block.measures), len(block.targets))
    value, low, high, p = (np.full(shape, math.nan) for _ in range(4))
    if n > 3 and not constant(z):
        value, low, high, p = partial_table(block.x, block.y, z, coefficient="kendall", level=settings.level)
    rows: list[tuple[Any, ...]] = []
    for i, j, measure, target in block.pairs():
        remarks = block.remarks(i, j) + ["constant control"] * (constant(z) and n > 0)
        if 0 < n <= 3:
            remarks.append("too few configurations for a control")
        if not remarks and math.isnan(value[i, j]):
            remarks.append("the control orders the measure or the target by itself")
        ends = (low[i, j], high[i, j], p[i, j])
        if n < MINIMUM or not settings.draws:
            ends = (math.nan, math.nan, math.nan)
        elif abs(value[i, j]) > 1 - 1e-12:
            remarks.append(PERFECT)
        rows.append((measure, target, label, "kendall", value[i, j], *ends, n, _join(*remarks)))
    return rows


def multilevel_table(data: Units, measures: list[str], targets: list[str], settings: Settings) -> pd.DataFrame:
    """Slopes within and between methods (level "method", units configurations) and configurations (units runs).

    Measure and target are divided by their standard deviation over the units, so the pooled slope is Pearson's r.
    """
    rows: list[tuple[Any, ...]] = []
    draws = min(settings.permutations, SLOW_PERMUTATIONS)
    repeated = len(data.configuration) > len(data.methods)
    icc: dict[tuple[str, bytes], tuple[float, float]] = {}
    orders: dict[tuple[Any, ...], np.ndarray] = {}  # the same for all measures on the same units
    for block in blocks(data, measures, targets):
        methods = [m for m, u in zip(data.methods, block.used, strict=True) if u]
        configurations = data.configuration[block.runs].tolist()
        x_runs, y_runs = (data.columns(names, block.runs) for names in (block.measures, block.targets))
        for i, j, measure, target in block.pairs():
            key = (target, block.runs.tobytes())
            if key not in icc:
                seeds = len(configurations) / max(len(set(configurations)), 1)
                found = intraclass_correlation(y_runs[j], configurations)
                icc[key] = (found, design_effect(found, seeds) if math.isfinite(found) else math.nan)
            for level, x, y, groups in (
                ("method", block.x[i], block.y[j], methods),
                ("configuration", x_runs[i], y_runs[j], configurations),
            ):
                if level == "configuration" and not repeated:
                    continue
                rows.append((measure, target, level, *_multilevel(x, y, groups, draws, settings, orders), *icc[key],
                             _slope_remarks(x, y, groups, block.remarks(i, j), level)))  # fmt: skip
    columns = (
        "measure target level pooled within between share_within reversal se se_cr1 p_cr1 p_wild p_permutation "
        "clusters "
        "random_slope random_se icc_given_measure converged solver_notes icc_of_target design_effect warnings"
    )
    frame = pd.DataFrame(rows, columns=columns.split())
    notes = [_join(w, s) for w, s in zip(frame["warnings"], frame["solver_notes"], strict=True)]
    return frame.assign(warnings=[_join(*dict.fromkeys(n.split("; "))) for n in notes]).drop(columns="solver_notes")


def _multilevel(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    groups: Sequence[Any],
    draws: int,
    settings: Settings,
    orders: dict[tuple[Any, ...], np.ndarray],
) -> tuple[Any, ...]:
    if len(x) < 2 or constant(x):
        return (*[math.nan] * 4, False, *[math.nan] * 5, 0, *[math.nan] * 3, False, "")
    x, y = _standard(x), _standard(y)
    slopes = simpson(x, y, groups)
    number = len(set(groups))
    claim = len(x) >= MINIMUM and not constant(y) and number > 1
    few_clusters = number < FEW_CLUSTERS and claim and draws > 0
    if few_clusters and (key := tuple(groups)) not in orders:
        orders[key] = inside_orders(groups, draws=draws, generator=settings.generator(6, len(x)))
    fixed = fixed_effects(
        x, y, groups, draws=draws if few_clusters else 0, generator=settings.generator(9, len(x)),
        orders=orders[tuple(groups)] if few_clusters else None,
    )  # fmt: skip
    mixed = random_intercept(x, y, groups)
    tests = (fixed.se, fixed.se_cr1, fixed.p_cr1, fixed.p_wild, fixed.p_permutation)
    if not claim:
        tests = (math.nan,) * 5
    return (
        slopes.pooled, slopes.within, slopes.between, slopes.share, slopes.reversal, *tests, fixed.clusters,
        mixed.slope, mixed.se, mixed.icc, mixed.converged, _join(fixed.warnings if number > 1 else "", mixed.warnings),
    )  # fmt: skip


def _standard(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    top = np.abs(x).max()
    x = x / top if top > 0 else x
    spread = x.std()
    centred: Float[np.ndarray, " n"] = x - x.mean()
    return centred / spread if spread > 0 else centred


def _slope_remarks(x: np.ndarray, y: np.ndarray, groups: Sequence[Any], remarks: list[str], level: str) -> str:
    still = ["constant measure"] * constant(x) + ["constant target"] * constant(y)
    one = [f"one {level}: within it and pooled are the same"] * (len(set(groups)) == 1)
    return _join(*dict.fromkeys([*remarks, *still, *one]))


def selection_table(data: Units, measures: list[str], targets: list[str], settings: Settings) -> pd.DataFrame:
    """For each measure with several variants, the best of them on configurations that did not choose it."""
    families: dict[str, list[str]] = {}
    for name in measures:
        families.setdefault(data.measure[name], []).append(name)
    rows: list[tuple[Any, ...]] = []
    for family, names in families.items():
        if len(names) < 2:
            continue
        for target in targets:
            used = [m for m in names if m != target and data.values[m].notna().any()]
            if len(used) < 2:
                continue
            runs = data.values[[*used, target]].notna().all(axis=1).to_numpy()
            values = data.average([*used, target], runs)
            found = split_selection(
                values[:-1], values[-1], splits=SPLITS, generator=settings.generator(7, values.shape[1])
            )
            best = used[found.chosen] if found.chosen >= 0 else ""
            share = float(found.shares[found.chosen]) if found.chosen >= 0 else math.nan
            rows.append((family, target, len(used), best, found.naive, found.held_out, found.low, found.high, share,
                         found.n, found.warnings))  # fmt: skip
    columns = "measure target variants best naive held_out split_low split_high chosen_share n_configurations warnings"
    return pd.DataFrame(rows, columns=columns.split())


def prediction_table(data: Units, measures: list[str], targets: list[str], settings: Settings) -> pd.DataFrame:
    """The target of methods left out, predicted from measures, from hyper-parameters alone, and from both."""
    rows: list[tuple[Any, ...]] = []
    for target in targets:
        runs = data.values[target].notna().to_numpy()
        y = data.average([target], runs)[0]
        x = data.average(measures, np.ones(len(data.configuration), dtype=bool))
        for k, name in enumerate(measures):  # runs without one measure still have the others
            known = runs & data.values[name].notna().to_numpy()
            x[k] = data.average([name], known)[0]
        features, notes = _measure_features(x[:, np.isfinite(y)], np.isfinite(y))
        hyper = _hyper_features(data.hyper)
        sets = {"measures": (features, notes), "hyper-parameters": (hyper, ""),
                "both": (np.concatenate([features, hyper], axis=1), notes)}  # fmt: skip
        for name, (columns, note) in sets.items():
            for model in MODELS:
                found = leave_one_group_out(
                    columns, y, data.methods, model=model, draws=settings.draws, level=settings.level,
                    generator=settings.generator(8),
                )  # fmt: skip
                values = {k: v for k, v in asdict(found).items() if k not in ("predicted", "penalties", "warnings")}
                rows.append((target, name, model, columns.shape[1], *values.values(), _join(found.warnings, note)))
    columns_ = "target features model number r2 low high tau mae mae_of_mean n_configurations methods warnings"
    return pd.DataFrame(rows, columns=columns_.split())


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
    return out, _join(
        f"{lost} measures missing in more than a tenth are left out" if lost else "",
        f"{int(wide.sum())} measures on a log scale" if wide.any() else "",
    )


def _hyper_features(hyper: pd.DataFrame) -> Float[np.ndarray, "c f"]:
    """Hyper-parameters that vary: numbers as they are, missing ones 0 with an indicator, names as indicators."""
    found: list[np.ndarray] = []
    for name in hyper.columns:
        number = pd.to_numeric(hyper[name], errors="coerce").to_numpy(dtype=np.float64)
        text = hyper[name].isna().to_numpy()
        if np.isfinite(number).any() and (np.isfinite(number) | text).all():
            found.append(np.where(np.isfinite(number), number, 0.0))
            found.append(text.astype(np.float64))
        else:
            codes, labels = pd.factorize(hyper[name].map(str))
            found += [(codes == k).astype(np.float64) for k in range(min(len(labels), MAXIMUM_LEVELS))]
    kept = [f for f in found if not constant(f)]
    return np.stack(kept, axis=1) if kept else np.zeros((len(hyper), 0))


def power_table(data: Units, correlations: pd.DataFrame) -> pd.DataFrame:
    """For each tau_b: what these configurations can show, and how many the observed value would need."""
    kendall = correlations[correlations["coefficient"] == "kendall"]
    icc = {
        t: intraclass_correlation(data.values[t].to_numpy(), data.configuration.tolist())
        for t in kendall["target"].unique()
    }
    rows: list[tuple[Any, ...]] = []
    columns_used = ("measure", "target", "value", "n_configurations", "n_runs", "warnings")
    for measure, target, value, n, runs, warned in zip(*(kendall[c].tolist() for c in columns_used), strict=True):
        seeds = runs / n if n else math.nan
        known = math.isfinite(value) and 1e-6 < abs(value) < 1 - 1e-9
        needed = required_models(value, coefficient="kendall") if known else math.nan
        shown = power(value, n, coefficient="kendall") if math.isfinite(value) and abs(value) < 1 - 1e-9 else math.nan
        effect = design_effect(icc[target], seeds) if n and math.isfinite(icc[target]) else math.nan
        notes = [str(warned)]
        if known:
            notes.append(
                "at the observed value, which is itself uncertain: plan with the end of the interval nearer to 0"
            )
        rows.append((measure, target, value, n, smallest_effect(n), shown, needed, icc[target], effect,
                     needed * effect, _join(*notes)))  # fmt: skip
    columns = (
        "measure target value n_configurations smallest_effect power required_configurations icc design_effect "
        "required_runs warnings"
    )
    return pd.DataFrame(rows, columns=columns.split())
