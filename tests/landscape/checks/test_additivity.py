"""A loss that is no plain mean over examples is refused where data are cut, or right by `weight`."""

import pytest
import torch
from problems import F64, small
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from torch.testing import assert_close

from landscape import (
    AscentStep,
    EmpiricalFisher,
    EmpiricalRisk,
    GaussNewton,
    Hessian,
    ascent_sharpness,
    flatten,
    gradient_moments,
    relative_flatness,
)
from landscape.surfaces.axes import Axes, Axis
from landscape.surfaces.grid import Grid
from landscape.surfaces.scan import scan

WEIGHTS = torch.tensor([1.0, 20.0], dtype=F64)


def rare(sizes=(40,), loss=None, weight=None, zero=False):
    """Forty examples, five of the second class, the last of them among the last eight."""
    model = nn.Linear(3, 2)
    risk = small(model, shape=(40, 3), sizes=(40,))
    if zero:
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
    x = risk.batches[0][0]
    y = torch.zeros(40, dtype=torch.long)
    y[[3, 11, 12, 35, 38]] = 1
    loss = nn.CrossEntropyLoss(weight=WEIGHTS) if loss is None else loss
    batches = list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))
    return EmpiricalRisk.from_model(model, loss, batches, weight=weight)


def mass(_, y):
    return WEIGHTS[y].sum()


def ignoring(out, y):
    """The mean over targets that are not of the first class."""
    return cross_entropy(out, torch.where(y == 0, -100, y))


def counted(_, y):
    return (y != 0).sum()


def contrastive(out, _):
    z = normalize(out, dim=1)
    return cross_entropy(z @ z.T / 0.5, torch.arange(len(z)))


REFUSED = r"`loss` of a batch is not the mean of the losses of its parts, .* give `weight`, .* weight=lambda x, y: 1.0"


@pytest.mark.parametrize("zero", [False, True], ids=["drawn", "zero"])
@pytest.mark.parametrize("loss", [None, ignoring, contrastive], ids=["class weights", "ignored", "contrastive"])
def test_several_batches_are_refused_by_everything(loss, zero):
    """At weights of zero all batches have one and the same loss: it is not asked there."""
    for ask in (EmpiricalRisk.value, EmpiricalRisk.gradient, Hessian, GaussNewton):
        with pytest.raises(ValueError, match=REFUSED):
            ask(rare((10, 10, 10, 10), loss, zero=zero))


@pytest.mark.parametrize(("loss", "weight"), [(None, mass), (ignoring, counted)], ids=["class weights", "ignored"])
@pytest.mark.parametrize("sizes", [(10, 30), (14, 1, 25)])
def test_with_weights_it_is_the_whole(loss, weight, sizes):
    whole, cut = rare((40,), loss), rare(sizes, loss, weight)
    assert cut.value() == pytest.approx(whole.value(), rel=1e-12)
    assert_close(flatten(cut.gradient()), flatten(whole.gradient()), rtol=1e-10, atol=1e-14)
    for operator in (Hessian, GaussNewton):
        expected = operator(whole).dense()
        assert_close(operator(cut).dense(), expected, rtol=1e-9, atol=1e-13)
        assert_close(operator(cut, micro_batch=40).dense(), expected, rtol=1e-9, atol=1e-13)
    axes = Axes(whole.theta, (Axis({k: torch.ones_like(t) for k, t in whole.theta.items()}, "ones"),))
    values = [scan(r, axes, Grid.around(0.5, 3, axes=1)).values["loss"] for r in (whole, cut)]
    assert_close(values[1], values[0], rtol=1e-10, atol=1e-12)


def test_cuts_of_ours_are_checked():
    whole = rare()
    for cut in (
        lambda: Hessian(whole, micro_batch=7),
        lambda: whole.in_parts(7).value(),
        lambda: ascent_sharpness(whole, AscentStep(0.1), m=7),
        lambda: EmpiricalFisher(whole),
        lambda: gradient_moments(whole),
    ):
        with pytest.raises(ValueError, match=r"would cut batches whose loss is not the weighted mean .* give `weight`"):
            cut()
    weighted = rare(weight=mass)
    expected = Hessian(whole).dense()
    assert_close(Hessian(weighted, micro_batch=7).dense(), expected, rtol=1e-9, atol=1e-13)
    assert weighted.in_parts(7).value() == pytest.approx(whole.value(), rel=1e-12)
    moments = gradient_moments(weighted)
    assert_close(flatten(moments.mean), flatten(whole.gradient()), rtol=1e-10, atol=1e-13)
    # chunks count by their mass: the mean of their losses is the loss of the whole
    assert ascent_sharpness(weighted, AscentStep(0.1), m=7).base == pytest.approx(whole.value(), rel=1e-10)


