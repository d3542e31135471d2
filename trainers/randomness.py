"""Seeds: one number in, independent streams out; torch's global state borrowed and given back."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator


def derive(seed: int, purpose: str) -> int:
    """A seed in [0, 2^63) for one purpose: the first 63 bits of SHA-256 of `<seed>:<purpose>`.

    Streams of different purposes are unrelated, so that switching one source of randomness on never moves another.

    Raises:
        ValueError: If `seed` is not an integer.
    """
    check_seed(seed)
    return int.from_bytes(hashlib.sha256(f"{seed}:{purpose}".encode()).digest()[:8], "big") >> 1


def stream(seed: int, purpose: str) -> Generator:
    """A fresh generator on the CPU for one purpose, seeded with `derive(seed, purpose)`."""
    return Generator().manual_seed(derive(seed, purpose))


def check_seed(seed: int, name: str = "seed") -> None:
    """Raise a ValueError unless `seed` is an integer in [0, 2^63); True and False are not."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ValueError(f"`{name}` must be an integer in [0, 2^63), got {seed!r}.")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block on torch's global random state as seeded with `seed`; the caller's state is back on exit.

    Covers the CPU and, where there is CUDA, every CUDA device. Nests, and restores after an exception too. Meant for
    code that draws from the global state and takes no generator: initialisation of layers, dropout.

    Raises:
        ValueError: If `seed` is not an integer in [0, 2^63).
    """
    check_seed(seed)
    cuda = torch.cuda.is_available()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed_all(seed)
        yield
