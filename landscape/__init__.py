"""Mathematics of the loss surface at a point: tensors in, tensors out."""

from typing import Any

from landscape.complexity import fold, layer_norms, log_path_norm
from landscape.estimate import Estimate
from landscape.evaluate import Evaluation, evaluate
from landscape.naming import nearest
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
from landscape.paths import (
    Barrier,
    Bezier,
    Polygon,
    align,
    ascent_path,
    barrier,
    interpolate,
    plane_through,
)
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
from landscape.sharpness import (
    GradientMoments,
    Radius,
    Sharpness,
    SurrogateGap,
    ascent_sharpness,
    average_sharpness,
    first_order_sharpness,
    fisher_rao_norm,
    gradient_moments,
    keskar_sharpness,
    logit_normalised,
    noise_radius,
    relative_flatness,
    surrogate_gap,
    worst_case_radius,
    worst_case_sharpness,
)
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
from landscape.summary import Summary, summary
from landscape.surfaces import (
    Axes,
    Axis,
    Grid,
    SecondOrder,
    Surface,
    Trajectory,
    difference_axis,
    given_axis,
    gradient_axis,
    hessian_axes,
    perturbation_axis,
    random_axes,
    scan,
    second_order,
    trajectory_axes,
)

__all__ = [
    "AbsWeight",
    "AscentStep",
    "Axes",
    "Axis",
    "Barrier",
    "Bezier",
    "Diagonal",
    "Eigenpairs",
    "EmpiricalFisher",
    "EmpiricalRisk",
    "Estimate",
    "Evaluation",
    "FilterNorm",
    "Fisher",
    "GaussNewton",
    "GradientMoments",
    "Grid",
    "Hessian",
    "Metric",
    "Params",
    "Perturbation",
    "Polygon",
    "Radius",
    "Rescaled",
    "SecondOrder",
    "Sharpness",
    "Shifted",
    "SpectralDensity",
    "Sum",
    "Summary",
    "Surface",
    "SurrogateGap",
    "SymmetricOperator",
    "TensorNorm",
    "Trajectory",
    "align",
    "ascent_path",
    "ascent_sharpness",
    "average_sharpness",
    "barrier",
    "dense",
    "diagonal",
    "difference_axis",
    "displaced",
    "effective_dimension",
    "evaluate",
    "first_order_sharpness",
    "fisher_rao_norm",
    "flatten",
    "fold",
    "frobenius_squared",
    "given_axis",
    "gradient_axis",
    "gradient_moments",
    "hessian_axes",
    "inner",
    "interpolate",
    "keskar_sharpness",
    "layer_norms",
    "log_determinant",
    "log_path_norm",
    "logit_normalised",
    "noise_radius",
    "norm",
    "obf_loss",
    "perturbation_axis",
    "plane_through",
    "random_axes",
    "random_direction",
    "relative_flatness",
    "scan",
    "second_order",
    "spectral_density",
    "summary",
    "surrogate_gap",
    "to_scipy",
    "top_eigenpairs",
    "trace",
    "trajectory_axes",
    "unflatten",
    "worst_case_radius",
    "worst_case_sharpness",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata  # slow, and rarely asked for

        try:
            return metadata.version("landscape-lab")
        except metadata.PackageNotFoundError:  # from a source tree
            return "unknown"
    raise AttributeError(f"module 'landscape' has no attribute {name!r}.{nearest(name, __all__)}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
