"""Statistics: seconds of `correlate` on many models, and what share of the intervals covers the truth.

The first is a part of `python -m benchmarks`. The others, slow, print tables of docs/statistics.md: `python -m
benchmarks.statistics --coverage` of pooled coefficients, `--strata` of those inside cells, `--effects` with effects of
methods and cells, `--families` the share of families of null measures in which anything is claimed.
"""

import argparse
import math
import resource
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from analysis.statistics.ceiling import COEFFICIENTS
from analysis.statistics.coefficients import LeftOut, interval_over, whole_interval
from analysis.statistics.correlation import correlate
from analysis.statistics.crossed import Crossed
from analysis.statistics.evidence import Settings
from analysis.statistics.exchangeability import moved_pooled, moved_stratified
from analysis.statistics.intervals import (
    INTERVALS,
    bca_interval,
    freedom_of,
    jackknife_error,
    leave_one_out,
    stabilised_interval,
)
from analysis.statistics.kendall import weighted_kendall
from analysis.statistics.max_t import Seen, step_down
from analysis.statistics.orders import Orders, free_orders
from analysis.statistics.resampling import (
    bootstrap_counts,
    holm,
    mid_ranks,
    percentile_interval,
    weighted_pearson,
    weighted_spearman,
)
from analysis.statistics.strata import Strata, stratified_kendall, stratified_leave_one_out

LIMIT = 60.0
METHODS = ("sgd", "sam", "asam", "gsam", "obf", "randsam")
TARGETS = ("test_error", "gap_error", "gap_loss", "ood_error_mean")
RESAMPLED = {"kendall": weighted_kendall, "spearman": weighted_spearman, "pearson": weighted_pearson}


