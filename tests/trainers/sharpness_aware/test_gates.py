"""When a step is perturbed: windows, periods, coins, AE-SAM's rule; and the radius as a function of the step."""

import math
from itertools import pairwise

import pytest
import torch
from quadratics import LAYOUTS, NEAR, Quadratic, TwoExamples, closure_of, on_q, q_walk, tensor, walk
from torch.testing import assert_close

from trainers import make_optimizer
from trainers.sharpness_aware.gates import (
    AdaptiveNorm,
    All,
    Always,
    Bernoulli,
    EveryK,
    Gate,
    Mode,
    Never,
    Window,
    joined,
)
from trainers.sharpness_aware.moment import Moment
from trainers.sharpness_aware.radii import CosineRadius, LinearRamp, LrMultiple, ProportionalRadius, StartJump

PLAIN, PERTURBED, REUSE = Mode.PLAIN, Mode.PERTURBED, Mode.REUSE


def at(t):
    return Moment(t, 0.1, 0.5, {})


def modes(gate, steps):
    return [gate(at(t), 1.0) for t in range(steps)]


def test_windows_periods_always_and_never():
    assert modes(Window(2, 4), 5) == [PLAIN, PLAIN, PERTURBED, PERTURBED, PLAIN]
    assert modes(Window(2), 4) == [PLAIN, PLAIN, PERTURBED, PERTURBED]
    assert modes(EveryK(3), 5) == [PERTURBED, PLAIN, PLAIN, PERTURBED, PLAIN]
    assert modes(EveryK(3, REUSE, 1), 5) == [REUSE, PERTURBED, REUSE, REUSE, PERTURBED]
    assert modes(EveryK(1), 3) == [PERTURBED] * 3
    assert modes(Always(), 2) == [PERTURBED] * 2
    assert modes(Never(), 2) == [PLAIN] * 2


def test_gates_join_plain_first_then_reuse():
    assert modes(joined(Window(1), EveryK(2, REUSE, 1)), 4) == [PLAIN, PERTURBED, REUSE, PERTURBED]
    assert isinstance(joined(), Always)
    assert isinstance(joined(Always(), Window(1)), Window)
    both = joined(Window(1), AdaptiveNorm(lambda1=0, lambda2=0))
    assert isinstance(both, All)
    assert both.needs_gradient


# -- AE-SAM ----------------------------------------------------------------------------------------------------------


def test_aesam_follows_the_oracle():
    gate = AdaptiveNorm(0.9, 0.0, 0.0)
    means, variances, decisions = [], [], []
    for t, s in enumerate([4.0, 1.0, 9.0, 1.0]):
        decisions.append(gate(at(t), s) is PERTURBED)
        means.append(gate.mean)
        variances.append(gate.variance)
    assert means == pytest.approx([0.4, 0.46, 1.314, 1.2826], rel=1e-9)
    assert variances == pytest.approx([1.296, 1.19556, 6.983464, 6.293104], rel=1e-6)
    assert decisions == [True, True, True, False]


def test_aesam_compares_the_squared_norm_of_the_whole_gradient():
    # |g|² = 25 on Q: with delta 0.9 the first mean is 2.5 and the first variance 0.1 · 22.5²
    for layout in LAYOUTS:
        held = on_q("aesam", layout, rho=0.5, lambda1=0.0, lambda2=0.0)
        walk(held)
        gate = held.optimizer.parts.gate
        assert (gate.mean, gate.variance) == pytest.approx((2.5, 0.1 * 22.5**2), rel=1e-9)
        assert_close(held.us[0], tensor(3.3, 5.6), **NEAR)
        assert held.optimizer.last.passes == 2  # the decision's gradient is the ascent's


