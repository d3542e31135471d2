"""Labels that a loss leaves out: neither wrong nor right, in every measure that counts errors."""

from functools import partial

import pytest
import torch
from problems import F64, drawn
from torch import nn
from torch.nn.functional import cross_entropy

from landscape import AscentStep, EmpiricalRisk, ascent_sharpness, gradient_moments, logit_normalised, scan
from landscape.complexity.margins import margins
from landscape.evaluate import evaluate, evaluate_with_gradient
from landscape.labels import class_axis, counted, ignored_label
from landscape.operators.point import Point
from landscape.per_example import example_gradients
from landscape.sharpness.fisher_rao import homogeneous_fisher_rao_norm
from landscape.surfaces import Axes, Grid, random_axes

SOURCE = torch.Generator().manual_seed(0)
X, CLEAN = torch.randn(30, 3, generator=SOURCE, dtype=F64), torch.randint(3, (30,), generator=SOURCE)
LINE = drawn(nn.Linear(3, 3).double())
CONVOLUTION = drawn(nn.Conv2d(2, 3, 1).double())
PIXELS = torch.randn(4, 2, 3, 3, generator=SOURCE, dtype=F64), torch.randint(3, (4, 3, 3), generator=SOURCE)


def marked(label):
    y = CLEAN.clone()
    y[[0, 4, 11, 12, 29]] = label
    return y


@pytest.mark.parametrize(
    ("loss", "label"),
    [
        (cross_entropy, -100),
        (nn.CrossEntropyLoss(ignore_index=255), 255),
        (nn.CrossEntropyLoss(ignore_index=0), 0),
        (partial(cross_entropy, ignore_index=-1), -1),
        (lambda o, y: cross_entropy(o, y, ignore_index=7), 7),
    ],
)
def test_errors_are_those_of_the_labels_that_count(loss, label):
    y = marked(label)
    kept = y != label
    want = float((LINE(X).argmax(1) != y)[kept].double().mean())
    risk = EmpiricalRisk.from_model(LINE, loss, (X, y))
    assert evaluate(risk).error == pytest.approx(want, rel=1e-14)
    assert evaluate_with_gradient(risk)[0].error == pytest.approx(want, rel=1e-14)
    assert ascent_sharpness(risk, AscentStep(0.0)).error == pytest.approx(want, rel=1e-14)
    assert float(evaluate(risk).examples["error"].mean()) == pytest.approx(want, rel=1e-14)
    axes = Axes(risk.theta, random_axes(risk.theta, SOURCE, count=1))
    centre = scan(risk, axes, Grid.around(0.1, 3, axes=1), metrics=["error", "error by class"]).centre
    assert centre["error"][0] == pytest.approx(want, rel=1e-14)
    assert centre["error"][1] == pytest.approx((want * (1 - want) / (int(kept.sum()) - 1)) ** 0.5, rel=1e-12)
    for k in range(3):
        own = kept & (y == k)
        if bool(own.any()):
            rate = float((LINE(X).argmax(1) != k)[own].double().mean())
            assert centre[f"error of class {k}"][0] == pytest.approx(rate, rel=1e-14)


def test_what_a_loss_says_of_its_labels():
    assert [class_axis(f) for f in (cross_entropy, nn.NLLLoss(), partial(cross_entropy), len)] == [1, 1, 1, -1]
    assert [ignored_label(f) for f in (cross_entropy, nn.CrossEntropyLoss(ignore_index=4), len)] == [-100, 4, -100]
    assert counted(torch.tensor([-100, 0, 2, 3]), 3).tolist() == [False, True, True, False]


def test_examples_without_a_loss_are_named():
    risk = EmpiricalRisk.from_model(LINE, cross_entropy, (X, marked(-100)))
    with pytest.raises(ValueError, match="the number of its tokens or targets that are not ignored"):
        gradient_moments(risk)
    with pytest.raises(ValueError, match="5 examples without a loss of their own, because all their targets are"):
        list(example_gradients(Point.of(risk, None, None), risk.batches[0]))
    with pytest.raises(ValueError, match=r"`labels` must be classes from 0 to 2, got -100 to 2"):
        margins(LINE(X), marked(-100))
    for data, model in (((X, marked(-100)), LINE), (PIXELS, CONVOLUTION)):
        with pytest.raises(ValueError, match=r"`risk` must have outputs of shape \(n, classes\)"):
            homogeneous_fisher_rao_norm(EmpiricalRisk.from_model(model, cross_entropy, data), 1)


def test_logits_of_pixels_are_normalised_along_the_classes():
    x, y = PIXELS
    risk = logit_normalised(EmpiricalRisk.from_model(CONVOLUTION, cross_entropy, (x, y)))
    z = CONVOLUTION(x).movedim(1, -1)
    z = z - z.mean(-1, keepdim=True)
    z = z / z.norm(dim=-1, keepdim=True)
    assert risk.value() == pytest.approx(cross_entropy(z.flatten(0, 2), y.flatten()).item(), rel=1e-12)
