"""What each page says: the claim, the rule that decides it, fixed before the study was run, and the numbers."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.outcomes import outcomes
from analysis.reporting.methods import method_comparison
from analysis.reporting.tables import p_value, to_markdown
from analysis.results import StudyResults
from analysis.statistics.methods import compare_methods
from analysis.style import fixed, interval

SIGNIFICANT = 0.05
Folders = dict[str, Path]


@dataclass(frozen=True)
class Page:
    """A page of results.

    Attributes:
        name: Of the page's file.
        studies: Study files it is made from.
        title: Heading.
        claim: What is tested, and whose claim it is.
        rule: What the numbers must show for the claim to hold.
        body: Makes the rest from the studies' folders.
    """

    name: str
    studies: tuple[str, ...]
    title: str
    claim: str
    rule: str
    body: Callable[[Folders], list[str]]


def compared(
    runs: pd.DataFrame, *, baseline: str = "sgd", group: str = "method", by: Sequence[str] = (), stopped: bool = False
) -> tuple[pd.DataFrame, list[str]]:
    """The comparison of groups with a baseline, and its table with the note below it."""
    end = "_stopped" if stopped else ""
    names = {"target": f"test_error{end}", "choose": f"validation_error{end}"}
    found = compare_methods(runs, baseline=baseline, group=group, by=by, **names)
    table = method_comparison(found, runs, group=group, by=by, **names)
    return found, [to_markdown(table), "", table.note]


def better(row: pd.Series) -> bool:
    """Whether a group is better than the baseline after Holm's correction."""
    return bool(row["p_holm"] < SIGNIFICANT and row["difference"] < 0)


def said(yes: bool, text: str) -> str:
    """The verdict."""
    return f"**{'Holds' if yes else 'Does not hold'}**: {text}"


def points(value: float) -> str:
    """A difference of errors in percentage points."""
    return f"{fixed(100 * value, 1)} points"


def label_noise(folders: Folders) -> list[str]:
    """Page (a)."""
    runs = outcomes(folders["label_noise"])
    found, last = compared(runs, by=["label_noise"])
    early, stopped = compared(runs, by=["label_noise"], stopped=True)
    lines = []
    for method in [m for m in found["group"].unique() if m != "sgd"]:
        mine, theirs = found[found["group"] == method], early[early["group"] == method]
        noisy, noisy_early = mine[mine["label_noise"] > 0], theirs[theirs["label_noise"] > 0]
        ends = [mine[mine["label_noise"] == level].iloc[0] for level in (0.0, mine["label_noise"].max())]
        wins, wins_early = int(noisy.apply(better, axis=1).sum()), int(noisy_early.apply(better, axis=1).sum())
        grows = bool(ends[1]["high"] < ends[0]["low"])
        lines.append(
            "- "
            + said(
                wins == len(noisy),
                f"`{method}` is better than SGD at the end of training at {wins} of {len(noisy)} shares of wrong "
                f"labels; its advantage is {points(-ends[0]['difference'])} without noise and "
                f"{points(-ends[1]['difference'])} "
                f"at {ends[1]['label_noise']:g} (intervals {'apart' if grows else 'overlap'}). Stopped at the "
                f"epoch chosen on validation data: better at {wins_early} of {len(noisy)}.",
            )
        )
    return [*lines, "", "## At the end of training", "", *last, "", "## Stopped by validation error", "", *stopped]


def perturbation_batch(folders: Folders) -> list[str]:
    """Page (b)."""
    runs = outcomes(folders["perturbation_batch"])
    lines = []
    tables: list[str] = []
    for method in ("sam", "obf"):
        here = runs[runs["method"] == method]
        here = here.assign(m=here["m"].fillna(here["batch_size"]).astype(int))  # m of the whole batch is left out
        found, table = compared(here, baseline=here["m"].max(), group="m")
        small = found[found["group"] == here["m"].min()].iloc[0]
        lines.append(
            "- "
            + said(
                better(small),
                f"`{method}` with m = {small['group']} against m = {here['m'].max()}: difference "
                f"{points(small['difference'])} [{fixed(100 * small['low'], 1)}, {fixed(100 * small['high'], 1)}], "
                f"p (Holm) {p_value(small['p_holm'])}.",
            )
        )
        tables += ["", f"## `{method}`: test error by m", "", *table]
    return [*lines, *tables, *forgotten_by_m(folders["perturbation_batch"])]


