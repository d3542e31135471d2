"""Methods that cost less than two passes: MSAM, S2-SAM, LookSAM, SAMPa, Lookahead-SAM, Lookbehind-SAM, ESAM."""

import math

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

every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def set_weights(model, *values):
    with torch.no_grad():
        for p, piece in zip(model.parameters(), cut(tensor(*values), named(model)).values(), strict=True):
            p.copy_(piece)


def named(model):
    return {n: p.detach() for n, p in model.named_parameters()}


# -- S2-SAM ----------------------------------------------------------------------------------------------------------


@every_layout
def test_s2sam_takes_three_oracle_steps(layout):
    held = q_walk("s2sam", layout, 3, rho=1.0)
    assert_close(
        torch.stack(held.ws),
        torch.stack([tensor(2.7, 0.6), tensor(2.37, 0.04), tensor(2.082230769, -0.320615385)]),
        **NEAR,
    )
    assert_close(
        torch.stack(held.us),
        torch.stack([tensor(3.0, 4.0), tensor(3.3, 5.6), tensor(2.877692308, 3.606153846)]),
        **NEAR,
    )
    assert_close(held.visited[1] - held.ws[0], tensor(0.6, 0.8), **NEAR)
    assert_close(held.visited[2] - held.ws[1], tensor(0.507692308, 0.861538462), **NEAR)
    assert len(held.visited) == 3  # one pass a step
    assert math.isnan(held.optimizer.last.clean_loss)
    assert float(held.losses[2]) == held.optimizer.last.perturbed_loss


def test_s2sam_perturbs_live_weights_only_and_normalises_over_them():
    model = Quadratic()
    optimizer = make_optimizer("s2sam", model, lr=0.1, rho=1.0, live_only=True)
    held = walk(type(on_q("sam"))(model, optimizer))
    set_weights(model, 0.0, 0.6)  # pruned: the first weight is exactly zero
    walk(held)
    assert_close(held.visited[1], tensor(0.0, 1.6), **NEAR)


# -- MSAM ------------------------------------------------------------------------------------------------------------


def with_momentum(layout, **options):
    held = on_q("msam", layout, momentum=0.9, **options)
    pieces = cut(tensor(0.6, -0.8), named(held.model))
    for name, p in held.model.named_parameters():
        held.optimizer.base.state[p]["momentum_buffer"] = pieces[name]
    return held


@every_layout
def test_msam_looks_along_the_momentum(layout):
    held = walk(with_momentum(layout, rho=0.5), 2)
    assert_close(held.visited[0], tensor(2.7, 1.4), **NEAR)
    assert_close(held.us[0], tensor(3.24, 4.88), **NEAR)  # the new buffer
    assert_close(held.ws[0], tensor(2.676, 0.512), **NEAR)
    assert_close(held.visited[1], tensor(2.399438324, 0.095450316), **NEAR)
    assert len(held.visited) == 2


def test_msam_undoes_the_displacement_that_it_made_under_a_schedule_of_radii():
    held = with_momentum("one", rho=0.5, rho_schedule="cosine", total_steps=4)
    w, v = tensor(3.0, 1.0), tensor(0.6, -0.8)
    for t in range(4):
        rho = 0.25 * (1 + math.cos(math.pi * t / 4))
        v = 0.9 * v + tensor(1.0, 4.0) * (w - rho * v / v.norm())
        w = w - 0.1 * v
        walk(held)
        assert_close(held.w, w, rtol=1e-12, atol=1e-12)


def test_msam_starts_at_the_weights_and_decays_at_them():
    # weight decay acts at w, not at the perturbed weights: v1 = g(w) + 0.5 w
    held = q_walk("msam", momentum=0.9, rho=0.5, weight_decay=0.5, decay_all=True)
    assert torch.equal(held.visited[0], tensor(3.0, 1.0))
    assert_close(held.us[0], tensor(4.5, 4.5), **NEAR)
    v = held.us[0]
    walk(held)
    assert_close(held.visited[1], held.ws[0] - 0.5 * v / v.norm(), rtol=1e-12, atol=1e-12)


def test_msam_follows_adams_first_moment():
    held = q_walk("msam", count=2, base="adamw", rho=0.5)
    # exp_avg after the first step is 0.1 g, along (3, 4)
    assert_close(held.visited[1], held.ws[0] - tensor(0.3, 0.4), rtol=1e-9, atol=1e-12)


def test_msam_needs_a_momentum():
    with pytest.raises(ValueError, match="`momentum` must be above 0"):
        make_optimizer("msam", Quadratic(), lr=0.1)


