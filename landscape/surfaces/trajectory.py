"""The path of an optimizer in the plane that holds most of it, beside what a random walk would show there."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from landscape.params import Params, select
from landscape.precision import in_own_precision
from landscape.surfaces.axes import MOST_AXES, Axes, Axis
from landscape.surfaces.directions import sign_of

HELD_BYTES = 2**30  # of points loaded at a time, where they are not in memory anyway
PIECE = 2**22  # float64 numbers in a working copy of a piece of the points
FLAT = 1e-13  # share of the largest eigenvalue below which there is nothing but rounding


class LoadedPoints(Sequence[Params]):
    """Points that are loaded anew each time one is asked for, so that memory does not grow with their number.

    Args:
        load: Gives point i, such as the weights of the i-th checkpoint.
        count: How many there are.
    """

    def __init__(self, load: Callable[[int], Params], count: int) -> None:
        if count < 1:
            raise ValueError(f"`count` must be at least 1 point, got {count}.")
        self._load, self._count = load, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Params: ...
    @overload
    def __getitem__(self, index: slice) -> list[Params]: ...
    def __getitem__(self, index: int | slice) -> Params | list[Params]:
        if isinstance(index, slice):
            return [self._load(i) for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(index)
        return self._load(index % self._count)


@dataclass(frozen=True, eq=False)
class ProjectedPath:
    """Points on a line, plane or volume, each at the place nearest to it.

    Attributes:
        coordinates: By least squares, so that axes need not be orthonormal.
        distances: l2 distance in weight space from each point to that place. Where it is not small against the extent
            of the picture, the loss at the point and the loss on the plane below it are different things.
    """

    coordinates: Float[Tensor, "t k"]
    distances: Float[Tensor, " t"]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The principal axes of a path, and the path on them.

    Attributes:
        axes: Origin (the last point, or the mean) and orthonormal directions, so that coordinates are l2 lengths.
        coordinates: The points on the axes.
        distances: l2 distance of each point from the line, plane or volume.
        explained: Shares of Σ_t ‖θ_t - origin‖² along all principal axes, largest first.
        null: The same for a random walk of as many points in high dimension, see `random_walk_shares`.
        centred: Whether the origin is the mean of the points.
    """

    axes: Axes
    coordinates: Float[Tensor, "t k"]
    distances: Float[Tensor, " t"]
    explained: Float[Tensor, " r"]
    null: Float[Tensor, " r"]
    centred: bool

    @property
    def shown(self) -> float:
        """Share of the path's variance that the axes hold."""
        return float(self.explained[: len(self.axes)].sum())

    @property
    def shown_by_chance(self) -> float:
        """The same share for a random walk: 0.76 for a centred plane, 0.90 through the end point, for many points."""
        return float(self.null[: len(self.axes)].sum())


@in_own_precision
def trajectory_axes(
    points: Sequence[Params],
    *,
    centred: bool,
    count: int = 2,
    parameters: str | Iterable[str] | None = None,
    times: Sequence[float] | None = None,
    at_once: int | None = None,
) -> Trajectory:
    """Principal component analysis of the points θ_0 ... θ_T of a path in weight space.

    - centred = False: of θ_t - θ_T, without subtracting a mean; the axes start at the end point, which lies on them.
    - centred = True: of θ_t - mean; the axes start at the mean, and the end point is in general off them.

    Subtracting the mean and then drawing through θ_T, as is common, shows a plane that no analysis has chosen. A path
    looks smooth, and its share explained high, whatever the optimizer does: compare it with `null`.

    The directions come from the T × T Gram matrix in float64, never from a p × p one. Points are loaded in blocks: with
    B of them at a time, about T²/B + 2.5 T loads in all. Signs: of the coordinates along an axis, the first within 1 %
    of the largest modulus is positive.

    Args:
        points: Weights by name, in order of time; a list, or `LoadedPoints` for those that do not fit in memory.
        centred: See above.
        count: Axes, from 1 to 3.
        parameters: Names, globs or modules to analyse; the axes move these alone, and distances are within them.
        times: When each point was met, such as steps, for the random walk's shares; None means equal intervals.
        at_once: Points held in memory at a time, at least 2; None means all of a list, or 1 GiB of `LoadedPoints`.

    Returns:
        Axes, coordinates, distances, and shares explained.

    Raises:
        ValueError: If there are too few points, they differ in names or shapes, one is not finite, or they span fewer
            dimensions than `count`.

    Source:
        Li et al. (2018), section 7, for the picture; Antognini and Sohl-Dickstein (2018), NeurIPS, for the random walk.
    """
    total = len(points)
    if not 1 <= count <= MOST_AXES:
        raise ValueError(f"`count` must be from 1 to {MOST_AXES} axes, got {count}.")
    if total < count + 1:
        raise ValueError(f"`points` must be at least {count + 1} for {count} axes, got {total}.")
    if at_once is not None and at_once < 2:
        raise ValueError(f"`at_once` must be at least 2 points, got {at_once}.")
    null = random_walk_shares(total if times is None else times, centred=centred)
    end = {name: t.detach() for name, t in points[total - 1].items()}
    names = select(list(end), parameters)
    path = _Path(points, {name: end[name] for name in names}, at_once)
    gram = path.gram()
    if centred:
        gram -= gram.mean(0, keepdim=True)
        gram -= gram.mean(1, keepdim=True)
    values, vectors = (torch.from_numpy(a) for a in np.linalg.eigh(gram.numpy()))
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    if not float(values[count - 1]) > max(FLAT * float(values[0]), total * path.rounding**2):
        raise ValueError(
            f"`points` span fewer than {count} dimensions: they are equal or lie on a line, to rounding. Ask for a "
            "smaller `count`, or give more points."
        )
    top = vectors[:, :count] * torch.tensor([sign_of(vectors[:, j]) for j in range(count)], dtype=torch.float64)
    weights = top / values[:count].sqrt()
    if centred:  # Σ_t u_t (θ_t - mean) = Σ_t (u_t - mean of u) θ_t
        weights = weights - weights.mean(0)
    mean, *directions = path.sums(torch.cat([torch.full((total, 1), 1 / total, dtype=torch.float64), weights], 1))
    explained = values / values.sum()
    made = []
    for j, direction in enumerate(directions):
        recipe = {
            "kind": "trajectory",
            "centred": centred,
            "component": j + 1,
            "points": total,
            "explained": float(explained[j]),
            "random_walk": float(null[j]),
        }
        name = f"principal axis {j + 1} ({100 * float(explained[j]):.1f} %)"
        made.append(Axis({n: t.to(end[n]) for n, t in direction.items()}, name, "weights", recipe))
    origin = end | {n: (end[n].double() + t).to(end[n]) for n, t in mean.items()} if centred else end
    axes = Axes(origin, tuple(made))
    on = project_path(axes, points, parameters=names)
    return Trajectory(axes, on.coordinates, on.distances, explained[: len(null)], null, centred)


