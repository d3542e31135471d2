"""The report's tables: what each holds, and how it is written as CSV, LaTeX (booktabs) and Markdown.

A table has two faces: `data`, raw numbers in full precision, which goes into the CSV file; and `shown`, text rounded
for a reader, which goes into the page and the LaTeX file.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.figures.correlations import strongest
from analysis.results import StudyResults
from analysis.style import fixed, looks, ordered

SIGNS = {1: "+", -1: "−", 0: "?"}
SHOWN_ROWS = 25  # on the page; the CSV file holds every row


@dataclass(frozen=True)
class Table:
    """One table of the report.

    Attributes:
        name: Stem of its files.
        title: Heading.
        note: How its numbers were made.
        data: Raw values, every row.
        shown: Text for a reader, at most `SHOWN_ROWS` rows; columns named as they are printed.
        text: Columns of `shown` that hold words, set flush left; the others are numbers, flush right.
        empty: What to say where there are no rows.
    """

    name: str
    title: str
    note: str
    data: pd.DataFrame
    shown: pd.DataFrame
    text: tuple[str, ...] = ()
    empty: str = "Nothing to show."


def to_csv(table: Table) -> str:
    """The raw values as comma-separated text; empty where a value is missing."""
    return str(table.data.to_csv(index=False, lineterminator="\n"))


def to_latex(table: Table) -> str:
    r"""A LaTeX `table` with booktabs rules (needs `\usepackage{booktabs}`); everything special is escaped."""
    columns = list(table.shown.columns)
    align = "".join("l" if c in table.text else "r" for c in columns)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(table.title)}. {escape_latex(table.note)}}}",
        rf"\label{{tab:{table.name.replace('_', '-')}}}",
        rf"\begin{{tabular}}{{@{{}}{align}@{{}}}}",
        r"\toprule",
        " & ".join(escape_latex(str(c)) for c in columns) + r" \\",
        r"\midrule",
        *(" & ".join(escape_latex(str(v)) for v in row) + r" \\" for row in table.shown.itertuples(index=False)),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def to_markdown(table: Table) -> str:
    """A pipe table; pipes and line breaks in cells are escaped."""
    columns = list(table.shown.columns)

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(c.replace("|", r"\|").replace("\n", " ") for c in cells) + " |"

    rule = ["---" if c in table.text else "---:" for c in columns]
    rows = [line([str(v) for v in row]) for row in table.shown.itertuples(index=False)]
    return "\n".join([line([str(c) for c in columns]), "|" + "|".join(rule) + "|", *rows])


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "−": r"$-$", "–": "--", "τ": r"$\tau$", "ρ": r"$\rho$", "λ": r"$\lambda$",
    "Ŷ": r"$\hat{Y}$", "×": r"$\times$", "→": r"$\to$", "⇄": r"$\leftrightarrows$", "≥": r"$\geq$", "≤": r"$\leq$",
    "\n": " ",
}  # fmt: skip


def escape_latex(text: str) -> str:
    """Text with every character that LaTeX reads as a command, and the symbols used here, made safe."""
    return r"$\tau_b$".join("".join(_LATEX.get(c, c) for c in part) for part in text.split("τ_b"))


def methods(results: StudyResults) -> Table:
    """Errors of the best configuration of each method, mean and deviation over its seeds."""
    chosen, rule = results.best_configurations()
    everything = results.configurations()
    look = looks(results.methods)
    rows: list[dict[str, Any]] = []
    for label in ordered(results.methods):
        here = chosen[chosen["method"] == label]
        of_method = everything[everything["method"] == label]
        gap = here["test_error"] - here["train_error"]
        row: dict[str, Any] = {"method": label, "configuration": _where(results, here), "seeds": len(here)}
        for name, values in (
            ("test_error", here["test_error"]),
            ("train_error", here["train_error"]),
            ("gap_error", gap),
        ):
            row |= {f"{name}_mean": values.mean(), f"{name}_sd": values.std()}
        rows.append(row | {"runs": len(of_method), "diverged": int((of_method["status"] == "diverged").sum())})
    data = pd.DataFrame(rows)
    shown = pd.DataFrame(
        {
            "Method": [look[m][0] for m in data["method"]],
            "Chosen configuration": data["configuration"],
            "Test error (%)": _plus_minus(data, "test_error"),
            "Training error (%)": _plus_minus(data, "train_error"),
            "Gap (points)": _plus_minus(data, "gap_error"),
            "Seeds": data["seeds"].astype(str),
            "Runs": data["runs"].astype(str),
            "Diverged": data["diverged"].astype(str),
        }
    )
    note = (
        f"Mean ± standard deviation over the finished seeds, at the end of training. For each method: {rule}. Gap: "
        "test minus training error. Runs and diverged: all of the method."
    )
    return Table("methods", "Errors by method", note, data, shown, ("Method", "Chosen configuration"))


def _where(results: StudyResults, rows: pd.DataFrame) -> str:
    """The hyper-parameters that make the rows' configuration, or how many configurations they are from."""
    if rows.empty:
        return "none finished"
    if rows["configuration"].nunique() > 1:
        return f"all {rows['configuration'].nunique()}"
    columns = [c for c in results.configuration_columns if c not in ("hp.method", "hp.ascent")]
    pairs = [(c.removeprefix("hp."), rows[c].iloc[0]) for c in columns if c in rows]
    return ", ".join(f"{k}={_plain(v)}" for k, v in pairs if not _missing(v)) or "the only one"


