"""Curvature of a risk as symmetric operators: Hessian, Gauss-Newton matrix, empirical Fisher matrix.

All are p × p matrices that are only ever multiplied with vectors, in the order of the risk's names. They use reverse
mode alone, the mode that every model which trains supports.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.batches import Batch, batch_size, map_tensors, slice_batch
from landscape.operators.protocol import SymmetricOperator
from landscape.params import Params
from landscape.risk import EmpiricalRisk, differentiable_attention

Path = Literal["auto", "kept", "afresh"]
RowMap = Callable[[Tensor], Tensor]  # rows of shape (k, p) to rows of shape (k, p)

KEPT_BYTES = 256 * 2**20  # what `path="auto"` may hold between products
CHUNK_BYTES = 64 * 2**20  # per-example gradients held at once
GRAPH_FACTOR = 4  # a graph for second derivatives, in units of the tensors that the forward pass saves
IGNORED_TARGET = -100  # the default `ignore_index` of cross_entropy


class _RiskOperator:
    """What the curvature operators of a risk share: shape, place and products."""

    def __init__(self, place: "_Place", make: "MakeMap", path: Literal["kept", "afresh"]) -> None:
        self.path = path
        self._place = place
        self._sum = _BatchSum.of(place, make, path)

    @property
    def shape(self) -> torch.Size:
        """(p, p)."""
        return self._place.shape

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' dtype."""
        return self._place.dtype

    @property
    def device(self) -> torch.device:
        """The parameters' device."""
        return self._place.device

    def __matmul__(self, other: Float[Tensor, "p ..."], /) -> Float[Tensor, "p ..."]:
        return self._sum.product(other)


@final
class Hessian(_RiskOperator):
    """The Hessian H = ∇²L(θ) of a risk, by differentiating ⟨∇L, v⟩ (reverse over reverse).

    Batches are weighted by their size. A parameter that the loss does not use has rows and columns of zeros; a tied
    one counts once. θ is copied, so the operator stays the Hessian of the point that it was made at.

    Args:
        risk: The risk L.
        theta: The point θ; None means the risk's own.
        parameters: Names to differentiate by; the result is then that principal submatrix. None means all.
        path: "kept" holds the graph of ∇L between products (fast; memory like a few training steps on all the data),
            "afresh" builds it again for each product, batch by batch. "auto" takes "kept" if parameters and
            activations are estimated, from one forward pass on the first batch, at 256 MiB or less.

    Attributes:
        path: "kept" or "afresh".

    Raises:
        ValueError: If a name or the path is unknown, or the parameters differ in dtype or device.

    Source:
        Pearlmutter (1994), Neural Comput. 6(1), for the product.
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        theta: Params | None = None,
        *,
        parameters: Iterable[str] | None = None,
        path: Path = "auto",
    ) -> None:
        place = _Place.of(risk, theta, parameters)
        super().__init__(place, _hessian_map, _graph_path(place, path))


@final
class GaussNewton(_RiskOperator):
    """The generalised Gauss-Newton matrix G = (1/n) Σ_i J_iᵀ A_i J_i, with A_i = ∇²ℓ_i in the model's outputs.

    Positive semidefinite for a loss that is convex in the outputs; for softmax with cross-entropy it is also the true
    Fisher matrix. A_i is taken in closed form, diag(p_i) - p_i p_iᵀ, if the risk's loss is
    `torch.nn.functional.cross_entropy` on rows of logits and integer labels, and by autograd otherwise. A product is a
    Jacobian product (backward through a backward pass that is linear in its seed) and its transpose.

    Args:
        risk: The risk; its model's output must be one tensor.
        theta: The point θ; None means the risk's own.
        parameters: As in `Hessian`.
        path: As in `Hessian`.

    Attributes:
        path: "kept" or "afresh".

    Raises:
        ValueError: As `Hessian`, or if the model's output is not a tensor.

    Source:
        Schraudolph (2002), Neural Comput. 14(7).
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        theta: Params | None = None,
        *,
        parameters: Iterable[str] | None = None,
        path: Path = "auto",
    ) -> None:
        place = _Place.of(risk, theta, parameters)
        super().__init__(place, _gauss_newton_map, _graph_path(place, path))


