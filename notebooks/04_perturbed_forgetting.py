# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Perturbed forgetting: what does a perturbation make a model forget?
#
# Sharpness asks how much the loss rises when the weights are moved from θ to θ + ε. Perturbed forgetting asks **what is
# lost** there: information in the outputs, decisions, a shortcut. This notebook starts with four outputs whose answer
# can be worked out by hand, then measures one checkpoint of a study, varies the perturbation batch, follows a run along
# training, and plants a shortcut to see whether that is what goes first.
#
# **In every number, positive means forgotten.** That SAM's perturbation helps by making a model forget is the idea of
# Vani et al. (2024, ICML), and the OBF perturbation is theirs. Their formula for forgetting was not available, so the
# numbers below (F_mi, F_cmi, F_use, the split by exposure, the shortcut's) are **definitions of this toolkit**; what
# each is, and what is published, stands in docs/forgetting.md.

# %%
# %matplotlib inline
import json
import os
import shutil
import tempfile
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

import analysis
import landscape
import trainers
from analysis.figures import forgetting_by_size, forgetting_curves
from analysis.forgetting.metrics import Outputs, forgetting_metrics
from analysis.forgetting.trajectory import forgetting_curve, second_half
from analysis.style import EXPOSURES, MUTED, PROVIDERS, rc

torch.set_num_threads(1)
STUDY = Path(os.environ.get("LANDSCAPE_STUDY", "../runs/digits"))
folder = tempfile.TemporaryDirectory()

# %% [markdown]
# ## Four outputs, by hand
# Two classes, two examples of each. What the outputs say about the input falls into two parts:
# $I(X;\hat Y) = I(Y;\hat Y) + I(X;\hat Y \mid Y)$, the **useful** part about the class, and the rest, about which
# example of its class it was. Their falls are F_mi = F_use + F_cmi. Five cases whose effect is plain:

# %%
labels = np.array([0, 0, 1, 1])
start = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
changes = {
    "nothing changes": start,
    "outputs of a class become equal": np.array([[0.75, 0.25], [0.75, 0.25], [0.25, 0.75], [0.25, 0.75]]),
    "outputs become uniform": np.full((4, 2), 0.5),
    "outputs become certain": np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]),
    "confidence falls, one is lost a class": np.array([[0.7, 0.3], [0.45, 0.55], [0.4, 0.6], [0.55, 0.45]]),
}


def forgotten(after):
    logits = [torch.tensor(np.maximum(p, 1e-300)).log() for p in (start, after)]
    before, after = (Outputs.from_logits(z, labels) for z in logits)
    return forgetting_metrics(before, after, labels, correction="plug-in", metrics=("F_mi", "F_use", "F_cmi", "cw"))


toy = pd.DataFrame({name: {k: float(v) for k, v in forgotten(p).items()} for name, p in changes.items()}).T
toy.round(4) + 0.0  # no minus before a zero

# %% [markdown]
# Read the rows: equal outputs within a class take F_cmi alone (0.035 nats, all there was), and cost nothing of use;
# uniform outputs take everything (a tie counts as the first class, hence cw of one half); certain outputs *add* useful
# information, so F_mi and F_use are negative. F_cmi is no measure of damage and F_use is: a number on its own can be
# read wrongly, so the three belong together.

# %% [markdown]
# ## One checkpoint
# A model of the study that was trained with SAM, at the end. Each provider makes ε from batches B of the training data,
# and the outputs are compared on B itself (**exposed**), on other training examples, and on held-out ones. Two radii:
# `own` is as long as the run's own step in training, whoever perturbs; `iso-loss` is as far as raises the loss on B by
# 0.1 nats. `zero` is the control.

