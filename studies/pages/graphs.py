"""Forgetting against flatness on the nodes of a generated graph and of the karate club."""

from analysis.results import StudyResults
from analysis.run_outcomes import outcomes
from analysis.style import fixed
from studies.pages.page import Answer, Folders, Page
from studies.pages.predictors import (
    BASELINES,
    FLATNESS,
    HYPOTHESIS,
    TARGET,
    able_to_decide,
    against,
    in_cells,
    of_hypothesis,
)

STUDIES = {"graphs_csbm": "the generated graph", "graphs_karate": "the karate club"}
QUESTIONS = {"flatness": FLATNESS, "the baselines": BASELINES}


def answer(folders: Folders) -> Answer:
    """The page's answer."""
    counted, inside, body, comparisons = [], [], [], {}
    for study, words in STUDIES.items():
        results = StudyResults.load(folders[study])
        rows = of_hypothesis(results)
        comparisons[words] = rows
        inside.append(f"on {words} {in_cells(rows)}")
        body += ["", f"## {words[0].upper()}{words[1:]}", ""]
        found, shown = against(results, rows, QUESTIONS, HYPOTHESIS, TARGET)
        counted += [f"{outcome.lower()} on {words} against {question}" for question, outcome in found.items()]
        body += shown
        runs = outcomes(folders[study], [])
        body += ["", "| method | test error, % | runs |", "|---|---:|---:|"]
        for method, mine in runs.groupby("method", sort=True):
            errors = 100 * mine[TARGET]
            body.append(f"| `{method}` | {fixed(errors.mean(), 1)} ± {fixed(errors.std(), 1)} | {len(mine)} |")
        body += ["", "Mean ± deviation over widths, learning rates, radii and draws of the nodes: no test."]
    short = (
        f"Is forgetting the better predictor on the nodes of a graph? {'; '.join(counted).capitalize()}. "
        f"{able_to_decide(comparisons)} Inside cells of equal width and learning rate, tau_b is: {'; '.join(inside)}."
    )
    return Answer(short, CHANGED, body)


CHANGED = "There was no such page before. Radii and learning rates come from a first look at other draws of the nodes."

PAGE = Page(
    "graphs",
    tuple(STUDIES),
    "Forgetting against flatness on graphs",
    "The hypothesis of the page of predictors on node classification by graph convolutional networks: F_mi on "
    "training nodes under the OBF perturbation (C = 1000, gamma 1, one batch of all of them) at equal rise of the "
    "loss predicts the test error better than the top Hessian eigenvalue and the trace. Here, on each of two graphs: "
    "32 configurations (four cells of width and learning rate, eight methods and radii in each), each on five draws "
    "of the nodes. The generated graph is a contextual stochastic block model of 1,000 nodes in four classes, with 10 "
    "links a node, 60 % of them inside the class, and 32 noisy features (100 nodes to train on, 500 to test); the "
    "karate club has 34 members and two sides (10 to train on, 20 to test).",
    "Four hypotheses, two for each graph: the measure's tau_b with the test error is negative and its absolute value "
    "larger (a) than that of the top eigenvalue and of the trace, (b) than that of the training loss, the training "
    "error and the validation error, as far as they vary; both over all pairs of configurations and inside cells. "
    "Holds: all intervals of the difference lie above 0 (98.75 %, that is 95 % for four hypotheses). Does not hold: "
    "one of them excludes a lead of 0.1, the smallest of interest. Inconclusive: neither.",
    answer,
    decides="",
)
