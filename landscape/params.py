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

from landscape.spread import held_here, products, spread

Params = dict[str, Tensor]
_EXACT = (torch.float32, torch.float64)
_HALF = (torch.float16, torch.bfloat16)
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
    parts = torch._foreach_norm([t.float() if t.dtype in _HALF else t for t in a.values()], p)
    total: Tensor = torch.linalg.vector_norm(torch.stack(parts), p)
    return total


def wide_inner(a: Params, b: Params) -> Tensor:
    """⟨a, b⟩ over the names of `a` that `b` has too, in float64, on the device of the tensors: nothing is read back.

    Half-precision entries are summed in float32. Each tensor's share is summed in the tensors' own precision, on the
    CPU by one BLAS call without a temporary; the shares are added up in float64, or in float32 on a device that has no
    float64.
    """
    xs = [t for name, t in a.items() if name in b]
    ys = xs if a is b else [b[name] for name in a if name in b]
    if not xs:
        return torch.zeros((), dtype=torch.float64)
    return products(xs, ys) if spread(xs[0]) else _added(_shares(xs, ys))


def wide_norm(a: Params) -> Tensor:
    """‖a‖₂ over all tensors jointly, as `wide_inner`."""
    squared = wide_inner(a, a)
    root = squared.sqrt()
    if all(t.dtype is not torch.float64 for t in a.values()):
        return root
    rest = torch.addcmul(squared, root, root, value=-1) / (2 * root)  # torch's root may be off by its last bit
    return root + rest.nan_to_num_(0.0, 0.0, 0.0)


def times(tensors: list[Tensor], number: Tensor | float) -> list[Tensor]:
    """A number times each tensor, as new tensors; one without dimensions is not read back."""
    if not isinstance(number, Tensor) or not tensors:
        return list(torch._foreach_mul(tensors, number)) if tensors else []
    if _alike(tensors):
        return list(torch._foreach_mul(tensors, number.to(tensors[0].device, tensors[0].dtype)))
    return [(t.to(_computed_in(t)) * number.to(t.device, _computed_in(t))).to(t.dtype) for t in tensors]


def times_(tensors: list[Tensor], number: Tensor | float) -> None:
    """Multiply each tensor by a number in place, see `times`."""
    if not tensors:
        return
    if not isinstance(number, Tensor):
        torch._foreach_mul_(tensors, number)
        return
    tensors = [held_here(t) for t in tensors]
    if _alike(tensors):
        torch._foreach_mul_(tensors, number.to(tensors[0].device, tensors[0].dtype))
    else:
        torch._foreach_copy_(tensors, times(tensors, number))


def add_(to: list[Tensor], tensors: list[Tensor], number: Tensor | float) -> None:
    """Add `number` times the tensors in place; one without dimensions is not read back.

    On the CPU product and sum are rounded once, with a number and with a tensor; on a GPU the product of a tensor is
    rounded before it is added.
    """
    if not isinstance(number, Tensor):
        torch._foreach_add_(to, tensors, alpha=number)
        return
    to, tensors = [held_here(t) for t in to], [held_here(t) for t in tensors]
    if not (_alike(to) and _alike(tensors)):
        for a, b in zip(to, tensors, strict=True):
            a.copy_(torch.addcmul(a.to(_computed_in(a)), b.to(_computed_in(a)), number.to(a.device, _computed_in(a))))
    elif to[0].is_cpu:
        torch._foreach_addcmul_(to, tensors, [number.to(to[0].dtype)] * len(to))
    else:
        torch._foreach_add_(to, times(tensors, number))


def add(to: list[Tensor], tensors: list[Tensor], number: Tensor | float) -> list[Tensor]:
    """`to` plus `number` times the tensors, as new tensors, see `add_`."""
    if not isinstance(number, Tensor):
        return list(torch._foreach_add(to, tensors, alpha=number))
    if to[0].is_cpu and _alike(to) and _alike(tensors):  # without a pass for the copy
        return list(torch._foreach_addcmul(to, tensors, [number.to(to[0].dtype)] * len(to)))
    made = [t.clone() for t in to]
    add_(made, tensors, number)
    return made


def _alike(tensors: list[Tensor]) -> bool:
    """Whether all are plain tensors of one device and one type that is not half precision."""
    device, kind = tensors[0].device, tensors[0].dtype
    return kind in _EXACT and all(t.dtype is kind and t.device == device and not spread(t) for t in tensors)


def _computed_in(t: Tensor) -> torch.dtype:
    """The type that a tensor is computed in: a factor can be beyond what half precision holds."""
    return torch.float32 if t.dtype in _HALF else t.dtype


def dot(a: Params, b: Params) -> float:
    """⟨a, b⟩ as a number, over the names of `a` that `b` has too; half-precision entries are summed in float32."""
    xs = [t for name, t in a.items() if name in b]
    ys = xs if a is b else [b[name] for name in a if name in b]
    if xs and spread(xs[0]):
        return float(products(xs, ys))
    return math.fsum(_shares(xs, ys).tolist()) if xs else 0.0


def length(a: Params) -> float:
    """‖a‖₂ over all tensors jointly, as a number."""
    return math.sqrt(dot(a, a)) if a else 0.0


def _shares(xs: list[Tensor], ys: list[Tensor]) -> Float[Tensor, " n"]:
    """Each tensor's share of an inner product, on the device of the first."""
    device = xs[0].device
    if all(x.is_cpu for x in xs):
        return torch.stack([_share(x, y) for x, y in zip(xs, ys, strict=True)])
    if xs is ys:
        norms = torch._foreach_norm([_summable(x) for x in xs])
        return torch.stack([n.to(device) for n in norms]).to(_widest(device)).square()
    pairs = [(_summable(x), _summable(y)) for x, y in zip(xs, ys, strict=True)]
    return torch.stack([torch.sum(x * y, dtype=_widest(x.device)).to(device) for x, y in pairs])


def _share(x: Tensor, y: Tensor) -> Tensor:
    if x.dtype in _EXACT and x.is_contiguous() and x.numel() <= LONGEST_DOT:
        if x is y:
            row = x if x.ndim == 1 else x.view(-1)
            return torch.dot(row, row)
        if y.is_contiguous() and y.dtype is x.dtype:
            return torch.dot(x, y) if x.ndim == 1 else torch.dot(x.view(-1), y.view(-1))
    if x is y and x.dtype not in _HALF:
        size: Tensor = torch.linalg.vector_norm(_summable(x))
        return size.double().square()
    return torch.sum(_summable(x) * _summable(y))


def _summable(t: Tensor) -> Tensor:
    """Entries whose squares can be summed: half precision in float32, complex numbers as pairs."""
    return t.float() if t.dtype in _HALF else real(t)


def wide(number: Tensor) -> Tensor:
    """A number in float64, where its device has that."""
    return number.to(_widest(number.device))


def _widest(device: torch.device) -> torch.dtype:
    """The type in which numbers of whole models are kept."""
    return torch.float32 if device.type == "mps" else torch.float64


def _added(shares: Float[Tensor, " n"]) -> Tensor:
    """The sum of a few numbers in float64.

    Those that fill float64 are cut at the last bit of twice the sum of their sizes: the upper parts then add up
    exactly, and the rest is so small that one rounding is left (Rump, Ogita, Oishi 2008), as with `math.fsum`.
    """
    if shares.dtype is not torch.float64:
        return shares.sum(dtype=_widest(shares.device))
    far = 2 * shares.abs().sum()
    upper = (far + shares) - far
    return upper.sum() + (shares - upper).sum()


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