# %%
results = analysis.StudyResults.load(STUDY)
sam_runs = results.runs.query("status == 'finished' and `hp.method` == 'sam' and `hp.seed` == 0")
chosen = sam_runs.sort_values(["hp.rho", "hp.lr", "hp.batch_size"]).iloc[(len(sam_runs) - 1) // 2]
run = trainers.Run(STUDY / "runs" / chosen["run_id"])
config = run.config()
model, meta = trainers.load_checkpoint(run.checkpoint(max(run.checkpoints())))
data = trainers.load_dataset(
    config.dataset, train_size=config.train_size, validation_size=config.validation_size,
    test_size=config.test_size, label_noise=config.label_noise, seed=config.data_seed,
)  # fmt: skip
risk = landscape.EmpiricalRisk.from_model(model, cross_entropy, (data.train.x, data.train.y))
held_out = (data.validation.x, data.validation.y)
print(f"SAM, rho {config.rho}, {config.train_size} training examples, label noise {config.label_noise}, lr {config.lr}")
print(f"training loss {risk.value():.4f}, test error {run.history()['test_error'].iloc[-1]:.3f}")


# %%
def table(rows):
    """The rows as a frame, with what decides them in columns."""
    return pd.DataFrame(
        {"provider": r.options["provider"], "radius": r.options["radius"], "m": r.options["m"] or "all",
         "split": r.split, "measure": r.measure, "value": r.value, "stderr": r.stderr, "warnings": r.warnings}
        for r in rows
    )  # fmt: skip


own = analysis.OwnPerturbation("sam", analysis.PROVIDERS["sam"].step(config.rho))
frame = table(
    analysis.perturbed_forgetting(
        risk, held_out, providers=("sam", "obf", "random", "zero"), radii=("own", "iso-loss"), own=own, m=32,
        batches=20, generator=torch.Generator().manual_seed(0),
    )
)  # fmt: skip
shown = ["F_mi", "F_use", "F_cmi", "cw", "dCE"]
part = frame[frame["measure"].isin(shown) & (frame["radius"] == "iso-loss")]
part.pivot_table(index=["split", "provider"], columns="measure", values="value")[shown].round(4)


# %%
def bars(axes, frame, measures, providers=("sam", "obf", "random")):
    """Bars by provider and exposure, with two standard errors over batches."""
    for ax, measure in zip(axes, measures, strict=True):
        for k, (split, (name, colour, _)) in enumerate(EXPOSURES.items()):
            rows = frame[(frame["measure"] == measure) & (frame["split"] == split)].set_index("provider")
            rows = rows.reindex(list(providers))
            at = np.arange(len(providers)) + 0.27 * (k - 1)
            ax.bar(at, rows["value"], 0.27, yerr=2 * rows["stderr"], color=colour, label=name,
                   error_kw={"elinewidth": 0.8, "ecolor": MUTED})  # fmt: skip
        ax.axhline(0, color=MUTED, lw=0.8)
        ax.set_xticks(range(len(providers)), [PROVIDERS[p] for p in providers])
        ax.set_title(measure)
        ax.grid(axis="y")


with matplotlib.rc_context(rc()):
    figure, panels = plt.subplots(2, 4, figsize=(7.2, 4.2), layout="constrained")
    for line, radius in zip(panels, ("own", "iso-loss"), strict=True):
        bars(line, frame[frame["radius"] == radius], ["F_mi", "F_use", "F_cmi", "cw"])
        line[0].set_ylabel(f"{radius} (nats; cw: share)")
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=3)
plt.show()

# %% [markdown]
# What to look for:
# * **The exposure split.** If SAM's ε turns examples of its own batch from right to wrong (`cw`) more often than
#   training examples outside it, it is about B and not about the weights in general. Random directions do not know B:
#   their bars on the two training sets should agree within their errors.
# * **Radius.** At `own` all providers move equally far, and random hardly does anything; at `iso-loss` all raise the
#   loss on B equally (dCE is 0.1 there), random has to go much further for that, and what differs is what is taken.
# * **F_cmi on training data can be negative.** A fitted model gives all examples of a class nearly the same output, so
#   there is nothing of the sort left to forget, and a perturbation can only tell examples apart. It is no error.
#
# Bars are two standard errors over batches, for fixed examples. `resamples=1000` adds the examples.

# %% [markdown]
# ## The size of the perturbation batch
# SAM in practice perturbs with a batch, m-SAM with a part of it. From a single example to all training data at once, at
# the same rise of the loss on B:

