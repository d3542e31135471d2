"""Sharpness against the oracle problems, linear losses and a plain loop over examples."""

import copy
import inspect
import math
import warnings

import numpy as np
import pytest
import torch
from problems import F64, case, o1, o2, o5
from sharpness_problems import linear_losses
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.testing import assert_close

from landscape import AbsWeight, AscentStep, EmpiricalRisk, FilterNorm, TensorNorm, displaced, norm
from landscape.sharpness import Sharpness, ascent, ascent_sharpness, average_sharpness, blocks

SAM = AscentStep
ADAPTIVE = AbsWeight()


def at_rest(w: tuple[float, float]) -> EmpiricalRisk:
    """A quadratic with Hessian [[3, 1], [1, 2]] at its stationary point w."""
    H = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=F64)
    centre = torch.tensor(w, dtype=F64)

    def predict(theta, x):
        e = theta["w"] - centre
        return (e @ H @ e / 2).expand(len(x))

    return EmpiricalRisk(predict, lambda out, _: out.mean(), [(torch.zeros(2), torch.zeros(2))], {"w": centre})


def network(n=23, dtype=F64, seed=5) -> EmpiricalRisk:
    g = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=F64) / 2)
    x = torch.randn(n, 4, generator=g, dtype=F64).to(dtype)
    return EmpiricalRisk.from_model(model, cross_entropy, (x, torch.randint(0, 3, (n,), generator=g)))


def by_hand(risk: EmpiricalRisk, perturbation, m: int) -> list[float]:
    """One chunk at a time, in plain words."""
    rises = []
    for chunk in risk.chunks(m):
        delta = perturbation(risk.theta, chunk.gradient())
        rises.append(chunk.value(displaced(risk.theta, delta)) - chunk.value())
    return rises


@pytest.mark.parametrize(
    ("step", "value"),
    [
        (SAM(0.1), 0.0547213595),
        (SAM(0.1, metric=ADAPTIVE), 0.1348150537),
        (SAM(0.1, p=math.inf), 0.075),
        (SAM(0.1, p=math.inf, metric=ADAPTIVE), 0.15),
    ],
    ids=["l2", "adaptive l2", "linf", "adaptive linf"],
)
def test_quadratic(step, value):
    found = ascent_sharpness(o5(), step)
    assert found.value == pytest.approx(value, abs=1e-9)
    assert found.gradient_norm == pytest.approx(math.sqrt(0.2))
    assert (found.stderr, found.draws) == (0.0, 1)
    assert math.isnan(found.error)


def test_antithetic_pairs_cancel_a_linear_loss(generator):
    found = average_sharpness(linear_losses(), 3.0, generator=generator)
    assert abs(found.value) < 1e-14
    assert found.stderr < 1e-14


O1_VALUES = [
    (None, {}, {0.05: 0.024070904980494245, 0.5: 0.2853376275098173}),
    (None, {"metric": ADAPTIVE}, {0.05: 0.010238806349147755, 0.5: 0.12131919569015504}),
    (None, {"p": math.inf}, {0.05: 0.05394208356779939, 0.5: 0.802698268552653}),
    (None, {"p": math.inf, "metric": ADAPTIVE}, {0.05: 0.01825653483675116, 0.5: 0.2358698031705092}),
    (1, {}, {0.05: 0.04939643433909868, 0.5: 0.5905647073276309}),
    (2, {}, {0.05: 0.03110749113280792, 0.5: 0.3438686286043113}),
    (4, {}, {0.05: 0.024070904980494245, 0.5: 0.2853376275098173}),
]


@pytest.mark.parametrize(("m", "options", "values"), O1_VALUES)
@pytest.mark.parametrize("rho", [0.05, 0.5])
def test_softmax_regression(m, options, values, rho):
    assert ascent_sharpness(o1(), SAM(rho, **options), m).value == pytest.approx(values[rho], rel=1e-10)


@pytest.mark.parametrize(
    ("rho", "metric", "second_order", "tolerance"),
    [(0.05, None, 0.00157724, 1e-5), (0.1, None, 0.00630895, 1e-4), (0.1, ADAPTIVE, 0.00149980, 1e-5)],
)
def test_average_over_softmax_regression(generator, rho, metric, second_order, tolerance):
    found = average_sharpness(o1(), rho, draws=200, metric=metric, generator=generator)
    assert abs(found.value - second_order) < 4 * found.stderr + tolerance  # the fourth order is below the tolerance
    assert found.stderr < 0.1 * second_order


