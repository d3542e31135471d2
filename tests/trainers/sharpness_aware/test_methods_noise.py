"""Methods about the noise in the perturbation: R-SAM, F-SAM, VaSSO, noise components, delta-SAM."""

import math

import pytest
import torch
from quadratics import (
    F64,
    LAYOUTS,
    NEAR,
    FixedNoise,
    Quadratic,
    TwoExamples,
    closure_of,
    cut,
    examples_of,
    on_q,
    q_walk,
    tensor,
    walk,
    with_part,
)
from torch import nn
from torch.testing import assert_close

from trainers import make_optimizer
from trainers.sharpness_aware.memory import split_along
from trainers.sharpness_aware.selection import InverseSlope

every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def named(model):
    return {n: p.detach() for n, p in model.named_parameters()}


def flat(params):
    return torch.cat([t.reshape(-1) for t in params.values()])


# -- R-SAM -----------------------------------------------------------------------------------------------------------


@every_layout
@pytest.mark.parametrize(
    ("keep", "eps", "u"),
    [
        (1.0, (0.447897608, 0.159120111), (3.447897608, 4.636480446)),
        (0.0, (0.347897608, 0.359120111), (3.347897608, 5.436480446)),
    ],
)
def test_rsam_ascends_from_the_oracle_noise(keep, eps, u, layout):
    held = on_q("rsam", layout, rho=0.5)
    with_part(held.optimizer, source=FixedNoise((0.1, -0.2), keep))
    walk(held)
    assert_close(held.displacement(0), tensor(0.1, -0.2), **NEAR)
    assert_close(held.displacement(1), tensor(*eps), **NEAR)
    assert_close(held.us[0], tensor(*u), **NEAR)


def test_rsam_noise_has_the_length_of_each_tensor_times_sigma():
    model = nn.ParameterList([torch.arange(6, dtype=F64).view(2, 3), tensor(3.0, -4.0), tensor(0.0, 0.0)])
    start = named(model)
    start = {n: t.clone() for n, t in start.items()}
    for per in ("tensor", "filter"):
        seen = []

        def closure(seen=seen):
            model.zero_grad()
            seen.append({n: p.detach() - start[n] for n, p in model.named_parameters()})
            value = sum((p**2).sum() for p in model)
            value.backward()
            return value

        optimizer = make_optimizer("rsam", model, lr=0.0, rho=0.5, sigma=0.2, per=per)
        optimizer.step(closure)
        optimizer.step(closure)
        noise, again = seen[0], seen[2]
        assert not torch.equal(noise["0"], again["0"])  # fresh each step
        assert float(noise["1"].norm()) == pytest.approx(0.2 * 5, rel=1e-12) or per == "filter"
        assert torch.equal(noise["2"], torch.zeros(2, dtype=F64))  # a zero tensor gets no noise
        lengths = noise["0"].norm(dim=1) if per == "filter" else noise["0"].norm()
        sizes = start["0"].norm(dim=1) if per == "filter" else start["0"].norm()
        assert_close(lengths, 0.2 * sizes, rtol=1e-12, atol=1e-12)


def test_rsam_takes_its_metric_at_the_clean_weights():
    held = on_q("rsam", rho=0.5, adaptive="both")
    with_part(held.optimizer, source=FixedNoise((0.1, -0.2), 0.0))
    walk(held)
    g, t = tensor(3.1, 3.2), tensor(3.0, 1.0)
    assert_close(held.displacement(1), 0.5 * t**2 * g / (t * g).norm(), **NEAR)


@every_layout
def test_rsam_without_noise_is_sam(layout):
    assert_close(q_walk("rsam", layout, rho=0.5, sigma=0.0).us[0], tensor(3.3, 5.6), **NEAR)


# -- F-SAM -----------------------------------------------------------------------------------------------------------