# %%
sizes = [
    table(
        analysis.perturbed_forgetting(
            risk, held_out, providers=("sam", "obf"), radii=("iso-loss",), m=m,
            metrics=("F_mi", "F_cmi", "cw"), gaps=("cw",), generator=torch.Generator().manual_seed(0),
        )
    )
    for m in (1, 4, 16, 64, None)
]  # fmt: skip
by_size = pd.concat(sizes, ignore_index=True)
with matplotlib.rc_context(rc()):
    figure = plt.figure(figsize=(5.7, 4.0), layout="constrained")
    forgetting_by_size(figure, by_size)
plt.show()
few = by_size[by_size["warnings"].str.startswith("only")]
few.groupby(["m", "split"], sort=False)["warnings"].first().unstack()

# %% [markdown]
# For SAM the small batch is the clean case: with m = 1 the perturbation is about one example, and that one loses far
# more than the others; with all the data there is nothing outside. Numbers on `exposed` pool the outputs of all
# batches, as one small batch has too few examples a class; below 50 of a class the rows of information carry the
# warning shown. `cw` is a share of examples and needs none, but at m = 1 it rests on 50 of them.

# %% [markdown]
# ## Along training
# `forgetting_curve` measures every checkpoint of a run, with the same batches; it keeps its results in the run's
# folder, so a copy is used here. `second_half` is the mean over the later checkpoints, and says where they are few.

# %%
copy = shutil.copytree(run.folder, Path(folder.name) / run.folder.name)
curve = forgetting_curve(
    copy, options={"providers": ("sam", "obf"), "radii": ("iso-loss",), "m": 32, "batches": 10}, seed=0
)
options = curve["options"].map(json.loads)
curve = curve.assign(provider=options.map(lambda o: o.get("provider")), method="sam")
with matplotlib.rc_context(rc()):
    figure = plt.figure(figsize=(5.7, 4.0), layout="constrained")
    forgetting_curves(figure, curve[curve["measure"].isin(["F_mi", "cw"])])
plt.show()
late = second_half(curve)
late = late.assign(provider=late["options"].map(lambda o: json.loads(o)["provider"]))
late[late["measure"].isin(["F_mi", "cw"])][["measure", "provider", "split", "value", "stderr", "warnings"]].round(4)

# %% [markdown]
# ## A planted shortcut
# Digits with a patch in the corner that names the label for 95 % of the images; a fifth of the labels is noise, so the
# patch is the easier guide. The network may learn the digit (the **real** feature), the patch (the **spurious** one),
# or both. Tested where patch and class are drawn apart, the information about each is known, and so is what a
# perturbation takes of it: F_spurious against F_real.

# %%
planted = trainers.fit(
    {"dataset": "digits", "train_size": 600, "label_noise": 0.2, "spurious": 0.95, "model": "mlp",
     "model_options": {"width": 64}, "method": "sgd", "epochs": 12, "batch_size": 32, "lr": 0.1,
     "checkpoints": [1, 2, 4, 8], "seed": 0},
    out=folder.name,
)  # fmt: skip
shortcut = forgetting_curve(
    planted, measure="spurious_forgetting",
    options={"providers": ("sam", "obf", "random"), "radii": ("iso-loss",), "m": 32, "batches": 10},
)  # fmt: skip
options = shortcut["options"].map(json.loads)
shortcut = shortcut.assign(provider=options.map(lambda o: o.get("provider")))
last = shortcut[shortcut["step"] == shortcut["step"].max()]
last[last["provider"].isna()][["measure", "value", "stderr"]].round(4)

