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
# # The SAM family: one interface, many ways to move before the gradient
#
# Every method here takes its gradient somewhere else than at the weights it updates. They differ in where that is, in
# what the gradients are combined to, and in what it costs. This notebook lists them, takes one step apart by hand,
# watches some of them walk on a surface of two weights that can be looked at, and trains them on digits: what does a
# lower error cost?
#
# All of it takes about a minute on one core.

# %%
# %matplotlib inline
import tempfile

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import nn

import trainers
from analysis.figures import cost_against_error, paths_on_surface
from analysis.style import rc

torch.set_num_threads(1)
folder = tempfile.TemporaryDirectory()

# %% [markdown]
# ## What there is
# `landscape list methods` prints the same with the knobs. "Rule" says whether the update is the published one, comes
# from others' accounts of a paper, or is ours where only the idea could be read.

# %%
pd.DataFrame(
    [(name, m.help, m.cost, m.rule, m.source) for name, m in trainers.METHODS.items()],
    columns=["method", "what it is", "passes a step", "rule", "source"],
).set_index("method")

# %% [markdown]
# ## One step, by hand
# On $L(w) = \frac12 w^\top A w$ with $A = \mathrm{diag}(1, 4)$ at $w = (3, 1)$ the gradient is $(3, 4)$, of length 5.
# SAM with $\rho = 0.5$ moves by $(0.3, 0.4)$, where the gradient is $(3.3, 5.6)$; with a learning rate of 0.1 the
# weights become $(2.67, 0.44)$. The optimizer says what it did in `last`.


# %%
class Quadratic(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0, 1.0], dtype=torch.float64))

    def forward(self):
        return 0.5 * (torch.tensor([1.0, 4.0], dtype=torch.float64) * self.w**2).sum()


def closure_of(model):
    def closure():
        model.zero_grad()
        loss = model()
        loss.backward()
        return loss

    return closure


rows = {}
for name, options in {
    "sgd": {}, "sam": {"rho": 0.5}, "asam": {"rho": 0.5, "scope": "all"}, "gsam": {"rho": 0.5},
    "usam": {"rho": 0.1}, "wsam": {"rho": 0.5, "decouple": False}, "crsam": {"rho": 0.5},
}.items():  # fmt: skip
    model = Quadratic()
    optimizer = trainers.make_optimizer(name, model, lr=0.1, diagnose=True, **options)
    optimizer.step(closure_of(model))
    last = optimizer.last
    rows[name] = {
        "new weights": model.w.detach().numpy().round(3), "clean loss": last.clean_loss,
        "perturbed loss": last.perturbed_loss, "|eps|": last.length, "cos(g, g_p)": last.cosine, "passes": last.passes,
    }  # fmt: skip
pd.DataFrame(rows).T

# %% [markdown]
# ## Paths on a surface of two weights
# A narrow well on the left, a wide one on the right, and a slope towards both. All start at the same point with the
# same learning rate. A radius wider than the narrow well makes the gradient come from its other side, or from outside
# it: the perturbed methods cannot settle there.

# %%
NARROW, WIDE = (0.16, -0.55), (0.75, 0.9)  # width and place of the wells


def surface(x, y, exp=np.exp):
    narrow = exp(-((x - NARROW[1]) ** 2 + y**2) / (2 * NARROW[0] ** 2))
    wide = exp(-((x - WIDE[1]) ** 2 + y**2) / (2 * WIDE[0] ** 2))
    return 0.15 * (x**2 + y**2) - 0.8 * narrow - wide


class Surface(nn.Module):
    def __init__(self, start):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self):
        return surface(self.w[0], self.w[1], exp=torch.exp)


def walk(name, start=(-0.85, 0.55), steps=300, **options):
    model = Surface(start)
    optimizer = trainers.make_optimizer(name, model, lr=0.02, momentum=0.5, **options)
    points = [start]
    for _ in range(steps):
        optimizer.step(closure_of(model))
        points.append(tuple(model.w.detach().tolist()))
    return [{"method": name, "step": i, "x": x, "y": y} for i, (x, y) in enumerate(points)]


