"""Complexity measures of a network: norms of its layers, margins, paths, and the bounds made of them."""

from landscape.complexity.bounds import (
    Complexity,
    margin_measures,
    norm_measures,
    pacbayes_measures,
    path_measures,
    sharpness_measures,
    vc_count,
)
from landscape.complexity.layers import Layer, Network, fold
from landscape.complexity.margins import low_margin, margins
from landscape.complexity.norms import LayerNorms, layer_norms
from landscape.complexity.path import log_path_norm
from landscape.complexity.spectral import (
    SpectralNorm,
    circular_singular_values,
    circular_spectral_norm,
    padded_spectral_norm,
    spectral_norm,
)

__all__ = [
    "Complexity",
    "Layer",
    "LayerNorms",
    "Network",
    "SpectralNorm",
    "circular_singular_values",
    "circular_spectral_norm",
    "fold",
    "layer_norms",
    "log_path_norm",
    "low_margin",
    "margin_measures",
    "margins",
    "norm_measures",
    "pacbayes_measures",
    "padded_spectral_norm",
    "path_measures",
    "sharpness_measures",
    "spectral_norm",
    "vc_count",
]
