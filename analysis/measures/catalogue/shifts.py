"""Rows of shifted test sets: of each corruption, of sets that belong together, and their means."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from analysis.measures.catalogue.values import Answers, Value, further, loss, scored, uneven
from analysis.table import Row
from trainers.data.shifted import family_of
from trainers.tasks.task import Task

Sets = Mapping[str, Callable[[], Answers]]


def rows_of_copies(sets: Sets, task: Task, test: Value | None, bins: int) -> list[Row]:
    """Rows of corrupted copies of the test set: of each corruption, their mean and the worst.

    Args:
        sets: By name, "corruption:severity" or one word.
        task: What is scored.
        test: The leading score on the test set.
        bins: Of the calibration error.

    Raises:
        ValueError: If a name is another, or sets that are paired differ in size.
    """
    found = _Found(sets, task, bins)
    paired = all(a.paired for a in found.answers.values())
    sizes = {len(v.each) for v in [*found.leading.values(), *([test] if test else [])] if v.each is not None}
    if paired and len(sizes) > 1:
        raise ValueError(f"`paired` sets must hold the same examples, got sets of {sorted(sizes)}; give paired=False.")
    rows, kind = found.rows(), found.kind
    overall = Value.mean([found.mean(kind, names) for names in found.corruptions.values()], paired)
    rows.append(overall.row(f"ood_{kind}_mean", "ood"))
    # a set that could not be evaluated could be the worst
    leading = found.leading
    worst = max(leading, key=lambda name: math.inf if leading[name].note else leading[name].estimate.value)
    rows.append(leading[worst].row(f"ood_{kind}_worst", "ood", set=worst))
    if test is not None:
        gap = overall.minus_paired(test) if paired else overall - test
        rows.append(gap.row("ood_gap", "ood"))
    return rows


def rows_of_families(sets: Sets, task: Task, test: Value | None, bins: int) -> list[Row]:
    """Rows of shifted sets from elsewhere: of each corruption, and of all that belong together.

    The numbers of a family are means over its corruptions, and those of a corruption over its severities, in which all
    count alike. Their `ood_gap` is the leading score minus that on the test set.

    Args:
        sets: By name, "family/corruption:severity", "family:severity" or "family".
        task: What is scored.
        test: The leading score on the test set.
        bins: Of the calibration error.
    """
    rows: list[Row] = []
    for family in dict.fromkeys(family_of(name) for name in sets):
        found = _Found({name: make for name, make in sets.items() if family_of(name) == family}, task, bins)
        members = list(found.corruptions.values())
        rows += found.rows()
        paired = all(a.paired for a in found.answers.values())
        overall = {q: Value.mean([found.mean(q, names) for names in members], paired) for q in found.quantities}
        if family not in found.corruptions:
            rows += [
                found.told(v.row(f"ood_{q}", "ood", corruption=family), [*found.answers]) for q, v in overall.items()
            ]
        if test is not None:
            score = overall[found.kind]
            gap = score.minus_paired(test) if paired else score - test
            rows.append(found.told(gap.row("ood_gap", "ood", corruption=family), [*found.answers]))
    return rows


class _Found:
    """The numbers of several sets, one of which is in memory at a time."""

    def __init__(self, sets: Sets, task: Task, bins: int) -> None:
        self.kind, self.bins = "error", bins
        self.answers: dict[str, Answers] = {}
        self.values: dict[str, dict[str, Value]] = {}
        self.corruptions: dict[str, list[str]] = {}
        for name, make in sets.items():
            corruption, colon, severity = name.partition(":")
            if not corruption or (colon and not severity.isdecimal()):
                raise ValueError(
                    f"`splits['ood']` has {name!r}; name a set 'corruption:severity', like 'noise:3', or by one word."
                )
            answers = make()
            one = answers.restricted()
            self.kind, first = scored(task, one.outputs, one.targets)
            self.values[name] = {
                self.kind: first,
                "loss": loss(task, one.outputs, one.targets),
                **further(task, one.outputs, one.targets, bins, balance=uneven(task, one.targets)),
            }
            self.answers[name] = replace(answers, outputs=answers.outputs[:0], targets=answers.targets[:0])
            self.corruptions.setdefault(corruption, []).append(name)

    @property
    def leading(self) -> dict[str, Value]:
        """The leading score of each set."""
        return {name: values[self.kind] for name, values in self.values.items()}

    @property
    def quantities(self) -> list[str]:
        """What is known of all sets."""
        first, *others = self.values.values()
        return [q for q in first if all(q in values for values in others)]

    def mean(self, quantity: str, names: list[str]) -> Value:
        """Over these sets."""
        paired = all(self.answers[name].paired for name in names)
        return Value.mean([self.values[name][quantity] for name in names], paired)

    def rows(self) -> list[Row]:
        """The leading score of each severity, and all numbers of each corruption."""
        rows = []
        for name, value in self.leading.items():
            corruption, colon, severity = name.partition(":")
            if colon:
                row = value.row(f"ood_{self.kind}_severity", "ood", corruption=corruption, severity=int(severity))
                rows.append(self.told(row, [name]))
        for quantity in self.quantities:
            for corruption, names in self.corruptions.items():
                row = self.mean(quantity, names).row(f"ood_{quantity}", "ood", corruption=corruption)
                rows.append(self.told(row, names))
        return rows

    def told(self, row: Row, names: list[str]) -> Row:
        """The row with what is to be said of these sets."""
        those = [self.answers[name] for name in names]
        remarks = dict.fromkeys(filter(None, [row.warnings, *(a.remark for a in those)]))
        among = {len(a.among) for a in those if a.among is not None}
        options = {**row.options, **({"classes": min(among)} if among else {})}
        if row.measure == "ood_ece":
            options["bins"] = self.bins
        return replace(row, options=options, warnings="; ".join(remarks))