def forgotten_by_m(folder: Path) -> list[str]:
    """What perturbations of batches of several sizes make the same models forget."""
    results = StudyResults.load(folder)
    rows = results.forgetting()
    rows = rows[rows["measure"].isin(["F_mi", "cw"]) & (rows["radius"] == "iso-loss")]
    if rows.empty:
        return []
    mean = rows.groupby(["provider", "measure", "split", "m"])["value"].agg(["mean", "std", "size"]).reset_index()
    mean["value"] = [f"{fixed(a, 4)} ± {fixed(b, 4)}" for a, b in zip(mean["mean"], mean["std"], strict=True)]
    wide = mean.pivot_table(index=["provider", "measure", "split"], columns="m", values="value", aggfunc="first")
    lines = ["", "## What perturbations of m examples make all these models forget", ""]
    lines += ["| provider | measure | examples | " + " | ".join(f"m = {m:g}" for m in wide.columns) + " |"]
    lines += ["|---|---|---|" + "---:|" * len(wide.columns)]
    lines += ["| " + " | ".join([*index, *row]) + " |" for index, row in zip(wide.index, wide.to_numpy(), strict=True)]
    return [*lines, "", "Mean ± standard deviation over models, at equal rise of the loss on the batch."]


HYPOTHESIS = "F_mi[obf, iso-loss, C=1000, exposed]"
FLATNESS = ("top_eigenvalue", "hessian_trace")


def predictors(folders: Folders) -> list[str]:
    """Page (c)."""
    lines, tables = [], []
    for name, folder in folders.items():
        results = StudyResults.load(folder)
        table = results.correlations
        rows = table[(table["target"] == "test_error") & (table["coefficient"] == "kendall")].set_index("measure")
        pairs = results.comparisons
        pairs = pairs[(pairs["target"] == "test_error") & (pairs["forgetting"] == HYPOTHESIS)].set_index("sharpness")
        if HYPOTHESIS not in rows.index:
            lines.append(f"- `{name}`: {HYPOTHESIS} could not be measured.")
            continue
        wins = [bool(pairs.loc[s, "low"] > 0) for s in FLATNESS]
        row = rows.loc[HYPOTHESIS]
        differences = "; ".join(
            f"against {s}: {interval(pairs.loc[s, 'difference'], pairs.loc[s, 'low'], pairs.loc[s, 'high'])}"
            for s in FLATNESS
        )
        runs = results.runs
        lines.append(
            "- "
            + said(
                all(wins) and row["value"] < 0,
                f"`{name}` ({int((runs['status'] == 'finished').sum())} models, "
                f"{int(row['n_configurations'])} configurations): tau_b "
                f"{interval(row['value'], row['low'], row['high'])}, within methods {fixed(row['within'])}; paired "
                f"difference of |tau_b| {differences}.",
            )
        )
        shown = rows.reindex(rows["value"].abs().sort_values(ascending=False).index)
        shown = shown[np.isfinite(shown["value"].to_numpy(dtype=float))]
        tables += ["", f"## `{name}`: tau_b with the test error", ""]
        tables += ["| measure | tau_b | within methods | p (Holm) | configurations |", "|---|---:|---:|---:|---:|"]
        keep = shown[(np.arange(len(shown)) < 15) | shown.index.isin([HYPOTHESIS, *FLATNESS])]
        tables += [
            f"| `{measure}` | {interval(r['value'], r['low'], r['high'])} | {fixed(r['within'])} | "
            f"{p_value(r['p_holm'])} | {int(r['n_configurations'])} |"
            for measure, r in keep.iterrows()
        ]
        tables += ["", f"The fifteen largest of {len(shown)}, and those of the hypothesis."]
    return [*lines, *tables]


def obf(folders: Folders) -> list[str]:
    """Page (d)."""
    runs = outcomes(folders["obf"])
    lines, tables = [], []
    for baseline, other in (("sam", "obf"), ("asam", "asam+OBF"), ("gsam", "gsam+OBF")):
        here = runs[runs["method"].isin([baseline, other])]
        row = compare_methods(here, baseline=baseline).set_index("group").loc[other]
        clear = row["p"] < SIGNIFICANT / 3
        worse = " It is clearly worse." if clear and row["difference"] > 0 else ""
        lines.append(
            "- "
            + said(
                bool(clear and row["difference"] < 0),
                f"`{other}` against `{baseline}`: {points(row['difference'])} [{fixed(100 * row['low'], 1)}, "
                f"{fixed(100 * row['high'], 1)}], p {p_value(row['p'])}.{worse}",
            )
        )
    _, table = compared(runs)
    tables += ["", "## All methods against SGD", "", *table]
    return [*lines, *tables]