@every_layout
@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize(
    ("sigma", "unit"),
    [
        (1.0, {"code": (0.554700196, 0.832050294), "paper": (0.554700196, 0.832050294)}),
        (0.5, {"code": (0.581238194, 0.813733471), "paper": (0.586509812, 0.809942122)}),
        (0.0, {"code": (0.6, 0.8), "paper": (0.6, 0.8)}),
    ],
)
def test_fsam_takes_the_mean_off_the_gradient(sigma, unit, form, layout):
    held = on_q("fsam", layout, rho=0.5, sigma=sigma, decay=0.6, form=form)
    held.optimizer.parts.source.average = cut(tensor(1.0, 1.0), named(held.model))
    walk(held)
    eps = 0.5 * tensor(*unit[form])
    assert_close(held.displacement(), eps, **NEAR)
    assert_close(held.us[0], tensor(3.0, 4.0) + tensor(1.0, 4.0) * eps, **NEAR)
    if sigma == 1.0:
        assert_close(held.us[0], tensor(3.277350098, 5.664100589), **NEAR)
    # the raw gradient enters the mean, not what is left of it
    assert_close(flat(held.optimizer.parts.source.average), tensor(1.8, 2.2), **NEAR)


def test_fsam_starts_as_its_code_and_its_paper_say():
    code = q_walk("fsam", count=2, rho=0.5, decay=0.6)
    assert_close(code.displacement(), tensor(0.3, 0.4), **NEAR)  # the first direction is g_0, and m_0 = g_0
    g1 = tensor(1.0, 4.0) * code.ws[0]
    d = g1 - tensor(3.0, 4.0)
    assert_close(code.visited[3] - code.ws[0], 0.5 * d / d.norm(), **NEAR)
    paper = q_walk("fsam", rho=0.5, decay=0.6, form="paper")
    assert_close(paper.displacement(), tensor(0.3, 0.4), **NEAR)  # d = g - 0.4 g
    assert_close(flat(paper.optimizer.parts.source.average), tensor(1.2, 1.6), **NEAR)


@pytest.mark.parametrize("how", ["step", "accumulate"])
def test_fsam_keeps_one_mean_updated_once_a_step_with_the_mean_gradient(how):
    model = TwoExamples()
    optimizer = make_optimizer("fsam", model, lr=0.1, rho=0.5, decay=0.6)
    optimizer.parts.source.average = {"w": tensor(1.0, 1.0)}
    pair, third = closure_of(model, lambda: model([0, 1])), closure_of(model, lambda: model([2]))
    if how == "step":
        optimizer.step([pair, third], sizes=[2, 1])
    else:
        optimizer.accumulate(pair, size=2)
        optimizer.accumulate(third, size=1)
        optimizer.step()
    gs = [tensor(1.5, 2.5), tensor(2.0, -1.0)]
    mean = (2 * gs[0] + gs[1]) / 3
    assert_close(optimizer.parts.source.average["w"], 0.6 * tensor(1.0, 1.0) + 0.4 * mean, **NEAR)
    ds = [g - tensor(1.0, 1.0) for g in gs]
    u = sum(share * (g + 0.5 * d / d.norm()) for share, g, d in zip((2 / 3, 1 / 3), gs, ds, strict=True))
    assert_close(model.w.detach(), tensor(3.0, 1.0) - 0.1 * u, **NEAR)


# -- VaSSO -----------------------------------------------------------------------------------------------------------


@every_layout
def test_vasso_ascends_along_a_running_mean(layout):
    held = q_walk("vasso", layout, 3, rho=0.5, theta=0.4)
    d = None
    for t, w in enumerate([tensor(3.0, 1.0), *held.ws[:2]]):
        g = tensor(1.0, 4.0) * w
        d = g if d is None else 0.6 * d + 0.4 * g
        assert_close(held.visited[2 * t + 1] - w, 0.5 * d / d.norm(), rtol=1e-11, atol=1e-12)


# -- noise components ------------------------------------------------------------------------------------------------


def test_split_of_a_gradient_along_another():
    projected, noise = split_along({"w": tensor(0.0, 4.0)}, {"w": tensor(1.5, 2.5)})
    assert_close(projected["w"], tensor(1.764705882, 2.941176471), **NEAR)
    assert_close(noise["w"], tensor(-1.764705882, 1.058823529), **NEAR)
    assert float(noise["w"] @ tensor(1.5, 2.5)) == pytest.approx(0, abs=1e-12)
    # over all tensors jointly, not tensor by tensor
    projected, _ = split_along({"a": tensor(0.0), "b": tensor(4.0)}, {"a": tensor(1.5), "b": tensor(2.5)})
    assert_close(flat(projected), tensor(1.764705882, 2.941176471), **NEAR)


