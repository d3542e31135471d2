"""Perturbation batch: do smaller m generalise better, and forget more?"""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from analysis.results import StudyResults
from analysis.run_outcomes import outcomes
from analysis.statistics.methods import chosen
from analysis.style import fixed, p_value
from studies.pages.choices import INTEREST, compared, contrast, matrix, on_edge, slopes, with_radius_zero
from studies.pages.page import Answer, Folders, Page
from studies.pages.verdicts import Contrast, Hypothesis, decide, listed, reach

METHODS = ("sam", "obf")
SPLITS = {"exposed": "exposed", "held_out": "held-out"}
NATS = 0.01  # a change of F_mi by doubling m that is of interest


def answer(folders: Folders) -> Answer:
    """The page's answer."""
    runs = outcomes(folders["perturbation_batch"])
    perturbed = runs["rho"].notna()
    runs = runs.assign(m=runs["m"].where(runs["m"].notna() | ~perturbed, runs["batch_size"]))
    runs = with_radius_zero(runs, by=("method", "m"))
    errors, trends, tables = [], [], []
    for method in METHODS:
        here = runs[runs["method"] == method].astype({"m": int})
        of = dict(list(here.groupby("m")))
        small, large = min(of), max(of)
        name = f"m = {small} against m = {large}"
        errors.append(Hypothesis(f"`{method}`", (contrast(name, of[small], of[large]),)))
        trends.append(Hypothesis(f"`{method}`", (trend(here),)))
        tables += [
            "",
            f"## `{method}`: test error by m",
            "",
            *compared(here, baseline=large, group="m"),
            "",
            page_s(here),
        ]
    forgotten = by_size(folders["perturbation_batch_forgetting"])
    forgets = [
        Hypothesis(f"`{provider}` on {SPLITS[split]} inputs", (falls(table),))
        for (provider, split), table in forgotten.items()
    ]
    verdicts = decide([*errors, *trends, *forgets])
    n = len(METHODS)
    short = (
        f"Do smaller m generalise better? {listed(verdicts[:n])} Is there a trend over m? "
        f"{listed(verdicts[n : 2 * n])} Do smaller perturbation batches forget more? {listed(verdicts[2 * n :])}"
    )
    lines = ["The smallest m against the largest:", "", *(v.line for v in verdicts[:n]), ""]
    lines += ["A lower error with each halving of m:", "", *(v.line for v in verdicts[n : 2 * n]), ""]
    lines += ["More forgotten by perturbations of fewer examples:", "", *(v.line for v in verdicts[2 * n :])]
    lines += ["", reach(verdicts), *tables, *forgetting_table(forgotten)]
    return Answer(short, CHANGED, lines)


def trend(runs: pd.DataFrame) -> Contrast:
    """The change of the test error with each halving of m, a slope a seed; negative is what the claim says."""
    table = matrix(runs, "m")
    edges = [on_edge(here, chosen(here).name) for _, here in runs.groupby("m")]
    doubt = next(filter(None, edges), "")
    interest = INTEREST / np.log2(table.columns.max() / table.columns.min())  # one point from end to end
    name = "change with each halving of m"
    return Contrast(name, -slopes(table), float(interest), digits=2, open_if_held=doubt, open_if_excluded=doubt)


def page_s(runs: pd.DataFrame) -> str:
    """Page's trend test, which looks at the order of the levels in each seed alone."""
    table = matrix(runs, "m")
    found = stats.page_trend_test(table.to_numpy(), predicted_ranks=np.arange(1, len(table.columns) + 1))
    return (
        f"Page's trend test, that the error rises with m (ranks inside {len(table)} seeds): p {p_value(found.pvalue)}."
    )


def by_size(folder: Path) -> dict[tuple[str, str], pd.DataFrame]:
    """F_mi at equal rise of the loss by m: for each provider and split one row a seed, the mean over its models."""
    rows = StudyResults.load(folder).forgetting()
    rows = rows[(rows["measure"] == "F_mi") & (rows["radius"] == "iso-loss") & rows["split"].isin(SPLITS)]
    return {
        (str(provider), str(split)): here.pivot_table(
            index="hp.seed", columns="m", values="value", aggfunc="mean"
        ).dropna()
        for (provider, split), here in rows.groupby(["provider", "split"])
    }


def falls(table: pd.DataFrame) -> Contrast:
    """The change of what is forgotten with each doubling of m, a slope a seed; negative is what the claim says."""
    name = "change of F_mi with each doubling of m"
    return Contrast(name, slopes(table), NATS, scale=1.0, unit="nats", digits=3)


def forgetting_table(forgotten: dict[tuple[str, str], pd.DataFrame]) -> list[str]:
    """What perturbations of batches of several sizes make the same models forget."""
    sizes = list(next(iter(forgotten.values())).columns)
    lines = ["", "## What perturbations of m examples make the same models forget", ""]
    lines += [
        "| provider | inputs | " + " | ".join(f"m = {m:g}" for m in sizes) + " | trend: Page's p, falling; rising |"
    ]
    lines += ["|---|---|" + "---:|" * (len(sizes) + 1)]
    for (provider, split), table in forgotten.items():
        cells = [f"{fixed(table[m].mean(), 3)} ± {fixed(table[m].std(), 3)}" for m in sizes]
        ranks = np.arange(1, len(sizes) + 1)
        rising = stats.page_trend_test(table.to_numpy(), predicted_ranks=ranks).pvalue
        falling = stats.page_trend_test(table.to_numpy(), predicted_ranks=ranks[::-1]).pvalue
        lines.append("| " + " | ".join([provider, split, *cells, f"{p_value(falling)}; {p_value(rising)}"]) + " |")
    note = (
        "F_mi in nats, mean ± standard deviation over seeds, of the mean over the seed's models (SGD, SAM, OBF, whole "
    )
    return [*lines, "", note + "batches), at equal rise of the loss on the perturbed batch."]


CHANGED = (
    "The earlier page found m = 4 better than m = 64 for both, with the largest radius of the grid chosen for most m, "
    "and tested the ends alone; what is forgotten stood in a table without a test. Now the trend over log m is tested "
    "on both, each m has radii on both sides of its own, and each seed is a new draw of the data."
)

PAGE = Page(
    "perturbation_batch",
    ("perturbation_batch", "perturbation_batch_forgetting"),
    "Perturbation batch: do smaller m generalise better?",
    "Foret et al. (2021) and Andriushchenko and Flammarion (2022) report lower test errors for smaller m; Vani et al. "
    "(2024) that smaller perturbation batches forget better. Here: digits with a fifth of the labels wrong, an MLP, "
    "six seeds (eight for what is forgotten), each a new draw of the data.",
    "Eight hypotheses. For SAM and OBF: the smallest m has a lower test error than the largest, each m at the radius "
    "with the lowest mean validation error (one point is of interest); and the test error falls with each halving of "
    "m (least squares on log m in each seed; one point from end to end is of interest). For perturbations by both, of "
    "models that all were trained with whole batches: F_mi at equal rise of the loss falls with each doubling of m, "
    "on the exposed and on held-out inputs (0.01 nats a doubling are of interest).",
    answer,
)
