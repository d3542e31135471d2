"""Many chunks of data at once: their gradients, and their losses at perturbations of their own."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from landscape.checks.arguments import check_arguments
from landscape.checks.repeatability import require_repeatable
from landscape.kernels import math_attention
from landscape.labels import error_rate
from landscape.params import Params
from landscape.per_example import chunk_gradients
from landscape.perturbation import TINY, AscentStep, Metric
from landscape.precision import in_own_precision, own_precision
from landscape.risk import EmpiricalRisk
from landscape.sharpness.rise import Rise, Sharpness, mean_rise

BLOCK_BYTES = 12 * 2**20  # gradients of chunks held at once: more leaves the cache, less pays the overhead more often
REFUSALS = (RuntimeError, NotImplementedError, ValueError, TypeError)  # of models that vmap does not take


@in_own_precision
def first_order_sharpness(
    risk: EmpiricalRisk,
    rho: float,
    m: int | None = None,
    *,
    p: float = 2.0,
    metric: Metric | None = None,
    theta: Params | None = None,
    generator: Generator | None = None,
) -> Sharpness:
    """The first-order m-sharpness: the mean over chunks B of ρ ‖T ∇L_B‖_q, 1/p + 1/q = 1, p = 2 or inf.

    It is max ⟨∇L_B, δ⟩ over ‖T⁻¹δ‖_p ≤ ρ, exact where losses are linear, and needs gradients only: a good stand-in
    for small ρ and small m, where gradients of chunks are large, and none for m = n near a minimum. Chunks of equal
    size go through vmap in blocks of 12 MiB of gradients.

    Args:
        risk: The risk L.
        rho: ρ >= 0.
        m: Examples a chunk; the last may be smaller and counts by its size. None means all data in one chunk.
        p: 2.0, or `math.inf` for the box.
        metric: T, or None for T = I.
        theta: The point θ; None means the risk's own.
        generator: Draws the partition; None keeps the order of the data.

    Returns:
        The mean, in units of the loss, with the standard error that the spread over chunks gives. `length` and
        `error` are NaN: no perturbed point is visited.

    Raises:
        ValueError: If `rho`, `p` or `m` is out of range.

    Source:
        The expansion in Foret et al. (2021), ICLR, section 2, taken chunk by chunk.
    """
    check_arguments(risk=risk, m=m, generator=generator)
    step = AscentStep(rho, p=p, metric=metric)
    if p != 2 and not math.isinf(p):
        raise ValueError(f"`p` must be 2 or inf, got {p!r}.")
    point = risk.theta if theta is None else theta
    require_repeatable(risk, point)
    chunks = [risk] if m is None else risk.chunks(m, generator=generator)
    rises: list[Rise] = []
    equal = [] if risk.mode == "recalibrate" or len(chunks) == 1 else equal_chunks(chunks)
    if equal:
        try:
            rises = _slopes_together(equal, step, point)
        except REFUSALS:
            rises = []  # a real error comes back in the loop
    for chunk in chunks[len(rises) :]:
        base, gradient = chunk.value_and_gradient(point)
        grown = {name: g.unsqueeze(0) for name, g in gradient.items()}
        slope = float(_dual_norms(step, point, grown))
        rises.append(Rise(slope, math.nan, float(row_norms(grown)), slope, math.nan, base=base))
    return mean_rise(rises, [sum(chunk.weights) for chunk in chunks], "first-order")


def equal_chunks(chunks: Sequence[EmpiricalRisk]) -> list[EmpiricalRisk]:
    """The chunks without a smaller last one."""
    return list(chunks if chunks[-1].n == chunks[0].n else chunks[:-1])


def groups(chunks: Sequence[EmpiricalRisk], theta: Params, limit: int) -> list[Sequence[EmpiricalRisk]]:
    """The chunks in groups, of each of which as many vectors like θ take at most `limit` bytes."""
    size = max(1, limit // sum(t.numel() * t.element_size() for t in theta.values()))
    return [chunks[at : at + size] for at in range(0, len(chunks), size)]


def stacked(chunks: Sequence[EmpiricalRisk]) -> tuple[Tensor, Tensor]:
    """Inputs and targets of equal chunks, of shape (chunks, examples, ...)."""
    x, y = (torch.stack([c.batches[0][i] for c in chunks]) for i in (0, 1))
    return x, y


def rises_together(chunks: Sequence[EmpiricalRisk], step: AscentStep, theta: Params) -> list[Rise]:
    """The rises of chunks of equal size after each one's own step, many at a time."""
    point = {name: theta[name].detach() for name in chunks[0].names}
    rises: list[Rise] = []
    for group in groups(chunks, point, BLOCK_BYTES):
        x, y = stacked(group)
        gradients, base = chunk_gradients(chunks[0], point, x, y)
        delta = steps_together(step, point, gradients)
        taylor = torch.stack([(gradients[k] * delta[k]).flatten(1).sum(1) for k in delta]).double().sum(0)
        lengths, slopes = row_norms(delta), row_norms(gradients)
        moved = {name: t.add_(point[name]) for name, t in delta.items()}
        value, error = values_together(chunks[0], moved, x, y)
        none = torch.full_like(base, math.nan)
        columns = (value.double() - base.double(), lengths, slopes, taylor, error, none, base)
        rises += [Rise(*row) for row in torch.stack([c.double() for c in columns], 1).tolist()]
    return rises