# -- LookSAM ---------------------------------------------------------------------------------------------------------


@every_layout
def test_looksam_refreshes_then_reuses(layout):
    held = q_walk("looksam", layout, 2, rho=0.5, k=2, alpha=0.7)
    assert_close(held.ws[0], tensor(2.67, 0.44), **NEAR)
    stored = torch.cat([t.reshape(-1) for t in held.optimizer.parts.combiner.stored.values()])
    assert_close(stored, tensor(-0.576, 0.432), **NEAR)
    assert_close(held.us[1], tensor(0.87918164, 3.10311377), **NEAR)
    assert_close(held.ws[1], tensor(2.582081836, 0.129688623), **NEAR)
    assert held.optimizer.last.mode == "reuse"
    assert len(held.visited) == 3
    walk(held)
    assert held.optimizer.last.mode == "perturbed"


def test_looksam_counts_its_own_steps_whatever_the_base_optimizer_counts():
    modes = []
    held = on_q("looksam", rho=0.5, k=3)
    for _ in range(7):
        walk(held)
        modes.append(str(held.optimizer.last.mode))
    assert modes == ["perturbed", "reuse", "reuse"] * 2 + ["perturbed"]


def looksam_on_m(how, sizes, rows, count=2):
    model = TwoExamples()
    optimizer = make_optimizer("looksam", model, lr=0.1, rho=0.5, k=2)
    for _ in range(count):
        closures = [closure_of(model, lambda r=r: model.curved(r)) for r in rows]
        if how == "step":
            optimizer.step(closures, sizes=sizes)
        else:
            for closure, size in zip(closures, sizes, strict=True):
                optimizer.accumulate(closure, size=size)
            optimizer.step()
    return model.w.detach().clone(), optimizer.parts.combiner.stored["w"]


@pytest.mark.parametrize("how", ["step", "accumulate"])
def test_looksam_stores_the_weighted_mean_over_chunks(how):
    rows, sizes = [[0, 1], [2]], [2, 1]
    w0 = tensor(3.0, 1.0)
    model = TwoExamples()

    def grad(w, r):
        w = w.clone().requires_grad_()
        return torch.autograd.grad(model.curved(r, w), w)[0]

    u, stored = torch.zeros(2, dtype=F64), torch.zeros(2, dtype=F64)
    for r, share in zip(rows, (2 / 3, 1 / 3), strict=True):
        g = grad(w0, r)
        gs = grad(w0 + 0.5 * g / g.norm(), r)
        u += share * gs
        stored += share * (gs - (gs @ g) / (g @ g) * g)
    w1 = w0 - 0.1 * u
    g = sum(share * grad(w1, r) for r, share in zip(rows, (2 / 3, 1 / 3), strict=True))
    w2 = w1 - 0.1 * (g + 0.7 * g.norm() / stored.norm() * stored)
    end, kept = looksam_on_m(how, sizes, rows)
    assert_close(kept, stored, rtol=1e-10, atol=1e-12)
    assert_close(end, w2, rtol=1e-10, atol=1e-12)


@every_layout
def test_look_layersam_moves_each_tensor_by_its_own_norm(layout):
    held = q_walk("look_layersam", layout, rho=0.5)
    eps = 0.5 * math.sqrt(10) * tensor(0.6, 0.8) if layout == "one" else tensor(1.5, 0.5)
    assert_close(held.displacement(), eps, **NEAR)


# -- SAMPa -----------------------------------------------------------------------------------------------------------


@every_layout
def test_sampa_takes_two_oracle_steps(layout):
    held = q_walk("sampa", layout, 2, rho=0.5, lam=0.2)
    # calls: y_0 = x_0 (first step only), x~_0, y_1; then x~_1, y_2
    assert_close(held.visited[1], tensor(3.3, 1.4), **NEAR)
    assert_close(held.visited[2], tensor(2.7, 0.6), **NEAR)
    assert_close(held.ws[0], tensor(2.682, 0.504), **NEAR)
    assert_close(held.visited[4], tensor(2.412, 0.264), **NEAR)
    assert_close(held.ws[1], tensor(2.389303627, 0.215301786), **NEAR)
    assert len(held.visited) == 5


