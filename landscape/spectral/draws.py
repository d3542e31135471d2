"""Random and unit vectors and their images, as many at once as little memory allows."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor

from landscape.memory import require
from landscape.operators.protocol import SymmetricOperator, beside_product
from landscape.spectral.krylov import working_dtype
from landscape.spectral.regions import WHOLE, pieces

Again = Callable[[], Iterator[Tensor]]

BLOCK = 16  # vectors multiplied at once, at most
BLOCK_BYTES = 4 * 2**20  # what long ones may occupy, where one alone does not exceed it


def width(A: SymmetricOperator) -> int:
    """How many vectors to multiply at once: long ones gain nothing from each other, and each has images and copies."""
    if A.shape[0] <= WHOLE:
        return BLOCK
    return max(1, min(BLOCK, BLOCK_BYTES // (A.shape[0] * working_dtype(A.dtype).itemsize)))


def widths(A: SymmetricOperator, count: int) -> Iterator[slice]:
    """Slices that divide so many vectors into as many as are multiplied at once."""
    w = width(A)
    return (slice(a, min(a + w, count)) for a in range(0, count, w))


def require_vectors(A: SymmetricOperator, stored: float, blocks: float, *, what: str, instead: str) -> None:
    """Refuse what does not fit before anything is drawn: stored vectors, and blocks of those multiplied at once.

    What a product takes beside its result is added, as far as the operator says so.

    Raises:
        MemoryError: If they need more than is free.
    """
    p, w = A.shape[0], width(A)
    vectors = stored + blocks * w + beside_product(A, w)
    require(
        round(vectors * p * working_dtype(A.dtype).itemsize),
        A.device,
        what=f"{what} with {vectors:.0f} vectors of {p} entries",
        instead=instead,
    )


def images(A: SymmetricOperator, block: Tensor) -> Tensor:
    """A times a block of vectors, checked.

    Raises:
        ValueError: If the product is not finite.
    """
    image = (A @ block.to(A.dtype)).to(working_dtype(A.dtype))
    low, high = image.aminmax()  # no tensor of truth values; a NaN passes through both
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("`A` gave a product that is not finite: the loss diverges, or overflows, at this point.")
    return image


def unit_images(A: SymmetricOperator) -> Iterator[tuple[int, Tensor]]:
    """Pairs (i, A E), where E holds the columns of the identity from the i-th on."""
    p = A.shape[0]
    for part in widths(A, p):
        block = torch.zeros(p, part.stop - part.start, dtype=working_dtype(A.dtype), device=A.device)
        block[part].fill_diagonal_(1)
        yield part.start, images(A, block)


def signs(A: SymmetricOperator, count: int, generator: Generator) -> Tensor:
    """Rademacher vectors as columns, of shape (p, count); the numbers drawn do not depend on how they are cut up.

    They are those of `torch.randint(0, 2, (count, p))`, which takes one 32-bit number for each, whatever the dtype.
    (On CUDA, whose generators count in other steps, they do depend on the cut.)
    """
    drawn = torch.empty(count, A.shape[0], dtype=working_dtype(A.dtype), device=generator.device)
    drawn.random_(0, 2, generator=generator)
    torch.add(drawn.new_tensor(-1.0), drawn, alpha=2, out=drawn)
    return drawn.to(A.device).T.contiguous()


def sign_images(A: SymmetricOperator, draws: int, generator: Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs (Z, A Z), where the Z are blocks of Rademacher columns."""
    for part in widths(A, draws):
        block = signs(A, part.stop - part.start, generator)
        image = images(A, block)
        yield block, image
        del block, image  # before the next are made


def on_sphere(A: SymmetricOperator, count: int, generator: Generator) -> tuple[Tensor, Again]:
    """Uniform vectors on the sphere of radius √p as rows, and a function that draws them again instead of storing them.

    It gives them a piece of the entries at a time.
    """
    p, state, device = A.shape[0], generator.get_state(), generator.device
    rows = torch.empty(count, p, dtype=working_dtype(A.dtype), device=A.device)

    def normal(source: Generator) -> Iterator[tuple[slice, Tensor]]:
        for piece in pieces(p):
            shape = (count, piece.stop - piece.start)
            yield piece, torch.randn(shape, generator=source, dtype=rows.dtype, device=device).to(A.device)

    for piece, drawn in normal(generator):
        rows[:, piece] = drawn
    scale = math.sqrt(p) / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    rows.mul_(scale)

    def again() -> Iterator[Tensor]:
        source = Generator(device=device)
        source.set_state(state)
        return (drawn.mul_(scale) for _, drawn in normal(source))

    return rows, again
