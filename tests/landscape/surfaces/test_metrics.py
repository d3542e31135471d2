"""What is evaluated at a point: losses by example, errors, classes, and their standard errors."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from problems import F64, case, small
from torch import nn
from torch.testing import assert_close

from landscape import EmpiricalRisk
from landscape.labels import wrong
from landscape.scores import mean_and_stderr
from landscape.surfaces.axes import Axes, Axis
from landscape.surfaces.scan import Scanner


def at_origin(risk, metrics=None, **options):
    axes = Axes(risk.theta, (Axis({k: torch.ones_like(t) for k, t in risk.theta.items()}, "ones"),))
    return Scanner(risk, axes, metrics=metrics, **options).centre()


def network(loss=F.cross_entropy, classes=4, sizes=(5, 4), **options):
    return small(nn.Linear(3, classes), (9, 3), classes, sizes, loss, **options)


def logits(risk):
    return risk.outputs(), risk.targets()


def moments(x):
    return float(x.mean()), float(x.std()) / math.sqrt(len(x))


@pytest.mark.parametrize(
    ("loss", "each"),
    [
        (F.cross_entropy, lambda o, y: -o.log_softmax(-1).gather(1, y[:, None])[:, 0]),
        (nn.CrossEntropyLoss(), lambda o, y: -o.log_softmax(-1).gather(1, y[:, None])[:, 0]),
        (
            nn.CrossEntropyLoss(label_smoothing=0.3),
            lambda o, y: -0.7 * o.log_softmax(-1).gather(1, y[:, None])[:, 0] - 0.3 * o.log_softmax(-1).mean(-1),
        ),
        (
            nn.MultiMarginLoss(margin=0.5),  # vmap has no rule for it
            lambda o, y: ((o - o.gather(1, y[:, None]) + 0.5).clamp_min(0).sum(-1) - 0.5) / 4,
        ),
        (lambda o, y: (o.sum(-1) - y).abs().mean(), lambda o, y: (o.sum(-1) - y).abs()),
    ],
    ids=["function", "module", "smoothing", "margin", "own"],
)
def test_the_loss_has_the_mean_and_error_of_its_examples(loss, each):
    risk = network(loss)
    value, stderr = moments(each(*logits(risk)))
    found = at_origin(risk, ["loss"])["loss"]
    assert found == pytest.approx((value, stderr), rel=1e-10)


@pytest.mark.parametrize("n", [9, 40])
def test_a_loss_with_class_weights_is_no_mean_over_examples_and_has_no_error(n):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 3, generator=g, dtype=F64), torch.zeros(n, dtype=torch.long)
    y[8:] = 3  # the first examples alone would not show it
    risk = network(nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3, 4], dtype=F64))).on((x, y))
    value, stderr = at_origin(risk, ["loss"])["loss"]
    assert value == pytest.approx(risk.value(), rel=1e-12)
    assert math.isnan(stderr)


def test_a_loss_that_compares_examples_keeps_its_batches():
    def spread(out, _):
        return out.var()

    risk = replace(network(spread), weight=lambda out, _: float(len(out)))
    axes = Axes(risk.theta, (Axis({k: torch.ones_like(t) for k, t in risk.theta.items()}, "ones"),))
    scanner = Scanner(risk, axes, metrics=["loss"])
    assert scanner.context["parts"] == {"": [5, 4]}
    assert "no standard error" in scanner.notes[0]
    assert scanner.centre()["loss"][0] == pytest.approx(risk.value(), rel=1e-12)


def test_error_and_error_by_class():
    risk = network()
    out, y = logits(risk)
    miss = (out.argmax(-1) != y).double()
    found = at_origin(risk, ["error", "error by class"])
    assert list(found) == ["error", *(f"error of class {c}" for c in range(4))]
    assert found["error"] == pytest.approx(moments(miss), rel=1e-12)
    counts = [int((y == c).sum()) for c in range(4)]
    assert sorted(counts)[0] < 2 <= sorted(counts)[-1]
    for c, n in enumerate(counts):
        value, stderr = found[f"error of class {c}"]
        own = miss[y == c]
        assert value == pytest.approx(float(own.mean()), nan_ok=True)
        assert stderr == pytest.approx(float(own.std()) / math.sqrt(n) if n > 1 else math.nan, nan_ok=True)


def test_error_of_outputs_that_are_not_numbers_is_not_a_number():
    out = torch.tensor([[1.0, math.nan], [0.0, math.inf], [2.0, 1.0]])
    assert_close(wrong(out, torch.tensor([0, 1, 1])), torch.tensor([math.nan, 0.0, 1.0]), equal_nan=True)


def test_own_functions_give_one_column_several_or_a_ratio():
    def margin(out, y):
        return out.gather(1, y[:, None])[:, 0] - out.mean(-1)

    def ratio(out, y):
        return out[:, 0], (y > 0).double()

    risk = network()
    out, y = logits(risk)
    found = at_origin(risk, {"margin": margin, "logit": lambda out, _: out, "cost": "loss", "of some": ratio})
    assert list(found) == ["margin", "logit 0", "logit 1", "logit 2", "logit 3", "cost", "of some"]
    assert found["margin"] == pytest.approx(moments(margin(out, y)), rel=1e-12)
    assert found["logit 2"] == pytest.approx(moments(out[:, 2]), rel=1e-12)
    assert found["cost"][0] == pytest.approx(risk.value(), rel=1e-12)
    assert found["of some"] == pytest.approx(moments(out[y > 0, 0]), rel=1e-12)


def test_a_function_that_vmap_does_not_take_is_evaluated_one_point_at_a_time():
    risk = network()
    found = at_origin(risk, {"first": lambda out, _: out[:, 0] * (1 if out.sum().item() > 0 else -1)}, batch_points=4)
    out, _ = logits(risk)
    assert abs(found["first"][0]) == pytest.approx(abs(float(out[:, 0].mean())), rel=1e-12)


def test_a_loss_over_tokens_is_a_ratio_of_sums():
    made = case("language")
    risk = made.risk()
    value, stderr = at_origin(risk)["loss"]
    assert value == pytest.approx(risk.value(), rel=1e-12)
    sums, counts = [], []
    for batch in made.batches:
        out = risk.predict(risk.theta, batch)["logits"]
        each = F.cross_entropy(out.transpose(1, 2), batch["labels"], reduction="none")
        sums.append(each.sum(1).detach())
        counts.append((batch["labels"] != -100).sum(1))
    s, c = torch.cat(sums), torch.cat(counts).double()
    n = len(s)
    residual = s - value * c
    assert stderr == pytest.approx(float((residual.square().sum() * n / (n - 1)).sqrt() / c.sum()), rel=1e-10)


def test_float32_is_averaged_in_float64():
    n = 5000
    x = torch.rand(n, 1, generator=torch.Generator().manual_seed(0)) + 100
    risk = EmpiricalRisk(
        lambda theta, x: x * theta["w"], lambda out, _: out.mean(), [(x, x)], {"w": torch.ones(1)}
    )  # fmt: skip
    value, stderr = at_origin(risk)["loss"]
    assert value == pytest.approx(float(x.double().mean()), rel=1e-14)
    assert stderr == pytest.approx(float(x.double().std()) / math.sqrt(n), rel=1e-10)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12), st.integers(0, 2**31))
def test_weights_of_zero_and_one_choose_examples(values, seed):
    x = torch.tensor(values, dtype=F64)[:, None]
    w = (torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < 0.7).double()
    some = x[w > 0]
    mean, stderr = mean_and_stderr(torch.where(w > 0, x, math.nan), w)
    assert float(mean) == pytest.approx(float(some.mean()), nan_ok=True, abs=1e-12)
    told = float(some.std()) / math.sqrt(len(some)) if len(some) > 1 else math.nan
    assert float(stderr) == pytest.approx(told, nan_ok=True, abs=1e-12)


def test_equal_weights_do_not_matter():
    x = torch.randn(3, 7, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    assert_close(mean_and_stderr(x, torch.full_like(x, 2.5)), mean_and_stderr(x), rtol=1e-13, atol=1e-14)


def test_the_standard_error_is_that_of_repeated_samples():
    """Ratio estimates from 4000 samples of 40 examples scatter as one sample says."""
    g = torch.Generator().manual_seed(1)
    w = torch.randint(1, 6, (4000, 40, 1), generator=g).double()
    x = torch.randn(4000, 40, 1, generator=g, dtype=F64) + 0.5 * w
    mean, stderr = mean_and_stderr(x, w)
    assert float(stderr.mean()) == pytest.approx(float(mean.std()), rel=0.05)  # linearisation is off by about 1/n


def test_wrong_metrics_are_refused():
    risk = network()
    with pytest.raises(ValueError, match="`metrics` has 'accuracy'; built in are"):
        at_origin(risk, ["accuracy"])
    with pytest.raises(ValueError, match="`metrics` must name at least one"):
        at_origin(risk, [])
    with pytest.raises(ValueError, match=r"has 'm', whose function must return one number for each of the 8 examples"):
        at_origin(network(sizes=(9,)), {"m": lambda out, _: out.mean()})
    with pytest.raises(ValueError, match="whose function must return one number"):
        at_origin(risk, {"m": lambda *_: 3.0})
    with pytest.raises(ValueError, match="choose names that differ"):
        at_origin(risk, {"logit 0": lambda out, _: out[:, 0], "logit": lambda out, _: out})
    with pytest.raises(ValueError, match="'error', which needs outputs of shape"):
        at_origin(network(lambda out, _: out.mean(), classes=1), ["error"])
    assert list(at_origin(network(lambda out, _: out.mean(), classes=1))) == ["loss"]