@pytest.mark.parametrize(
    ("along", "across", "d"),
    [(1.0, 0.0, (1.764705882, 2.941176471)), (0.0, 1.0, (-1.764705882, 1.058823529)), (1.0, 1.0, (0.0, 4.0))],
)
def test_the_components_of_the_noise_perturb(along, across, d):
    model = TwoExamples()
    optimizer = make_optimizer("noisesam", model, lr=1.0, rho=0.5, along=along, across=across)
    calls = []

    def reference():
        calls.append(optimizer.steps_taken)
        return [closure_of(model, lambda i=i: model([i])) for i in (0, 1)], [1, 1]

    optimizer.reference = reference
    optimizer.step(closure_of(model, lambda: model([1])))
    d = tensor(*d)
    assert_close(tensor(3.0, 1.0) - model.w.detach(), tensor(0.0, 4.0) + 0.5 * d / d.norm(), **NEAR)


def test_the_reference_gradient_is_taken_afresh_every_so_often():
    model = TwoExamples()
    optimizer = make_optimizer("noisesam", model, lr=0.1, rho=0.5, refresh_every=3)
    calls = []

    def reference():
        calls.append(optimizer.steps_taken)
        return [closure_of(model, lambda: model([0, 1]))], None

    optimizer.reference = reference
    for _ in range(7):
        optimizer.step(closure_of(model, lambda: model([1])))
    assert calls == [0, 3, 6]


# -- delta-SAM -------------------------------------------------------------------------------------------------------


def test_deltasam_with_exact_slopes_is_m_sam_of_single_examples():
    model = TwoExamples()
    optimizer = make_optimizer("deltasam", model, lr=1.0, rho=0.5, estimator="exact", normalise=False)
    optimizer.step(examples_of(model, [0, 1]))
    assert_close(tensor(3.0, 1.0) - model.w.detach(), tensor(1.737170825, 2.829056942), **NEAR)
    assert optimizer.last.clean_loss == pytest.approx((5.0 + 8.0) / 2, rel=1e-12)


def test_deltasam_normalised_is_a_step_of_length_rho():
    model = TwoExamples()
    optimizer = make_optimizer("deltasam", model, lr=1.0, rho=0.5, estimator="exact")
    optimizer.step(examples_of(model, [0, 1]))
    d = tensor(3.0, 1.0) / math.sqrt(10) + tensor(0.0, 1.0)  # Σ g_i/|g_i|
    assert_close(tensor(3.0, 1.0) - model.w.detach(), tensor(1.5, 2.5) + 0.5 * d / d.norm(), **NEAR)
    assert optimizer.last.length == pytest.approx(0.5, rel=1e-9)


def test_deltasam_estimates_slopes_by_differences():
    # With many draws of a short step the estimate tends to sqrt(2/pi) |g_i|, so the direction to the exact one.
    model = TwoExamples()
    optimizer = make_optimizer("deltasam", model, lr=1.0, rho=0.5, draws=400, xi=1e-6, seed=1)
    optimizer.step(examples_of(model, [0, 1]))
    eps = tensor(3.0, 1.0) - model.w.detach() - tensor(1.5, 2.5)
    d = tensor(3.0, 1.0) / math.sqrt(10) + tensor(0.0, 1.0)
    assert float(eps @ d / eps.norm() / d.norm()) > 0.999  # 400 draws: 4 % error of each slope
    assert optimizer.last.passes == 402


def test_slopes_of_almost_nothing_are_held_at_a_thousandth_of_the_median():
    weights = InverseSlope(torch.Generator(), normalise=False)(tensor(1.0, 2.0, 0.0))
    assert_close(weights, tensor(1.0, 0.5, 1000.0) / 3, **NEAR)
    weights = InverseSlope(torch.Generator())(tensor(0.0, 0.0))
    assert_close(weights, tensor(0.5, 0.5), **NEAR)


def test_deltasam_with_tau_zero_takes_plain_closures():
    assert_close(q_walk("deltasam", rho=0.5, tau=0.0).us[0], tensor(3.3, 5.6), **NEAR)
    model = Quadratic()
    with pytest.raises(ValueError, match="weighs the examples of the ascent"):
        make_optimizer("deltasam", model, lr=0.1).step(closure_of(model, model))
