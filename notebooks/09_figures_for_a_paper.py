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
# # Figures for a paper
#
# From a finished study to a figure in a column, with your names and colours, a figure of two panels, and the numbers of
# the text. `landscape report --figure forest --medium icml` does the same on the command line.

# %%
# %matplotlib inline
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import analysis
from analysis.reporting.numbers import to_tex
from analysis.style import rc

results = analysis.StudyResults.load(os.environ.get("LANDSCAPE_STUDY", "../runs/digits"))

# %% [markdown]
# A column of ICML is 3.25 inches wide. Names then stand above their lines, and nothing is scaled in LaTeX.

# %%
names = analysis.Labels(
    methods={"sam": {"name": "SAM (ours)", "colour": "#0072b2"}},
    measures={"top_eigenvalue": "sharpness λ₁", "validation_error": "validation error"},
)
analysis.figure(results, "forest", medium="icml", labels=names)

# %% [markdown]
# A serif font goes with papers set in Times. The PDF keeps text as text.

# %%
with plt.rc_context(rc("icml")):
    figure = analysis.figure(results, "training_curves", medium="icml", font="serif", labels=names)
    figure.savefig(Path(tempfile.mkdtemp()) / "training.pdf")
figure

# %% [markdown]
# Figures of one panel go onto axes of your own; those of several onto a part of a figure.

# %%
with plt.rc_context(rc("neurips")):
    both = plt.figure(figsize=(5.5, 5.5), layout="constrained")
    above, below = both.subfigures(2, 1)
    analysis.figure(results, "training_curves", medium="neurips", labels=names, on=above)
    analysis.figure(results, "forgetting_bars", medium="neurips", labels=names, on=below)

# %% [markdown]
# Numbers for the text are LaTeX commands, so that it never disagrees with the study.

# %%
print("".join(to_tex(results).splitlines(keepends=True)[:8]))
