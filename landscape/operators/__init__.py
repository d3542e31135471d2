"""Symmetric operators: the protocol, the curvature of a risk, and what can be made of them."""

from landscape.operators.algebra import Rescaled, Shifted, Sum, to_scipy
from landscape.operators.fisher import EmpiricalFisher, Fisher
from landscape.operators.gauss_newton import GaussNewton
from landscape.operators.hessian import Hessian
from landscape.operators.protocol import SymmetricOperator, dense

__all__ = [
    "EmpiricalFisher",
    "Fisher",
    "GaussNewton",
    "Hessian",
    "Rescaled",
    "Shifted",
    "Sum",
    "SymmetricOperator",
    "dense",
    "to_scipy",
]
