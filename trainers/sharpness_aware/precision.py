"""Loss scaling for float16: gradients of every pass in true units, and one skipped step for one overflow."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from landscape.params import Params


@dataclass
class LossScale:
    """torch's GradScaler as the engine needs it.

    The closures multiply the loss by the scale. After every pass the gradients are divided by it at once, because
    methods that do not normalise need true units. What the base optimizer gets goes back through the scaler's own
    `unscale_`, `step` and `update`, once a step, so that an overflow in any pass skips the step and lowers the scale
    once. The scale is a power of two, so that multiplying and dividing by it changes no bit.
    """

    scaler: GradScaler

    @property
    def active(self) -> bool:
        """Whether the scaler is enabled."""
        return bool(self.scaler.is_enabled())

    def scale(self, loss: Tensor) -> Tensor:
        """The loss times the scale."""
        return self.scaler.scale(loss)

    def true_units(self, grads: list[Tensor]) -> None:
        """Divide gradients by the scale, in place."""
        if grads and self.active:
            torch._foreach_mul_(grads, 1.0 / self.scaler.get_scale())

    def step(self, base: Optimizer, parameters: dict[str, nn.Parameter]) -> None:
        """The base optimizer's step unless a gradient is not finite; then the scale goes down."""
        if self.active:
            grads = [p.grad for p in parameters.values() if p.grad is not None]
            torch._foreach_mul_(grads, self.scaler.get_scale())
            self.scaler.unscale_(base)
        self.scaler.step(base)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """The scaler's state."""
        return dict(self.scaler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        if state:
            self.scaler.load_state_dict(state)


def finite(grads: Params) -> bool:
    """Whether every entry is finite; one reduction over all tensors."""
    if not grads:
        return True
    norms = torch._foreach_norm([g.float() if g.dtype == torch.float16 else g for g in grads.values()], float("inf"))
    return bool(torch.isfinite(torch.stack([n.to(norms[0].device) for n in norms])).all())


def spoil(parameters: dict[str, nn.Parameter]) -> None:
    """Fill the gradients with infinity: the mark by which scaler and other ranks see that the step must be skipped."""
    for p in parameters.values():
        if p.grad is None:
            p.grad = torch.empty_like(p)
        p.grad.fill_(float("inf"))
