"""Sharpness: how far the loss rises when the weights are perturbed, in the worst way found or on average."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Generator, Tensor

from landscape.estimate import Estimate
from landscape.kernels import math_attention
from landscape.operators import Hessian, Rescaled, SymmetricOperator
from landscape.params import Params, flatten, inner, norm
from landscape.per_example import chunk_gradients
from landscape.perturbation import TINY, AscentStep, Metric, Perturbation, check_radius, displaced, random_direction
from landscape.risk import EmpiricalRisk
from landscape.spectral.eigenpairs import top_eigenpairs

BLOCK_BYTES = 12 * 2**20  # gradients of chunks held at once: more leaves the cache, less pays the overhead more often


@dataclass(frozen=True)
class Sharpness(Estimate):
    """A rise of the loss under a perturbation, with what describes that perturbation.

    For m-sharpness everything is a mean over the chunks, weighted by their size.

    Attributes:
        length: Mean ‖δ‖₂.
        gradient_norm: Mean ‖∇L‖₂ at the unperturbed weights; NaN for average sharpness.
        taylor: Mean of ⟨∇L, δ⟩, plus δᵀHδ/2 where that was asked for; NaN for average sharpness.
        error: Mean error rate at the perturbed weights; NaN unless outputs are rows of scores for integer labels.
    """

    length: float = math.nan
    gradient_norm: float = math.nan
    taylor: float = math.nan
    error: float = math.nan


@dataclass(frozen=True)
class _Rise:
    """One chunk's numbers."""

    rise: float
    length: float
    gradient_norm: float
    taylor: float
    error: float


def ascent_sharpness(
    risk: EmpiricalRisk,
    perturbation: Perturbation,
    m: int | None = None,
    *,
    theta: Params | None = None,
    second_order: bool = False,
    generator: Generator | None = None,
) -> Sharpness:
    """Measure L(θ + δ) - L(θ) for the displacement δ that a perturbation makes of ∇L(θ).

    With `AscentStep(rho)` it is SAM's one-step sharpness, with a metric ASAM's, with p = inf that of the box. For a
    chunk size m it is m-sharpness: the examples are partitioned into chunks, each has its own δ from its own gradient,
    and the rises are averaged, weighted by size.

    Where ‖∇L‖ < 1e-12, a normalised l2 `AscentStep` has no direction, and the value is the second-order one,
    ρ² max(λ_max, 0) / 2 with λ_max of H (of T H T, unless the metric T is applied "before"), with a warning.

    Equal chunks with an `AscentStep` of p = 2 or inf are computed together by vmap, in blocks of 12 MiB of gradients;
    everything else, and models that vmap refuses, one chunk at a time.

    Args:
        risk: The risk L.
        perturbation: Maps (θ, ∇L) to δ.
        m: Examples a chunk, from 1 to n; the last chunk may be smaller. None means one chunk with all the data.
        theta: The point θ; None means the risk's own.
        second_order: Add δᵀHδ/2 to `taylor`, at one Hessian product a chunk.
        generator: Draws the partition, and start vectors where a gradient vanishes. None keeps the order of the data.

    Returns:
        The rise, in units of the loss. Its standard error is 0 for m=None. For chunks it describes the spread of the
        chunks' rises over √chunks: the error in taking these chunks for others like them. For the data and partition
        at hand the value is exact. `draws` is the number of chunks.

    Raises:
        ValueError: If `m` is out of range, or batches cannot be cut into chunks.

    Source:
        Foret et al. (2021), ICLR, for the step and m-sharpness; Kwon et al. (2021), ICML, for the metric; the
        second-order value is our definition.
    """
    point = risk.theta if theta is None else theta
    start = torch.Generator().manual_seed(0) if generator is None else generator
    chunks = [risk] if m is None else risk.chunks(m, generator=generator)
    found: list[_Rise | None] = [None] * len(chunks)
    batched = _batchable(perturbation) and not second_order and m is not None and len(chunks) > 1
    batched = batched and risk.mode != "recalibrate"  # each chunk has statistics of its own
    if batched and isinstance(perturbation, AscentStep):
        equal = chunks if chunks[-1].n == chunks[0].n else chunks[:-1]
        try:
            found[: len(equal)] = _rises_together(equal, perturbation, point)
        except (RuntimeError, NotImplementedError, ValueError, TypeError):
            found = [None] * len(chunks)  # not every model can be vmapped; a real error comes back in the loop
    rises, flat = [], 0
    for chunk, done in zip(chunks, found, strict=True):
        rise = _rise(chunk, perturbation, point, second_order) if done is None else done
        if rise.gradient_norm < TINY and isinstance(perturbation, AscentStep) and perturbation.normalise:
            flat += 1
            rise = _second_order_rise(chunk, perturbation, point, rise, start)
        rises.append(rise)
    if flat:
        warnings.warn(
            f"the gradient vanishes on {flat} of {len(chunks)} chunks: where the norm is l2, their value is the "
            "second-order one, rho² max(lambda_max, 0) / 2; elsewhere it is 0.",
            RuntimeWarning,
            stacklevel=2,
        )
    return _mean(rises, [chunk.n for chunk in chunks])


