"""Extreme eigenpairs by block Lanczos iteration with full reorthogonalisation, thick restarts and residuals."""

import math
import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from landscape.checks.arguments import check_arguments
from landscape.memory import free_bytes, require
from landscape.operators.protocol import SymmetricOperator
from landscape.precision import in_own_precision
from landscape.progress import Progress, watching
from landscape.randomness import source_of
from landscape.showing import html_table
from landscape.spectral.basis import loses_digits
from landscape.spectral.extremes import Found, Goal, Which, find, interrupted
from landscape.spectral.krylov import Krylov, images_kept, working_dtype
from landscape.spectral.subspace import Subspace

Store = torch.dtype | torch.device | str | tuple[torch.dtype, torch.device | str]

BASIS_BYTES = 256 * 2**20  # what the default basis may occupy
BASIS_CAP = 300
FREE_SHARE = 0.5  # of the free memory, for a basis that was not asked for


@dataclass(frozen=True, eq=False, repr=False)
class Eigenpairs:
    """Eigenvalues and eigenvectors of a symmetric operator, with what was checked about them.

    Attributes:
        values: Signed eigenvalues, float64 on the CPU, of shape (k,), or (2k,) for "both"; ordered as `which` says.
        vectors: Unit eigenvectors as columns, of shape (p, k) or (p, 2k), in the operator's dtype; signs are
            arbitrary. None if they were not wanted.
        residuals: ‖A v - λ v‖ of each pair. Some eigenvalue lies within it of λ.
        converged: Whether every residual met the tolerance and was verified.
        products: Operator products spent, in vectors, checks included.
        which: Which end of the spectrum they are from.
        verified: Whether a true product is behind the residuals. False after an interrupt: they are then what the
            Lanczos recurrence implies.
        path: How the operator computed its products, where it says so.
        space: The subspace that was searched last, where it was to be kept; for `trace`.
    """

    values: Float[Tensor, " k"]
    vectors: Float[Tensor, "p k"] | None
    residuals: Float[Tensor, " k"]
    converged: bool
    products: int
    which: Which
    verified: bool = True
    path: str = ""
    space: Subspace | None = field(default=None, compare=False)

    def _state(self) -> str:
        state = "converged" if self.converged else "NOT converged" if self.verified else "NOT converged, interrupted"
        return f"{self.which}; {state} after {self.products} products"

    def _repr_html_(self) -> str:
        """A table, for a notebook."""
        pairs = zip(self.values.tolist(), self.residuals.tolist(), strict=True)
        rows = [(i, f"{value:.6g}", f"{residual:.1e}") for i, (value, residual) in enumerate(pairs, start=1)]
        return html_table(rows, head=("", "eigenvalue", "residual"), caption=self._state())

    def __repr__(self) -> str:
        lines = [f"Eigenpairs({self._state()})"]
        pairs = zip(self.values.tolist(), self.residuals.tolist(), strict=True)
        return "\n".join(lines + [f"  {value: .6g}  residual {residual:.1e}" for value, residual in pairs])