def project_path(
    axes: Axes, points: Iterable[Params], *, parameters: str | Iterable[str] | None = None
) -> ProjectedPath:
    """Project points, such as those of another run, on given axes; they are taken one at a time.

    Args:
        axes: Origin and directions; not necessarily orthonormal.
        points: Weights by name.
        parameters: Names, globs or modules that distances are taken over; None means all of the origin's.

    Raises:
        ValueError: If there is no point, one lacks a parameter or has another shape, or the axes are dependent.
    """
    names = select(list(axes.origin), parameters)
    moved = {name for axis in axes.axes for name in axis.direction}
    if not moved <= set(names):
        raise ValueError(f"`parameters` leaves out {sorted(moved - set(names))[:5]}, which the axes move.")
    inside = Axes({name: axes.origin[name] for name in names}, axes.axes)
    rows, distances = [], []
    for i, point in enumerate(points):
        _check(point, inside.origin, i)
        at, distance = inside.project(point)
        rows.append(at.cpu())
        distances.append(distance)
    if not rows:
        raise ValueError("`points` is empty: there is nothing to project.")
    return ProjectedPath(torch.stack(rows), torch.tensor(distances, dtype=torch.float64))


def random_walk_shares(points: int | Sequence[float], *, centred: bool) -> Float[Tensor, " r"]:
    """Shares of variance along the principal axes of a random walk with independent steps, in high dimension.

    For p → ∞ the Gram matrix of the walk tends to p times the covariance of one coordinate. With n = points - 1
    steps of equal size:

    - from the end point, C_st = min(n - s, n - t): λ_k = 1 / 4 sin²((2k-1)π / (4n+2)), Σ λ = n(n+1)/2, and the shares
      tend to 8 / (π² (2k-1)²) = 0.811, 0.090, 0.032, ...;
    - centred, with N = n + 1 points: λ_k = 1 / 4 sin²(kπ / 2N), Σ λ = (N²-1)/6, and the shares tend to
      6 / (π² k²) = 0.608, 0.152, 0.068, ...

    A walk in few dimensions, or one that is pulled back or runs along, has others.

    Args:
        points: How many; or the time of each, for unequal intervals.
        centred: Whether the mean is subtracted, rather than the last point.

    Returns:
        Shares, largest first, one a step; they sum to 1.

    Raises:
        ValueError: If there are fewer than 2 points, or times do not ascend.

    Source:
        Antognini and Sohl-Dickstein (2018), NeurIPS, for the centred limit; the rest is our derivation.
    """
    if not isinstance(points, int):
        values = _unequal(torch.tensor([float(t) for t in points], dtype=torch.float64), centred)
    elif points < 2:
        raise ValueError(f"`points` must be at least 2, got {points}.")
    else:
        k = torch.arange(1, points, dtype=torch.float64)
        angle = k * math.pi / (2 * points) if centred else (2 * k - 1) * math.pi / (4 * (points - 1) + 2)
        values = 0.25 / angle.sin() ** 2
    return values / values.sum()


