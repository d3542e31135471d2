"""The trial of a risk: each cause of trouble is named, with the way out, and nothing is changed."""

import pytest
import torch
from problems import F64, case, cosines, o1, o2, small
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from landscape import EmpiricalFisher, EmpiricalRisk, Fisher, GaussNewton, Hessian, top_eigenpairs

OPERATORS = [Hessian, GaussNewton, EmpiricalFisher]
SUM = nn.CrossEntropyLoss(reduction="sum")


def from_loss(loss, sizes=(6,), model=None):
    return small(nn.Linear(3, 2) if model is None else model, sizes=sizes, loss=loss)


def categorical(risk):
    return Fisher(risk, likelihood="categorical")


ALL = pytest.mark.parametrize("operator", [*OPERATORS, categorical], ids=["H", "G", "E", "F"])


@ALL
def test_dropout_that_is_on_is_named(operator):
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2), nn.Dropout1d(0.2), nn.Dropout(0.0))
    risk = small(model, mode="train")
    if operator is EmpiricalFisher:
        with pytest.raises(ValueError, match=r"the same examples gave|mode='train'"):
            operator(risk)
        return
    with pytest.raises(ValueError, match=r"the dropout layers \['1', '3'\] are on, because mode='train': use mode='ev"):
        operator(risk)
    assert operator(small(model)).path == "kept"


@ALL
def test_random_losses_are_refused(operator):
    def noisy(out, y):
        return cross_entropy(out + 0.1 * torch.randn_like(out), y)

    with torch.random.fork_rng(), pytest.raises(ValueError, match=r"`risk` is not a function .* draws random numbers"):
        operator(from_loss(noisy))


@ALL
@pytest.mark.parametrize(
    ("loss", "shape"), [(nn.CrossEntropyLoss(reduction="none"), r"\(6,\)"), (lambda out, _: out.mean(0), r"\(2,\)")]
)
def test_a_loss_that_is_not_one_number_is_refused(operator, loss, shape):
    risk = from_loss(loss)
    message = f"`loss` must return one number, .* got a tensor of shape {shape}: use reduction='mean', or call .mean"
    for ask in (operator, EmpiricalRisk.value, EmpiricalRisk.gradient):
        with pytest.raises(ValueError, match=message):
            ask(risk)


@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (lambda out, _: float(out.sum()), "float"),
        (lambda *_: None, "NoneType"),
        (lambda out, y: (cross_entropy(out, y), 1), "tuple"),
    ],
    ids=["float", "nothing", "tuple"],
)
def test_a_loss_that_is_no_tensor_is_refused(loss, got):
    with pytest.raises(ValueError, match=f"`loss` must return one number, .* got {got}: use reduction='mean', or"):
        from_loss(loss).value()


def test_a_loss_of_one_entry_is_one_number():
    """Of shape (1,) or (1, 1), as some models return their loss."""
    shaped = from_loss(lambda out, y: cross_entropy(out, y).reshape(1, 1), sizes=(4, 2))
    plain = from_loss(cross_entropy, sizes=(4, 2))
    assert shaped.value() == pytest.approx(plain.value(), rel=1e-14)
    for operator in OPERATORS:
        assert_close(operator(shaped) @ cosines(8), operator(plain) @ cosines(8))


@ALL
def test_a_loss_that_depends_on_the_order_is_refused(operator):
    def ordered(out, y):
        return (cross_entropy(out, y, reduction="none") * torch.arange(len(y))).mean()

    with pytest.raises(ValueError, match=r"`loss` depends on the order of the examples in a batch \(.* in reverse\)"):
        operator(from_loss(ordered))


@ALL
def test_sums_over_ragged_batches_are_refused(operator):
    with pytest.raises(
        ValueError, match=r"`loss` of a batch is not the mean of the losses of its parts, .* or give `w"
    ):
        operator(from_loss(SUM, sizes=(4, 2)))


@ALL
def test_a_sum_over_one_batch_is_what_it_says(operator):
    """Six times the mean; there is nothing to weigh."""
    one = from_loss(SUM)
    assert one.value() == pytest.approx(6 * from_loss(cross_entropy).value(), rel=1e-12)
    if operator in (Hessian, GaussNewton):
        assert_close(operator(one) @ cosines(8), 6 * (operator(from_loss(cross_entropy)) @ cosines(8)))


def test_sums_go_with_equal_weights():
    """`weight` = 1 for a batch: the mean of the batches' sums, as the user says."""
    risk = small(nn.Linear(3, 2), sizes=(4, 2), loss=SUM, weight=lambda *_: 1.0)
    plain = from_loss(cross_entropy, sizes=(4, 2))
    # Σ_b (sum of batch b) / 2 is three times the mean over six examples
    assert risk.value() == pytest.approx(3 * plain.value(), rel=1e-12)
    assert_close(Hessian(risk, probe=False) @ cosines(8), 3 * (Hessian(plain) @ cosines(8)))


