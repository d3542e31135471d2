"""The matrix of equivalences that every method must satisfy, on small networks with BatchNorm and dropout."""

import math

import pytest
import torch
import torch.nn.functional as F
from networks import (
    NO_CLEAN_PASS,
    OWN_BASE,
    SHARPNESS_AWARE,
    closures_of,
    data,
    flat,
    make,
    network,
    state,
    train,
)
from quadratics import LAYOUTS, closure_of, q_walk
from torch import nn
from torch.testing import assert_close

from trainers import METHODS, make_optimizer
from trainers.files.tree import equal
from trainers.randomness import seeded

# What these add to the gradient does not vanish with the radius, so radius 0 is not the base optimizer's own step
NOT_INERT = {"sampa", "egsam", "ogsam", "aosam", "lookbehind", "rsam", "bsam"}
INERT = [m for m in SHARPNESS_AWARE if m not in NOT_INERT]
NEEDS_BATCH = {"sampa", "aesam", "aosam"}


@pytest.mark.parametrize("base", ["sgd", "adamw"])
@pytest.mark.parametrize("method", INERT)
def test_radius_zero_is_the_base_optimizer_bit_for_bit_buffers_included(method, base):
    ends = []
    for name, options in ((base, {}), (method, {"rho": 0.0})):
        model = network(dropout=0.3)
        with seeded(7):
            optimizer = make(name, model, base, weight_decay=1e-3, **options)
            losses = train(model, optimizer, data(3))
            ends.append((state(model), losses, optimizer.base.state_dict()["state"], torch.get_rng_state()))
    assert equal(*ends)


def test_the_methods_that_radius_zero_does_not_switch_off_say_so():
    for method in SHARPNESS_AWARE:
        parts = make(method, network()).parts
        assert parts.source.inert_at_zero is (method not in NOT_INERT), method
    assert make("rsam", network(), sigma=0.0).parts.source.inert_at_zero


