"""Of the runs of a study those that a page compares: at settings chosen on validation data, paired by seed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.reporting.methods import method_comparison
from analysis.reporting.tables import to_markdown
from analysis.statistics.methods import chosen, compare_methods, edge_of_grid
from analysis.statistics.units import OF_METHOD
from studies.pages.verdicts import Contrast

INTEREST = 0.01  # of an error: one point in a hundred
TWICE = "sgd ×2"  # SGD with twice the epochs: as many gradients as SAM


def by_cost(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs, with SGD of more epochs than the others named as a method of its own: sgd ×2."""
    epochs = runs["epochs"] / runs["epochs"].min()
    longer = (runs["method"] == "sgd") & (epochs > 1)
    return runs.assign(method=runs["method"].where(~longer, "sgd ×" + epochs.map("{:.3g}".format)))


def with_radius_zero(runs: pd.DataFrame, by: Sequence[str] = ("method",)) -> pd.DataFrame:
    """The runs, and beside every perturbed group those of SGD at equal settings, as its radius 0.

    At radius 0 each method is SGD bit for bit, so that its runs need not be made again. What validation data choose for
    a method may then be not to perturb at all.

    Args:
        runs: One row a run, as `outcomes` gives them.
        by: Columns whose values make a group.
    """
    perturbed = runs[runs["rho"].notna()]
    plain = runs[runs["method"] == "sgd"]
    copies = []
    for number, (group, mine) in enumerate(perturbed.groupby(list(by), sort=True), start=1):
        same = plain[plain["lr"].isin(mine["lr"]) & plain["epochs"].isin(mine["epochs"])]
        shared = {name: [mine[name].iloc[0]] * len(same) for name in OF_METHOD if name in mine}
        names: dict[Any, Any] = dict(zip(by, group, strict=True))
        moved = same["configuration"] + number * (runs["configuration"].max() + 1)
        copies.append(same.assign(**shared | names | {"rho": 0.0, "configuration": moved}))
    return pd.concat([runs, *copies], ignore_index=True)


def contrast(
    name: str,
    runs: pd.DataFrame,
    baseline: pd.DataFrame,
    *,
    target: str = "test_error",
    choose: str = "validation_error",
    interest: float = INTEREST,
    **more: Any,
) -> Contrast:
    """The difference of two groups of runs, each at the setting that validation data choose, paired by seed.

    Where a setting lies on the edge of its grid, a wider one may hold a better: a group so chosen can win, not lose.

    Args:
        name: For a reader.
        runs: Those of one group.
        baseline: Those of the other, which are subtracted.
        target: Column to compare.
        choose: Column that chooses.
        interest: The smallest difference of interest.
        **more: Of `Contrast`.
    """
    mine, other = chosen(runs, target, choose), chosen(baseline, target, choose)
    both = sorted(set(mine.index) & set(other.index))
    return Contrast(
        name,
        (mine[both] - other[both]).to_numpy(dtype=float),
        interest,
        open_if_held=on_edge(baseline, other.name),
        open_if_excluded=on_edge(runs, mine.name),
        **more,
    )


def on_edge(runs: pd.DataFrame, configuration: object) -> str:
    """Where a configuration lies on the edge of the radii of its group, or of the learning rates of plain SGD."""
    axis = "rho" if runs["rho"].notna().any() else "lr"
    edge = edge_of_grid(runs, configuration, axis)
    return f"the chosen {edge} ({runs['method'].iloc[0]})" if edge else ""


def compared(
    runs: pd.DataFrame,
    *,
    baseline: object = "sgd",
    group: str = "method",
    by: Sequence[str] = (),
    target: str = "test_error",
    choose: str = "validation_error",
) -> list[str]:
    """The comparison of groups with a baseline as a table, with the note below it."""
    names = {"target": target, "choose": choose}
    found = compare_methods(runs, baseline=baseline, group=group, by=by, **names)  # type: ignore[arg-type]
    table = method_comparison(found, runs, group=group, by=by, **names)
    return [to_markdown(table), "", table.note]


def matrix(
    runs: pd.DataFrame, levels: str, *, target: str = "test_error", choose: str = "validation_error"
) -> pd.DataFrame:
    """The target at the chosen setting of each level: one row a seed, one column a level, seeds without a gap."""
    columns = {level: chosen(here, target, choose) for level, here in runs.groupby(levels)}
    return pd.DataFrame(columns).dropna()


def slopes(table: pd.DataFrame) -> np.ndarray:
    """Least-squares slope of each row on the logarithm to base 2 of the columns' names: the change per doubling."""
    x = np.log2(np.asarray(table.columns, dtype=float))
    x = x - x.mean()
    found: np.ndarray = table.to_numpy(dtype=float) @ x / (x @ x)
    return found
