"""The SAM family by name: each method is a composition of parts, and its keyword arguments are its knobs."""

# isort: off - in the order in which the methods are listed
from trainers.sharpness_aware.methods import classic  # noqa: F401 - each registers its methods
from trainers.sharpness_aware.methods import layers  # noqa: F401
from trainers.sharpness_aware.methods import noise  # noqa: F401
from trainers.sharpness_aware.methods import penalised  # noqa: F401
from trainers.sharpness_aware.methods import bayes  # noqa: F401
from trainers.sharpness_aware.methods import cheaper  # noqa: F401
from trainers.sharpness_aware.methods.registry import METHODS, Method, Setting

__all__ = ["METHODS", "Method", "Setting"]
