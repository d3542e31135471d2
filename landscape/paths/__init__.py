"""Paths between models: lines and barriers, alignment by permutation, curves of low loss, SAM's own ascent."""

from landscape.paths.alignment import AlignedInterpolation, Alignment, align, interpolate_aligned
from landscape.paths.ascent_path import AscentPath, ascent_path
from landscape.paths.barrier import Barrier, barrier
from landscape.paths.curves import Bezier, Curve, Polygon, make_curve
from landscape.paths.evaluation import StateEvaluator
from landscape.paths.groups import PermutationGroups
from landscape.paths.interpolation import LinearPath, Plane, interpolate, line_coordinates, plane_through
from landscape.paths.layout import Layout
from landscape.paths.matching import Matching, weight_matching
from landscape.paths.profile import Path, PathProfile, profile
from landscape.paths.states import ModelState
from landscape.paths.summary import CurveSummary, curve_profile, summarise

__all__ = [
    "AlignedInterpolation",
    "Alignment",
    "AscentPath",
    "Barrier",
    "Bezier",
    "Curve",
    "CurveSummary",
    "Layout",
    "LinearPath",
    "Matching",
    "ModelState",
    "Path",
    "PathProfile",
    "PermutationGroups",
    "Plane",
    "Polygon",
    "StateEvaluator",
    "align",
    "ascent_path",
    "barrier",
    "curve_profile",
    "interpolate",
    "interpolate_aligned",
    "line_coordinates",
    "make_curve",
    "plane_through",
    "profile",
    "summarise",
    "weight_matching",
]
