"""Sharpness-aware training and forgetting on text: each token seen once, and a small corpus seen many times."""

import pandas as pd

from analysis.results import StudyResults
from analysis.run_outcomes import outcomes
from analysis.statistics.methods import chosen, edge_of_grid
from analysis.style import fixed
from studies.pages.page import Answer, Folders, Page
from studies.pages.predictors import (
    FLATNESS,
    able_to_decide,
    against,
    in_cells,
    of_hypothesis,
)
from studies.pages.verdicts import Contrast, Hypothesis, Verdict, decide, listed, reach

STUDIES = {"language": "text seen once", "language_repeated": "text seen eight times"}
HYPOTHESIS = "F_mi[obf, iso-loss, m=32, examples=256, C=1000, exposed]"
TARGET, CHOOSE = "test_loss", "validation_loss"
BASELINES = ("train_loss", CHOOSE)
QUESTIONS = {"flatness": FLATNESS, "the baselines": BASELINES}
METHODS = ("sam", "obf")
INTEREST = 0.02  # nats a token


def answer(folders: Folders) -> Answer:
    """The page's answer."""
    others = (*FLATNESS, *BASELINES)
    results = {study: StudyResults.load(folders[study]) for study in STUDIES}
    rows = {study: of_hypothesis(found, HYPOTHESIS, TARGET) for study, found in results.items()}
    runs = {study: outcomes(folders[study], []) for study in STUDIES}
    methods = verdicts(runs)
    counted, inside, body = [], [], ["", "## Methods", "", *(verdict.line for verdict in methods), "", reach(methods)]
    for study, words in STUDIES.items():
        inside.append(f"on {words} {in_cells(rows[study], others)}")
        body += ["", f"## {words[0].upper()}{words[1:]}", "", *losses(runs[study]), ""]
        found, shown = against(results[study], rows[study], QUESTIONS, HYPOTHESIS, TARGET)
        counted += [f"{outcome.lower()} on {words} against {question}" for question, outcome in found.items()]
        body += shown
    able = able_to_decide({words: rows[study] for study, words in STUDIES.items()}, others)
    short = (
        f"Is the loss on held-out text lower than after AdamW? {listed(methods)} Is forgetting the better predictor of "
        f"it? {'; '.join(counted).capitalize()}. {able} Inside cells of equal learning rate, tau_b is: "
        f"{'; '.join(inside)}."
    )
    return Answer(short, CHANGED, body)


def verdicts(runs: dict[str, pd.DataFrame]) -> list[Verdict]:
    """Whether each method's test loss is below AdamW's, each at what validation data choose, paired over draws."""
    found = []
    for study, words in STUDIES.items():
        of = {method: chosen(mine, TARGET, CHOOSE) for method, mine in runs[study].groupby("method")}
        edge = edge_of_grid(runs[study][runs[study]["method"] == "adamw"], of["adamw"].name, "lr")
        doubt = f"of AdamW, {edge}" if edge else ""
        for method in METHODS:
            gap = (of[method] - of["adamw"]).to_numpy()
            contrast = Contrast(
                "against AdamW", gap, INTEREST, scale=1, unit="nats a token", digits=3,
                open_if_held=doubt, open_if_excluded=doubt,
            )  # fmt: skip
            found.append(Hypothesis(f"`{method}` on {words}", (contrast,)))
    return decide(found)


def losses(runs: pd.DataFrame) -> list[str]:
    """The test loss of each method at what validation data choose, in nats a token."""
    lines = ["| method | rho | learning rate | test loss | runs |", "|---|---:|---:|---:|---:|"]
    for method, mine in runs.groupby("method"):
        best = chosen(mine, TARGET, CHOOSE)
        first = mine[mine["configuration"] == best.name].iloc[0]
        rho = "–" if pd.isna(first["rho"]) else f"{first['rho']:g}"
        spread = f"{fixed(best.mean(), 3)} ± {fixed(best.std(), 3)}"
        lines.append(f"| `{method}` | {rho} | {first['lr']:g} | {spread} | {len(best)} |")
    return [*lines, "", "Mean ± deviation over draws, in nats a token."]


CHANGED = (
    "There was no such page before. Radii are round numbers around the methods' defaults, learning rates a factor of "
    "four apart; no look at results chose them. Before the first run the draws became five instead of three, because "
    "three can show nothing at this level. One run of another draw, made to time the study, was seen before that (OBF, "
    "rho 0.1, learning rate 0.004: test loss 2.51, F_mi below 0), and changed nothing."
)

PAGE = Page(
    "language",
    tuple(STUDIES),
    "Sharpness-aware training and forgetting on text",
    "Does a sharpness-aware method lower the held-out loss of a small language model, (a) where each token is seen "
    "once, (b) where a small corpus is seen many times? The survey of the field expects little or nothing in the "
    "first case. And does what a perturbation makes the model forget tell which model has the lower held-out loss? A "
    "transformer of about 120,000 weights (two blocks, width 64, embedding tied) on bytes of Python's own "
    "documentation in sequences of 64, AdamW as the base optimizer: (a) 3,000 sequences in one epoch, (b) 375 in "
    "eight, which is as many steps. Each with AdamW alone, SAM and OBF (rho "
    "0.02 and 0.1) and ASAM (rho 0.1 and 0.5), at the learning rates 0.001 and 0.004, on five draws of the data, "
    "which decide the initial weights and the order too; AdamW alone also at 0.016: 75 runs. Test: 512 sequences of "
    "the same register. AdamW took half as many gradients as SAM.",
    "Four hypotheses on methods: the test loss after SAM, and after OBF, is lower than after AdamW alone, in (a) and "
    "in (b), each at the learning rate and radius with the lowest mean validation loss. Holds: p < 0.05 in paired t "
    "tests over the draws, with Holm's correction over the four. Does not hold: the interval (98.75 %) has no room "
    "for an advantage of 0.02 nats a token, the smallest of interest. Inconclusive: neither, or AdamW's learning rate "
    "is an end of its grid. ASAM is shown, and not counted. Four on predictors, two in each case: tau_b of F_mi on "
    "exposed sequences under the OBF perturbation (C = 1000, gamma 1, four batches of 32 sequences) at equal rise of "
    "the loss with the test loss is negative, and its absolute value larger (a) than that of the top eigenvalue and "
    "of the trace, (b) than that of the training and of the validation loss; over all pairs of configurations and "
    "inside cells of equal learning rate. Holds: all intervals of the difference lie above 0 (98.75 %, that is 95 % "
    "for the four). Does not hold: one of them excludes a lead of 0.1, the smallest of interest. Inconclusive: "
    "neither.",
    answer,
    decides="",
)
