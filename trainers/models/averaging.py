"""The average of weights: a second model, made of the weights of the first along training."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from landscape.batches import Batches
from landscape.batchnorm import recalibrate, tracking_modules

Kind = Literal["ema", "swa"]


class WeightAverage:
    """The average of a model's weights, kept by torch's `AveragedModel`: the first weights are taken as they are.

    "ema": θ̄ <- d θ̄ + (1 - d) θ, and likewise for buffers of floating point (running statistics), as timm averages
    them; other buffers are the model's. "swa": θ̄ <- θ̄ + (θ - θ̄) / (n + 1); running statistics are estimated afresh
    by `recalibrate`.

    Args:
        model: Of which a copy is made.
        kind: Which average.
        decay: d.

    Attributes:
        model: The average, in evaluation mode.

    Raises:
        ValueError: If the model cannot be copied.

    Source:
        EMA: Polyak and Juditsky (1992), SIAM J. Control Optim. 30(4), with exponential weights; conventions of timm's
        `ModelEmaV3` without warm-up. SWA: Izmailov et al. (2018), "Averaging weights leads to wider optima", UAI.
    """

    def __init__(self, model: nn.Module, kind: Kind, decay: float) -> None:
        self.kind: Kind = kind
        moving: dict[str, Any] = {"multi_avg_fn": _moving(decay), "use_buffers": True} if kind == "ema" else {}
        try:
            self._averaged = AveragedModel(model, **moving)
        except Exception as error:  # a user's model raises what it likes
            said = (str(error).splitlines() or [""])[0][:120]
            raise ValueError(
                f"`average` {kind!r} keeps a copy of the model, and `copy.deepcopy` fails on it "
                f"({type(error).__name__}: {said}): leave `average` out, or let the model be copied."
            ) from error
        self.model: nn.Module = self._averaged.module.eval()
        self._estimated = -1  # averaged weights that the running statistics are of

    @property
    def count(self) -> int:
        """How many weights were averaged."""
        return int(self._averaged.n_averaged)

    def update(self, model: nn.Module) -> None:
        """Take in the model's present weights."""
        self._averaged.update_parameters(model)

    def recalibrate(self, batches: Batches) -> None:
        """For "swa", estimate running statistics over training data, unless that was done for these weights."""
        if self.kind == "swa" and self._estimated != self.count and tracking_modules(self.model):
            recalibrate(self.model, batches)
            self._estimated = self.count

    def state_dict(self) -> dict[str, Any]:
        """All weights and buffers, and how many were averaged."""
        return {"count": self.count, "tensors": dict(self._named())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        with torch.no_grad():
            for name, tensor in self._named().items():
                tensor.copy_(state["tensors"][name])
            self._averaged.n_averaged.fill_(state["count"])

    def _named(self) -> dict[str, Tensor]:
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        return {name: tensor.detach() for name, tensor in named}


def _moving(decay: float) -> Any:
    """The exponential moving average; torch's own also averages counters and indices, and rounds them down."""

    @torch.no_grad()
    def update(averaged: list[Tensor], present: list[Tensor], _: Any) -> None:
        if averaged[0].is_floating_point() or averaged[0].is_complex():
            torch._foreach_lerp_(averaged, present, 1 - decay)
        else:
            torch._foreach_copy_(averaged, present)

    return update
