"""`landscape report`: the pages and figures of a study."""

from pathlib import Path
from typing import Literal

import tyro


def report(
    path: tyro.conf.Positional[Path],
    *,
    figure: tuple[str, ...] | None = None,
    medium: Literal["screen", "icml", "neurips", "column", "page", "slides"] = "screen",
    measures: tuple[str, ...] = (),
    labels: Path | None = None,
    font: Literal["sans", "serif"] | None = None,
    explore_with: Path | None = None,
) -> int:
    """Write the report of a study, or only some of its figures, for a screen or a paper.

    Args:
        path: The study's folder.
        figure: Names of figures to redraw; by default the whole report is written.
        medium: What figures are for. For all but the screen the figures alone are written, into a folder of that name,
            as wide as they stand in the paper: 3.25 inches (icml, column), 5.5 (neurips), 6.75 (page), 10 (slides).
        measures: What the figures with a choice (forest, scatter, correlation_matrix, along_training) show, in this
            order: ids such as top_eigenvalue, or names of variants as in the tables.
        labels: YAML file with your names and colours of methods and measures.
        font: Sans or serif; serif goes with papers set in Times.
        explore_with: Folder of another study, to see side by side with this one in explorer.html.
    """
    from analysis.labels import Labels
    from analysis.reporting.drawing import Edition
    from analysis.reporting.pages import report as write_report  # slow to import, as figures are

    edition = Edition(medium, font, Labels() if labels is None else Labels.read(labels), measures)
    if measures and figure is None:
        raise ValueError("`measures` are chosen for some figures: name them, as in --figure forest.")
    written = write_report(path, figures=figure, edition=edition, jobs=None, explore_with=explore_with)
    print(f"report: {written.resolve()}")
    return 0
