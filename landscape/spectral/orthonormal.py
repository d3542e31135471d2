"""Orthonormal vectors kept as rows in several tensors, and joined by others in the place where those lie."""

from collections.abc import Sequence

import torch
from torch import Tensor

from landscape.spectral.regions import Array, small

ROWS = 2**13  # entries of each vector in one factorisation


def along(Q: Sequence[Tensor], w: Tensor) -> Tensor:
    """Qᵀw, for Q's columns as rows of tensors of shape (k_i, p), and w of shape (p, n)."""
    return torch.cat([rows @ w for rows in Q]) if Q else w.new_zeros(0, w.shape[1])


def subtract(Q: Sequence[Tensor], w: Tensor, inner: Tensor | None = None) -> Tensor:
    """(I - QQᵀ)w in the place of w, or w - Q `inner`."""
    inner = along(Q, w) if inner is None else inner
    for rows, part in zip(Q, inner.split([len(rows) for rows in Q]), strict=True):
        w.addmm_(rows.T, part, alpha=-1)
    return w


def join(Q: Sequence[Tensor], rows: Tensor) -> tuple[Array, Array]:
    """Make rows into orthonormal ones F beside Q, in their place, with image = Q `above` + F `corner` as columns."""
    w = rows.T
    first, second = along(Q, w), None
    subtract(Q, w, first)
    second = along(Q, w)
    subtract(Q, w, second)
    corner = orthonormalise(rows)
    if not Q:
        return small(first), small(corner)
    third = along(Q, w)  # where the images add nothing, F is rounding and need not be orthogonal to Q
    subtract(Q, w, third)
    turn = orthonormalise(rows)
    return small(first + second + third @ corner), small(turn @ corner)


def orthonormalise(rows: Tensor) -> Tensor:
    """Replace m rows of length p >= m by orthonormal ones, and return R, of shape (m, m): old rowsᵀ = new rowsᵀ R.

    Householder factorisations of pieces of the rows, then of the triangles that they leave, so that no second set of
    vectors is needed.

    Source:
        Demmel, Grigori, Hoemmen and Langou (2012), SIAM J. Sci. Comput. 34(1).
    """
    m, p = rows.shape
    parts = rows.tensor_split(max(1, p // max(ROWS, m)), dim=1)
    tops = []
    for part in parts:
        q, top = torch.linalg.qr(part.T)
        part.copy_(q.T)
        tops.append(top)
    corner: Tensor = tops[0]
    if len(parts) == 1:
        return corner
    q, corner = torch.linalg.qr(torch.cat(tops))
    for part, turn in zip(parts, q.split(m), strict=True):
        part.copy_(turn.T @ part)
    return corner
