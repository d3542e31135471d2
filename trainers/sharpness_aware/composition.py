"""A method as a composition of parts."""

from dataclasses import dataclass, field
from typing import Any, Literal

from landscape.perturbation import AscentStep
from trainers.sharpness_aware.ascent import AscentSource, Gradient
from trainers.sharpness_aware.combiners import Combiner, TakePerturbed
from trainers.sharpness_aware.gates import Always, Gate
from trainers.sharpness_aware.masks import Mask
from trainers.sharpness_aware.plans import Plan
from trainers.sharpness_aware.radii import Radius
from trainers.sharpness_aware.selection import InverseSlope, LargestIncrease


@dataclass(frozen=True)
class Composition:
    """The parts of a sharpness-aware method; `scaler` is made for radius 1, the radius multiplies it.

    Attributes:
        radius: ρ at the current learning rate and step.
        gate: When a step is perturbed.
        source: The raw direction.
        mask: The weights that may move; None for all.
        scaler: Metric and normalisation of the displacement.
        plan: The points at which gradients are taken.
        combiner: The gradient for the base optimizer.
        weigh: Weights of the examples in the ascent; None weighs them equally.
        select: Examples of the descent; None takes all.
        functional: Pull the logits' gradient of the clean pass back through the displaced network: Functional SAM.
        ascent: Name of the objective that the perturbation ascends: "loss" (the training loss) or "obf".
        other_ascent: Whether closures of another ascent objective make sense.
    """

    radius: Radius
    gate: Gate = field(default_factory=Always)
    source: AscentSource = field(default_factory=Gradient)
    mask: Mask | None = None
    scaler: AscentStep = field(default_factory=lambda: AscentStep(1.0))
    plan: Plan = field(default_factory=Plan)
    combiner: Combiner = field(default_factory=TakePerturbed)
    weigh: InverseSlope | None = None
    select: LargestIncrease | None = None
    functional: bool = False
    ascent: str = "loss"
    other_ascent: bool = True

    @property
    def needs_reference(self) -> Literal["", "gradient", "squares"]:
        """What is taken over the reference data: nothing, a gradient, or squared gradients of single examples."""
        return self.source.reference or (self.mask.reference if self.mask is not None else "")

    @property
    def needs_previous(self) -> bool:
        """Whether the previous step's batch is evaluated again."""
        return self.plan.lagged or self.source.data == "previous"

    @property
    def needs_losses(self) -> str:
        """Why closures must give per-example losses; empty where plain closures will do."""
        if self.weigh is not None and self.weigh.tau != 0:
            return "weighs the examples of the ascent"
        if self.select is not None and self.select.active:
            return "selects examples by their loss"
        return ""

    def state_dict(self) -> dict[str, Any]:
        """What the parts keep."""
        state = {
            "gate": self.gate.state_dict(),
            "source": self.source.state_dict(),
            "combiner": self.combiner.state_dict(),
            "mask": self.mask.state_dict() if self.mask is not None else {},
        }
        if self.weigh is not None:
            state["weigh"] = {"generator": self.weigh.generator.get_state()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.gate.load_state_dict(state["gate"])
        self.source.load_state_dict(state["source"])
        self.combiner.load_state_dict(state["combiner"])
        if self.mask is not None:
            self.mask.load_state_dict(state["mask"])
        if self.weigh is not None:
            self.weigh.generator.set_state(state["weigh"]["generator"].cpu())