@final
class EmpiricalFisher(_RiskOperator):
    """The uncentred second moment E = (1/n) Σ_i g_i g_iᵀ of the per-example gradients g_i = ∇ℓ_i(θ).

    It is not the Fisher matrix: labels are the data's, and E vanishes at interpolation. ℓ_i is the risk's loss on a
    batch of one example. Gradients are computed by vmap, or one by one if the model does not allow it.

    Args:
        risk: The risk.
        theta: The point θ; None means the risk's own.
        parameters: As in `Hessian`.
        path: "kept" stores all n × p gradient entries, "afresh" computes them again, in chunks of 64 MiB, for each
            product; "auto" keeps up to 256 MiB.

    Attributes:
        path: "kept" or "afresh".

    Raises:
        ValueError: As `Hessian`.

    Source:
        Kunstner, Hennig and Balles (2019), NeurIPS, for what it is not.
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        theta: Params | None = None,
        *,
        parameters: Iterable[str] | None = None,
        path: Path = "auto",
    ) -> None:
        place = _Place.of(risk, theta, parameters)
        small = risk.n * place.row_bytes <= KEPT_BYTES
        if _checked_path(path) == "kept" or (path == "auto" and small):
            super().__init__(place, _kept_fisher_map, "kept")
        else:
            super().__init__(place, _fresh_fisher_map, "afresh")


@final
@dataclass(frozen=True, eq=False)
class Rescaled:
    """S A S with S = diag(scale), at no cost beyond A's product.

    With scale = |θ| it is the Hessian in relative units: its largest eigenvalue and its trace are the small-radius
    limits of adaptive worst-case and average sharpness, up to ρ²/2.

    Attributes:
        operator: A, of shape (p, p).
        scale: The diagonal of S, of shape (p,).

    Raises:
        ValueError: If `scale` has not p entries.
    """

    operator: SymmetricOperator
    scale: Float[Tensor, " p"]

    def __post_init__(self) -> None:
        if self.scale.shape != self.operator.shape[:1]:
            raise ValueError(
                f"`scale` must have shape ({self.operator.shape[0]},), one factor per parameter, "
                f"got {tuple(self.scale.shape)}."
            )

    @property
    def shape(self) -> torch.Size:
        """(p, p)."""
        return self.operator.shape

    @property
    def dtype(self) -> torch.dtype:
        """A's dtype."""
        return self.operator.dtype

    @property
    def device(self) -> torch.device:
        """A's device."""
        return self.operator.device

    def __matmul__(self, other: Float[Tensor, "p ..."], /) -> Float[Tensor, "p ..."]:
        s = self.scale.view(-1, *[1] * (other.ndim - 1))
        return s * (self.operator @ (s * other))


def chunk_gradients(
    risk: EmpiricalRisk, theta: Params, x: Any, y: Any, fixed: Params | None = None
) -> tuple[Params, Tensor]:
    """Gradients and losses of many equal chunks of data at one θ, by vmap.

    Args:
        risk: Gives the model and the loss.
        theta: Parameters to differentiate by.
        x: Inputs, every tensor of shape (chunks, examples, ...).
        y: Targets, likewise.
        fixed: Parameters to hold.

    Returns:
        Gradients, each of shape (chunks, *parameter's shape), and losses of shape (chunks,).
    """
    held = fixed or {}

    def loss(point: Params, x: Any, y: Any) -> Tensor:
        return risk.loss(risk.predict({**held, **point}, x), y)

    point = {name: t.detach() for name, t in theta.items()}
    with differentiable_attention():
        grads, losses = torch.func.vmap(torch.func.grad_and_value(loss), in_dims=(None, 0, 0))(point, x, y)
    return grads, losses


