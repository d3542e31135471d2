"""Where the raw direction of a perturbation comes from, and how its steps add up to a displacement.

A source never calls the model and never normalises: the engine gives it gradients, `landscape.AscentStep` the length.
What a source remembers from step to step is in `memory`; points that are displaced before the ascent, in `offsets`.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Generator, Tensor

from landscape.params import Params, add, add_, norm, times, times_, wide
from landscape.perturbation import random_direction
from trainers.sharpness_aware.moment import Moment, Part

Needs = Literal["gradient", "nothing"]
Data = Literal["batch", "previous", "reference"]


@dataclass
class Means:
    """Gradients of a step, averaged over chunks and ranks.

    Attributes:
        final: What the base optimizer got, before clipping.
        ascent: The ascent gradient, for a source that `observes`.
        ahead: The gradient at the plan's point ahead, if it has one.
    """

    final: Params
    ascent: Params | None = None
    ahead: Params | None = None


class AscentSource(Part):
    """Supplies the raw direction of each inner step. The defaults are those of SAM.

    Attributes:
        needs_gradient: Whether the direction is made from the gradient of the ascent objective.
        data: Where that gradient is taken: on the batch, on the previous step's batch, or on the reference data.
        steps: Inner steps; each after the first evaluates the ascent gradient at the displaced point.
        collects: Whether the gradients of the inner steps are handed to the combiner too.
        clean_forward: Whether a source without a gradient still wants one clean forward pass a step, for the running
            statistics and the clean loss.
        sign: Multiple of the direction: -1 turns it round without another pass over the weights.
        inert_at_zero: Whether radius 0 makes the step the base optimizer's own.
        observes: Whether `observe` wants the step's mean ascent gradient.
        moves_besides: Whether it also displaces weights by what is no multiple of ρ, so that radii of single parameter
            groups have no meaning.
        keeps_final: Whether the source keeps the final gradient's own tensors, which then leave `.grad`.
        reference: "gradient" where the source needs the gradient over the reference data.
    """

    needs_gradient: bool = True
    data: Data = "batch"
    steps: int = 1
    collects: bool = False
    clean_forward: bool = False
    sign: float = 1.0
    inert_at_zero: bool = True
    observes: bool = False
    moves_besides: bool = False
    keeps_final: bool = False
    reference: Literal["", "gradient"] = ""

    def start(self, moment: Moment) -> Params | None:
        """The displacement at which the ascent gradient is taken; None for the clean weights."""
        return None

    def direction(self, moment: Moment, grad: Params | None) -> Params | None:
        """The raw direction; None where there is none yet, which leaves the weights in place."""
        return grad

    def offset(self, moment: Moment, grad: Params | None) -> Params | None:
        """A displacement added to the scaled direction, past metric and normalisation."""
        return None

    def advance(self, delta: Params | None, unit: Params, rho: float) -> Params:
        """The displacement after one more step along `unit`, the scaled direction for radius 1."""
        return scaled(unit, rho)

    def chunk(self, moment: Moment, grad: Params | None, weight: float) -> None:
        """Called for each chunk with its ascent gradient and its share of the batch."""

    def wants_reference(self, t: int) -> bool:
        """Whether the gradient over the reference data is due at step t."""
        return False

    def refresh(self, reference: Params) -> None:
        """Take the gradient over the reference data."""

    def observe(self, moment: Moment, means: "Means") -> None:
        """Called at the end of a perturbed step."""


@dataclass
class Gradient(AscentSource):
    """The gradient of the ascent objective at the current weights: SAM (Foret et al. 2021).

    Attributes:
        data: "previous" takes it on the previous step's batch (`sam_use_prev_batch` of Andriushchenko and Flammarion
            2022), "reference" on the reference data: n-SAM.
    """

    data: Data = "batch"

    def __post_init__(self) -> None:
        if self.data not in ("batch", "previous", "reference"):
            raise ValueError(f"`ascent_data` must be 'batch', 'previous' or 'reference', got {self.data!r}.")
        if self.data == "reference":
            self.needs_gradient, self.reference, self.clean_forward = False, "gradient", True
        self._reference: Params | None = None

    def direction(self, moment: Moment, grad: Params | None) -> Params | None:
        return self._reference if self.data == "reference" else grad

    def wants_reference(self, t: int) -> bool:
        return self.data == "reference"

    def refresh(self, reference: Params) -> None:
        self._reference = reference


@dataclass
class IteratedGradient(AscentSource):
    """K steps of gradient ascent.

    "pgd": δ_k = Π(δ_{k-1} + ρ unit_k), Π the projection on ‖δ‖₂ ≤ ρ; K = 1 is SAM.
    "split": δ_k = δ_{k-1} + (ρ / K) unit_k, without projection.
    "climb": δ_k = δ_{k-1} + ρ unit_k, without projection: the ascending point of Lookbehind-SAM.

    Source:
        "pgd": the code of Andriushchenko and Flammarion (2022); "split": our definition, common in follow-ups;
        "climb": Mordido et al. (2024).
    """

    steps: int = 2
    form: Literal["pgd", "split", "climb"] = "pgd"
    collects: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {self.steps}.")
        self.inert_at_zero = not self.collects  # the sum of K gradients is not one gradient

    def advance(self, delta: Params | None, unit: Params, rho: float) -> Params:
        step = scaled(unit, rho / self.steps if self.form == "split" else rho)
        moved = step if delta is None else {k: delta[k] + step[k] if k in delta else step[k] for k in step}
        if self.form != "pgd":
            return moved
        length = wide(norm(moved))
        return scaled(moved, torch.where(length > rho, torch.full_like(length, rho) / length, 1.0))


@dataclass
class Random(AscentSource):
    """A random direction, fresh for every draw, chunk and step.

    "gaussian": n ~ N(0, I), RandSAM once normalised (the baseline of Vani et al. 2024) and the samples of Frob-SAM;
    "sphere": n / ‖n‖₂ over all tensors jointly; "cube": uniform on [-width, width] in every coordinate.

    Attributes:
        generator: Of the draws; ranks need different ones.
        law: The distribution.
        width: Half the side of the cube.
        clean_forward: Run a clean forward pass, for the running statistics and the clean loss.
    """

    keeps = ("generator",)
    generator: Generator
    law: Literal["gaussian", "sphere", "cube"] = "gaussian"
    width: float = 1.0
    needs_gradient: bool = field(default=False, init=False)
    clean_forward: bool = True

    def direction(self, moment: Moment, grad: Params | None) -> Params | None:
        if self.law == "cube":
            return {
                name: (
                    torch.rand(t.shape, generator=self.generator, dtype=t.dtype, device=self.generator.device) * 2 - 1
                ).to(t.device)
                * self.width
                for name, t in moment.theta.items()
            }
        drawn = random_direction(moment.theta, self.generator)
        return drawn if self.law == "gaussian" else scaled(drawn, 1 / wide(norm(drawn)))


def scaled(direction: Params, number: Tensor | float) -> Params:
    """`number` times a direction, as new tensors."""
    return dict(zip(direction, times(list(direction.values()), number), strict=True))


def mix(a: Tensor | float, x: Params, b: Tensor | float, y: Params) -> Params:
    """A x + b y, written into x, which the caller gives away; a name that one lacks counts as zero there."""
    if isinstance(a, Tensor) or a != 1.0:
        times_(list(x.values()), a)
    adds = isinstance(b, Tensor) or b != 0.0
    both = [name for name in x if name in y]
    if both and adds:
        add_([x[n] for n in both], [y[n] for n in both], b)
    if adds and len(both) < len(y):
        x.update({name: t * b for name, t in y.items() if name not in x})
    return x


def combination(a: Tensor | float, x: Params, b: Tensor | float, y: Params) -> Params:
    """A x + b y, as new tensors; a name that one lacks counts as zero there."""
    if not isinstance(a, Tensor) and a == 1.0 and x and x.keys() == y.keys():  # without a pass for the copy
        return dict(zip(x, add(list(x.values()), [y[n] for n in x], b), strict=True))
    return mix(1.0, scaled(x, a), b, y)
