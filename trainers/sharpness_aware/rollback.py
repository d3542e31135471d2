"""What a step that is skipped or given up puts back."""

from dataclasses import dataclass, field
from typing import Any

import torch

from landscape.params import Params
from trainers.sharpness_aware.buffers import Buffers, put_back
from trainers.sharpness_aware.composition import Composition
from trainers.sharpness_aware.hooks import ShrinkPerturb


@dataclass
class Before:
    """A step's start: what passes and hooks change besides the gradients.

    Random numbers that passes have drawn from torch's global generators stay drawn, as after a pass that broke off; the
    method's own generators go back.

    Attributes:
        parts: The parts' state.
        buffers: The model's buffers, where they are kept.
        shrunk: Parameters and buffers that shrink-and-perturb is about to change.
    """

    parts: dict[str, Any]
    buffers: list[Any] = field(default_factory=list)
    shrunk: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    @classmethod
    def of(cls, parts: Composition, model: torch.nn.Module, shrink: ShrinkPerturb | None, *, whole: bool) -> "Before":
        """The start as it is now; `whole` keeps buffers and shrunk weights too."""
        if not whole:
            return cls(parts.state_dict())
        tensors: Params = {} if shrink is None else shrink.changes(model)
        shrunk = [(t, t.detach().clone()) for t in tensors.values()]
        return cls(parts.state_dict(), Buffers(model.modules(), everything=True).take(), shrunk)

    @torch.no_grad()
    def put_back(self, parts: Composition, *, whole: bool) -> None:
        """Make the parts' state as it was; with `whole` all that was kept."""
        parts.load_state_dict(self.parts)
        if not whole:
            return
        put_back(self.buffers)
        for tensor, value in self.shrunk:
            tensor.copy_(value)
