"""Dense symmetric matrices whose eigenvalues are known."""

import torch
from problems import F64


def laplacian(n: int = 100) -> torch.Tensor:
    """2 on the diagonal and -1 beside it: eigenvalues 2 - 2 cos(πk / (n + 1))."""
    off = torch.ones(n - 1, dtype=F64)
    return 2 * torch.eye(n, dtype=F64) - torch.diag(off, 1) - torch.diag(off, -1)


def with_spectrum(values, generator) -> torch.Tensor:
    """These eigenvalues, and eigenvectors drawn at random."""
    values = torch.as_tensor(values, dtype=F64)
    Q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=F64))
    return Q @ torch.diag(values) @ Q.T
