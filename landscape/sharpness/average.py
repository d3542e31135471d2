"""Average-case sharpness: the mean rise of the loss under random perturbations."""

import math
from typing import Literal

import numpy as np
import torch
from torch import Generator

from landscape.checks.arguments import check_arguments
from landscape.evaluate import evaluate
from landscape.params import Params, norm
from landscape.perturbation import Metric, check_radius, displaced, random_direction
from landscape.precision import in_own_precision
from landscape.randomness import source_of
from landscape.risk import EmpiricalRisk
from landscape.sharpness.rise import Sharpness


@in_own_precision
def average_sharpness(
    risk: EmpiricalRisk,
    rho: float,
    *,
    draws: int = 10,
    metric: Metric | None = None,
    noise: Literal["gaussian", "uniform"] = "gaussian",
    theta: Params | None = None,
    generator: Generator | None = None,
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
        generator: Source of the noise; None means a fresh one from seed 0.

    Returns:
        The mean over pairs of (L(θ + δ) + L(θ - δ)) / 2 - L(θ), in units of the loss, with its standard error over
        pairs (NaN for a single one). `error` is the mean error rate over both signs.

    Raises:
        ValueError: If `rho`, `draws` or `noise` is out of range.

    Source:
        Andriushchenko et al. (2023), ICML, for the measure; the pairs are our choice.
    """
    check_arguments(risk=risk, draws=draws)
    generator = source_of(generator, risk.device)
    check_radius(rho)
    if draws < 1:
        raise ValueError(f"`draws` must be at least 1 pair, got {draws}.")
    if noise not in ("gaussian", "uniform"):
        raise ValueError(f"`noise` must be 'gaussian' or 'uniform', got {noise!r}.")
    point = risk.theta if theta is None else theta
    scale = None if metric is None else metric(point)
    base = evaluate(risk, point).loss
    values, lengths, errors = [], [], []
    for _ in range(draws):
        delta = random_direction(point, generator) if noise == "gaussian" else _uniform(point, generator)
        delta = {name: rho * (t if scale is None else scale[name] * t) for name, t in delta.items()}
        ends = [evaluate(risk, displaced(point, delta, sign)) for sign in (1.0, -1.0)]
        values.append((ends[0].loss - base + ends[1].loss - base) / 2)
        lengths.append(float(norm(delta)))
        errors.append((ends[0].error + ends[1].error) / 2)
    with np.errstate(invalid="ignore"):  # a diverged point gives NaN
        stderr = float(np.std(values, ddof=1)) / math.sqrt(draws) if draws > 1 else math.nan
    return Sharpness(
        math.fsum(values) / draws,
        stderr,
        draws,
        method=f"antithetic-{noise}",
        length=math.fsum(lengths) / draws,
        error=math.fsum(errors) / draws,
        base=base,
    )


def _uniform(like: Params, generator: Generator) -> Params:
    """Uniform on [-1, 1] in each entry; drawn on the generator's device, then moved."""
    return {
        name: torch.rand(t.shape, generator=generator, dtype=t.dtype, device=generator.device).to(t.device) * 2 - 1
        for name, t in like.items()
    }