def _plus_minus(data: pd.DataFrame, name: str) -> list[str]:
    """Percent; a deviation of a single seed is unknown and not printed."""
    pairs = zip(100 * data[f"{name}_mean"], 100 * data[f"{name}_sd"], strict=True)
    return [f"{fixed(m)} ± {fixed(s)}" if np.isfinite(s) else fixed(m) for m, s in pairs]


def correlations(results: StudyResults) -> Table:
    """Rank correlations of every measure with every target; shown for the leading target."""
    target = next((t for t in results.targets if len(strongest(results.correlations, target=t))), "")
    facts = results.facts()
    level = facts["level"]
    every = strongest(results.correlations, target=target)
    rows = strongest(results.correlations, target=target, top=SHOWN_ROWS)
    shown = pd.DataFrame(
        {
            "Measure": rows["measure"],
            "τ_b": rows["value"].map(fixed),
            f"{level} interval": _intervals(rows),
            "p": rows["p"].map(p_value),
            "p (Holm)": rows["p_holm"].map(p_value),
            "Within methods": [
                fixed(w) + (" ⇄" if r else "") for w, r in zip(rows["within"], rows["reversal"], strict=True)
            ],
            "Expected": rows["expected_sign"].map(lambda s: SIGNS.get(int(s), "?")),
            "n": rows["n_configurations"].map(_count),
            "Left out": rows["dropped"].map(_count),
            "Remark": rows["warnings"].fillna("").astype(str),
        }
    )
    if not (shown["Remark"] != "").any():
        shown = shown.drop(columns="Remark")
    note = (
        f"Kendall's τ_b with `{target}`, strongest first, {len(rows)} of {len(every)} measures, at "
        f"most {math.ceil(0.4 * SHOWN_ROWS)} of one family while others have any. n: configurations, "
        f"each averaged over its seeds; left out: those without a finite value. {facts['intervals']}; p from "
        f"{facts['permutations']} of configurations; Holm corrects over all measures of one target. Within methods: "
        "mean of τ_b inside each method, ⇄ where its sign differs from the pooled one. Expected: sign of the "
        "correlation with the gap that the measure's theory predicts. Measures on held_out see validation "
        "labels, never the test set. The CSV file holds every measure and target, with Spearman and Pearson."
    )
    empty = "No correlation: too few finished configurations, or nothing was measured."
    return Table("correlations", "Correlations", note, results.correlations, shown, ("Measure", "Remark"), empty)


def comparisons(results: StudyResults) -> Table:
    """Paired differences between a forgetting and a sharpness measure."""
    level = results.facts()["level"]
    place = {target: i for i, target in enumerate(results.targets)}
    rows = results.comparisons.sort_values("target", key=lambda t: t.map(place), kind="stable").head(SHOWN_ROWS)
    shown = pd.DataFrame(
        {
            "Forgetting": rows["forgetting"],
            "Sharpness": rows["sharpness"],
            "Target": rows["target"],
            "τ_b forgetting": rows["tau_forgetting"].map(fixed),
            "τ_b sharpness": rows["tau_sharpness"].map(fixed),
            "|τ| difference": rows["difference"].map(fixed),
            f"{level} interval": _intervals(rows),
            "n": rows["n_configurations"].map(_count),
            "Remark": rows["warnings"].fillna("").astype(str),
        }
    )
    if not (shown["Remark"] != "").any():
        shown = shown.drop(columns="Remark")
    note = (
        "Difference |τ_b(forgetting)| − |τ_b(sharpness)| on the same n configurations; positive: forgetting is the "
        "stronger correlate. Intervals resample configurations and take both coefficients on the same sample."
    )
    empty = "No forgetting measure was compared with a sharpness measure."
    words = ("Forgetting", "Sharpness", "Target", "Remark")
    return Table(
        "comparisons", "Forgetting against sharpness, pair by pair", note, results.comparisons, shown, words, empty
    )


def ceilings(results: StudyResults) -> Table:
    """How strong a correlation the noise between seeds allows."""
    rows = results.ceilings[results.ceilings["coefficient"] == "kendall"]
    shown = pd.DataFrame(
        {
            "Target": rows["target"],
            "Split half": rows["split_half"].map(fixed),
            "Spearman–Brown": rows["spearman_brown"].map(fixed),
            "Oracle with noise": rows["oracle_with_noise"].map(fixed),
            "n": rows["n_configurations"].map(_count),
            "Remark": rows["warnings"].fillna("").astype(str),
        }
    )
    if not (shown["Remark"] != "").any():
        shown = shown.drop(columns="Remark")
    note = (
        "Kendall's τ_b of a target with itself: between two halves of the seeds; the same corrected to all seeds "
        "(Spearman–Brown); and between the target and the target plus noise of its own standard error. No measure "
        "can be expected to do better."
    )
    empty = "No noise ceiling: it needs at least two seeds a configuration."
    return Table("ceilings", "Noise ceiling", note, results.ceilings, shown, ("Target", "Remark"), empty)


