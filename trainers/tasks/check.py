"""The contract of a task, tried on a few examples: what a user runs on a task of their own."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from landscape.batches import map_tensors
from trainers.tasks.task import as_task

CLOSE = 1e-4  # relative, between numbers that should be equal, in float32
STEP = 1e-5  # of the difference that a derivative is compared with, in float64, and
SLOPE = 1e-4  # how close, relative to the gradient's length


def check_task(task: Any, outputs: Any, targets: Any, *, name: str | None = None) -> list[str]:
    """Try the contract of `trainers.Task` on some examples.

    That losses and scores are one number an example and the same whatever the batch; that the loss is the mean of
    `each`, weighted by `weight`, so that it is additive over batches; that its derivative with respect to the outputs
    is that of its values; that nothing is drawn at random and no argument is changed; and of the optional parts, where
    there are any, that they are what `Task` says.

    Args:
        task: An instance.
        outputs: Of a model on at least three examples: a tensor, or a dict or tuple of such.
        targets: Of these examples, likewise.
        name: Of the task in messages; None takes its class.

    Returns:
        One line for each failure; empty where there is none.

    Raises:
        ValueError: If there are fewer than three examples.
    """
    name = name or type(task).__name__
    n = _length(targets)
    if n < 3 or _length(outputs) != n:
        raise ValueError(
            f"`outputs` and `targets` must be of the same 3 examples or more, got {_length(outputs)} and {n}."
        )
    try:
        as_task(task, name)
    except ValueError as error:
        return [str(error)]
    return [f"`task` {name!r}: {said}" for said in _Trial(task, outputs, targets, n).failures()]


class _Trial:
    """A task on some examples."""

    def __init__(self, task: Any, outputs: Any, targets: Any, n: int) -> None:
        self.task, self.outputs, self.targets, self.n = task, outputs, targets, n

    def failures(self) -> Iterator[str]:
        """One line each; what stands on a part that fails is left out."""
        parts: tuple[Callable[[], Iterator[str]], ...] = (
            self.weight,
            self.each,
            self.loss,
            self.scores,
            self.derivative,
        )
        for part in (*parts, *(getattr(self, key) for key in OPTIONAL if hasattr(self.task, key))):
            try:
                yield from part()
            except Exception as error:  # a user's code fails in any way
                said = (str(error).strip().splitlines() or [""])[0][:200]
                yield f"`{part.__name__}` failed: {type(error).__name__}: {said}."
        yield from self.unchanged()

    def cuts(self) -> list[slice]:
        """The examples in parts of unequal size."""
        return [slice(0, 1), slice(1, 1 + self.n // 3), slice(1 + self.n // 3, self.n)]

    def on(self, function: Callable[[Any, Any], Any], part: slice = slice(None)) -> Any:
        """A function of outputs and targets on some of the examples."""
        return function(_cut(self.outputs, part), _cut(self.targets, part))

    def counts(self, part: slice) -> float:
        """What some examples count for."""
        if self.task.weight is None:
            return float(len(range(self.n)[part]))
        return float(self.task.weight(_cut(self.targets, part)))

    def weight(self) -> Iterator[str]:
        """Is it additive?"""
        whole, parts = self.counts(slice(None)), [self.counts(part) for part in self.cuts()]
        if not (math.isfinite(whole) and min(parts) >= 0 and whole > 0):
            yield f"`weight` must be finite and at least 0, above 0 of all examples, got {whole:g}, of parts {parts}."
        elif not _near(sum(parts), whole):
            total = sum(parts)
            yield f"`weight` of all {self.n} examples is {whole:g}, and {total:g} summed over parts: count each once."

    def each(self) -> Iterator[str]:
        """One number an example, whatever the batch?"""
        yield from self._by_example("each", self.task.each)

    def loss(self) -> Iterator[str]:
        """The weighted mean of `each`?"""
        for part in (slice(None), *self.cuts()):
            given, each = self.on(self.task.loss, part), self.on(self.task.each, part).double()
            if not isinstance(given, Tensor) or given.ndim:
                yield f"`loss` must give one number, a tensor without axes, got {_kind(given)}: take the mean."
                return
            weights = torch.tensor([self.counts(slice(i, i + 1)) for i in range(self.n)[part]], dtype=torch.float64)
            mean, value = float((weights * each).sum() / weights.sum()), float(given)
            if float(weights.sum()) > 0 and not _near(mean, value):
                yield (
                    f"`loss` is {value:.6g} on {len(each)} examples, and the mean of `each` over them, weighted by "
                    f"`weight`, {mean:.6g}: let it be that mean, or it is not additive over batches."
                )
                return

    def scores(self) -> Iterator[str]:
        """One number an example, by the same names?"""
        given = self.on(self.task.scores)
        if not isinstance(given, Mapping) or not given:
            yield f"`scores` must give at least one score by name, got {_kinds(given)}."
            return
        for key in given:
            yield from self._by_example(f"scores, {key!r},", partial(self._score, key))
        if getattr(self.task, "decides", True) is False and next(iter(given.values())).dtype == torch.bool:
            yield "`decides` is False, and the first of `scores` says true or false: leave `decides` out."

    def _score(self, key: str, outputs: Any, targets: Any) -> Any:
        return self.task.scores(outputs, targets)[key]

    def derivative(self) -> Iterator[str]:
        """Is the gradient with respect to the outputs that of the values, in float64?"""
        wide = _map(self.outputs, lambda t: t.detach().double().requires_grad_())
        leaves = [t for t in _leaves(wide) if t.requires_grad]
        loss = self.task.loss(wide, self.targets)
        if not leaves or not isinstance(loss, Tensor) or not loss.requires_grad:
            yield "`loss` has no derivative with respect to the outputs: compute it by torch, from outputs as they are."
            return
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        gradients = [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, found, strict=True)]
        length = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        generator = torch.Generator().manual_seed(0)
        along = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in leaves]
        slope = sum(float((g * u).sum()) for g, u in zip(gradients, along, strict=True))

        def at(step: float) -> float:
            moves = iter(along)
            moved = _map(wide, lambda t: t.detach() + step * next(moves))
            return float(self.task.loss(moved, self.targets))

        difference = (at(STEP) - at(-STEP)) / (2 * STEP)
        size = math.sqrt(sum(float(u.square().sum()) for u in along))
        if not math.isfinite(slope) or abs(slope - difference) > SLOPE * (length * size + abs(difference)) + 1e-8:
            yield (
                f"the derivative of `loss` along a random direction is {slope:.6g}, and a difference of its values "
                f"{difference:.6g}: nothing in it may be detached or rounded, and the outputs tried must be no kink."
            )

    def probabilities(self) -> Iterator[str]:
        """Distributions over classes?"""
        p = self.task.probabilities(self.outputs)
        if not isinstance(p, Tensor) or p.ndim != 2 or len(p) != self.n or p.dtype != torch.float64:
            yield f"`probabilities` must be of shape ({self.n}, classes) in float64, got {_kind(p)}."
        elif bool((p < 0).any()) or not bool(((p.sum(1) - 1).abs() < CLOSE).all()):
            yield "`probabilities` must be at least 0 and sum to 1 over the classes of each example."

    def divergence(self) -> Iterator[str]:
        """Of shape (n, entries), 0 where nothing moved, and never below?"""
        moved = _map(self.outputs, lambda t: t + 0.1 * t.roll(1, 0))
        same, other = (self.task.divergence(self.outputs, after) for after in (self.outputs, moved))
        if not isinstance(other, Tensor) or other.ndim != 2 or len(other) != self.n:
            yield f"`divergence` must be of shape ({self.n}, entries), got {_kind(other)}."
        elif float(same.abs().max()) > CLOSE or float(other.min()) < -CLOSE:
            yield "`divergence` must be 0 between outputs and themselves, and at least 0 between others."
        if not isinstance(getattr(self.task, "distribution", None), str):
            yield "`divergence` goes with `distribution`, the name of what outputs are read as: give it."

    def of_set(self) -> Iterator[str]:
        """Numbers by name?"""
        given = self.on(self.task.of_set)
        if not isinstance(given, Mapping) or any(getattr(v, "ndim", 0) for v in given.values()):
            yield f"`of_set` must give one number by name, got {_kinds(given)}."

    def plain(self) -> Iterator[str]:
        """Is what is measured a task itself?"""
        if self.task.plain != self.task:
            yield from (f"`plain`: {line}" for line in check_task(self.task.plain, self.outputs, self.targets))

    def unchanged(self) -> Iterator[str]:
        """The same twice, with the arguments as they were?"""
        before = [t.clone() for t in (*_leaves(self.outputs), *_leaves(self.targets))]
        try:
            first, second = (float(self.on(self.task.loss)) for _ in range(2))
        except Exception:  # said above
            return
        if first != second and not math.isnan(first):
            yield f"`loss` is {first:.6g}, and then {second:.6g} of the same: draw nothing at random in it."
        after = (*_leaves(self.outputs), *_leaves(self.targets))
        if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, after, strict=True)):
            yield "`loss` changes its arguments: copy them first."

    def _by_example(self, what: str, function: Callable[[Any, Any], Any]) -> Iterator[str]:
        whole = self.on(function)
        if not isinstance(whole, Tensor) or whole.shape != (self.n,) or whole.is_complex():
            yield f"`{what}` must give a real number an example, of shape ({self.n},), got {_kind(whole)}."
            return
        if not bool(torch.isfinite(whole).all()):
            yield f"`{what}` is not finite on {int((~torch.isfinite(whole)).sum())} of {self.n} examples."
            return
        parts = torch.cat([self.on(function, part) for part in self.cuts()])
        if parts.shape != whole.shape or not all(map(_near, parts.tolist(), whole.tolist())):
            yield f"`{what}` of an example depends on the other examples of its batch: let it be a number of its own."


OPTIONAL = ("probabilities", "divergence", "of_set", "plain")


def _map(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The floating-point tensors of outputs, changed."""
    return map_tensors(lambda t: function(t) if t.is_floating_point() else t, tree)


def _cut(tree: Any, part: slice) -> Any:
    return map_tensors(lambda t: t[part], tree)


def _leaves(tree: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensors(lambda t: found.append(t) or t, tree)  # type: ignore[func-returns-value]
    return found


def _length(tree: Any) -> int:
    return min((len(t) if t.ndim else 0 for t in _leaves(tree)), default=0)


def _kind(found: Any) -> str:
    return f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__


def _kinds(found: Any) -> str:
    if not isinstance(found, Mapping):
        return _kind(found)
    return "{" + ", ".join(f"{name!r}: {_kind(value)}" for name, value in found.items()) + "}"


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= CLOSE * max(abs(a), abs(b)) + 1e-7
