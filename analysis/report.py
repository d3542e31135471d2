"""The report of a study: one HTML file that stands alone, the same in Markdown, and every figure and table as files.

First what is written and how, then, from `findings` on, the sentences that the report begins with.
"""

import base64
import io
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from analysis.figures import FIGURES, NothingToDraw, strongest
from analysis.results import StudyResults
from analysis.style import family, fixed, interval, looks, rc
from analysis.tables import TABLES, Table, methods, p_value, to_csv, to_latex, to_markdown

DPI = 200
LEAST = 5  # configurations below which nothing is claimed
ALPHA = 0.05

# What stands where: (heading, (kind, name) in order).
SECTIONS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Sharpness, forgetting and generalisation",
        (
            ("figure", "forest"),
            ("figure", "comparison"),
            ("figure", "scatter"),
            ("figure", "correlation_matrix"),
            ("table", "correlations"),
            ("table", "comparisons"),
            ("table", "ceilings"),
        ),
    ),
    ("Methods", (("table", "methods"), ("figure", "training_curves"), ("figure", "radius"))),
    (
        "Forgetting",
        "",
        (("figure", "forgetting_bars"), ("figure", "forgetting_curves"), ("figure", "forgetting_by_method")),
    ),
    ("What went wrong", (("table", "unfinished"), ("table", "doubts"))),
    ("What was run", (("table", "settings"), ("table", "environment"))),
)


@dataclass(frozen=True)
class Shown:
    """A figure or table as the templates need it.

    Attributes:
        kind: "figure" or "table".
        name: Stem of its files.
        label: "Figure 1", "Table 2"; empty where there is nothing to show.
        title: Heading.
        caption: How its numbers were made.
        command: What redoes it.
        empty: Why there is nothing; empty where there is something.
        alt: For a reader who cannot see the figure.
        png: The figure, for embedding.
        table: The table.
    """

    kind: str
    name: str
    label: str
    title: str
    caption: str = ""
    command: str = ""
    empty: str = ""
    alt: str = ""
    png: bytes = b""
    table: Table | None = None

    @property
    def data_uri(self) -> str:
        """The PNG as a `data:` address, so that the page needs no other file."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")

    @property
    def markdown(self) -> str:
        """The table as a pipe table."""
        return "" if self.table is None else to_markdown(self.table)


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it."""

    title: str
    anchor: str
    items: tuple[Shown, ...]


def report(
    results_or_folder: StudyResults | str | Path,
    *,
    out: str | Path | None = None,
    figures: Sequence[str] | None = None,
) -> Path:
    """Write the report of a study.

    Writes `report.html` (self-contained), `report.md`, `figures/<name>.{pdf,png}` and `tables/<name>.{csv,tex}`. Each
    file is written aside and then renamed. The same results give the same bytes. What cannot be drawn, for want of
    data, is replaced by the reason, and files of that name from an earlier report are removed.

    Args:
        results_or_folder: The study's results, or the folder they are read from.
        out: Where to write; `<folder>/report` by default.
        figures: Names of `analysis.figures.FIGURES`: then only these figures' files are redone, and nothing else is
            touched.

    Returns:
        The path of `report.html`, or of the folder of figures if `figures` is given.

    Raises:
        FileNotFoundError: If the folder lacks a file, with the command that makes it.
        ValueError: If a name in `figures` is not known, or a figure that was asked for has nothing to show.
    """
    if figures is not None:
        unknown = [f for f in figures if f not in FIGURES]
        if unknown:
            raise ValueError(
                f"`figures` holds {unknown}, which are not figures of the report; choose from {list(FIGURES)}."
            )
    given = results_or_folder
    results = given if isinstance(given, StudyResults) else StudyResults.load(given)
    folder = Path(out) if out is not None else results.folder / "report"
    if figures is not None:
        for name in figures:
            drawn = _draw(results, name, folder / "figures")
            if drawn.empty:
                raise ValueError(f"`figures` asks for {name!r}, but there is nothing to draw: {drawn.empty}")
        return folder / "figures"
    sections = _sections(results, folder)
    context: dict[str, Any] = {
        "study": results.study,
        "name": str(results.study.get("name") or results.folder.name),
        "question": str(results.study.get("question") or ""),
        "folder": _called(results),
        "meta": _meta(results),
        "findings": findings(results),
        "numbers": key_numbers(results),
        "sections": sections,
    }
    environment = _templates()
    _write(folder / "report.md", environment.get_template("report.md.j2").render(context).encode("utf-8"))
    html = environment.get_template("report.html.j2").render(context)
    return _write(folder / "report.html", html.encode("utf-8"))