def late_phase(folders: Folders) -> list[str]:
    """Page (e)."""
    runs = outcomes(folders["late_phase"])
    lines, tables = [], []
    plain = runs[runs["method"] == "sgd"]
    for method in ("sam", "obf"):
        here = runs[runs["method"] == method].assign(start=lambda t: t["perturb_from"].astype(float).map("{:g}".format))
        found, table = compared(pd.concat([here, plain.assign(start="never")]), baseline="0", group="start")
        rows = found.set_index("group")
        worse = [s for s, r in rows.iterrows() if s != "0" and r["p_holm"] < SIGNIFICANT and r["difference"] > 0]
        late = rows.drop(index=["0", "never"])
        lines.append(
            "- "
            + said(
                "0.75" not in worse and "never" in worse,
                f"`{method}` from three quarters of training on: {points(rows.loc['0.75', 'difference'])} "
                f"[{fixed(100 * rows.loc['0.75', 'low'], 1)}, {fixed(100 * rows.loc['0.75', 'high'], 1)}] worse than "
                f"throughout; worse after correction: {', '.join(map(str, worse)) or 'none'} of "
                f"{', '.join(map(str, late.index))}, never.",
            )
        )
        tables += ["", f"## `{method}`: test error by the share of training before the first perturbation", "", *table]
    return [*lines, *tables]


def spurious(folders: Folders) -> list[str]:
    """Page (f)."""
    folder = folders["spurious"]
    runs = outcomes(folder, [SHIFTED])
    names = {"target": SHIFTED, "choose": "validation_error"}
    found = compare_methods(runs, baseline="sgd", **names)
    table = method_comparison(found, runs, **names)
    lines = [
        "- "
        + said(
            better(row),
            f"`{row['group']}`: error under shift {points(row['difference'])} "
            f"[{fixed(100 * row['low'], 1)}, {fixed(100 * row['high'], 1)}] against SGD, p (Holm) "
            f"{fixed(row['p_holm'], 3)}.",
        )
        for _, row in found[found["group"] != "sgd"].iterrows()
    ]
    _, usual = compared(runs)
    return [
        *lines, "", "## Error where the patch tells nothing", "", to_markdown(table), "", table.note, "",
        "## Error on test data like the training data", "", *usual, *what_is_forgotten(folder),
    ]  # fmt: skip


SHIFTED = "ood_error[spurious]"  # the patch names a random class
FORGOTTEN = {
    "F_spurious": "forgotten of the patch",
    "F_real": "forgotten of the digit",
    "spurious_selectivity": "selectivity",
    "F_reliance": "fall of the reliance on the patch",
}


def what_is_forgotten(folder: Path) -> list[str]:
    """Spurious against real information, forgotten by provider."""
    measures = StudyResults.load(folder).measures
    rows = measures[measures["measure"].isin(FORGOTTEN)]
    if rows.empty:
        return []
    options = [json.loads(text) for text in rows["options"]]
    rows = rows.assign(**{key: [o.get(key) for o in options] for key in ("provider", "radius")})
    mean = rows.groupby(["provider", "radius", "measure"])["value"].agg(["mean", "std"]).reset_index()
    mean["text"] = [f"{fixed(a, 4)} ± {fixed(b, 4)}" for a, b in zip(mean["mean"], mean["std"], strict=True)]
    wide = mean.pivot_table(index=["provider", "radius"], columns="measure", values="text", aggfunc="first")
    names = [name for name in FORGOTTEN if name in wide]
    lines = ["", "## What perturbations forget: the patch against the digit", ""]
    lines += [
        "| provider | radius | " + " | ".join(FORGOTTEN[n] for n in names) + " |",
        "|---|---|" + "---:|" * len(names),
    ]
    lines += ["| " + " | ".join([*index, *(str(r[n]) for n in names)]) + " |" for index, r in wide.iterrows()]
    models = rows["run_id"].nunique()
    return [*lines, "", f"Mean ± standard deviation over {models} models; nats. Positive means forgotten."]