# %%
with matplotlib.rc_context(rc()):
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.6, 2.9), layout="constrained")
    for name, label, colour, style in (
        ("spurious_information", "patch, I(S;Ŷ)", "#b3261e", "-"),
        ("real_information", "digit, I(Y;Ŷ)", "#22262b", "--"),
    ):  # fmt: skip
        rows = shortcut[shortcut["measure"] == name].sort_values("epoch")
        left.errorbar(rows["epoch"], rows["value"], yerr=2 * rows["stderr"], marker="o", ms=4, color=colour, ls=style,
                      label=label)  # fmt: skip
    left.set(xlabel="Epoch", ylabel="nats", title="What the outputs know", ylim=(0, None), xticks=[1, 4, 8, 12])
    left.legend()
    providers = ["sam", "obf", "random"]
    for k, (name, colour) in enumerate((("F_spurious", "#b3261e"), ("F_real", "#22262b"))):
        rows = last[last["measure"] == name].set_index("provider").reindex(providers)
        right.bar(np.arange(3) + 0.38 * (k - 0.5), rows["value"], 0.38, yerr=2 * rows["stderr"], color=colour,
                  label=name, error_kw={"ecolor": MUTED, "elinewidth": 0.9})  # fmt: skip
    right.axhline(0, color=MUTED, lw=0.8)
    right.set_xticks(range(3), [PROVIDERS[p] for p in providers])
    right.set(title="What a perturbation forgets", ylabel="nats")
    right.legend()
    for ax in (left, right):
        ax.grid(axis="y")
plt.show()
kept = last["measure"].isin(["F_spurious", "F_real", "spurious_selectivity", "F_reliance", "F_without"])
last[kept].pivot_table(index="provider", columns="measure", values="value").reindex(providers).round(3)

# %% [markdown]
# `spurious_selectivity` is 1 where the shortcut alone is forgotten, 0 where the class alone is. F_real below 0 means
# that the outputs say *more* about the digit after the perturbation; F_without above 0 that without any patch the
# accuracy still falls. One model, one seed, and a model that leans on the patch: this shows how to look, and is no
# evidence on what SAM does in general. Compare the providers with random, which is the bar.

# %% [markdown]
# ## Examples forgotten during training
# The older meaning of the word (Toneva et al., 2019, ICLR): an example is right at one presentation and wrong at the
# next. Nothing is perturbed; the run recorded it. With noisy labels, "right" means agreement with the label given.

# %%
counts = analysis.example_forgetting(run.correctness("presentation"))
with np.load(run.folder / "examples.npz") as stored:
    noisy = stored["noisy"].astype(bool)
kinds = {
    "never learned": counts.never_learned,
    "never forgotten": counts.unforgettable,
    "forgotten once": counts.events == 1,
    "twice": counts.events == 2,
    "more often": counts.events > 2,
}
kinds = {name: which & ~(counts.never_learned & (name != "never learned")) for name, which in kinds.items()}
labelled = {"label as it was": (~noisy, "#a48ad6"), "label replaced by another": (noisy, "#3b1f6e")}
with matplotlib.rc_context(rc()):
    figure, ax = plt.subplots(figsize=(5.7, 2.7), layout="constrained")
    for k, (name, (group, colour)) in enumerate(labelled.items()):
        shares = [which[group].mean() if group.any() else 0.0 for which in kinds.values()]
        ax.bar(np.arange(len(kinds)) + 0.4 * (k - 0.5), shares, 0.4, color=colour, label=f"{name} ({group.sum()})")
    ax.set_xticks(range(len(kinds)), list(kinds))
    ax.set(ylabel="Share of examples")
    ax.grid(axis="y")
    ax.legend()
plt.show()
pd.DataFrame(
    [(r.options["protocol"], r.measure, r.value, r.stderr) for p in ("presentation", "sweep")
     for r in analysis.example_forgetting(run.correctness(p)).rows(protocol=p)],
    columns=["protocol", "measure", "value", "stderr"],
).round(4)  # fmt: skip

# %% [markdown]
# The two protocols, on the minibatch before its update and on all examples after each epoch, do not give equal counts:
# say which one it was.
#
# ## What is ours and what is published
# * **Published**: the idea, and the OBF perturbation (Vani et al. 2024); SAM's (Foret et al. 2021); example forgetting
#   (Toneva et al. 2019); the attack behind `F_mem` (Yeom et al. 2018).
# * **Ours**: F_mi, F_use and F_cmi with their corrections and errors, the split by exposure, iso-loss, the shortcut's
#   numbers. Other definitions may give other signs; so `F_*` is not the number in a paper unless the paper says so.
# * Whether any of it goes with generalisation is a question for many models: notebook 05.

# %%
folder.cleanup()
