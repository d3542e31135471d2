"""What a figure of the report is, and what all of them share."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures import correlations
from analysis.results import StudyResults
from analysis.style import Medium, from_to
from analysis.table import last_step

Facts = dict[str, Any]
SCREEN_SIZE = 9.0  # size of text, in points, for which the heights of figures are given


class NothingToDraw(Exception):  # noqa: N818 -- not an error: the report prints the reason in place of the figure
    """There is nothing to draw; the message says why, in a sentence for the reader."""


@dataclass(frozen=True)
class Plate:
    """A figure of the report.

    Attributes:
        title: Heading.
        draw: Draws it at the width that `style.rc` set, and returns the facts that the caption names; raises
            `NothingToDraw` with the reason.
        caption: Text with `{facts}` to be filled in.
        alt: What a reader who cannot see the figure is told.
        paper: The medium of its PDF: one column of a paper, or two.
    """

    title: str
    draw: Callable[[StudyResults], tuple[Figure, Facts]]
    caption: str
    alt: str
    paper: Medium = "paper-double"

    def says(self, results: StudyResults, facts: Facts) -> str:
        """The caption, with the facts of the drawing and of the study's statistics filled in."""
        return self.caption.format(**results.facts(), **facts)


def page(height: float) -> Figure:
    """A figure as wide as the medium in force, as high as given on a screen, less where the text is smaller."""
    width = float(mpl.rcParams["figure.figsize"][0])
    size = float(mpl.rcParams["font.size"])
    return Figure(figsize=(width, height * size / SCREEN_SIZE), layout="constrained")


def leading(results: StudyResults) -> tuple[str, pd.DataFrame]:
    """The target the report leads with and its correlations, strongest first.

    Raises:
        NothingToDraw: If there is no correlation.
    """
    target, rows = correlations.leading(results)
    if len(rows):
        return target, rows
    raise NothingToDraw(
        "No correlation could be computed: there are too few finished configurations, or none was measured."
    )


def last_of(results: StudyResults, chosen: pd.DataFrame, *measures: str) -> pd.DataFrame:
    """Rows of measures with a finite value at the last checkpoint of the chosen runs, with their method."""
    rows = last_step(results.measures)
    rows = rows[rows["measure"].isin(measures) & np.isfinite(rows["value"].to_numpy(dtype=float))]
    rows = rows.drop(columns="method", errors="ignore")
    found: pd.DataFrame = rows.merge(chosen[["run_id", "method"]], on="run_id", how="inner")
    return found


def runs_of_methods(rows: pd.DataFrame) -> str:
    """How many runs a line of a method is over, for a caption: a single run has no deviation."""
    counts = rows.groupby("method")["run_id"].nunique()
    if counts.max() == 1:
        return "one run of each method, so without a deviation"
    alone = "; a method with one run has no deviation" if counts.min() == 1 else ""
    return f"mean and one standard deviation over {from_to(counts)} runs of each method{alone}"


def with_options(rows: pd.DataFrame, *names: str) -> pd.DataFrame:
    """The rows with some of their options as columns."""
    options = [json.loads(text) for text in rows["options"]]
    return rows.assign(**{name: [o[name] for o in options] for name in names})
