"""bSAM: sharpness-aware minimisation as an optimal relaxation of Bayes."""

from landscape.params import Params
from landscape.perturbation import AscentStep
from trainers.sharpness_aware.bsam import BSAM
from trainers.sharpness_aware.composition import Composition
from trainers.sharpness_aware.methods.registry import Setting, method
from trainers.sharpness_aware.offsets import Posterior


@method(
    "bsam",
    "SAM around a draw from the posterior, with a precision for each weight",
    "2F+2B",
    "Möllenhoff and Khan (2023)",
    rho=0.01,
    base="bsam",
)
def bsam(setting: Setting) -> Composition:
    """bSAM: g = ∇L(ω + n/√(N s)), eps = ρ g/s, and the update of `BSAM` with ∇L(ω + eps).

    The pass at the draw is also the one that updates running statistics and gives the logged loss.

    Args:
        setting: The run; its base optimizer is a `BSAM`.
    """
    base = setting.base
    if not isinstance(base, BSAM):
        raise ValueError(
            f"method 'bsam' is its own base optimizer `BSAM`, got `base` {type(base).__name__}; leave it out."
        )
    trained = setting.trained
    assert trained is not None

    def root_of_variance(theta: Params) -> Params:
        trained.look()
        return {name: base.state[trained.parameters[name]]["precision"].rsqrt() for name in theta}

    step = AscentStep(1.0, metric=root_of_variance, normalise=False)  # T² a = a / s
    return Composition(setting.radius, source=Posterior(setting.generator), scaler=step)
