"""Checks of measures' options that no function of the mathematics makes, with messages that name the option."""

import math
from collections.abc import Sequence
from typing import Any


def check_some(name: str, values: Sequence[Any]) -> None:
    """Raise a ValueError for an option that lists nothing: it would leave no row, and so no trace.

    Args:
        name: The option.
        values: What it lists.
    """
    if not values:
        raise ValueError(f"`{name}` is empty: give at least one value, or leave the measure out.")


def check_count(name: str, value: int | None) -> None:
    """Raise a ValueError for a number of examples, blocks or draws below 1; None is let through.

    Args:
        name: The option.
        value: Its value.
    """
    if value is not None and value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value!r}.")


def check_block_size(m: int | None) -> None:
    """Raise a ValueError for blocks of less than one example; None, all examples together, is let through.

    Args:
        m: Examples in a block.
    """
    if m is not None and m < 1:
        raise ValueError(f"`m` must be at least 1 example a block, or None for all together, got {m!r}.")


def check_share(name: str, value: float) -> None:
    """Raise a ValueError unless a value is at least 0 and below 1 (NaN is not).

    Args:
        name: The option.
        value: Its value.
    """
    if not 0 <= value < 1:
        raise ValueError(f"`{name}` must be at least 0 and below 1, got {value!r}.")


def check_tolerance(name: str, value: float) -> None:
    """Raise a ValueError unless a relative tolerance is finite and above 0.

    Args:
        name: The option.
        value: Its value.
    """
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` must be a finite tolerance above 0, got {value!r}.")
