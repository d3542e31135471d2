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
# # A correlation study: which measures tell apart models that generalise?
#
# A study's folder holds a table of measures and what `landscape correlate` made of it. This notebook reads those tables
# in the order in which a doubtful reader would ask for them: how strong, how sure, is it only a difference between
# training methods or learning rates, could any measure do better, does it hold when one hyper-parameter changes, does
# it say more than the training error, and how many models would it take? It ends with a table of one's own, and with
# what may be claimed.
#
# The unit is the **configuration**, averaged over its seeds. Signs are as measured; nothing is flipped.

# %%
# %matplotlib inline
import os
import textwrap
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display

import analysis
from analysis.figures import comparison_plot, forest, scatter, strongest
from analysis.figures.scatter import line_handles
from analysis.style import FAMILIES, MUTED, family, rc

STUDY = Path(os.environ.get("LANDSCAPE_STUDY", "../runs/digits"))
results = analysis.StudyResults.load(STUDY)
TARGET = results.targets[0]
table, further = results.correlations, results.further
configurations = results.configurations()
print(textwrap.fill(results.study["question"], 110))
print(f"{len(results.runs)} runs in {configurations['configuration'].nunique()} configurations of methods "
      f"{', '.join(results.methods)}; the leading target is {TARGET}")  # fmt: skip

# %% [markdown]
# ## How strong, and how sure?
# Kendall's tau_b over configurations: the share of pairs that a measure orders rightly, minus the share it orders
# wrongly. Filled markers are over all pairs, hollow ones over pairs with equal hyper-parameters of training (cells);
# the band is the noise ceiling, further below.

# %%
with matplotlib.rc_context(rc()):
    figure, ax = plt.subplots(figsize=(6.6, 6.0), layout="constrained")
    forest(ax, table, target=TARGET, top=14, ceilings=results.ceilings)
plt.show()

# %%
columns = ["measure", "value", "low", "high", "p_adjusted", "permuted", "stratified", "stratified_low",
           "stratified_high", "stratified_p_adjusted", "cell_reversal", "warned"]  # fmt: skip
ranked = strongest(table, target=TARGET)
print(f"{len(ranked)} variants of measures were tried, {(ranked['p'] < 0.05).sum()} have p < 0.05 as they stand, "
      f"{(ranked['p_adjusted'] < 0.05).sum()} after the max-T correction")  # fmt: skip
strongest(table, target=TARGET, top=8)[columns].round(4)

# %% [markdown]
# The interval is a jackknife's on Fisher's z scale, the p-value is of a permutation test, corrected for all variants in
# the table by the step-down max-T method. What was tried and left out counts as well. `stratified` compares only models
# with equal learning rate and batch size; `cell_reversal` marks a measure for which that changes the answer, and
# `permuted` says whether configurations could change places freely or only inside methods. The strongest of hundreds is
# strong by luck, too: `selection` takes the best variant of each measure on one half of the configurations, and asks
# how good it is on the other.

# %%
selection = further["selection"].query("target == @TARGET")
selection = selection.assign(optimism=selection["naive"].abs() - selection["held_out"].abs())
selection.sort_values("naive", ascending=False, key=abs)[
    ["measure", "variants", "best", "naive", "held_out", "optimism", "chosen_share"]
].head(6).round(3)

# %% [markdown]
# ## Only a difference between methods? Simpson's reversal
# A measure may tell the methods apart and order the models of each the wrong way round; then it is a name for the
# method. Rows marked `reversal` do that.

# %%
order = strongest(table, target=TARGET)
turned = order[order["reversal"]]
print(f"{len(turned)} of {len(order)} variants change sign between pooled and within methods")
pick = [order.iloc[0], (turned if len(turned) else order.iloc[1:]).iloc[0]]
with matplotlib.rc_context(rc()):
    figure, axes = plt.subplots(1, 2, figsize=(6.8, 3.1), layout="constrained", sharey=True)
    for ax, row in zip(axes, pick, strict=True):
        points = results.points(row["measure"], TARGET)
        scatter(ax, points, measure=row["measure"], target=TARGET, row=row, methods=results.methods)
    axes[1].set_ylabel("")
    handles, names = axes[0].get_legend_handles_labels()
    lines = line_handles() if len(turned) else []
    figure.legend([*handles, *lines], [*names, *(h.get_label() for h in lines)], loc="outside upper left", ncols=4)
plt.show()

# %% [markdown]
# Slopes, of standardised values: the pooled slope is a weighted mean of the slope within and between the groups.
# `se` is the error of the within slope; with few methods, `p_permutation` (inside methods) is the one to read.

# %%
slopes = further["multilevel"].query("target == @TARGET and level == 'method'").set_index("measure")
slopes.loc[[row["measure"] for row in pick]][
    ["pooled", "within", "between", "se", "p_permutation", "clusters", "random_slope", "reversal"]
].round(3)