@in_own_precision
def top_eigenpairs(
    A: SymmetricOperator,
    k: int = 1,
    *,
    which: Which = "largest",
    tol: float | None = None,
    own_tol: float | None = None,
    max_products: int | None = None,
    basis: int | None = None,
    block: int = 1,
    vectors: bool = True,
    keep: bool = False,
    store: Store | None = None,
    start: Float[Tensor, " p"] | None = None,
    progress: Progress = False,
    generator: Generator | None = None,
) -> Eigenpairs:
    """Find k extreme eigenpairs of a symmetric operator.

    Block Lanczos from random vectors, orthogonalised twice against the whole basis at each step, with Rayleigh-Ritz on
    the projected matrix in float64. It stops on residuals, ‖C s_i‖ <= tol · max|θ| + 20 ε ‖A‖, where C couples the
    basis to the next block, max|θ| is the largest modulus seen anywhere in the spectrum and ε the machine epsilon;
    never on the change of a value. When the basis is full it restarts from the best Ritz vectors.

    Multiple eigenvalues: one of multiplicity m is found m times if m <= `block`. When the Krylov space closes (is
    invariant) the orthogonal complement of what was found is searched from fresh random vectors, until it holds
    nothing more extreme, so all are found there. Else the copies beyond `block` may be missed, as in any Krylov method.

    Check: residuals are measured from the products taken, while these are few (24, in 64 MiB) and kept. After that,
    when the residuals are met, one true product of a random-signed sum of all vectors found is compared with the
    image that the recurrence predicts, and what it is off by is added to every residual (for a single pair the
    residual is measured itself). If that breaks the tolerance, all pairs are multiplied and the search goes on from
    them. So rounding cannot pass for convergence, at a product in all instead of one a pair.

    Ctrl-C during the search returns the best pairs so far, with a warning, `converged` and `verified` False; there
    are fewer than k if fewer are known. Before the first product is complete it is raised as ever. A `progress`
    function that raises KeyboardInterrupt does the same.

    Args:
        A: Symmetric operator of shape (p, p). Vectors are worked on in its dtype, in float32 if that has fewer bits.
        k: Number of pairs; for "both", at each end.
        which: "largest" (algebraic; descending), "smallest" (algebraic; ascending), "magnitude" (largest modulus
            first, signs kept) or "both" (one Krylov space; descending: the k largest, then the k smallest).
        tol: Residual allowed, relative to the largest modulus seen; None means 1e-8 in float64, 1e-3 in float32 and
            3e-2 below.
        own_tol: Residual allowed, relative to each eigenvalue's own modulus, where that is less: for an end of the
            spectrum that is small beside the other. A tenth of `tol` is enough, so that zero is found too; None sets no
            such bound.
        max_products: Bound on products before the final check; None means 300 + 20 for each pair wanted.
        basis: Length of the basis before a restart; memory is basis × p. None means what fits in 256 MiB, from
            max(2k + 20, 30, 10 block) to 300, or less where less is free. For "both", k counts both ends.
        block: Vectors multiplied at once. More than one costs more products for simple eigenvalues, and finds
            clusters and multiplicities; it pays where A multiplies a block for less than its vectors one by one.
        vectors: Whether to return the eigenvectors; without them k × p numbers fewer are held.
        keep: Return the searched space too, if it takes no more than 256 MiB; a trace that is told of it needs fewer
            products.
        store: Dtype and/or device of the basis: "cpu", torch.bfloat16, (torch.bfloat16, "cpu"), ... A device costs
            time and no accuracy. With fewer bits than the work, vectors are rounded when they are put down: residuals
            then stall at about ε_store ‖A‖ (for bfloat16 4e-3 ‖A‖, often less), and the search goes on from the best
            pairs, kept in full and multiplied by A, which costs k products and gains some digits each time. What is
            reported is measured as ever; for 1e-8 with half the bytes of float64, take float32.
        start: Vector that the first space starts from, such as one found at an earlier checkpoint; it is added to a
            random one of the same length, so that no direction is missed. None means the operator's own `guess`: for
            the curvature of a risk its gradient, which lies mostly along the top eigenvectors of a trained network
            and saves a fifth to a third of the products. Without one the start is random.
        progress: A function that is called with each `Status`; its residual is the relative one. See `analysis.shown`.
        generator: Source of the start vectors; None means a fresh one from seed 0.

    Returns:
        The pairs. If they did not converge they are the best found, `converged` is False and there is a warning.

    Raises:
        ValueError: If an argument is out of range, or a product is not finite.
        MemoryError: If the basis does not fit in what is free; nothing is allocated then.

    Source:
        Golub and Underwood (1977), in Mathematical Software III, for blocks; Wu and Simon (2000), SIAM J. Matrix
        Anal. Appl. 22(2), for thick restarts; the check and the search of the complement are our definition.
    """
    check_arguments(A=A, k=k, tol=tol, block=block, basis=basis, max_products=max_products)
    generator = source_of(generator, A.device)
    p = A.shape[0]
    need = 2 * k if which == "both" else k
    if which not in ("largest", "smallest", "magnitude", "both"):
        raise ValueError(f"`which` must be 'largest', 'smallest', 'magnitude' or 'both', got {which!r}.")
    if k < 1 or need > p:
        most = p // 2 if which == "both" else p
        raise ValueError(f"`k` must be between 1 and {most} for p = {p} and which={which!r}, got {k}.")
    if tol is None:
        tol = 1e-8 if A.dtype == torch.float64 else 1e-3 if A.dtype == torch.float32 else 3e-2
    if not tol >= 0:
        raise ValueError(f"`tol` must be a relative residual >= 0, got {tol!r}.")
    if own_tol is not None and not own_tol >= 0:
        raise ValueError(f"`own_tol` must be a relative residual >= 0, got {own_tol!r}.")
    if not 1 <= block <= p:
        raise ValueError(f"`block` must be between 1 and p = {p}, got {block}.")
    if max_products is None:
        max_products = 300 + 20 * need
    if max_products < max(need, block):
        wanted = f"the {need} pairs wanted" if need >= block else f"the {block} of one block"
        raise ValueError(f"`max_products` must be at least {wanted}, got {max_products}.")
    kept = _place(store, A)
    capacity = _capacity(A, basis, need, block, kept, vectors=vectors)
    goal = Goal(k, which, tol, max_products, own_tol)
    with torch.no_grad(), watching(progress, work="top_eigenpairs", most=max_products + need) as tell:
        space = Krylov(A, locked=need, capacity=capacity, block=block, kept=kept, generator=generator)
        try:
            found, cut = find(space, goal, tell, start=_start(space, start), vectors=vectors), False
        except KeyboardInterrupt:
            known = interrupted(space, goal, vectors=vectors)
            if known is None:
                raise
            found, cut = known, True
    return _result(space, goal, found, cut=cut, known=_known(space) if keep and not cut else None)


def _known(space: Krylov) -> Subspace | None:
    """The space as it stands; None where it is too large, put down in fewer bits, or beside locked vectors."""
    count = space.size + space.width
    if space.held or space.basis.lossy or count * space.p * space.work.itemsize > BASIS_BYTES:
        return None
    images = np.concatenate([space.matrix[: space.size, : space.size], space.coupling])
    return Subspace(space.basis.get(0, count).clone(), images)


