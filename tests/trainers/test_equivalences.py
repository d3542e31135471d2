"""Equivalences that every method must satisfy, on small networks with BatchNorm and dropout."""

import copy

import pytest
import torch
import torch.nn.functional as F
from quadratics import F64, closure_of, step_of
from torch import nn
from torch.testing import assert_close

from trainers import make_optimizer, obf_loss
from trainers.losses import bce, cross_entropy, make_loss, smoothed_targets
from trainers.randomness import seeded
from trainers.sharpness_aware.hooks import ShrinkPerturb
from trainers.sharpness_aware.methods import METHODS
from trainers.tree import equal, join_tensors, split_tensors

SHARPNESS_AWARE = [name for name, method in METHODS.items() if method.rho is not None]


def network(dropout=0.0, norm=True):
    with seeded(1):
        layers = [nn.Linear(6, 8), nn.BatchNorm1d(8) if norm else nn.Identity(), nn.ReLU(), nn.Dropout(dropout)]
        return nn.Sequential(*layers, nn.Linear(8, 3)).to(F64).train()


@pytest.fixture
def batches(generator):
    x = torch.randn(5, 12, 6, generator=generator, dtype=F64)
    return [(part, torch.randint(3, (12,), generator=generator)) for part in x]


def train(model, optimizer, batches, m=None):
    losses = []
    for x, y in batches:
        chunks = list(zip(x.split(m or len(x)), y.split(m or len(y)), strict=True))
        closures = [closure_of(model, lambda a=a, b=b: F.cross_entropy(model(a), b)) for a, b in chunks]
        ascents = None
        if optimizer.parts.ascent == "obf":
            ascents = [closure_of(model, lambda a=a, b=b: obf_loss(model(a), b)) for a, b in chunks]
        losses.append(float(optimizer.step(closures, sizes=[len(a) for a, _ in chunks], ascent=ascents)))
    return losses


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("base", ["sgd", "adamw"])
@pytest.mark.parametrize("method", SHARPNESS_AWARE)
def test_radius_zero_is_the_base_optimizer_bit_for_bit_buffers_included(method, base, batches):
    ends = []
    for name, options in ((base, {}), (method, {"rho": 0.0})):
        model = network(dropout=0.3)
        with seeded(7):
            optimizer = make_optimizer(name, model, base, lr=0.05, momentum=0.9, weight_decay=1e-3, **options)
            train(model, optimizer, batches)
        ends.append(state(model))
    assert equal(*ends)


def test_plain_sgd_is_torchs_own(batches):
    ours, theirs = network(), network()
    optimizer = make_optimizer("sgd", ours, lr=0.05, momentum=0.9, weight_decay=1e-2, decay_all=True)
    train(ours, optimizer, batches)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2, fused=True)
    for x, y in batches:
        reference.zero_grad()
        F.cross_entropy(theirs(x), y).backward()
        reference.step()
    assert equal(state(ours), state(theirs))


