"""How much noise, or how large a worst-case box, the weights bear before accuracy drops: PAC-Bayes radii."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from landscape.checks.arguments import check_arguments
from landscape.estimate import Estimate
from landscape.evaluate import evaluate
from landscape.params import Params, unflatten
from landscape.perturbation import AbsWeight, Metric, check_radius
from landscape.precision import in_own_precision
from landscape.randomness import source_of
from landscape.risk import EmpiricalRisk
from landscape.sharpness.ball import Ball
from landscape.sharpness.search import PGD_STEP
from landscape.sharpness.worst_case import Place, one_at_a_time

HALVINGS = 24  # of the first radius, before it is called zero
DOUBLINGS = 12  # of the first radius, before it is called infinite
RESAMPLES = 200  # of the draws, for the standard error
SEEDS = 2**62


@dataclass(frozen=True)
class Radius(Estimate):
    """The radius at which the mean drop of accuracy reaches a target.

    Attributes:
        low: Largest radius tried whose drop was within the target.
        high: Smallest one tried, above `low`, whose drop exceeded it; infinite where none did.
        base: Error rate at the unperturbed weights.
        drops: Mean drop at every radius tried.
    """

    low: float = math.nan
    high: float = math.nan
    base: float = math.nan
    drops: dict[float, float] = field(default_factory=dict, compare=False, repr=False)


@in_own_precision
def noise_radius(
    risk: EmpiricalRisk,
    *,
    magnitude: bool = False,
    drop: float = 0.1,
    draws: int = 32,
    eps: float = 1e-3,
    tol: float = 1e-2,
    start: float = 0.1,
    theta: Params | None = None,
    generator: Generator | None = None,
) -> Radius:
    """σ* = sup{s : E acc(θ) - acc(θ + n_s) ≤ drop}, with Gaussian noise n_s of standard deviation s for each weight.

    Magnitude-aware: n_s has the variance s² θ_i² + ε². The same standard normal draws serve every s (and, with the same
    generator state, every model of one shape), so that the mean drop is one function of s. Its root is bracketed by
    halving or doubling `start`, then bisected in log s until high / low ≤ 1 + tol; where the function is not monotone
    it is one of the roots. About 12 × draws forward passes.

    Args:
        risk: Gives model and data; outputs must be rows of scores for integer labels. Normalisation layers are as the
            risk's mode says: for noise of this size "eval" and "recalibrate" differ.
        magnitude: In proportion to |θ|, with the floor ε.
        drop: Accuracy that may be lost, above 0.
        draws: K >= 1 noise vectors.
        eps: ε >= 0, for `magnitude`.
        tol: Relative width of the bracket at which it stops, above 0.
        start: First s tried, above 0.
        theta: The point θ; None means the risk's own.
        generator: Source of the noise; None means a fresh one from seed 0.

    Returns:
        √(low · high), with a standard error by bootstrap over the draws (no further passes), NaN for one draw. 0 where
        the noise floor alone costs more than `drop`; infinity, not converged and with a warning, where no noise up to
        4096 times `start` does, as for a model that is near chance already.

    Raises:
        ValueError: If an argument is out of range, or there is no accuracy.

    Source:
        Jiang et al. (2020), ICLR, appendix C, after Keskar et al. (2017); the bracket, common draws and error are ours.
    """
    _check(drop, eps, tol, start)
    if draws < 1:
        raise ValueError(f"`draws` must be at least 1, got {draws!r}.")
    generator = source_of(generator, risk.device)
    place, base = _begin(risk, theta)
    seeds = [int(torch.randint(SEEDS, (1,), generator=generator, device=generator.device)) for _ in range(draws)]
    device = generator.device

    def scale(s: float) -> Tensor | float:
        return torch.sqrt(s**2 * place.origin**2 + eps**2) if magnitude else s

    def dropped(s: float) -> Tensor:
        size, errors = scale(s), []
        for seed in seeds:
            source = torch.Generator(device).manual_seed(seed)
            z = torch.randn(len(place.origin), generator=source, dtype=place.origin.dtype, device=device)
            moved = place.origin + size * z.to(place.origin.device)
            errors.append(evaluate(risk, unflatten(moved, place.theta)).error)
        return torch.tensor(errors, dtype=torch.float64) - base

    found: dict[float, Tensor] = {}

    def exceeds(s: float) -> bool:
        found[s] = dropped(s)
        return not float(found[s].mean()) <= drop

    low, high = (0.0, 0.0) if magnitude and eps > 0 and exceeds(0.0) else bracket(exceeds, start=start, tol=tol)
    stderr = _bootstrap(found, drop, low, high, generator)
    kind = "magnitude-noise" if magnitude else "noise"
    drops = {s: float(d.mean()) for s, d in found.items()}
    return _radius(low, high, tol, stderr, base, drops, draws=draws, products=len(found) * draws, method=kind)


@in_own_precision
def worst_case_radius(
    risk: EmpiricalRisk,
    *,
    magnitude: bool = False,
    drop: float = 0.1,
    steps: int = 20,
    restarts: int = 0,
    eps: float = 1e-3,
    tol: float = 1e-2,
    start: float = 1e-3,
    theta: Params | None = None,
    generator: Generator | None = None,
) -> Radius:
    """α* = sup{a : no δ found with |δ_i| ≤ a costs more than `drop` of accuracy}; or |δ_i| ≤ a |θ_i| + ε.

    δ is sought by PGD up the loss, in the box; every point visited counts, and the search for one a ends at the first
    that costs too much. A search may miss one that is there, so the radius is an upper bound. About 8 to 12 searches of
    up to steps + 1 gradients.

    Args:
        risk: Gives model, loss and data; outputs must be rows of scores for integer labels.
        magnitude: In proportion to |θ|, with the floor ε.
        drop: Accuracy that may be lost, above 0.
        steps: Steps of PGD, each of 2.5 / steps of the box.
        restarts: Random starts beside θ, for every a.
        eps: ε >= 0, for `magnitude`.
        tol: Relative width of the bracket at which it stops, above 0.
        start: First a tried, above 0.
        theta: The point θ; None means the risk's own.
        generator: Draws the random starts, the same for every a; None means a fresh one from seed 0.

    Returns:
        √(low · high); the standard error is 0: for the data and the search at hand there is no chance in it.

    Raises:
        ValueError: If an argument is out of range, or there is no accuracy.

    Source:
        Jiang et al. (2020), ICLR, appendix C (sharpness-orig and sharpness-mag).
    """
    _check(drop, eps, tol, start)
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1, got {steps!r}.")
    if restarts < 0:
        raise ValueError(f"`restarts` must be at least 0, got {restarts!r}.")
    source = source_of(generator, risk.device)
    origin, base = _begin(risk, theta)
    firsts = Ball(1.0, "linf").draw(restarts + 1, origin.origin, source)
    spent, seen = 0, dict[float, float]()

    def exceeds(a: float) -> bool:
        nonlocal spent
        if a == 0:
            radius, metric = eps, None
        else:
            radius, metric = a, AbsWeight(eps / a) if magnitude else None  # a (|θ| + ε / a) = a |θ| + ε
        worst, passes = _worst_error(risk, origin.theta, radius, metric, steps, firsts, base + drop)
        spent, seen[a] = spent + passes, worst - base
        return not worst - base <= drop

    low, high = (0.0, 0.0) if magnitude and eps > 0 and exceeds(0.0) else bracket(exceeds, start=start, tol=tol)
    kind = "magnitude-box" if magnitude else "box"
    return _radius(low, high, tol, 0.0, base, seen, draws=1, products=spent, method=kind)


def bracket(exceeds: Callable[[float], bool], *, start: float, tol: float) -> tuple[float, float]:
    """Two radii with high ≤ (1 + tol) low between which `exceeds` turns from False to True.

    Args:
        exceeds: Whether a radius is too large.
        start: First one tried.
        tol: Relative width of the bracket at the end.

    Returns:
        low and high; (0, 0) where `start` / 2²⁴ is too large, (largest tried, inf) where 4096 `start` is not.
    """
    low = high = start
    if exceeds(start):
        for _ in range(HALVINGS):
            low = high / 2
            if not exceeds(low):
                break
            high = low
        else:
            return 0.0, 0.0
    else:
        for _ in range(DOUBLINGS):
            high = 2 * low
            if exceeds(high):
                break
            low = high
        else:
            return low, math.inf
    while high > low * (1 + tol):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if exceeds(middle) else (middle, high)
    return low, high


def _worst_error(
    risk: EmpiricalRisk,
    theta: Params,
    radius: float,
    metric: Metric | None,
    steps: int,
    firsts: Tensor,
    limit: float,
) -> tuple[float, int]:
    """The largest error rate that PGD meets in the box, or the first above `limit`; and the gradients taken."""
    place = Place.of(risk, theta, metric)
    objective, ball = one_at_a_time(risk, place), Ball(radius, "linf")
    worst, passes = -math.inf, 0
    for start in (torch.zeros_like(place.origin), *(radius * first for first in firsts[1:])):
        u = start.unsqueeze(0)
        for step in range(steps + 1):
            here = objective(u)
            passes += 1
            error = float(here.errors)
            if not error <= limit:  # nor is a model without numbers any good
                return error, passes
            worst = max(worst, error)
            up = ball.steepest(here.slopes)
            if step == 0 and not bool(up.any()):  # no gradient where it starts: leave at random
                up = firsts[:1]
            u = ball.project(u + PGD_STEP * radius / steps * up)
    return worst, passes


def _begin(risk: EmpiricalRisk, theta: Params | None) -> tuple[Place, float]:
    check_arguments(risk=risk)
    place = Place.of(risk, risk.theta if theta is None else theta, None)
    base = evaluate(risk, place.theta).error
    if math.isnan(base):
        raise ValueError("`risk` has no accuracy: outputs must be rows of scores, and targets integer labels.")
    return place, base


def _check(drop: float, eps: float, tol: float, start: float) -> None:
    if not 0 < drop < 1:
        raise ValueError(f"`drop` must be between 0 and 1, such as 0.1, got {drop!r}.")
    check_radius(eps, "eps")
    for name, value in (("tol", tol), ("start", start)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"`{name}` must be finite and above 0, got {value!r}.")


def _radius(
    low: float, high: float, tol: float, stderr: float, base: float, drops: dict[float, float], **common: Any
) -> Radius:
    """The middle of a bracket, with a warning where it has no end."""
    what = common["method"].removeprefix("magnitude-")
    if high == 0:
        warnings.warn(f"the smallest {what} tried costs too much accuracy: the radius is 0.", RuntimeWarning, 3)
    elif math.isinf(high):
        warnings.warn(f"no {what} up to {low:.3g} costs enough accuracy: the radius is not known.", RuntimeWarning, 3)
    converged = 0 < high <= low * (1 + tol) * (1 + 1e-12)
    middle = math.inf if math.isinf(high) else math.sqrt(low * high)
    common |= {"converged": converged, "low": low, "high": high, "base": base, "drops": dict(sorted(drops.items()))}
    return Radius(middle, stderr, **common)


def _bootstrap(found: dict[float, Tensor], drop: float, low: float, high: float, generator: Generator) -> float:
    """Standard deviation of the root over resampled draws, on the mean drops interpolated in log s."""
    radii = sorted(s for s in found if s > 0)
    table = torch.stack([found[s] for s in radii]) if radii else torch.empty(0, 0)
    count = table.shape[1] if radii else 0
    if count < 2 or high == 0 or math.isinf(high):
        return math.nan
    picks = torch.randint(count, (RESAMPLES, count), generator=generator, device=generator.device).cpu()
    curves = table[:, picks].mean(2).T  # resamples x radii
    near = radii.index(low)
    roots = [crossing(radii, curve, drop, near) for curve in curves.tolist()]
    return float(torch.tensor(roots, dtype=torch.float64).std())


def crossing(radii: Sequence[float], drops: Sequence[float], target: float, near: int) -> float:
    """Where the drops, linear between radii in log s, pass the target upwards, next to the radius with index `near`.

    Args:
        radii: Ascending, above 0.
        drops: One a radius.
        target: To be passed.
        near: Where to look first; then to the right while below the target, to the left while above it.
    """
    i = near
    while i + 1 < len(radii) and drops[i + 1] <= target:
        i += 1
    while i >= 0 and drops[i] > target:
        i -= 1
    if i < 0 or i + 1 == len(radii):
        return radii[max(i, 0)]  # outside what was tried: its end
    part = (target - drops[i]) / (drops[i + 1] - drops[i])
    return math.exp((1 - part) * math.log(radii[i]) + part * math.log(radii[i + 1]))
