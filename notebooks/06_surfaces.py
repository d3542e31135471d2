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
# # Loss surfaces one can trust
#
# A picture of the loss around a model is a slice of thousands of dimensions along two. It can be exact and still
# mislead. This notebook draws such slices around models trained by SGD, SAM and OBF, beside what they cannot show:
# what a random direction misses, how much of the curvature a plane holds, how far a trajectory is from the plane it is
# drawn on. All of it takes about a minute on one core; each picture is one call, and is kept in a file.

# %%
# %matplotlib inline
import tempfile
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

import analysis
import landscape
import trainers
from analysis.figures.surfaces import Along, ascent_path, contour, lines
from analysis.figures.surfaces.line import Slice
from analysis.style import rc
from trainers.runs.folder import load_data

torch.set_num_threads(1)
matplotlib.rcParams.update(rc("screen"))
folder = tempfile.TemporaryDirectory()

# %% [markdown]
# ## Three models
# Digits with a fifth of the training labels wrong, one hidden layer, a checkpoint after every second epoch.

# %%
common = {
    "train_size": 400, "validation_size": 200, "label_noise": 0.2, "epochs": 20, "batch_size": 20, "lr": 0.1,
    "momentum": 0.9, "model_options": {"width": 64, "depth": 1}, "checkpoints": list(range(2, 20, 2)),
}  # fmt: skip
runs = {
    name: trainers.fit(trainers.TrainConfig(method=name, rho=rho, **common), out=Path(folder.name))
    for name, rho in (("sgd", None), ("sam", 0.15), ("obf", 0.15))
}
for name, run in runs.items():
    last = run.history().iloc[-1]
    print(f"{name}: training error {last['train_error']:.3f}, test error {last['test_error']:.3f}")

# %% [markdown]
# ## A random plane, and how to read it
# Two random directions, each filter scaled to the norm of the model's own (Li et al. 2018). The broken lines are what
# the gradient and the Hessian predict. Below the figure stands the note: is the plot whole, is its range more than the
# noise of 400 examples, does the slice show the curvature that the model has?

# %%
small = {"points": 31, "examples": 400}
plane = analysis.surface(runs["sam"].folder, **small)
plane

# %% [markdown]
# The note says that the slice bends by a small part of the largest eigenvalue. That is not this model's fault: a random
# direction in $p$ dimensions meets the sharpest eigenvector at a cosine of about $1/\sqrt p$. What the model is like
# along its sharp directions is another plane.

# %%
eigen = analysis.surface(runs["sam"].folder, axes=("top", "bottom"), **small)
eigen

# %% [markdown]
# ## Three methods on one scale
# The same random draw, scaled by each model's own filters; equal colours are equal losses.

# %%
compared = analysis.surface(*(run.folder for run in runs.values()), **small)
compared

# %% [markdown]
# Lines show the uncertainty: bands are two standard errors over the examples. All points share their examples, so that
# the shape is surer than the height.

# %%
line = analysis.surface(*(run.folder for run in runs.values()), axes="random", points=41, examples=400)
fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained")
lines(left, [Slice(s, name, "train loss") for name, s in line.surfaces.items()])
lines(right, [Slice(s, name, "test error") for name, s in line.surfaces.items()])
plt.show()

# %% [markdown]
# ## Along the perturbations
# The plane of what SAM's and OBF's perturbations move the weights by: (1, 0) is $w + \epsilon_\mathrm{SAM}$.

# %%
perturbed = analysis.surface(runs["sam"].folder, axes=("sam", "obf"), **small)
perturbed

# %% [markdown]
# SAM's ascent, and beyond: the loss along $w + a\,\epsilon$, with what one gradient and one Hessian product predict.

# %%
model, _ = trainers.load_checkpoint(runs["sgd"].checkpoint(max(runs["sgd"].checkpoints())))
train = load_data(runs["sgd"].config()).train
batch, rest = (train.x[:20], train.y[:20]), (train.x[20:], train.y[20:])
risk = landscape.EmpiricalRisk.from_model(model, F.cross_entropy, batch)
path = landscape.ascent_path(risk, landscape.AscentStep(0.15), others={"other examples": rest})
fig, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
ascent_path(
    ax,
    [
        Along(path.coordinates.numpy(), path.profile.values(s).numpy(), path.profile.stderr(s).numpy(), label)
        for s, label in (("own", "the batch of 20"), ("other examples", "other training examples"))
    ],
    slope=path.slope,
    curvature=path.curvature,
)
plt.show()

# %% [markdown]
# ## Training, on the plane that holds most of it
# Principal axes of SAM's checkpoints through the last one; SGD's run is projected on the same plane. Look at the panels
# on the right: where the distance off the plane is large, the loss at the point and the loss on the plane below it
# are different things. And compare the shares explained with those of a random walk of as many points.

# %%
trajectory = analysis.surface(runs["sam"].folder, runs["sgd"].folder, axes=("pca", "pca"), **small)
trajectory

# %%
trajectory.pictures()[-1].figure

# %% [markdown]
# ## Between models
# The loss on the straight line from SGD's model to SAM's rises to a barrier; after permuting SAM's hidden units to fit
# SGD's, which changes no output, less so. A Bezier curve trained between the two (Garipov et al. 2018) stays lower.

# %%
between = analysis.surface(
    runs["sgd"].folder, runs["sam"].folder, between="bezier", align=True, points=41, examples=400
)
for sheet in between.sheets:
    told = sheet.surface.context["between"]["train loss"]
    print(
        sheet.name, {name: f"{v['value']:.3f} ± {v['stderr']:.3f}" for name, v in told.items() if isinstance(v, dict)}
    )
between

# %% [markdown]
# ## Your own model
# Without a run's folder the same parts work in memory: a risk, axes, a grid, a scan.

# %%
net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
own = landscape.EmpiricalRisk.from_model(net, F.cross_entropy, (train.x.flatten(1), train.y))
axes = landscape.Axes(own.theta, landscape.random_axes(own.theta, torch.Generator().manual_seed(0)))
surface = landscape.scan({"train": own}, axes, landscape.Grid.around(1.0, 21, axes=2))
fig, ax = plt.subplots(figsize=(4.2, 3.6), layout="constrained")
contour(ax, surface, prediction=landscape.second_order(own, axes))
plt.show()

# %% [markdown]
# ## Files
# Every surface is one `.npz`, which reads back into the same figures; `write` adds an interactive page, the note, PDF
# and PNG, and on request files for ParaView. On the command line: `landscape surface RUN [RUN ...] --help`.

# %%
written = compared.write(vtk=True)
sorted(path.name for path in written)

# %%
folder.cleanup()
