"""Parameters as a dict of tensors, and the few vector operations that everything else is written in.

`torch.func` and safetensors speak dicts; linear algebra speaks vectors. `flatten` and `unflatten` join the two. The
order of a vector is always the order of `names`, which is a model's `named_parameters()` order, never that of a file.
A complex tensor counts as its real and imaginary parts, an axis of length 2 behind the others.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.spread import products, spread

Params = dict[str, Tensor]
_EXACT = (torch.float32, torch.float64)
LONGEST_DOT = 2**22  # entries; BLAS sums in the tensors' own precision, and longer sums lose digits


def real(t: Tensor) -> Tensor:
    """A tensor of real numbers: a complex one as its real and imaginary parts, along a last axis."""
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


def real_parts(theta: Mapping[str, Tensor]) -> Params:
    """The same parameters in real numbers, see `real`."""
    return {name: real(t) for name, t in theta.items()}


def flatten(theta: Params, names: Sequence[str] | None = None) -> Float[Tensor, " p"]:
    """Concatenate the parameters, in the order of `names`, into one vector of length p."""
    return torch.cat([real(theta[name]).reshape(-1) for name in (theta if names is None else names)])


def unflatten(vector: Float[Tensor, " p"], like: Params) -> Params:
    """Cut a vector of length p into tensors of the shapes, and in the key order, of `like`.

    Raises:
        ValueError: If the vector's length is not the number of entries of `like`.
    """
    sizes = [_entries(t) for t in like.values()]
    if vector.numel() != sum(sizes):
        raise ValueError(f"`vector` must have {sum(sizes)} entries, one per parameter, got {vector.numel()}.")
    parts = zip(like.items(), vector.split(sizes), strict=True)
    return {
        name: torch.view_as_complex(part.reshape(*t.shape, 2).clone()) if t.is_complex() else part.view_as(t)
        for (name, t), part in parts
    }


def _entries(t: Tensor) -> int:
    return 2 * t.numel() if t.is_complex() else t.numel()


def inner(a: Params, b: Params) -> Tensor:
    """The inner product ⟨a, b⟩ over all tensors jointly."""
    if any(spread(t) for t in a.values()):
        return products(list(a.values()), [b[name] for name in a])
    return torch.stack([torch.sum(real(a[name]) * real(b[name])) for name in a]).sum()


def norm(a: Params, p: float = 2.0) -> Tensor:
    """The p-norm over all tensors jointly, `inf` included; half-precision entries are summed in float32."""
    if p == 2 and any(spread(t) for t in a.values()):
        return products(list(a.values()), list(a.values())).sqrt()
    parts = torch._foreach_norm([t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in a.values()], p)
    total: Tensor = torch.linalg.vector_norm(torch.stack(parts), p)
    return total


def dot(a: Params, b: Params) -> float:
    """⟨a, b⟩ as a number, over the names of `a` that `b` has too; half-precision entries are summed in float32.

    On the CPU each tensor's share is one BLAS call without a temporary, which is why it exists besides `inner`.
    """
    pairs = [(t, b[name]) for name, t in a.items() if name in b]
    if pairs and spread(pairs[0][0]):
        return float(products([x for x, _ in pairs], [y for _, y in pairs]))
    return math.fsum([_share(x, y) for x, y in pairs])


def length(a: Params) -> float:
    """‖a‖₂ over all tensors jointly, as a number."""
    return math.sqrt(dot(a, a)) if a else 0.0


def _share(x: Tensor, y: Tensor) -> float:
    if x.is_cpu and x.is_contiguous() and x.numel() <= LONGEST_DOT and x.dtype in _EXACT:
        if x is y:
            row = x.view(-1)
            return torch.dot(row, row).item()
        if y.is_contiguous() and y.dtype is x.dtype:
            return torch.dot(x.view(-1), y.view(-1)).item()
    if x.dtype in (torch.float16, torch.bfloat16):
        x, y = x.float(), y.float()
    if x.is_complex():
        x, y = real(x), real(y)
    return float(torch.linalg.vector_norm(x)) ** 2 if x is y else float(torch.sum(x * y))


def select(names: Sequence[str], wanted: str | Iterable[str] | None, *, argument: str = "parameters") -> list[str]:
    """Choose parameters by name, by glob or by module.

    Args:
        names: All names, such as "blocks.0.fc.weight".
        wanted: One or several of: a name; a glob, such as "*.weight"; a module, such as "blocks.0", which stands for
            all parameters in it. None means all.
        argument: The caller's name of `wanted`, for its messages.

    Returns:
        The chosen names, in the order of `names`.

    Raises:
        ValueError: If something in `wanted` chooses nothing.
    """
    if wanted is None:
        return list(names)
    patterns = [wanted] if isinstance(wanted, str) else list(wanted)
    chosen: set[str] = set()
    for pattern in patterns:
        found = {n for n in names if n == pattern or n.startswith(f"{pattern}.") or fnmatchcase(n, pattern)}
        if not found:
            raise ValueError(
                f"`{argument}` has {pattern!r}, which is no name, glob or module of the parameters {list(names)}."
            )
        chosen |= found
    if not chosen:
        raise ValueError(f"`{argument}` must choose some of {list(names)}, got none.")
    return [n for n in names if n in chosen]


def slices(theta: Params) -> dict[str, slice]:
    """Where each parameter lies in the flat vector."""
    places, start = {}, 0
    for name, tensor in theta.items():
        places[name] = slice(start, start + _entries(tensor))
        start += _entries(tensor)
    return places


def layer_slices(theta: Params) -> dict[str, slice]:
    """Where each layer, the parameters that one module owns, lies in the flat vector.

    The layer of "blocks.0.fc.weight" is "blocks.0.fc"; a parameter of the model itself is a layer of its own name. A
    module whose parameters do not follow each other directly makes several layers, numbered "name#2" and so on.
    """
    layers: dict[str, slice] = {}
    last, seen = None, dict[str, int]()
    for name, place in slices(theta).items():
        layer = name.rpartition(".")[0] or name
        if layer == last:
            key = layer if seen[layer] == 1 else f"{layer}#{seen[layer]}"
            layers[key] = slice(layers[key].start, place.stop)
            continue
        seen[layer] = seen.get(layer, 0) + 1
        layers[layer if seen[layer] == 1 else f"{layer}#{seen[layer]}"] = place
        last = layer
    return layers
