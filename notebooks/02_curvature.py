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
# # Curvature: the spectrum of a Hessian, and the edge of stability
#
# The Hessian of a network's training loss is never written down; everything here comes from its products with
# vectors. This notebook trains a small MLP on digits by full-batch gradient descent at two learning rates, and then
# asks: how large do the eigenvalues become, and do they stop where gradient descent becomes unstable? What does the
# whole spectrum look like? Which layers carry the curvature, and how much of it is the Gauss-Newton part?
#
# Every number comes with its error: a residual where it is from an iteration, a standard error where it is from
# random probes. It all takes well under a minute on one core.

# %%
# %matplotlib inline
import tempfile

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import display

import analysis
import landscape
import trainers
from analysis.figures import edge_of_stability, eigenvalue_curves, layer_traces, spectrum
from analysis.measures.plan import plan
from analysis.style import rc

torch.set_num_threads(1)
folder = tempfile.TemporaryDirectory()

# %% [markdown]
# ## Two runs of gradient descent
# Batches of all 400 examples, no momentum, no weight decay: plain gradient descent, for which theory has something to
# say. A fifth of the labels is noise, so that there is something to fit for a while.

# %%
STEPS = 600
common = {
    "dataset": "digits", "train_size": 400, "label_noise": 0.2, "model": "mlp", "model_options": {"width": 64},
    "method": "sgd", "momentum": 0.0, "weight_decay": 0.0, "lr_schedule": "constant", "batch_size": 400,
    "epochs": STEPS, "checkpoints": tuple(range(15, STEPS, 15)), "evaluate_every": STEPS,
}  # fmt: skip
runs = {f"lr = {lr}": trainers.fit({**common, "lr": lr}, out=folder.name) for lr in (0.15, 0.3)}
pd.DataFrame({name: run.history().iloc[-1] for name, run in runs.items()}).loc[["train_loss", "train_error"]].round(4)

# %% [markdown]
# ## Both ends of the spectrum along training
# `measure_run` takes measures of a run's checkpoints and keeps them beside the run. `hessian_eigenvalues` finds the
# largest and the smallest eigenvalue in one Krylov space by `landscape.top_eigenpairs`, to a residual of 1e-3 of the
# largest modulus; whiskers of that size would not be seen. A cross would mark a value that did not converge.

# %%
wanted = plan(["hessian_eigenvalues"])
table = pd.concat([analysis.measure_run(run.folder, wanted, along=wanted) for run in runs.values()])
labels = {run.run_id: name for name, run in runs.items()}
print(f"{len(table)} values, all converged: {table['converged'].all()}, largest residual {table['stderr'].max():.1e}")
with matplotlib.rc_context(rc("screen")):
    display(eigenvalue_curves(plt.figure(figsize=(5.7, 3.8), layout="constrained"), table, labels=labels))
    plt.close()

# %% [markdown]
# The largest eigenvalue grows by an order of magnitude while the loss falls: *progressive sharpening*. The smallest is
# negative all along and much smaller in modulus: these points are no minima, and the surface bends up far more than
# down.

# %% [markdown]
# ## The edge of stability
# On a quadratic, gradient descent with step η diverges along any direction of curvature above 2/η. Cohen et al. (2021)
# found that networks sharpen until they are there, and then neither diverge nor stop: the largest eigenvalue hovers
# about 2/η while the loss goes on falling, no longer at every step. `hessian_eigenvalues` gives the ratio to that
# threshold as `stability_ratio` for runs of SGD.

# %%
with matplotlib.rc_context(rc("screen")):
    figure, ax = plt.subplots(figsize=(5.7, 3.2), layout="constrained")
    edge_of_stability(ax, table, labels=labels)
    display(figure)
    plt.close()