def average_sharpness(
    risk: EmpiricalRisk,
    rho: float,
    *,
    draws: int = 10,
    metric: Metric | None = None,
    noise: Literal["gaussian", "uniform"] = "gaussian",
    theta: Params | None = None,
    generator: Generator,
) -> Sharpness:
    """Estimate E[L(θ + δ)] - L(θ) for random δ, from antithetic pairs ±δ.

    Gaussian: δ = ρ T n, n ~ N(0, I), so that ρ is a standard deviation for each coordinate and ‖δ‖ is about ρ √p for
    T = I; to second order the value is ρ² tr(T H T) / 2. Uniform: δ = ρ T u, u uniform on [-1, 1]^p; ρ² tr(T H T) / 6.
    The same generator state gives the same n for all models of one shape (common random numbers).

    Args:
        risk: The risk L.
        rho: ρ >= 0.
        draws: Number of pairs; two passes over the data each.
        metric: T, or None for T = I.
        noise: Distribution of the perturbation.
        theta: The point θ; None means the risk's own.
        generator: Source of the noise.

    Returns:
        The mean over pairs of (L(θ + δ) + L(θ - δ)) / 2 - L(θ), in units of the loss, with its standard error over
        pairs (NaN for a single one). `error` is the mean error rate over both signs.

    Raises:
        ValueError: If `rho`, `draws` or `noise` is out of range.

    Source:
        Andriushchenko et al. (2023), ICML, for the measure; the pairs are our choice.
    """
    check_radius(rho)
    if draws < 1:
        raise ValueError(f"`draws` must be at least 1 pair, got {draws}.")
    if noise not in ("gaussian", "uniform"):
        raise ValueError(f"`noise` must be 'gaussian' or 'uniform', got {noise!r}.")
    point = risk.theta if theta is None else theta
    scale = None if metric is None else metric(point)
    base, _ = _evaluate(risk, point)
    values, lengths, errors = [], [], []
    for _ in range(draws):
        delta = random_direction(point, generator) if noise == "gaussian" else _uniform(point, generator)
        delta = {name: rho * (t if scale is None else scale[name] * t) for name, t in delta.items()}
        ends = [_evaluate(risk, displaced(point, delta, sign)) for sign in (1.0, -1.0)]
        values.append((ends[0][0] - base + ends[1][0] - base) / 2)
        lengths.append(float(norm(delta)))
        errors.append((ends[0][1] + ends[1][1]) / 2)
    with np.errstate(invalid="ignore"):  # a diverged point gives NaN
        stderr = float(np.std(values, ddof=1)) / math.sqrt(draws) if draws > 1 else math.nan
    return Sharpness(
        math.fsum(values) / draws,
        stderr,
        draws,
        method=f"antithetic-{noise}",
        length=math.fsum(lengths) / draws,
        error=math.fsum(errors) / draws,
    )


def _mean(rises: list[_Rise], sizes: list[int]) -> Sharpness:
    share = np.asarray(sizes) / sum(sizes)
    values = np.asarray([r.rise for r in rises])
    value = math.fsum(share * values)
    c = len(rises)
    with np.errstate(invalid="ignore"):  # a diverged point gives NaN
        squares = math.fsum(share**2 * (values - value) ** 2)
    spread = math.sqrt(squares * c / (c - 1)) if c > 1 else 0.0

    def average(each: Callable[[_Rise], float]) -> float:
        return math.fsum(share * np.asarray([each(r) for r in rises]))

    return Sharpness(
        value,
        spread,
        c,
        method="ascent",
        length=average(lambda r: r.length),
        gradient_norm=average(lambda r: r.gradient_norm),
        taylor=average(lambda r: r.taylor),
        error=average(lambda r: r.error),
    )


def _evaluate(risk: EmpiricalRisk, theta: Params) -> tuple[float, float]:
    """Mean loss and error rate at θ; the error is NaN where the data are not labelled rows."""
    risk = risk.settled(theta)
    losses, wrong = [], []
    with torch.no_grad():
        for (x, y), share in zip(risk.batches, risk.shares, strict=True):
            out = risk.predict(theta, x)
            losses.append(float(risk.loss(out, y)) * share if share else 0.0)
            wrong.append(float(_mistakes(out, y)) if _labelled(out, y) else math.nan)
    if risk.ranks is None:
        return math.fsum(losses), sum(wrong) / risk.n
    total = [risk.ranks.total(number, risk.device) for number in (math.fsum(losses), sum(wrong), float(risk.n))]
    return total[0], total[1] / total[2]


def _labelled(out: Any, y: Any) -> bool:
    """Whether outputs are rows of scores for integer labels."""
    if not (isinstance(out, Tensor) and isinstance(y, Tensor)):
        return False
    whole = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    return whole and out.ndim == 2 and out.shape[1] > 1 and y.shape == out.shape[:1]


def _mistakes(out: Tensor, y: Tensor) -> Tensor:
    return (out.argmax(-1) != y).sum(-1)


