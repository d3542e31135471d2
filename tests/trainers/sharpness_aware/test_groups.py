"""Settings of parameter groups that the perturbation follows: `maximize`, and a radius of the group's own."""

import math

import pytest
import torch
import torch.nn.functional as F
from networks import PERTURBED, data, flat, needed, network
from quadratics import closure_of, tensor
from torch import nn
from torch.testing import assert_close

from trainers import METHODS, AscentObjective, Objective, make_optimizer, obf_loss
from trainers.sharpness_aware.bsam import BSAM

EXACT = {"rtol": 1e-12, "atol": 1e-14}
PASSES = [m for m in sorted(METHODS) if METHODS[m].rho is not None]
BESIDES = {"rsam", "bsam", "sampa", "egsam", "ogsam", "aosam", "deltasam"}  # move weights by more than multiples of rho


class Bowl(nn.Module):
    """L = Σ h_i w_i² / 2 over two parameters of one entry each, with h = (1, 4) and w = (3, 1)."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(tensor(3.0)), nn.Parameter(tensor(1.0))

    def forward(self):
        return self.a.square().sum() / 2 + 2 * self.b.square().sum()

    @property
    def w(self):
        return torch.cat([self.a.detach(), self.b.detach()])


def bowl_step(groups, method="sam", rho=0.5, steps=1, **options):
    """The gradient that the base optimizer gets, by the way that SGD of rate 1 goes."""
    model = Bowl()
    base = torch.optim.SGD([{"params": [model.a]} | groups[0], {"params": [model.b]} | groups[1]], lr=1.0)
    optimizer = make_optimizer(method, model, base, rho=rho, **options)
    for _ in range(steps):
        before = model.w
        optimizer.step(closure_of(model, model))
    return before - model.w, optimizer


# -- maximize --------------------------------------------------------------------------------------------------------


def trained(method, *, up, base, **options):
    """Weights and gaps after steps that maximise -L, or minimise L."""
    model = network(norm=nn.LayerNorm)
    loss = (lambda z, t: -F.cross_entropy(z, t)) if up else F.cross_entropy
    kinds = {"sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}), "adamw": (torch.optim.AdamW, {"lr": 0.01})}
    kind, given = kinds[base]
    given = {"grad_clip": 0.7, "diagnose": True} | needed(method, model) | options
    optimizer = make_optimizer(method, model, kind(model.parameters(), maximize=up, **kinds[base][1]), **given)
    (x, y), *_ = data(1)
    if optimizer.needs_reference:
        size = 1 if optimizer.needs_reference == "squares" else 4
        cuts = [slice(i, i + size) for i in range(0, 3 * size, size)]
        optimizer.reference = lambda: ([Objective(model, loss, x[c], y[c]) for c in cuts], [size] * 3)
    gaps = []
    for x, y in data(4):
        chunks = [slice(0, 12)] if optimizer.needs_previous else [slice(0, 5), slice(5, 12)]
        ascents = None
        if optimizer.parts.ascent == "obf":
            ascents = [AscentObjective(model, loss, x[c], y[c], ascent=obf_loss) for c in chunks]
        sizes = [c.stop - c.start for c in chunks]
        optimizer.step([Objective(model, loss, x[c], y[c]) for c in chunks], sizes=sizes, ascent=ascents)
        gaps.append(optimizer.last.gap)
    return flat(model), gaps, optimizer.last.cosine


VARIANTS = [(m, PERTURBED.get(m, {})) for m in sorted(METHODS) if m != "bsam"]
VARIANTS += [
    ("crsam", {"by_loss": True}),
    ("looksam", {"k": 2}),
    ("sam", {"steps": 3}),
    ("gsam", {"backup": "direction"}),
]


@pytest.mark.parametrize(("method", "options"), VARIANTS, ids=[f"{m} {o}" for m, o in VARIANTS])
def test_to_maximise_is_to_minimise_the_loss_times_minus_one(method, options):
    base = "sgd" if METHODS[method].base == "sgd" or method in ("looksam", "egsam") else "adamw"
    ends, gaps, cosines = zip(*(trained(method, up=up, base=base, **options) for up in (True, False)), strict=True)
    assert_close(ends[0], ends[1], **EXACT)
    assert gaps[0] == pytest.approx([-gap for gap in gaps[1]], rel=1e-9, abs=1e-12, nan_ok=True)  # in the loss's sign
    assert cosines[0] == pytest.approx(cosines[1], rel=1e-9, nan_ok=True)


def test_msam_moves_ahead_along_the_momentum_whichever_way_that_goes():
    walks = []
    for up in (True, False):
        model = Bowl()
        base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, maximize=up)
        optimizer = make_optimizer("msam", model, base, rho=0.5)
        for _ in range(3):
            optimizer.step(closure_of(model, lambda m=model, up=up: -m() if up else m()))
        walks.append(model.w)
    assert_close(*walks, **EXACT)


def test_between_its_calls_a_step_shows_the_gradient_in_the_sign_of_the_loss():
    model = Bowl()
    optimizer = make_optimizer("sam", model, torch.optim.SGD(model.parameters(), lr=1.0, maximize=True), rho=0.5)
    optimizer.evaluate(closure_of(model, model))
    # downhill in L is uphill in what is minimised: δ = -ρ g/‖g‖ with g = (3, 4)
    expected = tensor(3 - 0.3, 4 * (1 - 0.4))
    assert_close(torch.cat([model.a.grad, model.b.grad]), expected, **EXACT)
    optimizer.step()
    assert_close(model.w, tensor(3.0, 1.0) + expected, **EXACT)
    assert optimizer.last.gap < 0


def test_each_player_of_a_game_is_perturbed_against_its_own_aim():
    u, optimizer = bowl_step([{"maximize": True}, {}])
    # a is moved down, b up, with one norm over both; a then goes uphill
    assert_close(u, tensor(-(3 - 0.3), 4 * (1 + 0.4)), **EXACT)
    assert optimizer.last.length == pytest.approx(0.5, rel=1e-9)


@pytest.mark.parametrize(
    ("method", "options"),
    [("crsam", {"by_loss": True}), ("tracesam", {}), ("detsam", {}), ("frobsam", {}), ("esam", {})],
)
def test_methods_that_compare_losses_need_one_aim(method, options):
    with pytest.raises(ValueError, match="`maximize` in some parameter groups only"):
        bowl_step([{"maximize": True}, {}], method, **options)


def test_maximize_for_a_base_that_does_not_know_it():
    model = Bowl()
    base = BSAM([{"params": [model.a, model.b], "maximize": True}], 0.1, examples=10)
    with pytest.raises(ValueError, match="`maximize`, which BSAM does not know"):
        make_optimizer("bsam", model, base)


# -- a radius of the group's own -------------------------------------------------------------------------------------


def test_one_norm_over_all_groups_and_each_groups_own_radius():
    u, optimizer = bowl_step([{"rho": 0.2}, {"rho": 1.5}])
    assert_close(u, tensor(3 + 0.2 * 0.6, 4 * (1 + 1.5 * 0.8)), **EXACT)
    assert optimizer.last.length == pytest.approx(math.hypot(0.12, 1.2), rel=1e-9)
    assert optimizer.last.rho == 1.5


def test_a_group_without_a_radius_has_the_methods():
    u, _ = bowl_step([{"rho": 0.2}, {}], rho=0.5)
    assert_close(u, tensor(3 + 0.2 * 0.6, 4 * (1 + 0.5 * 0.8)), **EXACT)
    u, _ = bowl_step([{"rho": 0.7}, {"rho": 0.7}], rho=0.5)
    assert_close(u, bowl_step([{}, {}], rho=0.7)[0], **EXACT)
    u, _ = bowl_step([{"rho": 0.0}, {"rho": 0.0}], rho=0.5)
    assert torch.equal(u, tensor(3.0, 4.0))
    u, _ = bowl_step([{"rho": 0.3}, {}], rho=0.0)
    assert_close(u, tensor(3 + 0.3 * 0.6, 4.0), **EXACT)


def test_several_steps_of_ascent_stay_in_the_ball_of_the_groups():
    # each step in units of the group's radius: x = δ/ρ_group, projected on ‖x‖ <= 1
    x, radii, h, w = tensor(0.0, 0.0), tensor(0.2, 1.5), tensor(1.0, 4.0), tensor(3.0, 1.0)
    for _ in range(3):
        g = h * (w + radii * x)
        x = x + g / g.norm()
        x = x / max(1.0, float(x.norm()))
    model = Bowl()
    base = torch.optim.SGD([{"params": [model.a], "rho": 0.2}, {"params": [model.b], "rho": 1.5}], lr=1.0)
    optimizer = make_optimizer("sam", model, base, steps=3)
    optimizer.step(closure_of(model, model))
    assert_close(w - model.w, h * (w + radii * x), rtol=1e-9, atol=0)
    assert optimizer.last.length == pytest.approx(float((radii * x).norm()), rel=1e-9)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"rho_schedule": "linear", "rho_steps": 4}, [0.0, 0.25, 0.5]),
        ({"rho_schedule": "linear", "rho_steps": 4, "rho_min": 0.25}, [0.5, 0.625, 0.75]),
        ({"rho_schedule": "cosine", "total_steps": 4}, [1.0, (1 + math.cos(math.pi / 4)) / 2, 0.5]),
        ({"rho_schedule": "start_jump", "rho_steps": 2}, [0.0, 0.0, 1.0]),
        ({"rho_schedule": "lr_multiple"}, [1.0, 1.0, 1.0]),
    ],
)
def test_a_schedule_acts_on_the_radii_of_groups_too(schedule, expected):
    model = Bowl()
    base = torch.optim.SGD([{"params": [model.a], "rho": 0.2}, {"params": [model.b]}], lr=1.0)
    optimizer = make_optimizer("sam", model, base, rho=0.5, **schedule)
    for share in expected:
        with torch.no_grad():
            model.a.fill_(3.0), model.b.fill_(1.0)
        optimizer.step(closure_of(model, model))
        u = tensor(3.0, 1.0) - model.w
        assert_close(u, tensor(3 + 0.2 * share * 0.6, 4 * (1 + 0.5 * share * 0.8)), **EXACT)


def test_the_radius_of_a_group_may_change_at_any_time():
    model = Bowl()
    optimizer = make_optimizer("sam", model, torch.optim.SGD(model.parameters(), lr=0.0), rho=0.5)
    for rho in (0.5, 0.1, 0.0, 2.0):
        optimizer.param_groups[0]["rho"] = rho
        optimizer.step(closure_of(model, model))
        assert optimizer.last.length == pytest.approx(rho, rel=1e-9)
    state = optimizer.state_dict()
    other = make_optimizer("sam", model, torch.optim.SGD(model.parameters(), lr=0.0), rho=0.5)
    other.load_state_dict(state)
    other.step(closure_of(model, model))
    assert other.last.length == pytest.approx(2.0, rel=1e-9)


@pytest.mark.parametrize("method", PASSES)
def test_a_group_of_radius_zero_is_not_moved_or_its_radius_is_refused(method):
    model = network(norm=nn.LayerNorm)
    still = list(model[0].parameters())
    groups = [{"params": still, "rho": 0.0}, {"params": [*model[1].parameters(), *model[4].parameters()]}]
    base = BSAM(groups, 0.05, examples=60) if method == "bsam" else torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    options = needed(method, model) | PERTURBED.get(method, {}) | {"rho": 0.3}
    options.pop("examples", None)
    if method in BESIDES:
        with pytest.raises(ValueError, match="`rho` in a parameter group has no meaning for this method"):
            make_optimizer(method, model, base, **options)
        return
    optimizer = make_optimizer(method, model, base, **options)
    (x, y), *_ = data(1)
    size = 1 if optimizer.needs_reference == "squares" else 12
    one = [Objective(model, F.cross_entropy, x[:size], y[:size])]
    optimizer.reference = (lambda: (one, [size])) if optimizer.needs_reference else None
    lengths = []
    for x, y in data(3):
        start, seen = [p.detach().clone() for p in still], []

        def note(*_, start=start, seen=seen):
            if optimizer.steps_taken == len(lengths):  # not in passes over reference data after the step
                seen.append(max(float((p.detach() - s).abs().max()) for p, s in zip(still, start, strict=True)))

        handle = model.register_forward_pre_hook(note)
        other = AscentObjective(model, F.cross_entropy, x, y, ascent=obf_loss)
        optimizer.step(
            Objective(model, F.cross_entropy, x, y), ascent=other if optimizer.parts.ascent == "obf" else None
        )
        handle.remove()
        assert max(seen) == 0
        lengths.append(optimizer.last.length)
    assert max(lengths) > 0


@pytest.mark.parametrize("rho", [-0.1, math.nan, math.inf, "0.1"])
def test_an_impossible_radius_of_a_group(rho):
    with pytest.raises(ValueError, match="`rho` of parameter group 1 must be a finite radius >= 0"):
        bowl_step([{}, {"rho": rho}])


def test_a_radius_where_none_has_a_meaning():
    with pytest.raises(ValueError, match="`rho` in a parameter group has no meaning for a plain optimizer"):
        bowl_step([{"rho": 0.1}, {}], "sgd", rho=None)
    with pytest.raises(ValueError, match="follows the schedule of the method's own `rho`"):
        bowl_step([{"rho": 0.1}, {}], rho=0.0, rho_schedule="linear", rho_steps=3)


def test_a_decay_of_the_base_that_is_called_rho_is_no_radius():
    model = Bowl()
    optimizer = make_optimizer("sam", model, torch.optim.Adadelta(model.parameters(), lr=0.1, rho=0.9), rho=0.5)
    optimizer.step(closure_of(model, model))
    assert optimizer.last.length == pytest.approx(0.5, rel=1e-9)
