"""Methods that cost less than two passes a step: perturbations that are free, reused, rare, partial, or parallel."""

from typing import Literal

from landscape.perturbation import AscentStep, TensorNorm
from trainers.sharpness_aware.ascent import IteratedGradient
from trainers.sharpness_aware.combiners import LookAgain, Mix, Total
from trainers.sharpness_aware.composition import Composition
from trainers.sharpness_aware.gates import AdaptiveNorm, Bernoulli, EveryK, Mode
from trainers.sharpness_aware.masks import Live, RandomEntries, RandomTensors
from trainers.sharpness_aware.memory import Ahead, Momentum, PreviousGradient
from trainers.sharpness_aware.methods.registry import Adaptive, Scope, Setting, method, scaler
from trainers.sharpness_aware.offsets import Extrapolated
from trainers.sharpness_aware.plans import Plan
from trainers.sharpness_aware.selection import LargestIncrease


@method(
    "msam",
    "gradient at a point ahead along the momentum; no extra pass",
    "1F+1B",
    "Becker, Altrock, Risse (2024)",
    rho=0.3,
    other_ascent=False,
)
def msam(setting: Setting, *, adaptive: Adaptive = "none", eta: float = 0.0, scope: Scope = "all") -> Composition:
    """Momentum-SAM: the gradient at w - ρ v/‖v‖, v the momentum buffer of the base optimizer.

    Running statistics are those of the perturbed weights: there is no other pass.

    Args:
        setting: The run.
        adaptive: As for `sam`.
        eta: η of T = |w| + η.
        scope: Parameters that T scales.
    """
    for group in setting.base.param_groups if setting.base is not None else []:
        if not group.get("momentum", 0.0) and "betas" not in group:
            raise ValueError("method 'msam' moves along the momentum: `momentum` must be above 0, or base 'adamw'.")
    return Composition(setting.radius, source=Momentum(), scaler=scaler(2.0, adaptive, eta, scope))


@method(
    "s2sam",
    "gradient at a point up the previous step's gradient; no extra pass",
    "1F+1B",
    "Ji et al. (2024), idea",
    "ours",
    other_ascent=False,
)
def s2sam(setting: Setting, *, live_only: bool = False) -> Composition:
    """S2-SAM, our rule: g_t = ∇L(w + ρ g_{t-1}/‖g_{t-1}‖), g_{-1} = 0.

    Args:
        setting: The run.
        live_only: Perturb only weights that are not exactly zero, for pruned models.
    """
    return Composition(setting.radius, source=PreviousGradient(), mask=Live() if live_only else None)


@method(
    "looksam",
    "SAM every k steps, its direction reused in between",
    "(1 + 1/k)(F+B)",
    "Liu et al. (2022)",
    "partial",
    rho=0.1,
)
def looksam(setting: Setting, *, k: int = 5, alpha: float = 0.7) -> Composition:
    """LookSAM: `LookAgain` behind `EveryK`.

    Args:
        setting: The run.
        k: Steps between two perturbed ones.
        alpha: Weight of the reused component.
    """
    return Composition(setting.radius, gate=EveryK(k, Mode.REUSE), combiner=LookAgain(alpha))


@method(
    "look_layersam",
    "LookSAM with a radius per layer, proportional to its norm",
    "(1 + 1/k)(F+B)",
    "Liu et al. (2022), idea",
    "ours",
    rho=0.01,
)
def look_layersam(setting: Setting, *, k: int = 5, alpha: float = 0.7) -> Composition:
    """Look-LayerSAM, our rule: eps_l = ρ ‖w_l‖ a_l/‖a_l‖ for each tensor l.

    Args:
        setting: The run.
        k: Steps between two perturbed ones.
        alpha: Weight of the reused component.
    """
    step = AscentStep(1.0, metric=TensorNorm(), where="after", over="tensor")
    return Composition(setting.radius, gate=EveryK(k, Mode.REUSE), scaler=step, combiner=LookAgain(alpha))


@method(
    "sampa",
    "two gradients that can run in parallel on two processes",
    "2F+2B, 1F+1B in parallel",
    "Xie, Pethick, Cevher (2024)",
    rho=0.1,
    base="sgd",
    other_ascent=False,
)
def sampa(setting: Setting, *, lam: float = 0.2) -> Composition:
    """SAMPa: u = (1 - λ) ∇L(w + ρ ∇L(y)/‖∇L(y)‖) + λ ∇L(y⁺), y⁺ where SGD would go from w with ∇L(y).

    The first gradient is on the batch on which ∇L(y) was taken, one step ago; the second on this one. At the first step
    ∇L(y_0) is taken at y_0 = w on the same batch, for one pass more (ours; the official code starts from zero).

    Args:
        setting: The run.
        lam: λ in [0, 1].
    """
    return Composition(setting.radius, source=Ahead(), plan=Plan(lagged=True, ahead=True), combiner=Mix(lam))


