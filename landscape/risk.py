"""The risk: a loss averaged over data, as a pure function of the parameters."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.batches import Batch, as_batches, batch_size
from landscape.functional import PureModel
from landscape.params import Params


def differentiable_attention() -> AbstractContextManager[None]:
    """Use the attention kernel that has second derivatives; the caller's choice is back on exit."""
    return sdpa_kernel(SDPBackend.MATH)


@dataclass(frozen=True)
class EmpiricalRisk:
    """L(θ) = (1/n) Σ_i ℓ_i(θ): the mean loss over all examples, whatever the sizes of the batches.

    Attributes:
        predict: Maps (θ, inputs) to outputs; pure in θ.
        loss: Maps (outputs, targets) to the mean loss over one batch's examples.
        batches: Pairs (inputs, targets); they may differ in size.
        theta: The point that methods use when no other is given.
        names: Names of θ in the model's `named_parameters()` order, the order of every flat vector.
    """

    predict: Callable[[Params, Any], Any]
    loss: Callable[[Any, Any], Tensor]
    batches: Sequence[Batch]
    theta: Params

    def __post_init__(self) -> None:
        if not self.batches:
            raise ValueError("`data` has no batch: a risk needs at least one example.")
        if not self.theta:
            raise ValueError("the model has no trainable parameter: set `requires_grad` or name some in `parameters`.")

    @classmethod
    def from_model(
        cls,
        model: torch.nn.Module,
        loss: Callable[[Any, Any], Tensor],
        data: Any,
        *,
        parameters: Iterable[str] | None = None,
        mode: Literal["eval", "train"] = "eval",
    ) -> "EmpiricalRisk":
        """Make the risk of a model on data. The model itself is never touched: its tensors are shared, its modes not.

        Args:
            model: Any module; frozen parameters stay out of θ, tied ones count once.
            loss: Mean loss of one batch, called as loss(outputs, targets); for dict batches, loss(outputs, batch).
            data: A pair (inputs, targets) of tensors, a list of batches, or a DataLoader. A dict batch is passed to
                the model by keyword.
            parameters: Names to differentiate; None means all that require a gradient.
            mode: "eval" fixes BatchNorm statistics and switches dropout off.

        Raises:
            ValueError: If a name is unknown, or no parameter or example is left.
        """
        pure = PureModel(model, mode=mode)
        everything = pure.parameters
        if parameters is None:
            wanted = [name for name, p in everything.items() if p.requires_grad]
        else:
            wanted = list(parameters)
            for name in wanted:
                if name not in everything:
                    raise ValueError(f"`parameters` names {name!r}, which the model lacks; it has {list(everything)}.")
            wanted = [name for name in everything if name in set(wanted)]
        theta = {name: everything[name].detach() for name in wanted}
        return cls(pure, loss, as_batches(data), theta)

    @property
    def names(self) -> list[str]:
        """Names of θ, in the order of flat vectors."""
        return list(self.theta)

    @cached_property
    def sizes(self) -> list[int]:
        """Number of examples in each batch."""
        return [batch_size(b) for b in self.batches]

    @property
    def n(self) -> int:
        """Number of examples."""
        return sum(self.sizes)

    def at(self, theta: Params) -> "EmpiricalRisk":
        """The same risk with another default point."""
        return replace(self, theta={name: theta[name].detach() for name in self.names})

    def on(self, data: Any) -> "EmpiricalRisk":
        """The same model and loss on other data."""
        return replace(self, batches=as_batches(data))

    def value(self, theta: Params | None = None) -> float:
        """L(θ), summed over batches in float64."""
        point = self.theta if theta is None else theta
        with torch.no_grad():
            parts = [float(self.loss(self.predict(point, x), y)) * k for (x, y), k in self._weighted()]
        return math.fsum(parts) / self.n

    def gradient(self, theta: Params | None = None) -> Params:
        """∇L(θ) as a dict of tensors."""
        return self.value_and_gradient(theta)[1]

    def value_and_gradient(self, theta: Params | None = None) -> tuple[float, Params]:
        """L(θ) and ∇L(θ); a parameter that the loss does not use has gradient zero."""
        point = {k: t.detach().requires_grad_() for k, t in (self.theta if theta is None else theta).items()}
        total: list[Tensor] | None = None
        values = []
        for (x, y), k in self._weighted():
            loss = self.loss(self.predict(point, x), y)
            grads = torch.autograd.grad(loss, list(point.values()), materialize_grads=True)
            values.append(float(loss.detach()) * k)
            if total is None:
                total = [g * (k / self.n) for g in grads] if len(self.batches) > 1 else list(grads)
            else:
                torch._foreach_add_(total, grads, alpha=k / self.n)
        assert total is not None
        return math.fsum(values) / self.n, dict(zip(point, total, strict=True))

    def outputs(self, theta: Params | None = None) -> Float[Tensor, "n k"]:
        """The model's outputs on all examples, in order, without gradient."""
        point = self.theta if theta is None else theta
        with torch.no_grad():
            return torch.cat([self.predict(point, x) for x, _ in self.batches])

    def targets(self) -> Tensor:
        """The targets of all examples, in order."""
        return torch.cat([y for _, y in self.batches])

    def chunks(self, m: int, *, generator: Generator | None = None) -> list["EmpiricalRisk"]:
        """Partition the examples into risks of m examples each (the last may be smaller).

        Args:
            m: Examples a chunk, from 1 to n.
            generator: Source of a random partition; None keeps the order of the data.

        Raises:
            ValueError: If m is out of range, or the batches are not pairs of tensors.
        """
        if not 1 <= m <= self.n:
            raise ValueError(f"`m` must be between 1 and the number of examples {self.n}, got {m}.")
        if not all(isinstance(x, Tensor) and isinstance(y, Tensor) for x, y in self.batches):
            raise ValueError("`m` needs batches that are pairs of tensors; this risk has other ones.")
        x, y = torch.cat([b[0] for b in self.batches]), torch.cat([b[1] for b in self.batches])
        if generator is not None:
            order = torch.randperm(self.n, generator=generator)
            x, y = x[order.to(x.device)], y[order.to(y.device)]
        return [replace(self, batches=[(x[i : i + m], y[i : i + m])]) for i in range(0, self.n, m)]

    def _weighted(self) -> Iterable[tuple[Batch, int]]:
        return zip(self.batches, self.sizes, strict=True)
