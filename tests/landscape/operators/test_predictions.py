"""Fisher matrices of dense predictions, and of losses that weigh predictions or leave some out."""

from functools import partial

import pytest
import torch
from problems import F64, drawn
from torch import nn
from torch.nn.functional import cross_entropy, nll_loss
from torch.testing import assert_close

from landscape import EmpiricalFisher, EmpiricalRisk, Fisher, GaussNewton, flatten

SOURCE = torch.Generator().manual_seed(0)
X = torch.randn(4, 2, 3, 3, generator=SOURCE, dtype=F64)
Y = torch.randint(3, (4, 3, 3), generator=SOURCE)
MODEL = drawn(nn.Conv2d(2, 3, 1).double())
W = torch.tensor([1.0, 5.0, 0.2], dtype=F64)
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def without(label):
    y = Y.clone()
    y[:, :1] = label
    return y


SOFT = torch.rand(4, 3, 3, 3, generator=SOURCE, dtype=F64).softmax(1)
LOSSES = {
    "plain": (cross_entropy, Y),
    "ignored": (cross_entropy, without(-100)),
    "another label ignored": (nn.CrossEntropyLoss(ignore_index=255), without(255)),
    "partial": (partial(cross_entropy, ignore_index=255), without(255)),
    "a function of the user's": (lambda o, y: cross_entropy(o, y, ignore_index=255), without(255)),
    "class weights": (nn.CrossEntropyLoss(weight=W), Y),
    "class weights in a function": (lambda o, y: cross_entropy(o, y, weight=W, ignore_index=255), without(255)),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.2), Y),
    "smoothed and weighted": (nn.CrossEntropyLoss(weight=W, label_smoothing=0.2), Y),
    "soft labels": (cross_entropy, SOFT),
    "soft labels in a function": (lambda o, y: cross_entropy(o, y), SOFT),
    "a sum": (nn.CrossEntropyLoss(reduction="sum"), Y),
}


@pytest.mark.parametrize("what", LOSSES)
def test_of_dense_predictions_it_is_the_gauss_newton_matrix(what):
    loss, y = LOSSES[what]
    risk = EmpiricalRisk.from_model(MODEL, loss, (X, y))
    F = Fisher(risk, likelihood="categorical").dense()
    assert_close(F, GaussNewton(risk).dense(), **EXACT)
    if what in ("another label ignored", "class weights"):
        assert_close(Fisher(risk, likelihood="categorical", path="forward").dense(), F, **EXACT)
        sampled = Fisher(risk, likelihood="categorical", samples=500, generator=SOURCE).dense()
        assert float((sampled - F).norm() / F.norm()) < 0.1


def test_class_axis_where_the_labels_fit_two():
    """As many tokens as classes: along the classes the slopes of a cross-entropy sum to zero."""
    last, first = drawn(nn.Linear(3, 4).double()), drawn(nn.Conv1d(2, 4, 1).double())
    labels = torch.randint(4, (5, 4), generator=SOURCE)
    for model, x, loss in (
        (
            last,
            torch.randn(5, 4, 3, generator=SOURCE, dtype=F64),
            lambda o, y: cross_entropy(o.flatten(0, 1), y.flatten()),
        ),
        (first, torch.randn(5, 2, 4, generator=SOURCE, dtype=F64), lambda o, y: cross_entropy(o, y)),
    ):
        risk = EmpiricalRisk.from_model(model, loss, (x, labels))
        assert_close(Fisher(risk, likelihood="categorical").dense(), GaussNewton(risk).dense(), **EXACT)


def test_of_log_probabilities_predictions_count_alike():
    """A loss without curvature in its outputs: (1/n) Σ Jᵀ (diag(p) - p pᵀ) J, as of the logits themselves."""
    risk = EmpiricalRisk.from_model(nn.Sequential(MODEL, nn.LogSoftmax(1)), nll_loss, (X, Y))
    want = Fisher(EmpiricalRisk.from_model(MODEL, cross_entropy, (X, Y))).dense()
    assert_close(Fisher(risk, likelihood="categorical").dense(), want, **EXACT)


def test_one_example_without_an_axis_for_it():
    line = drawn(nn.Linear(3, 3).double())
    x, y = torch.randn(3, generator=SOURCE, dtype=F64), torch.tensor(1)
    alone = EmpiricalRisk.from_model(line, cross_entropy, [(x, y)])
    batch = EmpiricalRisk.from_model(line, cross_entropy, (x[None], y[None]))
    assert_close(Fisher(alone).dense(), Fisher(batch).dense(), **EXACT)


def test_empirical_matrix_of_pixels_is_made_of_each_image_alone():
    loss = nn.CrossEntropyLoss(ignore_index=255)
    y = without(255)
    y[0, 1] = 255  # one image counts fewer pixels
    weight = lambda _, y: float((y != 255).sum())  # noqa: E731
    risk = EmpiricalRisk.from_model(MODEL, loss, (X, y), weight=weight)
    each = [EmpiricalRisk.from_model(MODEL, loss, (X[i : i + 1], y[i : i + 1])).gradient() for i in range(4)]
    G = torch.stack([flatten(g) for g in each])
    assert_close(EmpiricalFisher(risk).dense(), G.T @ G / 4, **EXACT)
