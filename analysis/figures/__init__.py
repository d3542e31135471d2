"""Figures from tables: each function draws a table on the axes it is given and computes no statistics of its own.

`FIGURES` names those of the report, with the caption that says how each number was made.
"""

from analysis.figures.calibration import calibration
from analysis.figures.comparisons import comparison_plot
from analysis.figures.correlations import matrix_rows, strongest
from analysis.figures.costs import measure_costs
from analysis.figures.curvature import edge_of_stability, eigenvalue_curves, layer_traces, spectrum
from analysis.figures.curves import accuracy_by_radius, training_curves
from analysis.figures.events import forgetting_histogram
from analysis.figures.forest import forest
from analysis.figures.forgetting import forgetting_bars, forgetting_by_size, forgetting_curves
from analysis.figures.matrix import correlation_matrix
from analysis.figures.methods import cost_against_error, paths_on_surface
from analysis.figures.plates import FIGURES, NothingToDraw, Plate
from analysis.figures.radii import sharpness_by_radius
from analysis.figures.reliability import reliability_diagram
from analysis.figures.scatter import scatter
from analysis.figures.trajectories import along_training

__all__ = [
    "FIGURES",
    "NothingToDraw",
    "Plate",
    "accuracy_by_radius",
    "along_training",
    "calibration",
    "comparison_plot",
    "correlation_matrix",
    "cost_against_error",
    "edge_of_stability",
    "eigenvalue_curves",
    "forest",
    "forgetting_bars",
    "forgetting_by_size",
    "forgetting_curves",
    "forgetting_histogram",
    "layer_traces",
    "matrix_rows",
    "measure_costs",
    "paths_on_surface",
    "reliability_diagram",
    "scatter",
    "sharpness_by_radius",
    "spectrum",
    "strongest",
    "training_curves",
]
