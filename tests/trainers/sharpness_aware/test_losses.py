"""Training losses, the OBF objective, and the hook that shrinks: oracles of methods.md 3.9, 3.11 and 3.12."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from quadratics import F64, NEAR, Quadratic, closure_of, tensor
from torch import nn
from torch.testing import assert_close

from landscape.objectives import obf_direction
from trainers import make_optimizer, obf_loss
from trainers.files.tree import equal
from trainers.sharpness_aware.hooks import ShrinkPerturb
from trainers.tasks.losses import bce, cross_entropy, each, make_loss, smoothed_targets


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


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


@pytest.mark.parametrize(
    ("logits", "link", "gamma", "alpha", "q"),
    [
        ((2.0, 0.0, -1.0), "softmax", 1.0, 0.907438824, (-0.524919944, 0.229708176, 0.295211768)),
        ((2.0, 0.0, -1.0), "sigmoid", 1.0, 0.932332358, (-0.555529925, -0.132832846, 0.082590544)),
        ((2.0, 0.0, -1.0), "softmax", 0.0, 0.0, (-2 / 3, 1 / 3, 1 / 3)),
        ((2.0, 0.0, -1.0), "sigmoid", 0.0, 0.0, (-2 / 3, 1 / 3, 1 / 3)),
        ((-1.0, 0.0, 2.0), "softmax", 1.0, 0.0, (-2 / 3, 1 / 3, 1 / 3)),  # below chance level
    ],
)
def test_obf_directions(logits, link, gamma, alpha, q):
    got, weights = obf_direction(tensor(*logits)[None], torch.tensor([0]), C=3, gamma=gamma, link=link)
    assert_close(got[0], tensor(*q), **NEAR)
    assert_close(weights, tensor(alpha), **NEAR)
    if alpha == 0:
        expected = 4 / 3 if logits[0] < 0 else -5 / 3
        for value in ("surrogate", "objective"):
            made = obf_loss(tensor(*logits)[None], torch.tensor([0]), C=3, gamma=gamma, link=link, value=value)
            assert float(made) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("convention", ["uniform", "others"])
@pytest.mark.parametrize("kind", ["cross_entropy", "bce", "torch"])
def test_the_losses_of_single_examples_average_to_the_loss(kind, convention, smoothing, generator):
    logits = torch.randn(7, 4, generator=generator, requires_grad=True)
    y = torch.randint(4, (7,), generator=generator)
    loss = partial(F.cross_entropy, label_smoothing=smoothing)
    if kind != "torch":
        loss = make_loss(kind, smoothing=smoothing, convention=convention)
    losses = each(loss)(logits, y)
    assert losses.shape == (7,)
    assert_close(losses.mean(), loss(logits, y), rtol=1e-5, atol=1e-6)
    assert_close(losses[3], loss(logits[3:4], y[3:4]), rtol=1e-5, atol=1e-6)
    assert_close(*(torch.autograd.grad(v, logits)[0] for v in (losses.mean(), loss(logits, y))), rtol=1e-5, atol=1e-6)


# -- shrink and perturb ----------------------------------------------------------------------------------------------


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


def test_the_optimizer_shrinks_before_each_step_in_proportion_to_the_learning_rate():
    # zero gradients: w_t = w_init + (1 - f)^t (w_0 - w_init)
    model = Quadratic()
    optimizer = make_optimizer("sam", model, lr=0.1, rho=0.5, shrink_perturb=0.2)
    with torch.no_grad():
        model.parts[0].copy_(tensor(13.0, 11.0))
    for _ in range(3):
        optimizer.step(closure_of(model, lambda: 0 * model()))
    assert_close(model.w.detach(), tensor(3.0, 1.0) + 0.8**3 * tensor(10.0, 10.0), rtol=1e-12, atol=0)
    for group in optimizer.param_groups:
        group["lr"] = 0.05  # half the rate, half the factor
    optimizer.step(closure_of(model, lambda: 0 * model()))
    assert_close(model.w.detach(), tensor(3.0, 1.0) + 0.9 * 0.8**3 * tensor(10.0, 10.0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("how", ["step", "accumulate"])
def test_it_shrinks_once_a_step_and_the_gradients_are_taken_after_it(how):
    model = Quadratic()
    optimizer = make_optimizer("sam", model, lr=0.1, rho=0.5, shrink_perturb=0.5)
    with torch.no_grad():
        model.parts[0].copy_(tensor(5.0, 3.0))
    seen = []
    closure = closure_of(model, lambda: seen.append(model.w.detach().clone()) or model())
    if how == "step":
        optimizer.step([closure, closure])
    else:
        optimizer.accumulate(closure, size=1)
        optimizer.accumulate(closure, size=1)
        optimizer.step()
    assert_close(seen[0], tensor(4.0, 2.0), rtol=1e-12, atol=0)
    assert_close(seen[2], tensor(4.0, 2.0), rtol=1e-12, atol=0)