def _sections(results: StudyResults, folder: Path) -> list[Section]:
    sections = []
    count = {"figure": 0, "table": 0}
    for title, names in SECTIONS:
        items = []
        for kind, name in names:
            label = f"{kind.capitalize()} {count[kind] + 1}"
            if kind == "figure":
                item = _draw(results, name, folder / "figures", label)
            else:
                item = _tabulate(results, name, folder / "tables", label)
            count[kind] += not item.empty
            items.append(item)
        sections.append(Section(title, re.sub(r"\W+", "-", title.lower()), tuple(items)))
    return sections


def _draw(results: StudyResults, name: str, folder: Path, label: str = "") -> Shown:
    """Draw one figure and write its files; where there is nothing to draw, remove them and keep the reason."""
    plate = FIGURES[name]
    with matplotlib.rc_context(rc("screen")):
        try:
            figure, facts = plate.draw(results)
        except NothingToDraw as nothing:
            for suffix in (".png", ".pdf"):
                (folder / f"{name}{suffix}").unlink(missing_ok=True)
            return Shown("figure", name, "", plate.title, empty=str(nothing))
        png = _rendered(figure, "png")
        figure.set_layout_engine(None)  # panels stay where they are; laying out again would take as long as drawing
        _write(folder / f"{name}.pdf", _rendered(figure, "pdf"))
    _write(folder / f"{name}.png", png)
    command = f"landscape report {_called(results)} --figure {name}"
    caption = plate.says(results, facts)
    return Shown("figure", name, label, plate.title, caption, command, alt=plate.alt, png=png)


def _rendered(figure: Figure, kind: str) -> bytes:
    # Dates and versions are left out, so that equal results give equal files.
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Producer": None, "Creator": None}}[kind]
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
    return buffer.getvalue()


def _tabulate(results: StudyResults, name: str, folder: Path, label: str) -> Shown:
    table = TABLES[name](results)
    _write(folder / f"{name}.csv", to_csv(table).encode("utf-8"))
    _write(folder / f"{name}.tex", to_latex(table).encode("utf-8"))
    if table.shown.empty:
        return Shown("table", name, "", table.title, empty=table.empty)
    return Shown("table", name, label, table.title, table.note, table=table)


def _called(results: StudyResults) -> str:
    """The folder as one would type it; of an absolute path only the name, for a report is passed on to others."""
    return results.folder.name if results.folder.is_absolute() else results.folder.as_posix()


def _meta(results: StudyResults) -> list[tuple[str, str]]:
    study = results.study
    shown = [
        ("Created", str(study.get("created") or "")),
        ("Took", _took(study.get("seconds"))),
        ("Commit", str((study.get("environment") or {}).get("commit") or "")),
        ("Command", str(study.get("command") or "")),
    ]
    return [(key, value) for key, value in shown if value]


def _took(seconds: Any) -> str:
    """The time of a study, given as one number or by step."""
    if isinstance(seconds, Mapping):
        parts = ", ".join(f"{step} {_duration(float(s))}" for step, s in seconds.items())
        return f"{_duration(sum(map(float, seconds.values())))} ({parts})" if parts else ""
    return _duration(float(seconds)) if seconds is not None else ""


def _duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {s} s" if minutes else f"{s} s"


def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("analysis"),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["marked"] = _marked
    return environment


def _marked(text: str) -> Markup:
    """Escaped text in which `names in backticks` are set as code, and τ_b with its index."""
    code = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(code.replace("τ_b", "τ<sub>b</sub>"))


def _write(path: Path, content: bytes) -> Path:
    """Write aside and rename, so that a file that exists is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(aside).chmod(0o644)
        Path(aside).replace(path)
    finally:
        Path(aside).unlink(missing_ok=True)
    return path


@dataclass(frozen=True)
class Finding:
    """One finding: what it is about, and the sentences; names of measures stand in backticks."""

    topic: str
    text: str


def findings(results: StudyResults) -> list[Finding]:
    """The findings of a study, the answer to its question first.

    Rules: with fewer than 5 configurations, without an interval, or with one that contains 0, nothing is claimed;
    whether a correlation survives Holm's correction over all measures tried is always said; differences between methods
    are described, not tested.
    """
    return [
        *_correlations(results),
        *_comparisons(results),
        *_reversals(results),
        *_ceiling(results),
        *_methods(results),
        *_runs(results),
        *_doubts(results),
    ]


def key_numbers(results: StudyResults) -> list[tuple[str, str]]:
    """Up to four numbers for the head of the page, each with what it is."""
    runs = results.runs
    finished = int((runs["status"] == "finished").sum())
    configurations = results.configurations()
    out = [
        (f"{finished} of {len(runs)}", "runs finished"),
        (f"{configurations['configuration'].nunique()}", f"configurations of {_many(len(results.methods), 'method')}"),
    ]
    target, rows = _leading(results)
    usable = _usable(rows)
    for kind in ("sharpness", "forgetting"):
        of_kind = usable[usable["measure"].map(family) == kind]
        if len(of_kind):
            row = of_kind.iloc[0]
            span = f"[{fixed(row['low'])}, {fixed(row['high'])}]"
            out.append(
                (
                    fixed(row["value"]),
                    f"{span}: τ_b of `{row['measure']}` with `{target}`, the strongest {kind} measure",
                )
            )
    return out


def _leading(results: StudyResults) -> tuple[str, pd.DataFrame]:
    for target in results.targets:
        rows = strongest(results.correlations, target=target)
        if len(rows):
            return target, rows
    return "", results.correlations.iloc[:0]


def _usable(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows that could carry a claim: enough configurations, and an interval."""
    finite = np.isfinite(rows[["low", "high"]].to_numpy(dtype=float)).all(axis=1)
    enough = rows["n_configurations"].to_numpy(dtype=float) >= LEAST
    usable: pd.DataFrame = rows.loc[finite & enough]
    return usable


