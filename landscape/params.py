"""Parameters as a dict of tensors, and the few vector operations that everything else is written in.

`torch.func` and safetensors speak dicts; linear algebra speaks vectors. `flatten` and `unflatten` join the two. The
order of a vector is always the order of `names`, which is a model's `named_parameters()` order, never that of a file.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Params = dict[str, Tensor]


def flatten(theta: Params, names: Sequence[str] | None = None) -> Float[Tensor, " p"]:
    """Concatenate the parameters, in the order of `names`, into one vector of length p."""
    return torch.cat([theta[name].reshape(-1) for name in (theta if names is None else names)])


def unflatten(vector: Float[Tensor, " p"], like: Params) -> Params:
    """Cut a vector of length p into tensors of the shapes, and in the key order, of `like`.

    Raises:
        ValueError: If the vector's length is not the number of entries of `like`.
    """
    sizes = [t.numel() for t in like.values()]
    if vector.numel() != sum(sizes):
        raise ValueError(f"`vector` must have {sum(sizes)} entries, one per parameter, got {vector.numel()}.")
    return {name: part.view_as(t) for (name, t), part in zip(like.items(), vector.split(sizes), strict=True)}


def inner(a: Params, b: Params) -> Tensor:
    """The inner product ⟨a, b⟩ over all tensors jointly."""
    return torch.stack([torch.sum(a[name] * b[name]) for name in a]).sum()


def norm(a: Params, p: float = 2.0) -> Tensor:
    """The p-norm over all tensors jointly, `inf` included; half-precision entries are summed in float32."""
    parts = torch._foreach_norm([t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in a.values()], p)
    total: Tensor = torch.linalg.vector_norm(torch.stack(parts), p)
    return total
