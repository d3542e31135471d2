"""Short names of what was held fixed together."""

import pandas as pd

from analysis.measures.registry import sees_held_out
from analysis.results import StudyResults
from analysis.statistics.controls import BESIDE
from analysis.statistics.prediction import ALL, TRAINING

HYPER = "hyper-parameters"


def short_names(results: StudyResults) -> dict[str, str]:
    """For each set of controls of the table `partial` what a reader calls it: "all baselines and hyper-parameters"."""
    table = results.further.get("partial", pd.DataFrame({"control": []}))
    return {str(name): _short(str(name).split(BESIDE), results) for name in table["control"].unique()}


def spelled(results: StudyResults) -> str:
    """What the short names stand for, in a sentence; "" where there is none."""
    parts = [
        f"{short}: {', '.join(f'`{part}`' for part in name.split(BESIDE))}"
        for name, short in short_names(results).items()
        if BESIDE in name and " and " not in short
    ]
    return f"Here {'; '.join(parts)}." if parts else ""


def _short(names: list[str], results: StudyResults) -> str:
    measured = [name for name in names if f"hp.{name}" not in results.runs.columns]
    if len(names) == 1:
        return names[0]
    if not measured:
        return HYPER
    kind = ALL if any(map(sees_held_out, measured)) else TRAINING
    return f"{kind} and {HYPER}" if len(measured) < len(names) else kind