chosen = {
    "sgd": {}, "sam": {"rho": 0.25}, "gsam": {"rho": 0.25}, "msam": {"rho": 0.25}, "looksam": {"rho": 0.25, "k": 3},
    "randsam": {"rho": 0.25},
}  # fmt: skip
paths = pd.DataFrame([row for name, options in chosen.items() for row in walk(name, **options)])
with matplotlib.rc_context(rc()):
    figure, ax = plt.subplots(figsize=(5.7, 3.4), layout="constrained")
    paths_on_surface(ax, surface, paths, limits=(-1.3, 1.7, -0.9, 0.9))
    ax.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.18))
plt.show()

# %% [markdown]
# Where each path ends, and how sharp it is there (largest eigenvalue of the surface's Hessian). SGD settles in the
# narrow well, and so does LookSAM, which perturbs only every third step. MSAM and RandSAM leave it for the wide one.
# SAM and GSAM leave it too, but then hang between the wells: near the saddle the ascent always points to the same
# ridge, so the gradient taken there pushes back. That a constant radius can hold SAM at a saddle, where noise from
# batches would help it out, is a property of the method, not of this implementation.

# %%
ends = paths.groupby("method", sort=False).last()


def sharpness(x, y):
    point = torch.tensor([x, y], dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda w: surface(w[0], w[1], exp=torch.exp), point)
    return float(torch.linalg.eigvalsh(hessian)[-1])


ends["loss"] = [float(surface(x, y)) for x, y in zip(ends["x"], ends["y"], strict=True)]
ends["top eigenvalue"] = [sharpness(x, y) for x, y in zip(ends["x"], ends["y"], strict=True)]
ends.drop(columns="step").round(3)

# %% [markdown]
# ## On digits: what does a lower error cost?
# A small MLP on 600 digits with a fifth of the labels replaced at random. Cost counts forward and backward passes of
# full batches, a backward pass as two forward ones, and the plain optimizer's training as 1. Radii are the methods'
# defaults but where said; nothing was tuned, so this compares defaults, not the methods at their best.

# %%
common = {
    "dataset": "digits", "train_size": 600, "label_noise": 0.2, "model": "mlp", "model_options": {"width": 64},
    "epochs": 15, "batch_size": 32, "lr": 0.1, "evaluate_every": 15,
}  # fmt: skip
methods = {
    "sgd": (1.0, {}),
    "sam": (2.0, {"rho": 0.2}),
    "asam": (2.0, {"rho": 1.0}),
    "gsam": (2.0, {"rho": 0.2}),
    "obf": (2.0, {"rho": 0.2}),
    "randsam": (4 / 3, {"rho": 0.2}),
    "msam": (1.0, {"rho": 0.2}),
    "s2sam": (1.0, {"rho": 0.2}),
    "looksam": (1.2, {"rho": 0.2}),
    "sssam": (1.5, {"rho": 0.2}),
    "fsam": (2.0, {"rho": 0.2}),
}
rows = []
for name, (cost, options) in methods.items():
    for seed in (0, 1, 2):
        run = trainers.fit({**common, "method": name, **options, "seed": seed}, out=folder.name)
        rows.append({"method": name, "seed": seed, "cost": cost, "error": run.history()["test_error"].iloc[-1]})
table = pd.DataFrame(rows)
table.groupby("method", sort=False)["error"].agg(["mean", "std"]).mul(100).round(2)

# %%
with matplotlib.rc_context(rc()):
    figure, ax = plt.subplots(figsize=(5.7, 3.2), layout="constrained")
    cost_against_error(ax, table)
    ax.legend(ncols=1, loc="center left", bbox_to_anchor=(1.0, 0.5))
plt.show()

# %% [markdown]
# Three seeds, one data set and untuned radii: the differences between neighbouring points are not to be read as a
# ranking. A study with a grid over radii, more seeds and tests is `landscape study studies/digits.yaml`.
