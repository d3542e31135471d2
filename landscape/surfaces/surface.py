"""Values of the loss, and whatever else was asked for, over the points of a grid in weight space."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.surfaces.grid import Grid


@dataclass(frozen=True, eq=False, repr=False)
class Surface:
    """One scan of a model: what was found at every point, with its standard error, and what the axes were.

    Attributes:
        grid: The coordinates.
        values: By metric, such as "loss" and "error", an array of the grid's shape in float64. NaN and infinities are
            values that the model gave; what was not evaluated is in `computed`.
        stderr: By metric, the standard error from the examples of the subset; NaN where a metric has none.
        computed: Which points were evaluated; the others were interpolated by refinement, or are still to be done.
        centre: By metric, (value, stderr) at the origin itself, which a grid of even size does not hold.
        axes: For each axis: name, unit, length, recipe.
        gram: ⟨d_i, d_j⟩ of the axes.
        context: What decides the values beside the weights: run, step, split, examples, mode, loss, dtype, ...
    """

    grid: Grid
    values: Mapping[str, Float[Tensor, "..."]]
    stderr: Mapping[str, Float[Tensor, "..."]]
    computed: Tensor
    centre: Mapping[str, tuple[float, float]]
    axes: tuple[Mapping[str, Any], ...]
    gram: Float[Tensor, "k k"]
    context: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        axes = ", ".join(str(axis.get("name", "?")) for axis in self.axes)
        return f"Surface({' x '.join(map(str, self.grid.shape))} points over {axes}; {', '.join(self.metrics)})"

    @property
    def whole(self) -> bool:
        """Whether every point has a value."""
        return bool(self.computed.all()) or bool(self.context.get("refined"))

    @property
    def metrics(self) -> list[str]:
        """Names of what was evaluated."""
        return list(self.values)

    @property
    def cosines(self) -> Float[Tensor, "k k"]:
        """Cosines of the angles between the axes."""
        sizes = self.gram.diagonal().sqrt()
        return self.gram / torch.outer(sizes, sizes)
