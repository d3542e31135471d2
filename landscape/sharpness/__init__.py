"""Sharpness: how far the loss rises when the weights are perturbed, in the worst way found or on average."""

from landscape.sharpness.ascent import ascent_sharpness
from landscape.sharpness.average import average_sharpness
from landscape.sharpness.blocks import first_order_sharpness
from landscape.sharpness.fisher_rao import fisher_rao_norm, homogeneous_fisher_rao_norm
from landscape.sharpness.gradients import GradientMoments, gradient_moments
from landscape.sharpness.keskar import keskar_sharpness
from landscape.sharpness.logits import logit_normalised, normalised_logits
from landscape.sharpness.noise_radius import Radius, noise_radius, worst_case_radius
from landscape.sharpness.relative_flatness import relative_flatness
from landscape.sharpness.rise import Sharpness
from landscape.sharpness.surrogate_gap import SurrogateGap, surrogate_gap
from landscape.sharpness.worst_case import worst_case_sharpness

__all__ = [
    "GradientMoments",
    "Radius",
    "Sharpness",
    "SurrogateGap",
    "ascent_sharpness",
    "average_sharpness",
    "first_order_sharpness",
    "fisher_rao_norm",
    "gradient_moments",
    "homogeneous_fisher_rao_norm",
    "keskar_sharpness",
    "logit_normalised",
    "noise_radius",
    "normalised_logits",
    "relative_flatness",
    "surrogate_gap",
    "worst_case_radius",
    "worst_case_sharpness",
]
