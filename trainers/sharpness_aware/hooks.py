"""What happens to the weights before an optimizer step."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class ShrinkPerturb:
    """Shrink-and-perturb: w ← (1 - f_t) w + f_t w_init with f_t = f lr_t / lr_base, for every real or complex entry.

    Nothing is drawn: the "perturbation" is the fixed initial point. Buffers count too; integer ones are left alone.

    Attributes:
        factor: f in [0, 1]; 0 disables.
        lr_base: Learning rate at which f_t = f.
        initial: The state at construction; it is part of `state_dict`, so a resumed run keeps its own.

    Source:
        The baseline of Vani et al. (2024), as in their released code.
    """

    factor: float
    lr_base: float
    initial: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.factor <= 1:
            raise ValueError(f"`shrink_perturb` must be in [0, 1], got {self.factor!r}.")

    @classmethod
    def of(cls, model: nn.Module, factor: float, lr_base: float) -> "ShrinkPerturb":
        """The hook for a model as it is now."""
        state = {k: t.detach().clone() for k, t in _floating_state(model).items()} if factor > 0 else {}
        return cls(factor, lr_base, state)

    def changes(self, model: nn.Module) -> dict[str, Tensor]:
        """The tensors that a call writes to."""
        return _floating_state(model) if self.factor else {}

    @torch.no_grad()
    def __call__(self, model: nn.Module, lr: float) -> None:
        """Apply the hook at learning rate `lr`."""
        if self.factor == 0:
            return
        f = self.factor * lr / self.lr_base
        for name, tensor in _floating_state(model).items():
            tensor.mul_(1 - f).add_(self.initial[name].to(tensor), alpha=f)


def _floating_state(model: nn.Module) -> dict[str, Tensor]:
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: t for name, t in state.items() if t.is_floating_point() or t.is_complex()}
