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
import textwrap
from pathlib import Path

import matplotlib
import pandas as pd
import torch
from IPython.display import display

import analysis
import landscape
import trainers
from analysis.style import rc
from analysis.table import last_step

STUDY = Path(os.environ.get("LANDSCAPE_STUDY", "../runs/digits"))
results = analysis.StudyResults.load(STUDY)
print(f"{results.study['name']}: {len(results.runs)} runs, methods {', '.join(results.methods)}")
results.runs["status"].value_counts().to_frame("runs")

# %% [markdown]
# ## The table of measures
# One row a number: which run and checkpoint, which measure, its value **and its standard error**. The configuration
# stands beside it as `hp.*` columns, so pandas answers most questions.

# %%
last = last_step(results.measures)
test_error = last[last["measure"] == "test_error"]
by_method = test_error.groupby(["hp.method", "hp.rho"], dropna=False)["value"].agg(["mean", "std", "count"])
by_method.round(4)

# %%
interesting = ["top_eigenvalue", "bottom_eigenvalue", "hessian_trace", "gradient_norm", "test_error"]
one_run = last[(last["run_id"] == last["run_id"].iloc[0]) & last["measure"].isin(interesting)]
one_run[["measure", "value", "stderr", "draws", "converged"]]

# %% [markdown]
# ## One model, closely
# A checkpoint is a folder of safetensors and JSON. Loading it gives the model; `landscape` works on any model and data.

# %%
run = trainers.Run(STUDY / "runs" / one_run["run_id"].iloc[0])
model, meta = trainers.load_checkpoint(run.checkpoint(max(run.checkpoints())))
config = run.config()
data = trainers.load_dataset(
    config.dataset, train_size=config.train_size, validation_size=config.validation_size,
    test_size=config.test_size, label_noise=config.label_noise, seed=config.data_seed,
)  # fmt: skip
risk = landscape.EmpiricalRisk.from_model(model, torch.nn.functional.cross_entropy, (data.train.x, data.train.y))
hessian = landscape.Hessian(risk)
pairs = landscape.top_eigenpairs(hessian, which="both", generator=torch.Generator().manual_seed(0))
print(f"method {config.method}, step {meta['step']}, training loss {risk.value():.4f}")
low, high = pairs.values.min(), pairs.values.max()
print(f"Hessian of {hessian.shape[0]:,} parameters: eigenvalues from {low:.4g} to {high:.4g}")
print(f"residuals {[f'{r:.1e}' for r in pairs.residuals]}, {pairs.products} products, converged: {pairs.converged}")

# %%
stored = one_run.set_index("measure").loc["top_eigenvalue"]
assert abs(float(pairs.values.max()) - stored["value"]) < 2e-3 * abs(stored["value"]) + 1e-6
assert pairs.converged

# %% [markdown]
# ### What does a perturbation make it forget?
# Sharpness is the rise of the loss at the perturbed weights. Perturbed forgetting asks *what* is lost there: decisions
# on the examples the perturbation was made from (exposed), on other training examples, and on held-out ones. At
# iso-loss every provider moves as far as raises the loss on its own batch by the same 0.1 nats.

# %%
rows = analysis.perturbed_forgetting(
    risk, (data.validation.x, data.validation.y), providers=("sam", "obf", "random"), radii=("iso-loss",),
    m=32, batches=10, generator=torch.Generator().manual_seed(0),
)  # fmt: skip
frame = pd.DataFrame(
    {"provider": r.options["provider"], "set": r.split, "measure": r.measure, "value": r.value, "stderr": r.stderr}
    for r in rows
    if r.measure in ("cw", "F_mi")
)
frame.pivot_table(index=["measure", "provider"], columns="set", values="value").round(4)

# %% [markdown]
# ## Two figures of the report, redrawn
# A figure is a function of a table; `FIGURES` holds those of the report with their captions. In the report itself,
# `landscape report FOLDER --figure forest` redraws one.

# %%
plate = analysis.FIGURES["forest"]
with matplotlib.rc_context(rc("screen")):
    figure, facts = plate.draw(results)
    display(figure)
print("\n".join(textwrap.wrap(plate.says(results, facts), 110)))

# %%
with matplotlib.rc_context(rc("screen")):
    figure, facts = analysis.FIGURES["training_curves"].draw(results)
    display(figure)

# %% [markdown]
# ## Where to go on
# * `results.correlations`: every measure against every target, with intervals, p-values and their correction, and the
#   correlation within methods.
# * `results.comparisons`: forgetting against sharpness as a paired difference.
# * Your own study: copy `studies/digits.yaml`, change what is crossed, and run `landscape study yours.yaml`.