@pytest.mark.parametrize("sizes", [[2, 1], None])
def test_aesam_decides_on_the_mean_over_chunks_as_over_ranks(sizes):
    model = TwoExamples()
    optimizer = make_optimizer("aesam", model, lr=0.1, rho=0.5, lambda1=0.0, lambda2=0.0)
    optimizer.step([closure_of(model, lambda r=r: model(r)) for r in ([0, 1], [2])], sizes=sizes)
    share = 2 / 3 if sizes else 1 / 2
    squared = share * 8.5 + (1 - share) * 5.0  # |(1.5, 2.5)|² and |(2, -1)|²
    assert optimizer.parts.gate.mean == pytest.approx(0.1 * squared, rel=1e-9)
    assert optimizer.last.passes == 4


def test_aesam_asks_more_at_the_start_and_less_at_the_end():
    gate = AdaptiveNorm(0.9, -1.0, 1.0, total=10)
    assert [gate.threshold(t) for t in (0, 5, 10, 99)] == [1.0, 0.0, -1.0, -1.0]
    assert AdaptiveNorm(0.9, -math.inf, -math.inf)(at(0), 0.0) is PERTURBED
    shut = AdaptiveNorm(0.9, math.inf, math.inf)
    assert [shut(at(t), 4.0) for t in range(3)] == [PLAIN] * 3


def test_aesam_can_correct_the_bias_of_its_first_means():
    gate = AdaptiveNorm(0.9, 0.0, 0.0, correct=True)
    assert gate(at(0), 4.0) is PERTURBED  # s = corrected mean
    assert gate(at(1), 3.9) is PLAIN  # (0.9 · 0.4 + 0.39)/0.19 = 3.947
    assert AdaptiveNorm(0.9, 0.0, 0.0)(at(0), 0.1) is PERTURBED


def test_one_overflow_does_not_poison_the_means():
    gate = AdaptiveNorm(0.9, 0.0, 0.0)
    gate(at(0), 4.0)
    for bad in (math.inf, math.nan):
        assert gate(at(1), bad) is PLAIN
    assert (gate.mean, gate.seen) == (pytest.approx(0.4), 1)


# -- coins -----------------------------------------------------------------------------------------------------------


def test_a_coin_lands_with_its_probability_and_depends_on_seed_and_step_alone():
    first, again, other = (Bernoulli(0.3, seed=s) for s in (5, 5, 6))
    draws = modes(first, 4000)
    rate = draws.count(PERTURBED) / 4000
    assert rate == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 4000))
    assert draws == modes(again, 4000)
    assert [first(at(t)) for t in (7, 3, 7)] == [draws[7], draws[3], draws[7]]  # no memory
    agree = sum(a == b for a, b in zip(draws, modes(other, 4000), strict=True)) / 4000
    assert agree == pytest.approx(0.58, abs=0.04)  # 0.3² + 0.7²
    runs = sum(a == b for a, b in pairwise(draws)) / 3999
    assert runs == pytest.approx(0.58, abs=0.04)  # neighbours are unrelated


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_a_certain_coin(p):
    assert set(modes(Bernoulli(p), 300)) == {PERTURBED if p else PLAIN}


def test_shapes_of_the_probability():
    def values(shape):
        return [Bernoulli(0.2, 0.8, shape, 0.5, 100).probability(t) for t in (0, 25, 50, 100, 120)]

    assert values("constant") == [0.2] * 5
    assert values("piecewise") == [0.2, 0.2, 0.8, 0.8, 0.8]
    assert values("linear") == pytest.approx([0.2, 0.35, 0.5, 0.8, 0.8])
    assert values("cosine") == pytest.approx([0.2, 0.2 + 0.6 * (1 - math.cos(math.pi / 4)) / 2, 0.5, 0.8, 0.8])


# -- around a method -------------------------------------------------------------------------------------------------


