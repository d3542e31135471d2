"""The cheaper relatives of SAM."""

from analysis.run_outcomes import outcomes
from studies.pages.choices import TWICE, by_cost, compared, contrast, with_radius_zero
from studies.pages.page import Answer, Folders, Page
from studies.pages.verdicts import Hypothesis, decide, listed, reach

CHEAPER = ("looksam", "esam", "sssam", "aesam", "msam", "s2sam", "randsam")


def answer(folders: Folders) -> Answer:
    """The page's answer."""
    runs = with_radius_zero(by_cost(outcomes(folders["efficiency"])))
    of = dict(list(runs.groupby("method")))
    verdicts = decide(
        [
            Hypothesis(
                f"`{name}`",
                (
                    contrast("against SGD", of[name], of["sgd"]),
                    contrast("against SGD with twice the epochs", of[name], of[TWICE]),
                    contrast("against SAM", of[name], of["sam"], kind="not above"),
                ),
            )
            for name in CHEAPER
        ]
    )
    gain = contrast("SAM against SGD with twice the epochs", of["sam"], of[TWICE])
    short = f"Which cheaper methods keep SAM's accuracy? {listed(verdicts)}"
    body = [
        *(v.line for v in verdicts), "",
        f"SAM itself, beside these hypotheses: {gain.text(0.95)} (95 %).", "",
        reach(verdicts), "",
        "The cost of a step of each, in steps of SGD, is in `docs/benchmarks.md`.", "",
        "## Against SGD", "", *compared(runs), "",
        "## Against SGD with twice the epochs", "", *compared(runs, baseline=TWICE), "",
        "## Against SAM", "", *compared(runs, baseline="sam"),
    ]  # fmt: skip
    return Answer(short, CHANGED, body)


CHANGED = (
    "The earlier page compared with SGD at one learning rate and called every method as good as SAM that was not "
    "significantly worse. Now SGD has a grid of learning rates, and twice the epochs as well; as good as SAM means "
    "that a loss of one point is excluded; no radius that decides lies on the edge of its grid; each seed is a new "
    "draw of the data. MSAM's radii were extended once, to 3 and 4.5 (commit af23124), as validation data chose 2, the "
    "largest."
)

PAGE = Page(
    "efficiency",
    ("efficiency",),
    "The cheaper relatives of SAM: accuracy against cost",
    "Each claims to keep SAM's accuracy at a part of its cost. Here: digits with a fifth of the labels wrong, an MLP, "
    "eight seeds, each a new draw of the data.",
    "Seven hypotheses. A method keeps what SAM gains if its test error is below that of SGD with as many epochs and "
    "below that of SGD with twice as many (SAM's cost), and above SAM's by less than one point, which is the smallest "
    "difference of interest. SGD chooses among four learning rates, the others among three to five radii; all "
    "others have the learning rate 0.02, at which SAM did best on validation data of two other seeds.",
    answer,
)
