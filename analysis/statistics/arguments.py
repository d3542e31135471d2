"""Arguments of statistics, checked before anything is computed, in words that say what to write instead."""

import math
from collections.abc import Collection, Iterable, Sequence
from numbers import Integral, Real
from typing import Any

from landscape.naming import nearest

MOST = 1_000_000  # resamples or permutations: more would not fit in memory


def otherwise(name: str, choices: Collection[str]) -> str:
    """The end of a message about an unknown name: what was meant, or what there is."""
    return nearest(name, choices) or f" There are {sorted(set(choices))[:20]}."


def one_of(argument: str, value: object, choices: Collection[str]) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        ValueError: Naming them.
    """
    if not isinstance(value, str) or value not in choices:
        close = nearest(value, choices) if isinstance(value, str) else ""
        raise ValueError(f"`{argument}` must be one of {tuple(choices)}, got {value!r}.{close}")


def whole_number(argument: str, value: Any, meaning: str = "", *, most: float = math.inf) -> None:
    """Refuse what is no whole number from 0 to `most`.

    Raises:
        ValueError: Naming the argument, what it means, and the value.
    """
    if isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) <= most:
        return
    upto = f" and <= {most:,}" if math.isfinite(most) and isinstance(value, Integral) and int(value) > most else ""
    raise ValueError(f"`{argument}` must be a whole number{meaning and f' {meaning}'} >= 0{upto}, got {value!r}.")


def check_resampling(*, draws: Any, level: Any) -> None:
    """Refuse a number of resamples that is none, and a level outside (0, 1).

    Raises:
        ValueError: If either is out of range.
    """
    whole_number("draws", draws, "of resamples (0 for no intervals)", most=MOST)
    if not isinstance(level, Real) or not 0 < float(level) < 1:
        raise ValueError(f"`level` must lie inside (0, 1), for example 0.95, got {level!r}.")


def names(argument: str, value: Any) -> None:
    """Refuse what is no list of names.

    Raises:
        ValueError: Showing how to write it.
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(name, str) for name in value):
        shown = [value] if isinstance(value, str) else ["test_error"]
        raise ValueError(f"`{argument}` must be a list of names, such as {shown}, got {value!r}.")


def pairs(argument: str, value: Any) -> None:
    """Refuse what is no list of pairs of names.

    Raises:
        ValueError: Showing how to write it.
    """
    listed = isinstance(value, Iterable) and not isinstance(value, str)
    if not listed or not all(_is_pair(each) for each in value):
        raise ValueError(f"`{argument}` must be a list of pairs of names, such as [('a', 'b')], got {value!r}.")


def _is_pair(value: Any) -> bool:
    sequence = isinstance(value, Sequence) and not isinstance(value, str)
    return sequence and len(value) == 2 and all(isinstance(name, str) for name in value)
