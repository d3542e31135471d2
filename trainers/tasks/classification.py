"""Classification: one whole-number label for each example, and logits (n, classes)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from trainers.tasks.losses import LOSSES, Convention, Loss, make_loss, weight_on


@dataclass(frozen=True)
class Classification:
    """Learns labels by cross-entropy, or by binary cross-entropy summed over the classes.

    Attributes:
        name: "cross_entropy" or "bce".
        smoothing: Of the labels, in training.
        convention: See `trainers.tasks.losses.smoothed_targets`.
        class_weights: What an example of each class counts for; None for all the same.
    """

    name: Literal["cross_entropy", "bce"] = "cross_entropy"
    smoothing: float = 0.0
    convention: Convention = "uniform"
    class_weights: tuple[float, ...] | None = None

    @property
    def plain(self) -> "Classification":
        """Plain cross-entropy, so that all runs are measured alike."""
        return Classification()

    @cached_property
    def loss(self) -> Loss:
        """Mean over what counts in the batch, in nats."""
        return make_loss(self.name, smoothing=self.smoothing, convention=self.convention, weight=self.weight_of_classes)

    def each(self, outputs: Float[Tensor, "n k"], targets: Shaped[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each example; `loss` is their mean, weighted by their classes."""
        loss, y, weight = LOSSES[self.name], targets.long(), self.weight_of_classes
        if weight is None:
            return loss(outputs, y, smoothing=self.smoothing, convention=self.convention, reduction="none")
        values = loss(outputs, y, smoothing=self.smoothing, convention=self.convention, weight=weight, reduction="none")
        return values / weight_on(outputs, weight)[y]

    @property
    def weight(self) -> Callable[[Any], float] | None:
        """What a batch counts for: the sum of its labels' weights; None where that is its number of examples."""
        return None if self.class_weights is None else self._counted

    def _counted(self, targets: Shaped[Tensor, " n"]) -> float:
        assert self.weight_of_classes is not None
        return float(self.weight_of_classes[targets.long().cpu()].sum())

    @cached_property
    def weight_of_classes(self) -> Tensor | None:
        """The weights of classes, of shape (k,) in float64."""
        return None if self.class_weights is None else torch.tensor(self.class_weights, dtype=torch.float64)

    def scores(self, outputs: Float[Tensor, "n k"], targets: Shaped[Tensor, " n"]) -> dict[str, Bool[Tensor, " n"]]:
        """The error: whether the largest logit is another than the label's."""
        return {"error": outputs.argmax(-1) != targets}

    def probabilities(self, outputs: Float[Tensor, "*n k"]) -> Float[Tensor, "*n k"]:
        """The softmax, in float64."""
        return torch.softmax(outputs.double(), -1)
