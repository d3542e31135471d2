"""The losses of single examples, from a loss of the whole batch."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from landscape.trees import map_tensors

Loss = Callable[[Any, Any], Tensor]
CrossEntropy = Callable[[Tensor], dict[str, Any]]

_REFUSED = (
    "this method weighs or chooses examples, and `loss` is no mean, weighted or not, of the losses of single examples: "
    "{}. Pass another loss (one that compares the examples of a batch has no such form), or a closure of your own with "
    "`losses(index)` whose mean is its loss, or take another method."
)


class ExampleLosses:
    """The loss of every example, with the loss that was given as their mean.

    Examples may count differently: the loss is L = T Σ c_i ℓ_i / Σ c_i, with ℓ_i the loss of example i and c_i what it
    counts for. For torch's cross-entropy c_i is the weight of the label, summed over an example's tokens, and 0 where
    it is ignored; T is 1, or Σ c for reduction "sum". For other losses c_i comes from a trial: ℓ_i is the loss of a
    batch of this example alone, and c_i / n the ratio of the gradients of L and of ℓ_i by the example's outputs. It
    must be the same at two points, and give L at both.

    The values are n T c_i ℓ_i / Σ c. Those of chosen examples are the same with n and Σ c over these alone, so that
    their mean is the loss of a batch of them, and for a sum the part of it that stands for the whole.

    Args:
        loss: loss(outputs, targets), one number. Outputs are a tensor with a row an example.
        cross_entropy: The arguments of torch's cross-entropy for given logits, where the loss is that.
        plain: The loss is known to be the plain mean of the losses of single examples.

    Attributes:
        weights: c_i over their mean, of the last whole batch; None where all count the same.

    Raises:
        ValueError: Where the losses of single examples do not make up the loss.
    """

    def __init__(self, loss: Loss, *, cross_entropy: CrossEntropy | None = None, plain: bool = False) -> None:
        self.loss, self.cross_entropy, self.plain = loss, cross_entropy, plain
        self.weights: Tensor | None = None
        self._counts: Tensor | None = None  # c, unless all are equal
        self._tried = False
        self._gain: float | Tensor | None = None  # what the shares c_i ℓ_i are multiplied by, unless it is 1

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """The values of a batch, shape (n,), with their graph; without a graph, of the batch before."""
        fresh = torch.is_grad_enabled() or not self._tried
        if self.cross_entropy is not None and fresh:
            self._label(outputs, targets)
        shares = self.alone(outputs, targets)
        if self.cross_entropy is None and not self.plain and fresh:
            self._counts, self._gain = self._learn(shares, outputs, targets)
            self._tried = True
        self.weights = None if self._counts is None else self._counts / self._counts.mean()
        if self.cross_entropy is None and self._counts is not None and not bool(self._counts.all()):
            shares = self._shares(outputs, targets, self._counts)  # the graph of an ignored example gives NaN
            return shares if self._gain is None else shares * self._gain
        return self.counted(shares)

    def _learn(self, losses: Tensor, outputs: Any, targets: Any) -> tuple[Tensor | None, Tensor | None]:
        """What the examples count for, and the gain; where the loss was a plain mean before, it may be so again."""
        if _known(self.loss):
            with torch.no_grad():
                mean, loss = float(losses.mean()), float(self.loss(outputs, targets))
                allowed = _tolerance(losses) * 0.01
                # the size of the mean is at most the mean of the sizes
                if abs(mean - loss) <= allowed * abs(mean) or abs(mean - loss) <= allowed * float(losses.abs().mean()):
                    return None, None
        found = _trial(self.loss, outputs, targets)
        if found == (None, None):
            _known(self.loss, add=True)
        return found or (None, None)

    def alone(self, outputs: Any, targets: Any) -> Tensor:
        """The losses from which `counted` makes values, once `__call__` has found out what they count for."""
        if self.cross_entropy is None:
            return one_by_one(self.loss, outputs, targets)
        if outputs.ndim > 2 and not self._tried:
            self._label(outputs, targets)
        return self._shares(outputs, targets, self._counts)

    def _label(self, logits: Tensor, targets: Tensor) -> None:
        assert self.cross_entropy is not None
        self._counts, self._gain = _label_counts(logits, targets, self.cross_entropy(logits))
        self._tried = True

    def counted(self, losses: Tensor) -> Tensor:
        """The values that `alone` stands for."""
        if self.cross_entropy is None and self._counts is not None:
            losses = (losses * self._counts).where(self._counts != 0, 0.0)
        return losses if self._gain is None else losses * self._gain

    def chosen(self, outputs: Any, targets: Any, index: Tensor) -> Tensor:
        """The values of the examples at `index` of the last whole batch, from their own outputs and targets."""
        counts = None if self._counts is None else self._counts[index]
        shares = self._shares(outputs, targets, counts)
        if self._counts is not None and counts is not None:
            shares = shares * (self._counts.mean() / counts.mean())
        return shares if self._gain is None else shares * self._gain

    def _shares(self, outputs: Any, targets: Any, counts: Tensor | None) -> Tensor:
        """c_i ℓ_i; ℓ_i where all count the same."""
        if self.cross_entropy is not None:
            given = self.cross_entropy(outputs)
            shares = F.cross_entropy(outputs, targets, **{**given, "reduction": "none"})
            if shares.ndim > 1:  # tokens
                shares = shares.flatten(1).mean(1) if counts is None else shares.flatten(1).sum(1)
            return shares
        if counts is None:
            return one_by_one(self.loss, outputs, targets)
        rows = counts.nonzero().squeeze(1)  # the loss of an ignored example alone is 0/0
        values = one_by_one(self.loss, outputs[rows], map_tensors(lambda t: t[rows], targets))
        values = values * counts[rows].to(outputs.dtype)
        return values.new_zeros(len(counts)).index_put((rows,), values)


def one_by_one(loss: Loss, outputs: Any, targets: Any) -> Tensor:
    """The loss of each example as a batch of its own, at once by `torch.vmap` where that goes.

    Where it cannot take one example (it squeezes, say) each is given twice.
    """
    errors: list[Exception] = []
    for copies in (1, 2):
        for way in (_at_once, _in_turn):
            try:
                return way(loss, outputs, targets, copies)
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                errors.append(error)
    raise ValueError(_REFUSED.format(f"a single example gave {str(errors[1])[:200]!r}")) from errors[1]


def _at_once(loss: Loss, outputs: Any, targets: Any, copies: int) -> Tensor:
    def single(o: Any, t: Any) -> Tensor:
        if copies == 1 and type(o) is Tensor and type(t) is Tensor:
            return loss(o[None], t[None])
        return loss(*(map_tensors(lambda v: v.expand(copies, *v.shape), tree) for tree in (o, t)))

    values: Tensor = torch.vmap(single, in_dims=(0, _dimensions(targets)))(outputs, targets)
    return _vector(values, len(outputs))


def _in_turn(loss: Loss, outputs: Any, targets: Any, copies: int) -> Tensor:
    def single(i: int) -> Tensor:
        return loss(*(map_tensors(lambda v: v[i].expand(copies, *v[i].shape), tree) for tree in (outputs, targets)))

    return _vector(torch.stack([single(i) for i in range(len(outputs))]), len(outputs))


def _vector(values: Tensor, n: int) -> Tensor:
    if values.numel() != n:
        raise ValueError(f"`loss` must give one number, got shape {tuple(values.shape[1:])}.")
    return values if values.ndim == 1 else values.reshape(n)


# -- what each example counts for --------------------------------------------------------------------------------------


def _label_counts(logits: Tensor, targets: Tensor, given: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    """c, unless all are equal, and the gain, for torch's cross-entropy."""
    weight, counts = given.get("weight"), None
    whole = given.get("reduction", "mean") == "sum"
    if not targets.is_floating_point():  # soft targets count the same, and none is ignored
        index = given.get("ignore_index", -100)
        # below 0 torch's loss lets only what is ignored pass
        may = weight is not None or index >= 0 or not targets.numel() or int(targets.min()) < 0
        ignored = targets == index if may else None
        if ignored is not None and weight is not None:
            counts = weight[targets.masked_fill(ignored, 0)].masked_fill(ignored, 0)
        elif ignored is not None and bool(ignored.any()):
            counts = (~ignored).to(logits.dtype)
    if counts is None and not whole:
        return None, None
    if counts is None:
        tokens = targets[0].numel() if not targets.is_floating_point() else targets[0, 0].numel()
        return None, logits.new_full((), len(targets) * tokens)
    if counts.ndim > 1:
        counts = counts.flatten(1).sum(1)
    return counts, counts.new_full((), len(counts)) if whole else len(counts) / counts.sum()


