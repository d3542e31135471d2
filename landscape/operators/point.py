"""A risk at a point: which parameters are differentiated, which are held, and how they lie in memory."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from landscape.batches import Batch, Batches, map_tensors
from landscape.checks.arguments import require_risk
from landscape.functional import PureModel
from landscape.params import Params, select
from landscape.risk import EmpiricalRisk

SINGLE = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class Point:
    """A risk at θ, with the parameters that are differentiated apart from those that are held.

    Attributes:
        risk: The risk.
        theta: Copies of the parameters to differentiate by, as leaves.
        fixed: Copies of the others.
        channels_last: Whether images and their filters have the channels last in memory, which is faster for dense
            convolutions and changes nothing else.
    """

    risk: EmpiricalRisk
    theta: Params
    fixed: Params
    channels_last: bool

    @classmethod
    def of(cls, risk: EmpiricalRisk, theta: Params | None, parameters: str | Iterable[str] | None) -> "Point":
        """Copy θ, and choose the parameters by name, glob or module.

        Raises:
            ValueError: If θ lacks parameters, is not finite or mixes dtypes or devices, or a name chooses nothing.
        """
        require_risk(risk)
        point = risk.theta if theta is None else risk.at(theta).theta
        for name in risk.names:
            if not bool(torch.isfinite(point[name]).all()):
                raise ValueError(f"`theta` is not finite: parameter {name!r} has NaN or infinite entries.")
        wanted = set(select(risk.names, parameters))
        kinds = {(point[name].dtype, point[name].device) for name in wanted}
        if len(kinds) > 1:
            raise ValueError(
                f"`risk` has parameters of several dtypes or devices, {sorted(map(str, kinds))}: convert the model, "
                "or choose some by `parameters`."
            )
        predict = risk.predict
        last = isinstance(predict, PureModel) and predict.prefers_channels_last and next(iter(kinds))[0] in SINGLE
        copies = {name: _laid_out(point[name].detach().clone(), last) for name in risk.names}
        leaves = {name: t.requires_grad_() for name, t in copies.items() if name in wanted}
        fixed = {name: t for name, t in copies.items() if name not in wanted}
        risk.look()
        return cls(risk.settled(copies), leaves, fixed, last)

    @property
    def leaves(self) -> list[Tensor]:
        """The parameters to differentiate by, in order."""
        return list(self.theta.values())

    @property
    def p(self) -> int:
        """Their number of entries."""
        return sum(t.numel() for t in self.theta.values())

    @property
    def dtype(self) -> torch.dtype:
        """Their dtype."""
        return self.leaves[0].dtype

    @property
    def device(self) -> torch.device:
        """Where they live."""
        return self.leaves[0].device

    @property
    def row_bytes(self) -> int:
        """Memory of one vector."""
        return self.p * self.dtype.itemsize

    def batch(self, batch: Batch) -> Batch:
        """A batch as the products use it: images laid out like the filters."""
        if not self.channels_last:
            return batch
        return map_tensors(lambda t: _laid_out(t, True), batch[0]), batch[1]

    def on(self, batches: Batches) -> "Point":
        """The same point with the same data in other batches."""
        return replace(self, risk=replace(self.risk, batches=batches))

    def lean(self) -> "Point":
        """The same point in the way of computing that takes the least memory, rather than the least time."""
        predict = self.risk.predict
        if not isinstance(predict, PureModel):
            return self
        theta = {name: t.detach().contiguous().requires_grad_() for name, t in self.theta.items()}
        fixed = {name: t.contiguous() for name, t in self.fixed.items()}
        return Point(replace(self.risk, predict=predict.plain()), theta, fixed, channels_last=False)

    def outputs(self, x: Any) -> Any:
        """The model's outputs at θ, differentiable by the leaves."""
        return self.risk.predict({**self.fixed, **self.theta}, x)

    def loss(self, batch: Batch) -> Tensor:
        """The loss of one batch at θ, differentiable by the leaves."""
        loss: Tensor = self.risk.loss_on(self.outputs(batch[0]), batch[1])
        return loss

    def cut(self, row: Tensor) -> list[Tensor]:
        """Pieces of a vector of length p, in the parameters' shapes."""
        parts = row.split([t.numel() for t in self.leaves])
        return [part.view(t.shape) for part, t in zip(parts, self.leaves, strict=True)]


def _laid_out(t: Tensor, channels_last: bool) -> Tensor:
    if channels_last and t.ndim == 4 and t.is_floating_point():
        return t.contiguous(memory_format=torch.channels_last)
    return t


def row(parts: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """Tensors in a row: one vector, written into `out` if that is given."""
    return torch.cat([t.reshape(-1) for t in parts], out=out)


def pull(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], seeds: Sequence[Tensor], *, keep: bool = True
) -> tuple[Tensor, ...]:
    """Σ_j (∂out_j/∂in)ᵀ seed_j, zero where there is no dependence; unless kept, the graph is freed on the way."""
    live = [i for i, t in enumerate(outputs) if t.requires_grad]
    if not live:
        return tuple(torch.zeros_like(t) for t in inputs)
    return torch.autograd.grad(
        [outputs[i] for i in live],
        list(inputs),
        [seeds[i] for i in live],
        retain_graph=keep,
        materialize_grads=True,
    )


def by_direction(point: Point, rows: Tensor, along: Callable[[list[Tensor], float], Tensor]) -> Tensor:
    """Each row's image from along(its unit vector in the parameters' shapes, its length); that of zero is zero."""
    images = []
    for v in rows:
        length = float(torch.linalg.vector_norm(v.double()))
        unit = point.cut((v.double() / length).to(v.dtype)) if length else []
        images.append(along(unit, length) if length else torch.zeros_like(v))
    return torch.stack(images)


@contextmanager
def forward_mode() -> Iterator[None]:
    """A block of forward-mode derivatives: torch's own deprecations kept quiet, and what it lacks said with a way out.

    Raises:
        ValueError: If an operation has no forward-mode derivative.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", DeprecationWarning)
        try:
            yield
        except (NotImplementedError, RuntimeError) as error:
            text = str(error)
            if not any(
                sign in text for sign in ("forward AD", "forward mode", "jvp", "ZeroTensors", "functorch", "torch.func")
            ):
                raise
            raise ValueError(
                f"`path` = 'forward' meets an operation without a derivative in forward mode ({text.splitlines()[0]}): "
                "use path='kept' or 'afresh'."
            ) from error
