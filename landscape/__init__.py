"""Mathematics of the loss surface at a point: tensors in, tensors out."""

from landscape.estimate import Estimate
from landscape.objectives import obf_loss
from landscape.operators import (
    EmpiricalFisher,
    Fisher,
    GaussNewton,
    Hessian,
    Rescaled,
    Shifted,
    Sum,
    SymmetricOperator,
    dense,
    to_scipy,
)
from landscape.params import Params, flatten, inner, norm, unflatten
from landscape.perturbation import (
    AbsWeight,
    AscentStep,
    FilterNorm,
    Metric,
    Perturbation,
    TensorNorm,
    displaced,
    random_direction,
)
from landscape.risk import EmpiricalRisk
from landscape.sharpness import Sharpness, ascent_sharpness, average_sharpness
from landscape.spectral import (
    Diagonal,
    Eigenpairs,
    SpectralDensity,
    diagonal,
    effective_dimension,
    frobenius_squared,
    log_determinant,
    spectral_density,
    top_eigenpairs,
    trace,
)

__all__ = [
    "AbsWeight",
    "AscentStep",
    "Diagonal",
    "Eigenpairs",
    "EmpiricalFisher",
    "EmpiricalRisk",
    "Estimate",
    "FilterNorm",
    "Fisher",
    "GaussNewton",
    "Hessian",
    "Metric",
    "Params",
    "Perturbation",
    "Rescaled",
    "Sharpness",
    "Shifted",
    "SpectralDensity",
    "Sum",
    "SymmetricOperator",
    "TensorNorm",
    "ascent_sharpness",
    "average_sharpness",
    "dense",
    "diagonal",
    "displaced",
    "effective_dimension",
    "flatten",
    "frobenius_squared",
    "inner",
    "log_determinant",
    "norm",
    "obf_loss",
    "random_direction",
    "spectral_density",
    "to_scipy",
    "top_eigenpairs",
    "trace",
    "unflatten",
]
