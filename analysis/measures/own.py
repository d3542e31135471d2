"""A measure of one's own: a function of a checkpoint, named as module:function."""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any, get_args

import numpy as np
from torch import Tensor

from analysis.measures.measure import Family, Measure, Rows
from analysis.measures.needs import Need
from analysis.table import Row
from landscape.estimate import Estimate
from trainers.options import require_typed
from trainers.reference import call, load_reference, source_digest

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
SCORES = re.compile(r"(train|validation|test|gap|ood)_.*")  # what rows of scores are called, which others may not be


def measure(
    *, family: Family = "diagnostic", sign: int = 0, higher_means: str = "", needs: tuple[Need, ...] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Say of a measure of one's own what the report tells of built-in ones; one may do without.

    Args:
        family: What kind of quantity it is; the report groups measures by it.
        sign: Expected sign of its correlation with the generalisation gap; 0 where there is no theory.
        higher_means: What a larger value says.
        needs: What the task and the data must have, of `analysis.measures.needs.ASKED`.

    Raises:
        ValueError: If one of these is none of the known ones.
    """
    for name, given, known in (("family", [family], Family), ("needs", needs, Need), ("sign", [sign], None)):
        allowed = (-1, 0, 1) if known is None else get_args(known)
        if wrong := [value for value in given if value not in allowed]:
            raise ValueError(f"`{name}` must be of {', '.join(map(str, allowed))}, got {wrong[0]!r}.")

    def told(function: Callable[..., Any]) -> Callable[..., Any]:
        function.__measure__ = {  # type: ignore[attr-defined]
            "family": family, "sign": sign, "higher_means": higher_means, "needs": needs,
        }  # fmt: skip
        return function

    return told


def own_measure(reference: str, taken: Mapping[str, str]) -> Measure:
    """The entry of a measure of one's own.

    Args:
        reference: `module:function`, which is imported. The function is called with a `Subject`, and returns a number;
            an `Estimate`; a list of `Row`s; or numbers and estimates by name. Its keyword-only parameters, with
            annotations and defaults, are its options. Its rows have the function's name, or those in the dict.
        taken: Names that rows have already, with what makes them.

    Raises:
        ValueError: If it is no such function, or its name is taken.
    """
    function = load_reference(reference, key="measures")
    name = getattr(function, "__name__", reference.rpartition(":")[2].rpartition(".")[2])
    _check_name(name, f"`measures` {reference!r}", taken)
    require_typed(function, f"`measures` {reference!r}")

    @wraps(function)
    def rows(subject: Any, **options: Any) -> Rows:
        found = _rows(call(f"`measures` {reference!r}", function, subject, **options), name, reference, taken)
        return [replace(row, options={**options, **row.options}) for row in found]

    told = {"family": "diagnostic", "sign": 0, "higher_means": "", "needs": (), **getattr(function, "__measure__", {})}
    says = (inspect.getdoc(function) or f"One's own, {reference}.").partition("\n")[0]
    return Measure(
        rows, (name,), says, told["family"], told["higher_means"], told["sign"], "", "not known", usual=False,
        needs=told["needs"], sampled=True, source=source_digest(function),
    )  # fmt: skip


def _rows(found: Any, name: str, reference: str, taken: Mapping[str, str]) -> Rows:
    if isinstance(found, list) and all(isinstance(row, Row) for row in found):
        rows = found
    elif isinstance(found, Mapping) and found:
        rows = [_row(str(part), value, reference) for part, value in found.items()]
    else:
        rows = [_row(name, found, reference)]
    for row in rows:
        if row.measure != name:
            _check_name(row.measure, f"`measures` {reference!r}", taken)
    return rows


def _row(name: str, value: Any, reference: str) -> Row:
    if isinstance(value, Estimate):
        return Row(name, value.value, value.stderr, value.draws, converged=value.converged)
    number = (
        value.item() if isinstance(value, Tensor | np.generic | np.ndarray) and np.prod(value.shape) == 1 else value
    )
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError(
            f"`measures` {reference!r} returned {type(value).__name__} for {name!r}: return a number, an Estimate, a "
            f"list of Row, or numbers by name."
        )
    return Row(name, float(number))


def _check_name(name: str, what: str, taken: Mapping[str, str]) -> None:
    if not NAME.fullmatch(name) or SCORES.fullmatch(name) or name in taken:
        cause = f"which `{taken[name]}` makes" if name in taken else "which no measure can have"
        raise ValueError(
            f"{what} makes rows called {name!r}, {cause}: take a name of letters, digits and _ that does not begin as "
            f"the scores do (train_, validation_, test_, gap_, ood_)."
        )
