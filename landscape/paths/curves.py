"""Curves between two models: Bezier curves and polygonal chains."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.params import Params, dot
from landscape.paths.states import ModelState, check_same, combine

Side = Literal["right", "left"]


@runtime_checkable
class Curve(Protocol):
    """A parametrised curve w(t), t in [0, 1], that is linear in its control points."""

    points: tuple[ModelState, ...]

    def coefficients(self, t: float) -> list[float]:
        """What each control point contributes to w(t); they sum to 1."""
        ...

    def slopes(self, t: float, *, side: Side = "right") -> list[float]:
        """The derivatives of the coefficients; they sum to 0."""
        ...

    def point(self, t: float) -> ModelState:
        """w(t)."""
        ...


class _Linear:
    """What follows from the coefficients."""

    points: tuple[ModelState, ...]

    def __post_init__(self) -> None:
        if len(self.points) < 2:
            raise ValueError(f"`points` must be at least the two ends of the curve, got {len(self.points)}.")
        for i, other in enumerate(self.points[1:], 1):
            check_same(self.points[0], other, ("point 0", f"point {i}"))

    def coefficients(self, t: float) -> list[float]:
        raise NotImplementedError

    def slopes(self, t: float, *, side: Side = "right") -> list[float]:
        raise NotImplementedError

    def point(self, t: float) -> ModelState:
        """w(t), the end points to the bit. Running statistics follow as the control points' own do."""
        return combine(self.coefficients(_checked(t)), self.points)

    def velocity(self, t: float, *, side: Side = "right") -> Params:
        """dw/dt, in weights per unit of t; at a corner, that of the piece to the given side."""
        slopes = self.slopes(_checked(t), side=side)
        first, *others = [p.parameters for p in self.points]
        out = {name: slopes[0] * t for name, t in first.items()}
        for c, other in zip(slopes[1:], others, strict=True):
            out = {name: torch.add(t, other[name], alpha=c) for name, t in out.items()}
        return out

    def speed(self, t: float, *, side: Side = "right") -> float:
        """‖dw/dt‖₂, from the inner products of the control points' differences, in float64."""
        slopes = self.slopes(_checked(t), side=side)
        # Σ s_i P_i with Σ s_i = 0 is -Σ_j (s_0 + ... + s_j) (P_{j+1} - P_j)
        sums = torch.tensor(slopes, dtype=torch.float64).cumsum(0)[:-1]
        return math.sqrt(max(float(sums @ self.gram @ sums), 0.0))

    @cached_property
    def gram(self) -> Float[Tensor, "m m"]:
        """⟨P_{i+1} - P_i, P_{j+1} - P_j⟩ in float64."""
        steps = []
        for a, b in zip(self.points[:-1], self.points[1:], strict=True):
            steps.append({name: b.parameters[name].double() - t.double() for name, t in a.parameters.items()})
        return torch.tensor([[dot(a, b) for b in steps] for a in steps], dtype=torch.float64)

    @property
    def straight(self) -> float:
        """‖w(1) - w(0)‖₂, the length of the straight line."""
        return math.sqrt(max(float(self.gram.sum()), 0.0))

    def arcs(self, coordinates: Float[Tensor, " k"]) -> Float[Tensor, " k-1"]:
        """Lengths between neighbouring coordinates: (‖w'(t_i)‖ + ‖w'(t_{i+1})‖) (t_{i+1} - t_i) / 2.

        Speeds are those inside the interval, so the lengths of a polygon are exact where its corners are coordinates.
        """
        where = coordinates.tolist()
        speeds = [(self.speed(a, side="right") + self.speed(b, side="left")) / 2 for a, b in itertools.pairwise(where)]
        return torch.tensor(speeds, dtype=torch.float64) * coordinates.diff()


@dataclass(frozen=True, eq=False)
class Bezier(_Linear):
    """w(t) = Σ_i C(n, i) (1 - t)^(n-i) t^i P_i, of degree n = number of control points - 1.

    With three points it is (1 - t)² w1 + 2 t (1 - t) θ + t² w2.

    Attributes:
        points: P_0, the first model; the bends; P_n, the second model.

    Raises:
        ValueError: If there are fewer than two points, or they are not of one architecture.

    Source:
        Garipov et al. (2018), "Loss surfaces, mode connectivity, and fast ensembling of DNNs", NeurIPS, eq. 4.
    """

    points: tuple[ModelState, ...]

    def coefficients(self, t: float) -> list[float]:
        """Bernstein polynomials of degree n."""
        return _bernstein(len(self.points) - 1, t)

    def slopes(self, t: float, *, side: Side = "right") -> list[float]:  # noqa: ARG002
        """B_i'(t) = n (B_{i-1} - B_i) of degree n - 1; the same from both sides."""
        n = len(self.points) - 1
        lower = [0.0, *_bernstein(n - 1, t), 0.0]
        return [n * (lower[i] - lower[i + 1]) for i in range(n + 1)]


@dataclass(frozen=True, eq=False)
class Polygon(_Linear):
    """The chain of straight pieces through m + 1 points, each travelled in time 1/m.

    Attributes:
        points: The first model, the bends, the second model.

    Raises:
        ValueError: If there are fewer than two points, or they are not of one architecture.

    Source:
        Garipov et al. (2018), NeurIPS, eq. 3.
    """

    points: tuple[ModelState, ...]

    def coefficients(self, t: float) -> list[float]:
        """1 - s and s for the ends of the piece, s the part of it that is done."""
        i, s = self._piece(t, "right")
        out = [0.0] * len(self.points)
        out[i], out[i + 1] = 1 - s, s
        return out

    def slopes(self, t: float, *, side: Side = "right") -> list[float]:
        """-m and m for the ends of the piece."""
        i, _ = self._piece(t, side)
        m = len(self.points) - 1
        out = [0.0] * (m + 1)
        out[i], out[i + 1] = -float(m), float(m)
        return out

    def _piece(self, t: float, side: Side) -> tuple[int, float]:
        m = len(self.points) - 1
        place = t * m
        if abs(place - round(place)) < 1e-12 * m:
            place = float(round(place))
        i = math.ceil(place) - 1 if side == "left" else math.floor(place)
        i = min(max(i, 0), m - 1)
        return i, place - i


def straight_bends(start: ModelState, end: ModelState, count: int) -> list[ModelState]:
    """`count` states equally spaced on the straight line, where the fit of a curve begins."""
    check_same(start, end)
    return [combine((1 - i / (count + 1), i / (count + 1)), (start, end)) for i in range(1, count + 1)]


def make_curve(kind: Literal["bezier", "polygon"], points: Sequence[ModelState]) -> "Bezier | Polygon":
    """A curve through, or towards, the given points.

    Raises:
        ValueError: If the kind is unknown.
    """
    if kind not in ("bezier", "polygon"):
        raise ValueError(f"`kind` must be 'bezier' or 'polygon', got {kind!r}.")
    return Bezier(tuple(points)) if kind == "bezier" else Polygon(tuple(points))


def _bernstein(n: int, t: float) -> list[float]:
    return [math.comb(n, i) * (1 - t) ** (n - i) * t**i for i in range(n + 1)]


def _checked(t: float) -> float:
    if not 0 <= t <= 1:
        raise ValueError(f"`t` must be in [0, 1], the curve from end to end, got {t!r}.")
    return t
