"""A spurious feature and shifted data."""

import json
from pathlib import Path

import pandas as pd

from analysis.results import StudyResults
from analysis.run_outcomes import outcomes
from analysis.statistics.methods import chosen
from analysis.style import fixed
from studies.pages.choices import TWICE, by_cost, compared, contrast, with_radius_zero
from studies.pages.page import Answer, Folders, Page
from studies.pages.verdicts import Contrast, Hypothesis, decide, listed, reach

METHODS = ("sam", "asam", "gsam", "obf")
SHIFTED = "ood_error[spurious]"  # the patch names a random class
LEAN = "shortcut_followed"  # mean probability of the class that the patch names, where it is wrong
WORDS = {SHIFTED: "error under shift", LEAN: "probability of the patch's class"}
CHANCE = 0.9  # error of a guess among ten classes
INTEREST = 0.02
SELECTIVITY = "spurious_selectivity[{}, iso-loss, m=64]"
UNIT = "of selectivity"
MORE_SELECTIVE = 0.05  # a difference of selectivities that is of interest
FORGOTTEN = {
    "F_spurious": "forgotten of the patch",
    "F_real": "forgotten of the digit",
    "spurious_selectivity": "selectivity",
    "F_reliance": "fall of the reliance on the patch",
}


def answer(folders: Folders) -> Answer:
    """The page's answer."""
    folder = folders["spurious"]
    made = [SELECTIVITY.format(provider) for provider in ("obf", "sam", "random")]
    runs = with_radius_zero(by_cost(outcomes(folder, [SHIFTED, LEAN, *made])))
    of = dict(list(runs.groupby("method")))
    doubt = at_chance(of["sgd"])
    leans = [leans_less(of, method, doubt) for method in METHODS]
    selective = [more_selective(of["sgd"], made[k], made[2], name) for k, name in enumerate(("obf", "sam"))]
    verdicts = decide([*leans, *selective])
    n = len(leans)
    error = chosen(of["sgd"], SHIFTED)
    more = [
        v.hypothesis.subject for v in verdicts[:n] if all(c.interval(v.level)[0] > 0 for c in v.hypothesis.contrasts)
    ]
    turned = (
        f" Beside the rule, the other way round: {', '.join(more)} lean more on it than SGD at the learning rate that "
        "validation data choose for it; at equal learning rates see below."
    ) * bool(more)
    short = (
        "Does perturbed training lean less on a spurious feature than SGD at equal cost? "
        f"{listed(verdicts[:n])}{turned} Does the perturbation forget the feature more selectively than a random one? "
        f"{listed(verdicts[n:])} SGD's error where the patch tells nothing is {fixed(100 * error.mean(), 1)} ± "
        f"{fixed(100 * error.std(), 1)} %, chance 90 %."
    )
    lines = ["Leaning less on the patch:", "", *(v.line for v in verdicts[:n]), ""]
    lines += ["Forgetting it more selectively than a random perturbation:", "", *(v.line for v in verdicts[n:])]
    lines += ["", same_rate(of), "", reach(verdicts)]
    for target, title in ((SHIFTED, "Error where the patch tells nothing"), (LEAN, "Probability of the patch's class")):
        for plain in ("sgd", TWICE):
            lines += ["", f"## {title}, against {plain}", "", *compared(runs, baseline=plain, target=target)]
    lines += ["", "## Error on test data like the training data", "", *compared(runs)]
    return Answer(short, CHANGED, [*lines, *what_is_forgotten(folder)])


def at_chance(sgd: pd.DataFrame) -> str:
    """Whether SGD leaves nothing to lose: its error under shift is not clearly below chance; empty where it is."""
    error = Contrast("", chosen(sgd, SHIFTED).to_numpy(dtype=float), INTEREST)
    return "" if error.interval(0.95)[1] < CHANCE - 0.1 else "SGD's error under shift is at chance"


def same_rate(of: dict[str, pd.DataFrame]) -> str:
    """How much of it is the learning rate: the methods against SGD at their own."""
    texts = []
    for method in METHODS:
        plain = of["sgd"][of["sgd"]["lr"].isin(of[method]["lr"])]
        found = [contrast(words, of[method], plain, target=target) for target, words in WORDS.items()]
        texts.append(f"`{method}` {', '.join(c.text(0.95) for c in found)}")
    return f"Beside the hypotheses, against SGD at the same learning rate (95 % intervals): {'; '.join(texts)}."


def leans_less(of: dict[str, pd.DataFrame], method: str, doubt: str) -> Hypothesis:
    """That a method has a lower error under shift, and follows the patch less, than SGD of either length."""
    contrasts = [
        contrast(f"{words} against {name}", of[method], of[plain], target=target, interest=INTEREST)
        for target, words in WORDS.items()
        for plain, name in (("sgd", "SGD"), (TWICE, "SGD ×2"))
    ]
    marked = [
        Contrast(
            c.name, c.differences, c.interest,
            open_if_held=doubt or c.open_if_held, open_if_excluded=doubt or c.open_if_excluded,
        )
        for c in contrasts
    ]  # fmt: skip
    return Hypothesis(f"`{method}`", tuple(marked))


def more_selective(sgd: pd.DataFrame, own: str, control: str, name: str) -> Hypothesis:
    """That of the same models' SGD a perturbation forgets the patch more selectively than a random one."""
    difference = (chosen(sgd, control) - chosen(sgd, own)).dropna().to_numpy(dtype=float)
    least = Contrast("a random one's less its own", difference, MORE_SELECTIVE, scale=1, unit=UNIT, digits=3)
    return Hypothesis(f"the `{name}` perturbation", (least,))


def what_is_forgotten(folder: Path) -> list[str]:
    """Spurious against real information, forgotten by provider."""
    measures = StudyResults.load(folder).measures
    rows = measures[measures["measure"].isin(FORGOTTEN)]
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


CHANGED = (
    "On the earlier page the patch named the label in 95 % of the examples: SGD's error under shift was at chance (83 "
    "%), so that no method could be seen to do worse, and the verdict *does not hold* was none. Now it does so in 80 "
    "%, chosen by SGD alone on four other seeds (100 to 103): errors under shift of 45 to 55 % against 7 to 14 % on "
    "data like the training data. Beside the error, which also falls where a method only withstands the wrong labels "
    "better, stands the probability of the class that the patch names; and beside the perturbations' selectivity that "
    "of a random one."
)

PAGE = Page(
    "spurious",
    ("spurious",),
    "A spurious feature and shifted data",
    "If perturbations make a model forget undesirable biases, perturbed training should lean less on a patch that "
    "names the label in 80 % of the training examples (beside chance hits) and nothing elsewhere. Here: digits with a "
    "fifth of the labels wrong, an MLP, eight seeds, each a new draw of the data.",
    "Six hypotheses. For each method: its error on shifted data and the mean probability that it gives to the class "
    "of a wrong patch are both below those of SGD, with as many and with twice as many epochs (two points are of "
    "interest); settings are chosen on validation data that have the patch. For the perturbations of OBF and of SAM, "
    "on SGD's models: their selectivity, |F of the patch| as a share of |F of the patch| and |F of the digit|, is "
    "above that of a random perturbation at equal rise of the loss (0.05 is of interest). If SGD's error under shift "
    "is not below 80 % by its 95 % interval, there is nothing to see, and the first four are inconclusive.",
    answer,
)