def _clear(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[(rows["low"] > 0) | (rows["high"] < 0)]


def _correlations(results: StudyResults) -> list[Finding]:
    target, rows = _leading(results)
    topic = "Correlation"
    if rows.empty:
        return [
            Finding(topic, "No correlation could be computed, so nothing is said about what goes with generalisation.")
        ]
    usable = _usable(rows)
    if usable.empty:
        most = int(rows["n_configurations"].max())
        return [
            Finding(
                topic,
                f"At most {_many(most, 'configuration')} had a value: too few for an interval (at least {LEAST} are "
                "needed), so no correlation is claimed.",
            )
        ]
    clear = _clear(usable)
    survive = clear[clear["p_holm"] < ALPHA]
    if clear.empty:
        row = usable.iloc[0]
        head = (
            f"No measure is shown to go with `{target}`: all {len(usable)} intervals contain 0. The strongest, "
            f"`{row['measure']}`, has τ_b = {interval(row['value'], row['low'], row['high'])}."
        )
    else:
        head = (
            f"Of {_many(len(usable), 'measure')}, {len(clear)} "
            f"{'has an interval' if len(clear) == 1 else 'have intervals'} with `{target}` that "
            f"{'excludes' if len(clear) == 1 else 'exclude'} 0, and {len(survive) or 'none'} of these "
            f"{'survives' if len(survive) == 1 else 'survive'} Holm's correction for the number of measures."
        )
    out = [Finding(topic, head)]
    for kind in ("sharpness", "forgetting"):
        of_kind = usable[usable["measure"].map(family) == kind]
        if len(of_kind):
            out.append(Finding(f"Strongest {kind} measure", _sentence(of_kind.iloc[0].to_dict(), target)))
    return out


def _sentence(row: Mapping[Any, Any], target: str) -> str:
    r = dict(row)
    text = f"`{r['measure']}`: τ_b = {interval(r['value'], r['low'], r['high'])} "
    text += f"over {r['n_configurations']} configurations; "
    clear = r["low"] > 0 or r["high"] < 0
    if not clear:
        return text + "the interval contains 0, so no relation is claimed."
    if not np.isfinite(r["p_holm"]):
        text += "the interval excludes 0, but there is no p-value to correct for the number of measures"
    elif r["p_holm"] < ALPHA:
        text += f"it survives Holm's correction (p {_p(r['p_holm'])})"
    else:
        text += f"it does not survive Holm's correction (p {_p(r['p_holm'])}), so with as many measures as were tried "
        text += "it may well be chance"
    # The expected sign is about the gap; for another target the theory says nothing here.
    if target.startswith("gap") and r["expected_sign"] != 0:
        same = np.sign(r["value"]) == r["expected_sign"]
        text += (
            "; the sign is the one its theory predicts"
            if same
            else "; the sign is opposite to what its theory predicts"
        )
    return text + "."


def _comparisons(results: StudyResults) -> list[Finding]:
    topic = "Forgetting against sharpness"
    rows = results.comparisons[np.isfinite(results.comparisons["difference"].to_numpy(dtype=float))]
    order = [t for t in results.targets if t in set(rows["target"])] or list(rows["target"].unique())
    if not order:
        return [
            Finding(topic, "Not compared: no pair of a forgetting and a sharpness measure could be set side by side.")
        ]
    usable = _usable(rows[rows["target"] == order[0]])
    if usable.empty:
        return [
            Finding(
                topic, "There are too few configurations for an interval, so neither is called the stronger correlate."
            )
        ]
    clear = _clear(usable)
    row = usable.iloc[usable["difference"].abs().argmax()]
    example = (
        f"The largest difference: `{row['forgetting']}` (|τ_b| {fixed(abs(row['tau_forgetting']))}) against "
        f"`{row['sharpness']}` ({fixed(abs(row['tau_sharpness']))}), "
        f"{interval(row['difference'], row['low'], row['high'])} over {row['n_configurations']} configurations."
    )
    if clear.empty:
        head = f"Neither is shown to be the stronger correlate of `{order[0]}`: "
        head += "the interval of the paired difference contains 0 "
        head += "in the one pair compared." if len(usable) == 1 else f"in all {len(usable)} pairs compared."
    else:
        more, less = int((clear["difference"] > 0).sum()), int((clear["difference"] < 0).sum())
        head = (
            f"Of {_many(len(usable), 'pair')} compared on `{order[0]}`, forgetting is the stronger correlate in "
            f"{more}, sharpness in {less}; in {len(usable) - more - less} the interval of the difference contains 0. "
            "The intervals are not corrected for the number of pairs."
        )
    return [Finding(topic, f"{head} {example}")]


def _reversals(results: StudyResults) -> list[Finding]:
    target, rows = _leading(results)
    clear = _clear(_usable(rows))
    turned = clear[clear["reversal"].astype(bool)]
    if clear.empty:
        return []
    if turned.empty:
        return [
            Finding("Within methods", "No measure whose pooled interval excludes 0 changes sign inside the methods.")
        ]
    names = ", ".join(f"`{m}`" for m in turned["measure"].head(5)) + (", …" if len(turned) > 5 else "")
    text = (
        f"{_many(len(turned), 'measure')} of the {len(clear)} clear ones "
        f"{'changes' if len(turned) == 1 else 'change'} sign inside the methods ({names}): the pooled correlation "
        f"with `{target}` then speaks about differences between methods, not about models of one method."
    )
    return [Finding("Within methods", text)]


def _ceiling(results: StudyResults) -> list[Finding]:
    target, rows = _leading(results)
    if rows.empty:
        return []
    here = results.ceilings[(results.ceilings["target"] == target) & (results.ceilings["coefficient"] == "kendall")]
    values = here[["spearman_brown", "oracle_with_noise"]].to_numpy(dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        return [Finding("Noise ceiling", "Unknown: it needs at least two seeds of a configuration.")]
    low, high = fixed(values.min()), fixed(values.max())
    size = low if low == high else f"{low} to {high}"
    return [
        Finding(
            "Noise ceiling",
            f"The noise between seeds lets no measure reach a |τ_b| with `{target}` above about {size}.",
        )
    ]


def _methods(results: StudyResults) -> list[Finding]:
    data = methods(results).data
    data = data[np.isfinite(data["test_error_mean"].to_numpy(dtype=float))].sort_values("test_error_mean")
    if data.empty:
        return [Finding("Methods", "No run finished with a test error.")]
    look = looks(results.methods)

    def shown(row: dict[str, float | str]) -> str:
        sd = float(row["test_error_sd"])
        spread = f" ± {fixed(100 * sd)}" if np.isfinite(sd) else ""
        return f"{look[str(row['method'])][0]} {fixed(100 * float(row['test_error_mean']))}{spread} %"

    rows = data.to_dict("records")
    text = f"Lowest test error: {shown(rows[0])}"
    if len(rows) > 1:
        text += f"; next {shown(rows[1])}" + (f"; highest {shown(rows[-1])}" if len(rows) > 2 else "")
        text += ". Whether the methods differ was not tested"
    return [Finding("Methods", text + ".")]


def _runs(results: StudyResults) -> list[Finding]:
    counts = results.runs["status"].value_counts()
    total = len(results.runs)
    finished = int(counts.get("finished", 0))
    if total and finished == total:
        return [Finding("Runs", f"All {_many(total, 'run')} finished.")]
    rest = ", ".join(f"{n} {status}" for status, n in counts.items() if status != "finished")
    return [Finding("Runs", f"{finished} of {_many(total, 'run')} finished; {rest}. The others enter no correlation.")]


def _doubts(results: StudyResults) -> list[Finding]:
    rows = results.measures
    if rows.empty:
        return [Finding("Measurements", "Nothing was measured.")]
    warned = int((rows["warnings"].fillna("") != "").sum())
    loose = int((~rows["converged"].astype(bool)).sum())
    broken = int((~np.isfinite(rows["value"].to_numpy(dtype=float))).sum())
    if not (warned or loose or broken):
        return []
    text = f"Of {len(rows)} numbers, {loose} did not converge, {warned} carry a warning and {broken} are not finite."
    return [Finding("Measurements", text)]


def _p(p: float) -> str:
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"


def _many(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")
