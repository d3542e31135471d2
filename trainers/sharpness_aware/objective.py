"""The closures of one chunk of a batch: the training loss, and an ascent objective beside it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


class Objective:
    """A closure on fixed data: clears the gradients, runs forward and backward, returns the loss.

    Attributes:
        first_logits: Outputs of the first pass, at the clean weights, for records of correctness.
    """

    def __init__(self, model: nn.Module, parameters: list[nn.Parameter], loss: Loss, x: Tensor, y: Tensor) -> None:
        self.model, self.parameters, self.loss, self.x, self.y = model, parameters, loss, x, y
        self.first_logits: Tensor | None = None

    def __call__(self) -> Tensor:
        """Forward and backward."""
        loss = self._evaluate()
        loss.backward()
        return loss.detach()

    def forward(self) -> Tensor:
        """The loss alone; the caller has switched gradients off."""
        return self._evaluate().detach()

    def _evaluate(self) -> Tensor:
        for p in self.parameters:
            p.grad = None
        logits = self.model(self.x)
        if self.first_logits is None:
            self.first_logits = logits.detach()
        return self.loss(logits, self.y)


class AscentObjective(Objective):
    """The same data with another objective to ascend; `clean_loss` is the training loss of the same pass."""

    def __init__(self, *args: Any, ascent: Loss) -> None:
        super().__init__(*args)
        self.ascent = ascent
        self.clean_loss: Tensor | None = None

    def _evaluate(self) -> Tensor:
        for p in self.parameters:
            p.grad = None
        logits = self.model(self.x)
        if self.first_logits is None:
            self.first_logits = logits.detach()
        if self.clean_loss is None:
            with torch.no_grad():
                self.clean_loss = self.loss(logits, self.y).detach()
        return self.ascent(logits, self.y)
