"""Which weights a perturbation may move: SAM-ON, sparse SAM's two masks, muP²."""

import math
from fractions import Fraction

import pytest
import torch
from quadratics import (
    F64,
    LAYOUTS,
    NEAR,
    FixedMask,
    Quadratic,
    TwoExamples,
    closure_of,
    cut,
    on_q,
    q_walk,
    tensor,
    walk,
    with_part,
)
from torch import nn
from torch.testing import assert_close

from landscape.perturbation import AscentStep
from trainers import make_optimizer
from trainers.sharpness_aware.masks import DynamicMask, normalisation_parameters
from trainers.sharpness_aware.methods import layers
from trainers.sharpness_aware.moment import Moment

every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def bits(*values):
    return torch.tensor(values, dtype=torch.bool)


def named(model):
    return {n: p.detach() for n, p in model.named_parameters()}


def flat(params):
    return torch.cat([t.reshape(-1) for t in params.values()])


# -- SAM-ON ----------------------------------------------------------------------------------------------------------


@every_layout
def test_a_mask_before_the_norm_and_one_after_it(layout):
    for in_norm, eps, u in ((True, (0.0, 0.5), (3.0, 6.0)), (False, (0.0, 0.4), (3.0, 5.6))):
        held = on_q("sam", layout, rho=0.5)
        with_part(held.optimizer, mask=FixedMask((0.0, 1.0), in_norm=in_norm))
        walk(held)
        assert_close(held.displacement(), tensor(*eps), **NEAR)
        assert_close(held.us[0], tensor(*u), **NEAR)


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize(
    ("options", "u"),
    [
        ({"layers": "parts.1"}, (3.0, 6.0)),
        ({"layers": "parts.0", "complement": True}, (3.0, 6.0)),
        ({"layers": "parts.*"}, (3.3, 5.6)),
        ({"layers": "parts"}, (3.3, 5.6)),
        ({"layers": "parts.*", "p": math.inf}, (3.5, 6.0)),
        ({"layers": "parts.*", "adaptive": "both"}, (4.370717323, 4.812276932)),
    ],
)
def test_sam_on_normalises_over_what_it_chose_and_updates_everything(options, u, layout):
    assert_close(q_walk("sam_on", layout, rho=0.5, **options).us[0], tensor(*u), **NEAR)


