"""How many examples of a class the information measures need: `python -m benchmarks.few_examples STUDY`.

STUDY is the folder of a finished study with label noise, such as runs/digits. The weights of some of its runs are moved
along the gradient until the training loss has risen by 0.1 nats, and the forgetting is measured on subsets with the
same number of examples of every class. On held-out data, of which there are many, labels are made as noisy as those of
training. What all examples give, by the jackknife, stands for the truth.

Two models are compared rightly where what is left of the bias does not differ between them: `varying` is the deviation
of the bias over models, in units of the deviation of the measure itself over models; `noise` is that of one subset.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from analysis.forgetting.metrics import Outputs, forgetting_metrics
from analysis.measures.checkpoints import RunCheckpoint
from analysis.measures.subject import Subject
from landscape import Params, displaced
from trainers import list_runs

MEASURES = ("F_cmi", "F_use", "F_mi", "F_bias")
SIZES = (5, 10, 15, 20, 25, 30)
SUBSETS = 100
RISE = 0.1  # nats


def moved(subject: Subject) -> Params:
    """The weights at which the loss has risen, along its gradient."""
    low, high = 0.0, 1.0
    loss, gradient = subject.loss_and_gradient

    def at(length: float) -> Params:
        return displaced(subject.risk.theta, {name: length * g for name, g in gradient.items()})

    while subject.risk.at(at(high)).value() < loss + RISE:
        high *= 2
    for _ in range(20):
        middle = (low + high) / 2
        below = subject.risk.at(at(middle)).value() < loss + RISE
        low, high = (middle, high) if below else (low, middle)
    return at(high)


def errors(subject: Subject, noise: float, source: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Bias and deviation on subsets, for one model."""
    data, there = subject.data, moved(subject)
    parts = {"train": (data.train,), "held out": (data.validation, data.test)}
    for name, splits in parts.items():
        x, y = torch.cat([s.x for s in splits]), torch.cat([s.y for s in splits]).numpy().copy()
        if name == "held out":
            wrong = source.random(len(y)) < noise
            y[wrong] = source.integers(0, data.classes, int(wrong.sum()))
        risk = subject.risk.on([(x, torch.from_numpy(y))])
        before, after = (Outputs.from_logits(r.outputs(), y) for r in (risk, risk.at(there)))
        whole = forgetting_metrics(before, after, y, correction="jackknife", metrics=MEASURES)
        for size in SIZES:
            members = np.zeros((SUBSETS, len(y)), dtype=int)
            for chosen in members:
                for k in range(data.classes):
                    chosen[source.choice(np.flatnonzero(y == k), size, replace=False)] = 1
            for correction in ("first-order", "jackknife"):
                found = forgetting_metrics(before, after, y, correction=correction, members=members, metrics=MEASURES)
                for measure in MEASURES:
                    true, values = float(whole[measure]), found[measure]
                    yield {
                        "data": name, "measure": measure, "correction": correction, "of a class": size, "true": true,
                        "bias": float(values.mean()) - true, "deviation": float(values.std()),
                    }  # fmt: skip


def table(folder: Path, models: int) -> pd.DataFrame:
    """The shares, over models spread evenly over the runs of a study."""
    runs = [run for run in list_runs(folder / "runs") if run.status()["status"] == "finished"]
    source = np.random.default_rng(0)
    rows = []
    for run in runs[:: max(1, len(runs) // models)]:
        subject = RunCheckpoint(run.folder, max(run.checkpoints())).load(0)
        rows += errors(subject, run.config().label_noise, source)
    groups = pd.DataFrame(rows).groupby(["data", "measure", "correction", "of a class"])
    between = groups["true"].std()
    return pd.DataFrame({
        "between models": between, "bias": groups["bias"].mean(), "varying": groups["bias"].std() / between,
        "noise": groups["deviation"].mean() / between,
    })  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", type=Path, help="folder of a finished study with label noise")
    parser.add_argument("--models", type=int, default=16)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with pd.option_context("display.max_rows", None, "display.width", 120):
        print(table(given.study, given.models).round(3))
