"""Reliability diagram: accuracy against confidence, bin by bin, with how many predictions each bin holds."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure, SubFigure

from analysis.figures.curves import legend
from analysis.style import INK, looks, ordered

Z = 1.959963984540054  # of a 95 % interval


def reliability_diagram(
    figure: Figure | SubFigure, bins: pd.DataFrame, *, methods: list[str] | None = None
) -> Figure | SubFigure:
    """Above, accuracy in each bin of confidence with its 95 % interval; below, the share of predictions in it.

    On the diagonal a model is as often right as it says; below it, it is too sure. Bins of several runs of a method are
    pooled, each prediction counted once. The interval is Wilson's.

    Args:
        figure: Where to draw; it gets two panels, one above the other.
        bins: One row a run and bin: method, bin, confidence and accuracy (means over its predictions), n.
        methods: All methods of the study, so that colours agree between figures.

    Raises:
        ValueError: If no bin holds a prediction.

    Source:
        DeGroot and Fienberg (1983), The Statistician 32; interval: Wilson (1927), JASA 22.
    """
    rows = bins[(bins["n"] > 0) & np.isfinite(bins["accuracy"]) & np.isfinite(bins["confidence"])]
    if rows.empty:
        raise ValueError("`bins` holds no bin with a prediction: measure `reliability`.")
    look = looks(methods or rows["method"])
    labels = ordered(rows["method"])
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    above.plot([0, 100], [0, 100], color=INK, lw=0.8, ls=":", zorder=0)
    for label in labels:
        _, colour, marker = look[label]
        pooled = pool(rows[rows["method"] == label])
        low, high = wilson(pooled["accuracy"].to_numpy(), pooled["n"].to_numpy())
        x, y = 100 * pooled["confidence"], 100 * pooled["accuracy"]
        above.errorbar(x, y, yerr=[y - 100 * low, 100 * high - y], color=colour, marker=marker, ms=4, mec="white",
                       mew=0.4, lw=1.2, elinewidth=0.7)  # fmt: skip
        below.plot(x, 100 * pooled["n"] / pooled["n"].sum(), color=colour, marker=marker, ms=3, lw=1.0)
    above.set_ylabel("Right (%)")
    above.set_ylim(0, 102)
    below.set_ylabel("Share (%)")
    below.set_ylim(0, None)
    below.set_xlabel("Confidence (%)")
    left = 100 * float(rows["confidence"].min())
    below.set_xlim(max(0.0, left - 4), 102)
    for ax in (above, below):
        ax.grid()
    legend(figure, labels, methods, markers=True)
    return figure


def pool(bins: pd.DataFrame) -> pd.DataFrame:
    """Bins of several runs together: confidence and accuracy weighted by the number of predictions; one row a bin."""
    rows = bins.assign(confidence=bins["confidence"] * bins["n"], accuracy=bins["accuracy"] * bins["n"])
    sums = rows.groupby("bin")[["confidence", "accuracy", "n"]].sum()
    return sums.assign(confidence=sums["confidence"] / sums["n"], accuracy=sums["accuracy"] / sums["n"]).reset_index()


def wilson(share: np.ndarray, n: np.ndarray, z: float = Z) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval of a share of n: inside [0, 1], and not of no width where the share is 0 or 1."""
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.minimum(middle - half, share), np.maximum(middle + half, share)
