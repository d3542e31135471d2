"""Calibration by method, before and after temperature scaling."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from analysis.figures.room import key, letters
from analysis.style import INK, looks, ordered

ROOM = 24  # letters across a panel, for four ticks
SHIFT = 0.15  # of the lines of one method, up and down
# Rows of the targets: as trained, after temperature scaling, and the axis.
SCORES: dict[str, tuple[str, str]] = {
    "ece": ("ece_scaled", "ECE"),
    "brier": ("brier_scaled", "Brier score"),
    "test_loss": ("test_loss_scaled", "Test loss (nats)"),
}


def calibration(
    figure: Figure | SubFigure, rows: pd.DataFrame, *, methods: list[str] | None = None
) -> Figure | SubFigure:
    """One panel a score, one line a method: filled as trained, hollow after temperature scaling; mean and deviation.

    Args:
        figure: Where to draw.
        rows: One row a run and score: method, measure (of `SCORES` or its scaled twin), value.
        methods: All methods of the study, so that colours agree between figures.

    Raises:
        ValueError: If `rows` holds no finite score.
    """
    finite = rows[np.isfinite(rows["value"].to_numpy(dtype=float))]
    scores = [s for s in SCORES if s in set(finite["measure"])]
    if not scores:
        raise ValueError(f"`rows` holds no finite score of {list(SCORES)}: measure targets.")
    look = looks(methods or finite["method"])
    labels = ordered(finite["method"])
    shift = SHIFT if set(finite["measure"]) & {scaled for scaled, _ in SCORES.values()} else 0.0
    panels = figure.subplots(1, len(scores), squeeze=False, sharey=True)[0]
    for ax, score in zip(panels, scores, strict=True):
        scaled, title = SCORES[score]
        for at, label in enumerate(labels):
            _, colour, marker = look[label]
            here = finite[finite["method"] == label]
            before, after = (here.loc[here["measure"] == name, "value"] for name in (score, scaled))
            if len(before) and len(after):
                ax.plot([before.mean(), after.mean()], [at - shift, at + shift], color=colour, lw=0.8, ls=":", zorder=0)
            for values, fill, off in ((before, colour, -shift), (after, "white", shift)):
                if len(values):
                    sd = values.std() if len(values) > 1 else 0.0
                    ends = [values.mean() - sd, values.mean() + sd]
                    ax.plot(ends, [at + off] * 2, color=colour, lw=0.9, zorder=1)
                    ax.plot(values.mean(), at + off, marker, mec=colour, mfc=fill, mew=1.1, ms=5.5)
        ax.set_yticks(range(len(labels)), [look[n][0] for n in labels])
        ax.set_ylim(len(labels) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        ax.margins(x=0.08)
        ax.locator_params(axis="x", nbins=4 if letters(ax) > ROOM else 2)
        ax.set_xlabel(title)
        ax.grid(axis="x")
    handles = [Line2D([], [], ls="", marker="o", mec=INK, mfc=INK, ms=5.5, label="as trained")]
    if shift:
        handles.append(Line2D([], [], ls="", marker="o", mec=INK, mfc="white", ms=5.5, label="temperature scaled"))
    key(figure, handles)
    return figure