@pytest.mark.parametrize("method", SHARPNESS_AWARE)
def test_radius_zero_costs_what_the_base_optimizer_costs(method):
    model = network()
    optimizer = make(method, model, rho=0.0)
    train(model, optimizer, data(1))
    if method in INERT:
        assert (optimizer.last.passes, optimizer.last.mode, optimizer.last.length) == (1, "plain", 0.0)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("egsam", {}),
        ("ogsam", {}),
        ("lookbehind", {"k": 1, "alpha": 1.0}),
        ("rsam", {"keep": 0.0}),
        ("sampa", {"lam": 0.0}),
    ],
)
def test_methods_with_more_than_a_radius_tend_to_their_own_rule_at_zero(method, options):
    # on Q: EG is a step against lr g, OG begins plain, Lookbehind's one point is w, SAMPa's lies at w
    (u,) = q_walk(method, rho=0.0, **options).us
    expected = {"egsam": (3 - 0.1 * 3, 4 - 0.4 * 4), "rsam": (3.0, 4.0)}.get(method, (3.0, 4.0))
    assert_close(u, torch.tensor(expected, dtype=u.dtype), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_plain_methods_are_torchs_own(base):
    ours, theirs = network(), network()
    optimizer = make(base, ours, weight_decay=1e-2, decay_all=True)
    train(ours, optimizer, data(3))
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[base]
    more = {"momentum": 0.9} if base == "sgd" else {}
    reference = kind(theirs.parameters(), lr=0.05, weight_decay=1e-2, fused=True, **more)
    for x, y in data(3):
        reference.zero_grad()
        F.cross_entropy(theirs(x), y).backward()
        reference.step()
    assert equal(state(ours), state(theirs))


# -- settings that are SAM -------------------------------------------------------------------------------------------

ALWAYS = {"lambda1": -math.inf, "lambda2": -math.inf}
SAM = [
    ("sam", {"steps": 1, "path": "pgd"}),
    ("sam", {"steps": 1, "path": "split"}),
    ("sam", {"p": 2.0}),
    ("sam", {"rho_schedule": "lr", "rho_min": 0.1, "lr_min": 0.05}),
    ("sam", {"rho_schedule": "lr_multiple", "rho": 6.0}),
    ("sam", {"grad_clip": 1e9}),
    ("sam", {"window": (0, None)}),
    ("sam", {"gate": "periodic", "gate_options": {"k": 1}}),
    ("sam", {"sharing": "batch"}),
    ("gsam", {"alpha": 0.0}),
    ("wsam", {"gamma": 0.5, "decouple": False}),
    ("gnp", {"c": 1.0}),
    ("grst", {"p": 1.0, "c": 1.0}),
    ("looksam", {"k": 1}),
    ("crsam", {"gamma": 0.0, "beta": 0.0}),
    ("rsam", {"sigma": 0.0}),
    ("fsam", {"sigma": 0.0}),
    ("vasso", {"theta": 1.0}),
    ("noisesam", {"along": 1.0, "across": 1.0}),
    ("esam", {"beta": 1.0, "gamma": 1.0}),
    ("esam", {"beta": 1.0, "gamma": 1.0, "granularity": "element"}),
    ("sssam", {"p": 1.0}),
    ("aesam", ALWAYS),
    ("deltasam", {"tau": 0.0}),
    ("deltasam", {"tau": 0.0, "estimator": "exact"}),
    ("mup2", {}),
    ("mup2", {"form": "joint"}),
    ("sam_on", {"layers": "*"}),
    ("ssam_f", {"sparsity": 0.0}),
    ("ssam_d", {"sparsity": 0.0}),
    ("lookbehind", {"k": 1, "alpha": 1.0}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "options"), SAM, ids=[f"{m}-{o}" for m, o in SAM])
def test_settings_that_are_sam(method, options):
    ends, costs = [], []
    for name, extra in (("sam", {}), (method, options)):
        model = network()
        optimizer = make(name, model, **extra)
        train(model, optimizer, data(3))
        ends.append(state(model))
        costs.append(optimizer.last.passes)
    for name, tensor in ends[0].items():
        assert_close(ends[1][name], tensor, rtol=1e-12, atol=1e-13)
    if method not in ("crsam", "noisesam"):
        assert costs[0] == costs[1] == 2


def test_asam_with_a_metric_of_one_is_sam():
    # T = |w| + η over η tends to one as η grows, and the radius is scaled by it
    sam, asam = network(), network()
    train(sam, make("sam", sam), data(2))
    train(asam, make("asam", asam, eta=1e9, scope="all", rho=0.3e-9), data(2))
    assert_close(flat(asam), flat(sam), rtol=1e-7, atol=1e-9)


def test_obf_with_the_loss_as_objective_is_sam_for_every_method_that_takes_another():
    x, y = data(1)[0]
    for method in SHARPNESS_AWARE:
        if not METHODS[method].other_ascent or method == "esam":
            continue
        ends = []
        for ascent in (None, "obf"):
            model = network()
            optimizer = make(method, model, ascent=ascent or ("loss" if method == "obf" else None))
            closure = closure_of(model, lambda m=model: F.cross_entropy(m(x), y))
            for _ in range(2):
                optimizer.step(closure, ascent=closure if ascent or optimizer.parts.ascent == "obf" else None)
            ends.append(flat(model))
        assert_close(ends[1], ends[0], rtol=1e-11, atol=1e-13, msg=method)


def test_wsam_decoupled_is_wsam_coupled_under_plain_sgd():
    ends = []
    for decouple in (True, False):
        model = network()
        train(model, make("wsam", model, momentum=0.0, decouple=decouple), data(3))
        ends.append(flat(model))
    assert_close(*ends, rtol=1e-11, atol=1e-13)


# -- chunks ----------------------------------------------------------------------------------------------------------


def test_m_equal_to_the_batch_is_sam():
    ends = []
    for m in (None, 12, 4):
        model = network(norm=None)
        train(model, make("sam", model), data(3), m=m)
        ends.append(state(model))
    assert equal(ends[0], ends[1])
    assert not equal(ends[0], ends[2])


@pytest.mark.parametrize("method", [m for m in METHODS if m not in NEEDS_BATCH])
def test_chunks_are_micro_batches(method):
    # the same gradient whether the chunks come in one list or one by one; ragged: 8 and 4
    ends = []
    for how in ("step", "accumulate"):
        model = network(dropout=0.2)
        with seeded(4):
            optimizer = make(method, model, diagnose=True)
            losses = train(model, optimizer, data(4), m=8, how=how)
        last = optimizer.last
        record = (last.clean_loss, last.perturbed_loss, last.length, last.cosine, last.grad_norm, last.m, last.passes)
        ends.append((flat(model), torch.tensor(losses), torch.tensor(record)))
    # a bias before BatchNorm has a gradient of rounding errors; Adam, and a step of given length per tensor, raise them
    near = {"rtol": 1e-5, "atol": 1e-8} if method in ("look_layersam", "adamw") else {"rtol": 1e-10, "atol": 1e-12}
    for a, b in zip(*ends, strict=True):
        assert_close(a, b, **near, equal_nan=True)


@pytest.mark.parametrize("method", sorted(NEEDS_BATCH))
def test_methods_that_must_see_the_whole_batch_refuse_micro_batches(method):
    model = network()
    with pytest.raises(ValueError, match="pass all closures to"):
        train(model, make(method, model), data(1), how="accumulate")


@pytest.mark.parametrize("method", METHODS)
def test_chunks_that_share_a_perturbation_are_one_batch(method):
    # full-SAM: k micro-batches equal one batch; what draws or selects by chunk is left out
    if method in ("esam", "deltasam"):
        pytest.skip("selects and weighs within each chunk")
    ends = []
    for m in (None, 5):
        model = network(norm=None)
        optimizer = make(method, model, sharing="batch")
        train(model, optimizer, data(4), m=m)
        ends.append(flat(model))
    assert_close(*ends, rtol=1e-9, atol=1e-11)


def test_the_gradient_of_chunks_is_the_weighted_mean_of_their_own():
    (x, y), *_ = data(1)
    us = []
    for rows in (slice(0, 5), slice(5, 10), slice(10, 12)):
        model = network(norm=None)
        start = flat(model)
        train(model, make("sam", model, lr=1.0, momentum=0.0), [(x[rows], y[rows])])
        us.append(start - flat(model))
    model = network(norm=None)
    train(model, make("sam", model, lr=1.0, momentum=0.0), [(x, y)], m=5)
    assert_close(start - flat(model), (5 * us[0] + 5 * us[1] + 2 * us[2]) / 12, rtol=1e-10, atol=1e-12)


# -- scale, split, learning rate, zero -------------------------------------------------------------------------------

# the radius of these is in units of weight/gradient, or a step of descent is part of the displacement
DEPEND_ON_SCALE = {"usam", "bsam", "egsam", "ogsam", "aosam", "tracesam", "detsam", "frobsam"}


@pytest.mark.parametrize("method", [m for m in SHARPNESS_AWARE if m not in DEPEND_ON_SCALE])
def test_the_perturbation_does_not_depend_on_the_scale_of_the_loss(method):
    # plain SGD with lr/c takes the same path under c times the loss; 8 changes no bit, 7 rounds
    ends = []
    for c in (1.0, 7.0):
        model = network()
        optimizer = make(method, model, lr=0.05 / c, seed=3)
        train(model, optimizer, data(3), scale=c)
        ends.append((flat(model), optimizer.last.length))
    assert_close(ends[1][0], ends[0][0], rtol=1e-8, atol=1e-10)
    assert ends[1][1] == pytest.approx(ends[0][1], rel=1e-8)


def test_usam_scales_with_the_loss():
    assert q_walk("usam", rho=0.1, scale=3.0).optimizer.last.length == pytest.approx(3 * 0.5)


LAYERWISE = {
    "look_layersam",
    "rsam",
    "esam",
    "sam_on",
    "ssam_d",
    "ssam_f",
    "randsam",
    "tracesam",
    "detsam",
    "frobsam",
    "bsam",
    "mup2",
    "functionalsam",
}


@pytest.mark.parametrize("method", [m for m in SHARPNESS_AWARE if m not in LAYERWISE])
def test_cutting_the_parameters_into_tensors_and_groups_changes_nothing(method):
    options = {"momentum": 0.9, "total_steps": 10}
    options |= {"sparsity": 0.0} if method.startswith("ssam") else {}
    options |= {"tau": 0.0} if method == "deltasam" else {}
    if method in ("obf", "nsam", "noisesam"):
        pytest.skip("has its own data; their parts are tested apart")
    walks = [torch.stack(q_walk(method, layout, 3, rho=0.3, **options).ws) for layout in LAYOUTS]
    assert_close(walks[1], walks[0], rtol=1e-11, atol=1e-12)
    assert_close(walks[2], walks[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_learning_rate_of_zero_leaves_the_weights_bit_for_bit(method):
    model = network(dropout=0.2)
    before, places = flat(model), [p.data_ptr() for p in model.parameters()]
    optimizer = make(
        method, model, lr=0.0, rho=None if METHODS[method].rho is None else 0.7, weight_decay=0.1 * (method != "bsam")
    )
    with seeded(0):
        train(model, optimizer, data(3), m=8 if method != "sampa" else None)
    assert torch.equal(flat(model), before)
    assert [p.data_ptr() for p in model.parameters()] == places  # nothing was rebound


class Flat(nn.Module):
    """A loss without slope: every gradient is exactly zero."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3))
        self.norm = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, x):
        return 0.0 * (x @ self.weight.T + self.norm)


@pytest.mark.parametrize("method", SHARPNESS_AWARE)
def test_a_zero_gradient_is_a_plain_step_without_a_nan(method):
    from trainers import AscentObjective, Objective

    model = Flat()
    x, y = torch.ones(4, 3, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.float64)
    before = state(model)
    options = {"momentum": 0.9} | ({"layers": "norm"} if method == "sam_on" else {})
    given = {
        "model": model,
        "parameters": list(model.parameters()),
        "loss": lambda z, _: z.square().mean(),
        "x": x,
        "y": y,
    }
    optimizer = make(method, model, **options)
    one = Objective(**(given | {"x": x[:1], "y": y[:1]}))
    optimizer.reference = lambda: ([one, one], None)
    ascent = AscentObjective(**given, ascent=lambda z, _: z.sum()) if optimizer.parts.ascent == "obf" else None
    for _ in range(3):
        optimizer.step(Objective(**given), ascent=ascent)
    for name, value in state(model).items():
        assert torch.isfinite(value).all(), method
        if method != "bsam":  # whose prior decays
            assert torch.equal(value, before[name]), method


@pytest.mark.parametrize("method", [m for m in SHARPNESS_AWARE if m not in NO_CLEAN_PASS])
def test_a_gradient_that_is_not_finite_never_displaces_the_weights(method):
    if method in ("randsam", "tracesam", "detsam", "frobsam", "rsam", "bsam", "nsam", "sampa", "ssam_f", "deltasam"):
        pytest.skip("the displacement is not made from this gradient alone")
    model = network(norm=None)
    optimizer = make(method, model)
    before, seen = flat(model), []
    (x, y), *_ = data(1)
    descents, sizes, ascents = closures_of(optimizer, model, x * math.nan, y)
    model[0].register_forward_pre_hook(lambda *_: seen.append(flat(model)))
    optimizer.step(descents, sizes=sizes, ascent=ascents)
    assert seen
    assert all(torch.equal(w, before) for w in seen)


def test_own_bases_are_what_the_registry_says():
    assert {n: m.base for n, m in METHODS.items() if m.base and m.rho is not None} == OWN_BASE
    assert make_optimizer("sam", network(), lr=0.1).base.defaults["lr"] == 0.1
