"""SAM, p-norms, several steps, USAM, RandSAM, ASAM, GSAM, OBF and their relatives against their oracles.

Every oracle on problem Q runs with its two coordinates in one tensor, in two, and in two parameter groups.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from quadratics import (
    F64,
    LAYOUTS,
    NEAR,
    FixedDraw,
    Quadratic,
    TwoExamples,
    closure_of,
    objective_of,
    on_q,
    q_walk,
    tensor,
    walk,
    with_part,
    z_step,
)
from torch import nn
from torch.testing import assert_close

from trainers import make_optimizer, obf_loss
from trainers.sharpness_aware.combiners import Point, Seen, SurrogateGap
from trainers.sharpness_aware.moment import Moment

# eps = rho |w| g/|g| = (0.9, 0.4), g_p = (3.9, 5.6); <g, g_p>/|g_p|² = 34.1/46.57
ADAPTIVE_GSAM = tuple(gp - 0.4 * (g - 34.1 / 46.57 * gp) for g, gp in ((3.0, 3.9), (4.0, 5.6)))
ON_Q = [
    ("sam", {"rho": 0.5}, (3.3, 5.6)),
    ("sam", {"rho": 0.5, "p": math.inf}, (3.5, 6.0)),
    ("sam", {"rho": 0.5, "p": 1.0}, (3.0, 6.0)),
    ("sam", {"rho": 0.5, "p": 3.0}, (3 + 0.366478238, 4 + 4 * 0.423172619)),
    ("sam", {"rho": 0.5, "p": 1.5}, (3 + 0.222425676, 4 + 4 * 0.395423424)),
    ("sam", {"rho": 0.5, "steps": 2, "path": "pgd"}, (3.277350098, 5.664100589)),
    ("sam", {"rho": 0.5, "steps": 2, "path": "split"}, (3.28716411, 5.636047911)),
    ("sam", {"rho": 0.5, "adaptive": "both"}, (4.370717323, 4.812276932)),
    ("sam", {"rho": 0.5, "adaptive": "both", "p": math.inf}, (4.5, 6.0)),  # eps = rho |w| sign(g)
    ("usam", {"rho": 0.1}, (3.3, 5.6)),
    ("asam", {"rho": 0.5, "eta": 0.0, "scope": "all"}, (4.370717323, 4.812276932)),
    ("asam", {"rho": 0.5, "eta": 0.01, "scope": "all"}, (4.373776545, 4.824944215)),
    ("asam", {"rho": 0.5, "eta": 0.0, "scope": "all", "where": "before"}, (3.456905774, 4.812276932)),
    ("asam", {"rho": 0.5, "eta": 0.0, "scope": "all", "where": "after"}, (3.9, 5.6)),
    ("asam", {"rho": 0.5, "eta": 0.01, "scope": "weights"}, (3.3, 5.6)),  # no name has "weight" in it: T = 1
    ("gsam", {"rho": 0.5, "alpha": 0.4}, (3.109136095, 5.712473373)),
    ("gsam", {"rho": 0.5, "alpha": 0.4, "backup": "direction"}, (3.261827219, 5.622494675)),
    ("gsam", {"rho": 0.5, "alpha": 0.4, "minimize": "clean"}, (2.7696, 4.1728)),
    ("gsam", {"rho": 0.5, "alpha": 0.0}, (3.3, 5.6)),
    ("gsam", {"rho": 0.5, "alpha": 0.4, "adaptive": "after"}, ADAPTIVE_GSAM),
    ("stablesam", {"rho": 0.5}, (2.538461538, 4.307692308)),
    ("sam_step_size", {"rho": 0.5}, (3.9, 5.2)),  # g |g_p|/|g| = (3, 4) 6.5/5
]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("method", "options", "u"), ON_Q, ids=[f"{m}-{o}" for m, o, _ in ON_Q])
def test_one_step_on_the_quadratic(method, options, u, layout):
    held = q_walk(method, layout, **options)
    assert_close(held.us[0], tensor(*u), **NEAR)
    assert_close(held.w, tensor(3.0, 1.0) - 0.1 * tensor(*u), **NEAR)
    assert torch.equal(held.visited[0], tensor(3.0, 1.0))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sam_visits_the_oracle_point_and_returns_the_clean_loss(layout):
    held = q_walk("sam", layout, rho=0.5)
    assert_close(held.displacement(), tensor(0.3, 0.4), **NEAR)
    assert_close(held.w, tensor(2.67, 0.44), **NEAR)
    assert float(held.losses[0]) == pytest.approx(6.5, rel=1e-12)
    last = held.optimizer.last
    assert last.clean_loss == pytest.approx(6.5, rel=1e-12)
    assert last.perturbed_loss == pytest.approx(9.365, rel=1e-12)
    assert last.gap == pytest.approx(2.865, rel=1e-12)
    assert last.length == pytest.approx(0.5, rel=1e-9)
    assert (last.rho, last.mode, last.passes) == (0.5, "perturbed", 2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("p", "eps", "attained"),
    [
        (3.0, (0.366478238, 0.423172619), 2.792125188),
        (1.5, (0.222425676, 0.395423424), 2.248970723),
        (2.0, (0.3, 0.4), 2.5),
        (math.inf, (0.5, 0.5), 3.5),
        (1.0, (0.0, 0.5), 2.0),
    ],
)
def test_the_general_ball_is_touched_where_the_gradient_rises_most(p, eps, attained, layout):
    got = q_walk("sam", layout, rho=0.5, p=p).displacement()
    assert_close(got, tensor(*eps), **NEAR)
    assert float(torch.linalg.vector_norm(got, p)) == pytest.approx(0.5, rel=1e-9)
    assert float(got @ tensor(3.0, 4.0)) == pytest.approx(attained, rel=1e-8)


def test_a_tie_goes_to_the_first_entry_for_p_1():
    model = Quadratic()
    with torch.no_grad():
        model.parts[0].copy_(tensor(-4.0, 1.0))  # g = (-4, 4)
    held = walk(type(on_q("sam"))(model, make_optimizer("sam", model, lr=0.1, rho=0.5, p=1.0)))
    assert_close(held.visited[1], tensor(-4.5, 1.0), **NEAR)


def test_p_1_takes_weights_in_any_memory_format():
    model = nn.Conv2d(2, 3, 2, dtype=F64).to(memory_format=torch.channels_last)
    with torch.no_grad():
        model.weight.copy_(torch.arange(24.0).view(3, 2, 2, 2))
        model.bias.zero_()
    seen = []

    def closure():
        model.zero_grad()
        seen.append(model.weight.detach().clone())
        loss = (model.weight * model.weight).sum()  # the gradient is largest at the last entry
        loss.backward()
        return loss

    make_optimizer("sam", model, lr=0.1, rho=0.5, p=1.0).step(closure)
    moved = (seen[1] - seen[0]).reshape(-1)
    assert moved.nonzero().flatten().tolist() == [23]
    assert float(moved[-1]) == pytest.approx(0.5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("path", "points"),
    [("pgd", [(0.3, 0.4), (0.277350098, 0.416025147)]), ("split", [(0.15, 0.2), (0.28716411, 0.409011978)])],
)
def test_each_inner_step_starts_where_the_last_one_ended(path, points, layout):
    held = q_walk("sam", layout, rho=0.5, steps=2, path=path)
    for call, eps in enumerate(points, start=1):
        assert_close(held.displacement(call), tensor(*eps), **NEAR)
    assert held.optimizer.last.length == pytest.approx(math.hypot(*points[-1]), rel=1e-7)


def test_many_steps_of_ascent_never_leave_the_ball():
    held = q_walk("sam", rho=0.5, steps=6)
    lengths = [float((v - tensor(3.0, 1.0)).norm()) for v in held.visited]
    assert max(lengths) <= 0.5 * (1 + 1e-12)
    assert held.optimizer.last.passes == 7


@pytest.mark.parametrize("options", [{"p": math.inf}, {"p": 1.5}, {"adaptive": "both"}])
def test_projected_ascent_is_refused_where_its_ball_is_not_the_one_of_the_norm(options):
    # the projection is on the euclidean ball; in another norm or metric the path would silently shrink
    with pytest.raises(ValueError, match="`path`"):
        make_optimizer("sam", Quadratic(), lr=0.1, rho=0.5, steps=2, **options)
    make_optimizer("sam", Quadratic(), lr=0.1, rho=0.5, steps=2, path="split", **options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("adaptive", "eps"),
    [
        ("none", (-0.3, 0.4)),
        ("before", (-0.5 * 1.8 / math.sqrt(3.88), 0.5 * 0.8 / math.sqrt(3.88))),  # |w| n = (-1.8, 0.8)
        ("after", (-0.9, 0.4)),
        ("both", (-0.5 * 5.4 / math.sqrt(3.88), 0.5 * 0.8 / math.sqrt(3.88))),
    ],
)
def test_randsam_with_the_oracle_draw(adaptive, eps, layout):
    held = on_q("randsam", layout, rho=0.5, adaptive=adaptive)
    with_part(held.optimizer, source=FixedDraw((-0.6, 0.8)))
    walk(held)
    assert_close(held.us[0], tensor(3 + eps[0], 4 + 4 * eps[1]), **NEAR)


def test_randsam_draws_a_fresh_direction_of_length_rho_each_step_and_chunk():
    model = Quadratic()
    optimizer = make_optimizer("randsam", model, lr=1e-300, rho=0.5, seed=3)
    seen = []
    closure = closure_of(model, lambda: seen.append(model.w.detach().clone()) or model())
    for _ in range(2):
        optimizer.step([closure, closure])
    moved = [v - tensor(3.0, 1.0) for v in seen if not torch.equal(v, tensor(3.0, 1.0))]
    assert len(moved) == 4
    draws = torch.Generator().manual_seed(3)
    for eps in moved:
        n = torch.randn(2, generator=draws, dtype=F64)
        assert_close(eps, 0.5 * n / n.norm(), **NEAR)


def test_filterwise_and_tensorwise_scaling_reduce_to_known_cases():
    # One tensor: T is constant, so tensorwise ASAM with eta 0 is SAM of radius rho |w|.
    one = q_walk("asam", rho=0.5, eta=0.0, granularity="tensor", scope="all").us[0]
    assert_close(one, q_walk("sam", rho=0.5 * math.sqrt(10)).us[0], **NEAR)
    # Tensors of one entry: all three are elementwise.
    for kind in ("tensor", "filter"):
        got = q_walk("asam", "two", rho=0.5, eta=0.1, granularity=kind, scope="all").us[0]
        assert_close(got, q_walk("asam", rho=0.5, eta=0.1, scope="all").us[0], **NEAR)


@pytest.mark.parametrize("granularity", ["element", "filter", "tensor"])
def test_asam_on_a_matrix_and_its_bias_by_hand(granularity):
    g = torch.Generator().manual_seed(5)
    x = torch.randn(6, 3, generator=g, dtype=F64)
    model = nn.Linear(3, 2, dtype=F64)
    w, b = model.weight.detach().clone(), model.bias.detach().clone()

    def grad(w, b):
        w, b = w.clone().requires_grad_(), b.clone().requires_grad_()
        return torch.autograd.grad((x @ w.T + b).tanh().square().mean(), (w, b))

    norm = {"element": w.abs(), "filter": w.norm(dim=1, keepdim=True), "tensor": w.norm()}[granularity]
    t = norm + 0.01
    gw, gb = grad(w, b)
    length = torch.sqrt((t * gw).square().sum() + gb.square().sum())  # T = 1 for the bias
    expected = grad(w + 0.3 * t**2 * gw / length, b + 0.3 * gb / length)
    optimizer = make_optimizer("asam", model, lr=1.0, rho=0.3, granularity=granularity)
    optimizer.step(closure_of(model, lambda: model(x).tanh().square().mean()))
    assert_close(w - model.weight.detach(), expected[0], rtol=1e-9, atol=1e-12)
    assert_close(b - model.bias.detach(), expected[1], rtol=1e-9, atol=1e-12)


def test_asam_is_invariant_to_a_rescaling_that_keeps_the_function():
    def perturbation(a, b, where):
        model = nn.ParameterList([tensor(a), tensor(b)])
        optimizer = make_optimizer("asam", model, lr=1e-300, rho=0.5, eta=0.0, scope="all", where=where)
        seen = []

        def closure():
            model.zero_grad()
            value = (model[0] * model[1]).sum().cosh()
            value.backward()
            seen.append((model[0].item(), model[1].item(), value.item()))
            return value

        optimizer.step(closure)
        return seen[1][0] - a, seen[1][1] - b, seen[1][2]

    (a1, b1, l1), (a3, b3, l3) = perturbation(1.5, 0.5, "both"), perturbation(4.5, 0.5 / 3, "both")
    assert (a3, b3, l3) == pytest.approx((3 * a1, b1 / 3, l1), rel=1e-11)
    for where in ("before", "after"):  # neither half of the metric alone is invariant
        assert perturbation(1.5, 0.5, where)[2] != pytest.approx(perturbation(4.5, 0.5 / 3, where)[2], rel=1e-3)


# -- GSAM ------------------------------------------------------------------------------------------------------------


def test_the_rejected_component_is_orthogonal_to_the_perturbed_gradient():
    g, gp = {"w": tensor(3.0, 4.0)}, {"w": tensor(3.3, 5.6)}
    point = Point({"w": gp["w"].clone()}, torch.tensor(9.365))  # a combiner may write into what it is given
    seen = Seen(Moment(0, 0.1, 0.5, {}), 1.0, g, g, torch.tensor(6.5), [point], dict)
    u = SurrogateGap(0.4)(seen)["w"]
    assert_close((gp["w"] - u) / 0.4, tensor(0.477159763, -0.281183432), **NEAR)
    assert float((gp["w"] - u) @ gp["w"]) == pytest.approx(0, abs=1e-12)


def test_gsam_needs_a_clean_gradient():
    point = Point({"w": tensor(1.0)}, torch.tensor(1.0))
    with pytest.raises(ValueError, match="GSAM needs a gradient"):
        SurrogateGap()(Seen(Moment(0, 0.1, 0.5, {}), 1.0, None, None, None, [point], dict))


@pytest.mark.parametrize(
    ("lr", "rho"), [(1.6, 0.6), (0.016, 0.1), (0.808, 0.35), (0.0, max(0.0, 0.1 - 0.5 * 0.016 / 1.584))]
)
def test_gsams_radius_follows_the_learning_rate(lr, rho):
    held = on_q("gsam", lr=1.6, rho=0.6, rho_min=0.1, lr_min=0.016, rho_schedule="lr")
    for group in held.optimizer.param_groups:
        group["lr"] = lr
    held.optimizer.step(closure_of(held.model, held.model))
    assert held.optimizer.last.rho == pytest.approx(rho, rel=1e-12)


# -- data of the ascent ----------------------------------------------------------------------------------------------


def test_ascent_on_other_data_is_n_sam():
    # The perturbation from both examples, the descent gradient from the first alone: u = r_1 + rho r/|r|.
    expected = tensor(3.0, 1.0) + 0.5 * tensor(1.5, 2.5) / tensor(1.5, 2.5).norm()
    for method in ("sam", "nsam"):
        model = TwoExamples()
        one, both = closure_of(model, lambda m=model: m([0])), closure_of(model, lambda m=model: m([0, 1]))
        optimizer = make_optimizer(method, model, lr=1.0, rho=0.5)
        if method == "sam":
            optimizer.step(one, ascent=both)
        else:
            assert optimizer.needs_reference == "gradient"
            second = closure_of(model, lambda m=model: m([1]))
            optimizer.reference = lambda a=one, b=second: ([a, b], [1, 1])
            optimizer.step(one)
        assert_close(tensor(3.0, 1.0) - model.w.detach(), expected, **NEAR)


def test_reference_data_are_weighted_by_their_sizes():
    model = TwoExamples()
    optimizer = make_optimizer("nsam", model, lr=1.0, rho=0.5)
    pair, third = closure_of(model, lambda: model([0, 1])), closure_of(model, lambda: model([2]))
    optimizer.reference = lambda: ([pair, third], [2, 1])
    optimizer.step(closure_of(model, lambda: model([0])))
    r = (2 * tensor(1.5, 2.5) + tensor(2.0, -1.0)) / 3
    assert_close(tensor(3.0, 1.0) - model.w.detach(), tensor(3.0, 1.0) + 0.5 * r / r.norm(), **NEAR)


def test_the_previous_batch_can_give_the_ascent():
    # First step: the batch itself. Second: the first batch's gradient at the new weights.
    model = TwoExamples()
    optimizer = make_optimizer("nsam", model, lr=0.1, rho=0.5, ascent_data="previous")
    w = tensor(3.0, 1.0)
    rows = [[0], [1], [0, 2]]
    previous = rows[0]

    def grad(w, rows):
        return (w - model.centres[rows]).mean(0)

    for now in rows:
        a = grad(w, previous)
        w = w - 0.1 * grad(w + 0.5 * a / a.norm(), now)
        optimizer.step(closure_of(model, lambda i=now: model(i)))
        previous = now
        assert_close(model.w.detach(), w, rtol=1e-11, atol=1e-12)


# -- OBF -------------------------------------------------------------------------------------------------------------

Z_ORACLES = [
    ("softmax", "obf", 1.0, (-0.414368779, 0.293432117, 0.120936662), (-0.399465251, 0.339682261, 0.05978299)),
    ("softmax", "obf", 0.0, (-0.421301736, 0.307996248, 0.113305488), (-0.403580764, 0.3566568, 0.046923963)),
    ("softmax", "loss", 0.0, (-0.436776191, 0.35090006, 0.085876131), (-0.435147935, 0.354111137, 0.081036798)),
    ("sigmoid", "obf", 1.0, (-0.284182074, 0.43602071, 0.301534129), (-0.10119914, 0.549342979, 0.310122257)),
    ("sigmoid", "obf", 0.0, (-0.252159278, 0.612168229, 0.367358771), (-0.072514904, 0.690099311, 0.360804045)),
    ("sigmoid", "loss", 0.0, (-0.14550919, 0.723846722, 0.381854693), (-0.13842798, 0.72581436, 0.380823182)),
]


@pytest.mark.parametrize(("link", "objective", "gamma", "sam", "gsam"), Z_ORACLES)
def test_obf_perturbation_on_the_linear_classifier(link, objective, gamma, sam, gsam):
    near = {"rtol": 1e-7, "atol": 2e-9}  # the oracles have nine decimals
    method = "obf" if objective == "obf" else "sam"
    assert_close(z_step(method, link=link, objective=objective, gamma=gamma), tensor(*sam), **near)
    options = {"ascent": "obf"} if objective == "obf" else {}
    u = z_step("gsam", link=link, objective=objective, gamma=gamma, alpha=0.4, **options)
    assert_close(u, tensor(*gsam), **near)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_obf_with_the_loss_as_objective_is_sam(layout):
    held = on_q("obf", layout, rho=0.5)
    closure = closure_of(held.model, held.model)
    held.optimizer.step(closure, ascent=closure)
    assert_close(held.w, tensor(2.67, 0.44), **NEAR)


def test_obf_composes_with_asam_and_chunks():
    # For one weight matrix, eps = rho T² a/|T a| with a = q x'; checked against that formula written out.
    x = torch.tensor([[1.0, 2.0], [0.5, -1.0], [2.0, 0.0]], dtype=F64)
    y = torch.tensor([0, 2, 1])
    start = torch.tensor([[2.0, 0.3], [0.1, -0.2], [-1.0, 0.4]], dtype=F64)

    def gradient(w, rows):
        w = w.clone().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(x[rows] @ w.T, y[rows]), w)[0]

    def ascent(w, rows):
        w = w.clone().requires_grad_()
        return torch.autograd.grad(obf_loss(x[rows] @ w.T, y[rows], gamma=0.5), w)[0]

    expected = torch.zeros_like(start)
    for rows, share in (([0, 1], 2 / 3), ([2], 1 / 3)):
        a, t = ascent(start, rows), start.abs() + 0.01
        expected += share * gradient(start + 0.7 * t**2 * a / (t * a).norm(), rows)

    model = nn.Linear(2, 3, bias=False, dtype=F64)
    with torch.no_grad():
        model.weight.copy_(start)
    optimizer = make_optimizer("asam", model, lr=1.0, rho=0.7, ascent="obf")
    closures, ascents = [], []
    for rows in ([0, 1], [2]):
        closures.append(closure_of(model, lambda r=rows: F.cross_entropy(model(x[r]), y[r])))
        ascents.append(closure_of(model, lambda r=rows: obf_loss(model(x[r]), y[r], gamma=0.5)))
    optimizer.step(closures, sizes=[2, 1], ascent=ascents)
    assert_close(start - model.weight.detach(), expected, rtol=1e-9, atol=1e-12)


# -- Functional SAM --------------------------------------------------------------------------------------------------


def test_functional_sam_pulls_the_clean_cotangent_through_the_displaced_network():
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(5, 3, generator=g, dtype=F64), torch.tensor([0, 1, 1, 0, 1])
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(F64)
    clean = {n: p.detach().clone() for n, p in model.named_parameters()}

    def logits(theta):
        return torch.func.functional_call(model, theta, (x,))

    leaves = {n: p.clone().requires_grad_() for n, p in clean.items()}
    z = logits(leaves)
    loss = F.cross_entropy(z, y)
    (cotangent,) = torch.autograd.grad(loss, z, retain_graph=True)
    grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    length = torch.sqrt(sum(g.square().sum() for g in grads.values()))
    moved = {n: (p + 0.4 * grads[n] / length).requires_grad_() for n, p in clean.items()}
    expected = torch.autograd.grad(logits(moved), list(moved.values()), cotangent)

    optimizer = make_optimizer("functionalsam", model, lr=1.0, rho=0.4)
    optimizer.step(objective_of(model, F.cross_entropy, x, y))
    for (name, p), u in zip(model.named_parameters(), expected, strict=True):
        assert_close(clean[name] - p.detach(), u, rtol=1e-9, atol=1e-12)
