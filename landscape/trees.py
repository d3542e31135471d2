"""Nested dicts, lists, tuples and dataclasses of tensors: mapped over, read, and cut off from their graph."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


def map_nodes(f: Callable[[Any], Any], tree: Any) -> Any:
    """Apply f to every part that is no container, and to lists and tuples for which f returns another object."""
    made = f(tree)
    if made is not tree or isinstance(tree, Tensor | PackedSequence):
        return made
    if type(tree) is dict:
        return {key: map_nodes(f, value) for key, value in tree.items()}
    other: Any = None
    if isinstance(tree, Mapping):
        other = copy.copy(tree)
        for key, value in tree.items():
            other[key] = map_nodes(f, value)
        return other
    if isinstance(tree, list | tuple):
        parts = [map_nodes(f, value) for value in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    if is_dataclass(tree) and not isinstance(tree, type):
        other = copy.copy(tree)
        for field in fields(tree):
            object.__setattr__(other, field.name, map_nodes(f, getattr(tree, field.name)))
        return other
    return tree


def map_tensors(f: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply f to every tensor of nested mappings, lists, tuples and dataclasses; leave the rest, packed ones too."""
    if isinstance(tree, Tensor):
        return f(tree)
    return map_nodes(lambda part: f(part) if isinstance(part, Tensor) else part, tree)


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors of nested mappings, lists, tuples and dataclasses (such as model outputs), in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from tensors(value)
    elif is_dataclass(tree) and not isinstance(tree, type):
        for field in fields(tree):
            yield from tensors(getattr(tree, field.name))


def cut_off(tree: Any) -> Any:
    """A copy of a model's outputs in which every tensor is a leaf of its own, cut off from the graph it came from."""
    leaves: dict[int, Any] = {}
    stack, seen = [tree], set[int]()
    while stack:
        part = stack.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, Tensor):
            leaves[id(part)] = part.detach().requires_grad_() if part.requires_grad else part
        elif isinstance(part, Mapping):
            stack += part.values()
        elif isinstance(part, list | tuple):
            stack += part
        if hasattr(part, "__dict__") and not isinstance(part, Tensor | type):  # any other object that holds tensors
            stack += vars(part).values()
    return copy.deepcopy(tree, leaves)
