"""The risk: one mean over all examples, whatever the batches, and a model that is left alone."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import F64, o1, o2, o5
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from landscape import EmpiricalRisk, flatten


def data(n=10, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=g, dtype=F64), torch.randint(0, 2, (n,), generator=g)


class Keyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(3, 2, dtype=F64)

    def forward(self, inputs, labels=None):
        return self.line(inputs)


def test_softmax_regression():
    value, gradient = o1().value_and_gradient()
    assert value == pytest.approx(0.8911795170262778, rel=1e-10)
    expected = [-0.05873363681428747, 0.14768531425173761, 0.3053688016469983]
    expected += [-0.2006592693790934, -0.24663516483271086, 0.05297395512735578]
    assert_close(flatten(gradient), torch.tensor(expected, dtype=F64), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sizes", [(5,), (3, 2), (1, 1, 3)])
def test_tanh_network_whatever_the_batches(sizes):
    risk = o2(sizes)
    assert risk.value() == pytest.approx(1.4409769394599845, rel=1e-10)
    assert float(flatten(risk.gradient()).norm()) == pytest.approx(1.0498120379672005, rel=1e-10)
    assert float((risk.outputs().argmax(1) == risk.targets()).double().mean()) == pytest.approx(0.4)
    assert (risk.n, risk.sizes) == (5, list(sizes))


def test_quadratic():
    value, gradient = o5().value_and_gradient()
    assert value == pytest.approx(0.7)
    assert_close(gradient["w"], torch.tensor([0.4, -0.2], dtype=F64))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 2**31))
def test_risk_does_not_depend_on_how_the_data_is_batched(sizes, seed):
    x, y = data(sum(sizes), seed)
    whole = EmpiricalRisk.from_model(nn.Linear(3, 2, dtype=F64), cross_entropy, (x, y))
    split = whole.on(list(zip(x.split(sizes), y.split(sizes), strict=True)))
    assert split.value() == pytest.approx(whole.value(), rel=1e-12)
    assert_close(flatten(split.gradient()), flatten(whole.gradient()), rtol=1e-10, atol=1e-12)


def test_pairs_lists_loaders_and_dicts_are_the_same_data():
    x, y = data()
    model = Keyword()
    dicts = [{"inputs": x[:7], "labels": y[:7]}, {"inputs": x[7:], "labels": y[7:]}]
    forms = [(x, y), [(x[:7], y[:7]), (x[7:], y[7:])], DataLoader(TensorDataset(x, y), batch_size=4)]
    values = [EmpiricalRisk.from_model(model, cross_entropy, form).value() for form in forms]
    by_key = [
        EmpiricalRisk.from_model(model, lambda out, batch: cross_entropy(out, batch["labels"]), form)
        for form in (dicts, {"inputs": x, "labels": y})
    ]
    values += [risk.value() for risk in by_key]
    assert values == pytest.approx([values[0]] * 5, rel=1e-12)
    assert by_key[0].sizes == [7, 3]


def test_several_inputs():
    x, y = data()
    model = nn.Bilinear(3, 3, 2, dtype=F64)
    risk = EmpiricalRisk.from_model(model, cross_entropy, [((x, x), y)])
    assert risk.n == 10
    assert risk.value() == pytest.approx(float(cross_entropy(model(x, x), y).detach()), rel=1e-12)


def test_frozen_tied_and_unused_parameters():
    x, y = data()

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)).to(F64)
            self.stack[1].weight = self.stack[0].weight
            self.stack[2].bias.requires_grad_(False)
            self.unused = nn.Parameter(torch.ones(2, dtype=F64))

        def forward(self, x):
            return self.stack(x)

    model = Whole()
    risk = EmpiricalRisk.from_model(model, cross_entropy, (x, y))
    assert risk.names == ["unused", "stack.0.weight", "stack.0.bias", "stack.1.bias", "stack.2.weight"]
    gradient = risk.gradient()
    loss = cross_entropy(model(x), y)
    expected = torch.autograd.grad(loss, [model.stack[0].weight, model.stack[2].weight])
    assert_close(gradient["stack.0.weight"], expected[0])
    assert_close(gradient["stack.2.weight"], expected[1])
    assert not gradient["unused"].any()
    moved = {**risk.theta, "stack.0.weight": torch.zeros(3, 3, dtype=F64)}
    assert risk.value(moved) != pytest.approx(risk.value())


def test_parameters_may_be_chosen():
    x, y = data()
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)).to(F64)
    risk = EmpiricalRisk.from_model(model, cross_entropy, (x, y), parameters=["1.bias", "0.weight"])
    assert risk.names == ["0.weight", "1.bias"]
    whole = EmpiricalRisk.from_model(model, cross_entropy, (x, y)).gradient()
    assert_close(flatten(risk.gradient()), flatten(whole, risk.names))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_model_is_left_alone(mode):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).to(F64)
    model.train()
    model[1].eval()
    x, y = data()
    model[0].weight.grad = torch.ones(4, 3, dtype=F64)
    before, random = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    with torch.random.fork_rng():  # dropout in train mode draws from the global state, as the user asked
        risk = EmpiricalRisk.from_model(model, cross_entropy, (x, y), mode=mode)
        risk.value_and_gradient()
        risk.outputs()
    assert torch.equal(torch.random.get_rng_state(), random)
    assert model.training
    assert not model[1].training
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name])
    assert torch.equal(model[0].weight.grad, torch.ones(4, 3, dtype=F64))
    assert model[3].weight.grad is None
    assert all(p.requires_grad for p in model.parameters())


def test_eval_mode_needs_no_random_numbers_and_repeats():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)).to(F64)
    random = torch.random.get_rng_state()
    risk = EmpiricalRisk.from_model(model, cross_entropy, data())
    assert risk.value() == risk.value()
    assert torch.equal(torch.random.get_rng_state(), random)
    model.eval()
    x, y = data()
    assert risk.value() == pytest.approx(float(cross_entropy(model(x), y).detach()), rel=1e-12)


def test_other_points_and_other_data():
    risk = o2()
    zero = {name: torch.zeros_like(t) for name, t in risk.theta.items()}
    assert risk.value(zero) == pytest.approx(math.log(2))
    assert risk.at(zero).value() == pytest.approx(math.log(2))
    assert risk.at(dict(reversed(zero.items()))).names == risk.names
    x, y = risk.batches[0]
    assert risk.on((x[:2], y[:2])).n == 2


def test_chunks_partition_the_examples(generator):
    risk = o2((2, 3))
    chunks = risk.chunks(2)
    assert [c.n for c in chunks] == [2, 2, 1]
    assert_close(torch.cat([c.batches[0][0] for c in chunks]), torch.cat([x for x, _ in risk.batches]))
    assert sum(c.value() * c.n for c in chunks) / 5 == pytest.approx(risk.value(), rel=1e-12)
    shuffled = risk.chunks(2, generator=generator)
    assert sum(c.value() * c.n for c in shuffled) / 5 == pytest.approx(risk.value(), rel=1e-12)
    assert not torch.equal(shuffled[0].batches[0][0], chunks[0].batches[0][0])


def test_refused_arguments():
    x, y = data()
    model = nn.Linear(3, 2, dtype=F64)
    with pytest.raises(ValueError, match="`data` has no batch"):
        EmpiricalRisk.from_model(model, cross_entropy, [])
    with pytest.raises(ValueError, match="`parameters` has 'wieght', which is no name, glob or module of"):
        EmpiricalRisk.from_model(model, cross_entropy, (x, y), parameters=["wieght"])
    with pytest.raises(ValueError, match="no trainable parameter"):
        EmpiricalRisk.from_model(nn.Flatten(), cross_entropy, (x, y))
    risk = EmpiricalRisk.from_model(model, cross_entropy, (x, y))
    for m in (0, 11):
        with pytest.raises(ValueError, match=f"`m` must be between 1 and the number of examples 10, got {m}"):
            risk.chunks(m)
    awkward = risk.on([(x, y), (x[:, :2], y)])
    with pytest.raises(ValueError, match="`data` has batches that cannot be put together"):
        awkward.chunks(2)


def test_a_pure_model_equals_functional_call_and_leaves_the_module_alone(generator):
    from landscape.functional import PureModel

    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5)).train()
    x = torch.randn(5, 3, generator=generator)
    theta = {name: torch.randn(p.shape, generator=generator) for name, p in net.named_parameters()}
    before = {k: v.clone() for k, v in net.state_dict().items()}
    pure = PureModel(net)
    expected = torch.func.functional_call(net.eval(), theta, (x,))
    net.train()
    torch.testing.assert_close(pure(theta, x), expected)
    torch.testing.assert_close(pure({}, x), torch.func.functional_call(net.eval(), {}, (x,)))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    with pytest.raises(RuntimeError):
        pure(theta, x[:, :2])
    torch.testing.assert_close(pure({}, x), net(x))  # the parameters are back after an error


def test_tied_parameters_move_together(generator):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Linear(3, 3, bias=False)
            self.b = torch.nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    from landscape.functional import PureModel

    x, w = torch.randn(2, 3, generator=generator), torch.randn(3, 3, generator=generator)
    torch.testing.assert_close(PureModel(Tied())({"a.weight": w}, x), x @ w.T @ w.T)


def test_weights_of_batches_decide_their_shares():
    x, y = data()
    model = nn.Linear(3, 2, dtype=F64)
    batches = [(x[:7], y[:7]), (x[7:], y[7:])]
    parts = [EmpiricalRisk.from_model(model, cross_entropy, b).value_and_gradient() for b in batches]
    risk = EmpiricalRisk.from_model(model, cross_entropy, batches, weight=lambda x, _: 1.0 if len(x) == 7 else 3.0)
    value, gradient = risk.value_and_gradient()
    assert risk.shares == pytest.approx([0.25, 0.75])
    assert value == pytest.approx(0.25 * parts[0][0] + 0.75 * parts[1][0], rel=1e-12)
    assert_close(flatten(gradient), 0.25 * flatten(parts[0][1]) + 0.75 * flatten(parts[1][1]))


def test_a_batch_of_weight_zero_does_not_count():
    """Not even where its loss is not a number, as a mean over no tokens is."""
    x, y = data()
    plain = EmpiricalRisk.from_model(nn.Linear(3, 2, dtype=F64), cross_entropy, (x[:7], y[:7]))
    nothing = torch.full_like(y[7:], -100)
    risk = plain.on([(x[:7], y[:7]), (x[7:], nothing)])
    object.__setattr__(risk, "weight", lambda _, y: float((y != -100).sum()))
    assert risk.value() == pytest.approx(plain.value(), rel=1e-12)
    assert_close(flatten(risk.gradient()), flatten(plain.gradient()))


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_weights_that_weigh_nothing_are_refused(weight):
    risk = EmpiricalRisk.from_model(nn.Linear(3, 2, dtype=F64), cross_entropy, data(), weight=lambda *_: weight)
    with pytest.raises(ValueError, match=r"`weight` must give batches weights >= 0, not all of them 0, got \["):
        risk.value()


def test_data_without_an_example_are_refused():
    x, y = data()
    model = nn.Linear(3, 2, dtype=F64)
    for empty in ((x[:0], y[:0]), [(x[:0], y[:0])]):
        with pytest.raises(ValueError, match="`data` has no example"):
            EmpiricalRisk.from_model(model, cross_entropy, empty).value()


@pytest.mark.parametrize("size", [1, 3, 10, 100])
def test_parts_are_the_same_risk(size):
    x, y = data()
    risk = EmpiricalRisk.from_model(nn.Linear(3, 2, dtype=F64), cross_entropy, [(x[:7], y[:7]), (x[7:], y[7:])])
    parts = risk.in_parts(size)
    assert max(parts.sizes) <= size
    assert parts.n == risk.n
    assert parts.value() == pytest.approx(risk.value(), rel=1e-12)
    assert_close(flatten(parts.gradient()), flatten(risk.gradient()))
    assert_close(parts.outputs(), risk.outputs())


def test_parts_that_cannot_be_are_refused():
    x, y = data()
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).to(F64)
    with pytest.raises(ValueError, match="`size` must be at least 1 example, got 0"):
        EmpiricalRisk.from_model(model, cross_entropy, (x, y)).in_parts(0)
    batch = EmpiricalRisk.from_model(model, cross_entropy, (x, y), mode="batch")
    with pytest.raises(ValueError, match=r"`size` = 4 would cut batches that are normalised by their own statistics"):
        batch.in_parts(4)
    assert batch.in_parts(10) is batch


def test_recalibrated_statistics_are_those_of_the_batches_as_they_were():
    """Smaller batches have other variances within, so a risk is settled before it is cut."""
    x, y = data()
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).to(F64)
    risk = EmpiricalRisk.from_model(model, cross_entropy, (x, y), mode="recalibrate")
    hidden = model[0](x)
    normal = (hidden - hidden.mean(0)) / torch.sqrt(hidden.var(0) + model[1].eps)
    expected = float(cross_entropy(model[2](normal * model[1].weight + model[1].bias), y).detach())
    assert risk.value() == pytest.approx(expected, rel=1e-12)
    assert risk.settled().mode == "eval"
    assert risk.settled().in_parts(5).value() == pytest.approx(expected, rel=1e-12)
    try:
        parts = risk.in_parts(5)
    except ValueError as error:
        assert "settled" in str(error)  # noqa: PT017, either is right
    else:
        assert parts.value() == pytest.approx(expected, rel=1e-12)


def test_recalibration_follows_the_point():
    x, y = data()
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).to(F64)
    risk = EmpiricalRisk.from_model(model, cross_entropy, (x, y), mode="recalibrate")
    scaled = {**risk.theta, "0.weight": 5 * risk.theta["0.weight"], "0.bias": 5 * risk.theta["0.bias"]}
    # scaling what BatchNorm normalises changes nothing, but for its eps
    assert risk.value(scaled) == pytest.approx(risk.value(), rel=1e-3)
    assert EmpiricalRisk.from_model(model, cross_entropy, (x, y)).value(scaled) != pytest.approx(risk.value(), rel=1e-2)
    assert (model[1].running_mean == 0).all()
