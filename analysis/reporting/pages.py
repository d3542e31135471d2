"""The report of a study: one HTML file that stands alone, Markdown, and every figure and table as files."""

import base64
import copy
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from html import unescape
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from analysis.explorer.page import write_beside
from analysis.figures import FIGURES, NothingToDraw
from analysis.glossary import TERMS
from analysis.labels import labelled
from analysis.measures.registry import family_of
from analysis.reporting.drawing import SCREEN, Edition, dark, known, written
from analysis.reporting.findings import findings, key_numbers
from analysis.reporting.markup import code, escape_markdown, marked_markdown
from analysis.reporting.numbers import to_tex
from analysis.reporting.table import captioned, measure_in
from analysis.reporting.tables import TABLES, Table, to_csv, to_latex, to_markdown
from analysis.results import StudyResults
from analysis.statistics.catalogue import STATISTICS
from analysis.style import NAMES, measure_name
from trainers.files.writing import write_bytes
from trainers.sweep.parallel import cores, in_parallel, single_threaded

BEYOND = ("partial", "prediction")  # statistics with a section of their own
SECTIONS: dict[str, tuple[str, ...]] = {  # figures and tables, in order
    "Sharpness, forgetting and generalisation": (
        *("forest", "correlations", "families", "comparison", "comparisons", "scatter", "ceilings"),
        "correlation_matrix",
    ),
    "Beyond the baselines": BEYOND,
    "Does it hold up": tuple(name for name in STATISTICS if name not in ("families", *BEYOND)),
    "Is one method better?": ("comparison_of_methods", "methods"),
    "Training and calibration": ("training_curves", "radius", "calibration", "reliability"),
    "Forgetting": (
        *("forgetting_bars", "forgetting_by_m", "forgetting_curves", "forgetting_by_method", "forgetting_events"),
        *("along_training", "sharpness_by_radius"),
    ),
    "Loss surfaces": ("surface_train_loss", "surface_test_error"),
    "What was measured": ("measures", "costs"),
    "What went wrong": ("unfinished", "warnings", "doubts"),
    "What was run": ("settings", "environment"),
}


@dataclass(frozen=True)
class Shown:
    """A figure or table as the templates need it.

    Attributes:
        kind: "figure" or "table".
        name: Stem of its files.
        title: Heading.
        caption: What it shows, in one or two sentences.
        notes: How its numbers were made.
        command: What redoes it.
        empty: Why there is nothing; empty where there is something.
        alt: For a reader who cannot see the figure.
        png: The figure, for embedding.
        table: The table.
        label: "Figure 1", "Table 2"; empty until it has its place.
    """

    kind: str
    name: str
    title: str
    caption: str = ""
    notes: str = ""
    command: str = ""
    empty: str = ""
    alt: str = ""
    png: bytes = b""
    table: Table | None = None
    label: str = ""

    @property
    def shows(self) -> bool:
        """Whether there is something to show."""
        return bool(self.png) or self.table is not None

    @property
    def data_uri(self) -> str:
        """The PNG as a `data:` address, so that the page needs no other file."""
        return _address(self.png)

    @property
    def dark_uri(self) -> str:
        """The same for a dark page."""
        return _address(dark(self.png))

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
    edition: Edition | None = None,
    jobs: int | None = 1,
    explore_with: str | Path | None = None,
) -> Path:
    """Write the report of a study.

    Writes `report.html` (self-contained), `explorer.html` (to choose runs in, `StudyResults.explore`), `report.md`,
    `numbers.tex` (the numbers as LaTeX commands), `figures/<name>.{pdf,png}` (5.5 inches wide) and
    `tables/<name>.{csv,tex}`. Each file is written aside and then renamed. The same results give the same bytes. What
    cannot be drawn, for want of data, is replaced by the reason, and files of that name from an earlier report are
    removed.

    Args:
        results_or_folder: The study's results, or the folder they are read from.
        out: Where to write; `<folder>/report` by default.
        figures: Names of `analysis.figures.FIGURES`: then only these figures' files are redone, and nothing else is
            touched.
        edition: Medium, font, labels and measures. Figures for another medium than the screen are written beside the
            report, into `figures/<medium>/`; all that there is something to show of where `figures` names none.
        jobs: Processes to draw with, this one among them; None is one a core.
        explore_with: Folder of another study, which the explorer shows side by side with this one.

    Returns:
        The path of `report.html`, or of the folder of figures if only figures are written.

    Raises:
        FileNotFoundError: If the folder lacks a file, with the command that makes it.
        ValueError: If a name in `figures` is not known, or a figure that was asked for has nothing to show.
    """
    chosen = edition or Edition()
    known(figures or (), chosen.measures)
    if explore_with is not None and (figures is not None or chosen.medium != SCREEN):
        raise ValueError("`explore_with` goes with the whole report: leave `figures` and the medium out.")
    given = results_or_folder
    results = given if isinstance(given, StudyResults) else StudyResults.load(given)
    folder = Path(out) if out is not None else results.folder / "report"
    if figures is not None or chosen.medium != SCREEN:
        return _figures_alone(results, figures, chosen, folder / "figures")
    with labelled(chosen.labels):
        return _whole(results, chosen, folder, jobs, explore_with)