@pytest.mark.parametrize("sizes", [(5,), (3, 2)])
def test_tanh_network_with_its_taylor_prediction(sizes):
    risk = o2(sizes)
    found = ascent_sharpness(risk, SAM(0.05), second_order=True)
    assert found.value == pytest.approx(0.053091771721229586, rel=1e-10)
    assert found.taylor == pytest.approx(0.0531006086, abs=1e-9)
    assert ascent_sharpness(risk, SAM(0.2)).value == pytest.approx(0.21916109565006472, rel=1e-10)
    first = ascent_sharpness(risk, SAM(0.05))
    assert first.taylor == pytest.approx(0.05 * 1.0498120379672005, rel=1e-10)
    assert first.gradient_norm == pytest.approx(1.0498120379672005, rel=1e-10)
    assert first.length == pytest.approx(0.05, rel=1e-10)
    assert 1 - ascent_sharpness(risk, SAM(0.0)).error == pytest.approx(0.4)
    assert isinstance(first, Sharpness)


@pytest.mark.parametrize(("m", "value"), [(1, 1.5), (2, 1.1441228056), (4, 1.0)])
def test_linear_losses_rise_by_the_mean_gradient_norm(m, value):
    found = ascent_sharpness(linear_losses(), SAM(0.1), m)
    assert found.value == pytest.approx(0.1 * value, abs=1e-10)
    assert found.taylor == pytest.approx(found.value, rel=1e-10)
    assert found.gradient_norm == pytest.approx(value, abs=1e-9)
    assert found.draws == 4 // m


def test_standard_error_is_that_of_the_mean_over_chunks():
    found = ascent_sharpness(linear_losses(), SAM(1.0), 1)
    assert found.stderr == pytest.approx(np.std([1, 1, 1, 3], ddof=1) / 2, rel=1e-9)
    assert ascent_sharpness(linear_losses(), SAM(1.0), 4).stderr == 0.0


STEPS = [
    SAM(0.3),
    SAM(0.3, p=math.inf),
    SAM(0.3, p=1.0),
    SAM(0.3, p=3.0),
    SAM(0.3, normalise=False),
    *[
        SAM(0.3, metric=t, where=w)
        for t in (AbsWeight(0.01), FilterNorm(), TensorNorm())
        for w in ("both", "before", "after")
    ],
    SAM(0.3, p=math.inf, metric=ADAPTIVE, where="before"),
    SAM(0.3, p=math.inf, metric=ADAPTIVE, where="after"),
    SAM(0.3, metric=AbsWeight(0.1, scope="weights"), normalise=False),
    SAM(0.0),
]


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("m", [1, 4, 23])
def test_chunks_together_are_chunks_one_at_a_time(step, m, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 8 * 51 * 4)  # several blocks
    risk = network()
    found = ascent_sharpness(risk, step, m)
    rises = by_hand(risk, step, m)
    sizes = [min(m, 23 - i) for i in range(0, 23, m)]
    assert found.value == pytest.approx(np.average(rises, weights=sizes), rel=1e-9, abs=1e-13)
    slow = ascent_sharpness(risk, lambda theta, grad: step(theta, grad), m)  # not an AscentStep, so not together
    for name in ("value", "stderr", "length", "gradient_norm", "taylor", "error"):
        assert getattr(found, name) == pytest.approx(getattr(slow, name), rel=1e-9, abs=1e-13)


def test_together_is_the_path_that_is_taken(monkeypatch):
    def unreachable(*args):
        raise AssertionError("the loop was taken")

    monkeypatch.setattr(ascent, "_rise", unreachable)
    ascent_sharpness(network(24), SAM(0.1, metric=ADAPTIVE), 2)
    with pytest.raises(AssertionError, match="the loop"):
        ascent_sharpness(network(24), SAM(0.1, p=3.0), 2)


def test_models_that_vmap_refuses_take_the_loop():
    risk = network()
    predict = risk.predict

    def branching(theta, x):
        out = predict(theta, x)
        return out * 1.0 if float(out.detach().sum()) > 0 else out

    awkward = EmpiricalRisk(branching, risk.loss, risk.batches, risk.theta)
    plain = ascent_sharpness(risk, SAM(0.2), 3)
    assert ascent_sharpness(awkward, SAM(0.2), 3).value == pytest.approx(plain.value, rel=1e-10)


