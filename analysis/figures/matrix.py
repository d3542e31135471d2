"""Heat map of the correlations of measures with several targets."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from analysis.figures.correlations import matrix_rows, strongest_baselines
from analysis.figures.room import key
from analysis.statistics.correlation_rows import BASELINE, completed
from analysis.style import FAMILIES, INK, family, fixed, ink, measure_name

CELL = 5  # letters that the number in a cell needs


def correlation_matrix(
    ax: Axes,
    correlations: pd.DataFrame,
    *,
    coefficient: str = "kendall",
    top: int = 20,
    targets: list[str] | None = None,
) -> Axes:
    """Heat map, baselines and measures by targets; bold where the interval excludes 0, a dash where there is no value.

    Args:
        ax: Where to draw.
        correlations: Table with the columns of `analysis.results.CORRELATIONS`.
        coefficient: "kendall", "spearman" or "pearson".
        top: How many measures, by their largest absolute value over the targets; above them the `KNOWN` strongest
            baselines.
        targets: Columns, in order; all of the table's by default.
    """
    rows = completed(correlations[correlations["coefficient"] == coefficient])
    names = targets or list(dict.fromkeys(rows["target"]))
    rows = rows[rows["target"].isin(names)]
    value = rows.pivot_table(index="measure", columns="target", values="value", aggfunc="first").reindex(columns=names)
    clear = (rows["low"] > 0) | (rows["high"] < 0)
    sure = rows.assign(clear=clear.astype(float)).pivot_table(index="measure", columns="target", values="clear")
    baselines = strongest_baselines(rows, names)
    value = value.loc[[*baselines, *matrix_rows(rows, top=top)]]
    groups = {name: i for i, name in enumerate((BASELINE, *(k for k in FAMILIES if k != BASELINE)))}
    first = np.abs(np.nan_to_num(value.to_numpy(dtype=float)[:, :1].ravel()))
    strength = dict(zip(value.index, first, strict=True))
    order = sorted(value.index, key=lambda m: (groups[family(m)], -strength[m]))
    value, sure = value.loc[order], sure.reindex(index=order, columns=names)
    ax.imshow(value.to_numpy(dtype=float), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for i, measure in enumerate(order):
        for j, name in enumerate(names):
            x = value.loc[measure, name]
            ax.text(j, i, fixed(x).replace("0.", ".", 1), ha="center", va="center",
                    fontsize="x-small" if len(names) > 7 else "small",
                    color="white" if abs(x) > 0.62 else INK,
                    fontweight="bold" if sure.loc[measure, name] == 1 else "normal")  # fmt: skip
    shown = [measure_name(name) for name in names]
    ax.set_xticks(range(len(names)), shown, fontsize="small", rotation=90)
    ax.xaxis.tick_top()
    ax.set_yticks(range(len(order)), [measure_name(m) for m in order], fontsize="small")
    for label, name in zip(ax.get_yticklabels(), order, strict=True):
        label.set_color(ink(FAMILIES[family(name)]))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xticks(np.arange(len(names) - 1) + 0.5, minor=True)
    ax.set_yticks(np.arange(len(order) - 1) + 0.5, minor=True)
    ax.grid(which="minor", color="white", lw=3)
    ax.tick_params(which="minor", length=0)
    kinds = [family(m) for m in order]
    for i in range(1, len(kinds)):
        if kinds[i] != kinds[i - 1]:
            ax.axhline(i - 0.5, color="white", lw=5)
    handles = [Patch(color=FAMILIES[kind], label=kind) for kind in dict.fromkeys(kinds)]
    key(ax, handles, below=True)
    return ax
