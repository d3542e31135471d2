"""The evaluator: one pass, whose means and standard errors are those of the examples."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from problems import small
from torch import nn

from landscape import EmpiricalRisk, evaluate
from landscape.evaluate import evaluate_with_gradient
from landscape.scores import mean_and_stderr


def network(sizes=(5, 4), loss=F.cross_entropy, **options):
    return small(nn.Linear(3, 4), (9, 3), 4, sizes, loss, **options)


def margin(outputs, targets):
    return outputs.gather(1, targets[:, None])[:, 0] - outputs.mean(-1)


def scores(outputs, targets):
    of_some = (margin(outputs, targets), (targets > 0).double() * (1 + targets))
    return {"wrong": outputs.argmax(-1) != targets, "margin": margin(outputs, targets), "of some": of_some}


@pytest.mark.parametrize("sizes", [(9,), (5, 4), (1, 6, 2)], ids=str)
def test_means_and_errors_are_those_of_all_examples_together(sizes):
    risk = network(sizes)
    out, y = risk.outputs(), risk.targets()
    found = evaluate(risk, scores=scores)
    assert found.loss == pytest.approx(float(F.cross_entropy(out, y)), rel=1e-12)
    for name, given in scores(out, y).items():
        values, weights = given if isinstance(given, tuple) else (given, None)
        value, stderr = (
            float(t) for t in mean_and_stderr(values.double()[:, None], None if weights is None else weights[:, None])
        )
        assert (found.scores[name].value, found.scores[name].stderr) == pytest.approx((value, stderr), rel=1e-10)
        torch.testing.assert_close(found.examples[name], values if weights is None else values[weights > 0])
    assert found.scores["of some"].draws == int((y > 0).sum())


def test_the_error_is_that_of_the_labels_and_nothing_where_there_are_none():
    risk = network()
    assert evaluate(risk).error == pytest.approx(float((risk.outputs().argmax(1) != risk.targets()).double().mean()))
    free = EmpiricalRisk(
        lambda t, x: x * t["w"], F.mse_loss, [(torch.ones(3, 1), torch.zeros(3, 1))], {"w": torch.ones(1)}
    )
    assert not evaluate(free).scores
    assert math.isnan(evaluate(free).error)


def test_a_score_that_is_not_a_number_is_told():
    risk = network()
    broken = replace(risk, theta={name: t * math.inf for name, t in risk.theta.items()})
    assert math.isnan(evaluate(broken).error)


def test_the_pass_with_a_gradient_says_the_same():
    risk = network(weight=lambda _, y: float(len(y)))
    one, (two, gradient) = evaluate(risk), evaluate_with_gradient(risk)
    assert (one.loss, one.error) == (two.loss, two.error)
    for name, t in risk.gradient().items():
        assert torch.equal(gradient[name], t)


def test_model_and_loss_are_asked_once_a_batch():
    risk = network()
    calls = []

    def predict(theta, x):
        calls.append(len(x))
        return risk.predict(theta, x)

    counted = replace(risk, predict=predict)
    evaluate(counted)  # what is checked once
    calls.clear()
    evaluate(counted, scores=scores)
    assert calls == [5, 4]


def test_the_error_of_a_mean_far_from_zero_does_not_cancel():
    for weights in (None, torch.arange(1.0, 10.0, dtype=torch.float64)):
        steps = torch.arange(9, dtype=torch.float64)

        def far(out, y, weights=weights, steps=steps):
            values = 1e9 + steps[: len(y)]
            return {"far": values if weights is None else (values, weights[: len(y)])}

        found = evaluate(network((9,)), scores=far).scores["far"]
        _, near = mean_and_stderr(steps[:, None], None if weights is None else weights[:, None])
        assert found.stderr == pytest.approx(float(near), rel=1e-6)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda out, _: {"m": out.mean()}, r"one value an example, of shape \(n,\), got \(\) for 'm'"),
        (lambda *_: {"m": 0.5}, "one value an example, .* got a float for 'm'"),
        (lambda out, _: {"m": torch.complex(out[:, 0], out[:, 1])}, "got .* of complex numbers for 'm'"),
        (lambda out, _: out[:, 0], "`scores` must give scores by name, .*, got a Tensor"),
        (lambda out, y: {"m": (out[:, 0], -y.double())}, "`scores` must give finite weights >= 0, got -"),
        (lambda out, y: {"m": (out[:, 0], y * math.nan)}, "`scores` must give finite weights >= 0, got nan for 'm'"),
        (lambda out, y: {"m": (out[:, 0], y[:1])}, "`scores` must give one weight an example"),
        (lambda out, y: {"m": out[:, 0]} if len(y) > 4 else {}, r"same names for all batches, got \[\] after \['m'\]"),
    ],
)  # fmt: skip
def test_what_is_no_score_is_refused(score, message):
    with pytest.raises(ValueError, match=message):
        evaluate(network(), scores=score)


def test_trying_a_loss_on_other_shapes_is_not_heard():
    def loss(outputs, targets):  # torch warns where it is given shapes that differ
        return F.mse_loss(outputs.reshape(len(targets)), targets)

    data = torch.ones(4, 2, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert EmpiricalRisk.from_model(nn.Linear(2, 1).double(), loss, data).value() > 0
    assert not heard
