"""What is learnt of a risk from its first evaluation: whether it needs gradients inside, and whether shapes fit."""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape.precision import own_precision
from landscape.trees import map_tensors, tensors

T = TypeVar("T")

FEW = 8  # examples on which a loss is tried
CLOSE = 1e-4
NEEDS_GRAPH = re.compile(
    r"does not require grad|does not have a grad_fn|requires_grad|Inference tensors|inference tensor"
)
WARNED = re.compile(
    r"target size \(torch\.Size\((?P<y>\[.*?\])\)\).*input size \(torch\.Size\((?P<out>\[.*?\])\)\)", re.S
)
PAIRED = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "poisson_nll_loss", "soft_margin_loss", "kl_div")
PAIRED_MODULES = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.PoissonNLLLoss,
    nn.SoftMarginLoss,
    nn.KLDivLoss,
)


@dataclass(eq=False)
class Look:
    """What the first evaluation showed, shared by a risk and what is made of it.

    Attributes:
        needs_graph: Whether model or loss take derivatives themselves, so that gradients must be on.
        done: Whether the loss has been looked at.
    """

    needs_graph: bool = False
    done: bool = False

    def without_graph(self, compute: Callable[[], T]) -> T:
        """Compute something without gradients; with them where model or loss ask for derivatives, as forces do."""
        if not self.needs_graph:
            try:
                with own_precision(), torch.no_grad():
                    return compute()
            except RuntimeError as error:
                if not NEEDS_GRAPH.search(str(error)):
                    raise
                self.needs_graph = True
        with own_precision(), torch.enable_grad():
            return compute()

    def loss(self, loss: Callable[[Any, Any], Any], outputs: Any, targets: Any) -> Any:
        """The loss; at the first call on copies of the targets, and with a check of the shapes.

        Raises:
            ValueError: If torch would broadcast targets against outputs so that examples meet each other, or if the
                loss writes on the targets.
        """
        if self.done or torch._C._are_functorch_transforms_active():
            return loss(outputs, targets)
        copies = targets if targets is None else map_tensors(torch.clone, targets)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            found = loss(outputs, copies)
        for w in heard:
            said = WARNED.search(str(w.message))
            if (
                said
                and max(_sizes(said["out"]) + _sizes(said["y"])) > 1
                and _meet(_sizes(said["out"]), _sizes(said["y"]))
            ):
                raise _broadcast(said["out"], said["y"])
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
        pairs = zip(tensors(copies), tensors(targets), strict=True)
        if any(a.layout == torch.strided and not torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs):
            raise ValueError("`loss` writes on the targets: let it work on a copy, targets.clone().")
        if isinstance(outputs, Tensor) and isinstance(targets, Tensor) and outputs.shape != targets.shape:
            if outputs.numel() == targets.numel() == 1:  # says nothing of larger batches
                return found
            _require_paired(loss, outputs.detach(), targets)
        self.done = True
        return found


def _require_paired(loss: Callable[[Any, Any], Tensor], outputs: Tensor, targets: Tensor) -> None:
    shapes = list(outputs.shape), list(targets.shape)
    known = any(loss is getattr(F, name) for name in PAIRED) or isinstance(loss, PAIRED_MODULES)
    if known and _meet(*shapes):
        raise _broadcast(*shapes)
    shared = targets.is_floating_point() and targets.ndim and targets.shape == outputs.shape[1:]
    if not known and shared and len(targets) != len(outputs):
        raise _broadcast(*shapes)
    if not known and targets.ndim and _suspicious(outputs, targets):
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a loss called with other shapes than the user's
                mixed = _mixes(loss, outputs, targets)
        except Exception:  # a loss that takes no other shapes does not broadcast them
            return
        if mixed:
            raise _broadcast(*shapes)


def _meet(out: list[int], y: list[int]) -> bool:
    """Whether shapes that differ bring different examples together, rather than one target to all of an example."""
    return out != y and (len(out) != len(y) or out[0] != y[0])


def _suspicious(out: Tensor, y: Tensor) -> bool:
    if not y.is_floating_point() and out.shape[-1:] != (1,):  # labels
        return False
    return _meet(list(out.shape), list(y.shape)) and (out.numel() == y.numel() > 1 or out.shape == (len(y), len(y)))


def _mixes(loss: Callable[[Any, Any], Tensor], out: Tensor, y: Tensor) -> bool:
    """Whether the loss is neither that of aligned shapes nor the mean over examples, while these two agree."""
    n = min(len(out), len(y), FEW)
    if n < 2 or len(out) != len(y):
        return False
    out, y = (out[:n], y[:n]) if out.numel() == y.numel() else (out, y)
    column = y.reshape(len(y), *[1] * (out.ndim - 1)) if out.numel() != y.numel() else y.reshape(out.shape)
    whole, aligned = float(loss(out, y)), float(loss(out, column.expand(out.shape)))
    rows = [float(loss(out[i : i + 1], y[i : i + 1])) for i in range(len(out))]
    mean = sum(rows) / len(rows)
    scale = CLOSE * max(abs(whole), abs(aligned), abs(mean), 1e-12)
    if abs(whole - aligned) <= scale or abs(whole - mean) <= scale:
        return False
    if out.numel() != y.numel():
        return abs(mean - aligned) <= scale
    return abs(mean - aligned) <= scale or abs(float(loss(out.reshape(y.shape), y)) - aligned) <= scale


def _sizes(text: Any) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", str(text))]


def _broadcast(out: Any, y: Any) -> ValueError:
    out, y = (tuple(_sizes(s)) for s in (out, y))
    return ValueError(
        f"`data` has targets of shape {y} for outputs of shape {out}, which torch would broadcast, so that the loss "
        "compares different examples: give both the same shape, by targets.unsqueeze(1) or outputs.squeeze(1)."
    )
