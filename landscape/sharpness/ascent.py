"""Sharpness after one step of ascent: SAM's, ASAM's and their m-sharpness."""

import math
import warnings

import torch
from torch import Generator

from landscape.checks.arguments import check_arguments
from landscape.checks.repeatability import require_repeatable
from landscape.evaluate import evaluate
from landscape.operators import Hessian, Rescaled, SymmetricOperator
from landscape.params import Params, flatten, inner, norm
from landscape.perturbation import TINY, AscentStep, Perturbation, displaced
from landscape.precision import in_own_precision
from landscape.randomness import source_of
from landscape.risk import EmpiricalRisk
from landscape.sharpness.blocks import REFUSALS, equal_chunks, rises_together
from landscape.sharpness.rise import Rise, Sharpness, mean_rise
from landscape.spectral.eigenpairs import top_eigenpairs


@in_own_precision
def ascent_sharpness(
    risk: EmpiricalRisk,
    perturbation: Perturbation,
    m: int | None = None,
    *,
    theta: Params | None = None,
    second_order: bool = False,
    known: tuple[float, Params] | None = None,
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
        known: L(θ) and ∇L(θ) where the caller has them already, for `m` = None.
        generator: Draws the partition, and start vectors where a gradient vanishes. None keeps the order of the data,
            and draws start vectors from seed 0.

    Returns:
        The rise, in units of the loss. Its standard error is 0 for m=None. For chunks it describes the spread of the
        chunks' rises over √chunks: the error in taking these chunks for others like them. For the data and partition
        at hand the value is exact. `draws` is the number of chunks.

    Raises:
        ValueError: If `m` is out of range, batches cannot be cut into chunks, or `known` comes with chunks.

    Source:
        Foret et al. (2021), ICLR, for the step and m-sharpness; Kwon et al. (2021), ICML, for the metric; the
        second-order value is our definition.
    """
    check_arguments(risk=risk, perturbation=perturbation, m=m)
    if known is not None and m is not None:
        raise ValueError(f"`known` is the loss and gradient on all data, and so of no use with `m` = {m}.")
    point = risk.theta if theta is None else theta
    start = source_of(generator, risk.device)
    require_repeatable(risk, point)
    chunks = [risk] if m is None else risk.chunks(m, generator=generator)
    found: list[Rise | None] = [None] * len(chunks)
    batched = _batchable(perturbation) and not second_order and m is not None and len(chunks) > 1
    batched = batched and risk.mode != "recalibrate"  # each chunk has statistics of its own
    if batched and isinstance(perturbation, AscentStep):
        equal = equal_chunks(chunks)
        try:
            found[: len(equal)] = rises_together(equal, perturbation, point)
        except REFUSALS:
            found = [None] * len(chunks)  # not every model can be vmapped; a real error comes back in the loop
    rises, flat = [], 0
    for chunk, done in zip(chunks, found, strict=True):
        rise = _rise(chunk, perturbation, point, second_order, known) if done is None else done
        if rise.gradient_norm < TINY and isinstance(perturbation, AscentStep) and perturbation.normalise:
            flat += 1
            rise = _second_order_rise(chunk, perturbation, point, rise, start)
        rises.append(rise)
    if flat:
        warnings.warn(
            f"the gradient vanishes on {flat} of {len(chunks)} chunks: where the norm is l2, their value is the "
            "second-order one, rho² max(lambda_max, 0) / 2; elsewhere it is 0.",
            RuntimeWarning,
            stacklevel=3,
        )
    return mean_rise(rises, [sum(chunk.weights) for chunk in chunks], "ascent")


def _rise(
    risk: EmpiricalRisk,
    perturbation: Perturbation,
    theta: Params,
    second_order: bool,
    known: tuple[float, Params] | None = None,
) -> Rise:
    """The rise on one chunk, from its own gradient."""
    base, gradient = risk.value_and_gradient(theta) if known is None else known
    delta = perturbation(theta, gradient)
    there = evaluate(risk, displaced(theta, delta))
    common = {name: gradient[name] for name in delta}
    taylor = float(inner(common, delta))
    if second_order:
        whole = flatten({name: delta.get(name, torch.zeros_like(t)) for name, t in theta.items()}, risk.names)
        taylor += float(whole @ (Hessian(risk, theta, path="afresh") @ whole)) / 2
    return Rise(there.loss - base, float(norm(delta)), float(norm(gradient)), taylor, there.error, base=base)


def _second_order_rise(risk: EmpiricalRisk, step: AscentStep, theta: Params, found: Rise, generator: Generator) -> Rise:
    """ρ² max(λ_max, 0) / 2 on the ball of an l2 step; what was found for other norms."""
    if step.p != 2:
        return found
    H: SymmetricOperator = Hessian(risk, theta)
    if step.metric is not None and step.where != "before":
        H = Rescaled(H, flatten(step.metric({name: theta[name] for name in risk.names}), risk.names))
    value = step.rho**2 * max(float(top_eigenpairs(H, generator=generator).values[0]), 0.0) / 2
    return Rise(value, found.length, found.gradient_norm, value, found.error, base=found.base)


def _batchable(perturbation: Perturbation) -> bool:
    return isinstance(perturbation, AscentStep) and (perturbation.p in (2, math.inf) or not perturbation.normalise)