def _figures_alone(results: StudyResults, names: Sequence[str] | None, edition: Edition, folder: Path) -> Path:
    """Write some figures, or all that an edition can show, and nothing else."""
    place = folder if edition.medium == SCREEN else folder / edition.medium
    can = [name for name, plate in FIGURES.items() if plate.chooses or not edition.measures]
    for name in can if names is None else names:
        drawn = _draw(results, name, edition, place)
        if drawn.empty and names is not None:
            raise ValueError(f"`figures` asks for {name!r}, but there is nothing to draw: {drawn.empty}")
    return place


def _whole(
    results: StudyResults, edition: Edition, folder: Path, jobs: int | None, explore_with: str | Path | None
) -> Path:
    sections, absent = _sections(results, edition, folder, jobs)
    context: dict[str, Any] = {
        "study": results.study,
        "name": str(results.study.get("name") or results.folder.name),
        "question": str(results.study.get("question") or ""),
        "folder": _called(results),
        "meta": _meta(results),
        "findings": findings(results),
        "numbers": key_numbers(results),
        "sections": sections,
        "absent": absent,
        "explorer": write_beside(results, folder, explore_with),
        "words": _words(sections),
    }
    write_bytes(folder / "numbers.tex", to_tex(results).encode("ascii"))
    text = _templates(marked_markdown).get_template("report.md.j2").render(context)
    write_bytes(folder / "report.md", text.encode("utf-8"))
    html = _templates(_marked).get_template("report.html.j2").render(context)
    write_bytes(folder / "report.html", html.encode("utf-8"))
    return folder / "report.html"


def _sections(
    results: StudyResults, edition: Edition, folder: Path, jobs: int | None
) -> tuple[list[Section], list[tuple[str, str]]]:
    """The sections with what they hold; and titles of what there is nothing to show of, with the reason."""
    wanted = [name for names in SECTIONS.values() for name in names if name in FIGURES]
    share = max(1, min(cores() if jobs is None else jobs, len(wanted)))
    # what is drawn here meanwhile keeps more in `results`, which must not change then
    sent = copy.deepcopy(results) if share > 1 else results
    shares = [(sent if i else results, wanted[i::share], edition, folder / "figures") for i in range(share)]
    with ThreadPoolExecutor(1) as beside:  # waits for the other processes, while this one works too
        others = beside.submit(list, in_parallel(_draw_some, shares[1:], jobs=share, isolate=share > 1))
        tables = {
            name: _tabulate(results, name, folder / "tables")
            for names in SECTIONS.values()
            for name in names
            if name not in FIGURES
        }
        parts = [single_threaded(_draw_some, *shares[0]), *others.result()]
    made = tables | {shown.name: shown for part in parts for shown in part}
    sections = []
    absent: dict[str, list[str]] = {}
    count = {"figure": 0, "table": 0}
    for title, names in SECTIONS.items():
        items = []
        for name in names:
            item = made[name]
            if item.shows:
                count[item.kind] += 1
                items.append(replace(item, label=f"{item.kind.capitalize()} {count[item.kind]}"))
            elif item.empty:
                absent.setdefault(item.empty, []).append(item.title)
        if not items:
            continue
        sections.append(Section(title, re.sub(r"\W+", "-", title.lower()).strip("-"), tuple(items)))
    return sections, [(", ".join(titles), reason) for reason, titles in absent.items()]