def problems(results: StudyResults) -> Table:
    """Every run that did not finish, and why."""
    rows = results.runs[results.runs["status"] != "finished"]
    shown = pd.DataFrame(
        {
            "Run": rows["run_id"].astype(str),
            "Configuration": [_where_row(results, row) for row in rows.to_dict("records")],
            "Status": rows["status"].astype(str),
            "Epochs": rows["epochs"].map(_count),
            "Reason": rows["reason"].fillna("").astype(str),
        }
    )
    note = "Runs that did not finish. They have no targets and enter no correlation."
    words = ("Run", "Configuration", "Status", "Reason")
    return Table("unfinished", "Diverged and unfinished runs", note, rows, shown, words, "Every run finished.")


def _where_row(results: StudyResults, row: dict[Any, Any]) -> str:
    columns = [*results.configuration_columns, "hp.seed"]
    return (
        ", ".join(f"{c.removeprefix('hp.')}={_plain(row[c])}" for c in columns if c in row and not _missing(row[c]))
        or "–"
    )


def grid(results: StudyResults) -> Table:
    """What was varied and what was not."""
    columns = [c for c in results.runs.columns if c.startswith("hp.")]
    varied = [c for c in columns if results.runs[c].map(str).nunique() > 1]
    names = [*varied, *(c for c in columns if c not in varied)]
    values = [list(dict.fromkeys(_plain(v) for v in results.runs[c] if not _missing(v))) for c in names]
    data = pd.DataFrame(
        {
            "setting": [c.removeprefix("hp.") for c in names],
            "varied": [c in varied for c in names],
            "values": ["; ".join(sorted(v, key=_natural)) for v in values],
        }
    )
    shown = pd.DataFrame(
        {"Setting": data["setting"], "Values": data["values"], "": ["varied" if v else "" for v in data["varied"]]}
    )
    return Table(
        "settings",
        "Settings",
        "Every setting of the runs, those that were varied first.",
        data,
        shown,
        tuple(shown.columns),
    )


def environment(results: StudyResults) -> Table:
    """Versions, platform and commit."""
    given = results.study.get("environment") or {}
    data = pd.DataFrame({"item": list(given), "value": [_plain(v) for v in given.values()]}, dtype=object)
    shown = data.rename(columns={"item": "Item", "value": "Value"})
    note = "Recorded when the study was run."
    return Table(
        "environment", "Environment", note, data, shown, ("Item", "Value"), "The study recorded no environment."
    )


def measured(results: StudyResults) -> Table:
    """How many numbers were measured, and how many of them carry a doubt."""
    rows = results.measures
    counts = rows.groupby("measure", sort=True).agg(
        rows=("value", "size"),
        not_finite=("value", lambda v: int((~np.isfinite(v.to_numpy(dtype=float))).sum())),
        not_converged=("converged", lambda c: int((~c.astype(bool)).sum())),
        with_warning=("warnings", lambda w: int((w.fillna("") != "").sum())),
    )
    data = counts.reset_index()
    shown = data.astype(str).set_axis(["Measure", "Rows", "Not finite", "Not converged", "With a warning"], axis=1)
    shown = shown[(counts.drop(columns="rows").sum(axis=1) > 0).to_numpy()].head(SHOWN_ROWS)
    note = "Measures of which some rows are not finite, did not converge, or carry a warning. The CSV file counts all."
    return Table(
        "doubts", "Measurements with a doubt", note, data, shown, ("Measure",), "No measured number carries a doubt."
    )


TABLES: dict[str, Callable[[StudyResults], Table]] = {
    "methods": methods,
    "correlations": correlations,
    "comparisons": comparisons,
    "ceilings": ceilings,
    "unfinished": problems,
    "settings": grid,
    "doubts": measured,
    "environment": environment,
}


def _intervals(rows: pd.DataFrame) -> list[str]:
    pairs = zip(rows["low"], rows["high"], strict=True)
    return [f"[{fixed(a)}, {fixed(b)}]" if np.isfinite(a) and np.isfinite(b) else "–" for a, b in pairs]


def p_value(p: float) -> str:
    """A p-value for a reader: three digits, and no more certainty than that."""
    if p < 0.001:
        return "< 0.001"
    return "1" if p >= 0.9995 else fixed(p, 3)


def _count(n: Any) -> str:
    return "–" if _missing(n) else str(int(n))


def _missing(value: Any) -> bool:
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def _plain(value: Any) -> str:
    """A setting as it was written: 0.05 stays 0.05, and 3.0 from a column with gaps is 3."""
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def _natural(text: str) -> tuple[bool, float, str]:
    try:
        return False, float(text), ""
    except ValueError:
        return True, 0.0, text
