"""What a method of the registry is: a composing function, and the facts that `landscape list methods` prints."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Generator, nn
from torch.optim import Optimizer

from landscape.perturbation import AbsWeight, AscentStep
from trainers.sharpness_aware.composition import Composition
from trainers.sharpness_aware.radii import ConstantRadius, Radius
from trainers.sharpness_aware.trained import Trained

Adaptive = Literal["none", "before", "after", "both"]
Scope = Literal["all", "weights"]
Granularity = Literal["element", "filter", "tensor"]


@dataclass
class Setting:
    """What a method may know of the run it is composed for.

    Attributes:
        radius: ρ.
        model: The model.
        base: The base optimizer.
        trained: Its parameters by name, as they are when the method is made and, after `look`, later.
        generator: Of the method's own randomness; differs between ranks.
        seed: Of decisions that must be the same on all ranks.
        total_steps: Length of the run, if known.
        steps_per_epoch: Steps of an epoch, if known.
        base_shapes: Shapes of a narrow model's parameters by name, for methods that compare widths.
    """

    radius: Radius = field(default_factory=lambda: ConstantRadius(0.0))
    model: nn.Module = field(default_factory=nn.Module)
    base: Optimizer | None = None
    trained: Trained | None = None
    generator: Generator = field(default_factory=Generator)
    seed: int = 0
    total_steps: int | None = None
    steps_per_epoch: int | None = None
    base_shapes: Mapping[str, Sequence[int]] | None = None

    def steps(self, epochs: float, option: str) -> int:
        """A number of epochs in steps, at least one.

        Raises:
            ValueError: If the length of an epoch is not known.
        """
        if self.steps_per_epoch is None:
            raise ValueError(f"`{option}` counts epochs: pass `steps_per_epoch=`.")
        return max(1, round(epochs * self.steps_per_epoch))

    def shared_generator(self) -> Generator:
        """A generator that draws the same on all ranks."""
        return Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class Method:
    """A method of the registry.

    Attributes:
        compose: Makes the composition from a `Setting` and the method's knobs (keyword-only arguments).
        help: One line.
        cost: Forward and backward passes a step, in full batches.
        source: Where the rule comes from.
        rule: "published" (paper or official code), "partial" (from others' accounts of it) or "ours" (the published
            rule could not be read; the idea is theirs, the definition ours).
        rho: Default radius; None for methods without one.
        ascent: Objective ascended unless the configuration says otherwise.
        base: The base optimizer, where the name fixes it.
        other_ascent: Whether another ascent objective (OBF) makes sense.
    """

    compose: Callable[..., Composition]
    help: str
    cost: str
    source: str
    rule: Literal["published", "partial", "ours"] = "published"
    rho: float | None = 0.05
    ascent: Literal["loss", "obf"] = "loss"
    base: Literal["sgd", "adamw", "bsam"] | None = None
    other_ascent: bool = True


METHODS: dict[str, Method] = {}


def method(
    name: str,
    help: str,
    cost: str,
    source: str,
    rule: Literal["published", "partial", "ours"] = "published",
    **more: object,
) -> Callable[[Callable[..., Composition]], Callable[..., Composition]]:
    """Register the composing function that follows under a name."""

    def register(compose: Callable[..., Composition]) -> Callable[..., Composition]:
        METHODS[name] = Method(compose, help, cost, source, rule, **more)  # type: ignore[arg-type]
        return compose

    return register


def scaler(p: float = 2.0, adaptive: Adaptive = "none", eta: float = 0.0, scope: Scope = "all") -> AscentStep:
    """The metric and normalisation that most methods share."""
    if adaptive == "none":
        return AscentStep(1.0, p=p)
    return AscentStep(1.0, p=p, metric=AbsWeight(eta, scope), where=adaptive)