def _start(space: Krylov, start: Tensor | None) -> Tensor | None:
    """Random vectors, the first of them added to the given one or the operator's guess, both of unit length."""
    if start is None:
        guess = getattr(space.A, "guess", None)
        start = None if guess is None else guess()
        if start is None or not 0 < float(torch.linalg.vector_norm(start.double())) < math.inf:
            return None
    length = float(torch.linalg.vector_norm(start.double())) if start.shape == (space.p,) else math.nan
    if not 0 < length < math.inf:
        raise ValueError(
            f"`start` must be a finite vector of shape ({space.p},) that is not zero, got shape {tuple(start.shape)}."
        )
    rows = space.random_rows().to(space.A.device)
    rows[0] /= torch.linalg.vector_norm(rows[0])
    wanted = (start.double() / length).to(rows)
    rows[0] += wanted
    if not bool(rows[0].any()):  # opposite to each other, as half of all are where p is 1
        rows[0] = wanted
    return rows


def _place(store: Store | None, A: SymmetricOperator) -> tuple[torch.dtype, torch.device]:
    """The dtype and device of the basis."""
    dtype, device = working_dtype(A.dtype), torch.device(A.device)
    for part in store if isinstance(store, tuple) else () if store is None else (store,):
        if isinstance(part, torch.dtype):
            dtype = part
            continue
        try:
            device = torch.device(part)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"`store` must be a dtype, a device or a pair of both, got {store!r}.") from error
    if not dtype.is_floating_point or dtype.itemsize < 2:
        raise ValueError(
            f"`store` must have a floating-point dtype of 16 bits or more, such as bfloat16, got {store!r}."
        )
    return dtype, device


def _capacity(
    A: SymmetricOperator,
    basis: int | None,
    need: int,
    block: int,
    kept: tuple[torch.dtype, torch.device],
    *,
    vectors: bool,
) -> int:
    """The length of the basis, checked against what is free."""
    p, (dtype, device) = A.shape[0], kept
    least = min(p, need + 2 * block)
    if basis is not None and basis < least:
        raise ValueError(f"`basis` must be at least {least} for {need} pairs, got {basis}.")
    row, full_row = p * dtype.itemsize, p * working_dtype(A.dtype).itemsize
    lossy = loses_digits(dtype, working_dtype(A.dtype))
    # beside the basis: the vectors that are returned, those kept in full, and the blocks of one step
    kept_images = images_kept(p, working_dtype(A.dtype))
    beside = full_row * ((need if vectors else 1) + (need if lossy else 0) + 3 * block + 1 + kept_images)
    extra = row * (block + (0 if lossy else need))
    home = torch.device(A.device)
    if basis is None:
        good = max(2 * need + 20, 30, 10 * block)
        free = FREE_SHARE * free_bytes(device) - extra - (beside if device.type == home.type else 0)
        basis = max(least, min(max(good, min(BASIS_CAP, BASIS_BYTES // row)), int(free // row)))
    basis = min(basis, p)
    instead = (
        f"lower `basis` (at least {least}), keep it in fewer bytes or elsewhere by `store` (torch.bfloat16, 'cpu'), "
        "or take fewer of the model's parameters by the operator's `parameters`"
    )
    what = f"A Krylov basis of {basis} vectors of length {p}"
    if device.type == home.type:
        require(basis * row + extra + beside, device, what=what, instead=instead)
    else:
        require(basis * row + extra, device, what=what, instead=instead)
        require(beside, home, what=f"What goes with {what[0].lower()}{what[1:]}", instead=instead)
    return basis


def _result(space: Krylov, goal: Goal, found: Found, *, cut: bool, known: Subspace | None) -> Eigenpairs:
    """Put the pairs together, with a warning if they did not converge."""
    values, residuals = torch.from_numpy(found.values).double(), torch.from_numpy(found.residuals).double()
    allowed, products = torch.from_numpy(goal.allowed(space, found.values)), space.products
    converged = found.verified and not cut and bool((residuals <= allowed).all())
    worst = int((residuals / allowed).argmax())
    if cut:
        warnings.warn(
            f"top_eigenpairs was interrupted after {products} products: these are the best {len(values)} of "
            f"{goal.count} pairs so far, with residuals up to {float(residuals.max()):.2g} by estimate.",
            RuntimeWarning,
            stacklevel=4,
        )
    elif not converged:
        warnings.warn(
            f"top_eigenpairs did not reach a residual of {float(allowed[worst]):.2g} (largest: "
            f"{float(residuals[worst]):.2g}) in {products} products: raise `max_products` or `basis`, or "
            f"allow a larger `{'tol' if goal.own is None else 'own_tol'}`.",
            RuntimeWarning,
            stacklevel=4,
        )
    vectors = None if found.vectors is None else found.vectors.to(space.A.dtype).T
    return Eigenpairs(
        values, vectors, residuals, converged, products, goal.which, found.verified, getattr(space.A, "path", ""), known
    )
