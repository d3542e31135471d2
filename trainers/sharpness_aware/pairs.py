"""Complex tensors as pairs of real numbers: in this form every method treats them as the weights that they are."""

import torch
from torch import Tensor


def real(t: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers, shape (..., 2), in the same memory; others as they are."""
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


def as_gradient(g: Tensor, p: Tensor) -> Tensor:
    """A gradient in the form in which it is kept beside its parameter: the reverse of `real`."""
    return torch.view_as_complex(g.contiguous()) if p.is_complex() and not g.is_complex() else g
