"""Norms of the gradient and of the way that training went; that of the weights is a baseline."""

import math

import torch

from analysis.measures.catalogue.curvature import context
from analysis.measures.measure import Measure, Rows
from analysis.measures.subject import Subject
from analysis.table import Row
from landscape import flatten, norm


def norms(subject: Subject) -> Rows:
    """‖∇L‖ on the training set and ‖w - w_init‖, over the trainable parameters jointly."""
    theta = subject.risk.theta
    rows = [Row("gradient_norm", float(norm(subject.gradient)), options=context(subject))]
    if subject.initial is None:
        return [*rows, Row("distance_from_init", math.nan, math.nan, warnings="the initial weights are not known")]
    start = {name: subject.initial[name] for name in theta}
    moved = float(torch.linalg.vector_norm(flatten(theta, subject.risk.names) - flatten(start, subject.risk.names)))
    return [*rows, Row("distance_from_init", moved)]


MEASURES = {
    "norms": Measure(
        norms,
        ("gradient_norm", "distance_from_init"),
        "norms of the gradient and of the way from the initial weights",
        "norm",
        "more complex",
        +1,
        "T3 T5 (gradient)",
        "1",
        gradients=1,
        sampled=True,
        of_no_example=("distance_from_init",),
        version=2,
    ),
}
