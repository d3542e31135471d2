"""Outputs and targets as tables of one row an example, checked against each other."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def columns(
    what: str, outputs: Any, targets: Tensor, *, each: int = 1
) -> tuple[Float[Tensor, "n j"], Float[Tensor, "n k"]]:
    """Outputs (n, each · k) and targets (n, k) in floating point; one number an example may do without its axis.

    Args:
        what: The task, for messages.
        outputs: Of the model.
        targets: Of the data.
        each: Outputs for each entry of a target.

    Raises:
        ValueError: If outputs are no such table.
    """
    y = targets if targets.is_floating_point() else targets.to(torch.get_default_dtype())
    y = y.reshape(len(y), -1)
    wanted = each * y.shape[1]
    fits = isinstance(outputs, Tensor) and outputs.is_floating_point() and len(outputs) == len(y)
    if not fits or outputs.numel() != len(y) * wanted or outputs.ndim > 2:
        got = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"`model` must give the task {what!r} {wanted} outputs an example, a tensor of shape ({len(y)}, {wanted}), "
            f"for targets of shape {tuple(targets.shape)}, got {got}: let the model have {wanted}; a function that "
            f"takes `classes` is told how many."
        )
    return outputs.reshape(len(y), wanted), y.to(outputs.dtype) if outputs.dtype == torch.float64 else y


def require_finite(y: Tensor, where: str) -> None:
    """Check that targets are finite.

    Raises:
        ValueError: If not, with the first example that has none.
    """
    bad = (~torch.isfinite(y)).reshape(len(y), -1).any(1).nonzero()[:, 0].tolist()
    if bad:
        raise ValueError(
            f"`dataset` {where}: {len(bad)} of {len(y)} targets hold NaN or infinite numbers, such as that of example "
            f"{bad[0]}: leave these examples out."
        )
