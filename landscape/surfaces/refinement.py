"""Coarse to fine: evaluate where the surface bends, and interpolate where it does not."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from landscape.risk import EmpiricalRisk
from landscape.surfaces.axes import Axes
from landscape.surfaces.grid import Grid
from landscape.surfaces.scan import assemble
from landscape.surfaces.scanner import Metrics, Scanner
from landscape.surfaces.surface import Surface

Cells = NDArray[np.int64]  # (m, axes, 2): for each axis, the numbers of a cell's first and last coordinate
Places = tuple[NDArray[np.int64], ...]  # m points, by axis

ROUNDING = 1e-9
CHECKS = 8  # interpolated points that are evaluated after all, where the estimated error is largest


def refined(
    risks: EmpiricalRisk | Mapping[str, EmpiricalRisk],
    axes: Axes,
    grid: Grid,
    *,
    levels: int = 3,
    tolerance: float = 0.01,
    judge: Sequence[str] | None = None,
    ceiling: float = math.inf,
    metrics: Metrics | None = None,
    calibration: Any = None,
    batch_points: int | Literal["auto"] = "auto",
    progress: Callable[[int, int], None] | None = None,
    context: Mapping[str, Any] | None = None,
) -> Surface:
    """Scan every 2^levels-th point, then only the cells in which the surface bends, and interpolate in the others.

    A cell is halved along its axes while interpolating in it could be off by more than `tolerance` times the range of
    values. The error of linear interpolation between points w apart is at most w² |f''| / 8; f'' comes from the second
    divided differences at the cell's corners with their neighbours, and the axes' errors are added. A cell with a
    corner or a neighbour that is not finite is always halved. What is left is interpolated linearly along each axis,
    and the points where the estimate is largest are evaluated after all: a cell that fails there is halved too, and
    others are tried.

    Which points are evaluated depends on values alone, so that the same call gives the same bits.

    Args:
        risks: See `Scanner`.
        axes: See `Scanner`.
        grid: The finest points.
        levels: How often a cell may be halved; 0 evaluates everything.
        tolerance: Error that is allowed, as a share of the range (largest less smallest) of each judged column over the
            finite values, after `ceiling`.
        judge: Columns that decide; None means the losses, or all where there is none.
        ceiling: Values above it count as it, as they do where a figure is cut off there.
        metrics: See `Scanner`.
        calibration: See `Scanner`.
        batch_points: See `Scanner`.
        progress: Called as progress(points done, points in the grid); it ends before the second.
        context: What else decides the values, kept with them.

    Returns:
        The surface; interpolated points are False in `computed`. `context["refined"]` has, by judged column, the
        `allowed` error, the largest `estimated` one of an interpolated point, and the largest `found` where the worst
        were evaluated; the number `evaluated`, and of `checks`.

    Raises:
        ValueError: As `Scanner`; or if `levels`, `tolerance`, `judge` or `grid` is wrong.

    Source:
        Ours; the error bound is that of every textbook of numerical analysis.
    """
    if levels < 0:
        raise ValueError(f"`levels` must be at least 0, got {levels}.")
    if not tolerance > 0:
        raise ValueError(f"`tolerance` must be a share of the range above 0, got {tolerance!r}.")
    if len(grid.coordinates) != len(axes):
        raise ValueError(f"`grid` has {len(grid.coordinates)} rows of coordinates for {len(axes)} axes: give one each.")
    scanner = Scanner(risks, axes, metrics=metrics, calibration=calibration, batch_points=batch_points)
    return Refinement(scanner, grid, levels=levels, tolerance=tolerance, judge=judge, ceiling=ceiling).run(
        progress=progress, context=context
    )


class Refinement:
    """The work of `refined`, for a caller that has a `Scanner`, or that evaluates elsewhere.

    Args:
        scanner: Evaluates.
        grid: The finest points.
        levels: See `refined`.
        tolerance: See `refined`.
        judge: See `refined`.
        ceiling: See `refined`.
        evaluate: Evaluates a list of the grid's points by number, in place of the scanner: it may look up what a file
            has, or share the points out. It must return the same bits.

    Raises:
        ValueError: If `judge` names a column that is not evaluated.
    """

    def __init__(
        self,
        scanner: Scanner,
        grid: Grid,
        *,
        levels: int,
        tolerance: float,
        judge: Sequence[str] | None = None,
        ceiling: float = math.inf,
        evaluate: Callable[[Sequence[int]], Any] | None = None,
    ) -> None:
        losses = [c for c in scanner.columns if c == "loss" or c.endswith(" loss")]
        self.judge = list(judge) if judge is not None else losses or list(scanner.columns)
        unknown = [c for c in self.judge if c not in scanner.columns]
        if unknown or not self.judge:
            raise ValueError(f"`judge` must be some of {list(scanner.columns)}, got {list(judge or [])}.")
        self.scanner, self.grid, self.levels, self.tolerance, self.ceiling = scanner, grid, levels, tolerance, ceiling
        self.coordinates = [c.numpy() for c in grid.coordinates]
        self._evaluate = evaluate or (lambda wanted: scanner.evaluate(grid.point(i) for i in wanted))
        self.values = {c: np.full(grid.shape, np.nan) for c in scanner.columns}
        self.stderr = {c: np.full(grid.shape, np.nan) for c in scanner.columns}
        self.computed = np.zeros(grid.shape, bool)
        self.allowed = dict.fromkeys(self.judge, 0.0)
        self.corners = list(itertools.product((0, 1), repeat=len(grid.shape)))

    def run(
        self, *, progress: Callable[[int, int], None] | None = None, context: Mapping[str, Any] | None = None
    ) -> Surface:
        """Evaluate, refine, interpolate and check."""
        self.progress = progress
        cells = self._coarse()
        self._compute_corners(cells)
        leaves, found, checks = self._checked(self._split(cells))
        errors = self._errors(leaves)
        for cell in leaves:
            self._fill(cell)
        worst = float(errors.max(initial=0.0))
        report = {
            "levels": self.levels,
            "tolerance": self.tolerance,
            "evaluated": int(self.computed.sum()),
            "checks": checks,
            "columns": {
                c: {"allowed": self.allowed[c], "estimated": worst * self.allowed[c], "found": found[c]}
                for c in self.judge
            },
        }
        table = {
            c: (torch.from_numpy(self.values[c].reshape(-1)), torch.from_numpy(self.stderr[c].reshape(-1)))
            for c in self.scanner.columns
        }
        computed = torch.from_numpy(self.computed.reshape(-1))
        centre = self.scanner.centre()
        whole = {**(context or {}), "refined": report}
        return assemble(self.scanner, self.grid, table, computed, centre=centre, context=whole)

    def _coarse(self) -> Cells:
        """Cells between every 2^levels-th point, counted from the one nearest to 0, the ends included."""
        step = 2**self.levels
        rows = []
        for c in self.coordinates:
            n, zero = len(c), int(np.argmin(np.abs(c)))
            rows.append(list(itertools.pairwise(sorted({0, n - 1, *range(zero % step, n, step)}))))
        return np.array(list(itertools.product(*rows)), dtype=np.int64)

    def _at(self, cells: Cells, corner: Sequence[int]) -> Places:
        return tuple(cells[:, axis, side] for axis, side in enumerate(corner))

    def _compute_corners(self, cells: Cells) -> None:
        self._compute(tuple(np.concatenate(x) for x in zip(*(self._at(cells, c) for c in self.corners), strict=True)))

    def _compute(self, places: Places) -> None:
        """Evaluate those of the points that were not, in the grid's order."""
        numbers = np.unique(np.ravel_multi_index(places, self.grid.shape))
        numbers = numbers[~self.computed.reshape(-1)[numbers]]
        if not len(numbers):
            return
        for c, (value, stderr) in self._evaluate(numbers.tolist()).items():
            self.values[c].reshape(-1)[numbers] = value.numpy()
            self.stderr[c].reshape(-1)[numbers] = stderr.numpy()
        self.computed.reshape(-1)[numbers] = True
        for c in self.judge:
            known = self.values[c][self.computed]
            known = np.minimum(known[np.isfinite(known)], self.ceiling)
            self.allowed[c] = self.tolerance * float(np.ptp(known)) if len(known) else 0.0
        if self.progress is not None:
            self.progress(int(self.computed.sum()), len(self.grid))

    def _split(self, cells: Cells) -> Cells:
        """Halve cells until interpolation is good enough in all; those that are left with points inside."""
        leaves = []
        while len(cells):
            cells = cells[(cells[:, :, 1] - cells[:, :, 0]).max(1) > 1]
            bent = self._errors(cells) > 1
            leaves.append(cells[~bent])
            cells = _halves(cells[bent])
            self._compute_corners(cells)
        return np.concatenate(leaves) if leaves else cells

    def _errors(self, cells: Cells) -> NDArray[np.float64]:
        """Estimated errors of interpolating in cells, over what is allowed; infinite where they cannot be told."""
        worst = np.zeros(len(cells))
        nearest = [self._nearest(axis) for axis in range(len(self.grid.shape))]
        for column in self.judge:
            values = np.minimum(self.values[column], self.ceiling)
            raw = np.stack([self.values[column][self._at(cells, corner)] for corner in self.corners])
            total = np.zeros(len(cells))
            for axis, (before, after) in enumerate(nearest):
                bends = [self._bends(values, cells, corner, axis, before, after) for corner in self.corners]
                wide = cells[:, axis, 1] - cells[:, axis, 0] > 1
                total += np.where(wide, np.max(bends, axis=0), 0.0)
            total[(raw >= self.ceiling).all(0)] = 0.0
            total[~np.isfinite(raw).all(0)] = math.inf
            with np.errstate(divide="ignore", invalid="ignore"):
                worst = np.maximum(worst, np.where(total > 0, total / self.allowed[column], 0.0))
        return worst

    def _bends(
        self,
        values: NDArray[np.float64],
        cells: Cells,
        corner: Sequence[int],
        axis: int,
        before: NDArray[np.int64],
        after: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """w² |f''| / 8 on the edges along an axis, from their middle and their neighbours, where evaluated."""
        low, high = cells[:, axis, 0], cells[:, axis, 1]
        at = list(self._at(cells, corner))
        x = self.coordinates[axis]

        def place(i: NDArray[np.int64]) -> Places:
            return (*at[:axis], i, *at[axis + 1 :])

        a, b = values[place(low)], values[place(high)]
        middle = (low + high) // 2
        worst, known = np.zeros(len(cells)), np.zeros(len(cells), bool)
        for other in (np.where(self.computed[place(middle)], middle, -1), before[place(low)], after[place(high)]):
            there = (other >= 0) & (other != low) & (other != high)
            i = np.where(there, other, 0)
            c = values[place(i)]
            with np.errstate(divide="ignore", invalid="ignore"):
                slope = (b - a) / (x[high] - x[low])
                second = ((c - b) / (x[i] - x[high]) - slope) / (x[i] - x[low])
                bend = np.abs(second) * (x[high] - x[low]) ** 2 / 4
            worst = np.maximum(worst, np.where(there, np.where(np.isfinite(bend), bend, math.inf), 0.0))
            known |= there
        return np.where(known, worst, math.inf)

    def _nearest(self, axis: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each point, the numbers of the evaluated ones next before and after it along an axis; -1 for none."""
        n = self.grid.shape[axis]
        number = np.arange(n).reshape([-1 if i == axis else 1 for i in range(len(self.grid.shape))])
        known = np.where(self.computed, number, -1)
        before = np.full_like(known, -1)
        after = np.full_like(known, n)
        inner: list[Any] = [slice(None)] * known.ndim
        first, last = list(inner), list(inner)
        first[axis], last[axis] = slice(1, None), slice(None, -1)
        before[tuple(first)] = np.maximum.accumulate(known, axis)[tuple(last)]
        known = np.where(self.computed, number, n)
        after[tuple(last)] = np.flip(np.minimum.accumulate(np.flip(known, axis), axis), axis)[tuple(first)]
        return before, np.where(after == n, -1, after)

    def _checked(self, leaves: Cells) -> tuple[Cells, dict[str, float], int]:
        """Evaluate the middles of the cells whose estimates are largest, until interpolation holds there."""
        found = dict.fromkeys(self.judge, 0.0)
        checks = 0
        while True:
            leaves = self._split(leaves)  # what was learnt next to a cell may show that it bends after all
            middles = leaves.sum(2) // 2
            open_ = np.flatnonzero(~self.computed[tuple(middles.T)])
            order = np.lexsort((*leaves[open_, :, 0].T, -self._errors(leaves)[open_]))
            worst = open_[order[:CHECKS]]
            guesses = {c: self._between(self.values[c], leaves[worst]) for c in self.judge}
            places = tuple(middles[worst].T)
            if len(worst):
                self._compute(places)
            checks += len(worst)
            failed = np.zeros(len(worst), bool)
            for c in self.judge:
                off = np.abs(np.minimum(guesses[c], self.ceiling) - np.minimum(self.values[c][places], self.ceiling))
                failed |= ~(off <= self.allowed[c] * (1 + ROUNDING))
                found[c] = max(found[c], float(off[~failed].max(initial=0.0)))
            if not failed.any():
                return leaves, found, checks
            parts = _halves(leaves[worst[failed]])
            self._compute_corners(parts)
            leaves = np.concatenate([np.delete(leaves, worst[failed], 0), parts])

    def _between(self, values: NDArray[np.float64], cells: Cells) -> NDArray[np.float64]:
        """Interpolated values in the middles of cells."""
        total = np.zeros(len(cells))
        shares = []
        for axis, x in enumerate(self.coordinates):
            low, high = x[cells[:, axis, 0]], x[cells[:, axis, 1]]
            shares.append((x[cells[:, axis].sum(1) // 2] - low) / (high - low))
        for corner in self.corners:
            weight = np.prod([t if side else 1 - t for t, side in zip(shares, corner, strict=True)], axis=0)
            total += weight * values[self._at(cells, corner)]
        return total

    def _fill(self, cell: NDArray[np.int64]) -> None:
        """Interpolate linearly along each axis at the points of a cell that were not evaluated."""
        inside = tuple(slice(low, high + 1) for low, high in cell)
        open_ = ~self.computed[inside]
        for table in (self.values, self.stderr):
            for values in table.values():
                block = values[np.ix_(*cell)]
                for axis, (low, high) in enumerate(cell):
                    x = self.coordinates[axis][low : high + 1]
                    t = ((x - x[0]) / (x[-1] - x[0])).reshape([-1 if i == axis else 1 for i in range(len(cell))])
                    block = block.take([0], axis) * (1 - t) + block.take([-1], axis) * t
                values[inside] = np.where(open_, block, values[inside])


def _halves(cells: Cells) -> Cells:
    """Cells cut in two along each axis on which they have points inside."""
    for axis in range(cells.shape[1]):
        low, high = cells[:, axis, 0], cells[:, axis, 1]
        wide = high - low > 1
        first, second = cells.copy(), cells[wide]
        first[wide, axis, 1] = second[:, axis, 0] = ((low + high) // 2)[wide]
        cells = np.concatenate([first, second])
    return cells