def efficiency(folders: Folders) -> list[str]:
    """Page (g)."""
    runs = outcomes(folders["efficiency"])
    found, table = compared(runs)
    against_sam, second = compared(runs, baseline="sam")
    rows, sam = found.set_index("group"), against_sam.set_index("group")
    lines = []
    for name in [m for m in rows.index if m not in ("sgd", "sam")]:
        gains = better(rows.loc[name])
        loses = bool(sam.loc[name, "p_holm"] < SIGNIFICANT and sam.loc[name, "difference"] > 0)
        lines.append(
            "- "
            + said(
                gains and not loses,
                f"`{name}`: {points(rows.loc[name, 'difference'])} against SGD, {points(sam.loc[name, 'difference'])} "
                f"against SAM{', which is worse after correction' if loses else ''}.",
            )
        )
    costs = ["", "The cost of a step of each, in steps of SGD, is in `docs/benchmarks.md`."]
    return [*lines, *costs, "", "## Against SGD", "", *table, "", "## Against SAM", "", *second]


PAGES: dict[str, Page] = {
    page.name: page
    for page in (
        Page(
            "label_noise",
            ("label_noise",),
            "Label noise: does perturbed training withstand it?",
            "Foret et al. (2021, section 3.4) report that SAM is robust to wrong labels; others ask whether early "
            "stopping does as much. Here: digits, an MLP, 400 training examples.",
            "The claim holds for a method if its test error at the end of training is below SGD's at every share of "
            "wrong labels above 0 (paired t test over 5 seeds, p < 0.05 after Holm). Early stopping "
            "is reported beside.",
            label_noise,
        ),
        Page(
            "perturbation_batch",
            ("perturbation_batch",),
            "Perturbation batch: do smaller m generalise better?",
            "Foret et al. (2021) and Andriushchenko and Flammarion (2022) report lower test errors for smaller m; Vani "
            "et al. (2024) that smaller perturbation batches forget better.",
            "The claim holds for a method if the smallest m has a lower test error than the largest "
            "(paired t test over 6 "
            "seeds, each m at its own radius, p < 0.05 after Holm over the values of m).",
            perturbation_batch,
        ),
        Page(
            "predictors",
            ("predictors_noisy", "predictors_clean", "predictors_mnist1d"),
            "Forgetting against flatness as predictors of the test error",
            "From a first look at 48 configurations × 2 seeds on noisy digits: F_mi on training data under the OBF "
            "perturbation (C = 1000, gamma 1, full batch) at equal rise of the loss had tau_b -0.66 "
            "with the test error "
            "(-0.80 within methods), the top Hessian eigenvalue -0.12 and the trace -0.23, paired "
            "difference of |tau_b| "
            "0.53 [0.27, 0.72].",
            "On each task the hypothesis holds if tau_b is negative and the paired difference of |tau_b| is above 0 "
            "against both the top eigenvalue and the trace (95 % cluster bootstrap intervals).",
            predictors,
        ),
        Page(
            "obf",
            ("obf",),
            "OBF against SAM, ASAM and GSAM",
            "Vani et al. (2024) report that the OBF perturbation generalises better than those of "
            "SAM, ASAM and GSAM, on "
            "ImageNet. Here: digits with a fifth of the labels wrong, an MLP.",
            "Each OBF variant against the method it changes: paired t test over 8 seeds at the "
            "radius chosen on validation "
            "data, p < 0.05/3.",
            obf,
        ),
        Page(
            "late_phase",
            ("late_phase",),
            "SAM only in the last epochs",
            "Zhou et al. (2025) and Andriushchenko and Flammarion (2022) report that a few epochs of "
            "SAM at the end are "
            "nearly as good as SAM throughout.",
            "The claim holds for a method if perturbing from three quarters of training on is not "
            "worse than throughout "
            "(paired t test over 6 seeds, p < 0.05 after Holm), while never perturbing is.",
            late_phase,
        ),
        Page(
            "spurious",
            ("spurious",),
            "A spurious feature and shifted data",
            "If perturbations make a model forget undesirable biases, perturbed training should lean "
            "less on a patch that "
            "tells the class in 95 % of the training examples and nothing elsewhere.",
            "The claim holds for a method if its error on shifted data is below SGD's (paired t test over 6 seeds, p < "
            "0.05 after Holm), with the radius chosen on validation data that have the patch.",
            spurious,
        ),
        Page(
            "efficiency",
            ("efficiency",),
            "The cheaper relatives of SAM: accuracy against cost",
            "Each claims to keep SAM's accuracy at a part of its cost.",
            "The claim holds for a method if its test error is below SGD's and not above SAM's (paired t tests over 6 "
            "seeds, p < 0.05 after Holm).",
            efficiency,
        ),
    )
}