ratio = table[table["measure"] == "stability_ratio"].assign(label=lambda rows: rows["run_id"].map(labels))
stages = pd.cut(ratio["step"], [0, STEPS // 3, 2 * STEPS // 3, STEPS], labels=["first third", "second", "last"])
ratio.groupby(["label", stages], observed=True)["value"].agg(["mean", "min", "max"]).round(2)

# %% [markdown]
# What is seen: both runs sharpen up to about their own threshold and stop there, the one with the larger step sooner
# and at half the curvature. From then on the ratio stays about one without settling: single checkpoints are about
# twice too sharp, and the next ones are below again. In the run with the larger step the curvature ends *below* the
# threshold. That is no failure of the picture, but the loss: once the labels are fitted, the cross-entropy's own
# curvature goes to zero with the residuals.

# %% [markdown]
# ## One checkpoint, closely
# From here on: the run with the smaller step, half-way. An operator is made from a risk, and knows how it computes its
# products.

# %%
run = runs["lr = 0.15"]
model, meta = trainers.load_checkpoint(run.checkpoint(STEPS // 2))
data = trainers.load_dataset("digits", train_size=400, label_noise=0.2)
risk = landscape.EmpiricalRisk.from_model(model, torch.nn.functional.cross_entropy, (data.train.x, data.train.y))
H, G = landscape.Hessian(risk), landscape.GaussNewton(risk)
print(H, "at step", meta["step"], f"loss {risk.value():.3f}")

g = torch.Generator().manual_seed(0)
outliers = landscape.top_eigenpairs(H, k=9, generator=g, vectors=False)
print(outliers)

# %% [markdown]
# ### The spectral density
# `spectral_density` runs Lanczos from random vectors and turns each run into a quadrature of the spectrum. The band is
# two standard errors over runs. An eigenvalue that stands alone has a weight of about 1/p in the density, so its height
# says nothing: the ticks below the dotted floor are the nine largest, from `top_eigenpairs`. Ten classes usually give
# about nine outliers, and almost all of the other eigenvalues are near zero.

# %%
density = landscape.spectral_density(H, runs=6, steps=60, generator=g)
with matplotlib.rc_context(rc("screen")):
    figure, ax = plt.subplots(figsize=(5.7, 3.0), layout="constrained")
    spectrum(ax, density, pairs=outliers, label="Hessian")
    display(figure)
    plt.close()
largest = float(outliers.values[0])
tiny = density.average(lambda t: (t.abs() < 0.01 * largest).double())
print(f"share of eigenvalues below -0.1 % of the largest: {density.negative_mass(1e-3 * largest)}")
print(f"width of the central 95 %: {density.bulk_width()}")
print(f"share of eigenvalues within 1 % of it around zero: {tiny}")

# %% [markdown]
# ### Trace, layer by layer
# One set of probes gives the trace of the Hessian and of each layer's diagonal block, with intervals. The layers need
# no products of their own; their traces add up to the whole.

# %%
whole = landscape.trace(H, tol=0.02, blocks=H.layers, generator=g)
plain = landscape.trace(H, tol=0.02, method="hutchinson", generator=g)
print(f"trace {whole}: {whole.products} products; Hutchinson's probes alone need {plain.products} for {plain}")
with matplotlib.rc_context(rc("screen")):
    figure, ax = plt.subplots(figsize=(5.7, 1.9), layout="constrained")
    layer_traces(ax, whole).set_ylabel("layer")
    display(figure)
    plt.close()

# %% [markdown]
# ### Hessian against Gauss-Newton
# The Hessian is the Gauss-Newton matrix, which is positive semidefinite, plus a part that weighs the network's own
# curvature by the residuals. The outliers are those of the first; the second hardly moves them, adds little to the
# trace, and makes the negative eigenvalues. (Both curves are smoothed by the same Gaussian, so that even the one
# without negative eigenvalues reaches a little below zero.)

# %%
gauss_newton = landscape.spectral_density(G, runs=6, steps=60, generator=g)
top = landscape.top_eigenpairs(G, k=9, generator=g, vectors=False)
sigma = density.bandwidth
with matplotlib.rc_context(rc("screen")):
    figure, ax = plt.subplots(figsize=(5.7, 3.0), layout="constrained")
    spectrum(ax, density, pairs=outliers, sigma=sigma, label="Hessian")
    spectrum(ax, gauss_newton, pairs=top, sigma=sigma, label="Gauss-Newton", colour="#d55e00")
    ax.legend()
    display(figure)
    plt.close()
rows = {}
for name, A in {"Hessian": H, "Gauss-Newton": G, "difference": H - G}.items():
    ends = landscape.top_eigenpairs(A, which="both", generator=g, vectors=False)
    (high, low), (high_error, low_error) = ends.values.tolist(), ends.residuals.tolist()
    rows[name] = {
        "largest": f"{high:.3f} ± {high_error:.1g}", "smallest": f"{low:.3f} ± {low_error:.1g}",
        "trace": landscape.trace(A, draws=64, generator=g),
    }  # fmt: skip
pd.DataFrame(rows).T

# %% [markdown]
# ## Where to go on
# * Other models: `EmpiricalRisk.from_model` takes any module and data, with `mode=` for BatchNorm and `parameters=` for
#   a part of the model; operators find a path of products for attention and recurrent layers too.
# * `H.rescaled(w.abs())` is the Hessian in relative units, `GaussNewton`, `Fisher` and `EmpiricalFisher` its relatives.
# * `landscape measure RUN --measures hessian_eigenvalues hessian_trace spectrum` takes such measures of any run or file
#   of weights; `landscape list measures` names them all.
