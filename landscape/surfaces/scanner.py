"""The scanner: a model's metrics at any points of a line, plane or volume, each computed from the origin alone."""

import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.batches import Batch, Batches, as_batches, batch_size
from landscape.evaluation import NEEDS_GRAPH
from landscape.functional import PureModel
from landscape.params import Params
from landscape.precision import own_precision
from landscape.risk import EmpiricalRisk
from landscape.scores import Function, mean_and_stderr
from landscape.surfaces.axes import Axes
from landscape.surfaces.batched import Predict, batched_columns, stacked, usual_points
from landscape.surfaces.metrics import Metric, columns_of
from landscape.surfaces.subsets import Subset, Without, check, prepared

Point = Sequence[float]
Metrics = Iterable[str] | Mapping[str, str | Function]
Values = dict[str, tuple[Float[Tensor, " k"], Float[Tensor, " k"]]]
"""For each column, values and standard errors at the points, in float64."""

MODES: tuple[Without, ...] = (torch.inference_mode, torch.no_grad, torch.enable_grad)  # the faster ones first
EXACT, NEAR = 1e-9, 1e-3  # how far values of several points at once may be from those of one, in float64 and others


class Scanner:
    """Evaluates metrics at θ + Σ a_i d_i, on one or several sets of examples at once.

    Every point is made from the origin afresh, in a private copy of the weights: what comes out does not depend, bit
    for bit, on which points were asked for before or together. With `batch_points` K > 1 that holds for whole blocks of
    K points, see `blocks`; there the last bits may differ from those of K = 1. Neither the model nor the axes are
    touched. Values are means over all examples in float64, whatever the batches; NaN and infinities are kept.

    On the CPU, batches are passed in parts whose largest activation fits the cache, which halves the time of a
    residual network on 512 images; not where batches are normalised by their own statistics.

    Args:
        risks: The model's risk on a set of examples, or several by name ("train", "test"), over the same model: use
            `risk.on(data)`. Its mode is how BatchNorm behaves: "eval", "batch", or "recalibrate", which estimates
            running statistics afresh at every point and uses them for all sets.
        axes: Origin and directions. Its origin is where the model is evaluated, whatever the risk's own θ. If axes
            carry changes of running statistics, these are added to the model's, except in mode "recalibrate".
        metrics: See `landscape.surfaces.metrics.resolve`; None means the loss, and the error where there are labels.
        calibration: Examples, or a risk that has them, for mode "recalibrate"; None means those of the first set.
        batch_points: K, how many points to evaluate at once by vmap; "auto" decides by the sizes of model and data,
            the same at every call. A model that cannot be vmapped is evaluated at one point at a time, with a note.

    Attributes:
        columns: Names of what is evaluated: "loss", or "test loss" with named sets.
        batch_points: K as it is used.
        notes: What was decided and why.
        failures: Messages of forward passes that failed away from the origin, with how often; their values are NaN.

    Raises:
        ValueError: If a mode is "train", sets differ in model or mode, the origin does not fit the model, the forward
            pass is random, or a metric does not fit the data.
    """

    def __init__(
        self,
        risks: EmpiricalRisk | Mapping[str, EmpiricalRisk],
        axes: Axes,
        *,
        metrics: Metrics | None = None,
        calibration: EmpiricalRisk | Any = None,
        batch_points: int | Literal["auto"] = "auto",
    ) -> None:
        named = dict(risks) if isinstance(risks, Mapping) else {"": risks}
        if batch_points != "auto" and not (isinstance(batch_points, int) and batch_points >= 1):
            raise ValueError(f"`batch_points` must be 'auto' or a whole number of at least 1, got {batch_points!r}.")
        check(named, axes)
        first = next(iter(named.values()))
        if calibration is not None and first.mode != "recalibrate":
            raise ValueError(f"`calibration` needs risks of mode 'recalibrate', these have mode {first.mode!r}.")
        self.axes, self.mode = axes, first.mode
        self.examples = {name: risk.n for name, risk in named.items()}
        self.failures: Counter[str] = Counter()
        models: dict[int, Predict] = {}
        for risk in named.values():
            own = risk.predict
            models.setdefault(id(own), own.plain() if isinstance(own, PureModel) else own)
        self._theta = _copied(axes, first.predict)
        self._moved = [name for name in axes.origin if any(name in axis.direction for axis in axes.axes)]
        self._statistics = _statistics(axes, list(models.values()))
        self._calibration: Batches | None = None
        if self.mode == "recalibrate":
            data = first if calibration is None else calibration
            first_model = first.predict.module if isinstance(first.predict, PureModel) else None
            self._calibration = data.batches if isinstance(data, EmpiricalRisk) else as_batches(data, first_model)
        self._put([0.0] * len(axes))

        def all_prepared() -> list[Subset]:
            return [
                prepared(name, risk, models[id(risk.predict)], self._theta, metrics, self._without_gradient)
                for name, risk in named.items()
            ]

        self.subsets = self._first_of(MODES, all_prepared)
        self.notes = [note for subset in self.subsets for note in subset.notes]
        self.columns = tuple(c for subset in self.subsets for c in subset.columns)
        self._activation = max(subset.activation for subset in self.subsets)
        self.batch_points = 1
        self.batch_points = self._points_at_once(batch_points)

    def _first_of(self, modes: Sequence[Without], compute: Callable[[], list[Subset]]) -> list[Subset]:
        """Computed in the first mode that model and metrics take: those that differentiate inside need gradients."""
        self._without_gradient: Without = modes[0]
        try:
            return compute()
        except RuntimeError as error:
            if len(modes) == 1 or not NEEDS_GRAPH.search(str(error)):
                raise
            return self._first_of(modes[1:], compute)

    # What a caller plans with ----------------------------------------------------------------------------------------

    @property
    def context(self) -> dict[str, Any]:
        """What decides the values beside weights and data, for the file (JSON)."""
        weights = next(iter(self.axes.origin.values()))
        return {
            "mode": self.mode,
            "examples": dict(self.examples) if "" not in self.examples else self.examples[""],
            "calibration": sum(batch_size(b) for b in self._calibration) if self._calibration else None,
            "dtype": str(weights.dtype).removeprefix("torch."),
            "device": weights.device.type,
            "batch_points": self.batch_points,
            "parts": {subset.name: subset.risk.sizes for subset in self.subsets},
            "notes": list(self.notes),
        }

    def blocks(self, count: int) -> list[range]:
        """The numbers 0 to count - 1 of a list of points in the blocks that must be evaluated together.

        Processes may share blocks out, and a later run take up the missing ones: each gives the same bits anywhere.
        """
        k = self.batch_points
        return [range(i, min(i + k, count)) for i in range(0, count, k)]

    def seconds_per_point(self, *, trials: int = 3) -> float:
        """Seconds a point takes on this machine, from a few evaluations near the origin; the least of them."""
        spent = []
        for _ in range(trials + 1):
            begun = time.perf_counter()
            self.evaluate([[0.0] * len(self.axes)] * self.batch_points)
            spent.append(time.perf_counter() - begun)
        return min(spent[1:]) / self.batch_points

    @property
    def bytes(self) -> int:
        """Bytes that the scan holds beyond the model, its data and the axes, about: weights and largest activations."""
        weights = sum(t.numel() * t.element_size() for t in self._theta.values())
        part = max(size for subset in self.subsets for size in subset.risk.sizes)
        moved = sum(self._theta[name].numel() * self._theta[name].element_size() for name in self._moved)
        stack = 2 * moved * self.batch_points if self.batch_points > 1 else 0
        return weights + stack + 2 * self._activation * part * self.batch_points

    # Evaluation ------------------------------------------------------------------------------------------------------

    def evaluate(self, points: Iterable[Point]) -> Values:
        """Values and standard errors at the points, in their order.

        Args:
            points: Coordinates. With K = `batch_points` > 1 they are taken K at a time, the last block filled up.

        Raises:
            ValueError: If a point has not one finite coordinate an axis.
        """
        wanted = [tuple(float(a) for a in point) for point in points]
        for point in wanted:
            if len(point) != len(self.axes) or not all(math.isfinite(a) for a in point):
                raise ValueError(f"`points` must have {len(self.axes)} finite coordinates each, got {point}.")
        found: list[Tensor] = []
        with own_precision(), self._without_gradient():
            for block in self.blocks(len(wanted)):
                some = wanted[block.start : block.stop]
                found += [self._one(some[0])[None]] if self.batch_points == 1 else [self._several(some)]
            table = torch.cat(found).cpu() if found else torch.empty(0, 2, len(self.columns), dtype=torch.float64)
        table = table.detach().clone()  # an ordinary tensor, also after inference mode
        return {name: (table[:, 0, i].clone(), table[:, 1, i].clone()) for i, name in enumerate(self.columns)}

    def centre(self) -> dict[str, tuple[float, float]]:
        """Value and standard error of each column at the origin itself."""
        found = self.evaluate([[0.0] * len(self.axes)])
        return {name: (float(value[0]), float(stderr[0])) for name, (value, stderr) in found.items()}

    def _one(self, point: Point) -> Float[Tensor, "2 c"]:
        self._put(point)
        rows = []
        settled: dict[int, Predict] = {}
        for subset in self.subsets:
            with self._forgiving() as failed:
                risk = self._settled(subset.risk, settled)
                rows.append(_summary(risk.over(partial(_table, subset.metrics), None, subset.weights), subset.sampled))
            if failed:
                self.failures[failed[0]] += 1
                rows.append(self._nothing(len(subset.columns)))
        return torch.cat(rows, -1) if len(rows) > 1 else rows[0]

    def _several(self, points: Sequence[Point]) -> Float[Tensor, "k 2 c"]:
        with self._forgiving() as failed:
            return self._stacked(points)
        assert failed  # one bad point is enough; which one is found one at a time
        return torch.stack([self._one(point) for point in points])

    def _stacked(self, points: Sequence[Point]) -> Float[Tensor, "k 2 c"]:
        moved = stacked(self.axes, points, pad=self.batch_points)
        fixed = {name: t for name, t in self._theta.items() if name not in moved}
        rows = []
        for subset in self.subsets:
            tables = [
                batched_columns(subset.risk.predict, subset.metrics, moved, fixed, batch, w)
                for batch, w in zip(subset.risk.batches, subset.weights, strict=True)
            ]
            rows.append(_summary(tables, subset.sampled))
        return torch.cat(rows, -1)[: len(points)]

    def _settled(self, risk: EmpiricalRisk, known: dict[int, Predict]) -> EmpiricalRisk:
        """The risk with the running statistics of the present weights, where the mode asks for them."""
        if self._calibration is None:
            return risk
        if id(risk.predict) not in known:
            assert isinstance(risk.predict, PureModel)
            known[id(risk.predict)] = risk.predict.recalibrated(self._theta, self._calibration)
        return replace(risk, predict=known[id(risk.predict)])

    def _put(self, point: Point) -> None:
        """θ + Σ a_i d_i into the private weights, and the running statistics that belong to it."""
        with torch.no_grad():
            if self._moved:
                own = [self._theta[name] for name in self._moved]
                torch._foreach_copy_(own, [self.axes.origin[name] for name in self._moved])
            for a, axis in zip(point, self.axes.axes, strict=True):
                if a and axis.direction:
                    d = list(axis.direction.values())
                    torch._foreach_add_([self._theta[name] for name in axis.direction], d, alpha=a)
            if self._statistics:
                change = self.axes.buffers_at(point)
                for name, (places, start) in self._statistics.items():
                    for place in places:
                        place.copy_(start + change[name])

    @contextmanager
    def _forgiving(self) -> Iterator[list[str]]:
        """A forward pass that fails is a point without values; lack of memory and broken devices are not its fault."""
        failed: list[str] = []
        try:
            yield failed
        except (RuntimeError, ValueError, ArithmeticError, AssertionError) as error:
            if isinstance(error, torch.OutOfMemoryError) or type(error).__name__ == "AcceleratorError":
                raise
            failed.append(_first_line(error))

    def _nothing(self, columns: int) -> Tensor:
        device = next(iter(self._theta.values())).device
        return torch.full((2, columns), math.nan, dtype=torch.float64, device="cpu" if device.type == "mps" else device)

    def _points_at_once(self, asked: int | Literal["auto"]) -> int:
        if asked == "auto":
            examples = sum(self.examples.values())
            asked = usual_points(self.axes, examples=examples, activation=self._activation)
        if asked == 1:
            return 1
        if self._calibration is not None:
            why = "running statistics are estimated at each point"
        elif self._statistics:
            why = "the axes carry running statistics"
        else:
            why = self._obstacle(asked)
        if why:
            self.notes.append(f"one point at a time: {why}.")
        return 1 if why else asked

    def _obstacle(self, k: int) -> str:
        """Why K points cannot be evaluated at once, tried at the origin and beside it; "" if they can."""
        points = [[0.0] * len(self.axes), [0.5] * len(self.axes)]
        self.batch_points = k
        try:
            with own_precision(), self._without_gradient(), warnings.catch_warnings():
                warnings.simplefilter("error")  # such as that vmap falls back to a loop
                together = self._stacked(points)[:, 0]
                alone = torch.stack([self._one(point)[0] for point in points])
        except Exception as error:  # models may do whatever vmap does not take
            return f"vmap does not take the model ({_first_line(error)})"
        finally:
            self.batch_points = 1
            self.failures.clear()
        exact = all(t.dtype == torch.float64 for t in self._theta.values())
        off = (together - alone).abs() > (EXACT if exact else NEAR) * (1 + alone.abs())
        return "vmap gives other values than the model" if bool(off.any()) else ""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _copied(axes: Axes, predict: Predict) -> Params:
    """A private copy of the origin; convolutions' in the layout that is faster on a CPU."""
    channels_last = isinstance(predict, PureModel) and predict.prefers_channels_last
    return {
        name: t.detach().clone(memory_format=torch.channels_last)
        if channels_last and t.ndim == 4 and t.device.type == "cpu"
        else t.detach().clone()
        for name, t in axes.origin.items()
    }


