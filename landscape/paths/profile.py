"""Values along a path: by subset of the data, BatchNorm mode and metric, with what their uncertainty needs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.paths.evaluation import Evaluate
from landscape.paths.states import ModelState


@runtime_checkable
class Path(Protocol):
    """A curve in weight space."""

    def point(self, t: float) -> ModelState:
        """The state at coordinate t."""
        ...


@dataclass(frozen=True, eq=False)
class PathProfile:
    """What was found at k points of a path.

    Attributes:
        coordinates: Where, in float64.
        examples: By (subset, BatchNorm mode), by metric ("loss", "error"): a table of shape (k, n), one column an
            example; n is 1 where the metric is no mean over examples. NaN and infinities are what the model gave.
    """

    coordinates: Float[Tensor, " k"]
    examples: Mapping[tuple[str, str], Mapping[str, Float[Tensor, "k _"]]]

    def table(self, subset: str, mode: str = "eval", metric: str = "loss") -> Float[Tensor, "k n"]:
        """One metric, example by example.

        Raises:
            ValueError: If it was not evaluated.
        """
        if (subset, mode) not in self.examples:
            raise ValueError(f"`subset`, `mode` must be one of {list(self.examples)}, got {(subset, mode)}.")
        found = self.examples[subset, mode]
        if metric not in found:
            raise ValueError(f"`metric` must be one of {list(found)} for {(subset, mode)}, got {metric!r}.")
        return found[metric]

    def values(self, subset: str, mode: str = "eval", metric: str = "loss") -> Float[Tensor, " k"]:
        """The mean over examples at every point."""
        return self.table(subset, mode, metric).mean(1)

    def stderr(self, subset: str, mode: str = "eval", metric: str = "loss") -> Float[Tensor, " k"]:
        """The standard error s/√n of the mean over examples; NaN where there is one only.

        It is that of one point. The points share their examples, so differences along the path are known better: see
        `barrier`.
        """
        return standard_error(self.table(subset, mode, metric))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Long table: coordinate, subset, mode, metric, value, stderr, examples."""
        for (subset, mode), metrics in self.examples.items():
            for metric, table in metrics.items():
                errors = standard_error(table)
                for a, value, error in zip(
                    self.coordinates.tolist(), table.mean(1).tolist(), errors.tolist(), strict=True
                ):
                    yield {
                        "coordinate": a,
                        "subset": subset,
                        "mode": mode,
                        "metric": metric,
                        "value": value,
                        "stderr": error,
                        "examples": table.shape[1],
                    }


def profile(path: Path, coordinates: Sequence[float] | Tensor, evaluate: Evaluate) -> PathProfile:
    """Evaluate a path at some coordinates.

    Args:
        path: Gives the states.
        coordinates: At least one finite number.
        evaluate: Maps a state to readings, such as a `StateEvaluator`.

    Raises:
        ValueError: If there is no coordinate, or one is not finite.
    """
    where = checked_coordinates(coordinates)
    readings = [evaluate(path.point(a)) for a in where.tolist()]
    return PathProfile(
        where,
        {
            key: {metric: torch.stack([r[key][metric] for r in readings]) for metric in metrics}
            for key, metrics in readings[0].items()
        },
    )


def checked_coordinates(coordinates: Sequence[float] | Tensor) -> Float[Tensor, " k"]:
    """Coordinates in float64.

    Raises:
        ValueError: If there is none, or one is not finite.
    """
    where = torch.as_tensor(coordinates, dtype=torch.float64).reshape(-1)
    if not len(where) or not bool(where.isfinite().all()):
        raise ValueError(f"`coordinates` must be finite numbers, at least one, got {where.tolist()}.")
    return where


def standard_error(table: Float[Tensor, "k n"]) -> Float[Tensor, " k"]:
    """s/√n of every row; NaN for one column."""
    n = table.shape[1]
    if n < 2:
        return torch.full((len(table),), math.nan, dtype=torch.float64)
    return table.double().std(1) / math.sqrt(n)
