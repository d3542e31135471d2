"""Forgetting against flatness on a regression from noisy targets, and what the methods do to its error."""

import pandas as pd

from analysis.reporting.methods import better, compared
from analysis.reporting.tables import to_markdown
from analysis.results import StudyResults
from analysis.statistics.methods import chosen, edge_of_grid
from studies.pages.page import Answer, Folders, Page
from studies.pages.predictors import (
    FLATNESS,
    able_to_decide,
    against,
    in_cells,
    of_hypothesis,
)
from studies.pages.verdicts import Contrast, Hypothesis, Verdict, decide, listed, reach

STUDY = "tabular"
HYPOTHESIS = "KL[sam, iso-loss, m=20, exposed]"
TARGET, CHOOSE = "test_squared_error", "validation_squared_error"
BASELINES = ("train_loss", CHOOSE)
QUESTIONS = {"flatness": FLATNESS, "the baselines": BASELINES}
METHODS = ("sam", "asam")
INTEREST = 0.05  # of a difference of squared errors, in units of the variance of the targets


def answer(folders: Folders) -> Answer:
    """The page's answer."""
    results = StudyResults.load(folders[STUDY])
    rows, others = of_hypothesis(results, HYPOTHESIS, TARGET), (*FLATNESS, *BASELINES)
    outcomes, shown = against(results, rows, QUESTIONS, HYPOTHESIS, TARGET, sign=1)
    methods = verdicts(compared(results)[1])
    counted = "; ".join(f"{outcome.lower()} against {question}" for question, outcome in outcomes.items())
    short = (
        f"Is forgetting the better predictor of the error of a regression? {counted.capitalize()}. "
        f"{able_to_decide({'the regression': rows}, others)} Inside cells of equal width and learning rate, tau_b is: "
        f"{in_cells(rows, others)}. Is the error lower than after SGD? {listed(methods)}"
    )
    body = ["## Predictors", "", *shown]
    body += ["", "## Methods", "", *(verdict.line for verdict in methods), "", reach(methods)]
    return Answer(short, CHANGED, [*body, "", to_markdown(better(results))])


def verdicts(runs: pd.DataFrame) -> list[Verdict]:
    """Whether each method's test error is below SGD's, each at what validation data choose, paired over draws."""
    of = {method: chosen(mine, TARGET, CHOOSE) for method, mine in runs.groupby("method")}
    edge = edge_of_grid(runs[runs["method"] == "sgd"], of["sgd"].name, "lr")
    doubt = f"of sgd, {edge}" if edge else ""
    contrasts = {
        method: Contrast(
            "against sgd", (of[method] - of["sgd"]).to_numpy(), INTEREST, scale=1, unit="σ²", digits=3,
            open_if_held=doubt, open_if_excluded=doubt,
        )
        for method in METHODS
    }  # fmt: skip
    return decide([Hypothesis(f"`{method}`", (contrast,)) for method, contrast in contrasts.items()])


CHANGED = (
    "There was no such page before. The measure, its sign, radii and learning rates come from a first look at two "
    "other draws of the same patients, which overlap those here. On them tau_b with the test error was 0.71 pooled and "
    "0.75 inside cells, that of the trace 0.64 and 0.88: so the first hypothesis was doubtful from the start."
)

PAGE = Page(
    STUDY,
    (STUDY,),
    "Forgetting against flatness on a regression",
    "Does what a perturbation makes a model forget say more about its error than flatness does, where there are no "
    "classes? The 442 patients of `diabetes` (Efron et al. 2004), 200 of them to train on with three in ten "
    "targets replaced by another patient's, 88 for validation, 154 for the test; squared error of standardised "
    "targets, so that 1 is what their mean achieves (σ² below). 48 configurations (six cells of width and learning "
    "rate, eight methods and radii in each), each on five draws. Forgetting is KL on the examples of the "
    "perturbation: how far SAM's perturbation of 20 training examples moves their predictions, as Gaussians of "
    "variance 1, at the radius that raises their loss by 0.1. OBF ascends an objective of labels and is not "
    "defined here.",
    "Two hypotheses on predictors: the measure's tau_b with the test error is positive and its absolute value "
    "larger (a) than that of the top eigenvalue and of the trace, (b) than that of the training loss and the "
    "validation error; both over all pairs of configurations and inside cells. Holds: all intervals of the "
    "difference lie above 0 (97.5 %, that is 95 % for the two). Does not hold: one of them excludes a lead of 0.1, "
    "the smallest of interest. Inconclusive: neither. Two on methods: the test error after SAM, and after ASAM, is "
    "lower than after SGD, each at the width, learning rate and radius with the lowest mean validation error. "
    "Holds: p < 0.05 in paired t tests over the draws, with Holm's correction over the two. Does not hold: the "
    "interval (97.5 %) has no room for an advantage of 0.05, the smallest of interest. Inconclusive: neither, or "
    "SGD's learning rate is an end of its grid.",
    answer,
    decides="",
)