def test_the_checks_can_be_left_out():
    def ordered(out, y):
        return (cross_entropy(out, y, reduction="none") * torch.arange(len(y))).mean()

    assert Hessian(from_loss(ordered), probe=False).path == "kept"
    with pytest.raises(ValueError, match=r"`loss` must return one number"):
        Hessian(from_loss(nn.CrossEntropyLoss(reduction="none")), probe=False)


def test_the_trial_reads_a_few_examples():
    seen = []

    class Counting(nn.Linear):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    risk = small(Counting(3, 2), shape=(500, 3), sizes=(500,))
    Hessian(risk, path="afresh")
    assert max(seen) <= 8
    assert len(seen) <= 16


def test_a_model_for_batches_of_one_size_only_is_tried_on_a_whole_batch():
    class Fixed(nn.Linear):
        def forward(self, x):
            assert len(x) == 12, "twelve examples, please"
            return super().forward(x)

    risk = small(Fixed(3, 2), shape=(24, 3), sizes=(12, 12))
    plain = small(nn.Linear(3, 2), shape=(24, 3), sizes=(12, 12))
    for operator in (Hessian, GaussNewton):
        assert_close(operator(risk) @ cosines(8), operator(plain) @ cosines(8))


def test_contrastive_losses_are_not_means_but_have_a_hessian():
    """A loss over pairs within the batch: no order, no mean of parts; fine where a batch is an example."""

    def pairs(out, _):
        return torch.cdist(out, out).square().mean()

    risk = small(nn.Linear(3, 2), sizes=(3, 3), loss=pairs, weight=lambda *_: 1.0)
    x = [x for x, _ in risk.batches]

    def squares(out, _):
        return (out[:, None] - out[None]).square().sum(-1).mean()

    def value(w):
        return sum(((a @ w.T)[:, None] - (a @ w.T)[None]).square().sum(-1).mean() for a in x) / 2

    expected = torch.autograd.functional.hessian(value, risk.theta["weight"]).reshape(6, 6)
    smooth = small(nn.Linear(3, 2), sizes=(3, 3), loss=squares, weight=lambda *_: 1.0)
    assert_close(Hessian(smooth, parameters="weight").dense(), expected, rtol=1e-10, atol=1e-12)
    for sizes in ((3, 3), (4, 2)):
        with pytest.raises(ValueError, match=r"`loss` of a batch is not the mean of the losses of its parts"):
            Hessian(from_loss(squares, sizes=sizes))


class OwnLoss(nn.Module):
    """Computes its loss itself, and returns it alone or beside the logits."""

    def __init__(self, *, alone: bool) -> None:
        super().__init__()
        self.line, self.alone = nn.Linear(3, 2), alone

    def forward(self, inputs, labels):
        logits = self.line(inputs)
        loss = cross_entropy(logits, labels)
        return loss if self.alone else {"loss": loss, "logits": logits}


@pytest.mark.parametrize("alone", [True, False])
def test_a_model_that_returns_its_loss(alone):
    plain = small(nn.Linear(3, 2), sizes=(4, 2))
    model = OwnLoss(alone=alone).to(F64)
    with torch.no_grad():
        model.line.weight.copy_(plain.theta["weight"])
        model.line.bias.copy_(plain.theta["bias"])
    batches = [{"inputs": x, "labels": y} for x, y in plain.batches]
    risk = EmpiricalRisk.from_model(model, lambda out, _: out if alone else out["loss"], batches)
    assert risk.value() == pytest.approx(plain.value(), rel=1e-14)
    for operator in (Hessian, EmpiricalFisher):
        assert_close(operator(risk).dense(), operator(plain).dense())
    for operator in (GaussNewton, categorical):
        with pytest.raises(ValueError, match=r"`loss` uses no output of the model but a loss .* logits in `loss`"):
            operator(risk) @ cosines(8)
    if not alone:  # the way out that the message names
        good = EmpiricalRisk.from_model(model, lambda out, b: cross_entropy(out["logits"], b["labels"]), batches)
        assert_close(GaussNewton(good).dense(), GaussNewton(plain).dense())


def test_more_eigenpairs_than_parameters_are_refused(generator):
    with pytest.raises(ValueError, match=r"`k` must be between 1 and 6 for p = 6 .* got 7"):
        top_eigenpairs(Hessian(o1()), k=7, generator=generator)


def test_targets_that_do_not_fit_the_inputs_are_torchs_to_report():
    x, y = o2().batches[0]
    with pytest.raises(ValueError, match=r"batch_size \(5\) to match target batch_size \(3\)"):
        Hessian(o2().on((x, y[:3])))


@ALL
def test_batch_mode_is_tried_as_it_is(operator):
    """A loss through batch statistics is no mean of its parts, and need not be."""
    risk = case("conv:batch").risk()
    if operator is EmpiricalFisher:
        with pytest.raises(ValueError, match=r"`risk` has mode='batch'"):
            operator(risk)
    else:
        assert operator(risk).path == "kept"
