"""Forgetting against flatness on real images with augmentation, for the test error and under corruptions."""

import pandas as pd

from analysis.results import StudyResults
from analysis.run_outcomes import outcomes
from analysis.style import fixed
from studies.pages.page import Answer, Folders, Page
from studies.pages.predictors import (
    BASELINES,
    FLATNESS,
    able_to_decide,
    against,
    in_cells,
    of_hypothesis,
)

STUDY = "fashion_mnist"
HYPOTHESIS = "F_mi[obf, iso-loss, examples=512, C=1000, exposed]"
TARGETS = {"test_error": "the test error", "ood_error_mean": "the error on corrupted images"}
QUESTIONS = {"flatness": FLATNESS, "the baselines": BASELINES}


def answer(folders: Folders) -> Answer:
    """The page's answer."""
    folder = folders[STUDY]
    results = StudyResults.load(folder)
    counted, inside, body, comparisons = [], [], [], {}
    for target, words in TARGETS.items():
        rows = of_hypothesis(results, HYPOTHESIS, target)
        comparisons[words] = rows
        inside.append(f"with {words} {in_cells(rows)}")
        body += ["", f"## {words[0].upper()}{words[1:]}", ""]
        found, shown = against(results, rows, QUESTIONS, HYPOTHESIS, target)
        counted += [f"{outcome.lower()} for {words} against {question}" for question, outcome in found.items()]
        body += shown
    short = (
        f"Is forgetting the better predictor on real images? {'; '.join(counted).capitalize()}. "
        f"{able_to_decide(comparisons)} Inside cells of equal architecture and learning rate, tau_b is: "
        f"{'; '.join(inside)}."
    )
    return Answer(short, CHANGED, [*body, *by_method(outcomes(folder, ["ood_error_mean"]))])


def by_method(runs: pd.DataFrame) -> list[str]:
    """Mean and deviation of the errors of each method, over learning rates and draws of the data: no test."""
    lines = [
        "",
        "## Errors by method",
        "",
        "| model | method | test error, % | corrupted, % | runs |",
        "|---|---|---:|---:|---:|",
    ]
    for (model, method), mine in runs.groupby(["model", "method"], sort=True):
        errors = [
            f"{fixed(100 * mine[column].mean(), 1)} ± {fixed(100 * mine[column].std(), 1)}"
            for column in ("test_error", "ood_error_mean")
        ]
        lines.append(f"| `{model}` | `{method}` | {errors[0]} | {errors[1]} | {len(mine)} |")
    return [*lines, "", "Mean ± deviation over two learning rates and two draws of the data: a description, no test."]


CHANGED = "There was no such page before. Radii and learning rates come from a first look at other draws of the data."

PAGE = Page(
    STUDY,
    (STUDY,),
    "Forgetting against flatness on Fashion-MNIST",
    "The hypothesis of the page of predictors on real images: F_mi on training data under the OBF perturbation (C = "
    "1000, gamma 1, one batch of 512 training examples) at equal rise of the loss predicts the test error, and the "
    "mean error on the built-in corruptions of 10,000 test images, better than the top Hessian eigenvalue and the "
    "trace. Here: 24 configurations (four cells of architecture and learning rate, six methods in each), each on "
    "two draws of 4,000 training images, six epochs with crop and flip.",
    "Four hypotheses, two for each of the two targets: the measure's tau_b with the target is negative and its "
    "absolute value larger (a) than that of the top eigenvalue and of the trace, (b) than that of the training "
    "loss, the training error and the validation error, as far as they vary; both over all pairs of configurations "
    "and inside cells. Holds: all intervals of the difference lie above 0 (98.75 %, that is 95 % for four "
    "hypotheses; over configurations, since two draws of the data are too few to resample). Does not hold: one of "
    "them excludes a lead of 0.1, the smallest of interest. Inconclusive: neither.",
    answer,
    decides="",
)
