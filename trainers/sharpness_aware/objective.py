"""Closures over fixed data: the training loss of a batch, and an ascent objective beside it.

They know more than a plain closure: a forward pass alone, per-example losses, mixed precision, and the logits'
gradient.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from trainers.sharpness_aware.arguments import one_number
from trainers.sharpness_aware.example_losses import ExampleLosses
from trainers.tasks.losses import Loss, each


class Objective:
    """A closure on fixed data: clears the gradients, runs forward and backward, returns the loss.

    Args:
        model: The model; it is called as it is, in its present mode.
        loss: loss(outputs, targets), one number, such as a mean over examples.
        x: Inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        y: Targets.
        parameters: Those whose gradients are cleared where the closure is called by hand; None is all that require
            one. In a step the optimizer clears those that it trains, and no others.
        autocast: Run the forward pass in this type (bfloat16 or float16); None leaves the types as they are.
        grad_scaler: Multiplies the loss before the backward pass, for float16.

    Attributes:
        first_logits: Outputs of the first pass, for records of correctness.
        clears: Whether a call clears gradients; an optimizer, which has done so itself, switches it off meanwhile.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        x: Any,
        y: Any,
        *,
        parameters: Iterable[nn.Parameter] | None = None,
        autocast: torch.dtype | None = None,
        grad_scaler: GradScaler | None = None,
    ) -> None:
        self.model, self.loss, self.x, self.y = model, loss, x, y
        self.autocast, self.grad_scaler = autocast, grad_scaler
        self.parameters = None if parameters is None else list(parameters)
        self.clears = True
        self.first_logits: Tensor | None = None
        self.keep_cotangent = False
        self._cotangent: Tensor | None = None
        self._each: ExampleLosses | None = None
        self._count: int | None = None  # of examples, once their losses are known

    def __call__(self) -> Tensor:
        """Forward and backward."""
        self._clear()
        logits = self._outputs()
        if self.keep_cotangent:
            logits.retain_grad()
        loss = self._loss(logits)
        self._scaled(loss).backward()
        if self.keep_cotangent and self._cotangent is None:
            self._cotangent = logits.grad
        return loss.detach()

    def forward(self) -> Tensor:
        """The loss alone; the caller has switched gradients off."""
        return self._loss(self._outputs()).detach()

    def losses(self, index: Tensor | None = None) -> Tensor:
        """The loss of each example, with its graph; their mean is the loss, see `ExampleLosses`.

        With `index`, of the examples there alone, after those of all have been asked for.

        Raises:
            ValueError: Where the loss is not made up of losses of single examples, or the data of examples cannot be
                told apart.
        """
        if index is None:
            outputs = self._outputs()
            with self._precision():
                values = self._examples(outputs, self.y)
            self._count = len(values)
            return values
        y = _rows(self.y, index, self._count)
        outputs = self._outputs(_rows(self.x, index, self._count))
        with self._precision():
            return self._examples.chosen(outputs, y, index)

    def alone(self) -> Tensor:
        """The loss of each example as a batch of its own, for `counted`."""
        outputs = self._outputs()
        with self._precision():
            return self._examples.alone(outputs, self.y)

    def counted(self, alone: Tensor) -> Tensor:
        """What `alone` gave, times what each example was found to count for by `losses()` since."""
        return self._examples.counted(alone)

    @property
    def _examples(self) -> ExampleLosses:
        if self._each is None:
            self._each = each(self.loss)
        return self._each

    @property
    def weights(self) -> Tensor | None:
        """What each example counts for in the loss, with mean one, as `losses()` last found it; None for all the same.

        Class weights, and the number of an example's tokens; zero where its targets are ignored.
        """
        return None if self._each is None else self._each.weights

    def pull(self) -> Tensor:
        """Backward with the logits' gradient of the first pass, at the present weights; returns the loss there."""
        assert self._cotangent is not None
        logits = self._outputs()
        logits.backward(self._cotangent)
        with torch.no_grad():
            return self._loss(logits).detach()

    def _outputs(self, x: Any = None) -> Tensor:
        x = self.x if x is None else x
        with self._precision():
            logits: Tensor
            if isinstance(x, dict):
                logits = self.model(**x)
            else:
                logits = self.model(*x) if isinstance(x, tuple) else self.model(x)
        if self.first_logits is None and x is self.x:
            self.first_logits = logits.detach()
        return logits

    def _loss(self, logits: Tensor) -> Tensor:
        with self._precision():
            loss: Any = self.loss(logits, self.y)
        return loss if type(loss) is Tensor and loss.ndim == 0 else one_number(loss)

    def _precision(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(next(self.model.parameters()).device.type, self.autocast)

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss if self.grad_scaler is None else self.grad_scaler.scale(loss)

    def _clear(self) -> None:
        if not self.clears:
            return
        everything = (p for p in self.model.parameters() if p.requires_grad)
        for p in everything if self.parameters is None else self.parameters:
            p.grad = None


class AscentObjective(Objective):
    """The same data with another objective to ascend; `clean_loss` is the training loss of the same pass.

    Args:
        *args: As for `Objective`.
        ascent: ascent(outputs, targets), to be maximised.
        **settings: As for `Objective`.
    """

    def __init__(self, *args: Any, ascent: Loss, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.ascent = ascent
        self.retain = False
        self.clean_loss: Tensor | None = None
        self._graph: Tensor | None = None

    def __call__(self) -> Tensor:
        """Forward and backward on the ascent objective."""
        self._clear()
        logits = self._outputs()
        with self._precision():
            if self.retain:
                self._graph = self.loss(logits, self.y)
            if self.clean_loss is None:
                with torch.no_grad():
                    self.clean_loss = (self._graph if self._graph is not None else self.loss(logits, self.y)).detach()
            value = self.ascent(logits, self.y)
        self._scaled(value).backward(retain_graph=self.retain)
        return value.detach()

    def loss_backward(self) -> Tensor:
        """Backward on the training loss through the graph of the last pass, which `retain` kept; returns the loss."""
        assert self._graph is not None
        loss, self._graph = self._graph, None
        self._scaled(loss).backward()
        return loss.detach()


def _rows(value: Any, index: Any, n: int | None) -> Any:
    """The examples at `index`, of n, of a tensor, or of every tensor in a dict or tuple."""
    if isinstance(value, dict):
        return {k: _rows(v, index, n) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(_rows(v, index, n) for v in value)
    if isinstance(value, list):
        return [value[i] for i in index.tolist()]
    if isinstance(value, Tensor) and n is not None and (not value.ndim or len(value) != n):
        raise ValueError(
            f"the method takes some of {n} examples, and a tensor of the batch has shape {tuple(value.shape)}, not a "
            f"row an example: pass a closure of your own with `losses(index)`."
        )
    return value[index] if hasattr(value, "__getitem__") and not isinstance(value, str) else value
