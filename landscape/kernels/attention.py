"""Scaled dot-product attention that can be differentiated twice without an n × m matrix in memory."""

import math
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

from landscape.kernels import fused, score_blocks
from landscape.kernels.score_blocks import Rule

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(scale · QKᵀ + mask) V, with a first and second derivative in Q, K and V that need little memory.

    Takes what `torch.nn.functional.scaled_dot_product_attention` takes and returns the same, but for rounding. Ask
    `supports` first: what it refuses is computed wrongly or not at all here.

    Args:
        query: (…, h, n, d) with at most one leading axis; float64, float32, bfloat16 or float16.
        key: (…, h, m, d).
        value: (…, h, m, e).
        attn_mask: Broadcast to (…, h, n, m): added to the scores, or boolean, where False hides a key from a query. A
            query that sees no key has output zero.
        dropout_p: Must be 0.
        is_causal: Hide key j from query i where j > i.
        scale: Factor of the scores; 1/√d by default.
        enable_gqa: Share each head of keys and values among h / h_key consecutive heads of queries.

    Returns:
        (…, h, n, e), in the dtype of `query`. Its gradient and the derivative of its gradient are computed in blocks,
        in float32 for the shorter dtypes; a third derivative raises NotImplementedError.
    """
    if enable_gqa:
        key, value = _shared_heads(query, key, value)
    leading = query.ndim - 2
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    q, k, v = (_four_axes(t) for t in (query, key, value))
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*q.shape[:3], k.shape[2])
    out: Tensor = _Attention.apply(q, k, v, attn_mask, is_causal, factor)[0]  # type: ignore[no-untyped-call]
    return out if leading == 2 else out.view(*query.shape[:-1], value.shape[-1])


def supports(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,  # noqa: ARG001
    enable_gqa: bool = False,
) -> bool:
    """Whether `attention` computes this call; otherwise torch's own kernels must.

    Refused are dropout, masks with a gradient, forward-mode derivatives, autocast, tensors of other classes (nested,
    fake), and shapes or dtypes that do not fit each other, about which torch says more.
    """
    tensors = [query, key, value]
    if dropout_p > 0 or (attn_mask is not None and is_causal) or not all(_plain(t) for t in tensors):
        return False
    if query.ndim not in (2, 3, 4) or any(t.ndim != query.ndim or t.numel() == 0 for t in tensors):
        return False
    if any(t.dtype != query.dtype or t.device != query.device for t in tensors) or query.dtype not in DTYPES:
        return False
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        return False
    if enable_gqa:
        heads = [t.shape[-3] for t in tensors] if query.ndim > 2 else [1, 1, 1]
        leading = [t.shape[:-3] for t in tensors]
        if heads[1] != heads[2] or heads[0] % heads[1] or any(shape != leading[0] for shape in leading):
            return False
    elif any(t.shape[:-2] != query.shape[:-2] for t in tensors):
        return False
    if attn_mask is not None and not _fits(attn_mask, (*query.shape[:-1], key.shape[-2]), query):
        return False
    return not torch.is_autocast_enabled(query.device.type) and not _forward_mode()


def _plain(t: Any) -> bool:
    return type(t) in (Tensor, torch.nn.Parameter) and t.layout == torch.strided and t.device.type != "meta"


def _fits(mask: Any, shape: tuple[int, ...], query: Tensor) -> bool:
    if not _plain(mask) or mask.requires_grad or mask.device != query.device or mask.ndim > len(shape):
        return False
    if mask.dtype != torch.bool and mask.dtype != query.dtype:
        return False
    return all(a in (1, b) for a, b in zip(reversed(mask.shape), reversed(shape), strict=False))


def _forward_mode() -> bool:
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    if not torch._C._are_functorch_transforms_active():
        return False
    return any(
        level.key() not in (TransformType.Vmap, TransformType.Grad) for level in retrieve_all_functorch_interpreters()
    )


def _four_axes(t: Tensor) -> Tensor:
    return t if t.ndim == 4 else t.reshape((1,) * (4 - t.ndim) + t.shape)


def _shared_heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    times = query.shape[-3] // key.shape[-3] if query.ndim > 2 else 1
    if times == 1:
        return key, value
    return key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)


def _folded(function: Any, info: Any, in_dims: tuple[Any, ...], args: tuple[Any, ...]) -> tuple[Any, Any]:
    """The rule of vmap: its axis joins the axis of examples."""
    size = info.batch_size
    moved = [
        (t.expand(size, *t.shape) if at is None else t.movedim(at, 0)).flatten(0, 1) if isinstance(t, Tensor) else t
        for t, at in zip(args, in_dims, strict=True)
    ]
    results = function.apply(*moved)
    return tuple(t.unflatten(0, (size, -1)) for t in results), (0,) * len(results)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        rule = Rule(mask, causal, scale)
        attend = fused.attend if fused.fits(q, k, v, rule) else score_blocks.attend
        return attend(q, k, v, rule)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, v, mask, causal, scale = inputs
        out, normaliser = output
        ctx.mark_non_differentiable(normaliser)
        ctx.save_for_backward(q, k, v, out, normaliser, mask)
        ctx.causal, ctx.scale = causal, scale

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        return _folded(_Attention, info, in_dims, args)

    @staticmethod
    def backward(ctx: Any, seed: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, normaliser, mask = ctx.saved_tensors
        grads = _Gradient.apply(  # type: ignore[no-untyped-call]
            q, k, v, seed, out.detach(), normaliser, mask, ctx.causal, ctx.scale
        )
        return (*grads, None, None, None)


class _Gradient(torch.autograd.Function):
    """The gradient of attention as a function of Q, K, V and the cotangent; the other inputs are work saved."""

    @staticmethod
    def forward(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, seed, out, normaliser, *rest = given
        rule = Rule(*rest)
        gradient = fused.gradient if fused.fits(q, k, v, rule) else score_blocks.gradient
        return gradient(q, k, v, out, normaliser, seed, rule)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ARG004
        q, k, v, seed, out, normaliser, mask, causal, scale = inputs
        ctx.save_for_backward(q, k, v, seed, out, normaliser, mask)
        ctx.causal, ctx.scale = causal, scale

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        return _folded(_Gradient, info, in_dims, args)

    @staticmethod
    def backward(ctx: Any, aq: Tensor, ak: Tensor, av: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, seed, out, normaliser, mask = ctx.saved_tensors
        grads = _SecondDerivative.apply(  # type: ignore[no-untyped-call]
            q, k, v, seed, out, normaliser, aq, ak, av, mask, ctx.causal, ctx.scale
        )
        return (*grads, None, None, None, None, None)


class _SecondDerivative(torch.autograd.Function):
    @staticmethod
    def forward(*given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, v, seed, out, normaliser, aq, ak, av, *rest = given
        return score_blocks.second_derivative(q, k, v, out, normaliser, seed, aq, ak, av, Rule(*rest))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        return _folded(_SecondDerivative, info, in_dims, args)

    @staticmethod
    def backward(ctx: Any, *seeds: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError("attention has no third derivative here: use `math_attention` for one.")
