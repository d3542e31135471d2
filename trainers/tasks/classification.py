"""Classification: one whole-number label for each example, and logits (n, classes)."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from trainers.tasks.losses import LOSSES, Convention, Loss, make_loss


@dataclass(frozen=True)
class Classification:
    """Learns labels by cross-entropy, or by binary cross-entropy summed over the classes.

    Attributes:
        name: "cross_entropy" or "bce".
        smoothing: Of the labels, in training.
        convention: See `trainers.tasks.losses.smoothed_targets`.
    """

    name: Literal["cross_entropy", "bce"] = "cross_entropy"
    smoothing: float = 0.0
    convention: Convention = "uniform"

    weight = None

    @property
    def plain(self) -> "Classification":
        """Plain cross-entropy, so that all runs are measured alike."""
        return Classification()

    @cached_property
    def loss(self) -> Loss:
        """Mean over the batch, in nats."""
        return make_loss(self.name, smoothing=self.smoothing, convention=self.convention)

    def each(self, outputs: Float[Tensor, "n k"], targets: Shaped[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each example."""
        loss = LOSSES[self.name]
        return loss(outputs, targets.long(), smoothing=self.smoothing, convention=self.convention, reduction="none")

    def scores(self, outputs: Float[Tensor, "n k"], targets: Shaped[Tensor, " n"]) -> dict[str, Bool[Tensor, " n"]]:
        """The error: whether the largest logit is another than the label's."""
        return {"error": outputs.argmax(-1) != targets}

    def probabilities(self, outputs: Float[Tensor, "*n k"]) -> Float[Tensor, "*n k"]:
        """The softmax, in float64."""
        return torch.softmax(outputs.double(), -1)
