"""`landscape report`: the pages and figures of a study."""

from pathlib import Path

import tyro


def report(
    path: tyro.conf.Positional[Path], *, figure: tuple[str, ...] | None = None, explore_with: Path | None = None
) -> int:
    """Write the report of a study, or only some of its figures.

    Args:
        path: The study's folder.
        figure: Names of figures to redraw; by default the whole report is written.
        explore_with: Folder of another study, to see side by side with this one in explorer.html.
    """
    from analysis.reporting.pages import report as write_report  # and so are figures

    print(f"report: {write_report(path, figures=figure, jobs=None, explore_with=explore_with).resolve()}")
    return 0
