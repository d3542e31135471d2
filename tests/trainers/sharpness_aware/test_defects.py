"""Defects of public implementations (methods.md section 7), each as a test that they would fail."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from networks import data, flat, make, network, train
from quadratics import (
    F64,
    NEAR,
    Rich,
    TwoExamples,
    closure_of,
    examples_of,
    objective_of,
    on_q,
    q_walk,
    tensor,
    walk,
)
from torch import nn
from torch.testing import assert_close

from landscape.params import norm
from landscape.perturbation import TensorNorm
from trainers import METHODS, make_optimizer, obf_loss
from trainers.sharpness_aware.selection import LargestIncrease

# -- restoring -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_views_of_the_weights_stay_views(method):
    # rebinding `p.data` leaves flat buffers, tied views and captured graphs with the old storage
    model = network()
    views = {n: p.detach() for n, p in model.named_parameters()}
    train(model, make(method, model), data(2))
    for name, p in model.named_parameters():
        assert views[name].data_ptr() == p.data_ptr()
        assert torch.equal(views[name], p.detach())


def test_half_precision_weights_do_not_drift():
    # w + eps - eps is not w in bfloat16; a copy is
    model = nn.Linear(64, 64, dtype=torch.bfloat16)
    before = model.weight.detach().clone()
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match="below half a unit in the last place"):
        optimizer = make_optimizer("sam", model, lr=0.0, rho=5.0)
    for _ in range(5):
        optimizer.step(closure_of(model, lambda: model(x).square().mean()))
    assert torch.equal(model.weight.detach(), before)


# -- normalisation ---------------------------------------------------------------------------------------------------


def test_norms_of_half_precision_gradients_do_not_overflow():
    many = {"w": torch.full((70000,), 200.0, dtype=torch.float16)}  # the sum of squares is 2.8e9
    assert float(norm(many)) == pytest.approx(200 * math.sqrt(70000), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gsam_projects_half_precision_gradients_as_it_projects_float32_ones(dtype):
    # in the type itself <g_p, g_p> overflows, or keeps three digits
    ends = []
    for kind in (dtype, torch.float32):
        w = nn.Parameter(torch.linspace(1, 2, 4096).to(dtype).to(kind))
        model = nn.ParameterList([w])
        with warnings.catch_warnings(action="ignore"):
            optimizer = make_optimizer("gsam", model, lr=1.0, rho=2.0, alpha=0.4)
        curve = torch.linspace(1, 4, 4096).to(dtype).to(kind)
        loss = closure_of(model, lambda w=w, c=curve: (c * w.square()).float().sum() * 2)
        optimizer.step(loss)
        ends.append(w.grad.float())
        assert torch.isfinite(ends[-1]).all()
    assert_close(ends[0], ends[1], rtol=2e-2, atol=0.05)


def test_layerwise_eta_is_added_to_the_norm_not_to_its_factor():
    theta = {"w": tensor(3.0, 4.0)}
    assert_close(TensorNorm(0.1)(theta)["w"], tensor(5.1, 5.1), **NEAR)  # not 1.1 · 5


def test_gsams_adaptive_form_is_the_papers():
    # |w| g/|g|, of radius (0.9, 0.4) on Q; one public port has w² g/| |w| g |
    assert_close(q_walk("gsam", rho=0.5, adaptive="after").displacement(), tensor(0.9, 0.4), **NEAR)


# -- chunks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[4, 4, 4], [5, 5, 2], [1, 11], [12]])
def test_a_ragged_last_chunk_is_not_weighted_too_much(sizes):
    (x, y), *_ = data(1)
    model = network(norm=None)
    start, rows, us = flat(model), torch.arange(12).split(sizes), []
    for part in rows:
        one = network(norm=None)
        optimizer = make("sam", one, lr=1.0, momentum=0.0)
        optimizer.step(closure_of(one, lambda p=part, m=one: F.cross_entropy(m(x[p]), y[p])))
        us.append(start - flat(one))
    optimizer = make("sam", model, lr=1.0, momentum=0.0)
    optimizer.step([closure_of(model, lambda p=p: F.cross_entropy(model(x[p]), y[p])) for p in rows], sizes=sizes)
    expected = sum(n / 12 * u for n, u in zip(sizes, us, strict=True))
    assert_close(start - flat(model), expected, rtol=1e-10, atol=1e-12)


def test_the_loss_returned_is_the_clean_one_over_all_chunks():
    # one public trainer returns the perturbed loss of the last chunk, negated
    model = TwoExamples()
    optimizer = make_optimizer("sam", model, lr=0.1, rho=0.5)
    loss = optimizer.step([closure_of(model, lambda r=r: model(r)) for r in ([0, 1], [2])], sizes=[2, 1])
    assert float(loss) == pytest.approx((5.0 + 8.0 + 2.5) / 3, rel=1e-12)
    assert optimizer.last.clean_loss == pytest.approx(15.5 / 3, rel=1e-12)
    perturbed = [
        0.5 * float((r + 0.5 * d / d.norm()).square().sum())
        for r, d in (
            (tensor(3.0, 1.0), tensor(1.5, 2.5)),
            (tensor(0.0, 4.0), tensor(1.5, 2.5)),
            (tensor(2.0, -1.0), tensor(2.0, -1.0)),
        )
    ]
    assert optimizer.last.perturbed_loss == pytest.approx(sum(perturbed) / 3, rel=1e-12)
    assert optimizer.last.gap == pytest.approx(sum(perturbed) / 3 - 15.5 / 3, rel=1e-9)


def test_obf_reports_the_training_loss_not_its_objective():
    model = nn.Linear(2, 3, bias=False, dtype=F64)
    x, y = tensor(1.0, 2.0)[None], torch.tensor([0])
    expected = float(F.cross_entropy(model(x), y).detach())
    for plain in (True, False):
        optimizer = make_optimizer("obf", model, lr=0.0, rho=0.5)
        if plain:
            descent, ascent = (
                closure_of(model, lambda: F.cross_entropy(model(x), y)),
                closure_of(model, lambda: obf_loss(model(x), y)),
            )
            optimizer.step(descent, ascent=ascent)  # a plain ascent closure cannot tell the training loss
            assert math.isnan(optimizer.last.clean_loss)
        else:
            from trainers import AscentObjective

            ascent = AscentObjective(
                model=model, parameters=list(model.parameters()), loss=F.cross_entropy, x=x, y=y, ascent=obf_loss
            )
            loss = optimizer.step(objective_of(model, F.cross_entropy, x, y), ascent=ascent)
            assert float(loss) == optimizer.last.clean_loss == pytest.approx(expected, rel=1e-12)


def test_the_form_of_obf_follows_its_link():
    z, y = torch.tensor([[2.0, 0.0, -1.0]], dtype=F64), torch.tensor([0])
    assert float(obf_loss(z, y, C=3)) == pytest.approx(-1.345051657, rel=1e-8)  # softmax unless asked
    assert float(obf_loss(z, y, C=3, link="sigmoid")) == pytest.approx(-1.193650394, rel=1e-8)


# -- gradients by reference ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_clearing_gradients_in_place_does_not_clear_what_was_kept(method):
    # `zero_grad(set_to_none=False)` writes zeros into whatever `.grad` refers to
    if method in ("obf", "functionalsam"):
        pytest.skip("takes the trainer's own closures")
    (x, y), *_ = data(1)
    ends = []
    for to_none in (True, False):
        model = network(norm=nn.LayerNorm)

        def losses(model=model):
            return F.cross_entropy(model(x), y, reduction="none")

        class Closure(Rich):
            def __call__(self, model=model, to_none=to_none):
                model.zero_grad(set_to_none=to_none)
                value = self.losses().mean()
                value.backward()
                return value.detach()

        optimizer = make(method, model)
        if optimizer.needs_reference == "squares":
            one = Closure(model, losses)
            optimizer.reference = lambda one=one: ([one], [1])
        for _ in range(4):
            optimizer.step(Closure(model, losses))
        ends.append(flat(model))
    assert_close(ends[1], ends[0], rtol=1e-11, atol=1e-13)


@pytest.mark.filterwarnings("ignore:gradients from before the step were dropped")
@pytest.mark.parametrize("method", ["fsam", "s2sam", "ogsam", "vasso", "looksam", "sampa"])
def test_what_the_user_does_to_grad_after_a_step_does_not_matter(method):
    ends = []
    for meddle in (False, True):
        held = on_q(method, rho=0.5)
        for _ in range(4):
            walk(held)
            if meddle:
                for p in held.model.parameters():
                    if p.grad is not None:
                        p.grad.fill_(7.0)
        ends.append(held.w)
    assert torch.equal(*ends)


# -- selection -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gamma", "n", "kept"), [(0.5, 2, 1), (0.5, 12, 6), (0.5, 3, 2), (0.1, 4, 1), (0.99, 8, 8), (0.6, 5, 3)]
)
def test_esam_keeps_exactly_the_number_it_means(gamma, n, kept):
    # a strict threshold at the quantile keeps one fewer, and none of two
    rise = torch.rand(n, generator=torch.Generator().manual_seed(0))
    chosen = LargestIncrease(gamma)(torch.zeros(n), rise) if gamma < 0.99 else torch.arange(n)
    assert len(chosen) == kept
    assert LargestIncrease(0.99).active is False
    rest = set(range(n)) - set(chosen.tolist())
    assert not rest or float(rise[chosen].min()) >= float(rise[list(rest)].max())
    assert len(LargestIncrease(0.5)(torch.zeros(6), torch.zeros(6))) == 3  # ties too


def test_esam_refuses_closures_without_losses():
    model = TwoExamples()
    with pytest.raises(ValueError, match="selects examples by their loss"):
        make_optimizer("esam", model, lr=0.1).step(closure_of(model, lambda: model([0, 1])))
    make_optimizer("esam", model, lr=0.1, gamma=1.0).step(closure_of(model, lambda: model([0, 1])))
    make_optimizer("esam", model, lr=0.1).step(examples_of(model, [0, 1]))


# -- counters and momentum -------------------------------------------------------------------------------------------


def test_looksam_keeps_one_direction_over_all_tensors():
    # per tensor, a tensor of one entry has no orthogonal part at all
    held = q_walk("looksam", "two", rho=0.5, k=2)
    assert torch.cat(list(held.optimizer.parts.combiner.stored.values())).abs().min() > 0.4


def test_a_window_does_not_restart_the_momentum():
    late = on_q("sam", momentum=0.9, rho=0.5, window=(2, None))
    plain = on_q("sgd", momentum=0.9)
    walk(late, 2)
    walk(plain, 2)
    buffers = [h.optimizer.base.state[h.model.parts[0]]["momentum_buffer"] for h in (late, plain)]
    assert torch.equal(*buffers)
    kept = buffers[0].clone()
    walk(late)
    g = tensor(1.0, 4.0) * plain.w
    u = tensor(1.0, 4.0) * (plain.w + 0.5 * g / g.norm())
    assert_close(buffers[0], 0.9 * kept + u, rtol=1e-11, atol=0)


def test_fsams_mean_is_of_raw_gradients():
    # one port feeds the mean with what is left after it was taken off
    held = q_walk("fsam", count=3, rho=0.5, decay=0.6)
    m = None
    for w in [tensor(3.0, 1.0), *held.ws[:2]]:
        g = tensor(1.0, 4.0) * w
        m = g if m is None else 0.6 * m + 0.4 * g
    assert_close(held.optimizer.parts.source.average["parts.0"], m, rtol=1e-11, atol=0)
