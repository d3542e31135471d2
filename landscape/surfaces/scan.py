"""The scan: a model's metrics over all points of a grid."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from landscape.precision import in_own_precision
from landscape.risk import EmpiricalRisk
from landscape.surfaces.axes import Axes
from landscape.surfaces.grid import Grid
from landscape.surfaces.scanner import Metrics, Scanner, Values
from landscape.surfaces.surface import Surface

__all__ = ["ScanInterrupted", "Scanner", "assemble", "scan", "scan_blocks"]

Told = Callable[[int, int], None]
"""Called as told(points done, points in all)."""


class ScanInterrupted(KeyboardInterrupt):
    """Ctrl-C during a scan; what was done is in `surface`, which `scan(..., start=surface)` takes up."""

    def __init__(self, surface: Surface) -> None:
        super().__init__(f"{int(surface.computed.sum())} of {surface.computed.numel()} points are done")
        self.surface = surface


def scan_blocks(scanner: Scanner, grid: Grid, blocks: Iterable[range] | None = None) -> Iterator[tuple[range, Values]]:
    """Evaluate a grid block by block, for a caller that stores what is done as it comes.

    Args:
        scanner: Evaluates.
        grid: Where.
        blocks: Some of `scanner.blocks(len(grid))`; None means all.

    Yields:
        The points' numbers in the grid, and their values.
    """
    for block in scanner.blocks(len(grid)) if blocks is None else blocks:
        yield block, scanner.evaluate(grid.point(i) for i in block)


def assemble(
    scanner: Scanner,
    grid: Grid,
    values: Mapping[str, tuple[Tensor, Tensor]],
    computed: Tensor,
    *,
    centre: Mapping[str, tuple[float, float]],
    context: Mapping[str, Any] | None = None,
) -> Surface:
    """A `Surface` from what was evaluated.

    Args:
        scanner: What evaluated it.
        grid: Where.
        values: By column, values and standard errors at all points of the grid in order; anything where not computed.
        computed: Which points were, in order.
        centre: As of `Scanner.centre`.
        context: What else decides the values: run, step, split, loss, ...
    """
    failures = {"failures": dict(scanner.failures)} if scanner.failures else {}
    return Surface(
        grid=grid,
        values={name: value.reshape(grid.shape) for name, (value, _) in values.items()},
        stderr={name: stderr.reshape(grid.shape) for name, (_, stderr) in values.items()},
        computed=computed.reshape(grid.shape),
        centre=dict(centre),
        axes=tuple(
            {"name": a.name, "unit": a.unit, "length": a.length, "recipe": dict(a.recipe)} for a in scanner.axes.axes
        ),
        gram=scanner.axes.gram,
        context={**(context or {}), **scanner.context, **failures},
    )


@in_own_precision
def scan(
    risks: EmpiricalRisk | Mapping[str, EmpiricalRisk],
    axes: Axes,
    grid: Grid,
    *,
    metrics: Metrics | None = None,
    calibration: EmpiricalRisk | Any = None,
    batch_points: int | Literal["auto"] = "auto",
    progress: Told | None = None,
    start: Surface | None = None,
    context: Mapping[str, Any] | None = None,
) -> Surface:
    """Evaluate a model over a grid; the origin is evaluated too, on the grid or not.

    Args:
        risks: See `Scanner`.
        axes: See `Scanner`.
        grid: Where, one row of coordinates an axis.
        metrics: See `Scanner`.
        calibration: See `Scanner`.
        batch_points: See `Scanner`.
        progress: A function told(points done, points in all), such as `analysis.shown` makes.
        start: A scan of the same axes and grid that was interrupted; its points are kept, and K is its own.
        context: What else decides the values, kept with them.

    Returns:
        Values, standard errors, and the recipe of the axes. The same call gives the same bits on the same machine,
        whole or continued.

    Raises:
        ValueError: As `Scanner`; or if `grid` has another number of axes, or `start` is of another scan.
        ScanInterrupted: On Ctrl-C, a KeyboardInterrupt that holds what was done.
    """
    if len(grid.coordinates) != len(axes):
        raise ValueError(f"`grid` has {len(grid.coordinates)} rows of coordinates for {len(axes)} axes: give one each.")
    if start is not None and batch_points == "auto":
        batch_points = start.context.get("batch_points", "auto")
    scanner = Scanner(risks, axes, metrics=metrics, calibration=calibration, batch_points=batch_points)
    n = len(grid)
    table = {
        c: (torch.full((n,), math.nan, dtype=torch.float64), torch.full((n,), math.nan, dtype=torch.float64))
        for c in scanner.columns
    }
    computed = torch.zeros(n, dtype=torch.bool)
    if start is not None:
        _check_start(start, scanner, grid)
        computed |= start.computed.reshape(-1)
        for c, (value, stderr) in table.items():
            value.copy_(start.values[c].reshape(-1))
            stderr.copy_(start.stderr[c].reshape(-1))
    centre = scanner.centre()
    missing = [block for block in scanner.blocks(n) if not bool(computed[block.start : block.stop].all())]
    try:
        tell = progress or (lambda _done, _total: None)
        done = n - sum(len(block) for block in missing)
        tell(done, n)
        for block, found in scan_blocks(scanner, grid, missing):
            for c, (value, stderr) in found.items():
                table[c][0][block.start : block.stop] = value
                table[c][1][block.start : block.stop] = stderr
            computed[block.start : block.stop] = True
            done += len(block)
            tell(done, n)
    except KeyboardInterrupt:
        raise ScanInterrupted(assemble(scanner, grid, table, computed, centre=centre, context=context)) from None
    return assemble(scanner, grid, table, computed, centre=centre, context=context)


def _check_start(start: Surface, scanner: Scanner, grid: Grid) -> None:
    same = start.grid.shape == grid.shape and all(
        torch.equal(a, b) for a, b in zip(start.grid.coordinates, grid.coordinates, strict=True)
    )
    if not same:
        raise ValueError("`start` has another grid: continue with its own, `start.grid`.")
    if tuple(start.values) != scanner.columns:
        raise ValueError(
            f"`start` has {list(start.values)}, this scan {list(scanner.columns)}: ask for the same metrics."
        )
    theirs = start.context.get("batch_points")
    if theirs != scanner.batch_points:
        raise ValueError(
            f"`start` has batch_points {theirs}, this scan {scanner.batch_points}, whose last bits may differ: begin "
            "anew."
        )
    if not torch.equal(start.gram, scanner.axes.gram):
        raise ValueError("`start` has other axes: their lengths or angles differ.")
