"""What is to be explained of language models: errors and losses of tokens, and what follows from a loss."""

import math
from typing import Any

from analysis.measures.catalogue.values import Value
from analysis.measures.subject import Subject
from analysis.table import Row
from landscape import Estimate, evaluate
from trainers.data.splits import Split

LOSS = " loss"


def token_rows(subject: Subject) -> list[Row]:
    """Token error, loss, perplexity and bits per byte of each split, the gaps, and the same of shifted text.

    Of each split, means over tokens, in one pass that keeps no outputs; standard errors are over sequences, as of a
    ratio (`landscape.evaluate`), and those of what follows from the loss by the delta method. Bits per byte take the
    bytes a token of the whole corpus. Gaps are test minus train, shifted minus test, the sets taken as independent.
    """
    data = subject.data
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    values = {name: values_on(subject, split) for name, split in parts.items() if len(split)}
    rows = [value.row(f"{split}_{name}", split) for split, found in values.items() for name, value in found.items()]
    lead = next(iter(values["train"]))
    if "test" in values:
        rows += [(values["test"][name] - values["train"][name]).row(f"gap_{name}", "test") for name in (lead, "loss")]
    for name in data.ood:
        found = values_on(subject, data.ood[name])
        rows += [value.row(f"ood_{kind}", "ood", corruption=name) for kind, value in found.items()]
        if "test" in values:
            rows.append((found[lead] - values["test"][lead]).row("ood_gap", "ood", corruption=name))
            rows.append((found["loss"] - values["test"]["loss"]).row("ood_gap_loss", "ood", corruption=name))
    return rows


def values_on(subject: Subject, split: Split) -> dict[str, Value]:
    """The scores, the leading one first, and the loss with what follows from it."""
    task: Any = subject.task

    def scores(outputs: Any, targets: Any) -> dict[str, Any]:
        counts = task.counts(targets)
        own = {name: (score, counts) for name, score in task.scores(outputs, targets).items()}
        return {**own, LOSS: (task.each(outputs.double(), targets), counts)}

    found = dict(evaluate(subject.risk.on(split.batches(size=subject.batch)), scores=scores).scores)
    loss = found.pop(LOSS)
    note = "" if math.isfinite(loss.value) else "the loss is not finite"
    values = {name: Value(estimate, note) for name, estimate in found.items()} | {"loss": Value(loss, note)}
    if hasattr(task, "of_loss") and not note:
        per_token = subject.data.origin.get("bytes_per_token")
        here = task.of_loss(loss.value, per_token)
        slopes = {"perplexity": here["perplexity"], "bits_per_byte": here.get("bits_per_byte", 0.0) / loss.value}
        for name, value in here.items():
            values[name] = Value(Estimate(value, slopes[name] * loss.stderr, draws=loss.draws), "")
    return values