def _draw_some(results: StudyResults, names: Sequence[str], edition: Edition, folder: Path) -> list[Shown]:
    return [_draw(results, name, edition, folder) for name in names]


def _draw(results: StudyResults, name: str, edition: Edition, folder: Path) -> Shown:
    """Draw one figure and write its files; where there is nothing to draw, remove them and keep the reason."""
    plate = FIGURES[name]
    try:
        png, facts = written(results, name, edition, folder)
    except NothingToDraw as nothing:
        return Shown("figure", name, plate.title, empty=str(nothing))
    command = f"landscape report {_called(results)} --figure {name}"
    caption, notes = captioned(plate.says(results, facts))
    return Shown("figure", name, plate.title, caption, notes, command, alt=plate.alt, png=png)


def _tabulate(results: StudyResults, name: str, folder: Path) -> Shown:
    table = TABLES[name](results)
    if table.shown.empty and table.optional:
        for suffix in (".csv", ".tex"):
            (folder / f"{name}{suffix}").unlink(missing_ok=True)
        return Shown("table", name, table.title)
    write_bytes(folder / f"{name}.csv", to_csv(table).encode("utf-8"))
    write_bytes(folder / f"{name}.tex", to_latex(table).encode("utf-8"))
    if table.shown.empty:
        return Shown("table", name, table.title, empty=table.empty)
    caption, notes = captioned(table.note)
    return Shown("table", name, table.title, caption, notes, table=table)


def _address(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


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
        ("Statistics made otherwise", results.other_statistics()),
        ("Weights measured", results.other_weights()),
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


def _templates(marked: Callable[[str], str]) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("analysis.reporting"),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"marked": marked, "plain": escape_markdown, "code": code, "breakable": _breakable}
    environment.filters |= {"measure": _measure, "spoken": _spoken, "heading": _heading}
    return environment


def _marked(text: str) -> Markup:
    """Escaped text in which `names in backticks` are set as code, and τ_b with its index."""
    code = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    code = re.sub(r" ([⚠†‡])|\[(−?[\d.]+), (−?[\d.]+)\]", _together, code)
    return Markup(code.replace("τ_b", "τ<sub>b</sub>"))


def _spoken(text: str) -> Markup:
    """The same where ids of measures in backticks become their names; the id shows where one points at the name."""
    return Markup(re.sub(r"<code>([^<]+)</code>", _named, str(_marked(text))))


def _named(match: re.Match[str]) -> str:
    base = match[1].partition("[")[0]
    if not (base in NAMES or base.startswith("M_gap_") or family_of(base)):
        return match[0]
    return f'<span class="named" title="{match[1]}">{escape(measure_name(unescape(match[1])))}</span>'


def _measure(cell: str) -> Markup:
    """A cell of a table: the name of a measure and, below it, its id."""
    variant, marks = measure_in(cell)
    name = measure_name(variant)
    beside = Markup("" if name == variant else f'<code class="id">{_breakable(variant)}</code>')
    return Markup(f"{_breakable(name + marks)}{beside}")


def _heading(text: str) -> Markup:
    """A heading of a table; a term of the glossary says what it means where one points at it."""
    meaning = TERMS.get(text)
    return _marked(text) if meaning is None else Markup(f'<abbr title="{escape(meaning)}">{_marked(text)}</abbr>')


def _words(sections: Sequence[Section]) -> list[tuple[str, str]]:
    """The terms of the glossary that figures and tables use."""
    items = [item for section in sections for item in section.items]
    headings = [str(c) for item in items if item.table is not None for c in item.table.shown.columns]
    said = " ".join([*headings, *(f"{item.title} {item.caption} {item.notes}" for item in items)])
    pattern = r"(?<![\w-]){}(?![\w-])"
    return [(term, meaning) for term, meaning in TERMS.items() if re.search(pattern.format(re.escape(term)), said)]


def _breakable(text: object) -> Markup:
    """Escaped words that may break after an underscore and before a bracket, as the names of measures are long."""
    return Markup(str(escape(text)).replace("_", "_<wbr />").replace("[", "<wbr />["))


def _together(match: re.Match[str]) -> str:
    """A mark with its number, and the ends of an interval, on one line."""
    return f"\N{NO-BREAK SPACE}{match[1]}" if match[1] else f"[{match[2]},\N{NO-BREAK SPACE}{match[3]}]"
