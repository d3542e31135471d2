"""Loss surfaces: directions in weight space, grids over them, and scans of a model along them."""

from landscape.surfaces.axes import Axes, Axis
from landscape.surfaces.directions import (
    difference_axis,
    eigen_axes,
    given_axis,
    gradient_axis,
    hessian_axes,
    perturbation_axis,
    random_axes,
)
from landscape.surfaces.grid import Grid
from landscape.surfaces.normalisation import Filters, Normalised, filters_of, normalised
from landscape.surfaces.refinement import Refinement, refined
from landscape.surfaces.scan import ScanInterrupted, scan, scan_blocks
from landscape.surfaces.scanner import Scanner
from landscape.surfaces.second_order import CurvatureShown, SecondOrder, second_order
from landscape.surfaces.surface import Surface
from landscape.surfaces.trajectory import (
    LoadedPoints,
    ProjectedPath,
    Trajectory,
    project_path,
    random_walk_shares,
    trajectory_axes,
)

__all__ = [
    "Axes",
    "Axis",
    "CurvatureShown",
    "Filters",
    "Grid",
    "LoadedPoints",
    "Normalised",
    "ProjectedPath",
    "Refinement",
    "ScanInterrupted",
    "Scanner",
    "SecondOrder",
    "Surface",
    "Trajectory",
    "difference_axis",
    "eigen_axes",
    "filters_of",
    "given_axis",
    "gradient_axis",
    "hessian_axes",
    "normalised",
    "perturbation_axis",
    "project_path",
    "random_axes",
    "random_walk_shares",
    "refined",
    "scan",
    "scan_blocks",
    "second_order",
    "trajectory_axes",
]
