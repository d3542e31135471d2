"""The measures by name: a literal registry of functions from a checkpoint to rows of the table.

A new measure is one function and one entry in the file of its family. Keyword-only arguments are its options, with
their defaults. Every value is stored raw; `sign` is the sign of correlation with the generalisation gap that the
measure's own theory predicts.
"""

import math
from collections.abc import Sequence

from analysis.measures.catalogue import complexity, curvature, forgetting, gradients, norms, sharpness, targets
from analysis.measures.measure import Measure, Rows
from analysis.table import Row

MEASURES: dict[str, Measure] = {
    **targets.MEASURES,
    **curvature.MEASURES,
    **sharpness.MEASURES,
    **gradients.MEASURES,
    **norms.MEASURES,
    **complexity.MEASURES,
    **forgetting.MEASURES,
}

# Rows whose expected sign is not that of their registry entry; 0 where theory predicts none.
SIGNS = {**curvature.SIGNS, **complexity.SIGNS, **forgetting.SIGNS}


def entry_of(name: str) -> str | None:
    """The registry key of a row's measure name; None where no entry makes it."""
    if name in MEASURES:
        return name
    return next((key for key, entry in MEASURES.items() if name in entry.rows), None)


def expected_sign(row_name: str) -> int:
    """Expected sign of a row's correlation with the generalisation gap."""
    key = entry_of(row_name)
    return SIGNS.get(row_name, MEASURES[key].sign if key else 0)


def failed_rows(key: str, reason: str) -> Rows:
    """What stands in the table for a measure that failed: its rows, without values and with the reason."""
    return [Row(name, math.nan, math.nan, 0, converged=False, warnings=reason) for name in MEASURES[key].rows]


def names() -> Sequence[str]:
    """All names that a user may ask for."""
    return [*MEASURES, *(row for entry in MEASURES.values() for row in entry.rows)]
