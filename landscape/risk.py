"""The risk: a loss averaged over data, as a pure function of the parameters."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from landscape.batches import Batch, as_batches
from landscape.checks.additivity import require_additive, require_chunks, require_cut
from landscape.checks.arguments import as_point, require_generator, require_loss, require_model, require_whole
from landscape.checks.trust import Trust
from landscape.evaluation import Look
from landscape.examples import Places, batch_size, joined, places, require_counted, split_batches, take
from landscape.functional import Mode, PureModel
from landscape.loaded import Batches, LoadedBatches, cut_batches, in_memory
from landscape.params import Params, real_parts, select
from landscape.precision import own_precision
from landscape.ranks import Ranks
from landscape.showing import html_table

T = TypeVar("T")


@dataclass(frozen=True, repr=False)
class EmpiricalRisk:
    """L(θ) = Σ_b w_b L_b(θ) / Σ_b w_b: the mean loss over all examples, whatever the sizes of the batches.

    L_b is the loss of batch b, a mean over its examples, and w_b the number of them, unless `weight` says otherwise.
    That L does not depend on how the data are cut is checked once, where there are several batches, see
    `landscape.checks.additivity`; a weight that is the same for all batches says that a batch is an example, never cut.

    Attributes:
        predict: Maps (θ, inputs) to outputs; pure in θ.
        loss: Maps (outputs, targets) to the mean loss over one batch's examples.
        batches: Pairs (inputs, targets); they may differ in size. `LoadedBatches` are read anew in every pass.
        theta: The point that methods use when no other is given.
        names: Names of θ in the model's `named_parameters()` order, the order of every flat vector.
        weight: Maps (inputs, targets) to a batch's weight; None means its number of examples. A loss that is a mean
            over tokens, say, needs the number of tokens, one with class weights their sum.
        ranks: The processes that the batches are shared out to; None if this one has them all.
        total: Σ_b w_b over all processes, where the batches are shared out.
        trust: What was checked already, shared with risks made from this one.
        findings: What the first evaluation has shown.
    """

    predict: Callable[[Params, Any], Any]
    loss: Callable[[Any, Any], Tensor]
    batches: Batches
    theta: Params
    weight: Callable[[Any, Any], float] | None = None
    ranks: Ranks | None = None
    total: float | None = None
    trust: Trust = field(default_factory=Trust, repr=False, compare=False)
    findings: Look = field(default_factory=Look, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_loss(self.loss)
        if not isinstance(self.batches, Sequence | LoadedBatches):
            object.__setattr__(self, "batches", as_batches(self.batches))
        if isinstance(self.batches, LoadedBatches):
            self.batches.note(self.weight)
        elif self.weight is None:
            require_counted(self.batches)
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
            data: A pair (inputs, targets) of tensors, a list of batches, a DataLoader or a split; see
                `landscape.batches.as_batches`. A dict batch is passed to the model by keyword.
            parameters: What to differentiate by: names, globs ("*.weight") or modules ("blocks.0"); None means all
                that require a gradient.
            mode: "eval" fixes BatchNorm's running statistics and switches dropout off. "batch" normalises by each
                batch's own statistics, so that each batch is one fixed function and the risk their weighted mean;
                dropout off. "recalibrate" estimates the running statistics afresh, over all batches, at every θ where
                the risk is asked for, and derivatives hold them there. "train" is as in training, dropout included.
            weight: Weight of a batch, called as weight(inputs, targets); None means its number of examples. With class
                weights w it is lambda x, y: w[y].sum(); with padding, the number of targets that are not ignored.

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

    def __repr__(self) -> str:
        return f"EmpiricalRisk({'; '.join(f'{what} {value}' for what, value in self._facts())})"

    def _repr_html_(self) -> str:
        """A table, for a notebook."""
        return html_table(self._facts(), caption="empirical risk")

    def _facts(self) -> list[tuple[str, str]]:
        """What it is, in words; nothing is computed for it."""
        p = sum(t.numel() for t in self.theta.values())
        model = type(self.predict.module if isinstance(self.predict, PureModel) else self.predict).__name__
        return [
            ("model", model),
            ("loss", getattr(self.loss, "__name__", type(self.loss).__name__)),
            ("examples", f"{self.n:,} in {len(self.batches)} batch{'es' * (len(self.batches) != 1)}"),
            ("parameters", f"{p:,} in {len(self.theta)} tensor{'s' * (len(self.theta) != 1)} on {self.device}"),
            ("mode", self.mode),
        ]

    @property
    def names(self) -> list[str]:
        """Names of θ, in the order of flat vectors."""
        return list(self.theta)

    @cached_property
    def sizes(self) -> list[int]:
        """Number of examples in each batch."""
        batches = self.batches
        return batches.sizes if isinstance(batches, LoadedBatches) else [batch_size(b) for b in batches]

    @property
    def n(self) -> int:
        """Number of examples."""
        return sum(self.sizes)

    @property
    def mode(self) -> str:
        """How normalisation and dropout layers behave; "eval" for a `predict` that is no model of ours."""
        return self.predict.mode if isinstance(self.predict, PureModel) else "eval"

    @cached_property
    def weights(self) -> list[float]:
        """What each batch counts for.

        Raises:
            ValueError: If a weight is negative or not finite, or all are zero.
        """
        if self.weight is None:
            return [float(k) for k in self.sizes]
        if isinstance(self.batches, LoadedBatches):
            weights = self.batches.weights(self.weight)
        else:
            weights = [float(self.weight(x, y)) for x, y in self.batches]
        if not (math.isfinite(sum(weights)) and sum(weights) > 0 and min(weights) >= 0):
            raise ValueError(f"`weight` must give batches weights >= 0, not all of them 0, got {weights}.")
        return weights

    @cached_property
    def shares(self) -> list[float]:
        """Each batch's part of the risk, w_b / Σ w_b, where the sum is over all processes.

        Raises:
            ValueError: If the loss of several batches is not the mean of theirs, weighted so.
        """
        if len(self.batches) > 1 and self.ranks is None:
            self.trust.once(("additive", self.loss, self.batches, self.weight), lambda: require_additive(self))
        weights = self.weights
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
        trust, findings = self.trust.without(self.batches), Look(self.findings.needs_graph)
        other = replace(self, batches=as_batches(data, model), ranks=None, total=None, trust=trust, findings=findings)
        return other if self.ranks is None else other.sharded(self.ranks.group)

    def in_parts(self, size: int, *, argument: str = "size") -> "EmpiricalRisk":
        """The same risk with batches of at most `size` examples: the same function, less memory at a time.

        Args:
            size: Examples in a part, at most.
            argument: The caller's name of `size`, for messages.

        Raises:
            ValueError: If `size` is below 1, or batches may not be cut: because they normalise by their own statistics,
                or because their loss is not the mean of the losses of their parts, by size or by `weight`.
        """
        require_whole(size, argument)
        if size < 1:
            raise ValueError(f"`{argument}` must be at least 1 example, got {size!r}.")
        if max(self.sizes) <= size:
            return self
        if self.mode in ("batch", "train") and isinstance(self.predict, PureModel) and self.predict.normalised:
            raise ValueError(
                f"`{argument}` = {size} would cut batches that are normalised by their own statistics, which changes "
                "the risk: use mode='eval' or 'recalibrate', or make the data's batches smaller."
            )
        if self.mode == "recalibrate" and isinstance(self.predict, PureModel) and self.predict.normalised:
            raise ValueError(
                f"`{argument}` = {size} would cut batches whose statistics are estimated, which changes them: use "
                ".settled(theta), then .in_parts(size)."
            )
        self._require_cut(size, f"`{argument}` = {size}")

        def cut() -> Batches:
            return cut_batches(self.batches, self.sizes, [places(n, size) for n in self.sizes])

        return self._cut(self.trust.once(("parts", self.batches, size), cut))

    def require_examples(self, what: str) -> None:
        """Check once that the risk is the mean of the losses of its single examples, by number or by `weight`."""
        self._require_cut(1, what)

    def _require_cut(self, size: int, what: str, ranks: Ranks | None = None) -> None:
        """Check once that batches may be cut into parts of `size` examples, or to be shared out to `ranks`."""

        def check() -> None:
            where: Sequence[Places] = [places(n, size) for n in self.sizes]
            require_cut(self, where if ranks is None else ranks.bounds(self.sizes), what)

        self.trust.once(("cut", self.loss, self.batches, self.weight, size, "" if ranks is None else "ranks"), check)

    def _cut(self, batches: Batches, **changes: Any) -> "EmpiricalRisk":
        """The same risk in other batches, which have been checked to add up to it."""
        self.shares  # noqa: B018 (which checks the user's own batches)
        self.trust.once(("additive", self.loss, batches, self.weight), lambda: None)
        return replace(self, batches=batches, **changes)

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
        ranks = Ranks.of(group, needed_by="`sharded`")
        whole = self.mode in ("batch", "train")
        if not whole:
            self._require_cut(ranks.count, "`sharded`", ranks)
        mine = self._cut(cut_batches(self.batches, self.sizes, ranks.places(self.sizes, whole=whole)), ranks=ranks)
        return replace(mine, total=ranks.total(math.fsum(mine.weights), self.device))

    def settled(self, theta: Params | None = None) -> "EmpiricalRisk":
        """The risk that is differentiated at θ: in mode "recalibrate" with the running statistics of θ, else itself."""
        if self.mode != "recalibrate":
            return self
        assert isinstance(self.predict, PureModel)
        with own_precision():
            settled = self.predict.recalibrated(self.theta if theta is None else theta, self.batches)
        return replace(self, predict=settled)

    def look(self) -> None:
        """Prepare the model to be differentiated, see `PureModel.look`."""
        if isinstance(self.predict, PureModel) and self.predict.recomputes is None:
            self.predict.look(self.batches[0][0])

    def over(self, read: Callable[..., T], theta: Params | None = None, *beside: Iterable[Any]) -> list[T]:
        """What is read of each batch at θ, in order, without gradient: the pass over the data that evaluations make.

        Args:
            read: Called as read(outputs, batch, *items). Where model or loss turn out to take derivatives themselves,
                the pass begins anew.
            theta: The point; None means the risk's own.
            *beside: Give one item a batch.
        """
        point = self._point(theta)
        risk = self.settled(point)

        def visited() -> list[T]:
            return [
                read(risk.predict(point, batch[0]), batch, *items)
                for batch, *items in zip(self.batches, *beside, strict=True)
            ]

        return self.findings.without_graph(visited)

    def value(self, theta: Params | None = None) -> float:
        """L(θ), summed over batches in float64; of a model or loss that draws random numbers, one draw."""
        point = self._point(theta)
        return self._total(math.fsum(self.over(self.part, point, self.shares)))

    def part(self, outputs: Any, batch: Batch, share: float) -> float:
        """What a batch adds to L(θ), given its outputs and its share; 0 for one that counts for nothing."""
        return scalar(self.loss_on(outputs, batch[1])) * share if share else 0.0

    def loss_on(self, outputs: Any, targets: Any) -> Any:
        """The loss of one batch's outputs; the first time with a check, see `Look.loss`."""
        return self.findings.loss(self.loss, outputs, targets)

    def gradient(self, theta: Params | None = None) -> Params:
        """∇L(θ) as a dict of tensors."""
        return self.value_and_gradient(theta)[1]

    def value_and_gradient(
        self, theta: Params | None = None, *, see: Callable[[Any, Batch], None] | None = None
    ) -> tuple[float, Params]:
        """L(θ) and ∇L(θ); a parameter that the loss does not use has gradient zero.

        Args:
            theta: The point; None means the risk's own.
            see: Called as see(outputs, batch) on the way.
        """
        self.look()
        point = {k: t.detach().requires_grad_() for k, t in self._point(theta).items()}
        risk = self.settled(point)
        total: list[Tensor] | None = None
        values = []
        with own_precision():
            for (x, y), w in risk._weighted():
                with torch.enable_grad():
                    out = risk.predict(point, x)
                    loss = risk.loss_on(out, y)
                if see is not None:
                    see(out, (x, y))
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
        found = self.over(lambda out, _: _one_tensor(out, "the model's outputs"), theta)
        return torch.cat(found).detach()

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
            ValueError: If m is out of range, the batches cannot be put together, or the loss is not the mean of the
                losses of the chunks, by size or by `weight`.
        """
        require_whole(m, "m")
        if generator is not None:
            require_generator(generator)
        if not 1 <= m <= self.n:
            raise ValueError(f"`m` must be between 1 and the number of examples {self.n}, got {m}.")
        if self.ranks is not None:
            raise ValueError("`m` needs all data in each process: take the chunks before .sharded().")
        whole, order = joined(in_memory(self.batches, f"`m` = {m}")), None
        if generator is not None:
            order = torch.randperm(self.n, generator=generator, device=generator.device)
            whole = take(whole, order)
        parts = split_batches([whole], m)
        require_chunks(self, parts, order, m)
        return [replace(self, batches=[part]) for part in parts]

    def _point(self, theta: Params | None) -> Params:
        """The point that was asked for, checked."""
        if theta is None or theta is self.theta:
            return self.theta
        return as_point(theta, self.theta, self.predict.parameters if isinstance(self.predict, PureModel) else None)

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