@method(
    "egsam", "SAM with an extra-gradient step backwards", "2F+2B", "Yu, Zhang, Kwok (2024), from its reviews", "partial"
)
def egsam(setting: Setting) -> Composition:
    """EG-SAM: the gradient at w + (ρ/‖g‖ - lr) g."""
    return Composition(setting.radius, source=Extrapolated("eg"))


@method("ogsam", "SAM with an optimistic step ahead", "2F+2B", "Yu, Zhang, Kwok (2024), from its reviews", "partial")
def ogsam(setting: Setting) -> Composition:
    """OG-SAM: the gradient at w - lr g~_{t-1} + ρ g/‖g‖, g~ the gradient the previous step took."""
    return Composition(setting.radius, source=Extrapolated("og"))


@method(
    "aosam",
    "OG-SAM where AE-SAM's rule asks for it",
    "(1 + share)(F+B)",
    "Yu, Zhang, Kwok (2024), from its reviews",
    "partial",
)
def aosam(setting: Setting, *, delta: float = 0.9, lambda1: float = -1.0, lambda2: float = 1.0) -> Composition:
    """AO-SAM: `ogsam` behind the gate of `aesam`.

    Args:
        setting: The run.
        delta: Decay of the statistics.
        lambda1: Threshold at the end.
        lambda2: Threshold at the start.
    """
    gate = AdaptiveNorm(delta, lambda1, lambda2, setting.total_steps)
    return Composition(setting.radius, gate=gate, source=Extrapolated("og"))


@method(
    "lookbehind",
    "the sum of the gradients along k steps of ascent",
    "(k+1)(F+B)",
    "Mordido et al. (2024), as collected by others",
    "partial",
    other_ascent=False,
)
def lookbehind(setting: Setting, *, k: int = 2, alpha: float = 0.5) -> Composition:
    """Lookbehind-SAM: p_i = p_{i-1} + ρ ∇L(p_{i-1})/‖·‖ and u = α Σ_i ∇L(p_i); see `Total`.

    Args:
        setting: The run.
        k: Inner steps.
        alpha: α.
    """
    if k < 1:
        raise ValueError(f"`k` must be at least 1, got {k}.")
    source = IteratedGradient(steps=k, form="climb", collects=True)
    return Composition(setting.radius, source=source, combiner=Total(alpha))


@method(
    "esam",
    "SAM on random tensors, descending on the examples it hurts most",
    "2F + (share)B + gamma (F+B)",
    "Du et al. (2022)",
)
def esam(
    setting: Setting,
    *,
    beta: float = 0.6,
    gamma: float = 0.5,
    granularity: Literal["tensor", "element"] = "tensor",
) -> Composition:
    """ESAM: `RandomTensors` (or `RandomEntries`) and `LargestIncrease`; β = γ = 1 is SAM.

    Args:
        setting: The run.
        beta: Share of the tensors (or entries) that are perturbed, in (0, 1].
        gamma: Share of the examples that are descended on, in (0, 1].
        granularity: "tensor" as in the official code, which spares their gradients; "element" as in the paper.
    """
    kind = RandomTensors if granularity == "tensor" else RandomEntries
    mask = kind(beta, setting.generator)
    return Composition(setting.radius, mask=None if beta == 1 else mask, select=LargestIncrease(gamma))


@method("sssam", "SAM at random steps", "(1 + p)(F+B)", "Zhao et al. (2022)", "partial")
def sssam(
    setting: Setting,
    *,
    p: float = 0.5,
    p_end: float = 1.0,
    shape: Literal["constant", "piecewise", "linear", "cosine"] = "constant",
    switch: float = 0.5,
) -> Composition:
    """SS-SAM, also called RST: a step is perturbed with probability p(t), see `Bernoulli`.

    Args:
        setting: The run.
        p: Probability, at the start where it changes.
        p_end: Probability at the end.
        shape: How it changes.
        switch: Share of the run after which "piecewise" changes.
    """
    return Composition(setting.radius, gate=Bernoulli(p, p_end, shape, switch, setting.total_steps, setting.seed))


@method("aesam", "SAM where the gradient is unusually long", "(1 + share)(F+B)", "Jiang et al. (2023)", "partial")
def aesam(
    setting: Setting,
    *,
    delta: float = 0.9,
    lambda1: float = -1.0,
    lambda2: float = 1.0,
    correct: bool = False,
) -> Composition:
    """AE-SAM: see `AdaptiveNorm`.

    Args:
        setting: The run.
        delta: Decay of the statistics.
        lambda1: Threshold at the end.
        lambda2: Threshold at the start; -inf for both is SAM.
        correct: Correct the bias of the first averages.
    """
    return Composition(setting.radius, gate=AdaptiveNorm(delta, lambda1, lambda2, setting.total_steps, correct))
