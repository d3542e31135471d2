"""A method as a composition of parts."""

from dataclasses import dataclass, field
from typing import Any, Literal

from landscape.perturbation import AscentStep
from trainers.sharpness_aware.ascent import AscentSource, Gradient
from trainers.sharpness_aware.combiners import Combiner, TakePerturbed
from trainers.sharpness_aware.gates import Always, Gate, Never
from trainers.sharpness_aware.masks import Mask
from trainers.sharpness_aware.moment import restore
from trainers.sharpness_aware.plans import Plan
from trainers.sharpness_aware.radii import Radius, group_radii
from trainers.sharpness_aware.selection import InverseSlope, LargestIncrease
from trainers.sharpness_aware.trained import Trained


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

    def check_groups(self, trained: Trained) -> None:
        """Refuse settings of parameter groups that have no meaning for this method.

        Raises:
            ValueError: For `rho`, or `maximize` in some groups only, where it would be ignored or ambiguous; and for
                weights of a criterion where only the model's own get a gradient.
        """
        if self.functional and trained.outside:
            raise ValueError(
                f"this method pulls a gradient back from the model's outputs, which never reaches "
                f"{trained.outside[0]!r}, since that is not the model's: pass a module that holds all that is trained."
            )
        if any(trained.radii.values()) and isinstance(self.gate, Never):
            raise ValueError("`rho` in a parameter group has no meaning for a plain optimizer: leave it out.")
        noisy = self.weigh is not None and self.weigh.estimator == "difference"
        if trained.radii and (self.source.moves_besides or noisy) and not isinstance(self.gate, Never):
            raise ValueError(
                "`rho` in a parameter group has no meaning for this method, which also moves weights by what is no "
                "multiple of a radius: leave it out, and give the one `rho` of `make_optimizer`."
            )
        if trained.radii:
            group_radii(self.radius, trained.radii, 1.0, 0)  # refuses a schedule that cannot be carried over
        by_loss = self.combiner.by_loss or (self.select is not None and self.select.active)
        if 0 < len(trained.uphill) < len(trained.parameters) and by_loss:
            raise ValueError(
                "`maximize` in some parameter groups only: this method compares losses, of which none is minimised "
                "then. Set it in all groups or in none."
            )

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
            restore(self.weigh.generator, state["weigh"]["generator"])
