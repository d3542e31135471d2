"""The line between two models against models built by hand; the plane through three; running statistics."""

import copy

import pytest
import torch
import torch.nn.functional as F
from problems import F64, o2
from torch import nn
from torch.testing import assert_close

from landscape.batchnorm import recalibrate
from landscape.evaluate import evaluate
from landscape.paths.evaluation import StateEvaluator
from landscape.paths.interpolation import LinearPath, interpolate, line_coordinates, plane_through
from landscape.paths.profile import profile
from landscape.paths.states import ModelState, combine


@pytest.fixture
def pair(build, generator):
    """Two models with BatchNorm, and data in ragged batches."""
    first, x = build("batchnorm", examples=11)
    second, _ = build("batchnorm", seed=1)
    y = torch.randint(3, (11,), generator=generator)
    return first, second, [(x[:8], y[:8]), (x[8:], y[8:])]


def by_hand(first, second, a, batches, mode):
    """Loss and error of the model at a, made by torch's own means."""
    model = copy.deepcopy(first)
    with torch.no_grad():
        for ours, p, q in zip(model.parameters(), first.parameters(), second.parameters(), strict=True):
            ours.copy_((1 - a) * p + a * q)
        for ours, p, q in zip(model.buffers(), first.buffers(), second.buffers(), strict=True):
            if ours.is_floating_point():
                ours.copy_((1 - a) * p + a * q)
        for name, b in model.named_buffers():
            if name.endswith("running_var"):
                b.clamp_(min=0)
    if mode == "recalibrate":
        recalibrate(model, batches)
    if mode == "batch":
        model.train()
        model[11].eval()
    losses, wrong, n = 0.0, 0.0, 0
    with torch.no_grad():
        for x, y in batches:
            out = model(x)
            losses += float(F.cross_entropy(out, y, reduction="sum"))
            wrong += float((out.argmax(1) != y).sum())
            n += len(x)
    return losses / n, wrong / n


@pytest.mark.parametrize("mode", ["eval", "recalibrate", "batch"])
def test_values_are_those_of_models_built_by_hand(mode, pair):
    first, second, batches = pair
    where = [-0.5, 0.0, 0.3, 1.0, 1.5]
    found = interpolate(first, F.cross_entropy, first, second, {"train": batches}, coordinates=where, modes=[mode])
    expected = torch.tensor([by_hand(first, second, a, batches, mode) for a in where], dtype=F64)
    assert_close(found.values("train", mode), expected[:, 0], rtol=1e-10, atol=1e-10)
    assert_close(found.values("train", mode, "error"), expected[:, 1], rtol=1e-12, atol=1e-12)


def test_both_modes_are_reported_and_differ(pair):
    first, second, batches = pair
    before = copy.deepcopy([first.state_dict(), second.state_dict()])
    found = interpolate(
        first, F.cross_entropy, first, second, {"test": [batches[1]], "train": batches}, coordinates=[0, 0.5, 1]
    )
    assert list(found.examples) == [
        ("test", "eval"),
        ("test", "recalibrate"),
        ("train", "eval"),
        ("train", "recalibrate"),
    ]
    assert (found.values("train", "eval") - found.values("train", "recalibrate")).abs().max() > 1e-3
    # the statistics of the test's values come from "train", not from the test data or the first subset
    again = interpolate(
        first, F.cross_entropy, first, second, {"test": [batches[1]]}, coordinates=[0, 0.5, 1], calibration=batches
    )
    assert torch.equal(found.table("test", "recalibrate"), again.table("test", "recalibrate"))
    own = interpolate(first, F.cross_entropy, first, second, {"test": [batches[1]]}, coordinates=[0, 0.5, 1])
    assert not torch.equal(found.table("test", "recalibrate"), own.table("test", "recalibrate"))
    for model, old in zip((first, second), before, strict=True):
        for name, t in model.state_dict().items():
            assert torch.equal(t, old[name])


