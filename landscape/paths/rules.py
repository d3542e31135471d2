"""How each operation passes on the permutations that act on the axes of its arguments.

Each rule is equivariant: permute the arguments as their labels say, and the result is permuted likewise.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from landscape.paths.calls import KERNEL, Call, Labels, Rule, all_tensors, broadcast, wrapped
from landscape.paths.shape_rules import (
    cut_rule,
    join_rule,
    pad_rule,
    permute_rule,
    reshape_rule,
    select_rule,
    slice_rule,
    squeeze_rule,
    stack_rule,
    transpose_rule,
    unsqueeze_rule,
)
from landscape.paths.structure import Units, fixed, free, pin, split, unify


def _pin_labels(labels: Sequence[Units], why: str) -> None:
    for u in labels:
        pin(u, why)


def pointwise(call: Call) -> list[Labels]:
    """Entry by entry, over arguments that are broadcast."""
    arguments = list(all_tensors(list(call.given.values())))
    return [broadcast(call, arguments, t.shape) for t in call.made]


def _same(call: Call) -> list[Labels]:
    return [call.of(next(all_tensors(list(call.given.values())))) for _ in call.made]


def _constant(call: Call) -> list[Labels]:
    return [[free(n) for n in t.shape] for t in call.made]


def _still(call: Call) -> list[Labels]:
    return [[fixed(n, "a constant of the model") for n in t.shape] for t in call.made]


def _expand(call: Call) -> list[Labels]:
    return [broadcast(call, [call.given["self"]], call.made[0].shape)]


def _reduce(call: Call) -> list[Labels]:
    labels = call.of(call.given.get("self", next(all_tensors(list(call.given.values())))))
    dims = wrapped(call.given.get("dim"), len(labels))
    if call.given.get("keepdim"):
        return [[fixed(1, "one entry") if d in dims else u for d, u in enumerate(labels)] for _ in call.made]
    return [[u for d, u in enumerate(labels) if d not in dims] for _ in call.made]


def _ordered(call: Call) -> list[Labels]:
    """Operations in which the places along one axis matter: their result names or accumulates them."""
    labels = call.of(call.given["self"])
    for d in wrapped(call.given.get("dims", call.given.get("dim")), len(labels)):
        pin(labels[d], f"an axis whose order matters {call.where}")
    return (
        _reduce(call) if call.made[0].ndim < len(labels) or call.given.get("keepdim") else [labels for _ in call.made]
    )


def _contract(call: Call, a: Tensor, b: Tensor) -> Labels:
    """Labels of a @ b for at least one axis each, batch axes in front."""
    left, right = call.of(a), call.of(b)
    unify(left[-1], right[-2 if b.ndim > 1 else 0], f"a product {call.where}")
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    out = broadcast(call, [left[:-2], right[:-2]], batch)
    return out + (left[-2:-1] if a.ndim > 1 else []) + (right[-1:] if b.ndim > 1 else [])


def _matmul(call: Call) -> list[Labels]:
    a, b = list(all_tensors(list(call.given.values())))[:2]
    return [_contract(call, a, b)]


def _matmul_plus(call: Call) -> list[Labels]:
    bias, a, b = list(all_tensors(list(call.given.values())))[:3]
    return [broadcast(call, [_contract(call, a, b), bias], call.made[0].shape)]


def _linear(call: Call) -> list[Labels]:
    x, weight, bias = (call.given.get(n) for n in ("input", "weight", "bias"))
    assert isinstance(x, Tensor)
    assert isinstance(weight, Tensor)
    labels, sides = call.of(x), call.of(weight)
    unify(labels[-1], sides[1], f"a product {call.where}")
    out = [*labels[:-1], sides[0]]
    return [out if bias is None else broadcast(call, [out, bias], call.made[0].shape)]


def _convolution(call: Call) -> list[Labels] | None:
    x, weight, bias, groups = (
        call.given["input"],
        call.given["weight"],
        call.given.get("bias"),
        call.given.get("groups", 1),
    )
    labels, sides, why = call.of(x), call.of(weight), f"a convolution {call.where}"
    _pin_labels([*labels[2:], *sides[2:]], KERNEL)
    if call.given.get("transposed"):
        if groups > 1:
            return None
        sides = [sides[1], sides[0], *sides[2:]]
        unify(labels[1], sides[1], why)
    elif groups == 1:
        unify(labels[1], sides[1], why)
    else:
        each = split(labels[1], [groups, x.shape[1] // groups], why)
        unify(each[0], split(sides[0], [groups, weight.shape[0] // groups], why)[0], why)
        unify(each[1], sides[1], why)
    if bias is not None:
        unify(sides[0], call.of(bias)[0], why)
    return [[labels[0], sides[0], *(fixed(n, KERNEL) for n in call.made[0].shape[2:])]]


def _channel_norm(call: Call) -> list[Labels]:
    labels = call.of(call.given["input"])
    for t in list(all_tensors(list(call.given.values())))[1:]:
        unify(labels[1], call.of(t)[0], f"a normalisation {call.where}")
    groups = call.given.get("group", 1)
    if groups > 1:
        split(labels[1], [groups, labels[1].size // groups], f"a normalisation {call.where}")
    return [labels, *([fixed(n, "statistics") for n in t.shape] for t in call.made[1:])]


def _layer_norm(call: Call) -> list[Labels]:
    labels = call.of(call.given["input"])
    for t in list(all_tensors(list(call.given.values())))[1:]:
        for u, v in zip(labels[-t.ndim :], call.of(t), strict=True):
            unify(u, v, f"a normalisation {call.where}")
    return [labels, *([fixed(n, "statistics") for n in t.shape] for t in call.made[1:])]


def _image(call: Call, *, axes: int) -> list[Labels]:
    """Pooling and resizing: channel by channel, over the last axes."""
    labels = call.of(next(all_tensors(list(call.given.values()))))
    _pin_labels(labels[-axes:], KERNEL)
    return [[*labels[:-axes], *(fixed(n, KERNEL) for n in t.shape[-axes:])] for t in call.made]


def _embedding(call: Call) -> list[Labels]:
    table = call.of(call.given["weight"])
    pin(table[0], "an input")
    return [[*call.of(call.given["indices"]), *table[1:]]]


def _attention(call: Call) -> list[Labels]:
    q, k, v = (call.of(call.given[n]) for n in ("query", "key", "value"))
    why = f"an attention {call.where}"
    for a, b in ((q, k), (k, v)):
        for i in range(len(q) - 2):
            unify(a[i], b[i], why)
    unify(q[-1], k[-1], why)
    unify(k[-2], v[-2], why)
    if call.given.get("is_causal"):
        _pin_labels([q[-2], k[-2]], "a place in a sequence")
    mask = call.given.get("attn_mask") if call.given.get("attn_mask") is not None else call.given.get("attn_bias")
    if isinstance(mask, Tensor):
        broadcast(call, [[*q[:-1], k[-2]], mask], [*(u.size for u in q[:-1]), k[-2].size])
    return [[*q[:-1], v[-1]], *([fixed(n, "statistics") for n in t.shape] for t in call.made[1:])]


def _rules(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_rules(pointwise, "copy masked_fill where add sub mul div dropout"),
    **_rules(_same, "alias detach clone contiguous lift_fresh lift _to_copy native_dropout"),
    **_rules(_same, "_softmax _log_softmax _safe_softmax softmax log_softmax fill zero"),
    **_rules(_constant, "zeros ones full new_zeros new_ones new_full zeros_like ones_like full_like scalar_tensor"),
    **_rules(_still, "arange empty new_empty empty_like linspace eye tril_indices triu_indices"),
    **_rules(reshape_rule, "view _unsafe_view reshape _reshape_alias flatten unflatten"),
    **_rules(transpose_rule, "t transpose"),
    **_rules(permute_rule, "permute"),
    **_rules(unsqueeze_rule, "unsqueeze"),
    **_rules(squeeze_rule, "squeeze"),
    **_rules(select_rule, "select unbind"),
    **_rules(slice_rule, "slice"),
    **_rules(cut_rule, "split split_with_sizes chunk"),
    **_rules(join_rule, "cat"),
    **_rules(stack_rule, "stack"),
    **_rules(pad_rule, "constant_pad_nd"),
    **_rules(_expand, "expand"),
    **_rules(_reduce, "mean sum amax amin logsumexp var std var_mean std_mean prod any all linalg_vector_norm norm"),
    **_rules(_ordered, "max min argmax argmin cumsum cumprod flip sort topk roll"),
    **_rules(_matmul, "mm bmm mv dot matmul"),
    **_rules(_matmul_plus, "addmm baddbmm addmv"),
    **_rules(_linear, "linear"),
    **_rules(_convolution, "convolution"),
    **_rules(_channel_norm, "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training"),
    **_rules(_channel_norm, "cudnn_batch_norm miopen_batch_norm native_group_norm"),
    **_rules(_layer_norm, "native_layer_norm _fused_rms_norm"),
    **_rules(partial(_image, axes=1), "avg_pool1d max_pool1d _adaptive_avg_pool1d adaptive_max_pool1d"),
    **_rules(partial(_image, axes=2), "avg_pool2d max_pool2d max_pool2d_with_indices _adaptive_avg_pool2d"),
    **_rules(partial(_image, axes=2), "adaptive_max_pool2d upsample_nearest2d upsample_bilinear2d reflection_pad2d"),
    **_rules(partial(_image, axes=3), "avg_pool3d max_pool3d max_pool3d_with_indices _adaptive_avg_pool3d"),
    **_rules(_embedding, "embedding"),
    **_rules(_attention, "scaled_dot_product_attention _scaled_dot_product_attention_math"),
    **_rules(_attention, "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention"),
    **_rules(_attention, "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention"),
}
