"""Figures of loss surfaces and of paths between models, from what was scanned; each draws on what it is given."""

from analysis.figures.surfaces.comparison import comparison
from analysis.figures.surfaces.contour import colour_bar, contour, plane
from analysis.figures.surfaces.line import Slice, lines
from analysis.figures.surfaces.paths import Along, ascent_path, barrier_plot, curve_against_line, explained_variance
from analysis.figures.surfaces.relief import relief
from analysis.figures.surfaces.scales import Scale, shared_scale
from analysis.figures.surfaces.sections import section

__all__ = [
    "Along",
    "Scale",
    "Slice",
    "ascent_path",
    "barrier_plot",
    "colour_bar",
    "comparison",
    "contour",
    "curve_against_line",
    "explained_variance",
    "lines",
    "plane",
    "relief",
    "section",
    "shared_scale",
]