@pytest.mark.parametrize("method", ["sam", "usam", "asam", "gsam"])
def test_one_step_equals_the_same_parameters_cut_into_more_tensors_and_groups(method):
    whole, _, _ = step_of(method, rho=0.3)
    cut, _, _ = step_of(method, rho=0.3, split=True, groups=True)
    assert_close(cut, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", SHARPNESS_AWARE)
def test_running_statistics_are_those_of_one_clean_forward_a_step(method, batches):
    model = network()
    optimizer = make_optimizer(method, model, lr=0.05, rho=0.4)
    reference = copy.deepcopy(model)
    for batch in batches:
        reference.load_state_dict(model.state_dict())
        with torch.no_grad():
            reference(batch[0])
        train(model, optimizer, [batch])
        for name, buffer in reference.named_buffers():
            assert torch.equal(dict(model.named_buffers())[name], buffer), name


@pytest.mark.parametrize("method", ["sam", "gsam", "obf"])
def test_both_passes_see_the_same_dropout_mask_unless_asked_otherwise(method, batches):
    for same in (True, False):
        model = network(dropout=0.5, norm=False)
        optimizer = make_optimizer(method, model, lr=0.05, rho=0.4, same_rng=same)
        masks = []
        model[3].register_forward_hook(lambda _, __, out, seen=masks: seen.append(out == 0))
        with torch.random.fork_rng():
            train(model, optimizer, batches[:1])
        positive = masks[0] == masks[1]
        agree = bool(positive.float().mean() > 0.95)  # a ReLU zero may come and go with the perturbation
        assert agree is same


def test_the_random_state_after_a_step_is_that_of_one_pass(batches):
    states = []
    for method in ("sgd", "sam"):
        with seeded(3):
            model = network(dropout=0.5)
            train(model, make_optimizer(method, model, lr=0.05), batches)
            states.append(torch.get_rng_state())
    assert torch.equal(*states)


EQUAL_TO_SAM = [
    ("gsam", {"alpha": 0.0}),
    ("sam", {"steps": 1, "path": "split"}),
    ("sam", {"p": 2.0}),
    ("sam", {"rho_schedule": "lr", "rho_min": 0.1, "lr_min": 0.05}),
    ("sam", {"grad_clip": 1e9}),
]


@pytest.mark.parametrize(("method", "options"), EQUAL_TO_SAM)
def test_settings_that_are_sam(method, options, batches):
    ends = []
    for name, extra in (("sam", {}), (method, options)):
        model = network()
        train(model, make_optimizer(name, model, lr=0.05, rho=0.3, momentum=0.9, **extra), batches)
        ends.append(state(model))
    for name, tensor in ends[0].items():
        assert_close(ends[1][name], tensor, rtol=1e-12, atol=1e-14)


def test_m_equal_to_the_batch_is_sam_and_chunks_do_not_depend_on_how_they_come(batches):
    def end(m):
        model = network(norm=False)
        train(model, make_optimizer("sam", model, lr=0.05, rho=0.3), batches, m=m)
        return state(model)

    assert equal(end(None), end(12))
    assert not equal(end(None), end(4))


@pytest.mark.parametrize("method", list(METHODS))
def test_save_and_load_in_the_middle_continues_identically(method, batches):
    def fresh():
        model = network(dropout=0.3)
        options = {} if METHODS[method].rho is None else {"rho": 0.3}
        return model, make_optimizer(
            method, model, lr=0.05, momentum=0.9, shrink_perturb=0.01, weight_decay=1e-3, seed=5, **options
        )

    with seeded(2):
        model, optimizer = fresh()
        losses = train(model, optimizer, batches * 2)
        whole = state(model)
    with seeded(2):
        model, optimizer = fresh()
        first = train(model, optimizer, batches)
        saved = split_tensors(
            {"optimizer": optimizer.state_dict(), "model": state(model), "rng": torch.get_rng_state()}
        )
    with seeded(99):
        model, optimizer = fresh()
        stored = join_tensors(*saved)
        model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        torch.set_rng_state(stored["rng"])
        assert first + train(model, optimizer, batches) == losses
    assert equal(state(model), whole)


@pytest.mark.parametrize(
    ("method", "passes", "options"),
    [("sgd", 1, {}), ("sam", 2, {}), ("asam", 2, {}), ("gsam", 2, {}), ("sam", 4, {"steps": 3}), ("obf", 2, {})],
)
def test_cost_in_passes_is_that_of_the_equations(method, passes, options, batches):
    model = network()
    forwards, backwards = [], []
    model.register_forward_hook(lambda *_: forwards.append(1))
    model[0].weight.register_hook(lambda _: backwards.append(1))
    optimizer = make_optimizer(method, model, lr=0.05, **options)
    train(model, optimizer, batches[:1])
    assert len(forwards) == len(backwards) == optimizer.last.passes == passes


def test_a_closed_gate_is_a_plain_step(batches):
    from dataclasses import replace

    from trainers.sharpness_aware.gates import Always, Never, Window

    assert [Window(2, 4)(t) for t in range(5)] == [False, False, True, True, False]
    assert Always()(0)
    assert not Never()(0)
    ends = []
    for gate in (Window(0, 2), Window(0)):
        model = network()
        optimizer = make_optimizer("sam", model, lr=0.05, rho=0.3)
        optimizer.parts = replace(optimizer.parts, gate=gate)
        train(model, optimizer, batches[:2])
        ends.append(state(model))
        train(model, optimizer, batches[2:3])
        assert optimizer.last.perturbed is (gate == Window(0))
    assert equal(*ends)


# -- hooks and losses ------------------------------------------------------------------------------------------------


def test_shrink_and_perturb_has_its_closed_form():
    model = nn.Sequential(nn.Linear(2, 2, dtype=F64), nn.BatchNorm1d(2, dtype=F64))
    hook = ShrinkPerturb.of(model, 0.1, lr_base=0.5)
    start = state(model)
    with torch.no_grad():
        for t in state(model):
            if model.state_dict()[t].is_floating_point():
                model.state_dict()[t].add_(1.0)
    moved = state(model)
    for _ in range(3):
        hook(model, 0.5)
    for name, value in state(model).items():
        expected = start[name] + 0.9**3 * (moved[name] - start[name]) if value.is_floating_point() else moved[name]
        assert_close(value, expected, rtol=1e-12, atol=1e-12)
    before = state(model)
    hook(model, 0.0)  # in proportion to the learning rate
    assert equal(state(model), before)
    hook(model, 0.25)
    weight = "0.weight"
    assert_close(state(model)[weight], before[weight] + 0.05 * (start[weight] - before[weight]), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"`shrink_perturb` must be in \[0, 1\], got 1.5"):
        ShrinkPerturb.of(model, 1.5, 0.1)


def test_label_smoothing_conventions():
    y = torch.tensor([3])
    uniform = smoothed_targets(y, 10, 0.1)
    assert_close(uniform[0, [3, 0]], torch.tensor([0.91, 0.01]))
    others = smoothed_targets(y, 10, 0.1, convention="others")
    assert_close(others[0, [3, 0]], torch.tensor([0.9, 0.1 / 9]))
    assert_close(others, smoothed_targets(y, 10, 0.1 * 10 / 9))


@pytest.mark.parametrize("convention", ["uniform", "others"])
def test_smoothed_losses_equal_their_definitions(convention, generator):
    logits, y = torch.randn(4, 5, generator=generator), torch.randint(5, (4,), generator=generator)
    soft = smoothed_targets(y, 5, 0.2, convention=convention)
    assert_close(
        cross_entropy(logits, y, smoothing=0.2, convention=convention), -(soft * logits.log_softmax(-1)).sum(-1).mean()
    )
    p = logits.sigmoid()
    by_hand = -(soft * p.log() + (1 - soft) * (1 - p).log()).sum(-1).mean()
    assert_close(bce(logits, y, smoothing=0.2, convention=convention), by_hand, rtol=1e-5, atol=1e-6)
    assert make_loss("cross_entropy") is F.cross_entropy
    assert_close(make_loss("bce")(logits, y), bce(logits, y))


def test_bce_at_a_head_bias_of_minus_ten():
    logits = torch.full((2, 10), -10.0, dtype=F64)
    assert float(bce(logits, torch.tensor([0, 1]))) == pytest.approx(10 * 4.5398899e-5 + 10, rel=1e-9)


@pytest.mark.parametrize(
    ("link", "value", "expected"),
    [
        ("softmax", "surrogate", -1.345051657),
        ("softmax", "objective", -1.820791539),
        ("sigmoid", "surrogate", -1.193650394),
        ("sigmoid", "objective", -2.723313312),
    ],
)
def test_obf_objective_and_surrogate(link, value, expected):
    logits = torch.tensor([[2.0, 0.0, -1.0]], dtype=F64)
    got = obf_loss(logits, torch.tensor([0]), C=3, link=link, value=value)
    assert float(got) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("gamma", "C"), [(0.0, 3), (0.5, 3), (1.0, 1000), (1.0, -1)])