def test_attention_takes_the_fast_path(monkeypatch):
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            h = self.embed(x)
            return self.head(scaled_dot_product_attention(h, h, h).mean(1))

    g = torch.Generator().manual_seed(1)
    data = torch.randn(6, 5, 3, generator=g, dtype=F64), torch.tensor([0, 1, 1, 0, 0, 1])
    risk = EmpiricalRisk.from_model(Attention().to(F64), cross_entropy, data)
    expected = np.mean(by_hand(risk, SAM(0.1), 2))
    monkeypatch.setattr(ascent, "_rise", None)
    assert ascent_sharpness(risk, SAM(0.1), 2).value == pytest.approx(expected, rel=1e-9)


def test_m_sharpness_does_not_depend_on_the_batches_but_on_the_partition():
    risk = network(24)
    x, y = risk.batches[0]
    split = risk.on(list(zip(x.split((7, 17)), y.split((7, 17)), strict=True)))
    assert ascent_sharpness(split, SAM(0.1), 4).value == pytest.approx(ascent_sharpness(risk, SAM(0.1), 4).value)
    seeds = [ascent_sharpness(risk, SAM(0.1), 4, generator=torch.Generator().manual_seed(s)).value for s in (1, 1, 2)]
    assert seeds[0] == seeds[1]
    assert seeds[0] != seeds[2]
    everything = [ascent_sharpness(risk, SAM(0.1), m, generator=torch.Generator().manual_seed(1)) for m in (24, None)]
    assert everything[0].value == pytest.approx(everything[1].value, rel=1e-12)


def test_error_is_taken_at_the_perturbed_point():
    risk = network()
    wrong = []
    step = SAM(2.0)
    for chunk in risk.chunks(4):
        theta = displaced(risk.theta, step(risk.theta, chunk.gradient()))
        wrong += (chunk.outputs(theta).argmax(1) != chunk.targets()).tolist()
    found = ascent_sharpness(risk, step, 4)
    assert found.error == pytest.approx(np.mean(wrong))
    assert found.error > ascent_sharpness(risk, SAM(0.0), 4).error


def test_second_order_value_at_a_stationary_point():
    risk = at_rest((2.0, -1.0))
    with pytest.warns(RuntimeWarning, match="the gradient vanishes on 1 of 1 chunks"):
        plain = ascent_sharpness(risk, SAM(0.1))
    assert plain.value == pytest.approx(0.0180901699, abs=1e-9)
    assert plain.gradient_norm == 0.0
    with pytest.warns(RuntimeWarning, match="second-order"):
        adaptive = ascent_sharpness(risk, SAM(0.1, metric=ADAPTIVE))
    assert adaptive.value == pytest.approx(0.0619258240, abs=1e-9)
    with pytest.warns(RuntimeWarning, match="second-order"):
        before = ascent_sharpness(risk, SAM(0.1, metric=ADAPTIVE, where="before"))
    assert before.value == pytest.approx(0.0180901699, abs=1e-9)
    with pytest.warns(RuntimeWarning, match="on 2 of 2 chunks"):
        assert ascent_sharpness(risk, SAM(0.1), 1).value == pytest.approx(0.0180901699, abs=1e-9)
    with pytest.warns(RuntimeWarning, match="elsewhere it is 0"):
        assert ascent_sharpness(risk, SAM(0.1, p=math.inf)).value == 0.0
    assert ascent_sharpness(risk, SAM(0.1, normalise=False)).value == 0.0  # its step is zero by definition


def test_a_saddle_has_no_negative_second_order_value():
    theta = {"w": torch.zeros(2, dtype=F64)}
    risk = EmpiricalRisk(
        lambda t, x: -(t["w"] ** 2).sum().expand(len(x)), lambda out, _: out.mean(), [(torch.zeros(1), 0)], theta
    )
    with pytest.warns(RuntimeWarning):
        assert ascent_sharpness(risk, SAM(0.1)).value == 0.0


def test_adaptive_sharpness_is_invariant_to_rescaling_a_relu_network():
    g = torch.Generator().manual_seed(2)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).to(F64)
    data = torch.randn(12, 3, generator=g, dtype=F64), torch.randint(0, 2, (12,), generator=g)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.mul_(4)
        other[0].bias.mul_(4)
        other[2].weight.div_(4)
    a, b = (EmpiricalRisk.from_model(m, cross_entropy, data) for m in (model, other))
    for m in (None, 3):
        adaptive = [ascent_sharpness(r, SAM(0.3, metric=ADAPTIVE), m).value for r in (a, b)]
        assert adaptive[0] == pytest.approx(adaptive[1], rel=1e-9)
        plain = [ascent_sharpness(r, SAM(0.3), m).value for r in (a, b)]
        assert abs(plain[0] / plain[1] - 1) > 0.01
    averages = [
        average_sharpness(r, 0.1, metric=ADAPTIVE, generator=torch.Generator().manual_seed(4)).value for r in (a, b)
    ]
    assert averages[0] == pytest.approx(averages[1], rel=1e-9)