# %% [markdown]
# ## How well could any measure do?
# Targets are noisy: another seed gives another error. Two halves of the seeds agree as `split_half`; the Spearman-Brown
# step extends that to all seeds; `independent` is what the true values would reach. That bounds measures of other runs;
# one of the same runs shares their noise and can exceed it: `strongest_across` is what is left of the strongest measure
# when one half of the seeds gives the measure and the other half the target.

# %%
results.ceilings.query("coefficient == 'kendall'").drop(columns="coefficient").set_index("target").round(3).head(6)

# %% [markdown]
# ## One hyper-parameter at a time, and beyond two of them: Psi and K
# **Psi** (Jiang et al. 2020) compares only models that differ in one hyper-parameter, and averages over these axes; a
# measure that merely knows the learning rate fails on the others. **K** is the information that a measure has on the
# order of two models when up to two hyper-parameters are known. K has no sign, and small cells make it too large:
# `baseline` is what a shuffled measure gets.

# %%
leading = list(strongest(table, target=TARGET, top=8)["measure"])
granulated = further["granulated"].query("target == @TARGET and measure in @leading")
psi = granulated.pivot_table(index="measure", columns="axis", values="psi", aggfunc="first").reindex(leading)
information = further["information"].query("target == @TARGET").set_index("measure")
psi.join(information[["k", "baseline", "subset"]]).round(3)

# %% [markdown]
# ## What does it say beyond what is known anyway?
# A measure of the final model often says how far training got, which the training error says too. `partial` holds
# baselines fixed, each and jointly: the rank correlation of what they leave; a control with two or three levels, such
# as a learning rate, makes strata instead. It is no proof of a cause: a control that was not measured is not held.

# %%
baselines = table.query("target == @TARGET and coefficient == 'kendall' and role == 'baseline'")
baselines = baselines.sort_values("value", ascending=False, key=abs)
display(baselines[["measure", "value", "low", "high", "stratified", "warned"]].round(3).head(8))
partial = further["partial"].query("target == @TARGET and measure in @leading")
number = partial["control"].str.count(r" \+ ")
partial[(number == 0) | (number == number.max())].pivot_table(
    index="measure", columns="control", values="value", aggfunc="first"
).reindex(leading).rename(columns=lambda name: name if " + " not in name else "all of these").round(2)

# %% [markdown]
# ## Forgetting against sharpness
# Never compare two p-values, or two intervals: the difference |tau(forgetting)| - |tau(sharpness)| is taken on the same
# configurations, which makes it much surer than either. The pairs are those that the study's file names. Named before
# the study was run, and on a task where they were not found, they are a test; otherwise they are a hypothesis for the
# next task.

# %%
with matplotlib.rc_context(rc()):
    pairs = results.comparisons.query("target == @TARGET").head(10)
    figure, ax = plt.subplots(figsize=(6.6, 0.9 + 0.42 * max(1, len(pairs))), layout="constrained")
    comparison_plot(ax, pairs)
plt.show()

# %% [markdown]
# ## Prediction for a method never seen
# The strictest reading of "explains": fit on the other methods, predict the target of the one left out. `r2` is against
# the mean of the training methods: 0 is no better than that, and below 0 is worse. Baselines alone are the bar: `gain`
# is what a measure adds to them.

# %%
prediction = further["prediction"].query("target == @TARGET")
prediction[["features", "added", "model", "r2", "low", "high", "gain", "gain_low", "gain_high"]].round(3).head(16)

# %% [markdown]
# ## How many models does this claim need?
# Configurations that find a true tau four times in five, at level 0.05, and what this study can find. An observed value
# is itself uncertain: `planned` takes the end of its interval nearer to zero (none where the interval holds zero). Runs
# of one configuration that differ in the seed are alike and do not count as further configurations.

# %%
effects = np.linspace(0.1, 0.8, 71)
n = int(ranked["n_configurations"].max()) if len(ranked) else 0
with matplotlib.rc_context(rc()):
    figure, ax = plt.subplots(figsize=(5.0, 2.8), layout="constrained")
    ax.plot(effects, [analysis.required_models(e) for e in effects], color=FAMILIES[family("F_mi")], lw=1.8)
    ax.axhline(n, color=MUTED, ls="--", lw=1)
    ax.text(0.8, n * 1.1, f"this study: {n}", ha="right", va="bottom", color=MUTED)
    ax.set(xlabel="True tau", ylabel="Configurations needed", yscale="log")
    ax.grid(axis="y")
plt.show()
power = further["power"].query("target == @TARGET and measure in @leading").set_index("measure").reindex(leading)
ends = table.query("target == @TARGET and coefficient == 'kendall'").set_index("measure")[["low", "high"]].loc[leading]
clear = (ends["low"] * ends["high"] > 0) & (ends.abs().max(axis=1) < 1)
nearer = ends.abs().min(axis=1).where(clear)
power["planned"] = [analysis.required_models(e) if np.isfinite(e) else np.nan for e in nearer]
power[["value", "n_configurations", "smallest_effect", "required_configurations", "planned"]].round(3)

