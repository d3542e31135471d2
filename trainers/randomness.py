"""Seeds: one number in, independent streams out; torch's global state borrowed and given back."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Generator, Tensor


def derive(seed: int, purpose: str) -> int:
    """A seed in [0, 2^63) for one purpose: the first 63 bits of SHA-256 of `<seed>:<purpose>`.

    Streams of different purposes are unrelated, so that switching one source of randomness on never moves another.

    Raises:
        ValueError: If `seed` is not an integer.
    """
    check_seed(seed)
    return int.from_bytes(hashlib.sha256(f"{seed}:{purpose}".encode()).digest()[:8], "big") >> 1


def stream(seed: int, purpose: str, device: torch.device | str = "cpu") -> Generator:
    """A fresh generator for one purpose, seeded with `derive(seed, purpose)`; kinds of devices draw other numbers."""
    return Generator(device).manual_seed(derive(seed, purpose))


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


@dataclass(frozen=True)
class ExampleDraws:
    """Random numbers of many examples at once, each decided by (key, example) alone.

    Draw j of example i is output number 8 i + j of the generator SplitMix64 that starts at the key, so that neither the
    batch nor the device matters, and no table of numbers is kept.

    Attributes:
        key: Such as `derive` gives.
        examples: Which (k,), int64, on the device of the draws.

    Source:
        Steele, Lea and Flood (2014), "Fast splittable pseudorandom number generators", OOPSLA.
    """

    key: int
    examples: Int[Tensor, " k"]

    def below(self, bound: int, draw: int) -> Int[Tensor, " k"]:
        """Whole numbers in [0, bound), uniform up to bound / 2^31, as draw number `draw` in 0..7 of each example."""
        state = (self.examples * 8 + draw + 1) * _signed(0x9E3779B97F4A7C15) + _signed(self.key)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = (state ^ _shifted(state, shift)) * _signed(factor)
        return (_shifted(state ^ _shifted(state, 31), 33) * bound) >> 31


def _signed(value: int) -> int:
    """A number of 64 bits as int64 holds it."""
    return value - 2**64 if value >= 2**63 else value


def _shifted(state: Tensor, by: int) -> Tensor:
    """int64 shifted to the right as if it had no sign."""
    return (state >> by) & ((1 << (64 - by)) - 1)
