"""Symmetric operators: the protocol, and the curvature of a risk."""

from landscape.operators.protocol import SymmetricOperator, dense
from landscape.operators.risk_operators import EmpiricalFisher, GaussNewton, Hessian, Rescaled, chunk_gradients

__all__ = ["EmpiricalFisher", "GaussNewton", "Hessian", "Rescaled", "SymmetricOperator", "chunk_gradients", "dense"]
