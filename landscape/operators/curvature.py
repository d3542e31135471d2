"""What the curvature operators of a risk share: the point, the path of products, the trial, the sum over batches."""

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.batches import Batch
from landscape.checks.additivity import NotAdditiveError
from landscape.checks.repeatability import cause
from landscape.kernels import second_derivatives
from landscape.memory import free_bytes, require
from landscape.operators.algebra import Algebra
from landscape.operators.derivatives import Disagreement, compared
from landscape.operators.point import Point, row
from landscape.operators.trial import Trial
from landscape.params import Params, layer_slices, slices
from landscape.precision import own_precision
from landscape.risk import EmpiricalRisk

Path = Literal["auto", "kept", "afresh", "forward", "difference"]
RowMap = Callable[[Tensor], Tensor]  # rows of shape (k, p) to rows of shape (k, p)

BUDGET_SHARE = 0.25  # of the free memory, for what `path="auto"` keeps between products
PEAK_SHARE = 0.5  # of the free memory, for one pass when "auto" cuts batches


class RiskOperator(Algebra, ABC):
    """A symmetric p × p matrix made from the derivatives of a risk at a point θ; only its products are computed.

    Vectors are in the order of the risk's names. Batches are weighted by their size. A parameter that the loss does not
    use has rows and columns of zeros; a tied one counts once. θ is copied, so the operator stays at the point that it
    was made at. At the start a few examples are tried: whether the loss is one number, the same when asked twice and
    whatever the order of the examples, and whether the model's kernels have second derivatives.

    Args:
        risk: The risk L.
        theta: The point θ; None means the risk's own.
        parameters: Names, globs ("*.weight") or modules ("blocks.0") to differentiate by; the result is then that
            principal submatrix. None means all.
        path: How products are computed; each operator's text names its paths. "auto" keeps a graph between products if
            it is estimated to fit `budget`, and finds a path where the kernels lack second derivatives.
        budget: Bytes that "auto" may keep between products; None means a quarter of what is free.
        micro_batch: Examples in one pass, at most; None means the data's batches, which "auto" cuts if one alone is
            estimated not to fit.
        probe: False leaves out the trial's checks of the loss.

    Attributes:
        path: The path taken.
        note: What the user should know about it: empty, or why "auto" took a less accurate path.

    Raises:
        ValueError: If an argument is out of range, θ is not finite, or a check of the trial fails.
        MemoryError: If path="kept" is asked for and the graph is estimated not to fit in what is free.
    """

    paths: ClassVar[tuple[str, ...]]
    of_gradient: ClassVar[bool] = False  # whether it is the derivative of the risk's gradient
    differenced: ClassVar[str]  # what path="difference" does, for its warning

    def __init__(
        self,
        risk: EmpiricalRisk,
        theta: Params | None = None,
        *,
        parameters: str | Iterable[str] | None = None,
        path: Path = "auto",
        budget: int | None = None,
        micro_batch: int | None = None,
        probe: bool = True,
    ) -> None:
        if path != "auto" and path not in self.paths:
            raise ValueError(f"`path` must be 'auto' or one of {list(self.paths)}, got {path!r}.")
        if budget is not None and budget < 0:
            raise ValueError(f"`budget` must be a number of bytes >= 0, or None, got {budget!r}.")
        with own_precision():
            self._begin(risk, theta, parameters, path, budget, micro_batch, probe)

    def _begin(
        self,
        risk: EmpiricalRisk,
        theta: Params | None,
        parameters: str | Iterable[str] | None,
        path: Path,
        budget: int | None,
        micro_batch: int | None,
        probe: bool,
    ) -> None:
        """Try the risk, choose the path and build what is kept."""
        self.point = Point.of(risk, theta, parameters)
        if micro_batch is not None:  # after Point.of, whose statistics are those of the whole batches
            self.point = self.point.on(self.point.risk.in_parts(micro_batch, argument="micro_batch").batches)
        self.point.risk.shares  # noqa: B018 (which checks that the loss may be cut into these batches)
        self.note = ""
        self._trial = Trial.of(self.point, checks=probe)
        self._require()
        self._disagreement = Disagreement()
        if probe and self._trial.lacking is None and path != "difference":
            self._disagreement = self._compared("afresh" if path == "auto" else path)
        self._vectors_agree = risk.ranks is None
        self.path = self._decide(path, budget, micro_batch)
        if self.path == "afresh":  # the path for little memory
            self.point = self.point.lean()
        self._kept: list[RowMap] = []
        if self.path == "kept":
            self._kept = [self._of_batch(i, batch) for i, batch in enumerate(self.point.risk.batches)]

    @abstractmethod
    def _map(self, i: int, batch: Batch, path: str) -> RowMap:
        """The matrix of batch i as a map of rows; unless the path is "kept", it serves for one call."""

    def _require(self) -> None:
        """What else the risk must be."""

    @abstractmethod
    def _differenced(self, i: int, batch: Batch, step: float | None = None) -> RowMap:
        """The matrix of batch i by central differences, with a step for unit vectors; None means the usual one."""

    def _lacking(self) -> str | None:
        """The operation of the model that rules the usual paths out, if there is one."""
        return self._trial.lacking

    def _beside_differences(self, path: str) -> Disagreement:
        """A product of a few examples against differences, see `landscape.operators.derivatives`."""

        def there(point: Point, batch: Batch) -> RiskOperator:
            other = copy.copy(self)
            weightless = replace(point.risk, batches=[batch], weight=None, ranks=None, total=None)
            other.point, other._kept = replace(point, risk=weightless), []
            return other

        def product(point: Point, batch: Batch, v: Tensor) -> Tensor:
            return there(point, batch)._map(0, batch, path)(v[None])[0]

        def difference(point: Point, batch: Batch, v: Tensor, step: float) -> Tensor:
            return there(point, batch)._differenced(0, batch, step)(v[None])[0]

        with second_derivatives():
            return compared(self.point, self._trial.few, product, difference)

    def _compared(self, path: str) -> Disagreement:
        """What differs from differences.

        Raises:
            ValueError: If products change when taken again, or the gradient is no derivative of the loss.
        """
        found = self._beside_differences(path)
        if found.changing:
            raise ValueError(
                f"`risk` has second derivatives that change: a product differed by {found.changing:.2g} of its length "
                f"when taken twice; {cause(self.point.risk, probe=True)}."
            )
        if found.gradient and (found.relative or self.of_gradient):
            raise ValueError(
                f"`risk` has a loss whose gradient is not its derivative (a straight-through estimator, or a part that "
                f"is detached or has a backward pass of its own), so {type(self).__name__} is not defined: choose by "
                "`parameters` those that it is the derivative of, take path='difference' for differences of the "
                "gradient as it is, or pass probe=False for what torch makes of it."
            )
        return found

    @property
    def shape(self) -> torch.Size:
        """(p, p)."""
        return torch.Size((self.point.p, self.point.p))

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' dtype, in which products are computed."""
        return self.point.dtype

    @property
    def device(self) -> torch.device:
        """The parameters' device."""
        return self.point.device

    @property
    def blocks(self) -> dict[str, slice]:
        """Where each parameter lies in a vector."""
        return slices(self.point.theta)

    @property
    def layers(self) -> dict[str, slice]:
        """Where each layer, the parameters of one module, lies in a vector."""
        return layer_slices(self.point.theta)

    @classmethod
    def by_layer(
        cls, risk: EmpiricalRisk, theta: Params | None = None, *, path: Path = "auto"
    ) -> dict[str, "RiskOperator"]:
        """One operator a layer: the diagonal blocks, each with products of its own.

        Args:
            risk: The risk.
            theta: As in the class.
            path: As in the class.
        """
        point = risk.theta if theta is None else {name: theta[name] for name in risk.names}
        return {
            layer: cls(risk, theta, parameters=_inside(point, place), path=path)
            for layer, place in layer_slices(point).items()
        }

    def __matmul__(self, other: Float[Tensor, "p ..."], /) -> Float[Tensor, "p ..."]:
        p, v = self.point.p, other
        if v.ndim not in (1, 2) or v.shape[0] != p or v.dtype != self.dtype:
            raise ValueError(
                f"`v` must have shape ({p},) or ({p}, k) and dtype {self.dtype}, got {tuple(v.shape)} and {v.dtype}."
            )
        risk = self.point.risk
        if not self._vectors_agree and risk.ranks is not None:
            risk.ranks.require_equal(v)
            self._vectors_agree = True
        rows = v.detach().reshape(p, -1).T.contiguous()
        with own_precision():
            batches = self._kept or risk.batches
            if len(self._shares) == 1 and risk.ranks is None and len(rows):
                total = self._of_batch(0, next(iter(batches)))(rows)
            else:
                total = torch.zeros_like(rows)
                for i, (batch, share) in enumerate(zip(batches, self._shares, strict=True) if len(rows) else ()):
                    if share:
                        total.add_(self._of_batch(i, batch)(rows), alpha=share)
                if risk.ranks is not None:
                    risk.ranks.sum_(total)
        return total[0] if v.ndim == 1 else total.T.contiguous()

    def beside(self, count: int) -> int:
        """Vectors of length p that a product with `count` of them takes beside its result, other than the graph's."""
        return 2 if count == 1 else 2 + 2 * count  # the parts that autograd gives; rows and columns of a block

    def guess(self) -> Tensor:
        """Where to start looking for the top eigenvectors: ∇L(θ), of shape (p,); a gradient, where none is kept."""
        point = self.point
        gradient = point.risk.gradient({**point.fixed, **point.theta})
        return row([gradient[name] for name in point.theta])

    def __repr__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"{type(self).__name__}({self.point.p} x {self.point.p}, {kind}, path={self.path!r})"

    @property
    def _shares(self) -> list[float]:
        """Each batch's part of the matrix."""
        return self.point.risk.shares

    def _of_batch(self, i: int, batch: Any) -> RowMap:
        return self._kept[i] if self._kept else self._map(i, self.point.batch(batch), self.path)

    def _decide(self, path: Path, budget: int | None, micro_batch: int | None) -> str:
        """The path to take, after memory and the kernels."""
        lacking = self._lacking()
        if path != "auto":
            if lacking is not None and path in ("kept", "afresh", "forward"):
                raise ValueError(
                    f"`path` = {path!r} needs second derivatives, which {lacking} of this model lacks: "
                    "use path='auto', which finds a way."
                )
            if self._disagreement.relative:
                raise ValueError(
                    f"`path` = {path!r} needs second derivatives, and those of this model are wrong: a product is "
                    f"{self._disagreement.relative:.2g} of its length away from differences, however small the step. "
                    "Use path='auto', which finds a way, or probe=False to take them as they are."
                )
            if path == "kept":
                require(
                    self._kept_bytes(),
                    self.device,
                    what=f"{type(self).__name__} with path='kept'",
                    instead="use path='afresh', fewer examples or fewer `parameters`",
                )
            return path
        if lacking is not None:
            return self._without(f"{lacking} of this model has no second derivative")
        if self._disagreement.relative:
            return self._without(
                f"a second derivative of this model is wrong, by {self._disagreement.relative:.2g} of its length"
            )
        free = free_bytes(self.device)
        if self._kept_bytes() <= (BUDGET_SHARE * free if budget is None else budget):
            return "kept"
        self._cut_to_fit(PEAK_SHARE * free, micro_batch)
        return "afresh"

    def _without(self, why: str) -> str:
        """Say that products will be finite differences, and why."""
        self.note = f"finite differences, because {why.replace(' of this model', '')}"
        warnings.warn(
            f"{type(self).__name__}: {why}, so {self.differenced} (path='difference'), which in {self.dtype} are less "
            "accurate.",
            RuntimeWarning,
            stacklevel=5 + (type(self).__init__ is not RiskOperator.__init__),  # the caller, past an own __init__
        )
        return "difference"

    def _kept_bytes(self) -> int:
        """Estimated memory of what is kept between products."""
        return self._trial.graph_bytes(self.point.risk.sizes)

    def _cut_to_fit(self, allowed: float, micro_batch: int | None) -> None:
        """Cut batches so that one pass fits, where the user has not said how and batches may be cut."""
        risk = self.point.risk
        largest = max(risk.sizes)
        if micro_batch is not None or risk.mode in ("batch", "train"):
            return
        if self._trial.graph_bytes([largest]) <= allowed:
            return
        size = self._trial.examples_within(allowed)
        if size < largest:
            with suppress(NotAdditiveError):  # the batch must be whole
                self.point = self.point.on(risk.in_parts(size).batches)


def _inside(theta: Params, place: slice) -> Sequence[str]:
    return [name for name, where in slices(theta).items() if place.start <= where.start and where.stop <= place.stop]
