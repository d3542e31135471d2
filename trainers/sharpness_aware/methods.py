"""The SAM family by name: each method is a composition of parts, and its keyword arguments are its knobs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Generator

from landscape.perturbation import AbsWeight, AscentStep, FilterNorm, Metric, TensorNorm
from trainers.sharpness_aware.ascent import Gradient, IteratedGradient, Random
from trainers.sharpness_aware.combiners import SurrogateGap
from trainers.sharpness_aware.engine import Composition
from trainers.sharpness_aware.gates import Never
from trainers.sharpness_aware.radii import ConstantRadius, Radius

Adaptive = Literal["none", "before", "after", "both"]
Scope = Literal["all", "weights"]
Granularity = Literal["element", "filter", "tensor"]


@dataclass(frozen=True)
class Method:
    """A method of the registry.

    Attributes:
        compose: Makes the composition from a radius, a generator and the method's knobs (keyword-only arguments).
        help: One line.
        cost: Forward and backward passes a step, in full batches.
        source: Where the rule comes from; "our rule" where the published one was not available.
        rho: Default radius; None for methods without one.
        ascent: Objective ascended unless the configuration says otherwise.
        base: The base optimizer, where the name fixes it.
    """

    compose: Callable[..., Composition]
    help: str
    cost: str
    source: str
    rho: float | None = 0.05
    ascent: Literal["loss", "obf"] = "loss"
    base: Literal["sgd", "adamw"] | None = None


def plain(radius: Radius, generator: Generator) -> Composition:  # noqa: ARG001 - the registry's signature
    """The base optimizer alone."""
    return Composition(radius, gate=Never())


def sam(
    radius: Radius,
    generator: Generator,  # noqa: ARG001 - the registry's signature
    *,
    p: float = 2.0,
    steps: int = 1,
    path: Literal["pgd", "split"] = "pgd",
    adaptive: Adaptive = "none",
    eta: float = 0.0,
    scope: Scope = "all",
) -> Composition:
    """SAM: the gradient at w + ρ a/‖a‖.

    Args:
        radius: ρ as a function of the learning rate.
        generator: Unused.
        p: Exponent of the ball's norm; for p ≠ 2 the dual-norm solution.
        steps: Steps of ascent; 1 is SAM.
        path: How several steps add up, see `IteratedGradient`.
        adaptive: Multiply by |w| before and/or after the normalisation; "both" is ASAM with η as given.
        eta: η of T = |w| + η.
        scope: Parameters that T scales.
    """
    source = Gradient() if steps == 1 else IteratedGradient(steps=steps, form=path)
    return Composition(radius, source=source, scaler=_scaler(p, adaptive, eta, scope))


def usam(radius: Radius, generator: Generator) -> Composition:  # noqa: ARG001 - the registry's signature
    """Unnormalised SAM: the gradient at w + ρ a."""
    return Composition(radius, scaler=AscentStep(1.0, normalise=False))


def asam(
    radius: Radius,
    generator: Generator,  # noqa: ARG001 - the registry's signature
    *,
    p: float = 2.0,
    eta: float = 0.01,
    scope: Scope = "weights",
    granularity: Granularity = "element",
    where: Literal["both", "before", "after"] = "both",
) -> Composition:
    """ASAM: the gradient at w + ρ T² a/‖T a‖, T = |w| + η on weights and 1 on biases, as in the official code.

    Args:
        radius: ρ, relative to the weights.
        generator: Unused.
        p: Exponent of the ball's norm.
        eta: η ≥ 0.
        scope: "weights" scales parameters whose name contains "weight"; "all" every one.
        granularity: T from the element, the filter's norm or the tensor's norm.
        where: "before" or "after" apply T on one side of the normalisation only (Vani et al. 2024).
    """
    metric: Metric
    if granularity == "element":
        metric = AbsWeight(eta, scope)
    elif granularity == "filter":
        metric = FilterNorm(eta)
    else:
        metric = TensorNorm(eta)
    return Composition(radius, scaler=AscentStep(1.0, p=p, metric=metric, where=where))


def gsam(
    radius: Radius,
    generator: Generator,  # noqa: ARG001 - the registry's signature
    *,
    alpha: float = 0.4,
    backup: Literal["gradient", "direction"] = "gradient",
    minimize: Literal["perturbed", "clean"] = "perturbed",
    adaptive: Adaptive = "none",
    eta: float = 0.0,
    scope: Scope = "all",
) -> Composition:
    """GSAM: SAM's gradient less α times the part of the clean gradient orthogonal to it.

    Args:
        radius: ρ; the paper makes it proportional to the learning rate.
        generator: Unused.
        alpha: α of `SurrogateGap`.
        backup: What is stored as the clean gradient.
        minimize: Which loss the first term descends.
        adaptive: As for `sam`; "after" is the paper's adaptive form.
        eta: η of T = |w| + η.
        scope: Parameters that T scales.
    """
    return Composition(
        radius, scaler=_scaler(2.0, adaptive, eta, scope), combiner=SurrogateGap(alpha, backup, minimize)
    )


def randsam(
    radius: Radius, generator: Generator, *, adaptive: Adaptive = "none", eta: float = 0.0, scope: Scope = "all"
) -> Composition:
    """The gradient at w + ρ n/‖n‖ with n ~ N(0, I): the random-direction baseline.

    Args:
        radius: ρ.
        generator: Source of n.
        adaptive: As for `sam`.
        eta: η of T = |w| + η.
        scope: Parameters that T scales.
    """
    return Composition(radius, source=Random(generator), scaler=_scaler(2.0, adaptive, eta, scope))


def _scaler(p: float, adaptive: Adaptive, eta: float, scope: Scope) -> AscentStep:
    if adaptive == "none":
        return AscentStep(1.0, p=p)
    return AscentStep(1.0, p=p, metric=AbsWeight(eta, scope), where=adaptive)


METHODS: dict[str, Method] = {
    "sgd": Method(plain, "plain SGD", "1F+1B", "Robbins and Monro (1951)", rho=None, base="sgd"),
    "adamw": Method(plain, "plain AdamW", "1F+1B", "Loshchilov and Hutter (2019)", rho=None, base="adamw"),
    "sam": Method(
        sam, "gradient at the worst point of a ball (any p-norm, one or more steps)", "2F+2B", "Foret et al. (2021)"
    ),
    "usam": Method(
        usam,
        "SAM without the normalisation; rho in units of weight / gradient",
        "2F+2B",
        "Andriushchenko and Flammarion (2022)",
        rho=0.01,
    ),
    "asam": Method(asam, "SAM in a ball scaled by |w|", "2F+2B", "Kwon et al. (2021)", rho=0.5),
    "gsam": Method(gsam, "SAM that also closes the surrogate gap", "2F+2B", "Zhuang et al. (2022)"),
    "obf": Method(
        sam, "SAM whose perturbation makes the model forget output biases", "2F+2B", "Vani et al. (2024)", ascent="obf"
    ),
    "randsam": Method(randsam, "gradient at a random point of the sphere", "2F+1B", "baseline of Vani et al. (2024)"),
}


def compose(
    name: str, *, radius: Radius | None, generator: Generator, ascent: str | None, options: dict[str, object]
) -> Composition:
    """The composition of a method of the registry, with its ascent objective set.

    `name` and `options` must have been checked (see `trainers.sharpness_aware.optimizers.make_optimizer`).
    """
    method = METHODS[name]
    parts = method.compose(radius or ConstantRadius(0.0), generator, **options)
    return replace(parts, ascent=ascent or method.ascent)
