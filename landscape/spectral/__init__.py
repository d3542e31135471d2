"""Eigenpairs, trace, diagonal, norm and spectral density of any symmetric operator, from products alone."""

from landscape.spectral.density import SpectralDensity, spectral_density
from landscape.spectral.diagonals import Diagonal, diagonal, frobenius_squared
from landscape.spectral.eigenpairs import Eigenpairs, top_eigenpairs
from landscape.spectral.sums import effective_dimension, log_determinant
from landscape.spectral.traces import trace

__all__ = [
    "Diagonal",
    "Eigenpairs",
    "SpectralDensity",
    "diagonal",
    "effective_dimension",
    "frobenius_squared",
    "log_determinant",
    "spectral_density",
    "top_eigenpairs",
    "trace",
]