_PLAIN: weakref.WeakSet[Any] = weakref.WeakSet()  # losses that a trial has found to be plain means


def _known(loss: Loss, *, add: bool = False) -> bool:
    try:
        if add:
            _PLAIN.add(loss)
        return loss in _PLAIN
    except TypeError:  # neither hashable nor to be referred to
        return False


def _tolerance(t: Tensor) -> float:
    return 1e-6 if t.dtype in (torch.float64, torch.complex128) else 1e-3


def _trial(loss: Loss, outputs: Any, targets: Any) -> tuple[Tensor | None, Tensor | None] | None:
    """c, unless all are equal, and the gain, from derivatives of any loss; None where something is not finite."""
    if not isinstance(outputs, Tensor) or not outputs.ndim:
        raise ValueError(_REFUSED.format(f"the outputs are {type(outputs).__name__}, not a tensor with a row each"))
    n, here = len(outputs), outputs.detach()
    if here.dtype in (torch.float16, torch.bfloat16):
        here = here.float()
    if not bool(torch.isfinite(here).all()):
        return None  # nothing can be told from it, and nothing can come of it
    tolerance = _tolerance(here)
    with torch.enable_grad():
        there = 0.7 * here + 0.3 * here.roll(1, 0)  # between examples: probabilities stay what they are
        both = torch.cat([here, there]).requires_grad_()
        wholes = torch.stack([loss(both[:n], targets), loss(both[n:], targets)])
        singles = one_by_one(loss, both, map_tensors(lambda t: torch.cat([t, t]), targets))
        slopes, own = (_gradient(value, both).reshape(2, n, -1) for value in (wholes, singles))
    singles, wholes = singles.detach().reshape(2, n), wholes.detach()
    if not bool(torch.isfinite(wholes).all() & torch.isfinite(slopes).all()):
        return None
    told = torch.isfinite(own).all(-1).all(0) & torch.isfinite(singles).all(0)
    own, singles = own.where(told[:, None], 0.0), singles.where(told, 0.0)
    squares = own.square().sum((0, 2))
    counts = n * (slopes * own).sum((0, 2)) / squares  # least squares over both points
    known = squares > 0
    rest = _rest(counts[known], n)
    counts = counts.where(known, rest).where(told, 0.0)
    off = (slopes - counts[:, None] / n * own).abs().amax(), slopes.abs().amax()
    gap = (
        ((counts * singles).mean(1) - wholes).abs().amax(),
        torch.maximum(wholes.abs().amax(), (counts * singles).abs().mean(1).amax()),
    )
    if bool(off[0] > tolerance * off[1]) or bool(gap[0] > tolerance * gap[1]):
        raise ValueError(
            _REFUSED.format(f"{float(wholes[0]):.6g} for {float((counts * singles)[0].mean()):.6g} on this batch")
        )
    if bool((counts - counts.mean()).abs().amax() > 0.1 * tolerance * counts.abs().mean()):
        return counts, None
    equal = counts.mean()
    return None, None if bool((equal - 1).abs() <= 0.1 * tolerance) else equal


def _rest(counts: Tensor, n: int) -> Tensor:
    """What the examples count for whose loss is flat: what the others leave of n, for a mean, else the same as they."""
    if not 0 < len(counts) < n:
        return counts.new_ones(())
    left = (n - counts.sum()) / (n - len(counts))
    return left.clamp_min(0) if bool(left > -1e-3) else counts.mean()


def _gradient(values: Tensor, at: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(values.sum(), at, allow_unused=True)
    gradient = torch.zeros_like(at) if gradient is None else gradient
    return torch.view_as_real(gradient) if gradient.is_complex() else gradient


# -- tensors in tuples and dicts ---------------------------------------------------------------------------------------


def _dimensions(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return 0
    if isinstance(tree, dict):
        return {key: _dimensions(value) for key, value in tree.items()}
    return type(tree)(_dimensions(value) for value in tree) if isinstance(tree, tuple | list) else None
