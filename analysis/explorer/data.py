"""What the explorer's page is given: runs, their settings, their measures and histories, as JSON holds them.

Runs of several studies stand in one list. Everything that has a value a run is a list in that order, null where there
is none. Configurations, cells and methods are numbered as `analysis.statistics.units` sorts them, and numbers of one
study never occur in another: no statistic mixes studies.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd

from analysis.explorer.commands import train_again
from analysis.measures.registry import MEASURES, OWN_TARGET, entry_of, expected_sign, family_of, is_baseline
from analysis.results import StudyResults
from analysis.statistics.families import representative
from analysis.statistics.strata import CELL_MINIMUM
from analysis.statistics.units import ROUNDING, Units, units
from analysis.style import family, looks, measure_name, method_labels, missing, ordered
from analysis.table import SEED_COLUMNS, last_step, with_variant

DIGITS = 5  # of histories and of standard errors
SYMBOLS = {  # plotly's names of matplotlib's markers
    "o": "circle", "X": "x", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down", "P": "cross",
    "<": "triangle-left", ">": "triangle-right", "p": "pentagon", "h": "hexagon", "H": "hexagon2", "d": "diamond-tall",
    "*": "star", "8": "octagon",
}  # fmt: skip
NOWHERE = -1  # the number of the configuration of a run without measures


def measured(study: StudyResults) -> pd.DataFrame:
    """The rows of measures of runs whose configuration is known."""
    hyper = [c for c in study.measures.columns if c.startswith("hp.")]
    return study.measures.dropna(subset=hyper, how="all") if hyper else study.measures.iloc[:0]


@dataclass(frozen=True)
class Sorted:
    """A study with its runs as its statistics sort them.

    Attributes:
        study: Its results.
        units: The measured runs, their values and configurations.
        values: The values again, one row a run of the study.
        errors: Their standard errors.
    """

    study: StudyResults
    units: Units
    values: pd.DataFrame
    errors: pd.DataFrame

    @classmethod
    def of(cls, study: StudyResults) -> Self:
        """Sort a study's runs.

        Raises:
            ValueError: If no run with a configuration was measured, naming the study.
        """
        rows = measured(study)
        if rows.empty:
            raise ValueError(
                f"{study.folder} has no measured run: there is nothing to explore before "
                f"`landscape measure {study.folder}`."
            )
        told, runs = study.statistics, study.runs["run_id"]
        data = units(rows, group=told.get("group"), seed_column=told.get("seed_column") or SEED_COLUMNS)
        last = with_variant(last_step(rows)).drop_duplicates(["run_id", "variant"])
        errors = last.pivot(index="run_id", columns="variant", values="stderr")
        return cls(study, data, data.values.reindex(runs), errors.reindex(runs))


def page_data(studies: Sequence[StudyResults], *, report: str = "") -> dict[str, Any]:
    """The data of a page about one or several studies.

    Args:
        studies: Their results; the first one's leading target and representative are what the page opens with.
        report: Where the static report of the first lies, seen from the page; empty where nowhere.

    Raises:
        ValueError: If a study has no measured run with a configuration, naming it.
    """
    given = [Sorted.of(study) for study in studies]
    runs = pd.concat([s.runs.assign(study=i) for i, s in enumerate(studies)], ignore_index=True)
    labels = method_labels(runs)
    look, methods = looks(set(labels)), ordered(labels)
    variants = list(dict.fromkeys(str(name) for each in given for name in each.units.values.columns))
    common = [name for name in variants if all(name in each.units.values for each in given)]
    return {
        "studies": [_study(s, report if i == 0 else "") for i, s in enumerate(studies)],
        "methods": [
            {"label": m, "name": look[m][0], "colour": look[m][1], "symbol": SYMBOLS[look[m][2]]} for m in methods
        ],
        "runs": {
            "id": runs["run_id"].tolist(),
            "study": runs["study"].tolist(),
            "status": runs["status"].tolist(),
            "reason": runs["reason"].fillna("").tolist(),
            "seconds": _numbers(runs["seconds"], DIGITS),
            "epochs": runs["epochs"].astype(int).tolist(),
            "method": [methods.index(label) for label in labels],
            **_places(given),
            "command": [command for study in studies for command in _commands(study)],
        },
        "settings": _settings(studies, runs),
        "measures": [_measure(name, given) for name in variants],
        "mark": hashlib.sha256("".join(runs["run_id"]).encode()).hexdigest()[:6],  # of these runs in this order
        "start": _start(studies[0], variants, common),
        "history": _histories(studies),
        "rules": {"rounding": ROUNDING, "cell": CELL_MINIMUM},
    }


def _study(study: StudyResults, report: str) -> dict[str, Any]:
    rows = study.correlations[study.correlations["coefficient"] == "kendall"]
    numbers = rows[["value", "low", "high", "stratified", "within"]].to_numpy(dtype=float)
    found: dict[str, dict[str, list[float | None]]] = {}
    for target, measure, row in zip(rows["target"], rows["measure"], numbers, strict=True):
        found.setdefault(str(target), {})[str(measure)] = [_rounded(v, DIGITS) for v in row]
    return {
        "name": str(study.study.get("name") or study.folder.name),
        "question": str(study.study.get("question") or ""),
        "command": str(study.study.get("command") or ""),
        "level": study.facts()["level"],
        "folder": study.folder.name,
        "report": report,
        "same": _same(study),
        "correlations": found,
    }


def _places(given: Sequence[Sorted]) -> dict[str, list[int]]:
    """For each run the number of its configuration, of the method group and of the cell of that configuration."""
    found: dict[str, list[int]] = {"configuration": [], "group": [], "cell": []}
    first = dict.fromkeys(found, 0)
    for each in given:
        data = each.units
        of_run, group = data.configuration, np.unique(np.array(data.methods), return_inverse=True)[1]
        for name, values in {"configuration": of_run, "group": group[of_run], "cell": data.cells[of_run]}.items():
            number = dict(zip(data.values.index, (values + first[name]).tolist(), strict=True))
            found[name] += [number.get(run, NOWHERE) for run in each.values.index]
            first[name] += int(values.max()) + 1
    return found


def _settings(studies: Sequence[StudyResults], runs: pd.DataFrame) -> list[dict[str, Any]]:
    """What tells the runs of a study apart, beside their method: a list of values each."""
    varied = [c for study in studies for c in study.configuration_columns]
    seeds = [c for c in SEED_COLUMNS if c in runs and runs[c].nunique() > 1]
    names = [c for c in dict.fromkeys([*varied, *seeds]) if c != "hp.method" and not c.endswith("_digest")]
    return [
        {"id": name, "name": measure_name(name.removeprefix("hp.")), "values": [_cell(v) for v in runs[name]]}
        for name in names
    ]


def _same(study: StudyResults) -> dict[str, str]:
    """The settings that all runs of a study share."""
    columns = [c for c in study.runs.columns if c.startswith("hp.") and c != "hp.method"]
    given = {c.removeprefix("hp."): study.runs[c] for c in columns if study.runs[c].map(str).nunique() == 1}
    return {name: str(values.iloc[0]) for name, values in given.items() if not missing(values.iloc[0])}


def _commands(study: StudyResults) -> list[str]:
    columns = {c: c.removeprefix("hp.") for c in study.runs.columns if c.startswith("hp.")}
    rows = study.runs[list(columns)].rename(columns=columns).to_dict("records")
    return [train_again({str(k): v for k, v in row.items()}, f"{study.folder.name}/runs") for row in rows]


def _measure(name: str, given: Sequence[Sorted]) -> dict[str, Any]:
    """One variant: what it is, and its value, error and remarks in every run."""
    base = next(each.units.measure[name] for each in given if name in each.units.measure)
    key = entry_of(base)
    entry = MEASURES[key] if key else None
    target = family_of(base) == "target" or (key is None and OWN_TARGET.fullmatch(base))
    values: list[float | None] = []
    errors: list[float | None] = []
    remarks: dict[str, list[int]] = {}
    for each in given:
        data, unknown = each.units, [math.nan] * len(each.values)
        at = len(values) + each.values.index.get_indexer(data.values.index)
        for text, rows in data.said.get(name, {}).items():
            remarks.setdefault(text, []).extend(at[rows].tolist())
        if name in data.loose:
            remarks.setdefault("did not converge", []).extend(at[data.loose[name]].tolist())
        values += _numbers(each.values.get(name, unknown))
        errors += _numbers(each.errors.get(name, unknown), DIGITS)
    return {
        "id": name,
        "name": measure_name(name),
        "kind": "baseline" if is_baseline(name) else "target" if target else "measure",
        "family": family(name),
        "entry": key or "",
        "help": entry.help if entry else "a number of this study's own",
        "higher": entry.higher_means if entry else "",
        "sign": expected_sign(base),
        "invariant": entry.invariant if entry else "",
        "cost": entry.cost if entry else "",
        "values": values,
        **({"errors": errors} if any(errors) else {}),
        **({"remarks": remarks} if remarks else {}),
    }


def _start(study: StudyResults, variants: Sequence[str], common: Sequence[str]) -> dict[str, str]:
    """What the page opens with: the leading target, and the measure that stands for sharpness or another family.

    Of several studies something that was measured in all of them, where there is any.
    """
    known = common if len(common) > 1 else variants
    y = next((t for t in study.targets if t in known), known[0])
    chosen = study.statistics.get("representatives") or {}
    stand = (representative(kind, known, chosen)[0] for kind in ("sharpness", "forgetting", "norm", "baseline"))
    return {"x": next((m for m in [*stand, *known] if m and m != y), y), "y": y}


def _histories(studies: Sequence[StudyResults]) -> dict[str, Any]:
    """The training curves: names of columns, and for each run its rows."""
    told: list[str] = []
    for study in studies:
        score = study.score
        wanted = [f"{split}_{what}" for what in ("loss", score.name) for split in ("train", "validation", "test")]
        told += [c for c in ("epoch", "lr", "rho", *wanted) if c not in told and c in study.history]
    rows: list[list[list[float | None]]] = []
    for study in studies:
        parts = dict(iter(study.history.reindex(columns=["run_id", *told]).groupby("run_id", sort=False)))
        for run in study.runs["run_id"]:
            own = parts.get(run)
            rows.append([] if own is None else [_numbers(own[c], DIGITS) for c in told])
    return {"columns": told, "runs": rows}


def _numbers(values: pd.Series | list[float], digits: int | None = None) -> list[float | None]:
    """Numbers for JSON: all digits, or so many; null for what is not finite."""
    return [_rounded(v, digits) for v in np.asarray(values, dtype=float).tolist()]


def _rounded(value: float, digits: int | None) -> float | None:
    if not math.isfinite(value):
        return None
    return value if digits is None else float(f"{value:.{digits}g}")


def _cell(value: Any) -> float | str | None:
    """A setting: a number where it is one, else text."""
    if missing(value):
        return None
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    return float(value) if isinstance(value, int | float | np.number) else str(value)