def _statistics(axes: Axes, models: Sequence[Predict]) -> dict[str, tuple[list[Tensor], Tensor]]:
    """By name, running statistics that the axes change: where the private models hold them, and their first values."""
    names = {name for axis in axes.axes for name, t in axis.buffers.items() if t.is_floating_point()}
    found: dict[str, tuple[list[Tensor], Tensor]] = {}
    own = [dict(m.module.named_buffers()) if isinstance(m, PureModel) else {} for m in models]
    for name in sorted(names):
        if any(name not in buffers for buffers in own):
            raise ValueError(f"`axes` changes the running statistic `{name}`, which the model has not.")
        found[name] = ([buffers[name] for buffers in own], own[0][name].clone())
    return found


def _table(
    metrics: Sequence[Metric], outputs: Any, batch: Batch, weights: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    return columns_of(metrics, outputs, batch[1], weights)


def _summary(tables: Sequence[tuple[Tensor, Tensor | None]], sampled: Sequence[bool]) -> Float[Tensor, "*k 2 c"]:
    values, weights = zip(*tables, strict=True)
    shares = None if weights[0] is None else torch.cat(weights, -2) if len(weights) > 1 else weights[0]
    mean, stderr = mean_and_stderr(torch.cat(values, -2) if len(values) > 1 else values[0], shares)
    if not all(sampled):
        stderr = torch.where(torch.tensor(sampled, device=stderr.device), stderr, math.nan)
    return torch.stack((mean, stderr), -2)
