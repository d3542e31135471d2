"""SAM only in the last epochs."""

import pandas as pd

from analysis.run_outcomes import outcomes
from studies.pages.choices import by_cost, compared, contrast, with_radius_zero
from studies.pages.page import Answer, Folders, Page
from studies.pages.verdicts import Hypothesis, decide, listed, reach

METHODS = ("sam", "obf")


def answer(folders: Folders) -> Answer:
    """The page's answer."""
    runs = by_cost(outcomes(folders["late_phase"]))
    runs = with_radius_zero(runs, by=("method", "perturb_from"))
    runs = runs.assign(start=runs["perturb_from"].map("{:g}".format).where(runs["rho"].notna(), runs["method"]))
    hypotheses, halves, tables = [], [], []
    for method in METHODS:
        here = pd.concat([runs[runs["method"] == method], runs[runs["rho"].isna()]])
        of = dict(list(here.groupby("start")))
        hypotheses.append(
            Hypothesis(
                f"`{method}`",
                (
                    contrast("from three quarters on against throughout", of["0.75"], of["0"], kind="not above"),
                    contrast("throughout against never", of["0"], of["sgd"]),
                ),
            )
        )
        half = contrast("from half of training on against throughout", of["0.5"], of["0"])
        halves.append(f"`{method}` {half.text(0.95)}")
        tables += ["", f"## `{method}`: test error by the share of training before the first perturbation", ""]
        tables += compared(here, baseline="0", group="start")
    verdicts = decide(hypotheses)
    short = f"Is it enough to perturb in the last quarter of training? {listed(verdicts)}"
    beside = f"Beside the hypotheses (95 % intervals): {'; '.join(halves)}."
    return Answer(short, CHANGED, [*(v.line for v in verdicts), "", beside, "", reach(verdicts), *tables])


CHANGED = (
    "The earlier page found every later start worse, but nearly every radius chosen was the largest of its grid. A "
    "perturbation that begins late withstands radii at which one that begins at once never leaves chance, so that "
    "each start now has a grid of its own; SGD with as many gradients (×1.25 and ×2) stands beside; as good means "
    "that a loss of one point is excluded; each seed is a new draw of the data."
)

PAGE = Page(
    "late_phase",
    ("late_phase",),
    "SAM only in the last epochs",
    "Zhou et al. (2025) and Andriushchenko and Flammarion (2022) report that a few epochs of SAM at the end are "
    "nearly as good as SAM throughout. Here: digits with a fifth of the labels wrong, an MLP, eight seeds, each a new "
    "draw of the data.",
    "Two hypotheses, one a method: perturbing from three quarters of training on has a test error that is above that "
    "of perturbing throughout by less than one point, the smallest difference of interest, while perturbing "
    "throughout is better than never. Each start has the radius with the lowest mean validation error of its own "
    "grid, 0 among them; the learning rate is the same for all.",
    answer,
)
