"""Perturbations by name, as a measure applies them: what they ascend, in which metric, and how far they go.

The displacement itself is `landscape.AscentStep`, the object that the optimizers use.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, assert_never

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from landscape import AbsWeight, AscentStep, EmpiricalRisk, Params, displaced, norm, obf_loss, random_direction
from landscape.objectives import Link

Objective = Literal["gradient", "obf", "random", "none"]
Radius = Literal["own", "iso-loss"]
Cell = tuple[str, str]  # (provider, radius)


@dataclass(frozen=True)
class Provider:
    """How a perturbation is made.

    Attributes:
        objective: What its raw direction is: the "gradient" of the risk, that of the "obf" objective, "random" Gaussian
            noise, or "none" for no perturbation at all.
        where: Where |θ| + η enters the step, see `landscape.AscentStep`; None for the plain ball.
        help: One line about it.
    """

    objective: Objective
    where: Literal["both", "before", "after"] | None
    help: str

    def step(self, rho: float, *, eta: float = 0.0) -> AscentStep:
        """The ascent step of radius `rho`.

        Args:
            rho: Radius, in units of θ for the plain ball, relative to |θ| + η otherwise.
            eta: η of the adaptive metric; the plain ball has no use for it.

        Raises:
            ValueError: If `rho` or `eta` is negative or not finite.
        """
        if self.where is None:
            return AscentStep(rho)
        return AscentStep(rho, metric=AbsWeight(eta), where=self.where)


PROVIDERS: dict[str, Provider] = {
    "sam": Provider("gradient", None, "gradient of the loss, l2 ball (Foret et al. 2021)"),
    "asam": Provider("gradient", "both", "gradient, elementwise-adaptive ball (Kwon et al. 2021), every parameter"),
    "asam_before": Provider("gradient", "before", "gradient times |w|, then normalised (option of Vani et al. 2024)"),
    "asam_after": Provider("gradient", "after", "gradient normalised, then times |w| (option of Vani et al. 2024)"),
    "obf": Provider("obf", None, "output-bias-forgetting objective, l2 ball (Vani et al. 2024)"),
    "random": Provider("random", None, "Gaussian direction, l2 sphere"),
    "random_adaptive": Provider("random", "before", "Gaussian direction times |w|, then normalised"),
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
    generator: Generator | None = None,
) -> Params:
    """The direction that a provider's ascent step starts from, at the risk's own point and on the risk's own data.

    Args:
        objective: See `Provider`.
        risk: Model, loss, and the data of the perturbation (not of the evaluation).
        C: See `landscape.obf_loss`; read by "obf" alone, as are `gamma` and `link`.
        gamma: See `landscape.obf_loss`.
        link: See `landscape.obf_loss`.
        generator: Source of "random" noise, which alone needs it.

    Returns:
        A direction with the keys and shapes of θ; zeros for "none".

    Raises:
        ValueError: If "random" is asked for without a generator, or an option of OBF is out of range.
    """
    match objective:
        case "gradient":
            return risk.gradient()
        case "obf":
            return replace(risk, loss=partial(obf_loss, C=C, gamma=gamma, link=link)).gradient()
        case "random":
            if generator is None:
                raise ValueError("`generator` must be a torch.Generator for a random direction, got None.")
            return random_direction(risk.theta, generator)
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


def iso_loss_radius(
    rise: Callable[[float], float],
    target: float,
    *,
    start: float,
    largest: float,
    smallest: float,
    rtol: float = 1e-3,
    evaluations: int = 60,
) -> float | None:
    """Find a radius r at which the loss has risen by `target`, from a few evaluations.

    A bracket is found by doubling or halving from `start`; inside it, regula falsi with the Illinois rule on
    ln rise against ln r, where a rise that goes like a power of r is a straight line. If the rise crosses the target
    more than once, the crossing next to the bracket found first is taken.

    Args:
        rise: Maps a radius to L(θ + r u) - L(θ); NaN counts as above the target.
        target: Rise to reach, above 0.
        start: First guess, between `smallest` and `largest`.
        largest: Give up above it.
        smallest: Give up below it.
        rtol: Accept a rise within rtol times the target.
        evaluations: Give up after so many calls of `rise`.

    Returns:
        The radius, or None if the target was not met in range: a direction in which the loss does not rise so far, or
        one in which it jumps.

    Raises:
        ValueError: If `target` is not above 0.
    """
    if not (math.isfinite(target) and target > 0):
        raise ValueError(f"`target` must be a finite rise of the loss above 0, got {target!r}.")

    def height(radius: float) -> float:
        ratio = rise(radius) / target
        return math.log(min(max(ratio, 1e-3), 1e3)) if not math.isnan(ratio) else math.log(1e3)

    near = math.log1p(rtol)
    low = high = math.log(start)
    h_low = h_high = height(start)
    spent = 1
    while h_high < 0 and abs(h_high) > near:  # below the target: go outwards
        low, h_low = high, h_high
        if high >= math.log(largest) or spent >= evaluations:
            return None
        high = min(high + math.log(2), math.log(largest))
        h_high = height(math.exp(high))
        spent += 1
    while h_low > 0 and abs(h_low) > near:  # above it: go inwards
        high, h_high = low, h_low
        if low <= math.log(smallest) or spent >= evaluations:
            return None
        low = max(low - math.log(2), math.log(smallest))
        h_low = height(math.exp(low))
        spent += 1
    for u, h in ((low, h_low), (high, h_high)):
        if abs(h) <= near:
            return math.exp(u)

    moved = 0  # the end that the last step moved; if the same one moves again, the other's height is halved
    while spent < evaluations and high - low > 1e-12:
        u = (low * h_high - high * h_low) / (h_high - h_low)
        h = height(math.exp(u))
        spent += 1
        if abs(h) <= near:
            return math.exp(u)
        if h < 0:
            low, h_low = u, h
            h_high = h_high / 2 if moved < 0 else h_high
            moved = -1
        else:
            high, h_high = u, h
            h_low = h_low / 2 if moved > 0 else h_low
            moved = 1
    return None


def provider_options(name: str, *, C: float | None, gamma: float, link: Link, eta: float) -> dict[str, Any]:
    """The options among these that decide what a provider does."""
    provider = PROVIDERS[name]
    options: dict[str, Any] = {"C": C, "gamma": gamma, "link": link} if provider.objective == "obf" else {}
    return options | ({"eta": eta} if provider.where is not None else {})


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


@dataclass(frozen=True)
class Move:
    """A displacement, its l2 length, and its radius in the provider's units."""

    delta: Params
    length: float
    rho: float


