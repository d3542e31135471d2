"""Rank correlations given controls, and what a measure adds to them: coverage and false positives in made studies.

`python -m benchmarks.baselines --samples 400` prints the tables of docs/statistics.md.
"""

import argparse
import math
from collections.abc import Iterator
from itertools import chain

import numpy as np
from jaxtyping import Float, Int

from analysis.statistics.partial import given, partials
from analysis.statistics.prediction import gain_over

DESIGNS = ((28, 4, 0), (28, 7, 0), (28, 1, 1), (28, 1, 5), (28, 4, 1), (28, 4, 5), (56, 12, 0), (56, 4, 5))
LARGE = 200  # of a design, for the truth
METHODS, PERMUTATIONS = 7, 999


def models(
    rng: np.random.Generator, n: int, cells: int, controls: int, r: float, *, method: float = 0.0
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, "k n"], Int[np.ndarray, " n"]]:
    """Measure, target, controls and cells: both hold the controls and, with opposite signs, the level of the cell.

    What is left of them is normal with correlation r; a share `method` of the variance of what is left of each, and
    independent of the other, goes with the method.
    """
    z = rng.normal(size=(controls, n))
    shared = z.sum(axis=0) / math.sqrt(max(controls, 1))
    cell = np.arange(n) % cells
    level = 1.5 * np.linspace(-1, 1, cells)[cell] if cells > 1 else np.zeros(n)
    left = rng.normal(size=(2, n))
    left[1] = r * left[0] + math.sqrt(1 - r**2) * left[1]
    of_method = np.arange(n) // cells % METHODS
    left = math.sqrt(1 - method) * left + math.sqrt(method) * rng.normal(size=(2, METHODS))[:, of_method]
    return shared + level + left[0], shared - level + left[1], z, cell


def truth(n: int, cells: int, controls: int, r: float) -> float:
    """The coefficient in very many models; in strata that of the normal distribution."""
    if not controls:
        return 2 / math.pi * math.asin(r)
    x, y, z, cell = models(np.random.default_rng(1), n * LARGE, cells, controls, r)
    held = given(z, cell[None].astype(float), np.ones(len(x), dtype=bool))
    a, b = x[None], y[None]
    return float(partials(a, b, held, 0.95, 0, np.random.default_rng(0), interval=False)[0][0, 0])


def coverage(samples: int) -> Iterator[str]:
    """For each design the share of 95 % intervals that hold the truth, and of p-values below 0.05 at r = 0."""
    yield "| configurations | cells | ranked controls | r = 0 | 0.4 | 0.8 | p < 0.05 at 0 | with method effects |"
    yield "|---|---|---|---|---|---|---|---|"
    for n, cells, controls in DESIGNS:
        shares = []
        for r in (0.0, 0.4, 0.8):
            true, rng, held_truth = truth(n, cells, controls, r), np.random.default_rng(2), 0
            for _ in range(samples):
                _, low, high, _ = _one(rng, n, cells, controls, r)
                held_truth += low <= true <= high
            shares.append(held_truth / samples)
        for method in (0.0, 0.2):
            rng = np.random.default_rng(3)
            found = [
                _one(rng, n, cells, controls, 0.0, method=method, permutations=PERMUTATIONS)[3] for _ in range(samples)
            ]
            shares.append(float(np.mean(np.array(found) < 0.05)))
        yield f"| {n} | {cells} | {controls} | " + " | ".join(f"{100 * s:.1f}" for s in shares) + " |"


def _one(
    rng: np.random.Generator, n: int, cells: int, controls: int, r: float, *, method: float = 0.0, permutations: int = 0
) -> tuple[float, ...]:
    x, y, z, cell = models(rng, n, cells, controls, r, method=method)
    held = given(z, cell[None].astype(float), np.ones(n, dtype=bool))
    found = partials(x[None], y[None], held, 0.95, permutations, rng, interval=not permutations)
    return tuple(float(v[0, 0]) for v in found[:4])


def gains(samples: int) -> Iterator[str]:
    """How often the gain's interval lies above 0, for a measure that is noise and for one that is not."""
    yield "| methods | method effects | measure | interval above 0 | mean gain |"
    yield "|---|---|---|---|---|"
    for methods in (4, 7):
        for method in (0.0, 0.2):
            for weight in (0.0, 0.5):
                rng, above, mean = np.random.default_rng(4), 0, 0.0
                group = np.repeat(np.arange(methods), 4)
                for _ in range(samples):
                    base, extra = rng.normal(size=(4 * methods, 3)), rng.normal(size=4 * methods)
                    effects = rng.normal(size=(2, methods))[:, group] * math.sqrt(method)
                    left = math.sqrt(1 - method) * rng.normal(size=4 * methods)
                    y = base[:, 0] + weight * extra + 0.7 * (left + effects[0])
                    measure = math.sqrt(1 - method) * extra + effects[1]
                    found = gain_over(base, measure[None], y, group.tolist())
                    above += int(found.low[0] > 0)
                    mean += float(found.gain[0]) / samples
                kind = "noise" if weight == 0 else "half of a deviation"
                yield f"| {methods} | {method:g} | {kind} | {100 * above / samples:.1f} | {mean:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.baselines", description=__doc__)
    parser.add_argument("--samples", type=int, default=400)
    samples = parser.parse_args().samples
    for line in chain(gains(samples), [""], coverage(samples)):
        print(line, flush=True)


if __name__ == "__main__":
    main()