def test_plain_and_perturbed_steps_share_one_base_optimizer():
    # late-phase SAM: momentum goes on across the edge of the window
    held = on_q("sam", momentum=0.9, rho=0.5, window=(2, 4))
    A, w, v = tensor(1.0, 4.0), tensor(3.0, 1.0), torch.zeros(2, dtype=torch.float64)
    for t in range(6):
        g = A * w
        u = A * (w + 0.5 * g / g.norm()) if 2 <= t < 4 else g
        v = 0.9 * v + u
        w = w - 0.1 * v
        walk(held)
        assert_close(held.w, w, rtol=1e-11, atol=1e-12)
        last = held.optimizer.last
        assert (last.perturbed, last.rho) == ((True, 0.5) if 2 <= t < 4 else (False, 0.0))
        assert last.passes == (2 if 2 <= t < 4 else 1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"gate": "periodic", "gate_options": {"k": 3}}, "pnnpnn"),
        ({"gate": "periodic", "gate_options": {"k": 3}, "window": (1, 5)}, "npnnpn"),
        ({"gate": EveryK(2)}, "pnpnpn"),
        ({"gate": "random", "gate_options": {"p": 1.0}}, "pppppp"),
        ({"gate": "random", "gate_options": {"p": 0.0}}, "nnnnnn"),
        ({"gate": "adaptive", "gate_options": {"lambda1": -math.inf, "lambda2": -math.inf}}, "pppppp"),
        ({"window": (4, None)}, "nnnnpp"),
    ],
)
@pytest.mark.parametrize("method", ["sam", "gsam", "fsam"])
def test_a_gate_by_name_around_any_method(method, options, expected):
    held = on_q(method, rho=0.5, **options)
    seen = ""
    for _ in expected:
        walk(held)
        seen += "p" if held.optimizer.last.perturbed else "n"
    assert seen == expected


def test_looksam_starts_its_period_where_its_window_begins():
    held = on_q("looksam", rho=0.5, k=2, window=(3, None))
    seen = [walk(held).optimizer.last.mode for _ in range(6)]
    assert seen == [PLAIN, PLAIN, PLAIN, PERTURBED, REUSE, PERTURBED]


def test_a_method_at_random_steps_is_itself_at_p_1_and_the_base_at_p_0():
    ws = torch.stack(q_walk("sam", count=4, rho=0.5).ws)
    assert torch.equal(torch.stack(q_walk("sssam", count=4, rho=0.5, p=1.0).ws), ws)
    assert torch.equal(torch.stack(q_walk("aesam", count=4, rho=0.5, lambda1=-math.inf, lambda2=-math.inf).ws), ws)
    plain = torch.stack(q_walk("sgd", count=4).ws)
    assert torch.equal(torch.stack(q_walk("sssam", count=4, rho=0.5, p=0.0).ws), plain)


def test_grst_has_sams_expectation():
    # u on perturbed steps, weighted by p, and g elsewhere: p (g + (g_p - g)/p) + (1 - p) g = g_p
    p = 0.25
    perturbed = next(
        held.us[0] for seed in range(50) if (held := q_walk("grst", rho=0.5, p=p, seed=seed)).optimizer.last.perturbed
    )
    assert_close(p * perturbed + (1 - p) * tensor(3.0, 4.0), tensor(3.3, 5.6), **NEAR)


def test_the_first_pass_of_a_gate_serves_another_ascent_objective_and_reading_of_the_loss():
    held = on_q(
        "gsam", rho=0.5, ascent="obf", gate="adaptive", gate_options={"lambda1": -math.inf, "lambda2": -math.inf}
    )
    closure = closure_of(held.model, held.model)
    loss = held.optimizer.step(closure, ascent=closure)
    assert float(loss) == pytest.approx(6.5)
    assert held.optimizer.last.clean_loss == pytest.approx(6.5)
    assert_close((tensor(3.0, 1.0) - held.w) / 0.1, tensor(3.109136095, 5.712473373), **NEAR)


@pytest.mark.parametrize(("method", "passes"), [("randsam", 2), ("tracesam", 3), ("msam", 2), ("s2sam", 2)])
def test_the_gates_first_pass_is_not_taken_again(method, passes):
    # the decision has cost one pass at the clean weights: methods that want its loss or gradient find them there
    options = {"momentum": 0.9} if method == "msam" else {}
    held = on_q(method, rho=0.5, gate="adaptive", gate_options={"lambda1": -math.inf, "lambda2": -math.inf}, **options)
    walk(held)
    assert held.optimizer.last.passes == passes
    assert held.optimizer.last.clean_loss == pytest.approx(6.5)


