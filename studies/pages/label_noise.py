"""Label noise."""

import pandas as pd

from analysis.run_outcomes import outcomes
from analysis.statistics.methods import chosen
from studies.pages.choices import INTEREST, TWICE, by_cost, compared, contrast, on_edge, with_radius_zero
from studies.pages.page import Answer, Folders, Page
from studies.pages.verdicts import Contrast, Hypothesis, Verdict, decide, listed, reach

METHODS = ("sam", "asam", "obf")
END, STOPPED = ("test_error", "validation_error"), ("test_error_stopped", "validation_error_stopped")


def answer(folders: Folders) -> Answer:
    """The page's answer."""
    runs = by_cost(outcomes(folders["label_noise"]))
    runs = with_radius_zero(runs)
    of = dict(list(runs.groupby(["method", "label_noise"])))
    shares = sorted(runs["label_noise"].unique())
    verdicts = decide(
        [withstands(of, method, shares, columns) for columns in (END, STOPPED) for method in METHODS]
        + [grows(of, method, shares) for method in METHODS]
    )
    n = len(METHODS)
    end, stopped, growing = verdicts[:n], verdicts[n : 2 * n], verdicts[2 * n :]
    short = (
        f"Does perturbed training withstand wrong labels better than SGD, at equal cost? At the end of training: "
        f"{listed(end)} With early stopping: {listed(stopped)} Is the advantage larger with the most wrong labels than "
        f"with right ones? {listed(growing)}"
    )
    return Answer(short, CHANGED, [*body(end, stopped, growing), "", reach(verdicts), *tables(runs)])


def withstands(
    of: dict[tuple[str, float], pd.DataFrame], method: str, shares: list[float], columns: tuple[str, str]
) -> Hypothesis:
    """That a method is better than SGD, and than SGD with twice the epochs, at every share of wrong labels."""
    target, choose = columns
    contrasts = [
        contrast(f"{share:g}, {words}", of[method, share], of[plain, share], target=target, choose=choose)
        for share in shares
        if share > 0
        for plain, words in (("sgd", "SGD"), (TWICE, "SGD ×2"))
    ]
    return Hypothesis(f"`{method}`", tuple(contrasts))


def grows(of: dict[tuple[str, float], pd.DataFrame], method: str, shares: list[float]) -> Hypothesis:
    """That the difference to SGD with twice the epochs falls from right labels to the largest share of wrong ones."""
    ends = {(name, q): chosen(of[name, q]) for name in (method, TWICE) for q in (shares[0], shares[-1])}
    change = [sign * (ends[method, q] - ends[TWICE, q]) for sign, q in ((-1, shares[0]), (1, shares[-1]))]
    name = f"difference to SGD ×2 at {shares[-1]:g} less that at {shares[0]:g}"
    doubt = next(filter(None, (on_edge(of[key], end.name) for key, end in ends.items())), "")
    found = (change[0] + change[1]).dropna().to_numpy(dtype=float)
    least = Contrast(name, found, INTEREST, open_if_held=doubt, open_if_excluded=doubt)
    return Hypothesis(f"`{method}`", (least,))


def body(end: list[Verdict], stopped: list[Verdict], growing: list[Verdict]) -> list[str]:
    """The verdicts, by question."""
    lines = ["Better at the end of training, by share of wrong labels:", "", *(v.line for v in end), ""]
    lines += ["Better where all are stopped by validation error:", "", *(v.line for v in stopped), ""]
    return [
        *lines,
        "A larger advantage with the most wrong labels than with right ones:",
        "",
        *(v.line for v in growing),
    ]


def tables(runs: pd.DataFrame) -> list[str]:
    """Errors at the end and early stopped."""
    lines = []
    for title, (target, choose) in (("At the end of training", END), ("Stopped by validation error", STOPPED)):
        for plain in ("sgd", TWICE):
            lines += ["", f"## {title}, against {plain}", ""]
            lines += compared(runs, baseline=plain, by=["label_noise"], target=target, choose=choose)
    return lines


CHANGED = (
    "The earlier page compared with SGD at learning rates 0.05 and 0.15, at which SGD fits the wrong labels: it found "
    "advantages of 4 to 22 points at the end of training and hardly one that was clear with early stopping. A smaller "
    "learning rate does much of the same. Now SGD chooses among four, with as many and with twice as many epochs; "
    "radii and learning rates that decide lie inside their grids; each seed is a new draw of the data. With right "
    "labels SGD's learning rates were extended once, to 0.2 and 0.4, as validation data chose 0.1, the largest."
)

PAGE = Page(
    "label_noise",
    ("label_noise",),
    "Label noise: does perturbed training withstand it?",
    "Foret et al. (2021, section 3.4) report that SAM is robust to wrong labels; others ask whether early stopping "
    "does as much. Here: digits, an MLP, 400 training examples, six seeds, each a new draw of the data and of the "
    "noise.",
    "Nine hypotheses. For each method: its test error at the end of training is below that of SGD with as many epochs "
    "and of SGD with twice as many, at every share of wrong labels above 0; the same where all are stopped at the "
    "epoch that validation data choose; and its difference to SGD with twice the epochs is lower at the largest share "
    "than with right labels. One point is the smallest difference of interest. The methods choose among radii at the "
    "learning rate 0.02 (where SAM did best on validation data of two other seeds), SGD among learning rates.",
    answer,
)
