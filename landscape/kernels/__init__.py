"""Kernels with second derivatives, a block that makes models use them, and what to do without."""

from landscape.kernels.attention import attention
from landscape.kernels.context import math_attention, second_derivatives
from landscape.kernels.obstacles import lacks_second_derivative, severed_by

__all__ = ["attention", "lacks_second_derivative", "math_attention", "second_derivatives", "severed_by"]
