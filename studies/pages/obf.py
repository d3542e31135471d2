"""OBF against SAM, ASAM and GSAM."""

from analysis.run_outcomes import outcomes
from studies.pages.choices import by_cost, compared, contrast, with_radius_zero
from studies.pages.page import Answer, Folders, Page
from studies.pages.verdicts import Hypothesis, decide, listed, reach

PAIRS = (("sam", "obf"), ("asam", "asam+OBF"), ("gsam", "gsam+OBF"))


def answer(folders: Folders) -> Answer:
    """The page's answer."""
    runs = with_radius_zero(by_cost(outcomes(folders["obf"])))
    of = dict(list(runs.groupby("method")))
    verdicts = decide(
        [
            Hypothesis(f"`{other}` against `{own}`", (contrast("test error", of[other], of[own]),))
            for own, other in PAIRS
        ]
    )
    worse = [
        f"`{other}` than `{own}`"
        for (own, other), v in zip(PAIRS, verdicts, strict=True)
        if v.hypothesis.contrasts[0].interval(v.level)[0] > 0
    ]
    short = f"Is the OBF perturbation the better one? {listed(verdicts)}"
    short += f" Clearly worse: {', '.join(worse)}." if worse else ""
    body = [v.line for v in verdicts]
    body += ["", reach(verdicts), "", "## All methods against SGD", "", SAME_RATE, "", *compared(runs)]
    return Answer(short, CHANGED, body)


SAME_RATE = (
    "SGD has the learning rate of the others here; with one of its own it is much better, see `efficiency.md`. No "
    "hypothesis of this page is about it."
)
CHANGED = (
    "The earlier page found OBF worse than SAM by 3.1 points and ASAM with it worse by 2.2, but two of the radii "
    "chosen lay on the edge of their grids, all seeds shared one draw of the data, and a difference that was not "
    "significant counted as one that does not exist."
)

PAGE = Page(
    "obf",
    ("obf",),
    "OBF against SAM, ASAM and GSAM",
    "Vani et al. (2024) report that the OBF perturbation generalises better than those of SAM, ASAM and GSAM, on "
    "ImageNet. Here: digits with a fifth of the labels wrong, an MLP, eight seeds, each a new draw of the data.",
    "Three hypotheses: each OBF variant has a lower test error than the method it changes, each at the radius with the "
    "lowest mean validation error (0 among them). One point is the smallest difference of interest.",
    answer,
)
