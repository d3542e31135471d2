"""Measures along training: sharpness and forgetting side by side."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from analysis.figures.curves import legend
from analysis.figures.room import folded, letters
from analysis.style import FAMILIES, MUTED, family, ink, looks, measure_name, ordered


def along_training(
    figure: Figure | SubFigure,
    rows: pd.DataFrame,
    *,
    columns: Sequence[Sequence[str]],
    methods: list[str] | None = None,
) -> Figure | SubFigure:
    """Variants of measures over epochs, one column of panels a kind; one line a method, mean and deviation over runs.

    Args:
        figure: Where to draw.
        rows: The measures table with `variant` and `method`, of all checkpoints.
        columns: Names of variants, one panel each, column by column.
        methods: All methods of the study, so that colours agree between figures.

    Returns:
        The figure; a panel whose values are all positive and whose means span more than a factor of 30 is logarithmic.

    Raises:
        ValueError: If `columns` names no variant.
    """
    if not any(len(names) for names in columns):
        raise ValueError(
            f"`columns` names no variant, got {columns!r}: give at least one name of the table's variants."
        )
    look = looks(methods or rows["method"])
    lines = max(len(names) for names in columns)
    panels = figure.subplots(lines, len(columns), squeeze=False, sharex=True)
    for j, names in enumerate(columns):
        for ax in panels[len(names) :, j]:
            ax.set_visible(False)
        for ax, name in zip(panels[:, j], names, strict=False):
            here = rows[(rows["variant"] == name) & np.isfinite(rows["value"].to_numpy(dtype=float))]
            means = []
            for label in ordered(here["method"]):
                by_epoch = here[here["method"] == label].groupby("epoch")["value"]
                mean, sd = by_epoch.mean(), by_epoch.std().fillna(0.0)
                _, colour, marker = look[label]
                ax.plot(mean.index, mean, color=colour, marker=marker, ms=3, lw=1.2)
                ax.fill_between(mean.index, mean - sd, mean + sd, color=colour, alpha=0.1, lw=0)
                means.append(mean)
            every = pd.concat(means) if means else pd.Series(dtype=float)
            if len(every) and float(every.min()) > 0 and float(every.max() / every.min()) > 30:
                ax.set_yscale("log")
            elif len(every) and float(every.min()) < 0 < float(every.max()):
                ax.axhline(0, color=MUTED, lw=0.8, zorder=0)
            ax.set_title(
                folded(measure_name(name), letters(ax, size="large") - 4),
                fontsize="small",
                color=ink(FAMILIES[family(name)]),
            )
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            ax.grid(axis="y")
            if ax is panels[len(names) - 1, j]:
                ax.set_xlabel("Epoch")
                ax.tick_params(labelbottom=True)
    legend(figure, ordered(rows["method"]), methods, markers=True)
    return figure
