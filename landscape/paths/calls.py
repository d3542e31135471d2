"""One operation of a forward pass, and what the rules for all of them have in common."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from landscape.paths.structure import Units, free, unify

Labels = list[Units]
KERNEL = "place in a kernel or image"


@dataclass(frozen=True)
class Call:
    """One operation of a forward pass.

    Attributes:
        of: Labels of a tensor.
        given: Arguments by name, defaults included.
        made: The tensors that came out.
        where: The module at work, for reasons.
    """

    of: Callable[[Tensor], Labels]
    given: dict[str, Any]
    made: list[Tensor]
    where: str


Rule = Callable[[Call], list[Labels] | None]


def all_tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors among an operation's arguments or results."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for part in tree:
            yield from all_tensors(part)
    elif isinstance(tree, dict):
        yield from all_tensors(list(tree.values()))


def wrapped(dims: Any, ndim: int) -> list[int]:
    """Axes counted from 0; all of them where none is named."""
    if dims is None or dims == []:
        return list(range(ndim))
    return [d % ndim if ndim else 0 for d in (dims if isinstance(dims, list | tuple) else [dims])]


def broadcast(call: Call, arguments: Sequence[Tensor | Labels], shape: Sequence[int]) -> Labels:
    """Labels of a result of several arguments that are broadcast to a shape; axes that meet become one."""
    out: list[Units | None] = [None] * len(shape)
    for argument in arguments:
        labels = call.of(argument) if isinstance(argument, Tensor) else argument
        for i, u in enumerate(reversed(labels)):
            at = len(shape) - 1 - i
            if at < 0 or u.size == 1 or u.size != shape[at]:
                continue
            known = out[at]
            if known is None:
                out[at] = u
            else:
                unify(known, u, f"an operation {call.where}")
    return [free(n) if u is None else u for u, n in zip(out, shape, strict=True)]