@every_layout
@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_sampa_at_the_ends_of_lam(lam, layout):
    held = q_walk("sampa", layout, 3, rho=0.5, lam=lam)
    A, x, y = tensor(1.0, 4.0), tensor(3.0, 1.0), tensor(3.0, 1.0)
    for t in range(3):
        g = A * y
        y_next = x - 0.1 * g
        u = A * y_next if lam == 1.0 else A * (x + 0.5 * g / g.norm())  # lam = 0 perturbs all the same
        x, y = x - 0.1 * u, y_next
        assert_close(held.ws[t], x, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sampa_looks_where_sgd_would_go(nesterov):
    # y = the step of torch's own SGD with the stored gradient: momentum and decay included
    model = Quadratic()
    optimizer = make_optimizer(
        "sampa", model, lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.3, decay_all=True, rho=0.5
    )
    held = walk(type(on_q("sam"))(model, optimizer), 2)
    twin = nn.Parameter(held.w)
    sgd = torch.optim.SGD([twin], lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.3)
    sgd.state[twin]["momentum_buffer"] = optimizer.base.state[model.parts[0]]["momentum_buffer"].clone()
    twin.grad = optimizer.parts.source.stored["parts.0"].clone()
    sgd.step()
    walk(held)
    assert_close(held.visited[-1], twin.detach(), rtol=1e-12, atol=1e-12)


def test_sampa_takes_the_perturbed_gradient_on_the_batch_of_the_stored_one():
    model = TwoExamples()
    optimizer = make_optimizer("sampa", model, lr=0.1, rho=0.5, lam=0.3)

    def grad(w, rows):
        return (w - model.centres[rows]).mean(0)

    batches = [[0], [1], [0, 2], [2]]
    x = y = tensor(3.0, 1.0)
    stored, before = grad(y, batches[0]), batches[0]
    for rows in batches:
        tilde = x + 0.5 * stored / stored.norm()
        y = x - 0.1 * stored
        ahead = grad(y, rows)
        x = x - 0.1 * (0.7 * grad(tilde, before) + 0.3 * ahead)
        stored, before = ahead, rows
        optimizer.step(closure_of(model, lambda r=rows: model(r)))
        assert_close(model.w.detach(), x, rtol=1e-11, atol=1e-12)


def test_sampa_counts_a_parameter_that_only_one_of_its_batches_uses():
    w, extra = nn.Parameter(tensor(1.0)), nn.Parameter(tensor(2.0))
    model = nn.ParameterList([w, extra])
    optimizer = make_optimizer("sampa", model, lr=0.1, rho=0.5, lam=0.2)
    optimizer.step(closure_of(model, lambda: (w**2).sum()))  # the first batch does not use `extra`
    optimizer.step(closure_of(model, lambda: (w**2).sum() + (3 * extra).sum()))
    assert_close(extra.detach(), tensor(2.0 - 0.1 * 0.2 * 3), **NEAR)


def test_sampa_is_a_method_of_sgd():
    model = Quadratic()
    with pytest.raises(ValueError, match="needs `base` 'sgd'"):
        make_optimizer("sampa", model, torch.optim.AdamW(model.parameters()))


# -- Lookahead-SAM ---------------------------------------------------------------------------------------------------


@every_layout
def test_eg_sam_extrapolates_backwards(layout):
    held = q_walk("egsam", layout, rho=1.0)
    assert_close(held.visited[1], tensor(3.3, 1.4), **NEAR)
    assert_close(held.ws[0], tensor(2.67, 0.44), **NEAR)
    # where rho = lr |g| the two cancel
    assert_close(q_walk("egsam", layout, rho=0.5).visited[1], tensor(3.0, 1.0), **NEAR)


@every_layout
def test_og_sam_extrapolates_with_the_last_gradient(layout):
    held = on_q("ogsam", layout, rho=1.0)
    set_weights(held.model, 2.67, 0.44)
    held.optimizer.parts.source.previous = cut(tensor(3.3, 5.6), named(held.model))
    walk(held)
    assert_close(held.visited[1], tensor(3.174925547, 0.430362908), **NEAR)
    assert_close(held.us[0], tensor(3.174925547, 1.721451631), **NEAR)
    assert_close(held.w, tensor(2.352507445, 0.267854837), **NEAR)
    # what it stored is the gradient just taken
    walk(held)
    g = tensor(1.0, 4.0) * held.ws[0]
    assert_close(held.visited[3], held.ws[0] - 0.1 * held.us[0] + g / g.norm(), rtol=1e-11, atol=1e-12)


@every_layout
def test_og_sam_begins_as_sam(layout):
    assert_close(q_walk("ogsam", layout, rho=0.5).us[0], tensor(3.3, 5.6), **NEAR)


def test_ao_sam_is_og_sam_where_the_gate_opens_and_plain_elsewhere():
    open_, shut = ({"lambda1": c, "lambda2": c} for c in (-math.inf, math.inf))
    always = q_walk("aosam", count=3, rho=0.5, **open_)
    assert_close(torch.stack(always.ws), torch.stack(q_walk("ogsam", count=3, rho=0.5).ws), rtol=1e-12, atol=0)
    never = q_walk("aosam", count=3, rho=0.5, **shut)
    assert torch.equal(torch.stack(never.ws), torch.stack(q_walk("sgd", count=3).ws))


# -- Lookbehind-SAM --------------------------------------------------------------------------------------------------


@every_layout
def test_lookbehind_sums_the_gradients_of_its_climb(layout):
    held = q_walk("lookbehind", layout, rho=0.5, k=2, alpha=0.5)
    assert_close(held.ws[0], tensor(2.657307692, 0.353846154), **NEAR)
    phi = tensor(3.0, 1.0) - 0.1 * tensor(1.0, 4.0) * (held.visited[1] + held.visited[2])
    assert_close(phi, tensor(2.314615385, -0.292307692), **NEAR)
    assert len(held.visited) == 3  # k + 1 gradients


@every_layout
def test_lookbehind_with_one_step_is_a_share_of_sam(layout):
    assert_close(q_walk("lookbehind", layout, rho=0.5, k=1, alpha=0.5).us[0], 0.5 * tensor(3.3, 5.6), **NEAR)


# -- ESAM ------------------------------------------------------------------------------------------------------------


@every_layout
def test_esam_on_a_given_entry(layout):
    held = on_q("esam", layout, rho=0.5, beta=0.5, gamma=1.0, granularity="element")
    with_part(held.optimizer, mask=FixedMask((0.0, 1.0), in_norm=False, scale=2.0))
    walk(held)
    assert_close(held.displacement(), tensor(0.0, 0.8), **NEAR)
    assert_close(held.us[0], tensor(3.0, 7.2), **NEAR)


@every_layout
def test_esam_draws_entries_and_scales_by_their_share(layout):
    # whichever of the four masks is drawn, eps = (rho/beta) m g/|g| with the norm of the whole gradient
    seen = set()
    for seed in range(12):
        eps = q_walk("esam", layout, rho=0.5, beta=0.5, gamma=1.0, granularity="element", seed=seed).displacement()
        mask = tuple((eps != 0).tolist())
        seen.add(mask)
        assert_close(eps, tensor(0.6, 0.8) * torch.tensor(mask), **NEAR)
    assert len(seen) >= 3


def test_esam_draws_tensors_and_normalises_over_them():
    seen = set()
    for seed in range(12):
        held = q_walk("esam", "two", rho=0.5, beta=0.5, gamma=1.0, seed=seed)
        eps = held.displacement()
        mask = tuple((eps != 0).tolist())
        seen.add(mask)
        part = tensor(3.0, 4.0) * torch.tensor(mask)
        assert_close(eps, (0.5 / 0.5) * part / part.norm(), **NEAR)
        assert_close(held.us[0], tensor(3.0, 4.0) + tensor(1.0, 4.0) * eps, **NEAR)  # all weights are updated
    assert seen == {(True, False), (False, True), (True, True)}  # never none


@pytest.mark.parametrize("rich", [examples_of])
def test_esam_descends_on_the_example_that_is_hurt_most(rich):
    model = TwoExamples()
    optimizer = make_optimizer("esam", model, lr=1.0, rho=0.5, beta=1.0, gamma=0.5)
    optimizer.step(rich(model, [0, 1]))
    assert_close(tensor(3.0, 1.0) - model.w.detach(), tensor(0.257247878, 4.428746463), **NEAR)
    eps = tensor(1.5, 2.5) * 0.5 / tensor(1.5, 2.5).norm()
    delta = [0.5 * float((r + eps) @ (r + eps) - r @ r) for r in (tensor(3.0, 1.0), tensor(0.0, 4.0))]
    assert delta == pytest.approx([1.325490096, 1.839985851], rel=1e-8)


def test_esam_trains_past_a_parameter_that_the_loss_does_not_use():
    # a draw may choose nothing but unused tensors: then the step is a plain one
    for seed in range(8):
        w, unused = nn.Parameter(tensor(3.0)), nn.Parameter(tensor(1.0))
        model = nn.ParameterList([w, unused])
        optimizer = make_optimizer("esam", model, lr=0.1, rho=0.5, beta=0.3, gamma=1.0, seed=seed)
        optimizer.step(closure_of(model, lambda w=w: 0.5 * (w**2).sum()))
        assert torch.equal(unused.detach(), tensor(1.0))
        assert float(w.detach()) in (pytest.approx(2.7), pytest.approx(3 - 0.1 * (3 + 0.5 / 0.3)))
