"""Coordinates at which a surface is evaluated."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Grid:
    """The points of a line, plane or volume: all combinations of the coordinates of its axes.

    Points are counted in C order: the last axis runs fastest.

    Attributes:
        coordinates: For each axis, ascending numbers in float64.
    """

    coordinates: tuple[Float[Tensor, " _"], ...]  # of several lengths

    @classmethod
    def around(cls, radius: float | Sequence[float] = 1.0, points: int | Sequence[int] = 51, *, axes: int) -> "Grid":
        """A grid from -radius to radius along each axis, symmetric to the bit, with 0 itself where `points` is odd.

        Args:
            radius: One number for all axes, or one an axis, in units of the directions.
            points: Likewise; at least 2.
            axes: How many there are.

        Raises:
            ValueError: If a radius is not above 0, or there are fewer than 2 points.
        """
        return cls.between([(-float(r), float(r)) for r in _each(radius, axes, "radius")], points)

    @classmethod
    def between(cls, limits: Sequence[tuple[float, float]], points: int | Sequence[int]) -> "Grid":
        """A grid between two limits along each axis, both included; 0 is exact where a step falls on it.

        Raises:
            ValueError: If limits are not finite and ascending, or there are fewer than 2 points.
        """
        counts = _each(points, len(limits), "points")
        made = []
        for (low, high), count in zip(limits, counts, strict=True):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"`limits` must be finite with low < high, got {(low, high)}.")
            if count < 2 or count != int(count):
                raise ValueError(f"`points` must be a whole number of at least 2 an axis, got {count!r}.")
            made.append(_spaced(float(low), float(high), int(count)))
        return cls(tuple(made))

    @property
    def shape(self) -> tuple[int, ...]:
        """Points along each axis."""
        return tuple(len(c) for c in self.coordinates)

    def __len__(self) -> int:
        return math.prod(self.shape)

    def point(self, index: int) -> tuple[float, ...]:
        """The coordinates of a point by its number."""
        where = []
        for c in reversed(self.coordinates):
            index, at = divmod(index, len(c))
            where.append(float(c[at]))
        return tuple(reversed(where))

    def points(self) -> Iterator[tuple[float, ...]]:
        """All points in order."""
        return (self.point(i) for i in range(len(self)))

    def mesh(self) -> tuple[Tensor, ...]:
        """The coordinates of all points, one array of the grid's shape an axis."""
        return tuple(torch.meshgrid(*self.coordinates, indexing="ij"))


def _spaced(low: float, high: float, count: int) -> Tensor:
    """Equal steps; mirrored where the limits are, so that -x is there for every x, and 0 where the count is odd."""
    if low == -high:
        half = torch.arange(count - 1, -1, -2, dtype=torch.float64) * (high / (count - 1))
        half = half.flip(0)  # 0, 2, ... or 1, 3, ... steps of half a spacing
        half[-1] = high
        below = -half.flip(0)
        return torch.cat([below[:-1] if count % 2 else below, half])
    steps = torch.arange(count, dtype=torch.float64)
    made = low + (high - low) * steps / (count - 1)
    made[-1] = high
    zero = -low / (high - low) * (count - 1)
    if 0 <= round(zero) < count and abs(zero - round(zero)) < 1e-9:
        made[round(zero)] = 0.0
    return made


def _each(value: float | Sequence[float], axes: int, name: str) -> list[float]:
    given = [value] * axes if isinstance(value, int | float) else list(value)
    if len(given) != axes:
        raise ValueError(f"`{name}` must be one number, or {axes}, one an axis, got {len(given)}.")
    if name == "radius" and not all(math.isfinite(v) and v > 0 for v in given):
        raise ValueError(f"`radius` must be finite and above 0, got {value!r}.")
    return given