def _rise(risk: EmpiricalRisk, perturbation: Perturbation, theta: Params, second_order: bool) -> _Rise:
    """The rise on one chunk, from its own gradient."""
    base, gradient = risk.value_and_gradient(theta)
    delta = perturbation(theta, gradient)
    value, error = _evaluate(risk, displaced(theta, delta))
    common = {name: gradient[name] for name in delta}
    taylor = float(inner(common, delta))
    if second_order:
        whole = flatten({name: delta.get(name, torch.zeros_like(t)) for name, t in theta.items()}, risk.names)
        taylor += float(whole @ (Hessian(risk, theta, path="afresh") @ whole)) / 2
    return _Rise(value - base, float(norm(delta)), float(norm(gradient)), taylor, error)


def _second_order_rise(
    risk: EmpiricalRisk, step: AscentStep, theta: Params, found: _Rise, generator: Generator
) -> _Rise:
    """ρ² max(λ_max, 0) / 2 on the ball of an l2 step; what was found for other norms."""
    if step.p != 2:
        return found
    H: SymmetricOperator = Hessian(risk, theta)
    if step.metric is not None and step.where != "before":
        H = Rescaled(H, flatten(step.metric({name: theta[name] for name in risk.names}), risk.names))
    value = step.rho**2 * max(float(top_eigenpairs(H, generator=generator).values[0]), 0.0) / 2
    return _Rise(value, found.length, found.gradient_norm, value, found.error)


def _batchable(perturbation: Perturbation) -> bool:
    return isinstance(perturbation, AscentStep) and (perturbation.p in (2, math.inf) or not perturbation.normalise)


def _rises_together(chunks: list[EmpiricalRisk], step: AscentStep, theta: Params) -> list[_Rise]:
    """The rises on chunks of equal size, many at a time."""
    point = {name: theta[name].detach() for name in chunks[0].names}
    row_bytes = sum(t.numel() * t.element_size() for t in point.values())
    size = max(1, BLOCK_BYTES // row_bytes)
    rises: list[_Rise] = []
    for at in range(0, len(chunks), size):
        x, y = (torch.stack([c.batches[0][i] for c in chunks[at : at + size]]) for i in (0, 1))
        gradients, base = chunk_gradients(chunks[0], point, x, y)
        delta = _steps_together(step, point, gradients)
        taylor = torch.stack([(gradients[k] * delta[k]).flatten(1).sum(1) for k in delta]).double().sum(0)
        lengths, slopes = _norms(delta), _norms(gradients)
        moved = {name: t.add_(point[name]) for name, t in delta.items()}
        value, wrong = _values_together(chunks[0], moved, x, y)
        error = wrong.double() / chunks[0].n
        columns = (value.double() - base.double(), lengths, slopes, taylor, error)
        rises += [_Rise(*row) for row in torch.stack([c.double() for c in columns], 1).tolist()]
    return rises


def _values_together(risk: EmpiricalRisk, theta: Params, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Losses, and numbers of mistakes, of chunk c at its own parameters θ_c."""

    def evaluate(point: Params, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        out = risk.predict(point, x)
        loss = risk.loss(out, y)
        return loss, _mistakes(out, y) if _labelled(out, y) else torch.full_like(loss, math.nan)

    with torch.no_grad(), math_attention():
        losses, wrong = torch.func.vmap(evaluate)(theta, x, y)
    return losses, wrong


def _norms(parts: Params) -> Tensor:
    """l2 norms over all tensors jointly, for each chunk."""
    each = [torch.linalg.vector_norm(t.flatten(1), dim=1, dtype=_sum_dtype(t)) for t in parts.values()]
    joint: Tensor = torch.linalg.vector_norm(torch.stack(each), dim=0)
    return joint


def _sum_dtype(t: Tensor) -> torch.dtype:
    return torch.float32 if t.dtype in (torch.float16, torch.bfloat16) else t.dtype


def _steps_together(step: AscentStep, theta: Params, gradients: Params) -> Params:
    """`AscentStep` for many gradients at one θ (p = 2, p = inf, or unnormalised): leading axis the chunk."""
    scale = None if step.metric is None else step.metric(theta)
    parts = gradients
    if scale is not None and step.where != "after":
        parts = {name: scale[name] * g for name, g in gradients.items()}
    length = _norms(parts)
    usable = torch.isfinite(length) & (length > 0)
    radius = torch.where(usable, torch.full_like(length, step.rho), torch.zeros_like(length))
    factor = radius / (length + TINY) if step.normalise and step.p == 2 else radius
    out: Params = {}
    for name, g in parts.items():
        column = factor.to(g.dtype).view(-1, *[1] * (g.ndim - 1))
        unit = torch.sign(g) if step.normalise and step.p != 2 else g
        delta = column * unit
        if not bool(usable.all()):  # 0 times infinity
            delta = torch.where(column != 0, delta, torch.zeros_like(delta))
        out[name] = delta * scale[name] if scale is not None and step.where != "before" else delta
    return out


def _uniform(like: Params, generator: Generator) -> Params:
    """Uniform on [-1, 1] in each entry; drawn on the generator's device, then moved."""
    return {
        name: torch.rand(t.shape, generator=generator, dtype=t.dtype, device=generator.device).to(t.device) * 2 - 1
        for name, t in like.items()
    }
