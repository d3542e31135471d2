"""Run a model once and follow every operation, to see which axes of which tensors must be permuted alike."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from landscape.batches import tensors
from landscape.calling import call
from landscape.paths.calls import Call, Labels, all_tensors
from landscape.paths.rules import RULES, pointwise
from landscape.paths.structure import fixed, free, pin

INPUT, OUTPUT = "an input", "an output"


class Tracer(TorchDispatchMode):
    """Labels every tensor of a forward pass by the permutations that act on its axes.

    Each operation has a rule, see `RULES`. One without makes everything that goes into it stay put, so what remains
    free is always safe to permute.

    Attributes:
        unknown: Operations without a rule, by the module that called them.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unknown: dict[str, str] = {}
        self.where: list[str] = []
        self._labels: dict[int, Labels] = {}
        self._held: list[Tensor] = []  # so that ids stay theirs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, then label what came out."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        names = [a.name for a in func._schema.arguments]
        given = dict.fromkeys(names) | {
            a.name: a.default_value for a in func._schema.arguments if a.has_default_value()
        }
        given |= dict(zip(names, args, strict=False)) | kwargs
        name = func.overloadpacket.__name__
        made = list(all_tensors(out))
        rule = RULES.get(name) or RULES.get(name.removesuffix("_"))
        if rule is None and torch.Tag.pointwise in func.tags and torch.Tag.nondeterministic_seeded not in func.tags:
            rule = pointwise
        try:
            labels = rule(Call(self.of, given, made, self.why)) if rule else None
        except (LookupError, ValueError, TypeError, AttributeError):  # a form of call that the rule does not know
            labels = None
        if labels is None and made:
            self._pin_all(given, name)
        for i, t in enumerate(made):
            if id(t) in self._labels and self._known(t):
                continue  # in place: what it holds keeps its labels
            found = labels[i] if labels is not None and i < len(labels) else []
            self.label(t, _fitting(found, t, f"operation {name}"))
        return out

    def label(self, t: Tensor, labels: Labels) -> None:
        """Remember a tensor's labels."""
        self._labels[id(t)] = labels
        self._held.append(t)

    def of(self, t: Tensor) -> Labels:
        """A tensor's labels; one that was never seen stays put."""
        if id(t) not in self._labels:
            self.label(t, [fixed(n, "a constant of the model") for n in t.shape])
        return self._labels[id(t)]

    @property
    def why(self) -> str:
        """The module at work, for reasons."""
        return f"in {self.where[-1]!r}" if self.where and self.where[-1] else "in the model itself"

    def _known(self, t: Tensor) -> bool:
        return [u.size for u in self._labels[id(t)]] == list(t.shape)

    def _pin_all(self, given: dict[str, Any], name: str) -> None:
        touched = [t for t in all_tensors(list(given.values())) if any(n > 1 for n in t.shape)]
        if touched:
            self.unknown.setdefault(name, self.why)
        for t in touched:
            for u in self.of(t):
                pin(u, f"operation {name} {self.why}")


def trace(model: nn.Module, inputs: Any, named: dict[str, Tensor]) -> tuple[dict[str, Labels], dict[str, str]]:
    """Label the axes of a model's parameters and buffers by one forward pass.

    Args:
        model: A private copy, in evaluation mode.
        inputs: A tensor, a tuple of arguments or a dict of keyword arguments.
        named: The tensors of the model to label, by name.

    Returns:
        Labels by tensor name, and the operations without a rule with where they were called.
    """
    tracer = Tracer()
    labels = {name: [free(n) for n in t.shape] for name, t in named.items()}
    for name, t in named.items():
        tracer.label(t, labels[name])
    for t in all_tensors(inputs):
        tracer.label(t, [fixed(n, INPUT) for n in t.shape])
    hooks = []
    for name, module in model.named_modules():
        hooks += [
            module.register_forward_pre_hook(lambda *_, name=name: tracer.where.append(name)),
            module.register_forward_hook(lambda *_: (tracer.where.pop(), None)[1]),
        ]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # whole layers in one operation tell nothing
        with torch.no_grad(), tracer:
            out = call(model, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for hook in hooks:
            hook.remove()
    for t in tensors(out):
        for u in tracer.of(t):
            pin(u, OUTPUT)
    return labels, tracer.unknown


def _fitting(found: Labels, t: Tensor, why: str) -> Labels:
    """Labels that have the tensor's sizes; what does not fit stays put."""
    if [u.size for u in found] == list(t.shape):
        return found
    for u in found:
        pin(u, why)
    return [fixed(n, why) for n in t.shape]
