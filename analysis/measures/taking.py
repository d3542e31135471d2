"""Take measures of one checkpoint; one that fails is marked rows, and the others go on."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from analysis.measures.measure import Measure
from analysis.measures.plan import Plan
from analysis.measures.registry import MEASURES, failed_rows
from analysis.measures.subject import DRAWN, Subject
from analysis.table import Row
from landscape.memory import ran_out, shortage
from landscape.ranks import PeerError, Ranks
from trainers.options import knobs

SHORT = MemoryError.__name__  # how the warnings of rows begin whose measure found no room
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

    Of several processes, those of the subject's `ranks`, all get all rows: measures that are `shared` they take
    together, the others one each at a time.

    Raises:
        KeyboardInterrupt: Also if an estimator was interrupted and returned what it knew: that is no measurement.
        PeerError: If another process failed at a measure that all take together, and not all did.
    """
    ranks, alone = subject.ranks, replace(subject, ranks=Ranks())
    together = {key: options for key, options in chosen.items() if ranks.count > 1 and MEASURES[key].shared}
    for key, rows in _taken(subject, together, begin):
        yield key, ranks.led(lambda rows=rows: rows)  # type: ignore[misc]
    single = [(key, options) for key, options in chosen.items() if key not in together]
    subjects: Draws = {}
    for first in range(0, len(single), ranks.count):
        mine = dict(single[first : first + ranks.count][ranks.rank : ranks.rank + 1])
        for found in ranks.each(lambda mine=mine: list(_taken(alone, mine, begin, subjects))):  # type: ignore[misc]
            yield from found


Draws = dict[int | None, Subject]  # what measures of one draw share is computed once


def _taken(
    subject: Subject, chosen: Plan, begin: Begin, subjects: Draws | None = None
) -> Iterator[tuple[str, list[Row]]]:
    """Take measures, one after the other, by this process, or by all together."""
    subjects = {subject.drawn: subject} if subjects is None else subjects
    for key, options in chosen.items():
        begin(key)
        entry = MEASURES[key]
        wanted = replace(subject, examples=examples_of(entry, options, subject))
        here = subjects.setdefault(wanted.drawn, wanted)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                why = here.lacks(entry.needs)
                rows = failed_rows(key, why) if why else entry.function(here, **_own(entry, options))
            except PeerError:
                raise
            except Exception as error:  # one bad measure is marked rows, the others go on
                reason = _reason(error, here)
                if not subject.ranks.all_fail(f"{key} of {subject.run_id} at {subject.step}", reason):
                    raise  # the others wait for this process
                rows = failed_rows(key, reason)
                if ran_out(error) or subject.ranks.count > 1:  # alike in all processes
                    subjects.clear()  # which hold what earlier measures left to later ones
        notes = list(
            dict.fromkeys(str(w.message) for w in said if issubclass(w.category, UserWarning | RuntimeWarning))
        )
        if any(INTERRUPTED in note for note in notes):
            raise KeyboardInterrupt
        if notes:
            rows = [replace(r, warnings="; ".join([*filter(None, [r.warnings]), *notes])) for r in rows]
        if any(not math.isfinite(r.value) and not r.warnings for r in rows):
            why = _why_not_finite(here)
            rows = [r if math.isfinite(r.value) or r.warnings else replace(r, warnings=why) for r in rows]
        if subject.notes:
            rows = [replace(r, warnings="; ".join([*filter(None, [r.warnings]), *subject.notes])) for r in rows]
        told = _told(entry, options, here)
        yield key, [r if r.measure in entry.of_no_example else _of_draw(r, told, here) for r in rows]


def _reason(error: Exception, subject: Subject) -> str:
    if ran_out(error):
        device = subject.data.train.device
        return f"{SHORT}: {shortage(error, device, examples=subject.batch, option='`--batch-size`')}"
    return f"{type(error).__name__}: {error}"


def passing(rows: list[Row]) -> bool:
    """Whether rows failed by what is only so now: memory that ran out, which others may have held."""
    return any(row.warnings.startswith(SHORT) for row in rows)


def examples_of(entry: Measure, options: Mapping[str, Any], subject: Subject) -> int | None:
    """How many training examples a measure is to go through at most; None for all."""
    if not entry.sampled or (_has_own(entry) and subject.n <= DRAWN):  # which takes its part of few by itself
        return subject.examples
    asked = options.get("examples", subject.examples)
    return None if asked == "all" else asked


def _has_own(entry: Measure) -> bool:
    return "examples" in knobs(entry.function)


def _own(entry: Measure, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options that the measure's function takes."""
    return options if _has_own(entry) else {name: value for name, value in options.items() if name != "examples"}


def _of_draw(row: Row, told: Mapping[str, Any], subject: Subject) -> Row:
    """A row that says so; what would be exact of all examples has an unknown error on a draw."""
    exact = row.stderr == 0 and row.value != 0
    stderr = math.nan if exact and subject.drawn is not None and told else row.stderr
    return replace(row, options={**row.options, **told}, stderr=stderr)


def _told(entry: Measure, options: Mapping[str, Any], subject: Subject) -> dict[str, Any]:
    """What rows say of the draw: nothing of few examples, which all were taken, or of a measure's own usual number."""
    if not entry.sampled or (_has_own(entry) and options["examples"] == knobs(entry.function)["examples"].default):
        return {}
    if subject.drawn is not None:
        return {} if _has_own(entry) and subject.n <= DRAWN else {"examples": subject.drawn}
    return {"examples": "all"} if "examples" in options and subject.n > DRAWN else {}


def _why_not_finite(subject: Subject) -> str:
    """What is said of a value that is not finite where its measure said nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = subject.risk.value()
    return "not a finite number" if math.isfinite(loss) else "the loss at these weights is not finite"