def test_obf_gradient_is_that_of_the_exact_objective_with_alpha_frozen(link, gamma, C, generator):
    logits = torch.randn(6, 3, generator=generator, dtype=F64).requires_grad_()
    y = torch.randint(3, (6,), generator=generator)
    (got,) = torch.autograd.grad(obf_loss(logits, y, C=C, gamma=gamma, link=link), logits)

    p = (logits.softmax(-1) if link == "softmax" else logits.sigmoid()).detach()
    lam = max(0.0, 1 / C)
    p_y = p.gather(1, y[:, None]).squeeze(1)
    alpha = gamma * (1 - lam / p_y).clamp_min(0) / (1 - lam)

    def loss(target):
        if link == "softmax":
            return -(target * logits.log_softmax(-1)).sum(-1)
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)

    exact = ((1 - alpha) * loss(F.one_hot(y, 3).to(F64)) - loss(torch.full((6, 3), 1 / 3, dtype=F64))).mean()
    (expected,) = torch.autograd.grad(exact, logits)
    assert_close(got, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"C": 0.5}, "`C` must be above 1"),
        ({"C": float("nan")}, "`C` must be above 1"),
        ({"gamma": 1.5}, r"`gamma` must be in \[0, 1\]"),
    ],
)
def test_obf_refuses_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        obf_loss(torch.zeros(1, 3), torch.tensor([0]), **options)


def test_a_random_source_without_clean_gradient_cannot_feed_gsam():
    from trainers.sharpness_aware.combiners import SurrogateGap

    with pytest.raises(ValueError, match="GSAM needs a gradient"):
        SurrogateGap()(None, dict, {})
