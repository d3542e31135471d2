"""Fit a curve of low loss between two models."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from landscape.batches import Batch, as_batches
from landscape.functional import PureModel
from landscape.params import Params
from landscape.paths.curves import Bezier, Polygon, make_curve, straight_bends
from landscape.paths.states import ModelState, check_same
from landscape.randomness import source_of

FINAL = 0.01  # of the learning rate, where it decays


@dataclass(frozen=True)
class FitStatus:
    """Where the fit of a curve stands.

    Attributes:
        epoch: Epochs done.
        epochs: Of how many.
        loss: Mean loss at the points drawn during the last one.
        lr: Its learning rate.
    """

    epoch: int
    epochs: int
    loss: float
    lr: float


def fit_curve(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    start: nn.Module | ModelState,
    end: nn.Module | ModelState,
    data: Any,
    *,
    kind: Literal["bezier", "polygon"] = "bezier",
    bends: int = 1,
    epochs: int = 30,
    lr: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    batch_size: int = 128,
    schedule: Literal["late", "constant"] = "late",
    generator: Generator | None = None,
    progress: Callable[[FitStatus], None] | None = None,
) -> Bezier | Polygon:
    """Minimise E_t L(w(t)), t uniform in [0, 1], over the bends of a curve between two models, which stay fixed.

    For each batch one t is drawn, the gradient is taken at w(t), and each bend gets it times its coefficient in w(t),
    followed by a step of SGD with momentum. The bends begin on the straight line. BatchNorm uses the statistics of the
    batch and updates none; dropout is off; frozen parameters stay on the straight line.

    Args:
        model: The architecture; its own weights do not matter, and nothing is changed.
        loss: Mean loss of one batch, called as loss(outputs, targets).
        start: The model at t = 0.
        end: The model at t = 1.
        data: A pair (inputs, targets), cut into batches of nearly equal size, anew in each epoch; or a list of batches
            or a DataLoader, whose batches are held in memory and taken in random order.
        kind: "bezier" or "polygon".
        bends: Points between the ends, at least 1.
        epochs: Passes over the data.
        lr: Learning rate.
        momentum: In [0, 1), without damping or Nesterov's form.
        weight_decay: Coefficient of the bends' own l2 penalty, added to the gradient.
        batch_size: Most examples of a batch, where the data are a pair.
        schedule: "late" holds the learning rate for half of the steps and then lowers it linearly to a hundredth;
            "constant" holds it.
        generator: Decides every t and the order of the examples; None means a fresh one from seed 0.
        progress: Called after each epoch.

    Returns:
        The curve; see `landscape.paths.curves` for its values and summary. The same arguments and generator give the
        same curve.

    Raises:
        ValueError: If the two are not of one architecture, an argument is out of range, or the loss stops being finite.

    Source:
        Garipov et al. (2018), "Loss surfaces, mode connectivity, and fast ensembling of DNNs", NeurIPS, sec. 3. There
        weight decay is always on; the equal batches are ours.
    """
    first, last = ModelState.of(start), ModelState.of(end)
    check_same(first, last)
    _check(bends=bends, epochs=epochs, lr=lr, momentum=momentum, weight_decay=weight_decay, batch_size=batch_size)
    if kind not in ("bezier", "polygon"):
        raise ValueError(f"`kind` must be 'bezier' or 'polygon', got {kind!r}.")
    if schedule not in ("late", "constant"):
        raise ValueError(f"`schedule` must be 'late' or 'constant', got {schedule!r}.")
    generator = source_of(generator)
    curve = make_curve(kind, [first, *straight_bends(first, last, bends), last])
    pure = PureModel(model, mode="batch")
    for name, p in pure.parameters.items():
        if name not in first.parameters or first.parameters[name].shape != p.shape:
            raise ValueError(f"`model` has a parameter {name!r} of shape {tuple(p.shape)}, which `start` has not.")
    moving = [name for name, p in pure.parameters.items() if p.requires_grad]
    velocities: list[Params] = [
        {name: torch.zeros_like(s.parameters[name]) for name in moving} for s in curve.points[1:-1]
    ]
    whole = (data[0], data[1]) if isinstance(data, tuple) and isinstance(data[0], Tensor) else None
    batches = list(as_batches(data))
    count = math.ceil(len(whole[0]) / batch_size) if whole else len(batches)
    step, steps = 0, max(epochs * count, 1)
    for epoch in range(epochs):
        total, seen = 0.0, 0
        for x, y in _shuffled(whole, batches, count, generator):
            rate = lr * _decay(step / steps) if schedule == "late" else lr
            t = float(torch.rand((), generator=generator, dtype=torch.float64, device=generator.device))
            value, gradient = _gradient(pure, loss, curve.point(t), moving, x, y)
            if not math.isfinite(value):
                raise ValueError(
                    f"`lr` = {lr} makes the loss {value} at t = {t:.3f} in epoch {epoch + 1}: use a smaller one (or "
                    "the models or data are not finite)."
                )
            coefficients = curve.coefficients(t)[1:-1]
            for share, bend, velocity in zip(coefficients, curve.points[1:-1], velocities, strict=True):
                for name in moving:
                    own, v = bend.parameters[name], velocity[name]
                    slope = share * gradient[name]
                    if weight_decay:
                        slope = slope.add_(own, alpha=weight_decay)
                    own.sub_(v.mul_(momentum).add_(slope), alpha=rate)  # the bends are this function's own tensors
            total, seen, step = total + value, seen + 1, step + 1
        if progress is not None:
            progress(FitStatus(epoch + 1, epochs, total / max(seen, 1), rate))
    return make_curve(kind, curve.points)  # whatever was cached of the old bends is gone


def _gradient(
    pure: PureModel, loss: Callable[[Any, Any], Tensor], state: ModelState, moving: list[str], x: Any, y: Any
) -> tuple[float, Params]:
    point = {name: t.detach() for name, t in state.parameters.items()}
    for name in moving:
        point[name] = point[name].clone().requires_grad_()
    with torch.enable_grad():
        value = loss(pure(point, x), y)
        gradients = torch.autograd.grad(value, [point[name] for name in moving], materialize_grads=True)
    return float(value.detach()), dict(zip(moving, gradients, strict=True))


def _shuffled(
    whole: tuple[Tensor, Any] | None, batches: list[Batch], count: int, generator: Generator
) -> Iterator[tuple[Any, Any]]:
    """One epoch: examples, or whole batches, in random order. Parts differ by one example, so none is very small."""
    if whole is None:
        for i in torch.randperm(len(batches), generator=generator, device=generator.device).tolist():
            yield batches[i]
        return
    x, y = whole
    order = torch.randperm(len(x), generator=generator, device=generator.device).to(x.device)
    for part in order.tensor_split(count):
        yield x[part], y[part]


def _decay(done: float) -> float:
    return 1.0 if done < 0.5 else 1 - (1 - FINAL) * (done - 0.5) / 0.5


def _check(*, bends: int, epochs: int, lr: float, momentum: float, weight_decay: float, batch_size: int) -> None:
    for name, value, low in (("bends", bends, 1), ("epochs", epochs, 0), ("batch_size", batch_size, 1)):
        if value < low:
            raise ValueError(f"`{name}` must be at least {low}, got {value!r}.")
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"`lr` must be finite and above 0, got {lr!r}.")
    if not 0 <= momentum < 1:
        raise ValueError(f"`momentum` must be in [0, 1), got {momentum!r}.")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ValueError(f"`weight_decay` must be finite and at least 0, got {weight_decay!r}.")