def models(configurations: int, *, seeds: int, measures: int) -> pd.DataFrame:
    """A long measures table of a grid of methods, learning rates and weight decays."""
    rng = np.random.default_rng(0)
    c, s = np.repeat(np.arange(configurations), seeds), np.tile(np.arange(seeds), configurations)
    level = rng.normal(size=configurations)[c]
    columns = {f"measure{k}": level + rng.normal(size=len(c)) for k in range(measures)}
    columns |= {t: np.round(0.3 + 0.05 * level + 0.05 * rng.normal(size=len(c)), 4) for t in TARGETS}
    run = np.array([f"run{i}" for i in range(len(c))])
    long = pd.DataFrame({**columns, "run_id": run}).melt("run_id", var_name="measure", value_name="value")
    long = long.assign(step=1, epoch=1, options="{}", stderr=0.0, draws=1000, converged=True, warnings="")
    long["split"] = np.where(long["measure"].isin(TARGETS), "test", "train")
    hyper = {"hp.method": np.array(METHODS)[c % 6], "hp.lr": 0.1 * (c // 6 % 5), "hp.weight_decay": c // 30 % 4}
    return long.merge(pd.DataFrame({"run_id": run, **hyper, "hp.batch_size": c // 120, "hp.seed": s}), on="run_id")


def run() -> Iterator[dict[str, Any]]:
    """Seconds and memory of `correlate` with all its tables: 1,000 models, 60 measures, 2,000 resamples."""
    for configurations, seeds, interval in ((334, 3, "stabilised"), (1000, 1, "stabilised"), (1000, 1, "bca")):
        table = models(configurations, seeds=seeds, measures=60)
        start = time.perf_counter()
        correlate(table, draws=2000, interval=interval)
        spent = time.perf_counter() - start
        yield {
            "what": f"correlate, {configurations} configurations x {seeds} seeds, 60 measures, 4 targets, {interval}",
            "value": spent, "unit": "s", "limit": LIMIT,
        }  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    yield {"what": "peak memory of the process", "value": peak, "unit": "GiB", "limit": 2.0}


def truth(coefficient: str, r: float) -> float:
    """The coefficient of a bivariate normal distribution with Pearson's r."""
    of_r = {"kendall": 2 / math.pi * math.asin(r), "spearman": 6 / math.pi * math.asin(r / 2), "pearson": r}
    return of_r[coefficient]


def coverage(
    coefficient: str, n: int, r: float, *, samples: int = 1000, seeds: int = 3, draws: int = 1000, seed: int = 0,
    kinds: tuple[str, ...] = INTERVALS,
) -> dict[str, float]:  # fmt: skip
    """Share of samples of n configurations whose 95 % interval holds the true coefficient of the seed means.

    Each configuration has a true measure and target and `seeds` runs with noise half as wide; the correlation of the
    seed means is r.
    """
    rng = np.random.default_rng(seed)
    noise = 0.25 / seeds
    true = r * (1 + noise)
    a, b = rng.standard_normal((2, samples, n))
    b = true * a + math.sqrt(max(1 - true**2, 0.0)) * b
    x, y = ((v[..., None] + 0.5 * rng.standard_normal((samples, n, seeds))).mean(axis=2) for v in (a, b))
    held = dict.fromkeys(kinds, 0)
    value = truth(coefficient, r)
    once = np.ones((1, n), dtype=np.int64)
    for u, v in zip(x, y, strict=True):
        found = RESAMPLED[coefficient](u[None], v[None], once)[0, 0, 0]
        left_out = leave_one_out(coefficient, u[None], v[None])[0, 0]
        drawn = None
        if set(kinds) - {"stabilised"}:
            counts = bootstrap_counts(n, draws=draws, generator=rng)
            drawn = RESAMPLED[coefficient](u[None], v[None], counts)[0, 0]
        for kind in kinds:
            if kind == "stabilised":
                ends = stabilised_interval(found, jackknife_error(left_out), freedom=freedom_of(coefficient, n))
            elif kind == "bca":
                ends = bca_interval(drawn, found, left_out)
            else:
                ends = percentile_interval(drawn)
            held[kind] += int(ends[0] <= value <= ends[1])
    return {kind: count / samples for kind, count in held.items()}


def pair(n: int, tau: float, rng: np.random.Generator) -> np.ndarray:
    """Two normal rows of n values with a true tau."""
    r = math.sin(math.pi * tau / 2)
    a, b = rng.standard_normal((2, n))
    return np.stack([a, r * a + math.sqrt(1 - r * r) * b])


def strata(cells: int, size: int, tau: float, *, ties: bool, samples: int, draws: int = 400) -> dict[str, float]:
    """Share of samples whose 95 % interval of the stratified tau_b holds the true one.

    The jackknife leaves out one configuration at a time, with its deviations from the mean over all, or over the cell;
    the bootstrap draws configurations inside cells. Ties are in the target, rounded to two thirds of its deviation.
    """
    rng = np.random.default_rng(0)

    def rounded(y: np.ndarray) -> np.ndarray:
        return np.round(1.5 * y) if ties else y

    true = tau
    if ties:
        true = float(
            np.mean([kendalltau(a, rounded(b)).statistic for a, b in (pair(20_000, tau, rng) for _ in "12345")])
        )
    n, labels = cells * size, np.repeat(np.arange(cells), size)
    inside = Strata.of(labels)
    held = dict.fromkeys(("jackknife", "jackknife in cells", "bootstrap in cells"), 0)
    for _ in range(samples):
        x, y = pair(n, tau, rng)
        x, y = (x + 3 * rng.standard_normal(cells)[labels])[None], rounded(y)[None]
        found, left = stratified_kendall(x, y, inside)[0, 0, 0], stratified_leave_one_out(x, y, inside)[0, 0]
        own = left.reshape(cells, size)
        error = math.sqrt((size - 1) / size * ((own - own.mean(axis=1, keepdims=True)) ** 2).sum())
        counts = [bootstrap_counts(size, draws=draws, generator=rng) for _ in range(cells)]
        ends = {
            "jackknife": stabilised_interval(found, jackknife_error(left)),
            "jackknife in cells": stabilised_interval(found, np.array(error)),
            "bootstrap in cells": percentile_interval(stratified_kendall(x, y, inside, np.hstack(counts))[0, 0]),
        }
        for kind, (low, high) in ends.items():
            held[kind] += int(low <= true <= high)
    return {kind: count / samples for kind, count in held.items()}


SETTINGS = Settings(draws=400, permutations=499, level=0.95, seed=0)


def sample(
    labels: dict[str, np.ndarray], shares: dict[str, float], tau: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A measure and a target of a true tau, in which groups have effects with given shares of the variance."""
    own = math.sqrt(1 - sum(shares.values())) * pair(len(labels["cells"]), tau, rng)
    for name, share in shares.items():
        own = own + math.sqrt(share) * pair(int(labels[name].max()) + 1, tau, rng)[:, labels[name]]
    return own[:1], own[1:]


def crossed(methods: int, settings: int, cells: int) -> dict[str, np.ndarray]:
    """Every setting of every method in every cell."""
    variants, cell = np.tile(np.arange(methods * settings), cells), np.repeat(np.arange(cells), methods * settings)
    return {"methods": variants // settings, "variants": variants, "cells": cell}


def effects(
    methods: int, cells: int, of_methods: float, of_cells: float, tau: float, *, samples: int
) -> dict[str, float]:
    """Coverage, and false positives (FP) where tau is 0, of pooled tau_b, with effects of methods and cells in both.

    `chosen` is what `correlate` does: over cells and methods where both intraclass correlations over cells are above
    0.1, else over methods where those over methods are.
    """
    rng = np.random.default_rng(0)
    labels = crossed(methods, 1, cells)
    n, by_method, by_cell = methods * cells, labels["methods"], labels["cells"]
    orders = free_orders(n, count=499, generator=rng)
    units = (
        LeftOut.configurations(n, SETTINGS), LeftOut.groups([by_method], SETTINGS),
        LeftOut.groups([by_cell, by_method], SETTINGS),
    )  # fmt: skip
    ways: tuple[dict[str, Any], ...] = (
        {}, {"groups": by_method}, {"whole": Crossed.of(by_cell, labels["variants"], move_cells=True)},
    )  # fmt: skip
    held, positive = np.zeros(4), np.zeros(4)
    for _ in range(samples):
        x, y = sample(labels, {"methods": of_methods, "cells": of_cells}, tau, rng)
        value = weighted_kendall(x, y, np.ones((1, n), dtype=np.int64))[:, :, 0]
        chosen = int(moved_pooled(mid_ranks(x), mid_ranks(y), by_method, by_cell)[0, 0])
        ends = [interval_over("kendall", x, y, value, by, SETTINGS)[0] for by in units]
        inside = [float(low[0, 0]) <= tau <= float(high[0, 0]) for low, high in ends]
        held += [*inside, inside[chosen]]
        if tau == 0:
            found = [false_positive(x, y[0], orders, **way) for way in ways]
            positive += [*found, found[chosen]]
    return named_shares(("freely", "by methods", "by cells", "chosen"), held, positive, samples, tau)


def effects_inside(
    methods: int, settings: int, cells: int, of_methods: float, tau: float, *, samples: int
) -> dict[str, float]:
    """The same of stratified tau_b, with effects of methods that have several settings in each cell."""
    rng = np.random.default_rng(0)
    labels = crossed(methods, settings, cells)
    by_method, variants, cell = labels.values()
    strata = Strata.of(cell, variants)
    orders = free_orders(len(cell), count=499, generator=rng)
    ways: tuple[dict[str, Any], ...] = (
        {"groups": cell},
        {"whole": Crossed.of(cell, variants)},
        {"whole": Crossed.of(cell, variants, methods=by_method)},
    )  # fmt: skip
    held, positive = np.zeros(4), np.zeros(4)
    for _ in range(samples):
        x, y = sample(labels, {"methods": of_methods}, tau, rng)
        value = stratified_kendall(x, y, strata)[:, :, 0]
        chosen = int(moved_stratified(x, y, strata, by_method)[0, 0])
        counts = strata.resampled(len(cell), lambda k, _: bootstrap_counts(k, draws=400, generator=rng))
        ends = [
            percentile_interval(stratified_kendall(x, y, strata, counts)),
            *(whole_interval(value, x, y, strata, each, level=0.95) for each in (variants, by_method)),
        ]
        inside = [float(low[0, 0]) <= tau <= float(high[0, 0]) for low, high in ends]
        held += [*inside, inside[chosen]]
        if tau == 0:
            found = [false_positive(x, y[0], orders, cells=cell, **way) for way in ways]
            positive += [*found, found[chosen]]
    return named_shares(("in cells", "variants", "methods", "chosen"), held, positive, samples, tau)


def named_shares(
    names: tuple[str, ...], held: np.ndarray, positive: np.ndarray, samples: int, tau: float
) -> dict[str, float]:
    """Coverage and false positives as shares; without a null there are no false positives."""
    shares = positive / samples if tau == 0 else np.full(len(names), np.nan)
    return dict(zip(names, held / samples, strict=True)) | {f"FP {k}": v for k, v in zip(names, shares, strict=True)}


def false_positive(
    x: np.ndarray, y: np.ndarray, orders: Orders, *, cells: np.ndarray | None = None, **moved: Any
) -> int:
    """1 where a null measure has p <= 0.05."""
    seen = [Seen(np.arange(1), x, y, np.ones(len(y), dtype=bool), **moved)]
    return int(step_down("kendall", seen, orders, candidates=np.ones(1, dtype=bool), cells=cells).p[0] <= 0.05)


def claims(measures: int, alike: float, *, samples: int, n: int = 28) -> dict[str, float]:
    """Share of families of null measures, with a given correlation between them, in which p < 0.05 is found."""
    rng = np.random.default_rng(0)
    found = {"uncorrected": 0, "max-T": 0, "holm": 0}
    for _ in range(samples):
        x = math.sqrt(alike) * rng.standard_normal((1, n)) + math.sqrt(1 - alike) * rng.standard_normal((measures, n))
        seen = [Seen(np.arange(measures), x, rng.standard_normal(n), np.ones(n, dtype=bool))]
        orders = free_orders(n, count=499, generator=rng)
        values = step_down("kendall", seen, orders, candidates=np.ones(measures, dtype=bool))
        smallest = {"uncorrected": values.p.min(), "max-T": values.adjusted.min(), "holm": holm(values.p).min()}
        for kind, p in smallest.items():
            found[kind] += int(p <= 0.05)
    return {kind: count / samples for kind, count in found.items()}


def table_of(keys: tuple[str, ...], cases: Iterator[tuple[tuple[Any, ...], dict[str, float]]]) -> None:
    """Print a table of shares, in percent, as its rows are found."""
    for k, (case, shares) in enumerate(cases):
        if not k:
            print("| " + " | ".join([*keys, *shares]) + " |\n" + "|---" * (len(keys) + len(shares)) + "|")
        print(
            "| "
            + " | ".join([*map(str, case), *("–" if math.isnan(s) else f"{100 * s:.1f}" for s in shares.values())])
            + " |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.statistics", description=__doc__)
    parser.add_argument("--coverage", action="store_true", help="the table of coverage instead of the speed")
    parser.add_argument("--strata", action="store_true", help="coverage of stratified tau_b")
    parser.add_argument(
        "--effects", action="store_true", help="coverage and false positives with effects of methods and cells"
    )
    parser.add_argument("--families", action="store_true", help="false claims in families of measures")
    parser.add_argument("--samples", type=int, default=2000)
    asked = parser.parse_args()
    samples = asked.samples
    if asked.strata:
        sizes = ((4, 4), (4, 7), (4, 12), (12, 4), (12, 12))
        each = ((c, k, tau, ties) for c, k in sizes for tau in (0.0, 0.4, 0.8) for ties in (False, True))
        cases = (((c, k, t, "yes" if b else "no"), strata(c, k, t, ties=b, samples=samples)) for c, k, t, b in each)
        table_of(("cells", "of", "tau", "ties"), cases)
    if asked.effects:
        shares = ((0.0, 0.0), (0.2, 0.0), (0.5, 0.0), (0.0, 0.2), (0.0, 0.5), (0.2, 0.2), (0.3, 0.5))
        pooled = ((g, k, *share, tau) for g, k in ((7, 4), (6, 8)) for share in shares for tau in (0.0, 0.4))
        keys = ("methods", "cells", "of methods", "of cells", "tau")
        table_of(keys, (((*case,), effects(*case, samples=samples)) for case in pooled))
        sizes = ((7, 1, 4), (6, 1, 8), (6, 3, 4), (3, 6, 4))
        inside = ((*size, share, tau) for size in sizes for share in (0.0, 0.2, 0.5) for tau in (0.0, 0.4))
        keys = ("methods", "settings", "cells", "of methods", "tau")
        table_of(keys, (((*case,), effects_inside(*case, samples=samples)) for case in inside))
    if asked.families:
        families = ((m, alike) for m in (20, 350) for alike in (0.0, 0.8))
        table_of(("measures", "correlation"), ((case, claims(*case, samples=samples)) for case in families))
    if asked.strata or asked.effects or asked.families:
        return
    if not asked.coverage:
        for row in run():
            print(f"{row['what']}: {row['value']:.1f} {row['unit']} (limit {row['limit']:g})", flush=True)
        return
    print("| coefficient | n | r | " + " | ".join(INTERVALS) + " |")
    print("|---|---|---|" + "---|" * len(INTERVALS))
    for coefficient in COEFFICIENTS:
        for n in (24, 48, 100):
            for r in (0.0, 0.4, 0.8):
                found = coverage(coefficient, n, r, samples=asked.samples)
                cells = " | ".join(f"{100 * found[kind]:.1f}" for kind in INTERVALS)
                print(f"| {coefficient} | {n} | {r:g} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