@dataclass(frozen=True, eq=False)
class _Place:
    """A risk at a point, with the parameters that are differentiated apart from those that are held."""

    risk: EmpiricalRisk
    theta: Params
    fixed: Params

    @classmethod
    def of(cls, risk: EmpiricalRisk, theta: Params | None, parameters: Iterable[str] | None) -> "_Place":
        point = risk.theta if theta is None else theta
        missing = [name for name in risk.names if name not in point]
        if missing:
            raise ValueError(f"`theta` lacks the parameters {missing}; it needs {risk.names}.")
        wanted = set(risk.names if parameters is None else parameters)
        unknown = sorted(wanted - set(risk.names))
        if unknown or not wanted:
            raise ValueError(f"`parameters` must name some of {risk.names}, got {unknown if wanted else 'none'}.")
        leaves = {name: point[name].detach().clone().requires_grad_() for name in risk.names if name in wanted}
        kinds = {(t.dtype, t.device) for t in leaves.values()}
        if len(kinds) > 1:
            raise ValueError(
                f"`risk` has parameters of several dtypes or devices, {sorted(map(str, kinds))}: convert the model, "
                "or choose some by `parameters`."
            )
        return cls(risk, leaves, {name: point[name].detach().clone() for name in risk.names if name not in wanted})

    @property
    def leaves(self) -> list[Tensor]:
        return list(self.theta.values())

    @property
    def shape(self) -> torch.Size:
        p = sum(t.numel() for t in self.theta.values())
        return torch.Size((p, p))

    @property
    def dtype(self) -> torch.dtype:
        return self.leaves[0].dtype

    @property
    def device(self) -> torch.device:
        return self.leaves[0].device

    @property
    def row_bytes(self) -> int:
        return self.shape[0] * self.dtype.itemsize

    def outputs(self, x: Any) -> Any:
        return self.risk.predict({**self.fixed, **self.theta}, x)

    def cut(self, row: Tensor) -> list[Tensor]:
        parts = row.split([t.numel() for t in self.leaves])
        return [part.view_as(t) for part, t in zip(parts, self.leaves, strict=True)]


MakeMap = Callable[[_Place, Batch], RowMap]


@dataclass(frozen=True, eq=False)
class _BatchSum:
    """Σ_b (n_b/n) A_b, where each A_b is a map of rows made from one batch: once, or for each product."""

    place: _Place
    make: MakeMap
    path: Literal["kept", "afresh"]
    kept: Sequence[RowMap]

    @classmethod
    def of(cls, place: _Place, make: MakeMap, path: Literal["kept", "afresh"]) -> "_BatchSum":
        kept = [make(place, batch) for batch in place.risk.batches] if path == "kept" else []
        return cls(place, make, path, kept)

    def product(self, v: Tensor) -> Tensor:
        p = self.place.shape[0]
        if v.ndim not in (1, 2) or v.shape[0] != p or v.dtype != self.place.dtype:
            raise ValueError(
                f"`v` must have shape ({p},) or ({p}, k) and dtype {self.place.dtype}, "
                f"got {tuple(v.shape)} and {v.dtype}."
            )
        rows = v.detach().reshape(p, -1).T.contiguous()
        total = torch.zeros_like(rows)
        risk = self.place.risk
        for i, (batch, size) in enumerate(zip(risk.batches, risk.sizes, strict=True)):
            batch_map = self.kept[i] if self.path == "kept" else self.make(self.place, batch)
            total.add_(batch_map(rows), alpha=size / risk.n)
        return total[0] if v.ndim == 1 else total.T.contiguous()


def _checked_path(path: str) -> str:
    if path not in ("auto", "kept", "afresh"):
        raise ValueError(f"`path` must be 'auto', 'kept' or 'afresh', got {path!r}.")
    return path


def _graph_path(place: _Place, path: str) -> Literal["kept", "afresh"]:
    """Decide `path="auto"` from the bytes that one forward pass on the first batch saves for its backward pass."""
    if _checked_path(path) != "auto":
        return path  # type: ignore[return-value]
    seen = {t.untyped_storage().data_ptr() for t in [*place.leaves, *place.fixed.values()]}
    saved = 0

    def count(t: Tensor) -> None:
        nonlocal saved
        storage = t.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            saved += storage.nbytes()

    def refuse(_: None) -> Tensor:
        raise AssertionError("this graph is only weighed")

    x, y = place.risk.batches[0]
    with torch.enable_grad(), differentiable_attention(), torch.autograd.graph.saved_tensors_hooks(count, refuse):
        place.risk.loss(place.outputs(x), y)
    activations = saved * place.risk.n / place.risk.sizes[0]
    total = GRAPH_FACTOR * activations + 2 * place.row_bytes * len(place.risk.batches)
    return "kept" if total <= KEPT_BYTES else "afresh"


