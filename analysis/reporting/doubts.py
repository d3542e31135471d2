"""Numbers that carry a doubt: warnings sorted into kinds, and what did not converge or is not finite."""

import re

import pandas as pd

_NUMBER = re.compile(r"[-−+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
KINDS = ("kind", "measures", "values", "share", "example")


def warning_kinds(measures: pd.DataFrame) -> pd.DataFrame:
    """Warnings of a measures table by kind: texts that differ in their numbers alone are of one kind.

    Args:
        measures: Table with the columns measure and warnings; warnings of one value are apart by semicolons.

    Returns:
        Columns kind (the text with "…" for each number), measures (how many carry it), values (rows), share (of all
        rows), example (one text as it stands); the most frequent first.
    """
    said = measures[["measure", "warnings"]].assign(warnings=measures["warnings"].fillna("").str.split("; "))
    said = said.explode("warnings")
    said = said[said["warnings"] != ""]
    said["kind"] = said["warnings"].map({text: _NUMBER.sub("…", text) for text in said["warnings"].unique()})
    table = said.groupby("kind", sort=True).agg(
        measures=("measure", "nunique"), values=("measure", "size"), example=("warnings", "first")
    )
    table = table.assign(share=table["values"] / max(len(measures), 1)).reset_index()
    return table.sort_values("values", ascending=False, kind="stable", ignore_index=True)[list(KINDS)]