def _unequal(times: Tensor, centred: bool) -> Tensor:
    if len(times) < 2 or not bool(times.isfinite().all()) or not bool((times.diff() > 0).all()):
        raise ValueError(f"`times` must be at least 2 numbers that ascend, got {times.tolist()[:10]}.")
    left = times[-1] - times
    covariance = torch.minimum(left[:, None], left[None, :])
    if centred:
        covariance = covariance - covariance.mean(0, keepdim=True)
        covariance = covariance - covariance.mean(1, keepdim=True)
    values: Tensor = torch.linalg.eigvalsh(covariance).flip(0)[:-1].clamp_min(0)
    return values


class _Path:
    """The differences of points from their last one, in float64, a piece at a time."""

    def __init__(self, points: Sequence[Params], end: Params, at_once: int | None) -> None:
        self.points, self.end, self.total = points, end, len(points)
        if at_once is None:
            size = sum(t.numel() * t.element_size() for t in end.values())
            at_once = self.total if isinstance(points, list | tuple) else max(2, HELD_BYTES // max(size, 1))
        self.block = max(1, min(at_once, self.total) // 2) if at_once < self.total else self.total

    @property
    def rounding(self) -> float:
        """About the l2 length of what rounding to their dtype does to the weights."""
        return 0.25 * math.sqrt(
            sum(
                (torch.finfo(t.dtype).eps * float(torch.linalg.vector_norm(t.double()))) ** 2 for t in self.end.values()
            )
        )

    def gram(self) -> Tensor:
        """⟨θ_s - θ_T, θ_t - θ_T⟩ of all pairs, from two blocks of points at a time."""
        table = torch.zeros(self.total, self.total, dtype=torch.float64)
        starts = range(0, self.total, self.block)
        rows: list[Params] = []
        others: list[Params] = []
        for i in starts:
            rows.clear()  # before the next ones are loaded
            rows = self._load(i)
            here = slice(i, i + len(rows))
            table[here, here] = self._products(rows, rows)
            for j in starts:
                if j > i:
                    others.clear()
                    others = self._load(j)
                    there = slice(j, j + len(others))
                    table[here, there] = self._products(rows, others)
                    table[there, here] = table[here, there].T
            others.clear()
        finite = table.diagonal().isfinite()
        bad = (~finite).nonzero().flatten().tolist() if bool(finite[-1]) else [self.total - 1]
        if bad:
            raise ValueError(
                f"`points` {bad[:5]} are not finite, or so large that squares overflow: a run that diverged has no "
                "principal axes; leave these points out."
            )
        return table

    def sums(self, weights: Tensor) -> list[Params]:
        """Σ_t w_t (θ_t - θ_T) for each column of weights, loading each point once."""
        found = [{n: torch.zeros_like(t, dtype=torch.float64) for n, t in self.end.items()} for _ in weights.T]
        for i in range(self.total):
            point = self.points[i]
            for name, t in self.end.items():
                difference = point[name].detach().to(t.device).double() - t.double()
                for made, w in zip(found, weights[i].tolist(), strict=True):
                    made[name].add_(difference, alpha=w)
        return found

    def _load(self, start: int) -> list[Params]:
        loaded = []
        for i in range(start, min(start + self.block, self.total)):
            point = self.points[i]
            _check(point, self.end, i)
            loaded.append(point)
        return loaded

    def _products(self, a: list[Params], b: list[Params]) -> Tensor:
        table = torch.zeros(len(a), len(b), dtype=torch.float64)
        for piece in self._pieces(a, b):
            table += (piece[0] @ piece[1].T).cpu()
        return table

    def _pieces(self, a: list[Params], b: list[Params]) -> Iterator[tuple[Tensor, Tensor]]:
        """Matrices of rows of both blocks, over a stretch of entries of one tensor."""
        wide = max(1, PIECE // max(len(a), len(b)))
        for name, end in self.end.items():
            for start in range(0, end.numel(), wide):
                cut = slice(start, start + wide)
                zero = end.reshape(-1)[cut].double()
                first = self._rows(a, name, cut, zero)
                yield first, first if a is b else self._rows(b, name, cut, zero)

    def _rows(self, block: list[Params], name: str, cut: slice, zero: Tensor) -> Tensor:
        made = torch.empty(len(block), len(zero), dtype=torch.float64, device=zero.device)
        for row, point in zip(made, block, strict=True):
            row.copy_(point[name].detach().reshape(-1)[cut])
        return made.sub_(zero)


def _check(point: Params, like: Params, number: int) -> None:
    for name, t in like.items():
        if name not in point or point[name].shape != t.shape:
            own = tuple(point[name].shape) if name in point else "no such parameter"
            raise ValueError(
                f"`points` has at {number} {own} for `{name}`, the others {tuple(t.shape)}: are they of one "
                "architecture?"
            )
