"""Rows as lines of a terminal, or as a table in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]

EXTRA = ("returned", "truth", "residual", "stderr", "products", "claims", "wrong", "held", "note")
PLAIN = {"held": "{:.0f} MiB held between products", "note": "{}"}


def number(value: float) -> str:
    """Three digits, and no exponent above a thousand."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def measured(row: Mapping[str, Any]) -> str:
    """The value, with quartiles where there are some."""
    if row["value"] is None:
        return str(row["unit"])
    spread = f" [{number(row['low'])}, {number(row['high'])}]" if "low" in row else ""
    return f"{number(row['value'])} {row['unit']}{spread}"


def verdict(row: Mapping[str, Any]) -> str:
    """The limit and whether it was met; "" without one."""
    limit = row.get("limit")
    if limit is None or row["value"] is None:
        return ""
    return f"{number(limit)}, {'met' if row['value'] <= limit else 'MISSED'}"


def remarks(row: Mapping[str, Any]) -> str:
    """What else is known of the row."""
    told = [(key, row[key]) for key in EXTRA if row.get(key) not in (None, "")]
    return "; ".join(
        PLAIN[key].format(x) if key in PLAIN else f"{key} {f'{x:.6g}' if isinstance(x, float) else x}"
        for key, x in told
    )


def line(row: Mapping[str, Any]) -> str:
    """One row for a terminal."""
    limit = verdict(row)
    return f"{row['what']:90s} {measured(row)}{f'  limit {limit}' if limit else ''}"


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """A table with the columns what, measured, limit and remarks."""
    cells = [(row["what"], measured(row), verdict(row), remarks(row)) for row in rows]
    lines = ["| " + " | ".join(str(c).replace("|", "\\|") for c in each) + " |" for each in cells]
    return "\n".join(["| what | measured | limit | remarks |", "|---|---|---|---|", *lines])


def span(values: Sequence[float | int]) -> str:
    """The smallest and the largest, in five digits."""
    if not values:
        return "not told"
    low, high = f"{min(values):.5g}", f"{max(values):.5g}"
    return low if low == high else f"{low} to {high}"


def absent(what: str, error: Exception) -> Row:
    """A row for what could not be measured."""
    return {"what": what, "value": None, "unit": "not measured", "note": f"{type(error).__name__}: {error}"}
