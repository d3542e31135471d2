"""The risk: a loss averaged over data, as a pure function of the parameters."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from landscape.batches import Batch, as_batches, batch_size, joined, split_batches, take
from landscape.checks import as_point, require_generator, require_loss, require_model, require_whole
from landscape.evaluation import Look
from landscape.functional import Mode, PureModel
from landscape.params import Params, real_parts, select
from landscape.ranks import Ranks


@dataclass(frozen=True)
class EmpiricalRisk:
    """L(θ) = Σ_b w_b L_b(θ) / Σ_b w_b: the mean loss over all examples, whatever the sizes of the batches.

    L_b is the loss of batch b, a mean over its examples, and w_b the number of them, unless `weight` says otherwise.

    Attributes:
        predict: Maps (θ, inputs) to outputs; pure in θ.
        loss: Maps (outputs, targets) to the mean loss over one batch's examples.
        batches: Pairs (inputs, targets); they may differ in size.
        theta: The point that methods use when no other is given.
        names: Names of θ in the model's `named_parameters()` order, the order of every flat vector.
        weight: Maps (inputs, targets) to a batch's weight; None means its number of examples. A loss that is a mean
            over tokens, say, needs the number of tokens.
        ranks: The processes that the batches are shared out to; None if this one has them all.
        total: Σ_b w_b over all processes, where the batches are shared out.
        look: What the first evaluation has shown.
    """

    predict: Callable[[Params, Any], Any]
    loss: Callable[[Any, Any], Tensor]
    batches: Sequence[Batch]
    theta: Params
    weight: Callable[[Any, Any], float] | None = None
    ranks: Ranks | None = None
    total: float | None = None
    look: Look = field(default_factory=Look, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_loss(self.loss)
        if not self.batches:
            raise ValueError("`data` has no batch: a risk needs at least one example.")
        if not any(self.sizes):
            raise ValueError("`data` has no example: all batches are empty.")
        if not self.theta:
            raise ValueError("the model has no trainable parameter: set `requires_grad` or name some in `parameters`.")
        if any(t.is_complex() for t in self.theta.values()):
            if not isinstance(self.predict, PureModel):
                names = [name for name, t in self.theta.items() if t.is_complex()]
                raise ValueError(
                    f"`theta` has complex parameters {names}: give their real and imaginary parts, "
                    "torch.view_as_real(t), and let `predict` put them together by torch.view_as_complex."
                )
            object.__setattr__(self, "theta", real_parts(self.theta))

    @classmethod
    def from_model(
        cls,
        model: torch.nn.Module,
        loss: Callable[[Any, Any], Tensor],
        data: Any,
        *,
        parameters: str | Iterable[str] | None = None,
        mode: Mode = "eval",
        weight: Callable[[Any, Any], float] | None = None,
    ) -> "EmpiricalRisk":
        """Make the risk of a model on data. The model itself is never touched: its tensors are shared, its modes not.

        Args:
            model: Any module; frozen parameters stay out of θ, tied ones count once.
            loss: Mean loss of one batch, called as loss(outputs, targets); for dict batches, loss(outputs, batch).
            data: A pair (inputs, targets) of tensors, a list of batches, or a DataLoader. A dict batch is passed to
                the model by keyword.
            parameters: What to differentiate by: names, globs ("*.weight") or modules ("blocks.0"); None means all
                that require a gradient.
            mode: "eval" fixes BatchNorm's running statistics and switches dropout off. "batch" normalises by each
                batch's own statistics, so that each batch is one fixed function and the risk their weighted mean;
                dropout off. "recalibrate" estimates the running statistics afresh, over all batches, at every θ where
                the risk is asked for, and derivatives hold them there. "train" is as in training, dropout included.
            weight: Weight of a batch, called as weight(inputs, targets); None means its number of examples.

        Raises:
            ValueError: If a name is unknown, or no parameter or example is left.
        """
        require_model(model, loss)
        pure = PureModel(model, mode=mode)
        everything = pure.parameters
        if parameters is None:
            wanted = [name for name, p in everything.items() if p.requires_grad]
        else:
            wanted = select(list(everything), parameters)
        theta = {name: everything[name].detach() for name in wanted}
        return cls(pure, loss, as_batches(data, pure.module), theta, weight)

    @property
    def names(self) -> list[str]:
        """Names of θ, in the order of flat vectors."""
        return list(self.theta)

    @cached_property
    def sizes(self) -> list[int]:
        """Number of examples in each batch."""
        return [batch_size(b, unknown=None if self.weight is None else 1) for b in self.batches]

    @property
    def n(self) -> int:
        """Number of examples."""
        return sum(self.sizes)

    @property
    def mode(self) -> str:
        """How normalisation and dropout layers behave; "eval" for a `predict` that is no model of ours."""
        return self.predict.mode if isinstance(self.predict, PureModel) else "eval"

    @cached_property
    def shares(self) -> list[float]:
        """Each batch's part of the risk, w_b / Σ w_b, where the sum is over all processes."""
        weights = self._weights()
        total = math.fsum(weights) if self.total is None else self.total
        return [w / total for w in weights]

    @property
    def device(self) -> torch.device:
        """Where the first parameter lives."""
        return next(iter(self.theta.values())).device

    def at(self, theta: Params) -> "EmpiricalRisk":
        """The same risk with another default point."""
        point = self._point(theta)
        return replace(self, theta={name: point[name].detach() for name in self.names})

    def on(self, data: Any) -> "EmpiricalRisk":
        """The same model and loss on other data; shared out to the processes as this risk's data are."""
        model = self.predict.module if isinstance(self.predict, PureModel) else None
        look = Look(self.look.needs_graph)
        other = replace(self, batches=as_batches(data, model), ranks=None, total=None, look=look)
        return other if self.ranks is None else other.sharded(self.ranks.group)

    def in_parts(self, size: int) -> "EmpiricalRisk":
        """The same risk with batches of at most `size` examples: the same function, less memory at a time.

        Raises:
            ValueError: If `size` is below 1, or batches may not be cut because they normalise by their own statistics.
        """
        require_whole(size, "size")
        if size < 1:
            raise ValueError(f"`size` must be at least 1 example, got {size!r}.")
        if max(self.sizes) <= size:
            return self
        if self.mode in ("batch", "train") and isinstance(self.predict, PureModel) and self.predict.normalised:
            raise ValueError(
                f"`size` = {size} would cut batches that are normalised by their own statistics, which changes the "
                "risk: use mode='eval' or 'recalibrate', or make the data's batches smaller."
            )
        if self.mode == "recalibrate" and isinstance(self.predict, PureModel) and self.predict.normalised:
            raise ValueError(
                f"`size` = {size} would cut batches whose statistics are estimated, which changes them: use "
                ".settled(theta), then .in_parts(size)."
            )
        return replace(self, batches=split_batches(self.batches, size))

    def sharded(self, group: Any = None) -> "EmpiricalRisk":
        """The same risk with its examples shared out to the processes of `torch.distributed`.

        Every process must hold the same data, loss and weights. Values, gradients and operators' products are then sums
        over processes, and equal in all of them, so that every process runs the same program to the same answer, up to
        the rounding of another order of summation. `n`, `outputs` and `targets` are those of this process.

        Args:
            group: A process group; None means all processes.

        Raises:
            RuntimeError: If no process group is initialised.
            ValueError: If there are fewer examples than processes.
        """
        if self.mode == "recalibrate":
            raise ValueError("mode='recalibrate' needs all data in each process: use .settled(theta), then .sharded().")
        ranks = Ranks(group)
        whole = self.mode in ("batch", "train")
        mine = replace(self, batches=ranks.share(self.batches, whole=whole), ranks=ranks)
        return replace(mine, total=ranks.total(math.fsum(mine._weights()), self.device))

    def settled(self, theta: Params | None = None) -> "EmpiricalRisk":
        """The risk that is differentiated at θ: in mode "recalibrate" with the running statistics of θ, else itself."""
        if self.mode != "recalibrate":
            return self
        assert isinstance(self.predict, PureModel)
        return replace(self, predict=self.predict.recalibrated(self.theta if theta is None else theta, self.batches))

    def value(self, theta: Params | None = None) -> float:
        """L(θ), summed over batches in float64."""
        point = self._point(theta)
        risk = self.settled(point)

        def parts() -> list[float]:
            return [scalar(risk.loss_on(risk.predict(point, x), y)) * w for (x, y), w in risk._weighted()]

        return self._total(math.fsum(self.look.without_graph(parts)))

    def loss_on(self, outputs: Any, targets: Any) -> Tensor:
        """The loss of one batch's outputs; the first time with a check, see `Look.loss`."""
        return self.look.loss(self.loss, outputs, targets)

    def gradient(self, theta: Params | None = None) -> Params:
        """∇L(θ) as a dict of tensors."""
        return self.value_and_gradient(theta)[1]

    def value_and_gradient(self, theta: Params | None = None) -> tuple[float, Params]:
        """L(θ) and ∇L(θ); a parameter that the loss does not use has gradient zero."""
        point = {k: t.detach().requires_grad_() for k, t in self._point(theta).items()}
        risk = self.settled(point)
        total: list[Tensor] | None = None
        values = []
        for (x, y), w in risk._weighted():
            with torch.enable_grad():
                loss = risk.loss_on(risk.predict(point, x), y)
            values.append(scalar(loss) * w)
            if loss.requires_grad:
                grads = torch.autograd.grad(loss, list(point.values()), materialize_grads=True)
            else:
                grads = tuple(torch.zeros_like(t) for t in point.values())
            if total is None:
                total = [g * w for g in grads] if w != 1 else list(grads)
            else:
                torch._foreach_add_(total, grads, alpha=w)
        if total is None:
            total = [torch.zeros_like(t) for t in point.values()]
        if self.ranks is not None:
            for g in total:
                self.ranks.sum_(g)
        return self._total(math.fsum(values)), dict(zip(point, total, strict=True))

    def outputs(self, theta: Params | None = None) -> Float[Tensor, "n ..."]:
        """The model's outputs on all examples, in order, without gradient.

        Raises:
            ValueError: If they are not one tensor.
        """
        point = self._point(theta)
        risk = self.settled(point)
        found = self.look.without_graph(lambda: [risk.predict(point, x) for x, _ in self.batches])
        return torch.cat([_one_tensor(out, "the model's outputs") for out in found]).detach()

    def targets(self) -> Tensor:
        """The targets of all examples, in order.

        Raises:
            ValueError: If they are not one tensor.
        """
        return torch.cat([_one_tensor(y, "the data's targets") for _, y in self.batches])

    def chunks(self, m: int, *, generator: Generator | None = None) -> list["EmpiricalRisk"]:
        """Partition the examples into risks of m examples each (the last may be smaller).

        Args:
            m: Examples a chunk, from 1 to n.
            generator: Source of a random partition; None keeps the order of the data.

        Raises:
            ValueError: If m is out of range, or the batches cannot be put together.
        """
        require_whole(m, "m")
        if generator is not None:
            require_generator(generator)
        if not 1 <= m <= self.n:
            raise ValueError(f"`m` must be between 1 and the number of examples {self.n}, got {m}.")
        if self.ranks is not None:
            raise ValueError("`m` needs all data in each process: take the chunks before .sharded().")
        whole = joined(self.batches)
        if generator is not None:
            whole = take(whole, torch.randperm(self.n, generator=generator, device=generator.device))
        return [replace(self, batches=[part]) for part in split_batches([whole], m)]

    def _point(self, theta: Params | None) -> Params:
        """The point that was asked for, checked."""
        if theta is None:
            return self.theta
        return as_point(theta, self.theta, self.predict.parameters if isinstance(self.predict, PureModel) else None)

    def _weights(self) -> list[float]:
        if self.weight is None:
            return [float(k) for k in self.sizes]
        weights = [float(self.weight(x, y)) for x, y in self.batches]
        if not (math.isfinite(sum(weights)) and sum(weights) > 0 and min(weights) >= 0):
            raise ValueError(f"`weight` must give batches weights >= 0, not all of them 0, got {weights}.")
        return weights

    def _weighted(self) -> Iterable[tuple[Batch, float]]:
        return ((b, w) for b, w in zip(self.batches, self.shares, strict=True) if w)

    def _total(self, x: float) -> float:
        return x if self.ranks is None else self.ranks.total(x, self.device)


def _one_tensor(found: Any, what: str) -> Tensor:
    if not isinstance(found, Tensor):
        raise ValueError(f"`risk` must have one tensor as {what} here, got {type(found).__name__}.")
    return found


def scalar(loss: Any) -> float:
    """The number that a loss returned.

    Raises:
        ValueError: If it is not one number.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"`loss` must return one number, the mean over the batch's examples, got {got}: use reduction='mean', or "
            "call .mean()."
        )
    return float(loss.detach())