def test_little_memory_does_not_cut_what_must_be_whole(monkeypatch):
    expected = Hessian(rare()).dense()
    monkeypatch.setattr("landscape.operators.trial.Trial.examples_within", lambda *_: 4)
    monkeypatch.setattr("landscape.operators.trial.Trial.graph_bytes", lambda *_: 2**62)
    whole, weighted = Hessian(rare()), Hessian(rare(weight=mass))
    assert len(whole.point.risk.batches) == 1
    assert len(weighted.point.risk.batches) == 10
    for H in (whole, weighted):
        assert_close(H.dense(), expected, rtol=1e-9, atol=1e-13)


def test_a_batch_may_be_the_example():
    """Equal weights: the mean over batches of a loss that compares examples, which are never cut."""
    risk = rare((10, 14, 16), contrastive, weight=lambda *_: 1.0)
    alone = [rare((40,), contrastive).on(b).value() for b in risk.batches]
    assert risk.value() == pytest.approx(sum(alone) / 3, rel=1e-12)
    with pytest.raises(ValueError, match=r"`micro_batch` = 5 would cut a batch of weight 1 into parts .* is never cut"):
        Hessian(risk, micro_batch=5)


def test_weights_that_are_not_the_losses_own_are_refused():
    with pytest.raises(ValueError, match=r"`weight` gives neighbouring batches the shares .* but by the loss of their"):
        rare((10, 30), weight=lambda _, y: float(len(y))).value()


def test_a_target_ignored_in_the_last_batch_is_found():
    risk = rare((10, 10, 20), cross_entropy)
    plain = risk.value()
    assert plain == pytest.approx(rare((40,), cross_entropy).value(), rel=1e-12)
    risk.batches[2][1][-3:] = -100
    with pytest.raises(ValueError, match=REFUSED):
        risk.on(risk.batches).value()


@pytest.mark.parametrize("size", [1, 7])
def test_a_part_that_counts_for_nothing_may_have_any_loss(size):
    """Where all targets of a part are ignored, its own loss is 0/0; by its weight of zero it is left out."""
    whole = rare(loss=ignoring)
    risk = rare(loss=ignoring, weight=counted)
    assert_close(Hessian(risk, micro_batch=size).dense(), Hessian(whole).dense())
    assert_close(risk.in_parts(size).value(), whole.value())


def test_losses_that_are_means_need_no_look_at_the_model():
    calls = []

    class Counting(nn.Linear):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)

    risk = small(Counting(3, 2), sizes=(2, 4))
    risk.value()
    assert calls == [2, 4]
    calls.clear()
    own = small(Counting(3, 2), sizes=(2, 4), loss=lambda out, y: cross_entropy(out, y, label_smoothing=0.1))
    own.value()
    assert sorted(calls) == [2, 2, 4, 4]  # one pass more
    calls.clear()
    own.at({n: t + 1 for n, t in own.theta.items()}).value()  # it is asked once
    assert calls == [2, 4]


def test_a_model_with_a_loss_of_its_own():
    """Nothing but values can be compared, and the model is given other batches."""

    class Own(nn.Linear):
        def forward(self, inputs, labels):
            return {"loss": nn.functional.cross_entropy(super().forward(inputs), labels, weight=self.scale)}

    def made(scale):
        model = Own(3, 2)
        model.scale = scale
        batches = [{"inputs": x, "labels": y} for x, y in rare((10, 30)).batches]
        return EmpiricalRisk.from_model(model.to(F64), lambda out, _: out["loss"], batches)

    assert made(None).value() > 0
    with pytest.raises(ValueError, match=REFUSED):
        made(WEIGHTS).value()


def test_float32_inside_is_no_reason():
    risk = rare((10, 30), lambda out, y: cross_entropy(out.float(), y))
    assert risk.value() == pytest.approx(rare((40,), cross_entropy).value(), rel=1e-6)


def test_flatness_of_a_weighted_loss_is_by_products():
    """The closed form at the outputs is for losses of single examples."""
    risk = rare()
    H, W = Hessian(risk, parameters="weight").dense(), risk.theta["weight"]
    blocks = H.reshape(2, 3, 2, 3).diagonal(dim1=1, dim2=3).sum(-1)
    expected = float((blocks * (W @ W.T)).sum())
    assert float(relative_flatness(risk, standardise=False)) == pytest.approx(expected, rel=1e-9)
