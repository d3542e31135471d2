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
# # Bring your own checkpoints
#
# Two files of weights, made by a training loop that knows nothing of this toolkit. Which of the two minima is flatter,
# and does it matter? From files to numbers with errors, a spectrum and a surface.

# %%
# %matplotlib inline
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import analysis
import landscape
import trainers
from analysis.figures import spectrum
from trainers.randomness import seeded

data = trainers.load_dataset("digits", train_size=600)
train, test = (data.train.x, data.train.y), (data.test.x, data.test.y)  # yours: tensors, or a DataLoader


def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))


# %% [markdown]
# These stand for the files that you have: plain SGD, in batches of 10 and of 300.

# %%
folder = Path(tempfile.mkdtemp())
for batch in (10, 300):
    with seeded(0):
        model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(60):
        for x, y in zip(train[0].split(batch), train[1].split(batch), strict=True):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
    torch.save(model.state_dict(), folder / f"batch_{batch}.pt")

# %% [markdown]
# `read_foreign` reads what torch, timm, Lightning and Hugging Face write, without running a file's code, and gives
# tensors by the names of your model.

# %%
models = {path.stem: make() for path in sorted(folder.glob("*.pt"))}
for name, model in models.items():
    model.load_state_dict(trainers.read_foreign(folder / f"{name}.pt", model=model).tensors)

# %% [markdown]
# ## The numbers one wants first

# %%
found = {name: landscape.summary(model, cross_entropy, train) for name, model in models.items()}
found["batch_10"]

# %%
risks = {name: landscape.EmpiricalRisk.from_model(model, cross_entropy, train) for name, model in models.items()}
numbers = pd.DataFrame({name: {what: value for what, value, _ in one.rows()} for name, one in found.items()}).T
numbers["test error"] = [landscape.evaluate(risk.on(test)).scores["error"] for risk in risks.values()]
numbers.T

# %% [markdown]
# Mind the loss: after as many epochs the large batches have taken a thirtieth of the steps, and their model has not
# fitted the labels yet. Curvature of the cross-entropy falls with the loss, so these two say nothing about batch sizes.

# %% [markdown]
# ## The whole spectrum
# Eigenvalues that stand alone weigh 1/p; the rest is at zero.

# %%
_, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained", sharey=True)
for ax, (name, risk) in zip(axes, risks.items(), strict=True):
    spectrum(ax, landscape.spectral_density(landscape.Hessian(risk))).set_title(name)

# %% [markdown]
# ## The surface along the sharpest and the most negative direction

# %%
analysis.surface(models["batch_10"], cross_entropy, train, axes=("top", "bottom"), points=21)

# %% [markdown]
# ## Where to go on
# * All measures of many files at once: `landscape measure FOLDER --model mine:make --dataset mine:data`, see
#   `docs/checkpoints.md`.
# * A measure of your own, on these files: `docs/your_own.md`.
# * Two checkpoints say nothing about what explains generalisation: for that, a study.
