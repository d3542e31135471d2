"""Slopes within and between groups, for every measure and target: methods of configurations, configurations of runs."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from analysis.statistics.evidence import SLOW_PERMUTATIONS, Evidence, Rows, Settings, constant, joined
from analysis.statistics.mixed import intraclass_correlation, random_intercept
from analysis.statistics.orders import Orders, orders_inside
from analysis.statistics.power import design_effect
from analysis.statistics.resampling import MINIMUM
from analysis.statistics.slopes import FEW_CLUSTERS, fixed_effects, labels, simpson
from analysis.statistics.statistic import WITHIN, Cell, Statistic, chance, number, whole

Shared = dict[tuple[Any, ...], Orders]  # of units inside their groups, the same for all measures on the same units


def table(evidence: Evidence) -> Rows:
    """Slopes within and between methods (level "method", units configurations) and configurations (units runs).

    Measure and target are divided by their standard deviation over the units, so the pooled slope is Pearson's r.
    """
    data, rows = evidence.data, []
    repeated = len(data.configuration) > len(data.methods)
    icc: dict[tuple[str, bytes], tuple[float, float]] = {}
    orders: Shared = {}
    for block in evidence.blocks():
        methods = [m for m, u in zip(data.methods, block.used, strict=True) if u]
        configurations = data.configuration[block.runs].tolist()
        x_runs, y_runs = (data.columns(names, block.runs) for names in (block.measures, block.targets))
        for i, j, measure, target in block.pairs():
            key = (target, block.runs.tobytes())
            if key not in icc:
                seeds = len(configurations) / max(len(set(configurations)), 1)
                found = intraclass_correlation(y_runs[j], configurations)
                icc[key] = (found, design_effect(found, seeds) if math.isfinite(found) else math.nan)
            levels = [("method", block.x[i], block.y[j], methods)]
            levels += [("configuration", x_runs[i], y_runs[j], configurations)] * repeated
            for level, x, y, groups in levels:
                *values, said = _slopes(x, y, groups, evidence.settings, orders)
                still = ["constant measure"] * constant(x) + ["constant target"] * constant(y) if len(x) else []
                one = [f"one {level}: within it and pooled are the same"] * (len(set(groups)) == 1)
                notes = "; ".join(filter(None, (*dict.fromkeys([*block.remarks(i, j), *still, *one]), said)))
                rows.append((measure, target, level, *values, *icc[key], joined(*dict.fromkeys(notes.split("; ")))))
    return rows


def _slopes(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], groups: Sequence[Any], settings: Settings, orders: Shared
) -> tuple[Any, ...]:
    """The columns from `pooled` to `converged`, and what is to be said of them."""
    if len(x) < 2 or constant(x):
        return (*[math.nan] * 4, False, *[math.nan] * 5, 0, *[math.nan] * 3, False, "")
    x, y = _standard(x), _standard(y)
    slopes = simpson(x, y, groups)
    number_of_groups = len(set(groups))
    claim = len(x) >= MINIMUM and not constant(y) and number_of_groups > 1
    draws = min(settings.permutations, SLOW_PERMUTATIONS) if number_of_groups < FEW_CLUSTERS and claim else 0
    if draws and (key := tuple(groups)) not in orders:
        orders[key] = orders_inside(labels(groups), count=draws, generator=settings.generator(6, len(x)))
    fixed = fixed_effects(
        x, y, groups, draws=draws, generator=settings.generator(9, len(x)),
        orders=orders[tuple(groups)] if draws else None,
    )  # fmt: skip
    mixed = random_intercept(x, y, groups)
    tests = (fixed.se, fixed.se_cr1, fixed.p_cr1, fixed.p_wild, fixed.p_permutation) if claim else (math.nan,) * 5
    said = joined(fixed.warnings if number_of_groups > 1 else "", mixed.warnings)
    return (
        slopes.pooled, slopes.within, slopes.between, slopes.share, slopes.reversal, *tests, fixed.clusters,
        mixed.slope, mixed.se, mixed.icc, mixed.converged, said,
    )  # fmt: skip


def _standard(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    top = np.abs(x).max()
    x = x / top if top > 0 else x
    spread = x.std()
    centred: Float[np.ndarray, " n"] = x - x.mean()
    return centred / spread if spread > 0 else centred


STATISTIC = Statistic(
    name="multilevel",
    columns=(
        "measure target level pooled within between share_within reversal se se_cr1 p_cr1 p_wild p_permutation "
        "clusters random_slope random_se icc_given_measure converged icc_of_target design_effect warnings"
    ),
    table=table,
    title="Within and between groups",
    note=(
        "Slope of `{target}` on the measure, both in standard deviations, so that the pooled slope is Pearson's r: "
        "within methods (over configurations) and within configurations (over runs). ⇄: the slope within has "
        "another sign than the pooled one, or than that between. p: permutations within the groups, if there are few."
    ),
    shown={
        "Groups": Cell(("level",), "{}s".format),
        "Pooled": number("pooled"),
        **WITHIN,
        "± s.e.": number("se"),
        "Between": number("between"),
        "Random intercept": number("random_slope"),
        "p (permuted)": chance("p_permutation"),
        "Clusters": whole("clusters"),
    },
    words=("Groups",),
)
