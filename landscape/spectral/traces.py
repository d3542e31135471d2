"""The trace of a symmetric operator, whole and block by block, from few products, with standard errors."""

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Generator

from landscape.checks.arguments import check_arguments
from landscape.estimate import Estimate
from landscape.operators.protocol import SymmetricOperator
from landscape.precision import in_own_precision
from landscape.progress import Progress
from landscape.randomness import source_of
from landscape.spectral.deflation import deflated
from landscape.spectral.draws import unit_images
from landscape.spectral.probes import Goal, Sample, check_draws, finish, probed
from landscape.spectral.regions import Array, Blocks, Regions, check_blocks, small
from landscape.spectral.sketches import hutch_plus_plus, xnystrace, xtrace
from landscape.spectral.subspace import Subspace

Method = Literal["auto", "hutchinson", "hutch++", "xtrace", "xnystrace", "exact"]

SKETCHES = {"hutch++": (hutch_plus_plus, 6), "xtrace": (xtrace, 4), "xnystrace": (xnystrace, 2)}  # and fewest draws


@in_own_precision
def trace(
    A: SymmetricOperator,
    *,
    method: Method = "auto",
    draws: int | None = None,
    tol: float | None = None,
    atol: float = 0.0,
    blocks: Blocks | None = None,
    known: Subspace | None = None,
    progress: Progress = False,
    generator: Generator | None = None,
) -> Estimate:
    """Estimate tr(A) from products with random vectors.

    - "hutchinson": the mean of zᵀAz over Rademacher vectors z; variance 2 (‖A‖²_F - Σ_i a_ii²) / draws.
    - "auto": Hutchinson's estimator on what is left of A beside a Krylov space, tr(QᵀAQ) + E[uᵀAu] with
      u = (I - QQᵀ)z. It starts with 10 probes z. Then each product is a probe or a Lanczos step, whichever promises the
      smaller error; the probes' terms follow Q at no product. Where outliers carry the matrix, as in a Hessian, it
      takes a fraction of Hutchinson's products; where nothing is to be gained, a few per cent more.
    - "hutch++": a third of the draws each for the images of random vectors, products with a basis Q of these, and
      probes of what is left.
    - "xtrace": draws/2 images and as many products with their basis; each vector is also a probe of what is left
      beside the basis of the others' images.
    - "xnystrace": the same idea with Nyström's approximation, for positive semidefinite A: every draw is an image.
    - "exact": p products with unit vectors.

    Args:
        A: Symmetric operator of shape (p, p).
        method: See above. Without a tolerance, and with draws >= p, all but "hutchinson" are replaced by "exact".
        draws: Largest number of products; None means 64, or 2000 with a tolerance.
        tol: Stop once the standard error is at most tol · |value| + atol, and never on the change of the mean
            ("hutchinson" and "auto": after 10 probes at the earliest). None, with `atol` 0, spends all draws.
        atol: See `tol`; in units of A's entries.
        blocks: Names of blocks of rows, each a slice or a tensor of indices, such as an operator's `layers`: the
            traces of these diagonal blocks are estimated from the same products. They add up to the whole if the
            blocks divide it.
        known: A subspace whose products with A are there already, such as `top_eigenpairs` keeps; "auto" then draws
            probes of what is left beside it, at no product for the subspace. None starts from nothing.
        progress: A function that is called with each `Status`, see `analysis.shown`; its residual is the relative
            standard error.
        generator: Source of all randomness; None means a fresh one from seed 0.

    Returns:
        The estimate, in units of A's entries, its blocks in `parts`. If a tolerance was not reached, or the work was
        interrupted from the keyboard, it is the best known, `converged` is False and there is a RuntimeWarning.
        Standard errors are enlarged where they would be too small: the terms of
        "xtrace" and "xnystrace" depend on each other, so their standard errors are enlarged by 1.5 and 4; that of
        "hutch++" by 1.15 for few skewed terms; those of a run that stops by itself by √(1 + 3/draws).

    Raises:
        ValueError: If an argument is out of range, a product is not finite, or A is seen not to be positive
            semidefinite by "xnystrace".
        MemoryError: If the vectors that a method stores do not fit in what is free ("auto" does with what fits). Of
            draws products, "hutch++" stores a third, "xtrace" half (with blocks all) and "xnystrace" all;
            with a tolerance they store what a stage needs, and stop where a later stage does not fit.

    Source:
        Hutchinson (1989), Commun. Stat. Simul. Comput. 18(3); its variance: Avron and Toledo (2011), J. ACM 58(2);
        Meyer, Musco, Musco and Woodruff (2021), SOSA, for Hutch++; Epperly, Tropp and Webber (2024), SIAM J. Matrix
        Anal. Appl. 45(1), for XTrace and XNysTrace, with vectors on the sphere; "auto" is our definition, after Chen
        and Hallman (2023), SIAM J. Matrix Anal. Appl. 44(3).
    """
    check_arguments(A=A, draws=draws, tol=tol, atol=atol)
    generator = source_of(generator, A.device)
    p = A.shape[0]
    if method not in ("auto", "hutchinson", "exact", *SKETCHES):
        raise ValueError(
            f"`method` must be 'auto', 'hutchinson', 'hutch++', 'xtrace', 'xnystrace' or 'exact', got {method!r}."
        )
    goal = Goal.of(tol, atol, draws)
    draws = goal.draws
    named = check_blocks(blocks, p)
    regions = Regions(p, list(named.values()))
    samples: Iterator[Sample]
    if method == "exact" or (goal.open and draws >= p and method != "hutchinson"):
        goal = Goal(0.0, 0.0, p)
        samples = _exact(A, regions)
    elif method == "hutchinson":
        check_draws(draws)
        samples = probed(A, goal, regions, torch.mul, generator)
    elif method == "auto":
        if known is not None and known.rows.shape[1] != p:
            raise ValueError(f"`known` is a subspace of {known.rows.shape[1]} entries, and A has {p}: give A's own.")
        check_draws(draws)
        samples = deflated(A, goal, regions, generator, known)
    else:
        estimator, fewest = SKETCHES[method]
        if draws < fewest:
            raise ValueError(f"`draws` must be at least {fewest} for method={method!r}, got {draws}.")
        samples = estimator(A, goal, regions, generator)
    return finish(samples, goal, named, work="trace", progress=progress)


def _exact(A: SymmetricOperator, regions: Regions) -> Iterator[Sample]:
    """The sum of the diagonal, by p products; a sample only at the end, because a part of it says nothing."""
    diagonal: list[Array] = [small(image[start:].diagonal()) for start, image in unit_images(A)]
    d = np.concatenate(diagonal)
    pieces = [d, *(d[r if isinstance(r, slice) else r.cpu().numpy()] for r in regions.blocks)]
    yield Sample(np.array([[math.fsum(piece)] for piece in pieces]), len(d), "exact", exact=True)
