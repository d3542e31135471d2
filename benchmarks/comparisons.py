"""What share of the intervals of a paired difference of |tau| covers the truth: the table of docs/statistics.md.

`python -m benchmarks.comparisons --samples 300`
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import kendalltau

from analysis.statistics.comparison import PairedDifference, paired_difference

CELLS, METHODS, DRAWS = 4, 7, 4  # of the default study
LARGE = 4000  # models of a population in which the truth is found
INTERVALS = {  # of a difference: its heading, what it is about, its ends
    "\\|.\\|": ("difference", "low", "high"),
    "\\|.\\|, draws": ("difference", "low_draws", "high_draws"),
    "signed": ("signed", "signed_low", "signed_high"),
}


@dataclass(frozen=True)
class World:
    """How models, and what is measured of them, come about.

    Attributes:
        first: Correlation of the first measure's true value with the target's, inside cells.
        second: Likewise of the second measure.
        method: Share of the variance that goes with the method, in the measures and in the target.
        cell: How far the cells lie apart, in deviations inside a cell, in the target; the second measure goes the
            other way.
        slope: Deviation, over draws of the data, of how much of the first measure is in the target.
        noise: Deviation of a single run.
    """

    first: float
    second: float
    method: float = 0.0
    cell: float = 0.0
    slope: float = 0.0
    noise: float = 0.5

    def models(
        self, methods: int, rng: np.random.Generator, draws: int = DRAWS
    ) -> tuple[Float[np.ndarray, "v n k"], Int[np.ndarray, " n"]]:
        """First, second and target of each model (method and cell) and draw of the data, and the models' cells."""
        c, m = np.repeat(np.arange(CELLS), methods), np.tile(np.arange(methods), CELLS)
        rest = 1 - self.first**2 - self.second**2
        of_method, own = rng.standard_normal((3, methods)), rng.standard_normal((3, len(c)))
        latent = np.sqrt(self.method) * of_method[:, m] + np.sqrt(1 - self.method) * own
        a, b = latent[0], latent[1]
        y = self.first * a + self.second * b + np.sqrt(rest) * latent[2]
        level = self.cell * (c - c.mean())
        values = np.stack([a, b - level, y + level])[..., None] + self.noise * rng.standard_normal((3, len(c), draws))
        values[2] += self.slope * rng.standard_normal(draws) * a[:, None]
        return values, c


@cache
def truth(world: World, kind: str) -> dict[str, float]:
    """The differences in a large population, in the mean over draws of the data."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(60):
        values, cells = world.models(LARGE // CELLS, rng)
        x, z, y = values.mean(axis=2)
        groups = [np.arange(len(cells))] if kind == "pooled" else [np.flatnonzero(cells == c) for c in range(CELLS)]
        found.append([np.mean([kendalltau(v[g], y[g])[0] for g in groups]) for v in (x, z)])
    a, b = np.mean(found, axis=0)
    return {"first": a, "second": b, "difference": abs(a) - abs(b), "signed": a - b}


def covered(world: World, kind: str, *, samples: int, methods: int = METHODS, draws: int = 600) -> dict[str, float]:
    """Share of samples whose 95 % interval holds the truth, by `INTERVALS`."""
    rng = np.random.default_rng(0)
    true = truth(world, kind)
    held = dict.fromkeys(INTERVALS, 0)
    for _ in range(samples):
        found = sample(world, kind, methods, draws, rng)
        for name, (what, low, high) in INTERVALS.items():
            held[name] += int(getattr(found, low) <= true[what] <= getattr(found, high))
    return {name: count / samples for name, count in held.items()}


def sample(world: World, kind: str, methods: int, draws: int, rng: np.random.Generator) -> PairedDifference:
    """The difference in one study."""
    values, cells = world.models(methods, rng)
    return paired_difference(
        *values, cells=None if kind == "pooled" else cells, draw_of=np.arange(DRAWS), signs=(1, 1), draws=draws,
        generator=rng,
    )  # fmt: skip


WORLDS = {
    "both 0.6": World(0.6, 0.6),
    "0.8 and 0.3": World(0.8, 0.3),
    "0.3 and 0": World(0.3, 0.0),
    "0 and 0": World(0.0, 0.0),
    "0.6 and 0.3": World(0.6, 0.3),
    "0.6 and 0.3, slopes by draw": World(0.6, 0.3, slope=0.4),
    "0.6 and 0.3, methods 0.2": World(0.6, 0.3, method=0.2),
    "0.6 and 0.3, methods 0.5": World(0.6, 0.3, method=0.5),
    "0 and 0, methods 0.5": World(0.0, 0.0, method=0.5),
    "0.6 and 0.6, cells apart": World(0.6, 0.6, cell=1.0),
}


SIZES = (("0.6 and 0.3", 3), ("0.6 and 0.3", 12), ("0.3 and 0", 25))  # of methods


def lines(samples: int) -> Iterator[str]:
    """The rows of the table."""
    for name, methods in (*((name, METHODS) for name in WORLDS), *SIZES):
        world = WORLDS[name]
        for kind in ("pooled", "stratified"):
            true = truth(world, kind)
            found = covered(world, kind, samples=samples, methods=methods)
            cells = " | ".join(f"{100 * found[key]:.1f}" for key in INTERVALS)
            yield f"| {name} | {methods} | {kind} | {true['first']:.2f}, {true['second']:.2f} | {cells} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comparisons", description=__doc__)
    parser.add_argument("--samples", type=int, default=300)
    asked = parser.parse_args()
    print("| correlations of the true values | methods | pairs | tau | " + " | ".join(INTERVALS) + " |")
    print("|---|---|---|---|" + "---|" * len(INTERVALS))
    for line in lines(asked.samples):
        print(line)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
