"""bSAM's base optimizer: a mean, a momentum and a precision for each weight."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from landscape.params import real


class BSAM(Optimizer):
    """The update of bSAM, from the gradient g_e at ω + eps and h = √s |g|, both averaged over chunks and ranks.

        g_m ← β1 g_m + (1 - β1)(g_e + δ ω);   ω ← ω - α g_m / s;   s ← β2 s + (1 - β2)(h + δ + damping)

    with the old s in the second. `h` is read from the state entry "curvature" and cleared; the sharpness-aware
    engine fills it. Without it, in a plain step, h = √s |g_e|.

    Args:
        params: Parameters or groups.
        lr: α.
        examples: N, the number of training examples (times the factor by which augmentation multiplies them).
        prior_precision: δ N.
        betas: (β1, β2).
        damping: Added to the precision's target.
        precision: First value of s.

    Raises:
        ValueError: For a value out of range.

    Source:
        Möllenhoff and Khan (2023), "SAM as an optimal relaxation of Bayes", ICLR, Algorithm 1 and its code.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        examples: int,
        prior_precision: float = 40.0,
        betas: tuple[float, float] = (0.9, 0.999),
        damping: float = 0.1,
        precision: float = 1.0,
    ) -> None:
        if not examples >= 1:
            raise ValueError(f"`examples` must be the number of training examples, at least 1, got {examples!r}.")
        for name, value in (("prior_precision", prior_precision), ("damping", damping)):
            if not value >= 0:
                raise ValueError(f"`{name}` must be >= 0, got {value!r}.")
        if not precision > 0:
            raise ValueError(f"`precision` must be above 0, got {precision!r}.")
        defaults = {
            "lr": lr, "examples": float(examples), "delta": prior_precision / examples, "betas": betas,
            "damping": damping,
        }  # fmt: skip
        self._precision = precision
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, whose weights start from the same precision; complex ones are pairs of real numbers."""
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            like = real(p.detach())
            self.state[p]["precision"] = torch.full_like(like, self._precision, memory_format=torch.preserve_format)
            self.state[p]["momentum"] = torch.zeros_like(like, memory_format=torch.preserve_format)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:  # type: ignore[override]
        """Take one step."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state, w, grad = self.state[p], real(p), real(p.grad)
                curvature = state.pop("curvature", None)
                if curvature is None:  # a plain step: h of the gradient at hand
                    curvature = state["precision"].sqrt() * grad.abs()
                state["momentum"].mul_(beta1).add_(grad + group["delta"] * w, alpha=1 - beta1)
                w.addcdiv_(state["momentum"], state["precision"], value=-group["lr"])
                target = curvature + (group["delta"] + group["damping"])
                state["precision"].mul_(beta2).add_((1 - beta2) * target)
