"""Distributions that the values of a random search are drawn from."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from landscape.naming import nearest


class Distribution(Protocol):
    """Something that values of one configuration key are drawn from."""

    @property
    def size(self) -> int | None:
        """Number of different values; None where there is no end of them."""

    def draw(self, generator: np.random.Generator) -> Any:
        """One value, in a type that JSON knows."""


@dataclass(frozen=True)
class Uniform:
    """Numbers in [low, high], all equally likely; of `log`, their logarithms are."""

    low: float
    high: float
    log: bool = False

    @property
    def size(self) -> None:
        """Without end."""
        return

    def draw(self, generator: np.random.Generator) -> float:
        """A number in [low, high]."""
        if not self.log:
            return float(generator.uniform(self.low, self.high))
        value = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        return min(max(value, self.low), self.high)  # exp(log(x)) may pass x by a rounding


@dataclass(frozen=True)
class Integers:
    """Whole numbers from low to high, both included; of `log`, n has the weight of [n - 1/2, n + 1/2] in log scale."""

    low: int
    high: int
    log: bool = False

    @property
    def size(self) -> int:
        """How many there are."""
        return self.high - self.low + 1

    def draw(self, generator: np.random.Generator) -> int:
        """A whole number."""
        if not self.log:
            return int(generator.integers(self.low, self.high, endpoint=True))
        value = math.exp(generator.uniform(math.log(self.low - 0.5), math.log(self.high + 0.5)))
        return min(max(round(value), self.low), self.high)


@dataclass(frozen=True)
class Choice:
    """One of a list, all equally likely; a value named twice is twice as likely."""

    values: tuple[Any, ...]

    @property
    def size(self) -> int:
        """How many there are at most."""
        return len(self.values)

    def draw(self, generator: np.random.Generator) -> Any:
        """One of the values, as it was given."""
        return self.values[int(generator.integers(len(self.values)))]


EXAMPLES = {
    "uniform": "[0.8, 0.99]",
    "log_uniform": "[0.001, 1.0]",
    "integers": "[1, 4]",
    "log_integers": "[16, 256]",
    "choice": "[20, 50]",
}
"""The names of the distributions in a study file, each with an example of what follows it."""


def distribution(key: str, given: Any) -> Distribution:
    """A distribution from a mapping of one entry, such as {log_uniform: [0.001, 1.0]}.

    Args:
        key: The configuration key that is drawn, for messages.
        given: Name of the distribution to its bounds (both included), or for `choice` its values.

    Raises:
        ValueError: For an unknown name, bounds that are not in order, or an empty choice.
    """
    if not isinstance(given, Mapping) or len(given) != 1:
        raise ValueError(
            f"`{key}` needs one distribution to be drawn from, such as {_example('log_uniform')}, got {given!r}."
        )
    name, what = next(iter(given.items()))
    if name not in EXAMPLES:
        raise ValueError(
            f"`{key}` has no distribution {name!r}; there are {sorted(EXAMPLES)}.{nearest(str(name), EXAMPLES)}"
        )
    if not isinstance(what, Sequence) or isinstance(what, str):
        raise ValueError(f"`{key}`: `{name}` needs a list, such as {_example(name)}, got {what!r}.")
    if name == "choice":
        if not what:
            raise ValueError(f"`{key}`: `choice` needs at least one value, got {what!r}.")
        return Choice(tuple(what))
    low, high = _bounds(key, name, what)
    log = name.startswith("log_")
    if not name.endswith("integers"):
        return Uniform(low, high, log)
    if max(-low, high) >= 2**63:
        raise ValueError(f"`{key}`: `{name}` needs whole numbers below 2^63, got {list(what)!r}.")
    if low != int(low) or high != int(high):
        raise ValueError(f"`{key}`: `{name}` needs whole numbers, such as {_example(name)}, got {list(what)!r}.")
    return Integers(int(low), int(high), log)


def _bounds(key: str, name: str, what: Sequence[Any]) -> tuple[float, float]:
    try:  # YAML reads 1e-3, without a point, as text
        low, high = (math.nan if isinstance(bound, bool) else float(bound) for bound in what)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            f"`{key}`: `{name}` needs two numbers, the smaller one first, such as {_example(name)}, got {list(what)!r}."
        )
    if name.startswith("log_") and low <= 0:
        raise ValueError(
            f"`{key}`: `{name}` needs bounds above 0, such as {_example(name)}, got {list(what)!r}; "
            f"`{name.removeprefix('log_')}` takes any."
        )
    return low, high


def _example(name: str) -> str:
    return f"{{{name}: {EXAMPLES[name]}}}"
