"""Diagonal and Frobenius norm of a symmetric operator from few products, with standard errors."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from landscape.estimate import Estimate
from landscape.operators.protocol import SymmetricOperator
from landscape.progress import Progress
from landscape.spectral.probes import (
    Blocks,
    Goal,
    Sample,
    check_blocks,
    check_draws,
    finish,
    sign_images,
    sums,
    unit_images,
)


@dataclass(frozen=True, eq=False)
class Diagonal:
    """An estimate of a diagonal.

    Attributes:
        value: The estimate, of shape (p,).
        stderr: Standard errors, of shape (p,); zeros for exact values.
        draws: Number of random vectors.
        products: Operator products spent.
    """

    value: Float[Tensor, " p"]
    stderr: Float[Tensor, " p"]
    draws: int
    products: int


def diagonal(A: SymmetricOperator, *, draws: int = 64, generator: Generator) -> Diagonal:
    p = A.shape[0]
    if draws >= p:
        value = torch.cat([a[i:].diagonal() for i, a in unit_images(A)])
        return Diagonal(value, torch.zeros_like(value), p, p)
    check_draws(draws)
    mean = torch.zeros(p, dtype=torch.float64, device=A.device)
    squares = torch.zeros_like(mean)
    count = 0
    for z, a in sign_images(A, draws, generator):
        for term in (z * a).T.double():  # Welford's update, one draw at a time
            count += 1
            step = term - mean
            mean += step / count
            squares += step * (term - mean)
    stderr = (squares / (count - 1) / count).sqrt()
    return Diagonal(mean.to(A.dtype), stderr.to(A.dtype), count, count)


def frobenius_squared(A: SymmetricOperator, *, draws: int = 64, generator: Generator) -> Estimate:
    p = A.shape[0]
    if draws >= p:
        return Estimate(
            math.fsum(float(a.double().square().sum()) for _, a in unit_images(A)), 0.0, p, p, True, "exact"
        )
    check_draws(draws)
    values: list[float] = []
    for _, a in sign_images(A, draws, generator):
        values += a.double().square().sum(0).tolist()
    return Sample(np.array([values]), draws, "hutchinson").estimate({}, True)
