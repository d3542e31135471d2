"""Mathematics of the loss surface at a point: tensors in, tensors out."""

from landscape.estimate import Estimate
from landscape.objectives import obf_loss
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

__all__ = [
    "AbsWeight",
    "AscentStep",
    "EmpiricalRisk",
    "Estimate",
    "FilterNorm",
    "Metric",
    "Params",
    "Perturbation",
    "TensorNorm",
    "displaced",
    "flatten",
    "inner",
    "norm",
    "obf_loss",
    "random_direction",
    "unflatten",
]
