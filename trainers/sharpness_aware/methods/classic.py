"""The methods around which the family grew: plain optimizers, SAM, USAM, ASAM, GSAM, OBF and RandSAM."""

from typing import Literal

from landscape.perturbation import AbsWeight, AscentStep, FilterNorm, Metric, TensorNorm
from trainers.sharpness_aware.ascent import Gradient, IteratedGradient, Random
from trainers.sharpness_aware.combiners import Rescaled, SurrogateGap
from trainers.sharpness_aware.composition import Composition
from trainers.sharpness_aware.gates import Never
from trainers.sharpness_aware.methods.registry import (
    Adaptive,
    Granularity,
    Scope,
    Setting,
    method,
    scaler,
)


@method(
    "adamw",
    "plain AdamW",
    "1F+1B",
    "Loshchilov and Hutter (2019)",
    rho=None,
    base="adamw",
    other_ascent=False,
)
@method("sgd", "plain SGD", "1F+1B", "Robbins and Monro (1951)", rho=None, base="sgd", other_ascent=False)
def plain(setting: Setting) -> Composition:
    """The base optimizer alone."""
    return Composition(setting.radius, gate=Never())


@method("sam", "gradient at the worst point of a ball (any p-norm, one or more steps)", "2F+2B", "Foret et al. (2021)")
def sam(
    setting: Setting,
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
        setting: The run.
        p: Exponent of the ball's norm; for p ≠ 2 the dual-norm solution.
        steps: Steps of ascent; 1 is SAM.
        path: How several steps add up, see `IteratedGradient`.
        adaptive: Multiply by |w| before and/or after the normalisation; "both" is ASAM with η as given.
        eta: η of T = |w| + η.
        scope: Parameters that T scales.
    """
    if steps > 1 and path == "pgd" and (p != 2 or adaptive != "none"):
        raise ValueError(
            f"`path` 'pgd' projects on the euclidean ball, which is not that of p {p!r} and adaptive {adaptive!r}: use "
            f"`path` 'split', which stays inside any ball."
        )
    source = Gradient() if steps == 1 else IteratedGradient(steps=steps, form=path)
    return Composition(setting.radius, source=source, scaler=scaler(p, adaptive, eta, scope))


@method(
    "usam",
    "SAM without the normalisation; rho in units of weight / gradient",
    "2F+2B",
    "Andriushchenko and Flammarion (2022)",
    rho=0.01,
)
def usam(setting: Setting) -> Composition:
    """Unnormalised SAM: the gradient at w + ρ a."""
    return Composition(setting.radius, scaler=AscentStep(1.0, normalise=False))


@method("asam", "SAM in a ball scaled by |w|", "2F+2B", "Kwon et al. (2021)", rho=0.5)
def asam(
    setting: Setting,
    *,
    p: float = 2.0,
    eta: float = 0.01,
    scope: Scope = "weights",
    granularity: Granularity = "element",
    where: Literal["both", "before", "after"] = "both",
) -> Composition:
    """ASAM: the gradient at w + ρ T² a/‖T a‖, T = |w| + η on weights and 1 on biases, as in the official code.

    Args:
        setting: The run.
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
        metric = FilterNorm(eta, scope)
    else:
        metric = TensorNorm(eta, scope)
    return Composition(setting.radius, scaler=AscentStep(1.0, p=p, metric=metric, where=where))


@method("gsam", "SAM that also closes the surrogate gap", "2F+2B", "Zhuang et al. (2022)")
def gsam(
    setting: Setting,
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
        setting: The run.
        alpha: α of `SurrogateGap`.
        backup: What is stored as the clean gradient.
        minimize: Which loss the first term descends.
        adaptive: As for `sam`; "after" is the paper's adaptive form.
        eta: η of T = |w| + η.
        scope: Parameters that T scales.
    """
    return Composition(
        setting.radius, scaler=scaler(2.0, adaptive, eta, scope), combiner=SurrogateGap(alpha, backup, minimize)
    )


method(
    "obf",
    "SAM whose perturbation makes the model forget output biases",
    "2F+2B",
    "Vani et al. (2024)",
    ascent="obf",
)(sam)


@method(
    "randsam",
    "gradient at a random point of the sphere",
    "2F+1B",
    "baseline of Vani et al. (2024)",
    other_ascent=False,
)
def randsam(setting: Setting, *, adaptive: Adaptive = "none", eta: float = 0.0, scope: Scope = "all") -> Composition:
    """The gradient at w + ρ n/‖n‖ with n ~ N(0, I): the random-direction baseline.

    Args:
        setting: The run.
        adaptive: As for `sam`.
        eta: η of T = |w| + η.
        scope: Parameters that T scales.
    """
    return Composition(setting.radius, source=Random(setting.generator), scaler=scaler(2.0, adaptive, eta, scope))


@method(
    "nsam",
    "SAM that ascends the loss of the whole reference data",
    "1F+1B and a pass over the reference data",
    "Foret et al. (2021)",
    other_ascent=False,
)
def nsam(setting: Setting, *, ascent_data: Literal["reference", "previous"] = "reference") -> Composition:
    """n-SAM: the perturbation comes from other data than the step.

    Args:
        setting: The run.
        ascent_data: "reference", the reference data (the training set); "previous", the previous step's batch, at the
            cost of SAM (`sam_use_prev_batch` of Andriushchenko and Flammarion 2022).
    """
    return Composition(setting.radius, source=Gradient(ascent_data))


@method("stablesam", "SAM with the clean gradient's length", "2F+2B", "as collected by others", "partial")
def stablesam(setting: Setting) -> Composition:
    """Stable SAM: u = g_p ‖g‖/‖g_p‖."""
    return Composition(setting.radius, combiner=Rescaled("perturbed"))


@method(
    "sam_step_size",
    "the clean gradient with the perturbed one's length",
    "2F+2B",
    "Andriushchenko and Flammarion (2022), code",
)
def sam_step_size(setting: Setting) -> Composition:
    """What of SAM is only a change of step size: u = g ‖g_p‖/‖g‖."""
    return Composition(setting.radius, combiner=Rescaled("clean"))


@method(
    "functionalsam",
    "SAM that moves the network's Jacobian but keeps the clean logits' gradient",
    "2F+2B",
    "as collected by others",
    "partial",
    other_ascent=False,
)
def functionalsam(setting: Setting) -> Composition:
    """Functional SAM: u = J_f(w + eps)' ∂L/∂z(w), the clean logits' gradient pulled back through the moved network."""
    return Composition(setting.radius, functional=True)
