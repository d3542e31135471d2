"""Rows of the registry under T1 to T5: unchanged where the entry claims it, and changed where it does not."""

import math

import pytest
import torch
from sharpness_problems import examples, perceptron, transformed

from analysis.measures.registry import MEASURES
from analysis.measures.subject import Subject
from trainers.data.splits import DataBundle, Split

KINDS = ("T1", "T1n", "T3", "T4", "T5")
ALL = 10**6  # every product there is: traces are exact

# Options of each entry, and what leaves each of its rows alone (T1n: a factor for every neuron).
CLAIMS = {
    "hessian_eigenvalues": ({"tol": 1e-6}, {"top_eigenvalue": "T3 T5", "bottom_eigenvalue": "T3 T5"}),
    "hessian_trace": ({"draws": ALL}, {"hessian_trace": "T3 T5", "layerwise_trace": "T1 T5"}),
    "adaptive_curvature": (
        {"draws": ALL, "tol": 1e-6},
        {"adaptive_eigenvalue": "T1 T1n T5", "adaptive_trace": "T1 T1n T5"},
    ),
    "gauss_newton": ({"draws": ALL, "tol": 1e-6}, {"gauss_newton_eigenvalue": "T3 T5", "gauss_newton_trace": "T3 T5"}),
    "empirical_fisher": ({}, {"empirical_fisher_trace": "T3 T5"}),
    "norms": (
        {},
        {"gradient_norm": "T3 T5", "distance_from_init": "T3 T5"},
    ),
    "gradient_covariance": ({}, {"gradient_covariance_trace": "T3 T5"}),
    "fisher_rao": ({}, {"fisher_rao_norm": "T1 T1n T3 T5"}),
    "gradient_signal": ({}, {"gradient_signal_to_noise": "T1 T1n T3 T5"}),
    "train_outputs": (
        {},
        {"inverse_margin": "T1 T1n T3 T5", "cross_entropy": "T1 T1n T3 T5", "output_entropy": "T1 T1n T3 T5"},
    ),
    "weight_norms": (
        {},
        {"params": "T1 T1n T3 T4 T5", "log_prod_of_spec": "T1 T5", "log_prod_of_fro": "T1 T5",
         "fro_over_spec": "T1 T4 T5", "param_norm": "T5", "fro_dist": "T3 T5", "l2": "T5", "l2_dist": "T3 T5"},
    ),
    "path_norm": ({}, {"path_norm": "T1 T1n T5"}),
    "output_bias": (
        {},
        {"b_marg": "T1 T1n T3 T5", "b_prior_count": "T1 T1n T3 T4 T5", "overconfidence": "T1 T1n T3 T5"},
    ),
    "baselines": (
        {},
        {"parameter_norm": "T5", "mean_confidence": "T1 T1n T3 T5", "mean_entropy": "T1 T1n T3 T5"},
    ),
    "targets": (
        {},
        {"test_error": "T1 T1n T3 T4 T5", "gap_error": "T1 T1n T3 T4 T5", "test_loss": "T1 T1n T3 T5",
         "ece": "T1 T1n T3 T5", "brier": "T1 T1n T3 T5", "test_loss_scaled": "T1 T1n T3 T4 T5"},
    ),
}  # fmt: skip


def subject(which=""):
    model, initial = perceptron(), perceptron(seed=11)
    if which:
        model, initial = transformed(model, which), transformed(initial, which) if which in ("T3", "T5") else initial
    x, y = examples(150)
    with torch.no_grad():
        y[4:60] = perceptron()(x)[4:60].argmax(1)  # few mistakes, so that there is a margin

    def split(a, b):
        return Split(x[a:b], y[a:b], y[a:b], torch.arange(a, b))

    data = DataBundle("made", split(0, 60), split(60, 105), split(105, 150), {}, 3, (4,))
    begun = {name: t.detach() for name, t in initial.named_parameters()}
    return Subject(model.eval(), data, "x", initial=begun)


@pytest.fixture(scope="module")
def values():
    """Rows of all entries by transformation, entry and name."""
    found = {}
    for which in ("", *KINDS):
        taken = subject(which)
        for key, (options, rows) in CLAIMS.items():
            for row in MEASURES[key].function(taken, **options):
                if row.measure in rows:
                    found.setdefault((which, key, row.measure), row.value)
    return found


ROWS = [(key, name) for key, (_, rows) in CLAIMS.items() for name in rows]


@pytest.mark.parametrize(("key", "name"), ROWS)
def test_rows_are_unchanged_where_claimed_and_only_there(key, name, values):
    claims = CLAIMS[key][1][name].split()
    before = values["", key, name]
    assert math.isfinite(before)
    for which in KINDS:
        after = values[which, key, name]
        if which in claims:
            assert after == pytest.approx(before, rel=1e-5, abs=1e-9), which
        else:
            assert abs(after - before) > 1e-3 * abs(before), which
