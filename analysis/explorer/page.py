"""The explorer's page: data and template to one file that needs no other."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from analysis.explorer.data import measured, page_data
from analysis.offline import POLICY, in_script, packed, plotly_script
from analysis.results import StudyResults
from trainers.files.writing import write_bytes

NAME = "explorer.html"
HEIGHT = 900  # pixels, of the page inside a notebook
SCRIPTS = ("view", "statistics", "look", "runs", "scatter", "parallel", "measures", "details", "main")  # in this order


@dataclass(frozen=True, repr=False)
class Explorer:
    """The page of one study, or of two side by side; notebooks show it where it stands last in a cell.

    Attributes:
        name: Of the study or studies.
        text: The whole page.
    """

    name: str
    text: str

    def __repr__(self) -> str:
        return f"<Explorer {self.name!r}: {len(self.text) / 1e6:.1f} MB; write it with .save(path)>"

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that neither its style nor its names meet the notebook's."""
        inside, title = html.escape(self.text), html.escape(f"Explorer of {self.name}")
        return f'<iframe srcdoc="{inside}" title="{title}" style="width:100%;height:{HEIGHT}px;border:0"></iframe>'

    def save(self, path: str | Path) -> Path:
        """Write the page to a file, aside and then by rename.

        Raises:
            OSError: As the disk does; an old file stays whole.
        """
        write_bytes(path := Path(path), self.text.encode("utf-8"))
        return path


def explorer(studies: Sequence[StudyResults], *, report: str = "") -> Explorer:
    """Make the page of one study, or of several side by side. The same results give the same bytes.

    Args:
        studies: Their results, the leading one first.
        report: Where the static report of the first lies, seen from the page.

    Raises:
        ValueError: If a study has no measured run, or two studies are one.
        ImportError: If plotly is not installed.
    """
    if len({study.folder for study in studies}) < len(studies) or not studies:
        raise ValueError(f"`studies` must be different ones, got {[str(study.folder) for study in studies]}.")
    data = page_data(studies, report=report)
    name = " and ".join(study["name"] for study in data["studies"])
    text = _TEMPLATES.get_template("explorer.html.j2").render(
        name=name,
        studies=data["studies"],
        policy=POLICY,
        scripts=[f"{script}.js" for script in SCRIPTS],
        plotly=Markup(packed(plotly_script())),
        data=Markup(packed(in_script(data))),
    )
    return Explorer(name, text)


def write_beside(results: StudyResults, folder: Path, other: str | Path | None) -> str:
    """Write the page beside a report.

    Args:
        results: The study's.
        folder: Where its `report.html` lies.
        other: Folder of a study to see side by side with it.

    Returns:
        The name of the file; empty where nothing was measured, and an earlier one is then removed.

    Raises:
        FileNotFoundError: If the other folder lacks a file, with the command that makes it.
        ValueError: If nothing was measured in the other study, or it is the same.
    """
    if measured(results).empty:
        (folder / NAME).unlink(missing_ok=True)
        return ""
    studies = [results] if other is None else [results, StudyResults.load(other)]
    return explorer(studies, report="report.html").save(folder / NAME).name


_TEMPLATES = jinja2.Environment(
    loader=jinja2.ChoiceLoader([jinja2.PackageLoader("analysis.explorer"), jinja2.PackageLoader("analysis.reporting")]),
    autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",), default=False),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
