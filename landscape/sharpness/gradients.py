"""What the gradients of single examples say together: their norms, their covariance, the noise scale."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.batches import Batch, batch_size, slice_batch
from landscape.checks.arguments import check_arguments
from landscape.checks.repeatability import require_repeatable
from landscape.estimate import Estimate
from landscape.operators.point import Point
from landscape.params import Params
from landscape.per_example import example_gradient_parts
from landscape.precision import in_own_precision
from landscape.risk import EmpiricalRisk
from landscape.sharpness.layers import layer_moments

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class GradientMoments:
    """Moments of the per-example gradients g_i = ∇ℓ_i(θ), from one pass over them.

    Attributes:
        mean: ḡ = (1/n) Σ_i g_i, the gradient of the risk.
        squares: ‖g_i‖², shape (n,).
        slopes: ⟨g_i, ḡ⟩.
        radial: ⟨g_i, θ⟩.
        second: (1/n) Σ_i g_i², entry by entry; None unless asked for.
    """

    mean: Params
    squares: Numbers
    slopes: Numbers
    radial: Numbers
    second: Params | None = None

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.squares)

    def quantiles(self, levels: Sequence[float] = (0.1, 0.5, 0.9)) -> dict[float, float]:
        """Quantiles of ‖g_i‖, linear between order statistics; NaN where a gradient is not finite."""
        norms = np.sqrt(self.squares)
        if not np.isfinite(norms).all():
            return dict.fromkeys(levels, math.nan)
        return dict(zip(levels, np.quantile(norms, levels).tolist(), strict=True))

    def covariance_trace(self) -> Estimate:
        """The trace of the covariance, Σ_i ‖g_i - ḡ‖² / (n - 1), unbiased; jackknife standard error."""
        trace, _, traces, _ = self._jackknife()
        return Estimate(trace, _spread(traces), self.n, method="per-example")

    def noise_scale(self, *, unbiased: bool = True) -> Estimate:
        """The noise scale tr Σ / ‖G‖²: about the batch size at which the noise of a step equals the step.

        Args:
            unbiased: Estimate ‖G‖² by ‖ḡ‖² - tr Σ / n, as one must where ḡ itself is an estimate. It may be negative;
                the scale is then not defined, and the value NaN. False takes ‖ḡ‖², for the data as they are.

        Returns:
            The ratio with a jackknife standard error; `parts` has "covariance_trace" and "squared_gradient".

        Source:
            McCandlish et al. (2018), arXiv 1812.06162, section 2.2.
        """
        trace, square, traces, squares = self._jackknife()
        count = self.n
        if unbiased:
            square, squares = square - trace / count, squares - traces / (count - 1)
        parts = {
            "covariance_trace": Estimate(trace, _spread(traces), count),
            "squared_gradient": Estimate(square, _spread(squares), count),
        }
        if not square > 0:
            return Estimate(math.nan, math.nan, count, method="per-example", parts=parts)
        with np.errstate(divide="ignore", invalid="ignore"):
            stderr = _spread(traces / squares)
        return Estimate(trace / square, stderr, count, method="per-example", parts=parts)

    def signal_to_noise(self) -> float:
        """The mean over entries j of ḡ_j² / var_j, var_j with 1/(n - 1), where var_j > 0; NaN if it nowhere is.

        Source:
            Liu et al. (2020), ICLR (GSNR).

        Raises:
            ValueError: If the second moments were not asked for.
        """
        if self.second is None:
            raise ValueError("`second` is missing: use gradient_moments(risk, elementwise=True).")
        total, entries = 0.0, 0
        for name, second in self.second.items():
            square = self.mean[name].double().square()
            variance = (second.double() - square) * (self.n / (self.n - 1))
            live = variance > 64 * torch.finfo(second.dtype).eps * square  # below it is rounding
            total += float((square[live] / variance[live]).sum())
            entries += int(live.sum())
        return total / entries if entries else math.nan

    def _jackknife(self) -> tuple[float, float, Numbers, Numbers]:
        """The trace of Σ and ‖ḡ‖², and both without each example in turn."""
        n = self.n
        if n < 2:
            raise ValueError(f"`risk` must have at least 2 examples for a covariance, got {n}.")
        square = math.fsum(float(g.double().square().sum()) for g in self.mean.values())
        total = math.fsum(self.squares)
        trace = max(total - n * square, 0.0) / (n - 1) if math.isfinite(total) else math.nan
        rest = (n**2 * square - 2 * n * self.slopes + self.squares) / (n - 1) ** 2
        if n == 2:
            return trace, square, np.full(n, np.nan), rest
        return trace, square, (total - self.squares - (n - 1) * rest) / (n - 2), rest


@in_own_precision
def gradient_moments(risk: EmpiricalRisk, *, elementwise: bool = False, theta: Params | None = None) -> GradientMoments:
    """Go once through the gradients of single examples, after one pass for their mean.

    Where all parameters belong to linear layers that each see every example once, as in an MLP, the gradients are outer
    products of what goes in and what comes back, and are never formed: about 2 gradients in all. Others are formed by
    vmap, 16 MiB at a time.

    Args:
        risk: ℓ_i is its loss on a batch of one example; with a `weight`, times n w_i / Σ w, so that ḡ is ∇L.
        elementwise: Also the second moment of every entry, for `signal_to_noise`.
        theta: The point θ; None means the risk's own.

    Raises:
        ValueError: If the loss is not the mean of those of single examples;
            for a risk in mode "batch" or "train", where a single example has no gradient of its own, or one
            whose examples are shared out to processes.

    Source:
        Goodfellow (2015), arXiv 1510.01799, for norms from outer products.
    """
    check_arguments(risk=risk)
    if risk.mode in ("batch", "train"):
        raise ValueError(
            f"`risk` has mode={risk.mode!r}, where an example's loss depends on its batch, so it has no gradient of "
            "its own: use mode='eval' or 'recalibrate'."
        )
    if risk.ranks is not None:
        raise ValueError("`risk` is shared out to processes: take the moments before .sharded().")
    require_repeatable(risk, theta)
    risk.require_examples("`gradient_moments`, which takes examples one by one,")
    point = Point.of(risk, theta, None)
    gradient = point.risk.gradient(point.theta)
    aims = [(gradient[name], t.detach()) for name, t in point.theta.items()]
    sums = [torch.zeros_like(t, dtype=torch.float64) for t in point.leaves]
    seconds = [torch.zeros_like(s) for s in sums] if elementwise else []
    rows: list[Tensor] = []
    for batch in point.risk.batches:
        found = layer_moments(point, point.batch(batch), aims, sums, seconds)
        rows += [found] if found is not None else _pass(point, point.batch(batch), aims, sums, seconds)

    def as_params(totals: list[Tensor]) -> Params:
        return {k: (s / risk.n).to(t.dtype) for (k, t), s in zip(point.theta.items(), totals, strict=True)}

    numbers = torch.cat(rows).cpu().numpy().astype(np.float64)
    second = as_params(seconds) if elementwise else None
    return GradientMoments(as_params(sums), numbers[:, 0], numbers[:, 1], numbers[:, 2], second)


def _pass(
    point: Point, batch: Batch, aims: list[tuple[Tensor, Tensor]], sums: list[Tensor], seconds: list[Tensor]
) -> list[Tensor]:
    """Columns ‖g_i‖², ⟨g_i, ḡ⟩ and ⟨g_i, θ⟩, a few rows at a time; adds to the sums of g_i and of g_i²."""
    rows, scale, at = [], _scales(point.risk, batch), 0
    for parts in example_gradient_parts(point, batch):
        if scale is not None:
            some = scale[at : at + len(parts[0])].to(parts[0]).unsqueeze(1)
            parts, at = [g * some for g in parts], at + len(parts[0])
        here = torch.zeros(len(parts[0]), 3, dtype=torch.float64, device=parts[0].device)
        for i, g in enumerate(parts):
            here[:, 0] += torch.linalg.vector_norm(g, dim=1).double().square()
            for j, aim in enumerate(aims[i]):
                here[:, j + 1] += (g @ aim.reshape(-1)).double()
            sums[i] += g.sum(0).view_as(sums[i])
            if seconds:
                seconds[i] += (g * g).sum(0).view_as(sums[i])
        rows.append(here)
    return rows


def _scales(risk: EmpiricalRisk, batch: Batch) -> Tensor | None:
    """The factor n w_i / Σ w of each example's gradient, where the risk has weights."""
    if risk.weight is None:
        return None
    weights = [float(risk.weight(*slice_batch(batch, i, i + 1))) for i in range(batch_size(batch))]
    return torch.tensor(weights, dtype=torch.float64) * (risk.n / math.fsum(risk.weights))


def _spread(values: Numbers) -> float:
    """The jackknife's standard error from the values without each example."""
    n = len(values)
    return float(np.sqrt((n - 1) / n * np.square(values - values.mean()).sum()))
