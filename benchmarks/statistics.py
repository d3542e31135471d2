"""Statistics: seconds of `correlate` on many models, and what share of the intervals covers the truth.

The first is a part of `python -m benchmarks`. The second, slow, prints the table of docs/statistics.md:
`python -m benchmarks.statistics --coverage`.
"""

import argparse
import math
import resource
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from analysis.statistics.ceiling import COEFFICIENTS
from analysis.statistics.correlation import correlate
from analysis.statistics.intervals import (
    INTERVALS,
    bca_interval,
    freedom_of,
    jackknife_error,
    leave_one_out,
    stabilised_interval,
)
from analysis.statistics.kendall import weighted_kendall
from analysis.statistics.resampling import bootstrap_counts, percentile_interval, weighted_pearson, weighted_spearman

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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.statistics", description=__doc__)
    parser.add_argument("--coverage", action="store_true", help="the table of coverage instead of the speed")
    parser.add_argument("--samples", type=int, default=2000)
    asked = parser.parse_args()
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
