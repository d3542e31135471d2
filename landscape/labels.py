"""Labels: where a loss looks for the classes, which labels it leaves out, and how many rows are wrong."""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = -100  # the default `ignore_index` of torch's losses


def class_axis(loss: Any) -> int:
    """The axis of the classes in a loss's outputs: 1 for torch's own cross-entropy, else the last."""
    return 1 if _is_of(loss, (nn.CrossEntropyLoss, nn.NLLLoss), (F.cross_entropy, F.nll_loss)) else -1


def ignored_label(loss: Any) -> int:
    """The label that a loss leaves out, as far as it tells."""
    if isinstance(loss, partial):
        return int(loss.keywords.get("ignore_index", ignored_label(loss.func)))
    found = getattr(loss, "ignore_index", IGNORED)
    return found if isinstance(found, int) else IGNORED


def _is_of(loss: Any, classes: tuple[type, ...], functions: tuple[Any, ...]) -> bool:
    if isinstance(loss, partial):
        return _is_of(loss.func, classes, functions)
    return isinstance(loss, classes) or any(loss is f for f in functions)


def labelled(out: Any, y: Any) -> bool:
    """Whether outputs are rows of scores for integer labels."""
    if not (isinstance(out, Tensor) and isinstance(y, Tensor)):
        return False
    whole = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    return whole and out.ndim == 2 and out.shape[1] > 1 and y.shape == out.shape[:1]


def counted(y: Tensor, classes: int, ignored: int = IGNORED) -> Tensor:
    """Which labels count: those of a class, but for the one that is left out."""
    rows = (y >= 0) & (y < classes)
    return rows & (y != ignored) if 0 <= ignored < classes else rows


def error_rate(out: Any, y: Any, loss: Any, like: Tensor) -> Tensor:
    """The part of the rows that count which are wrong, inside `vmap` too; NaN where the data are not labelled rows."""
    if not labelled(out, y):
        return torch.full_like(like, math.nan)
    rows = counted(y, out.shape[-1], ignored_label(loss))
    rate: Tensor = torch.where(rows, wrong(out, y), 0.0).double().sum(-1) / rows.sum(-1).double()
    return rate


def errors(outputs: Tensor, targets: Tensor, *, ignored: int = IGNORED) -> Tensor | tuple[Tensor, Tensor]:
    """`wrong` for each example, with weight 0 for those whose label does not count."""
    rows = counted(targets, outputs.shape[-1], ignored)
    found = wrong(outputs, targets)
    return found if bool(rows.all()) else (found, rows.double())


def wrong(out: Tensor, y: Tensor) -> Tensor:
    """1 where the largest score is not the label's, 0 where it is, NaN where a score is NaN."""
    best, place = out.max(-1)
    return torch.where(best.isnan(), math.nan, (place != y).to(best.dtype))
