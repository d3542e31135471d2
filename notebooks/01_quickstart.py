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
# # Quickstart: from a study's folder to its figures
#
# `make study` trained a grid of models on digits with noisy labels, measured them, and related the measures to
# generalisation. This notebook opens the folder it left, looks at one model closely, and redraws two of the report's
# figures. Nothing here trains.

# %%
# %matplotlib inline
import os

import pandas as pd
from torch.nn.functional import cross_entropy

import analysis
import landscape
import trainers
from analysis.table import last_step
from trainers.runs.folder import load_data

results = analysis.StudyResults.load(os.environ.get("LANDSCAPE_STUDY", "../runs/digits"))
results

# %% [markdown]
# ## The table of measures
# One row a number: which run and checkpoint, which measure, its value **and its standard error**. The configuration
# stands beside it as `hp.*` columns, so pandas answers most questions.

# %%
last = last_step(results.measures)
test_error = last[last["measure"] == "test_error"]
test_error.groupby(["hp.method", "hp.rho"], dropna=False)["value"].agg(["mean", "std", "count"]).round(4)

# %% [markdown]
# ## One model, closely
# A checkpoint is a folder of safetensors and JSON. Loading it gives the model; `landscape` works on any model and data.

# %%
run = trainers.Run(results.folder / "runs" / last["run_id"].iloc[0])
run

# %%
model, _ = trainers.load_checkpoint(run.checkpoint(max(run.checkpoints())))
data = load_data(run.config())
train, held_out = (data.train.x, data.train.y), (data.validation.x, data.validation.y)
landscape.summary(model, cross_entropy, train)

# %% [markdown]
# ### What does a perturbation make it forget?
# Sharpness is the rise of the loss at the perturbed weights. Perturbed forgetting asks *what* is lost there: decisions
# on the examples the perturbation was made from (exposed), on other training examples, and on held-out ones. At
# iso-loss every provider moves as far as raises the loss on its own batch by the same 0.1 nats. `cw` is the share of
# decisions that were right and become wrong, `F_mi` the information on the input that the outputs lose.

# %%
risk = landscape.EmpiricalRisk.from_model(model, cross_entropy, train)
rows = analysis.perturbed_forgetting(risk, held_out, providers=("sam", "obf", "random"), m=32, batches=10)
found = {
    (row.measure, row.options["provider"], row.split): f"{row.value:.3f} ± {row.stderr:.3f}"
    for row in rows
    if row.measure in ("cw", "F_mi") and row.options["radius"] == "iso-loss"
}
pd.Series(found).unstack()

# %% [markdown]
# ## Two figures of the report, redrawn
# In the report itself, `landscape report FOLDER --figure forest` redraws one.

# %%
analysis.figure(results, "forest")

# %%
analysis.figure(results, "training_curves")

# %% [markdown]
# ## Where to go on
# * `results.explore()`: a page to choose runs and measures on.
# * `results.correlations`: every measure against every target, with intervals, p-values and their correction, and the
#   correlation within methods.
# * `results.comparisons`: forgetting against sharpness as a paired difference.
# * Your own study: `landscape init FOLDER`, or copy `studies/digits.yaml`, change what is crossed, and run
#   `landscape study yours.yaml`.
