"""The axes of a line, plane or volume in weight space: where it starts, along what, and what its coordinates mean."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.params import Params, dot, length

MOST_AXES = 3
PARALLEL = 1e-9  # 1 - cos² below which two axes count as one


@dataclass(frozen=True, eq=False)
class Axis:
    """A direction in weight space, and what it is.

    Attributes:
        direction: d, tensors by parameter name; parameters it lacks stand still. Coordinate a is the point θ + a·d.
        name: For the axis label, such as "random direction 1".
        unit: What coordinate 1 stands for, such as "filter norms" or "weights" (l2 length in weight space).
        recipe: Numbers and words (JSON) that say how it was made: kind, normalisation, seed, ...
        buffers: Change of running statistics per unit, for a line between two models with BatchNorm.
    """

    direction: Params
    name: str
    unit: str = "weights"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    buffers: Params = field(default_factory=dict)

    @cached_property
    def length(self) -> float:
        """‖d‖₂ over all parameters jointly."""
        return length(self.direction)


@dataclass(frozen=True, eq=False)
class Axes:
    """An origin θ and one to three directions d_i: the set θ + Σ a_i d_i.

    Attributes:
        origin: θ, all parameters by name.
        axes: The directions, in the order of coordinates.

    Raises:
        ValueError: If there is no axis or more than three, or one has length zero, an entry that is not finite,
            an unknown parameter or a shape that does not fit.
    """

    origin: Params
    axes: tuple[Axis, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.axes) <= MOST_AXES:
            raise ValueError(f"`axes` must be one to {MOST_AXES} directions, got {len(self.axes)}.")
        for axis in self.axes:
            for name, t in axis.direction.items():
                if name not in self.origin or t.shape != self.origin[name].shape:
                    own = tuple(self.origin[name].shape) if name in self.origin else "no such parameter"
                    raise ValueError(
                        f"axis {axis.name!r} has `{name}` of shape {tuple(t.shape)}, the model has {own}: are they of "
                        "the same architecture?"
                    )
                if not bool(t.isfinite().all()):
                    raise ValueError(
                        f"axis {axis.name!r} has entries in `{name}` that are not finite: it leads nowhere."
                    )
            if axis.length == 0 and not any(bool(t.any()) for t in axis.buffers.values()):
                raise ValueError(
                    f"axis {axis.name!r} has length zero: its points are all the same. Choose another direction (the "
                    "two models of a difference may be equal, or a gradient may vanish)."
                )

    def __len__(self) -> int:
        return len(self.axes)

    @cached_property
    def gram(self) -> Float[Tensor, "k k"]:
        """⟨d_i, d_j⟩ in float64."""
        k = len(self.axes)
        table = torch.zeros(k, k, dtype=torch.float64)
        for i in range(k):
            for j in range(i, k):
                table[i, j] = table[j, i] = _wide_dot(self.axes[i].direction, self.axes[j].direction)
        return table

    @property
    def lengths(self) -> Float[Tensor, " k"]:
        """‖d_i‖₂ in float64."""
        return self.gram.diagonal().sqrt()

    @property
    def cosines(self) -> Float[Tensor, "k k"]:
        """Cosines of the angles between the axes; random ones are near 1/√p, not zero."""
        sizes = self.lengths
        return self.gram / torch.outer(sizes, sizes)

    def at(self, coordinates: Sequence[float]) -> Params:
        """θ + Σ a_i d_i as new tensors; where no axis moves a parameter, the origin's own tensor.

        Raises:
            ValueError: If there is not one coordinate an axis.
        """
        if len(coordinates) != len(self.axes):
            raise ValueError(f"`coordinates` must be {len(self.axes)} numbers, one an axis, got {len(coordinates)}.")
        point = dict(self.origin)
        for a, axis in zip(coordinates, self.axes, strict=True):
            for name, t in axis.direction.items():
                point[name] = torch.add(point[name], t, alpha=float(a))
        return point

    def buffers_at(self, coordinates: Sequence[float]) -> Params:
        """Σ a_i times the axes' changes of running statistics; empty where no axis has any."""
        change: Params = {}
        for a, axis in zip(coordinates, self.axes, strict=True):
            for name, t in axis.buffers.items():
                change[name] = change[name] + a * t if name in change else a * t
        return change

    def project(self, theta: Params) -> tuple[Float[Tensor, " k"], float]:
        """The nearest point of the set to θ', by least squares, so that axes need not be orthonormal.

        Args:
            theta: θ', all parameters by name.

        Returns:
            Its coordinates, and the distance ‖θ' - nearest‖₂ off the set.

        Raises:
            ValueError: If two axes are parallel.
        """
        self.check_independent()
        difference = {name: theta[name].double() - t.double() for name, t in self.origin.items()}
        sides = torch.tensor(
            [
                sum(float((difference[name] * t.double()).sum()) for name, t in axis.direction.items())
                for axis in self.axes
            ],
            dtype=torch.float64,
        )
        found = torch.linalg.solve(self.gram, sides)
        for a, axis in zip(found.tolist(), self.axes, strict=True):
            for name, t in axis.direction.items():
                difference[name] -= a * t.double()
        return found, length(difference)

    def orthogonalised(self) -> "Axes":
        """The same set with each axis made orthogonal to those before it (Gram–Schmidt), its length kept.

        For planes through given points; not for filter-normalised directions, whose norms it would change filter by
        filter.

        Raises:
            ValueError: If two axes are parallel.
        """
        self.check_independent()
        made: list[Axis] = []
        for axis in self.axes:
            rest, statistics = dict(axis.direction), dict(axis.buffers)
            for _ in range(2):  # once more, against rounding
                for other in made:
                    share = dot(rest, other.direction) / other.length**2
                    for mine, theirs in ((rest, other.direction), (statistics, other.buffers)):
                        for name, t in theirs.items():
                            mine[name] = mine[name] - share * t if name in mine else -share * t
            scale = axis.length / length(rest)
            recipe = {**axis.recipe, "orthogonalised": bool(made)}
            turned = {n: scale * t for n, t in rest.items()}
            moved = {n: scale * t for n, t in statistics.items()}
            made.append(replace(axis, direction=turned, recipe=recipe, buffers=moved))
        return replace(self, axes=tuple(made))

    def check_independent(self) -> None:
        """Raise a ValueError where an axis lies in the span of the others."""
        cosines = self.cosines
        if float(torch.linalg.eigvalsh(cosines)[0]) < PARALLEL:
            names = [axis.name for axis in self.axes]
            raise ValueError(f"the axes {names} are linearly dependent (cosines {cosines.tolist()}): choose others.")


def _wide_dot(a: Params, b: Params) -> float:
    """⟨a, b⟩ summed in float64, a tensor at a time; `dot` sums in the tensors' own precision."""
    return math.fsum(dot({name: t.double()}, {name: b[name].double()}) for name, t in a.items() if name in b)