class Scale(nn.Module):
    """A normalisation layer of one's own, told by its name."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(2))


class MyRMSNorm(Scale):
    pass


def test_normalisation_layers_are_told_by_their_class_nested_ones_included():
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(1, 2, 1),
            "bn": nn.BatchNorm2d(2),
            "in": nn.Sequential(nn.LayerNorm(2), nn.Sequential(nn.GroupNorm(1, 2), nn.InstanceNorm2d(2, affine=True))),
            "rms": nn.RMSNorm(2),
            "bare": nn.LayerNorm(2, elementwise_affine=False),
            "plain": Scale(),
            "mine": MyRMSNorm(),
            "abnormal": nn.Linear(2, 2),
        }
    )  # fmt: skip
    model["bn"].bias.requires_grad_(False)
    layers_found = {n.rpartition(".")[0] for n in normalisation_parameters(model)}
    assert layers_found == {"bn", "in.0", "in.1.0", "in.1.1", "rms", "mine"}
    assert "bn.bias" in normalisation_parameters(model)  # frozen as it is: it is perturbed once it is trained


def test_sam_on_perturbs_the_normalisation_layers_of_a_network_alone():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, generator=g, dtype=F64)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1)).to(F64)
    start, seen = {n: p.detach().clone() for n, p in model.named_parameters()}, []

    def closure():
        model.zero_grad()
        seen.append({n: p.detach() - start[n] for n, p in model.named_parameters()})
        loss = model(x).square().mean()
        loss.backward()
        return loss

    make_optimizer("sam_on", model, lr=0.1, rho=0.5).step(closure)
    moved = {n for n, t in seen[1].items() if t.any()}
    assert moved == {"1.weight", "1.bias"}
    assert float(flat(seen[1]).norm()) == pytest.approx(0.5, rel=1e-9)
    assert all(not torch.equal(p, start[n]) for n, p in model.named_parameters())  # every weight is updated


def test_sam_on_without_anything_to_perturb():
    with pytest.raises(ValueError, match="`layers` chooses no parameter"):
        make_optimizer("sam_on", Quadratic(), lr=0.1)
    with pytest.raises(ValueError, match="`layers` has 'nothing'"):
        make_optimizer("sam_on", Quadratic(), lr=0.1, layers="nothing")


# -- SSAM ------------------------------------------------------------------------------------------------------------


def sparse(method, layout, mask, **options):
    held = on_q(method, layout, rho=0.5, total_steps=10, steps_per_epoch=100, **options)
    held.optimizer.parts.mask.mask = {n: t.bool() for n, t in cut(tensor(*mask), named(held.model)).items()}
    held.optimizer.reference = lambda: ([closure_of(held.model, held.model)], None)
    return held


@every_layout
@pytest.mark.parametrize("method", ["ssam_f", "ssam_d"])
def test_ssam_keeps_the_norm_of_the_whole_gradient(method, layout):
    held = walk(sparse(method, layout, (0.0, 1.0)))
    assert_close(held.displacement(), tensor(0.0, 0.4), **NEAR)
    assert_close(held.us[0], tensor(3.0, 5.6), **NEAR)
    assert held.optimizer.last.length == pytest.approx(0.4, rel=1e-9)


def reference_of(model, rows=(0, 1)):
    return lambda: ([closure_of(model, lambda i=i: model([i])) for i in rows], None)


def test_ssam_f_sums_squared_gradients_of_single_examples():
    model = TwoExamples()
    optimizer = make_optimizer("ssam_f", model, lr=1e-300, rho=0.5, sparsity=0.5, steps_per_epoch=1)
    optimizer.reference = reference_of(model)
    squares = optimizer._evaluation.reference_mean(squares=True)["w"]
    assert_close(squares, tensor(9.0, 17.0), **NEAR)
    optimizer.step(closure_of(model, lambda: model([0, 1])))
    assert optimizer.last.length == 0  # the first mask is all zero: a plain step
    assert torch.equal(optimizer.parts.mask.mask["w"], bits(False, True))
    optimizer.step(closure_of(model, lambda: model([0, 1])))
    assert optimizer.last.length == pytest.approx(0.5 * 2.5 / math.hypot(1.5, 2.5), rel=1e-9)


def test_ssam_f_updates_after_the_step_at_the_new_weights_and_at_its_cadence():
    model = TwoExamples()
    optimizer = make_optimizer("ssam_f", model, lr=0.5, rho=0.5, steps_per_epoch=2, update_epochs=1.5)
    seen = []

    def reference():
        seen.append((optimizer.steps_taken, model.w.detach().clone()))
        return reference_of(model)()

    optimizer.reference = reference
    ws = []
    for _ in range(7):
        optimizer.step(closure_of(model, lambda: model([0, 1])))
        ws.append(model.w.detach().clone())
    assert [t for t, _ in seen] == [1, 4, 7]
    for t, w in seen:
        assert torch.equal(w, ws[t - 1])


@pytest.mark.parametrize("options", [{"window": (3, None)}, {"rho_schedule": "start_jump", "rho_steps": 3}])
def test_a_ssam_f_that_starts_late_gets_its_mask_after_its_first_perturbed_step(options):
    # with an all-zero mask it would be the base optimizer, at the price of SAM, until the cadence came round
    model = TwoExamples()
    optimizer = make_optimizer("ssam_f", model, lr=0.1, rho=0.5, steps_per_epoch=10, **options)
    optimizer.reference = reference_of(model)
    for _ in range(5):
        optimizer.step(closure_of(model, lambda: model([0, 1])))
    assert optimizer.last.length > 0


def test_ssam_f_reads_running_statistics_but_never_moves_them():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).to(F64)
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    optimizer = make_optimizer("ssam_f", model, lr=0.1, rho=0.5, steps_per_epoch=1, update_epochs=1.0)
    optimizer.reference = lambda: ([closure_of(model, lambda: model(x).mean())] * 3, None)
    for n in (1, 2):
        optimizer.step(closure_of(model, lambda: model(x).square().mean()))
        assert int(model[1].num_batches_tracked) == n


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("drop", ["gradient", "weight", "random"])
@pytest.mark.parametrize("grow", ["gradient", "weight", "random"])
def test_ssam_d_keeps_the_number_of_live_entries(sparsity, drop, grow):
    g = torch.Generator().manual_seed(4)
    mask = DynamicMask(sparsity, 1, g, 0.7, drop, grow, total=20)
    theta = {"a": torch.randn(7, 5, generator=g), "b": torch.randn(11, generator=g)}
    live = 46 - math.ceil(sparsity * 46)
    before = None
    for t in range(20):
        moment = Moment(t, 0.1, 0.5, theta)
        grad = {n: torch.randn(w.shape, generator=g) for n, w in theta.items()}
        grad["b"].zero_()  # many ties
        mask(moment, grad)
        mask.after_ascent(moment, grad)
        now = flat(mask.mask)
        assert int(now.sum()) == live
        before = now
    assert before is not None


def test_ssam_d_drops_the_least_and_revives_only_what_was_dead():
    theta = {"w": tensor(*range(1, 11))}
    mask = DynamicMask(0.4, 1, torch.Generator(), 1.0, "gradient", "weight", total=4)
    mask.mask = {"w": bits(1, 1, 1, 1, 1, 1, 0, 0, 0, 0)}
    grad = {"w": tensor(6, 5, 4, 3, 2, 1, 9, 9, 9, 9)}
    mask.after_ascent(Moment(2, 0.1, 0.5, theta), grad)  # halfway: rate 1/2 (1 + cos(pi/2)) = 1/2
    assert torch.equal(mask.mask["w"], bits(1, 1, 1, 0, 0, 0, 0, 1, 1, 1))
    mask.after_ascent(Moment(4, 0.1, 0.5, theta), grad)  # at the end the rate is zero
    assert torch.equal(mask.mask["w"], bits(1, 1, 1, 0, 0, 0, 0, 1, 1, 1))


def test_ssam_d_still_uses_the_old_mask_in_the_step_that_renews_it():
    held = sparse("ssam_d", "one", (1.0, 0.0), update_epochs=0.01, drop_rate=1.0, drop="random", grow="random")
    walk(held)  # t = 0: the rate is 1, so the live entry is dropped and the dead one revived
    assert_close(held.displacement(), tensor(0.3, 0.0), **NEAR)
    assert torch.equal(held.optimizer.parts.mask.mask["parts.0"], bits(False, True))


@pytest.mark.parametrize("how", ["step", "accumulate"])
def test_ssam_d_renews_its_mask_once_a_step_however_many_chunks(how, monkeypatch):
    calls = []
    real = DynamicMask.after_ascent
    monkeypatch.setattr(DynamicMask, "after_ascent", lambda self, m, g: (calls.append(m.t), real(self, m, g)))
    model = TwoExamples()
    optimizer = make_optimizer("ssam_d", model, lr=0.1, rho=0.5, total_steps=9, steps_per_epoch=1, update_epochs=1.0)
    closures = [closure_of(model, lambda i=i: model([i])) for i in (0, 1, 2)]
    if how == "step":
        optimizer.step(closures)
    else:
        for closure in closures:
            optimizer.accumulate(closure, size=1)
        optimizer.step()
    assert calls == [0]


def test_ssam_d_scores_weights_where_they_are_clean():
    held = sparse("ssam_d", "one", (1.0, 0.0), update_epochs=0.01, drop="weight", grow="weight")
    seen = []
    mask = held.optimizer.parts.mask
    real = mask._score
    mask._score = lambda kind, moment, *more: seen.append(flat(moment.theta).clone()) or real(kind, moment, *more)
    walk(held)
    assert seen
    assert all(torch.equal(w, tensor(3.0, 1.0)) for w in seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, r"`sparsity` must be in \[0, 1\)"),
        ({"drop_rate": 1.5}, r"`drop_rate` must be in \[0, 1\]"),
        ({"total_steps": None}, "pass `total_steps=`"),
        ({"steps_per_epoch": None}, "pass `steps_per_epoch=`"),
    ],
)
def test_ssam_d_refuses(options, message):
    given = {"total_steps": 10, "steps_per_epoch": 2} | options
    with pytest.raises(ValueError, match=message):
        make_optimizer("ssam_d", Quadratic(), lr=0.1, **given)


# -- muP² ------------------------------------------------------------------------------------------------------------


class ByCoordinate:
    """T = √s for s = (2, 1/2) by coordinate, however the coordinates are stored."""

    def __init__(self, power):
        self.power = power

    def __call__(self, theta):
        return cut(tensor(2.0, 0.5) ** self.power, theta)


@every_layout
def test_mup2_on_the_quadratic(layout):
    held = on_q(
        "mup2", layout, rho=0.5, base_shapes={n: p.shape for n, p in Quadratic(layout != "one").named_parameters()}
    )
    with_part(held.optimizer, scaler=AscentStep(1.0, metric=ByCoordinate(0.5)))
    walk(held)
    assert_close(held.displacement(), tensor(0.588348405, 0.196116135), **NEAR)
    assert_close(held.us[0], tensor(3.588348405, 4.784464541), **NEAR)


@pytest.mark.parametrize(
    ("form", "eps"),
    [
        ("decoupled", (0.588348405, 0.196116135)),
        ("joint", (0.5 * 2**0.5 * 6 / 40**0.5, 0.5 * 2**0.5 * 2 / 40**0.5)),  # rho √r S g/|S g|, S g = (6, 2)
        ("layerwise", (0.5 * 2**0.5, 0.5 * 0.5**0.5)),
    ],
)
def test_the_forms_of_mup2(form, eps, monkeypatch):
    monkeypatch.setattr(layers, "width_ratios", lambda *_: {"parts.0": 2.0, "parts.1": 0.5})
    monkeypatch.setattr(layers, "_width_ratio", lambda *_: 2.0)
    held = q_walk("mup2", "two", rho=0.5, form=form, base_shapes={})
    assert_close(held.displacement(), tensor(*eps), **NEAR)


@every_layout
@pytest.mark.parametrize("form", ["decoupled", "joint"])
def test_mup2_at_the_base_width_is_sam(layout, form):
    shapes = {n: p.shape for n, p in Quadratic(layout != "one").named_parameters()}
    assert_close(q_walk("mup2", layout, rho=0.5, base_shapes=shapes, form=form).us[0], tensor(3.3, 5.6), **NEAR)


def mlp(width):
    return nn.ModuleDict(
        {
            "embed": nn.Embedding(10, width),
            "first": nn.Linear(7, width),
            "hidden": nn.Linear(width, width),
            "conv": nn.Conv2d(width, 2 * width, 3),
            "norm": nn.LayerNorm(width),
            "last": nn.Linear(width, 3),
        }
    )


@pytest.mark.parametrize(("wide", "narrow"), [(24, 8), (4, 8)])
def test_width_ratios_of_input_hidden_and_output_like_tensors(wide, narrow):
    shapes = {n: tuple(p.shape) for n, p in mlp(narrow).named_parameters()}
    r = Fraction(wide, narrow)
    got = layers.width_ratios(mlp(wide), shapes)
    expected = {
        "embed.weight": r, "first.weight": r, "first.bias": r, "hidden.weight": 1, "hidden.bias": r, "conv.weight": 1,
        "conv.bias": r, "norm.weight": r, "norm.bias": r, "last.weight": 1 / r, "last.bias": 1,
    }  # fmt: skip
    assert got == pytest.approx({n: float(v) for n, v in expected.items()}, rel=1e-12)


@pytest.mark.parametrize(("wide", "narrow"), [(24, 8), (4, 8)])
def test_the_joint_form_knows_the_width_of_a_narrower_model_too(wide, narrow):
    model = nn.Sequential(nn.Linear(7, wide), nn.ReLU(), nn.Linear(wide, 3)).to(F64)
    base = nn.Sequential(nn.Linear(7, narrow), nn.ReLU(), nn.Linear(narrow, 3))
    shapes = {n: tuple(p.shape) for n, p in base.named_parameters()}
    optimizer = make_optimizer("mup2", model, lr=0.1, rho=0.5, form="joint", base_shapes=shapes)
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=F64)
    optimizer.step(closure_of(model, lambda: model(x).square().mean()))
    assert optimizer.last.length == pytest.approx(0.5 * math.sqrt(wide / narrow), rel=1e-9)


def coordinate_check(method, width, **options):
    """RMS of what the perturbation of each layer does to a typical input of it, in a random network in muP."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(16, 32, generator=g), torch.randint(10, (16,), generator=g)
    model = nn.Sequential(
        nn.Linear(32, width, bias=False),
        nn.ReLU(),
        nn.Linear(width, width, bias=False),
        nn.ReLU(),
        nn.Linear(width, 10, bias=False),
    )
    with torch.no_grad():
        for i, std in ((0, 32**-0.5), (2, width**-0.5), (4, 1 / width)):
            model[i].weight.copy_(torch.randn(model[i].weight.shape, generator=g) * std)
    base = {"0.weight": (64, 32), "2.weight": (64, 64), "4.weight": (10, 64)}
    if method == "mup2":
        options["base_shapes"] = base
    start, moved = {n: p.detach().clone() for n, p in model.named_parameters()}, []
    inputs = []
    for i in (0, 2, 4):
        model[i].register_forward_hook(lambda _, args, __: inputs.append(args[0].detach()))

    def closure():
        model.zero_grad()
        moved.append({n: p.detach() - start[n] for n, p in model.named_parameters()})
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    make_optimizer(method, model, lr=0.1, rho=0.1, **options).step(closure)
    return [
        float((h @ moved[1][f"{i}.weight"].T).square().mean().sqrt()) for h, i in zip(inputs, (0, 2, 4), strict=False)
    ]


def test_the_effect_of_mup2_on_each_layer_does_not_depend_on_the_width():
    narrow, wide = (coordinate_check("mup2", width) for width in (64, 1024))
    for a, b in zip(narrow, wide, strict=True):
        assert b == pytest.approx(a, rel=0.35)  # 25 % between widths 64 and 2048 in the specification's own check
    narrow, wide = (coordinate_check("sam", width) for width in (64, 1024))
    assert wide[1] < 0.5 * narrow[1]  # plain SAM: the hidden layer fades, the output layer takes all
    assert wide[2] > 2 * narrow[2]


def test_mup2_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match=r"pass `base_shapes=.*configuration.*`base_model_options: "):
        make_optimizer("mup2", Quadratic(), lr=0.1)
    with pytest.raises(ValueError, match=r"`base_shapes` must have a shape of 1 dimensions for 'parts\.0'"):
        make_optimizer("mup2", Quadratic(), lr=0.1, base_shapes={})
