"""Perturbations by name, as a measure applies them: what they ascend, in which metric, and how far they go.

The displacement itself is `landscape.AscentStep`, the object that the optimizers use.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, assert_never

from torch import Generator

from landscape import AbsWeight, AscentStep, EmpiricalRisk, Params, norm, obf_loss, random_direction
from landscape.objectives import Link
from landscape.sharpness.worst_case import worst_case_sharpness

Objective = Literal["gradient", "worst", "obf", "random", "initial", "last update", "none"]
Scope = Literal["all", "weights"]


@dataclass(frozen=True)
class Provider:
    """How a perturbation is made.

    Attributes:
        objective: What its raw direction is: the "gradient" of the risk, the "worst" displacement found in a ball, the
            gradient of the "obf" objective, "random" Gaussian noise, the way back to the "initial" weights, on along
            the run's "last update", or "none" for no perturbation at all.
        where: Where |θ| + η enters the step, see `landscape.AscentStep`; None for the plain ball.
        help: One line about it.
    """

    objective: Objective
    where: Literal["both", "before", "after"] | None
    help: str

    @property
    def random(self) -> bool:
        """Whether the direction is drawn."""
        return self.objective == "random"

    def step(self, rho: float, *, eta: float = 0.0, scope: Scope = "all") -> AscentStep:
        """The ascent step of radius `rho`.

        Args:
            rho: Radius, in units of θ for the plain ball, relative to |θ| + η otherwise.
            eta: η of the adaptive metric; the plain ball has no use for it.
            scope: Which parameters the adaptive metric scales, see `landscape.AbsWeight`.

        Raises:
            ValueError: If `rho` or `eta` is negative or not finite.
        """
        if self.where is None:
            return AscentStep(rho)
        return AscentStep(rho, metric=AbsWeight(eta, scope), where=self.where)


PROVIDERS: dict[str, Provider] = {
    "sam": Provider("gradient", None, "gradient of the loss, l2 ball (Foret et al. 2021)"),
    "asam": Provider("gradient", "both", "gradient, elementwise-adaptive ball (Kwon et al. 2021)"),
    "asam_before": Provider("gradient", "before", "gradient times |w|, then normalised (option of Vani et al. 2024)"),
    "asam_after": Provider("gradient", "after", "gradient normalised, then times |w| (option of Vani et al. 2024)"),
    "gsam": Provider("gradient", None, "that of sam: GSAM (Zhuang et al. 2022) differs in the descent alone"),
    "apgd": Provider("worst", None, "projected gradient ascent in the l2 ball (Croce and Hein 2020), 20 steps"),
    "obf": Provider("obf", None, "output-bias-forgetting objective, l2 ball (Vani et al. 2024)"),
    "random": Provider("random", None, "Gaussian direction, l2 sphere"),
    "random_adaptive": Provider("random", "before", "Gaussian direction times |w|, then normalised"),
    "last_update": Provider("last update", None, "on along the run's last update, as MSAM does (Becker et al. 2024)"),
    "shrink": Provider("initial", None, "back towards the initial weights"),
    "zero": Provider("none", None, "no perturbation: the control, whose every metric is exactly zero"),
}


def check_provider(name: str) -> Provider:
    """The provider of that name.

    Raises:
        ValueError: If there is none.
    """
    if name not in PROVIDERS:
        raise ValueError(f"`providers` has no {name!r}; choose from {', '.join(PROVIDERS)}.")
    return PROVIDERS[name]


def raw_direction(
    objective: Objective,
    risk: EmpiricalRisk,
    *,
    C: float | None = None,
    gamma: float = 1.0,
    link: Link = "softmax",
    radius: float = math.nan,
    initial: Params | None = None,
    last_update: Params | None = None,
    generator: Generator | None = None,
) -> Params:
    """The direction that a provider's ascent step starts from, at the risk's own point and on the risk's own data.

    Args:
        objective: See `Provider`.
        risk: Model, loss, and the data of the perturbation (not of the evaluation).
        C: See `landscape.obf_loss`; read by "obf" alone, as are `gamma` and `link`.
        gamma: See `landscape.obf_loss`.
        link: See `landscape.obf_loss`.
        radius: l2 radius of the ball that "worst" searches.
        initial: Weights that "initial" goes back to.
        last_update: θ minus the weights one step before, for "last update".
        generator: Source of "random" noise, which alone needs it; None means a fresh one from seed 0.

    Returns:
        A direction with the keys and shapes of θ; zeros for "none".

    Raises:
        ValueError: If something that the direction is made from is missing, or an option of OBF is out of range.
    """
    match objective:
        case "gradient":
            return risk.gradient()
        case "obf":
            return replace(risk, loss=partial(obf_loss, C=C, gamma=gamma, link=link)).gradient()
        case "random":
            return random_direction(risk.theta, generator)
        case "worst":
            worst = worst_case_sharpness(risk, radius).displacement
            assert worst is not None  # one chunk has one
            return worst
        case "initial":
            if initial is None:
                raise ValueError("`initial` must be the weights before training for the way back to them, got None.")
            return {name: initial[name].to(t) - t for name, t in risk.theta.items()}
        case "last update":
            if last_update is None:
                raise ValueError("`last_update` must be the run's last update of the weights, got None.")
            return {name: last_update[name].to(t) for name, t in risk.theta.items()}
        case "none":
            return {name: t.new_zeros(t.shape) for name, t in risk.theta.items()}
        case _:
            assert_never(objective)


def unit_direction(step: AscentStep, theta: Params, raw: Params) -> tuple[Params, float]:
    """The step's direction scaled to l2 length 1, and the length that it has for ρ = 1; zeros and 0.0 if it vanishes.

    A displacement of l2 length r is then r times the first, and has the radius ρ = r / second in the step's own units.
    """
    direction = step.direction(theta, raw)
    length = float(norm(direction))
    if not (math.isfinite(length) and length > 0):
        return {name: t.new_zeros(t.shape) for name, t in direction.items()}, 0.0
    return {name: t / length for name, t in direction.items()}, length


def provider_options(
    name: str, *, C: float | None, gamma: float, link: Link, eta: float, scope: Scope = "all"
) -> dict[str, Any]:
    """The options among these that decide what a provider does."""
    provider = PROVIDERS[name]
    options: dict[str, Any] = {"C": C, "gamma": gamma, "link": link} if provider.objective == "obf" else {}
    return options | ({"eta": eta, "scope": scope} if provider.where is not None else {})


@dataclass(frozen=True)
class OwnPerturbation:
    """The perturbation that a run was trained with.

    Attributes:
        provider: Its name in `PROVIDERS`.
        step: The step, with the run's radius, norm and metric.
    """

    provider: str
    step: AscentStep

    def __post_init__(self) -> None:
        check_provider(self.provider)