def test_ends_are_the_models_to_the_bit(pair):
    first, second, _ = pair
    path = LinearPath(ModelState.of(first.float()), ModelState.of(second.float()))
    for a, model in ((0, first), (1, second)):
        state = path.point(a)
        assert state is (path.end if a else path.start)  # no copy
        for name, t in model.named_parameters():
            assert torch.equal(state.parameters[name], t)
        for name, t in model.named_buffers():
            assert torch.equal(state.buffers[name], t)
    middle = path.point(0.75)
    assert_close(middle.buffers["1.running_mean"], 0.25 * first[1].running_mean + 0.75 * second[1].running_mean)
    assert torch.equal(middle.buffers["1.num_batches_tracked"], second[1].num_batches_tracked)
    assert path.distance == pytest.approx(
        float(
            torch.cat(
                [(p - q).detach().flatten() for p, q in zip(first.parameters(), second.parameters(), strict=True)]
            ).norm()
        )
    )


def test_a_running_variance_stays_above_zero_beyond_the_ends():
    low, high = (
        ModelState({"w": torch.zeros(1)}, {"bn.running_var": torch.tensor([v]), "bn.running_mean": torch.tensor([v])})
        for v in (1.0, 4.0)
    )
    beyond = LinearPath(low, high).point(-0.5)
    assert beyond.buffers["bn.running_var"].item() == 0
    assert beyond.buffers["bn.running_mean"].item() == -0.5


def test_states_are_copies(pair):
    first, _, _ = pair
    state = ModelState.of(first)
    with torch.no_grad():
        first[0].weight.zero_()
    assert state.parameters["0.weight"].abs().max() > 0
    assert ModelState.of(state) is state


def test_default_coordinates():
    where = line_coordinates()
    assert len(where) == 41
    assert where[0] == -0.5
    assert where[-1] == 1.5
    assert (where == 0).sum() == (where == 1).sum() == 1
    assert len(line_coordinates(points=8)) == 10  # 0 and 1 are added
    with pytest.raises(ValueError, match="`low` and `high` must enclose 0 and 1"):
        line_coordinates(0.1, 1)
    with pytest.raises(ValueError, match="`points` must be at least 2, got 1"):
        line_coordinates(points=1)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)), r"parameter '0.weight' is float32 of shape \(3, 2\)"),
        (nn.Sequential(nn.Linear(2, 3)), "parameter '1.weight' is .* in the first and missing in the second"),
        (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False)), "buffer '1.running_mean'"),
        (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).double(), "float32 .* and float64"),
    ],
)
def test_other_architectures_are_refused(other, message):
    first = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match=message):
        LinearPath(ModelState.of(first), ModelState.of(other))


def test_rows_carry_values_and_errors(pair):
    first, second, batches = pair
    found = interpolate(first, F.cross_entropy, first, second, {"train": batches}, coordinates=[0, 1], modes=["eval"])
    rows = list(found.rows())
    assert len(rows) == 4
    losses = torch.cat([F.cross_entropy(first(x), y, reduction="none") for x, y in batches])
    assert rows[0]["metric"] == "loss"
    assert rows[0]["value"] == pytest.approx(float(losses.detach().mean()), rel=1e-12)
    assert rows[0]["stderr"] == pytest.approx(float(losses.detach().std()) / 11**0.5, rel=1e-12)
    with pytest.raises(ValueError, match="`subset`, `mode` must be one of"):
        found.values("test")
    with pytest.raises(ValueError, match="`metric` must be one of"):
        found.values("train", metric="accuracy")


# Examples' losses ---------------------------------------------------------------------------------------------------


def squares(out, y):
    return (out.log_softmax(-1).exp() - F.one_hot(y, 2)).square().sum(-1).mean()


@pytest.mark.parametrize("loss", [F.cross_entropy, squares], ids=["cross_entropy", "vmap"])
def test_examples_average_to_the_risk(loss):
    risk = o2((3, 2))
    risk = type(risk)(risk.predict, loss, risk.batches, risk.theta)
    found = evaluate(risk, losses=True).examples
    assert found["loss"].shape == (5,)
    assert float(found["loss"].mean()) == pytest.approx(risk.value(), rel=1e-12)
    x, y = risk.batches[1]
    assert float(found["loss"][4]) == pytest.approx(float(loss(risk.predict(risk.theta, x[1:]), y[1:])), rel=1e-12)


