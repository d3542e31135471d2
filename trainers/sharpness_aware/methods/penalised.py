"""Methods that add a penalty on sharpness to the gradient: WSAM, CR-SAM, gradient norms, and the universal class."""

from landscape.perturbation import AscentStep
from trainers.sharpness_aware.ascent import Random
from trainers.sharpness_aware.combiners import Combiner, Curvature, Decoupled, Weighted
from trainers.sharpness_aware.composition import Composition
from trainers.sharpness_aware.gates import Bernoulli
from trainers.sharpness_aware.methods.registry import Adaptive, Scope, Setting, method, scaler
from trainers.sharpness_aware.penalties import Covariance, determinant_penalty, trace_penalty
from trainers.sharpness_aware.plans import Plan


@method(
    "wsam", "SAM with the sharpness term weighted", "2F+2B", "Yue et al. (2023), from two re-implementations", "partial"
)
def wsam(
    setting: Setting,
    *,
    gamma: float = 0.9,
    decouple: bool = True,
    adaptive: Adaptive = "none",
    eta: float = 0.0,
    scope: Scope = "all",
) -> Composition:
    """WSAM: u = (1 - c) g + c g_p with c = γ/(1 - γ), or its decoupled form.

    Args:
        setting: The run.
        gamma: γ in [0, 1); 0.5 is SAM (coupled), 0 the base optimizer.
        decouple: Step with g, and add the sharpness term past the base optimizer.
        adaptive: As for `sam`.
        eta: η of T = |w| + η.
        scope: Parameters that T scales.
    """
    if not 0 <= gamma < 1:
        raise ValueError(f"`gamma` must be in [0, 1), got {gamma!r}.")
    c = gamma / (1 - gamma)
    combiner = Decoupled(c) if decouple else Weighted(c)
    return Composition(setting.radius, scaler=scaler(2.0, adaptive, eta, scope), combiner=combiner)


@method("gnp", "a penalty on the gradient's norm", "2F+2B", "Zhao et al. (2022)")
def gnp(setting: Setting, *, c: float = 0.8) -> Composition:
    """Gradient-norm penalty: u = (1 - c) g + c g_p, the gradient of L + c ρ ‖∇L‖ to first order.

    Args:
        setting: The run.
        c: Weight of the perturbed gradient; 1 is SAM.
    """
    return Composition(setting.radius, combiner=Weighted(c))


@method(
    "grst",
    "SAM at random steps, with the strength corrected for their rarity",
    "(1 + p)(F+B)",
    "Zhao et al. (2022), idea",
    "ours",
)
def grst(setting: Setting, *, p: float = 0.5, c: float = 1.0) -> Composition:
    """G-RST, our rule: with probability p, u = g + (c/p)(g_p - g); c = 1 has the expectation of SAM.

    Args:
        setting: The run.
        p: Probability of a perturbed step, in (0, 1].
        c: Strength.
    """
    if not 0 < p <= 1:
        raise ValueError(f"`p` must be in (0, 1], got {p!r}.")
    return Composition(setting.radius, gate=Bernoulli(p, seed=setting.seed), combiner=Weighted(c / p))


@method("crsam", "SAM with a penalty on the curvature along its direction", "3F+3B", "Wu, Luo, Wunsch (2024)", rho=0.1)
def crsam(setting: Setting, *, gamma: float = 0.1, beta: float = 0.01, by_loss: bool = False) -> Composition:
    """CR-SAM: see `Curvature`.

    Args:
        setting: The run.
        gamma: Weight of the second difference.
        beta: Weight of the first difference.
        by_loss: Divide the differences of gradients by those of the losses (the paper's logarithms, from memory).
    """
    return Composition(setting.radius, plan=Plan(antithetic=True), combiner=Curvature(gamma, beta, by_loss))


@method(
    "tracesam", "a penalty on the trace of the Hessian", "(1+2n)(F+B), (1+n)(F+B) one-sided",
    "Tahmasebi et al. (2024)", rho=0.01, other_ascent=False,
)  # fmt: skip
def tracesam(setting: Setting, *, lam: float = 1.0, draws: int = 1, antithetic: bool = True) -> Composition:
    """Trace-SAM: the universal class with φ(t) = ψ(t) = t and directions uniform on the unit sphere.

    Args:
        setting: The run.
        lam: λ.
        draws: Random directions a step.
        antithetic: Evaluate w - ρv too, which cancels the first-order term.
    """
    source = Random(setting.generator, "sphere", clean_forward=False)
    return _sampled(setting, source, Plan(draws, antithetic), trace_penalty(lam))


@method(
    "detsam", "a penalty on the determinant of the Hessian", "(1+2n)(F+B), (1+n)(F+B) one-sided",
    "Tahmasebi et al. (2024)", rho=1.0, other_ascent=False,
)  # fmt: skip
def detsam(
    setting: Setting, *, lam: float = 1.0, draws: int = 1, width: float = 0.01, antithetic: bool = True
) -> Composition:
    """Det-SAM: the universal class with φ(t) = t⁻², ψ(t) = exp(-t/2) and directions uniform on a cube.

    Args:
        setting: The run.
        lam: λ.
        draws: Random directions a step.
        width: Half the side of the cube.
        antithetic: Evaluate w - ρv too, which cancels the first-order term.
    """
    source = Random(setting.generator, "cube", width, clean_forward=False)
    return _sampled(setting, source, Plan(draws, antithetic), determinant_penalty(lam))


@method(
    "frobsam", "a penalty on the Frobenius norm of the Hessian", "(1+n)(F+B)",
    "Tahmasebi et al. (2024)", rho=0.005, other_ascent=False,
)  # fmt: skip
def frobsam(setting: Setting, *, lam: float = 0.005, draws: int = 2) -> Composition:
    """Frob-SAM: see `Covariance`.

    Args:
        setting: The run.
        lam: λ.
        draws: Random directions a step, at least 2.
    """
    if draws < 2:
        raise ValueError(f"`draws` must be at least 2 for a covariance, got {draws}.")
    return _sampled(setting, Random(setting.generator, clean_forward=False), Plan(draws), Covariance(lam))


def _sampled(setting: Setting, source: Random, plan: Plan, combiner: Combiner) -> Composition:
    """A penalty on losses at random points, ρ times what the source draws away."""
    step = AscentStep(1.0, normalise=False)
    return Composition(setting.radius, source=source, scaler=step, plan=plan, combiner=combiner)
