"""Loss scaling for float16: gradients of every pass in true units, and one skipped step for one overflow."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from landscape.params import Params, times_, wide, wide_inner
from landscape.spread import spread

UNSCALED = (
    "`grad_scaler.unscale_` or `grad_scaler.step` was called on this optimizer, which does both itself: leave them and "
    "`grad_scaler.update()` out, and pass `grad_scaler=` to `make_optimizer`; gradients are in true units already."
)


@dataclass
class LossScale:
    """torch's GradScaler as the engine needs it.

    The closures multiply the loss by the scale. After every pass the gradients are divided by it at once, because
    methods that do not normalise need true units. The scale is a power of two, so that this changes no bit. Once a
    step the scaler is told whether any pass overflowed, so that it lowers the scale once, or counts towards the next
    rise. It is told by a stand-in of one entry: the scaler's own `step` would call the base optimizer after an overflow
    too where that is fused, and torch's fused SGD then starts from a momentum of whatever the memory held.

    Attributes:
        scaler: torch's.
        owners: The optimizers that do without the scaler's own `unscale_` and `step`.
    """

    scaler: GradScaler
    owners: Sequence[Optimizer] = ()
    _witness: Optimizer | None = field(default=None, init=False, repr=False)

    def scale(self, loss: Tensor) -> Tensor:
        """The loss times the scale."""
        return self.scaler.scale(loss)

    def true_units(self, grads: list[Tensor]) -> None:
        """Divide gradients by the scale, in place.

        Raises:
            ValueError: If the scaler has scaled nothing, or has been asked to unscale or step an owner.
        """
        if self.touched():
            raise ValueError(UNSCALED)
        if self.scaler._scale is None:
            raise ValueError(
                "`grad_scaler` has scaled nothing yet: the closures must multiply the loss by its scale, "
                "`grad_scaler.scale(loss).backward()`."
            )
        if grads:
            times_(grads, 1.0 / wide(self.scaler._scale))

    def update(self, *, overflow: bool) -> None:
        """End a step: lower the scale after an overflow, else count towards raising it."""
        assert self.scaler._scale is not None
        if self._witness is None:
            self._witness = torch.optim.SGD([nn.Parameter(torch.zeros(1, device=self.scaler._scale.device))])
        for p in self._witness.param_groups[0]["params"]:
            p.grad = torch.full_like(p, math.inf if overflow else 0.0)
        self.scaler.unscale_(self._witness)
        self.scaler.update()

    def touched(self) -> bool:
        """Whether the scaler has been asked to unscale or step an owner since its last update."""
        return any(id(owner) in self.scaler._per_optimizer_states for owner in self.owners)

    def state_dict(self) -> dict[str, Any]:
        """The scaler's state."""
        return dict(self.scaler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        if state:
            self.scaler.load_state_dict(state)


def check_precision(parameters: dict[str, nn.Parameter], scaler: GradScaler | None) -> None:
    """Warn of weights in half precision, in which a perturbation all but vanishes.

    Raises:
        ValueError: For a scaler with float16 weights, which torch's scaler does not serve.
    """
    half = [n for n, p in parameters.items() if p.dtype in (torch.float16, torch.bfloat16)]
    if not half:
        return
    if scaler is not None and scaler.is_enabled() and any(parameters[n].dtype == torch.float16 for n in half):
        raise ValueError(
            f"`grad_scaler` needs float32 weights, and {half[0]!r} is float16: keep the weights in float32 and run the "
            f"closures under `torch.autocast`."
        )
    warnings.warn(
        f"{len(half)} parameters, such as {half[0]!r}, are {parameters[half[0]].dtype}: entries of the perturbation "
        f"below half a unit in the last place of the weight are lost. Keep the weights in float32 and run the closures "
        f"under `torch.autocast`.",
        stacklevel=4,
    )


@dataclass(frozen=True)
class Guard:
    """Lets gradients pass that are finite.

    Attributes:
        losses: Whether losses must be finite too; with loss scaling alone a gradient tells.
    """

    losses: bool

    def passes(self, *grads: Params | None, losses: Sequence[Tensor] = ()) -> bool:
        """Whether all is finite: reads back one number, and a second one where it or a sum of squares is not."""
        held = [g for g in grads if g]
        sizes = [loss.detach().reshape(()).abs() for loss in (losses if self.losses else ())]
        first = [wide_inner(g, g) for g in held] + [wide(size) for size in sizes]
        if not first or math.isfinite(_summed(first)):
            return True
        if not held or any(spread(t) for g in held for t in g.values()):
            return False
        tops = torch._foreach_norm(
            [t.float() if t.dtype == torch.float16 else t for g in held for t in g.values()], math.inf
        )
        return math.isfinite(_summed([wide(t) for t in (*tops, *sizes)]))


def _summed(numbers: list[Tensor]) -> float:
    """A sum, at one wait."""
    device = numbers[0].device
    return float(torch.stack([n.to(device) for n in numbers]).sum())


def spoil(parameters: dict[str, nn.Parameter]) -> None:
    """Fill the gradients with infinity: the mark by which scaler and other ranks see that the step must be skipped."""
    for p in parameters.values():
        if p.grad is None:
            p.grad = torch.empty_like(p)
        p.grad.fill_(float("inf"))