# %% [markdown]
# ## Did the training methods differ at all?
# `outcomes` has one row a run; `compare_methods` takes each method at the configuration chosen on **validation** data,
# and pairs its test errors with the baseline's by seed. Few seeds give wide intervals, and say so.

# %%
runs = analysis.outcomes(STUDY)
methods = analysis.compare_methods(runs, baseline="sgd", target="test_error")
methods[
    ["group", "configurations", "seeds", "mean", "deviation", "difference", "low", "high", "p_flip", "warnings"]
].round(4)

# %% [markdown]
# `p_flip` is the test that takes nothing for granted: with n seeds it cannot fall below 2/2ⁿ, so two seeds can show
# nothing at all, however narrow a t interval of two numbers may look. Five or more are needed for a claim.

# %% [markdown]
# ## A table of one's own
# `analysis.correlate` needs no study: any DataFrame will do that is long, one row a number, with the configuration as
# `hp.*` columns. Here a wide table, such as many have, with a measure that follows the target, one that only knows the
# method, and one of pure noise; the truth is known, and found.

# %%
rng = np.random.default_rng(0)
wide = pd.DataFrame(
    [(f"{method}-{lr}-{seed}", method, lr, seed) for method in "ABCDEF" for lr in range(5) for seed in range(3)],
    columns=["run_id", "hp.method", "hp.lr", "hp.seed"],
)
quality = wide.groupby(["hp.method", "hp.lr"])["hp.seed"].transform(lambda _: rng.normal())
offset = 1.5 * wide["hp.method"].map("ABCDEF".index)
wide["test_error"] = 0.2 + 0.01 * (quality + offset) + 0.002 * rng.normal(size=len(wide))
wide["follows"] = quality + offset + 0.5 * rng.normal(size=len(wide))
wide["knows the method"] = offset - 0.4 * quality + 0.1 * rng.normal(size=len(wide))
wide["noise"] = rng.normal(size=len(wide))

settings = ["run_id", "hp.method", "hp.lr", "hp.seed"]
long = wide.melt(id_vars=settings, var_name="measure", value_name="value")
long = long.assign(step=0, epoch=0, split="train", options="{}", stderr=np.nan, draws=1, converged=True, warnings="")
found = analysis.correlate(long, targets=["test_error"], draws=500, permutations=999, seed=0)
found.table.query("coefficient == 'kendall'")[
    ["measure", "value", "low", "high", "p_adjusted", "within", "reversal"]
].round(3)

# %% [markdown]
# `knows the method` is strong and significant, and wrong inside every method: `reversal` is what catches it. Each
# statistic also stands alone, arrays in and a small result out (`analysis.simpson`, `partial_correlation`,
# `granulated_kendall`, `paired_difference`, ...).

# %%
averaged = wide.groupby(["hp.method", "hp.lr"], as_index=False).mean(numeric_only=True)
x, y = averaged["knows the method"].to_numpy(), averaged["test_error"].to_numpy()
slope = analysis.simpson(x, y, list(averaged["hp.method"]))
print(f"slopes: pooled {slope.pooled:+.4f}, within {slope.within:+.4f}, between {slope.between:+.4f}")

# %% [markdown]
# ## What may be claimed
# The rows below put the strongest measures to the same questions.

# %%
best = strongest(table, target=TARGET, top=10).set_index("measure")
psi_all = further["granulated"].query("target == @TARGET and axis == 'all'").set_index("measure")["psi"]
verdict = pd.DataFrame({
    "tau": best["value"],
    "sure after correction": best["p_adjusted"] < 0.05,
    "the same inside cells": np.where(best["stratified"].isna(), "unknown", ~best["cell_reversal"].astype(bool)),
    "same sign within methods": np.where(best["within"].isna(), "unknown", ~best["reversal"].astype(bool)),
    "same sign of Psi": np.where(psi_all.reindex(best.index).isna(), "unknown",
                                 np.sign(psi_all.reindex(best.index)) == np.sign(best["value"])),
    "K above chance": (information["k"] - information["baseline"]).reindex(best.index) > 0,
})  # fmt: skip
verdict.round(3)

# %% [markdown]
# * **Of this study**: among *these* configurations, of one model family on one data set, a measure with True in every
#   column orders models by the target, across methods and inside them. It is an association; no weights were changed to
#   see whether the target follows.
# * **Mind where a measure looks**: one on `held_out` data, such as the bias of the outputs there, sees data of the same
#   kind as the target's. It may predict well, but it explains nothing that the training set alone could tell.
# * **Not beyond it**: another task needs its own study, with the hypothesis written down first. What was found by
#   looking at many measures here is a hypothesis there, the strongest row above included.
# * **With noisy labels** much of it may be how far the noise was fitted: look at what is left given the training error
#   and loss before speaking of flatness or forgetting.
# * **Differences between measures** need the paired difference; differences between methods need `compare_methods`; no
#   difference found with few configurations is not "no difference": see the power.
# * **Say what was tried**: the number of variants, the correction, the unit, the seeds, and what did not hold.