def test_average_has_the_stated_noise_and_common_random_numbers(generator):
    risk = network()
    found = average_sharpness(risk, 0.1, draws=50, generator=generator)
    assert found.length == pytest.approx(0.1 * math.sqrt(51), rel=0.1)
    assert 0 <= found.error <= 1
    again = [average_sharpness(risk, 0.1, draws=3, generator=torch.Generator().manual_seed(s)).value for s in (1, 1, 2)]
    assert again[0] == again[1]
    assert again[0] != again[2]
    assert math.isnan(average_sharpness(risk, 0.1, draws=1, generator=generator).stderr)


def test_single_precision_and_a_given_point():
    wide, narrow = network(), network(dtype=torch.float32)
    theta = {name: 0.5 * t for name, t in wide.theta.items()}
    for m in (None, 1):
        a = ascent_sharpness(wide, SAM(0.1), m, theta=theta)
        b = ascent_sharpness(narrow, SAM(0.1), m, theta={k: t.float() for k, t in theta.items()})
        assert a.value == pytest.approx(ascent_sharpness(wide.at(theta), SAM(0.1), m).value)
        assert a.value == pytest.approx(b.value, rel=1e-4)
        assert a.value != pytest.approx(ascent_sharpness(wide, SAM(0.1), m).value, rel=1e-3)


def test_a_diverged_point_gives_nan_and_no_crash(generator):
    risk = network()
    theta = {name: t * math.nan for name, t in risk.theta.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for m in (None, 1):
            assert math.isnan(ascent_sharpness(risk, SAM(0.1), m, theta=theta).value)
        assert math.isnan(average_sharpness(risk, 0.1, theta=theta, generator=generator).value)


def test_nothing_changes_behind_the_callers_back(generator):
    risk = network()
    before, random = {k: t.clone() for k, t in risk.theta.items()}, torch.random.get_rng_state()
    ascent_sharpness(risk, SAM(0.1), 2, generator=generator)
    ascent_sharpness(risk, SAM(0.1), second_order=True)
    average_sharpness(risk, 0.1, generator=generator)
    for name, t in risk.theta.items():
        assert torch.equal(t, before[name])
        assert not t.requires_grad
    assert torch.equal(torch.random.get_rng_state(), random)


def test_a_perturbation_may_move_a_part_of_the_parameters():
    risk = network()

    def head_only(theta, grad):
        part = {name: g for name, g in grad.items() if name.startswith("2.")}
        return SAM(0.1)(theta, part)

    found = ascent_sharpness(risk, head_only, second_order=True)
    assert found.length == pytest.approx(0.1)
    slope = norm({name: g for name, g in risk.gradient().items() if name.startswith("2.")})
    assert_close(found.taylor, 0.1 * float(slope), rtol=0.2, atol=0)
    assert found.value == pytest.approx(found.taylor, rel=0.01)  # the third order


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda _: ascent_sharpness(network(), SAM(0.1), 24), "`m` must be between 1 and the number of examples 23"),
        (lambda _: ascent_sharpness(network(), SAM(0.1), 0), "`m` must be between 1"),
        (lambda g: average_sharpness(network(), -1.0, generator=g), "`rho` must be a finite radius >= 0, got -1.0"),
        (lambda g: average_sharpness(network(), 0.1, draws=0, generator=g), "`draws` must be at least 1 pair, got 0"),
    ],
)
def test_refused_arguments(generator, call, message):
    with pytest.raises(ValueError, match=message):
        call(generator)


def test_unknown_noise_is_refused(generator):
    with pytest.raises(ValueError, match="`noise` must be 'gaussian' or 'uniform', got 'cauchy'"):
        inspect.unwrap(average_sharpness)(network(), 0.1, noise="cauchy", generator=generator)


@pytest.mark.parametrize("name", ["conv:recalibrate", "language"])
def test_a_vanishing_step_raises_nothing_in_other_modes_and_under_weights(name):
    risk = case(name).risk()
    assert abs(ascent_sharpness(risk, AscentStep(rho=1e-9)).value) < 1e-8
    assert abs(average_sharpness(risk, 1e-9, draws=2, generator=torch.Generator().manual_seed(0)).value) < 1e-8
