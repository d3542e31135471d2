"""Sets of examples that a scan evaluates a model on: tried at the origin, and cut into parts that fit the cache."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from landscape.batches import Batch, batch_size, by_example, slice_batch, split_batches, tensors
from landscape.checks.arguments import require_risk
from landscape.checks.repeatability import require_repeatable, undrawn
from landscape.functional import PureModel
from landscape.loaded import in_memory
from landscape.params import Params
from landscape.precision import own_precision
from landscape.risk import EmpiricalRisk
from landscape.scores import Function, example_weights
from landscape.surfaces.axes import Axes
from landscape.surfaces.batched import Predict
from landscape.surfaces.metrics import Metric, resolve

Without = Callable[[], AbstractContextManager[Any]]

CACHE_BYTES = 4 * 2**20  # of the largest activation of a part: larger ones leave the processor's cache
PROBE = 8  # examples on which the model and the metrics are tried
SAME = 1e-6  # relative: two passes at the same weights


@dataclass(eq=False)
class Subset:
    """One set of examples, cut into parts, and what is evaluated on it.

    Attributes:
        name: "" for the only one.
        risk: Of the private model and weights, in parts.
        weights: For each part, how the risk weighs its examples; None for alike.
        metrics: What is evaluated.
        columns: Its names.
        activation: Bytes of the largest activation of one example; 0 where unknown.
        notes: What was decided and why.
    """

    name: str
    risk: EmpiricalRisk
    weights: list[Tensor | None]
    metrics: list[Metric]
    columns: tuple[str, ...]
    activation: int
    notes: list[str]

    @property
    def sampled(self) -> list[bool]:
        """Whether each column has a standard error."""
        return [metric.sampled for metric in self.metrics for _ in metric.columns]


def prepared(
    name: str,
    risk: EmpiricalRisk,
    predict: Predict,
    theta: Params,
    metrics: Iterable[str] | Mapping[str, str | Function] | None,
    without_gradient: Without,
) -> Subset:
    """Try the model and the metrics on a few examples at the origin, and cut the batches into parts.

    On the CPU, parts are as large as the largest activation fits the cache. Batches stay whole where they are
    normalised by their own statistics, where the loss is no mean over examples, or where tensors have other lengths.

    Args:
        name: Of the set.
        risk: Gives examples, loss and weights.
        predict: The private model.
        theta: The origin.
        metrics: See `resolve`.
        without_gradient: `torch.inference_mode` or `torch.no_grad`.

    Raises:
        ValueError: If the forward pass is random, or a metric does not fit.
    """
    notes: list[str] = []
    whole = risk.mode == "batch" and isinstance(predict, PureModel) and bool(predict.normalised)
    batches = in_memory(risk.batches, "a scan")  # of which every point makes a pass
    whole = whole or not all(by_example(batch) for batch in batches)
    largest = max(batches, key=batch_size)
    probe = largest if whole else slice_batch(largest, 0, PROBE)
    risk.shares  # noqa: B018 (which checks that the loss may be cut into these batches)
    with own_precision(), without_gradient():
        outputs = _tried(predict, theta, probe)
        require_repeatable(risk, theta)
        found = resolve(
            metrics,
            risk,
            outputs,
            probe,
            whole=[largest, *(b for b in batches if b is not largest and batch_size(b))],
        )
    for metric in found:
        if metric.risk and not metric.sampled:
            whole = True
            notes.append(f"{metric.columns[0]!r} has no standard error: it is no mean of losses of single examples.")
    activation = 0 if whole else _activation(predict, theta, probe, without_gradient)
    parts = [batch for batch in batches if batch_size(batch)]
    if activation and risk.device.type == "cpu":
        size = batch_size(largest)
        pieces = -(-size // max(1, CACHE_BYTES // activation))
        parts = split_batches(parts, -(-size // pieces))
    columns = tuple(f"{name} {c}" if name else c for metric in found for c in metric.columns)
    weights = [_weights(risk, part) for part in parts]
    private = replace(risk, predict=predict, batches=parts, theta=theta)
    return Subset(name, private, weights, found, columns, activation, notes)


def check(risks: Mapping[str, EmpiricalRisk], axes: Axes) -> None:
    """Refuse sets that cannot be scanned together along these axes.

    Raises:
        ValueError: If there is none, a mode is "train", they differ in mode or model, they are shared out to processes,
            or the origin does not fit the model.
    """
    if not risks:
        raise ValueError("`risks` is empty: give a risk, or several by name.")
    for risk in risks.values():
        require_risk(risk, "risks")
    first = next(iter(risks.values()))
    for name, risk in risks.items():
        if risk.mode == "train":
            raise ValueError("`risks` has mode 'train', which is random: use 'eval', 'batch' or 'recalibrate'.")
        if risk.mode != first.mode:
            raise ValueError(f"`risks` has modes {first.mode!r} and {risk.mode!r}: use one, by `risk.on(data)`.")
        if risk.ranks is not None:
            raise ValueError("`risks` is shared out to processes: give each the whole data, and share the points out.")
        for key, t in risk.theta.items():
            if key not in axes.origin or axes.origin[key].shape != t.shape:
                own = tuple(axes.origin[key].shape) if key in axes.origin else "no such parameter"
                raise ValueError(
                    f"`risks` has a model with `{key}` of shape {tuple(t.shape)}, the axes' origin has {own}: are they "
                    "of the same architecture?"
                )
        one, other = first.predict, risk.predict
        if isinstance(one, PureModel) and isinstance(other, PureModel):
            if {id(p) for p in one.parameters.values()} != {id(p) for p in other.parameters.values()}:
                raise ValueError(f"`risks` has another model for {name!r}: make it by `risk.on(data)`.")
            strange = [key for key in axes.origin if key not in other.parameters]
            if strange:
                raise ValueError(f"the axes' origin has parameters {strange} that the model has not.")


def _tried(predict: Predict, theta: Params, batch: Batch) -> Any:
    """The outputs at the origin; twice, because a random forward pass has no surface."""
    with undrawn():
        one, two = predict(theta, batch[0]), predict(theta, batch[0])
    for a, b in zip(tensors(one), tensors(two), strict=True):
        if a.is_floating_point() and bool(((a - b).abs() > SAME * (a.abs() + b.abs())).any()):
            raise ValueError(
                "`risks` has a model whose outputs differ between two passes at the same weights: switch off what "
                "draws random numbers (dropout called without `training=self.training`, sampling, noise)."
            )
    return one


def _activation(predict: Predict, theta: Params, batch: Batch, without_gradient: Without) -> int:
    """Bytes of the largest tensor that a forward pass makes, for each example; 0 where it does not tell."""
    n = batch_size(batch)
    if n < 2:
        return 0
    sizes: list[list[int]] = []
    for count in (n // 2, n):
        seen = _Sizes()
        mode = torch.enable_grad if without_gradient is torch.enable_grad else torch.no_grad
        with own_precision(), mode(), seen:
            predict(theta, slice_batch(batch, 0, count)[0])
        sizes.append(seen.bytes)
    if len(sizes[0]) != len(sizes[1]):
        return 0
    growth: list[int] = [
        (b - a) // (n - n // 2) for a, b in zip(*sizes, strict=True)
    ]  # what does not grow is no activation
    return max(growth)


class _Sizes(TorchDispatchMode):
    """Notes the sizes of all tensors that are made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = [0]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.bytes += [t.numel() * t.element_size() for t in tensors(out)]
        return out


def _weights(risk: EmpiricalRisk, part: Batch) -> Tensor | None:
    if risk.weight is None:
        return None
    each = example_weights(risk, part)
    if each is None:  # not a sum over examples: each has its share of the batch's
        n = batch_size(part)
        each = torch.full((n,), float(risk.weight(*part)) / n, dtype=torch.float64)
    return each if risk.device.type == "mps" else each.to(risk.device)
