"""Torch's fused kernel for a CPU, where it computes the value and first derivative of attention faster than ours."""

from typing import Any

import torch
from torch import Tensor

from landscape.kernels.score_blocks import LOG2_E, Keys, Outputs, PerQuery, Queries, Rule, Values

_FORWARD: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_BACKWARD: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


def fits(q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> bool:
    """Whether the fused kernel serves: plain or causal self-attention in float32 or float64 on a CPU."""
    return (
        _FORWARD is not None
        and _BACKWARD is not None
        and q.device.type == "cpu"
        and q.dtype in (torch.float32, torch.float64)
        and rule.mask is None
        and rule.scale > 0
        and q.shape[-1] == v.shape[-1]
        and (not rule.causal or q.shape[-2] == k.shape[-2])
        and all(t.stride(-1) == 1 for t in (q, k, v))
    )


def attend(q: Queries, k: Keys, v: Values, rule: Rule) -> tuple[Outputs, PerQuery]:
    """What `score_blocks.attend` computes."""
    out, logsumexp = _FORWARD(q, k, v, 0.0, rule.causal, scale=rule.scale)
    return out, (logsumexp * LOG2_E).unsqueeze(-1)


def gradient(
    q: Queries, k: Keys, v: Values, out: Outputs, normaliser: PerQuery, seed: Outputs, rule: Rule
) -> tuple[Queries, Keys, Values]:
    """What `score_blocks.gradient` computes."""
    logsumexp = normaliser.squeeze(-1) / LOG2_E
    grads: tuple[Tensor, Tensor, Tensor] = _BACKWARD(seed, q, k, v, out, logsumexp, 0.0, rule.causal, scale=rule.scale)
    return grads
