"""Take measures of one checkpoint; one that fails is marked rows, and the others go on."""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

from analysis.measures.plan import Plan
from analysis.measures.registry import MEASURES, failed_rows
from analysis.measures.subject import Subject
from analysis.table import Row

INTERRUPTED = "was interrupted after"  # what the estimators of `landscape` warn when Ctrl-C ended them early
Begin = Callable[[str], None]  # told of each measure before it is taken


def silent(name: str) -> None:
    """The `Begin` that says nothing."""


def measure_subject(subject: Subject, chosen: Plan, *, begin: Begin = silent) -> dict[str, list[Row]]:
    """Take measures of one checkpoint; one that fails becomes rows with the reason.

    Args:
        subject: The checkpoint.
        chosen: The measures, see `plan`.
        begin: Called with the name of each measure before it is taken.
    """
    return dict(measures_of(subject, chosen, begin=begin))


def measures_of(subject: Subject, chosen: Plan, *, begin: Begin = silent) -> Iterator[tuple[str, list[Row]]]:
    """What `measure_subject` gives, one measure after the other.

    Raises:
        KeyboardInterrupt: Also if an estimator was interrupted and returned what it knew: that is no measurement.
    """
    for key, options in chosen.items():
        begin(key)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                why = subject.lacks(MEASURES[key].needs)
                rows = failed_rows(key, why) if why else MEASURES[key].function(subject, **options)
            except Exception as error:  # one bad measure is marked rows, the others go on
                rows = failed_rows(key, f"{type(error).__name__}: {error}")
        notes = list(
            dict.fromkeys(str(w.message) for w in said if issubclass(w.category, UserWarning | RuntimeWarning))
        )
        if any(INTERRUPTED in note for note in notes):
            raise KeyboardInterrupt
        if notes:
            rows = [replace(r, warnings="; ".join([*filter(None, [r.warnings]), *notes])) for r in rows]
        if any(not math.isfinite(r.value) and not r.warnings for r in rows):
            why = _why_not_finite(subject)
            rows = [r if math.isfinite(r.value) or r.warnings else replace(r, warnings=why) for r in rows]
        if subject.notes:
            rows = [replace(r, warnings="; ".join([*filter(None, [r.warnings]), *subject.notes])) for r in rows]
        yield key, rows


def _why_not_finite(subject: Subject) -> str:
    """What is said of a value that is not finite where its measure said nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = subject.risk.value()
    return "not a finite number" if math.isfinite(loss) else "the loss at these weights is not finite"