class Mover:
    """Makes the displacements of all providers at all radii, one batch at a time.

    The options are those of `analysis.forgetting.perturbed`, which says what the radii mean.
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        providers: Sequence[str],
        radii: Sequence[str],
        own: OwnPerturbation | None,
        iso_loss: float,
        C: float | None,
        gamma: float,
        link: Link,
        eta: float,
    ) -> None:
        if not (math.isfinite(iso_loss) and iso_loss > 0):
            raise ValueError(f"`iso_loss` must be a finite rise of the loss above 0 nats, got {iso_loss!r}.")
        self.risk, self.own, self.iso_loss = risk, own, iso_loss
        self.C, self.gamma, self.link = C, gamma, link
        self.steps = {name: PROVIDERS[name].step(1.0, eta=eta) for name in providers}
        self.cells: list[Cell] = [(p, r) for p in providers for r in radii if (p, r) != ("zero", "iso-loss")]
        self.scale = float(norm(risk.theta)) or 1.0
        self.start = dict.fromkeys(providers, 0.05 * self.scale)  # a search starts where the last batch's ended
        self.raws: dict[str, Params] = {}

    def load(self, x: Tensor, y: Tensor, loss: float) -> None:
        """Take up a new batch, with its mean cross-entropy at θ."""
        self.batch, self.loss, self.raws = self.risk.on((x, y)), loss, {}

    def moves(self, seed: int, *, random_only: bool) -> Iterator[tuple[Cell, Move | None]]:
        """The displacement of each cell; None where the iso-loss radius was not found."""
        self.raws.pop("random", None)
        length = None
        for provider, radius in self.cells:
            if random_only and PROVIDERS[provider].objective != "random":
                continue
            if radius == "iso-loss":
                yield (provider, radius), self._to_iso_loss(provider, seed)
            elif self.own is not None:
                if length is None:
                    delta = self.own.step(self.risk.theta, self._raw(self.own.provider, seed))
                    length = float(norm(delta))
                if provider == self.own.provider:
                    yield (provider, radius), Move(delta, length, self.own.step.rho)
                else:
                    yield (provider, radius), self._to_length(provider, seed, length)

    def _raw(self, provider: str, seed: int) -> Params:
        objective = PROVIDERS[provider].objective
        if objective not in self.raws:
            noise = Generator().manual_seed(seed)
            options: dict[str, Any] = {"C": self.C, "gamma": self.gamma, "link": self.link, "generator": noise}
            self.raws[objective] = raw_direction(objective, self.batch, **options)
        return self.raws[objective]

    def _to_length(self, provider: str, seed: int, length: float) -> Move:
        unit, per_rho = unit_direction(self.steps[provider], self.risk.theta, self._raw(provider, seed))
        if per_rho == 0:
            return Move(unit, 0.0, 0.0)
        return Move({name: t * length for name, t in unit.items()}, length, length / per_rho)

    def _to_iso_loss(self, provider: str, seed: int) -> Move | None:
        theta = self.risk.theta
        unit, per_rho = unit_direction(self.steps[provider], theta, self._raw(provider, seed))
        if per_rho == 0 or not math.isfinite(self.loss):
            return None
        x, y = self.batch.batches[0]

        def rise(length: float) -> float:
            with torch.no_grad():
                logits = self.risk.predict(displaced(theta, unit, length), x)
                return float(cross_entropy(logits.double(), y)) - self.loss

        length = iso_loss_radius(
            rise, self.iso_loss, start=self.start[provider], largest=10 * self.scale, smallest=1e-6 * self.scale
        )
        if length is None:
            return None
        self.start[provider] = length
        return Move({name: t * length for name, t in unit.items()}, length, length / per_rho)
