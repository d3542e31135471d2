"""What a figure of the report is, and what all of them share."""

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from analysis.figures import correlations
from analysis.results import StudyResults
from analysis.style import from_to
from analysis.table import last_step

Facts = dict[str, Any]
Drawn = tuple[Figure | SubFigure, Facts]
SCREEN_SIZE = 9.0  # size of text, in points, for which the heights of figures are given


class NothingToDraw(Exception):  # noqa: N818 -- not an error: the report prints the reason in place of the figure
    """There is nothing to draw; the message says why, in a sentence for the reader."""


@dataclass(frozen=True)
class Wanted:
    """What is asked of a figure beyond its study.

    Attributes:
        measures: What to show, from the top down: ids, or whole names of variants; empty is the figure's own choice.
        on: Where to draw: axes, or for several panels a figure or part of one; None is a page of its own.
    """

    measures: tuple[str, ...] = ()
    on: Axes | Figure | SubFigure | None = None

    def page(self, height: float) -> Figure | SubFigure:
        """A figure as wide as the medium in force, as high as given on a screen, less where the text is smaller.

        Raises:
            ValueError: If there are only axes to draw on.
        """
        if isinstance(self.on, Axes):
            raise ValueError("`on` is one Axes, but the figure has several panels: give a Figure or SubFigure.")
        if self.on is not None:
            return self.on
        width = float(mpl.rcParams["figure.figsize"][0])
        size = float(mpl.rcParams["font.size"])
        return Figure(figsize=(width, height * size / SCREEN_SIZE), layout="constrained")

    def panel(self, height: float) -> tuple[Figure | SubFigure, Axes]:
        """The same with one pair of axes, which may be given."""
        if isinstance(self.on, Axes):
            figure = self.on.get_figure(root=False)
            assert figure is not None
            return figure, self.on
        figure = self.page(height)
        return figure, figure.add_subplot()

    def named(self, known: Iterable[str]) -> list[str]:
        """The variants asked for: an id stands for its first variant among those that there are.

        Raises:
            ValueError: If one was not measured.
        """
        every = list(dict.fromkeys(known))
        found = []
        for name in self.measures:
            match = next((v for v in every if v == name or v.partition("[")[0] == name), None)
            if match is None:
                near = difflib.get_close_matches(name, [*every, *(v.partition("[")[0] for v in every)], n=1)
                hint = f"did you mean {near[0]!r}?" if near else "see the table of correlations."
                raise ValueError(f"`measures` holds {name!r}, which has no value for this figure: {hint}")
            found.append(match)
        return list(dict.fromkeys(found))


OWN = Wanted()


class Draw(Protocol):
    """Draws a figure of a study, and returns the facts that its caption names."""

    def __call__(self, results: StudyResults, wanted: Wanted = ..., /) -> Drawn:
        """Draw it at the width that `style.rc` set; raises `NothingToDraw` with the reason."""
        ...


@dataclass(frozen=True)
class Plate:
    """A figure of the report.

    Attributes:
        title: Heading.
        draw: Draws it at the width that `style.rc` set, and returns the facts that the caption names; raises
            `NothingToDraw` with the reason.
        caption: Text with `{facts}` to be filled in.
        alt: What a reader who cannot see the figure is told.
        chooses: Whether it takes the measures to show.
    """

    title: str
    draw: Draw
    caption: str
    alt: str
    chooses: bool = False

    def says(self, results: StudyResults, facts: Facts) -> str:
        """The caption, with the facts of the drawing and of the study's statistics filled in."""
        return self.caption.format(**results.facts(), **facts)


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
