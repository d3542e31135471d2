"""Perturbed forgetting: over training, and by who perturbs and what the perturbation had seen."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from analysis.figures.curves import legend
from analysis.figures.room import folded, key, letters
from analysis.style import EXPOSURES, MUTED, PROVIDERS, RADII, looks, ordered

NAME = 9  # letters that the name of a provider needs below its bars
UNITS = {
    "cw": "right → wrong (share)",
    "wc": "wrong → right (share)",
    "F_mi": "F_mi (nats)",
    "F_cmi": "F_cmi (nats)",
    "F_use": "F_use (nats)",
    "dCE": "loss increase (nats)",
    "KL": "moved predictions (KL, nats)",
    "dloss": "loss increase",
}


def forgetting_curves(
    figure: Figure | SubFigure,
    rows: pd.DataFrame,
    *,
    by: Literal["exposure", "method"] = "exposure",
    measures: tuple[str, ...] = ("F_mi", "cw"),
    methods: list[str] | None = None,
) -> Figure | SubFigure:
    """Forgetting over training: measures down, providers across, a line an exposure (or a method); mean and deviation.

    Args:
        figure: Where to draw.
        rows: `StudyResults.forgetting()`, cut to one radius and one m (and, by method, to one exposure).
        by: What the lines are.
        measures: Measures, one row of panels each.
        methods: All methods of the study, so that colours agree between figures.

    Raises:
        ValueError: If `by` is neither "exposure" nor "method".
    """
    if by not in ("exposure", "method"):
        raise ValueError(f'`by` must be "exposure" or "method", got {by!r}.')
    providers = _present(rows["provider"], PROVIDERS)
    lines = _exposure_lines() if by == "exposure" else _method_lines(methods or list(rows["method"]))
    column = "split" if by == "exposure" else "method"
    for ax, here in _panels(figure, rows, measures, "provider", {p: _perturbs(p) for p in providers}, "Epoch"):
        ax.axhline(0, color=MUTED, lw=0.8)
        for name, (colour, style) in lines.items():
            by_epoch = here[here[column] == name].groupby("epoch")["value"]
            mean, sd = by_epoch.mean(), by_epoch.std().fillna(0.0)
            ax.plot(mean.index, mean, color=colour, ls=style, marker="o", ms=2.5)
            ax.fill_between(mean.index, mean - sd, mean + sd, color=colour, alpha=0.15, lw=0)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if by == "method":
        legend(figure, ordered(rows["method"]), methods)
    else:
        handles = [
            Line2D([], [], color=c, ls=s, label=n) for k, (n, c, s) in EXPOSURES.items() if k in set(rows["split"])
        ]
        key(figure, handles)
    return figure


def forgetting_bars(
    figure: Figure | SubFigure, rows: pd.DataFrame, *, measures: tuple[str, ...] = ("cw", "F_mi", "F_cmi")
) -> Figure | SubFigure:
    """Small multiples: measures down, radii across; bars by provider and exposure, mean and deviation over runs.

    Args:
        figure: Where to draw.
        rows: `StudyResults.forgetting()`, cut to one checkpoint a run and one m.
        measures: Measures, one row of panels each.
    """
    providers = _present(rows["provider"], PROVIDERS)
    radii = _present(rows["radius"], RADII)
    width = 0.8 / len(EXPOSURES)
    for ax, here in _panels(figure, rows, measures, "radius", {r: RADII.get(r, r) for r in radii}, ""):
        for k, (split, (_, colour, _)) in enumerate(EXPOSURES.items()):
            groups = here[here["split"] == split].groupby("provider")["value"]
            mean, sd = groups.mean().reindex(providers), groups.std().reindex(providers)
            at = np.arange(len(providers)) + (k - 1) * width
            ax.bar(at, mean, width, yerr=sd, color=colour, error_kw={"elinewidth": 0.8, "ecolor": MUTED})
        for x, provider in enumerate(providers):
            if provider not in set(here["provider"]):
                ax.annotate("not measured", (x, 0), (0, 3), textcoords="offset points", ha="center",
                            fontsize="x-small", color=MUTED)  # fmt: skip
        ax.axhline(0, color=MUTED, lw=0.8)
        size = "small" if letters(ax) > NAME * len(providers) else "x-small"
        ax.set_xticks(range(len(providers)), [PROVIDERS.get(p, p) for p in providers], fontsize=size)
        ax.tick_params(axis="x", length=0)
    handles = [Patch(color=c, label=n) for k, (n, c, _) in EXPOSURES.items() if k in set(rows["split"])]
    key(figure, handles)
    return figure


def _panels(
    figure: Figure | SubFigure, rows: pd.DataFrame, measures: Sequence[str], column: str, across: Mapping[str, str],
    below: str,
) -> Iterator[tuple[Axes, pd.DataFrame]]:  # fmt: skip
    """Measures down, values of a column with their titles across: each panel with its rows, and what all have."""
    panels = figure.subplots(len(measures), len(across), squeeze=False, sharex=True, sharey="row")
    room = letters(panels[0, 0], size="x-large") - 3  # of bold titles
    for (i, measure), (j, (value, title)) in product(enumerate(measures), enumerate(across.items())):
        ax = panels[i, j]
        yield ax, rows[(rows["measure"] == measure) & (rows[column] == value)]
        if i == 0:
            ax.set_title(folded(title, room))
        if j == 0:
            ax.set_ylabel(UNITS.get(measure, measure))
        if below and i == len(measures) - 1:
            ax.set_xlabel(folded(below, room))
        ax.grid(axis="y")


def _perturbs(provider: str) -> str:
    return f"{PROVIDERS.get(provider, provider)} perturbs"


def _present(values: pd.Series, known: dict[str, str]) -> list[str]:
    given = set(values.astype(str))
    return [k for k in known if k in given] + sorted(given - set(known))


def _exposure_lines() -> dict[str, tuple[str, str]]:
    return {k: (colour, style) for k, (_, colour, style) in EXPOSURES.items()}


def _method_lines(methods: list[str]) -> dict[str, tuple[str, str]]:
    return {k: (colour, "-") for k, (_, colour, _) in looks(methods).items()}


def forgetting_by_size(
    figure: Figure | SubFigure, rows: pd.DataFrame, *, measures: tuple[str, ...] = ("F_mi", "cw")
) -> Figure | SubFigure:
    """Forgetting against the size m of the perturbation batch: measures down, providers across, a line an exposure.

    Args:
        figure: Where to draw.
        rows: `StudyResults.forgetting()`, cut to one checkpoint a run and one radius. "all" stands for a batch of all
            training data, and is drawn at the right end, at an even step.
        measures: Measures, one row of panels each; mean and standard deviation over runs.
    """
    sizes = sorted(set(rows["m"].dropna()), key=size_order)
    place = {m: i for i, m in enumerate(sizes)}
    providers = _present(rows["provider"], PROVIDERS)
    shown = [k for k in EXPOSURES if k in set(rows["split"])]
    titles = {p: _perturbs(p) for p in providers}
    for ax, here in _panels(figure, rows, measures, "provider", titles, "Perturbation batch m"):
        ax.axhline(0, color=MUTED, lw=0.8)
        for k, split in enumerate(shown):
            _, colour, style = EXPOSURES[split]
            groups = here[here["split"] == split].groupby(here["m"].map(place))["value"]
            mean, sd = groups.mean(), groups.std()
            at = mean.index.to_numpy(dtype=float) + 0.06 * (k - (len(shown) - 1) / 2)
            ax.errorbar(at, mean, yerr=sd, color=colour, ls=style, marker="o", ms=4, elinewidth=0.9)
        ax.set_xticks(range(len(sizes)), [m if isinstance(m, str) else f"{m:g}" for m in sizes])
    handles = [Line2D([], [], color=EXPOSURES[k][1], ls=EXPOSURES[k][2], label=EXPOSURES[k][0]) for k in shown]
    key(figure, handles)
    return figure


def size_order(m: float | str) -> tuple[bool, float]:
    """Sorts sizes of batches: numbers by size, then "all"."""
    return isinstance(m, str), 0.0 if isinstance(m, str) else float(m)