def _pull(outputs: Sequence[Tensor], inputs: Sequence[Tensor], seeds: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Σ_j (∂out_j/∂in)ᵀ seed_j, zero where there is no dependence; the graph stays."""
    live = [i for i, t in enumerate(outputs) if t.requires_grad]
    if not live:
        return tuple(torch.zeros_like(t) for t in inputs)
    return torch.autograd.grad(
        [outputs[i] for i in live],
        list(inputs),
        [seeds[i] for i in live],
        retain_graph=True,
        materialize_grads=True,
    )


def _row(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in parts])


def _hessian_map(place: _Place, batch: Batch) -> RowMap:
    x, y = batch
    with torch.enable_grad(), differentiable_attention():
        loss = place.risk.loss(place.outputs(x), y)
        if not loss.requires_grad:  # a subset of parameters that the loss does not use
            return torch.zeros_like
        grads = torch.autograd.grad(loss, place.leaves, create_graph=True, materialize_grads=True)

    def product(rows: Tensor) -> Tensor:
        return torch.stack([_row(_pull(grads, place.leaves, place.cut(row))) for row in rows])

    return product


def _gauss_newton_map(place: _Place, batch: Batch) -> RowMap:
    x, y = batch
    with torch.enable_grad(), differentiable_attention():
        out = place.outputs(x)
        if not isinstance(out, Tensor):
            raise ValueError(
                f"`risk` must have a model whose output is one tensor, got {type(out).__name__}: "
                "let `predict` return the logits alone."
            )
        if not out.requires_grad:
            return torch.zeros_like
        seed = torch.zeros_like(out, requires_grad=True)
        pulled = torch.autograd.grad(out, place.leaves, seed, create_graph=True, materialize_grads=True)
    curvature = _output_curvature(place.risk.loss, out.detach(), y)

    def product(rows: Tensor) -> Tensor:
        results = []
        for row in rows:
            (pushed,) = _pull(pulled, [seed], place.cut(row))  # J v: the pull-back is linear in its seed
            results.append(_row(_pull([out], place.leaves, [curvature(pushed)])))
        return torch.stack(results)

    return product


def _output_curvature(loss: Callable[[Any, Any], Tensor], out: Tensor, y: Any) -> Callable[[Tensor], Tensor]:
    """The second derivative of one batch's mean loss in the outputs, as a map."""
    labels = isinstance(y, Tensor) and not y.is_floating_point() and out.ndim == 2
    if loss is torch.nn.functional.cross_entropy and labels and not bool((y == IGNORED_TARGET).any()):
        p, n = out.softmax(-1), len(out)
        return lambda u: (p * u - p * (p * u).sum(-1, keepdim=True)) / n
    leaf = out.requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(loss(leaf, y), [leaf], create_graph=True)
    return lambda u: _pull([slope], [leaf], [u])[0]


def _example_rows(place: _Place, batch: Batch) -> Tensor:
    """Per-example gradients of one batch as rows of shape (n_b, p)."""
    x, y = (map_tensors(lambda t: t.unsqueeze(1), part) for part in batch)
    try:
        grads, _ = chunk_gradients(place.risk, place.theta, x, y, place.fixed)
        return torch.cat([g.flatten(1) for g in grads.values()], dim=1)
    except (RuntimeError, NotImplementedError, ValueError, TypeError):  # not every model can be vmapped
        rows = []
        for i in range(batch_size(batch)):
            one = slice_batch(batch, i, i + 1)
            with torch.enable_grad(), differentiable_attention():
                loss = place.risk.loss(place.outputs(one[0]), one[1])
                rows.append(_row(torch.autograd.grad(loss, place.leaves, materialize_grads=True)))
        return torch.stack(rows)


def _example_blocks(place: _Place, batch: Batch) -> Iterable[Tensor]:
    step = max(1, CHUNK_BYTES // place.row_bytes)
    size = batch_size(batch)
    for start in range(0, size, step):
        yield _example_rows(place, slice_batch(batch, start, min(start + step, size)))


def _kept_fisher_map(place: _Place, batch: Batch) -> RowMap:
    G = torch.cat(list(_example_blocks(place, batch)))
    return lambda rows: rows @ G.T @ G / len(G)


def _fresh_fisher_map(place: _Place, batch: Batch) -> RowMap:
    def product(rows: Tensor) -> Tensor:
        total = torch.zeros_like(rows)
        for G in _example_blocks(place, batch):
            total += rows @ G.T @ G
        return total / batch_size(batch)

    return product
