"""Does training with a perturbation on some classes help to learn others from few images?"""

from pathlib import Path

import numpy as np
import pandas as pd

from analysis.run_outcomes import outcomes
from analysis.study import read_study
from analysis.style import fixed
from studies.pages.choices import TWICE, by_cost, compared, contrast, with_radius_zero
from studies.pages.page import Answer, Folders, Page
from studies.pages.verdicts import Hypothesis, decide, listed, reach

SOURCE, TUNED = "transfer_source", "transfer"
FOLDER = Path(__file__).parents[1]
METHODS = ("sam", "asam", "obf")
UNTRAINED = "no pre-training"
INTEREST = 0.01  # of an error: one point in a hundred
HEAD = """\
# The second half of the page of transfer: the networks of transfer_source.yaml, fine-tuned by plain SGD on 200 images
# of the other five classes, and the same networks from random weights. The text is that of
# `studies.pages.transfer.study_file()`. Run it from the repository's folder, after transfer_source. About 20 minutes of
# one core.
name: transfer
question: Do networks that were trained with a perturbation on five classes learn the other five better from 200 images?

base:
  dataset: fashion_mnist
  classes: [5, 6, 7, 8, 9]
  train_size: 200
  validation_size: 500
  test_size: 2000
  data_seed: seed  # the seed of the network that is fine-tuned
  model: cnn
  model_options: {width: 8}
  epochs: 30
  batch_size: 20
  lr_schedule: cosine
  momentum: 0.9
  weight_decay: 5.0e-4
  evaluate_every: 30

grid:
  lr: [0.003, 0.01, 0.03]

measures:
  targets:
  norms:

statistics:
  lead: test_error

methods:
"""


def study_file() -> str:
    """The text of studies/transfer.yaml: one entry a network of transfer_source, and one a seed without any."""
    sources = read_study(FOLDER / f"{SOURCE}.yaml").configs()
    tuned = [
        f"  - {{method: sgd, seed: {c.seed}, init: runs/{SOURCE}/runs/{c.run_id}, reset_head: true}}  # {named(c)}"
        for c in sources
    ]
    plain = [f"  - {{method: sgd, seed: {seed}}}" for seed in sorted({c.seed for c in sources})]
    return HEAD + "\n".join([*tuned, *plain]) + "\n"


def named(config: object) -> str:
    """A network of transfer_source in words."""
    method, rho, epochs = (getattr(config, name) for name in ("method", "rho", "epochs"))
    return f"{method}, {'' if rho is None else f'rho {rho:g}, '}{epochs} epochs"


def paired(sources: pd.DataFrame, tuned: pd.DataFrame) -> pd.DataFrame:
    """The fine-tuned runs, with method, radius and epochs of the network each started from.

    Args:
        sources: One row a run of transfer_source, as `outcomes` gives them.
        tuned: One row a fine-tuned run; `init` is the folder of the source's run, or None.
    """
    own = sources.set_index("run_id")[["method", "rho", "epochs"]]
    begun = tuned["init"].map(lambda place: Path(place).name if isinstance(place, str) else UNTRAINED)
    own.loc[UNTRAINED] = [UNTRAINED, np.nan, own["epochs"].min()]
    runs = tuned.assign(**{name: begun.map(own[name]).to_numpy() for name in own.columns})
    setting = runs[["method", "rho", "epochs", "lr"]].map(str).agg("|".join, axis=1)
    own_of_each = [name for name in ("init", "init_digest") if name in runs]  # of one seed, and no setting
    return runs.drop(columns=own_of_each).assign(configuration=pd.factorize(setting)[0])


def answer(folders: Folders) -> Answer:
    """The page's answer."""
    sources = outcomes(folders[SOURCE])
    every = by_cost(paired(sources, outcomes(folders[TUNED])))
    runs = with_radius_zero(every[every["method"] != UNTRAINED])
    of = dict(list(runs.groupby("method")))
    verdicts = decide(
        [
            Hypothesis(
                f"`{method}`",
                tuple(
                    contrast(f"against {plain}", of[method], of[plain], interest=INTEREST) for plain in ("sgd", TWICE)
                ),
            )
            for method in METHODS
        ]
    )
    worse = [v.hypothesis.subject for v in verdicts if v.hypothesis.contrasts[0].interval(v.level)[0] > 0]
    random = every[every["method"] == UNTRAINED].groupby("lr")["test_error"]
    best = random.mean().idxmin()
    plain = fixed(100 * random.mean()[best], 1), fixed(100 * random.std()[best], 1)
    short = (
        "Do networks trained with a perturbation on five classes learn the other five better from 200 images than "
        f"those trained with SGD, also at equal cost? {listed(verdicts)}"
        + (f" Clearly worse than SGD: {', '.join(worse)}." if worse else "")
        + f" From random weights the error is {plain[0]} ± {plain[1]} % (the best learning rate on test data)."
    )
    body = [v.line for v in verdicts]
    body += ["", reach(verdicts), "", "## Error on the new classes, after fine-tuning", "", *compared(runs)]
    body += ["", "## Error on the classes that were learned first", "", *compared(with_radius_zero(by_cost(sources)))]
    return Answer(short, "There was no such page before. Learning rates come from a first look at another draw.", body)


PAGE = Page(
    TUNED,
    (SOURCE, TUNED),
    "Transfer to other classes",
    "Vani et al. (2024) report that networks trained with OBF transfer better than those trained with SAM or SGD. "
    "Here, small: a CNN learns five classes of Fashion-MNIST from 4,000 images with crop and flip, gets a new "
    "classifier, and is fine-tuned as a whole by SGD on 200 images of the other five classes. Eight seeds, each a "
    "new draw of both.",
    "Three hypotheses, for SAM, ASAM and OBF (radii 0, and three each): the test error on the new classes is lower "
    "than after pre-training with SGD, and than with SGD of twice the epochs, each at the radius and learning rate "
    "of fine-tuning with the lowest mean error on 500 validation images of the new classes. One point is the "
    "smallest difference of interest.",
    answer,
)