# -- radii -----------------------------------------------------------------------------------------------------------


def test_radii():
    lr = ProportionalRadius(0.6, 0.1, 1.6, 0.016)
    assert [lr(x) for x in (1.6, 0.016, 0.808)] == pytest.approx([0.6, 0.1, 0.35])
    assert ProportionalRadius(0.6, 0.0, 1.6, 0.016)(0.0) == 0.0  # clamped during warm-up
    assert ProportionalRadius(0.6, 0.1, 0.1, 0.1)(0.1) == 0.6
    assert LrMultiple(2.0)(0.3) == pytest.approx(0.6)
    assert [LinearRamp(0.5, 0.1, 4)(0.1, t) for t in (0, 2, 4, 9)] == pytest.approx([0.1, 0.3, 0.5, 0.5])
    assert [StartJump(0.5, 3)(0.1, t) for t in (0, 2, 3, 9)] == [0.0, 0.0, 0.5, 0.5]
    assert [CosineRadius(0.5, 0.1, 4)(0.1, t) for t in (0, 2, 4, 9)] == pytest.approx([0.5, 0.3, 0.1, 0.1])


def test_the_schedule_counts_all_steps_plain_ones_too():
    held = on_q("sam", rho=0.5, rho_schedule="linear", rho_steps=4, window=(2, None))
    seen = [walk(held).optimizer.last.rho for _ in range(5)]
    assert seen == pytest.approx([0.0, 0.0, 0.25, 0.375, 0.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": (3, 2)}, r"`window` must be \(start, end\)"),
        ({"window": (-1, 2)}, r"`window` must be \(start, end\)"),
        ({"gate": "periodical"}, "`gate` must be one of.*Did you mean 'periodic'"),
        ({"gate": "periodic", "gate_options": {"p": 0.5}}, "gate 'periodic' has no option `p`"),
        ({"gate": "periodic", "gate_options": {"k": 0}}, "`k` must be at least 1"),
        ({"gate": "random", "gate_options": {"p": 1.5}}, r"`p` must be in \[0, 1\]"),
        ({"gate": "random", "gate_options": {"shape": "linear"}}, "`shape` 'linear' needs the length of the run"),
        ({"gate": "random", "gate_options": {"shape": "sine"}, "total_steps": 9}, "`shape` must be"),
        ({"gate": "adaptive"}, "pass `total_steps=`"),
        ({"gate": "adaptive", "gate_options": {"delta": 1.0}}, r"`delta` must be in \[0, 1\)"),
        ({"gate": "adaptive", "gate_options": {"lambda1": math.nan}}, "`lambda1` and `lambda2` must be numbers"),
        ({"gate_options": {"k": 3}}, "`gate_options`"),
        ({"rho_schedule": "cosine"}, "`rho_schedule` 'cosine' needs the length of the run"),
        ({"rho_schedule": "linaer"}, "`rho_schedule` must be one of.*Did you mean 'linear'"),
        ({"rho_schedule": "linear"}, "pass `rho_steps=`"),
        ({"rho_schedule": "start_jump"}, "pass `rho_steps=`"),
        ({"rho_schedule": "lr", "rho_min": -0.1}, "`rho_min` must be a finite radius"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer("sam", Quadratic(), lr=0.1, rho=0.5, **options)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("looksam", {"k": 0}, "`k` must be at least 1"),
        ("sssam", {"p": -0.1}, r"`p` must be in \[0, 1\]"),
        ("sssam", {"shape": "cosine"}, "needs the length of the run"),
        ("grst", {"p": 0.0}, r"`p` must be in \(0, 1\]"),
        ("aesam", {}, "pass `total_steps=`"),
        ("aesam", {"lambda1": math.nan}, "`lambda1` and `lambda2` must be numbers"),
        ("aosam", {}, "pass `total_steps=`"),
    ],
)
def test_methods_with_a_gate_refuse(method, options, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(method, Quadratic(), lr=0.1, rho=0.5, **options)


def test_a_gate_must_decide():
    with pytest.raises(NotImplementedError):
        Gate()(at(0))
