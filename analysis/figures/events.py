"""How often training examples were forgotten, with those that were never learned apart."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis.figures.room import key
from analysis.style import INK, looks, ordered

NEVER = "never"
MOST = 12  # events shown one by one; more are one bar


def forgetting_histogram(ax: Axes, shares: pd.DataFrame, *, methods: list[str] | None = None) -> Axes:
    """Share of the training examples by the number of times they were forgotten; never learned is a bar of its own.

    An example that was never right was never forgotten either: counted among those of no event it would look like the
    easiest of all. The mean over a method's runs is the bar, one standard deviation the whisker.

    Args:
        ax: Where to draw.
        shares: One row a run and count: run_id, method, events (a number, or "never") and share (a fraction); a count
            that a run does not have is a share of 0.
        methods: All methods of the study, so that colours agree between figures.

    Raises:
        ValueError: If there is no row.

    Source:
        Toneva et al. (2019), ICLR, figure 1.
    """
    if shares.empty:
        raise ValueError("`shares` is empty: measure `forgetting_counts`.")
    never = shares["events"].astype(str) == NEVER
    counts = pd.to_numeric(shares["events"].where(~never), errors="coerce")
    place = counts.clip(upper=MOST).where(~never, -1.0)  # never learned goes to the end
    last = int(np.nanmax([place.max(), 0]))
    place = place.where(~never, last + 2)
    table = shares.assign(place=place).pivot_table(index=["method", "run_id"], columns="place", values="share",
                                                   aggfunc="sum", fill_value=0.0)  # fmt: skip
    look = looks(methods or shares["method"])
    labels = ordered(shares["method"])
    width = 0.8 / len(labels)
    for at, label in enumerate(labels):
        here = 100 * table.xs(label, level="method")
        x = here.columns.to_numpy(dtype=float) + width * (at - (len(labels) - 1) / 2)
        sd = here.to_numpy().std(axis=0, ddof=1) if len(here) > 1 else None
        ax.bar(x, here.mean(), width, yerr=sd, color=look[label][1], label=look[label][0],
               error_kw={"elinewidth": 0.7, "ecolor": INK})  # fmt: skip
    ticks = list(range(last + 1))
    step = max(1, len(ticks) // 8)
    shown = ticks[::step]
    names = [f"{t}" if t < MOST else f"{MOST} +" for t in shown]
    ends = [last + 2] if never.any() else []
    ax.set_xticks([*shown, *ends], [*names, *["never\nlearned"] * len(ends)])
    if ends:
        ax.axvline(last + 1, color=INK, lw=0.6, ls=":")
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.set_xlabel("Times forgotten")
    ax.set_ylabel("Training examples (%)")
    ax.grid(axis="y")
    key(ax, *ax.get_legend_handles_labels())
    return ax
