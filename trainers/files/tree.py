"""Nested state (dicts, lists, tensors, numbers) as tensors and one JSON text: nothing that can run code."""

import copy
import math
from typing import Any

import torch
from torch import Tensor

_TENSOR = "__tensor__"
_TUPLE = "__tuple__"
_KEYS = "__keys__"
_FLOAT = "__float__"  # NaN and infinities, which JSON does not know


def split_tensors(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Take the tensors out of a nested structure.

    Returns:
        The structure with every tensor replaced by a reference, ready for JSON, and the tensors by reference. Keys of
        dicts may be strings or integers; tuples come back as tuples.

    Raises:
        TypeError: For anything else than dict, list, tuple, tensor, str, number, bool or None.
    """
    tensors: dict[str, Tensor] = {}

    def walk(node: Any) -> Any:
        if isinstance(node, Tensor):
            key = f"t{len(tensors)}"
            tensors[key] = node.detach().contiguous().cpu().clone()
            return {_TENSOR: key}
        if isinstance(node, dict):
            if all(isinstance(k, str) for k in node):
                return {k: walk(v) for k, v in node.items()}
            return {_KEYS: [[k, walk(v)] for k, v in node.items()]}
        if isinstance(node, tuple):
            return {_TUPLE: [walk(v) for v in node]}
        if isinstance(node, list):
            return [walk(v) for v in node]
        if isinstance(node, float) and not math.isfinite(node):
            return {_FLOAT: repr(node)}
        if node is None or isinstance(node, str | int | float | bool):
            return node
        raise TypeError(f"cannot save {type(node).__name__} in a state; keep it as a tensor, number or string.")

    return walk(tree), tensors


def copied(tree: Any) -> Any:
    """A copy of a nested structure that shares no tensor with it."""
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(copied(value) for value in tree)
    return copy.deepcopy(tree)


def join_tensors(skeleton: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo `split_tensors`."""
    if isinstance(skeleton, dict):
        if set(skeleton) == {_TENSOR}:
            return tensors[skeleton[_TENSOR]]
        if set(skeleton) == {_FLOAT}:
            return float(skeleton[_FLOAT])
        if set(skeleton) == {_TUPLE}:
            return tuple(join_tensors(v, tensors) for v in skeleton[_TUPLE])
        if set(skeleton) == {_KEYS}:
            return {k: join_tensors(v, tensors) for k, v in skeleton[_KEYS]}
        return {k: join_tensors(v, tensors) for k, v in skeleton.items()}
    if isinstance(skeleton, list):
        return [join_tensors(v, tensors) for v in skeleton]
    return skeleton


def equal(a: Any, b: Any) -> bool:
    """Whether two structures hold the same values, tensors compared bit for bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