def test_a_loss_that_couples_examples_has_no_standard_error():
    risk = o2((3, 2))

    def coupled(out, y):
        return F.cross_entropy(out, y) + out.var()

    risk = type(risk)(risk.predict, coupled, risk.batches, risk.theta, weight=lambda *_: 1.0)
    found = evaluate(risk, losses=True).examples
    assert found["loss"].shape == (1,)
    assert float(found["loss"]) == pytest.approx(risk.value(), rel=1e-12)
    assert found["error"].shape == (5,)


def test_weights_of_batches_count():
    risk = o2((3, 2))
    risk = type(risk)(risk.predict, risk.loss, risk.batches, risk.theta, weight=lambda *_: 1.0)
    assert float(evaluate(risk, losses=True).examples["loss"]) == pytest.approx(risk.value(), rel=1e-12)


def test_infinite_losses_are_kept():
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.fill_(3e38)
    data = {"train": (torch.tensor([[1.0], [100.0]]), torch.tensor([0, 1]))}
    values = StateEvaluator(model, F.cross_entropy, data)(ModelState.of(model))["train", "eval"]["loss"]
    assert not bool(values.isfinite().all())


def test_bad_evaluators(pair):
    first, _, batches = pair
    with pytest.raises(ValueError, match="`data` must name its subsets"):
        StateEvaluator(first, F.cross_entropy, {})
    with pytest.raises(ValueError, match="`modes` must be some of"):
        StateEvaluator(first, F.cross_entropy, {"train": batches}, modes=[])
    path = LinearPath(ModelState.of(first), ModelState.of(first))
    with pytest.raises(ValueError, match="`coordinates` must be finite numbers"):
        profile(path, [float("nan")], StateEvaluator(first, F.cross_entropy, {"train": batches}))


# Planes ------------------------------------------------------------------------------------------------------------


def test_plane_goes_through_its_models(build):
    states = [ModelState.of(build("batchnorm", seed=s)[0]) for s in range(3)]
    plane = plane_through(*states)
    for state, where in zip(states, plane.coordinates.tolist(), strict=True):
        point, change = plane.axes.at(where), plane.axes.buffers_at(where)
        for name, t in state.parameters.items():
            assert_close(point[name], t, rtol=1e-10, atol=1e-10)
        for name, t in change.items():
            assert_close(states[0].buffers[name] + t, state.buffers[name], rtol=1e-10, atol=1e-10)
    assert plane.coordinates[:2].tolist() == [[0, 0], [1, 0]]
    assert abs(float(plane.axes.cosines[0, 1])) < 1e-12
    assert any(name.endswith("running_var") for name in plane.axes.buffers_at((1.0, 1.0)))


def test_plane_by_hand():
    a, b, c = (ModelState({"w": torch.tensor(v, dtype=F64)}) for v in ([1.0, 1.0], [3.0, 1.0], [2.0, 4.0]))
    plane = plane_through(a, b, c)  # u = (2, 0); w3 - w1 = (1, 3) = u / 2 + (0, 3); v has length √10
    assert_close(plane.axes.axes[0].direction["w"], torch.tensor([2.0, 0.0], dtype=F64))
    assert_close(plane.axes.axes[1].direction["w"], torch.tensor([0.0, 10**0.5], dtype=F64))
    assert_close(plane.coordinates[2], torch.tensor([0.5, 3 / 10**0.5], dtype=F64))


def test_models_on_a_line_span_no_plane():
    a, b = (ModelState({"w": torch.tensor(v, dtype=F64)}) for v in ([1.0, 1.0], [3.0, 2.0]))
    with pytest.raises(ValueError, match="`third` lies on the line through `first` and `second`"):
        plane_through(a, b, combine((-1, 2), (a, b)))
    with pytest.raises(ValueError, match="length zero"):
        plane_through(a, a, b)
    with pytest.raises(ValueError, match="`first` and `third` are not of the same architecture"):
        plane_through(a, b, ModelState({"w": torch.zeros(3, dtype=F64)}))