def values_together(risk: EmpiricalRisk, theta: Params, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and error rates of chunk c at its own parameters θ_c."""
    with own_precision(), torch.no_grad(), math_attention():
        losses, errors = torch.func.vmap(_looked(risk))(theta, x, y)
    return losses, errors


def gradients_together(risk: EmpiricalRisk, theta: Params, x: Tensor, y: Tensor) -> tuple[Tensor, Params, Tensor]:
    """Losses, gradients and error rates of chunk c at its own parameters θ_c."""
    with own_precision(), math_attention():
        both = torch.func.grad_and_value(_looked(risk), has_aux=True)
        gradients, (losses, errors) = torch.func.vmap(both)(theta, x, y)
    return losses, gradients, errors


def _looked(risk: EmpiricalRisk) -> Callable[[Params, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Loss and error rate of data at a point."""

    def look(point: Params, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        out = risk.predict(point, x)
        loss = risk.loss(out, y)
        return loss, error_rate(out, y, risk.loss, loss)

    return look


def row_norms(parts: Params) -> Tensor:
    """l2 norms over all tensors jointly, for each chunk."""
    each = [torch.linalg.vector_norm(t.flatten(1), dim=1, dtype=_sum_dtype(t)) for t in parts.values()]
    joint: Tensor = torch.linalg.vector_norm(torch.stack(each), dim=0)
    return joint


def steps_together(step: AscentStep, theta: Params, gradients: Params) -> Params:
    """`AscentStep` for many gradients at one θ (p = 2, p = inf, or unnormalised): leading axis the chunk."""
    scale = None if step.metric is None else step.metric(theta)
    parts = gradients
    if scale is not None and step.where != "after":
        parts = {name: scale[name] * g for name, g in gradients.items()}
    length = row_norms(parts)
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


def _slopes_together(chunks: Sequence[EmpiricalRisk], step: AscentStep, theta: Params) -> list[Rise]:
    point = {name: theta[name].detach() for name in chunks[0].names}
    rises: list[Rise] = []
    for group in groups(chunks, point, BLOCK_BYTES):
        gradients, base = chunk_gradients(chunks[0], point, *stacked(group))
        slope, plain = _dual_norms(step, point, gradients).double(), row_norms(gradients).double()
        rises += [
            Rise(s, math.nan, g, s, math.nan, base=b)
            for s, g, b in zip(slope.tolist(), plain.tolist(), base.double().tolist(), strict=True)
        ]
    return rises


def _dual_norms(step: AscentStep, theta: Params, gradients: Params) -> Tensor:
    """ρ ‖T g‖_q, row by row; q is 2 or 1."""
    parts = gradients
    if step.metric is not None:
        scale = step.metric({name: theta[name] for name in gradients})
        parts = {name: scale[name] * g for name, g in gradients.items()}
    if step.p == 2:
        return step.rho * row_norms(parts)
    sums = [torch.linalg.vector_norm(t.flatten(1), 1, dim=1, dtype=_sum_dtype(t)) for t in parts.values()]
    return step.rho * torch.stack(sums).sum(0)


def _sum_dtype(t: Tensor) -> torch.dtype:
    return torch.float32 if t.dtype in (torch.float16, torch.bfloat16) else t.dtype
