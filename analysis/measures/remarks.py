"""What rows of the measures table warn of, sorted into kinds, so that thousands of remarks are a few lines."""

import re
from collections.abc import Iterator
from functools import cache

import numpy as np
import pandas as pd

FAILED = "could not be taken"
NOT_CONVERGED = "did not converge"
# Kinds, most serious first, and what the text of a remark holds; the first that fits counts.
KINDS: dict[str, str] = {
    FAILED: r"^\w*(Error|Exception)\b|^(diverged|failed)\b|process died|cannot be read|is missing"
    r"|no checkpoint",
    NOT_CONVERGED: r"did not (reach a (residual|standard error)|converge)|was interrupted after|no minimum",
    "not finite": r"not (all )?finite|not a finite number|beyond the range of numbers",
    "no radius, or not on all batches": r"^no radius|costs? (too much|enough)|(too much|enough) accuracy",
    "few examples of a class": r"^only \d+ examples of a class",
    "few checkpoints": r"^only \d+ checkpoints|^no value at",
    "undefined: nothing to divide by": r"nothing was forgotten|nats to forget|no example was|no ratio|margin is|varies$"
    r"|outputs have a class|decisions have a class|no normalised loss",
    "the level was not reached": r"did not reach .* by this checkpoint",
    "no perturbation of its own": r"has no perturbation of its own",
    "test examples are in the training data": r"test examples are in the training data",
    "the gradient vanishes": r"gradient vanishes|is no curvature",
    "finite differences": r"finite differences",
    "which weights of the file": r"^weights: ",
    "frozen parameters are held fixed": r"^frozen: ",
    "does not fit the model, the task or the data": r"^needs |not known|left out|not among|cannot be folded|no planted"
    r"|no validation|lies outside|not the plain|^examples were mixed",
}
OTHER = "other"


def kinds_of(warnings: str, converged: bool = True) -> tuple[str, ...]:
    """The kinds of what a row says, each once, in the order of `KINDS`; empty where there is nothing to say.

    Args:
        warnings: The row's text; remarks in it are separated by "; ".
        converged: Whether the row's iteration ended as it should; one that did not is a kind of its own.
    """
    found = {kind for kind, _ in remarks_of(warnings)} | (set() if converged else {NOT_CONVERGED})
    return tuple(kind for kind in (*KINDS, OTHER) if kind in found)


def warning_kinds(table: pd.DataFrame) -> pd.DataFrame:
    """How many values of a measures table carry a warning of which kind.

    Args:
        table: The long measures table.

    Returns:
        One row a kind, the most frequent first: `kind`; `measures`, how many measures by name; `values`, how many rows
        of the table; `missing`, those of them without a number; `share` of all rows, in [0, 1]; `example`, its most
        frequent text. A row with remarks of two kinds counts in both, so that the shares need not add up.
    """
    columns = ["kind", "measures", "values", "missing", "share", "example"]
    told = table[table["warnings"].ne("") | ~table["converged"]]
    if told.empty:
        return pd.DataFrame(columns=columns)
    missing = ~np.isfinite(told["value"].to_numpy(dtype=np.float64))
    numbered = told[["measure", "warnings", "converged"]].assign(row=np.arange(len(told)), missing=missing)
    texts = numbered.groupby(["warnings", "converged"], sort=False)
    parts = [
        (kind, text, group)
        for (warnings, converged), group in texts
        for kind, text in _said(str(warnings), bool(converged))
    ]
    long = pd.concat([group.assign(kind=kind, text=text) for kind, text, group in parts], ignore_index=True)
    rows = []
    for kind, group in long.groupby("kind", sort=False):
        once = group.drop_duplicates("row")
        example = group["text"].value_counts(sort=True).index[0]
        values = len(once)
        share = values / len(table)
        rows.append((kind, once["measure"].nunique(), values, int(once["missing"].sum()), share, example))
    found = pd.DataFrame(rows, columns=columns)
    return found.sort_values(["values", "kind"], ascending=[False, True], ignore_index=True)


def _said(warnings: str, converged: bool) -> list[tuple[str, str]]:
    """Kind and text of each remark, and of an iteration that ended early without a word about it."""
    remarks = list(remarks_of(warnings))
    if not converged and NOT_CONVERGED not in {kind for kind, _ in remarks}:
        remarks.append((NOT_CONVERGED, "ended on its budget"))
    return remarks


def remarks_of(warnings: str) -> Iterator[tuple[str, str]]:
    """Kind and text of each remark of a row; `OTHER` is the kind of what fits none."""
    failed = False
    for text in filter(None, warnings.split("; ")):
        kind = _kind(text)
        if not (failed and kind == OTHER):  # the rest of an error's message
            yield kind, text
        failed = kind == FAILED


@cache
def _kind(text: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, text)), OTHER)
