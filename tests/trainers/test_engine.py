"""The engine and the methods against the one-step oracles of their equations (problems Q, M and Z)."""

import math

import pytest
import torch
import torch.nn.functional as F
from quadratics import F64, Quadratic, TwoExamples, closure_of, step_of, tensor, z_step
from torch import nn
from torch.testing import assert_close

from trainers import make_optimizer, obf_loss
from trainers.sharpness_aware.combiners import SurrogateGap
from trainers.sharpness_aware.engine import SharpnessAware

NEAR = {"rtol": 1e-7, "atol": 1e-8}

Q_ORACLES = [
    ("sam", {"rho": 0.5}, (3.3, 5.6)),
    ("sam", {"rho": 0.5, "p": math.inf}, (3.5, 6.0)),
    ("sam", {"rho": 0.5, "p": 1.0}, (3.0, 6.0)),
    ("sam", {"rho": 0.5, "p": 3.0}, (3 + 0.366478238, 4 + 4 * 0.423172619)),
    ("sam", {"rho": 0.5, "p": 1.5}, (3 + 0.222425676, 4 + 4 * 0.395423424)),
    ("sam", {"rho": 0.5, "steps": 2, "path": "pgd"}, (3.277350098, 5.664100589)),
    ("sam", {"rho": 0.5, "steps": 2, "path": "split"}, (3.28716411, 5.636047911)),
    ("usam", {"rho": 0.1}, (3.3, 5.6)),
    ("asam", {"rho": 0.5, "eta": 0.0, "scope": "all"}, (4.370717323, 4.812276932)),
    ("asam", {"rho": 0.5, "eta": 0.01, "scope": "all"}, (4.373776545, 4.824944215)),
    ("asam", {"rho": 0.5, "eta": 0.0, "scope": "all", "where": "before"}, (3.456905774, 4.812276932)),
    ("asam", {"rho": 0.5, "eta": 0.0, "scope": "all", "where": "after"}, (3.9, 5.6)),
    ("sam", {"rho": 0.5, "adaptive": "both"}, (4.370717323, 4.812276932)),
    ("gsam", {"rho": 0.5, "alpha": 0.4}, (3.109136095, 5.712473373)),
    ("gsam", {"rho": 0.5, "alpha": 0.4, "backup": "direction"}, (3.261827219, 5.622494675)),
    ("gsam", {"rho": 0.5, "alpha": 0.4, "minimize": "clean"}, (2.7696, 4.1728)),
    ("gsam", {"rho": 0.5, "alpha": 0.4, "adaptive": "after"}, None),
]


@pytest.mark.parametrize("layout", [{}, {"split": True}, {"split": True, "groups": True}], ids=["one", "two", "groups"])
@pytest.mark.parametrize(("method", "options", "expected"), Q_ORACLES, ids=[f"{m}-{o}" for m, o, _ in Q_ORACLES])
def test_one_step_on_the_quadratic(method, options, expected, layout):
    u, after, _ = step_of(method, **options, **layout)
    if expected is None:  # GSAM's adaptive form: eps = rho |w| g / |g| = (0.9, 0.4), then its combination by hand
        g, gp = tensor(3.0, 4.0), tensor(3.9, 5.6)
        expected = (gp - 0.4 * (g - (g @ gp) / (gp @ gp) * gp)).tolist()
    assert_close(u, tensor(*expected), **NEAR)
    assert_close(after, tensor(3.0, 1.0) - 0.1 * u, rtol=0, atol=1e-12)


def test_sam_returns_the_clean_loss_and_records_the_step():
    model = Quadratic()
    optimizer = make_optimizer("sam", model, lr=0.1, rho=0.5)
    loss = optimizer.step(closure_of(model, model))
    assert float(loss) == pytest.approx(6.5, rel=1e-12)
    assert optimizer.last.perturbed_loss == pytest.approx(9.365, rel=1e-12)
    assert optimizer.last.length == pytest.approx(0.5, rel=1e-9)
    assert optimizer.last.passes == 2


def test_filterwise_and_tensorwise_scaling_reduce_to_known_cases():
    # One tensor: T is constant, so tensorwise ASAM with eta 0 is SAM of radius rho * norm(w).
    u, _, _ = step_of("asam", rho=0.5, eta=0.0, granularity="tensor")
    sam, _, _ = step_of("sam", rho=0.5 * math.sqrt(10))
    assert_close(u, sam, **NEAR)
    # One coordinate a tensor of one dimension: filterwise falls back to the entry.
    u, _, _ = step_of("asam", rho=0.5, eta=0.0, granularity="filter", split=True)
    element, _, _ = step_of("asam", rho=0.5, eta=0.0, scope="all")
    assert_close(u, element, **NEAR)


def test_randsam_moves_by_rho_along_its_own_draw():
    model = Quadratic()
    optimizer = make_optimizer("randsam", model, lr=0.1, rho=0.5, seed=3)
    n = torch.randn(2, generator=torch.Generator().manual_seed(3), dtype=F64)
    optimizer.step(closure_of(model, model))
    eps = 0.5 * n / n.norm()
    expected = tensor(3.0, 1.0) - 0.1 * tensor(1.0, 4.0) * (tensor(3.0, 1.0) + eps)
    assert_close(model.w.detach(), expected, **NEAR)


class FixedDraw:
    """A source that always gives n = (-0.6, 0.8), the oracle's draw."""

    needs_gradient, steps = False, 1

    def direction(self, theta, grad):
        (name,) = theta
        return {name: tensor(-0.6, 0.8)}

    def advance(self, delta, unit, rho):
        return {k: rho * v for k, v in unit.items()}

    def state_dict(self):
        return {}


def test_a_given_random_direction_has_the_oracle_gradient():
    model = Quadratic()
    optimizer = make_optimizer("randsam", model, lr=0.1, rho=0.5)
    object.__setattr__(optimizer.parts, "source", FixedDraw())
    optimizer.step(closure_of(model, model))
    assert_close((tensor(3.0, 1.0) - model.w.detach()) / 0.1, tensor(2.7, 5.6), **NEAR)


# -- chunks: m-SAM ---------------------------------------------------------------------------------------------------


def m_step(index_lists, sizes, rho=0.5, method="sam", **options):
    model = TwoExamples()
    optimizer = make_optimizer(method, model, lr=1.0, rho=rho, **options)
    closures = [closure_of(model, lambda i=i: model(i)) for i in index_lists]
    optimizer.step(closures, sizes=sizes)
    return tensor(3.0, 1.0) - model.w.detach()


def test_m_sam_perturbs_each_chunk_by_itself():
    assert_close(m_step([[0], [1]], [1, 1]), tensor(1.737170825, 2.829056942), **NEAR)
    assert_close(m_step([[0, 1]], [2]), tensor(1.757247878, 2.928746463), **NEAR)


def test_ragged_chunks_are_weighted_by_their_size():
    two = m_step([[0, 1]], [2])
    one = m_step([[2]], [1])
    assert_close(m_step([[0, 1], [2]], [2, 1]), two * 2 / 3 + one / 3, **NEAR)


def test_plain_steps_accumulate_chunks_too():
    expected = (tensor(3.0, 1.0) + tensor(0.0, 4.0) + tensor(2.0, -1.0)) / 3
    assert_close(m_step([[0, 1], [2]], [2, 1], rho=0.0), expected, **NEAR)


def test_gsam_combines_chunk_by_chunk():
    def one(index):
        return m_step([index], None, method="gsam", alpha=0.4)

    together = m_step([[0], [1]], None, method="gsam", alpha=0.4)
    assert_close(together, (one([0]) + one([1])) / 2, **NEAR)


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
    method = "obf" if objective == "obf" else "sam"
    assert_close(z_step(method, link=link, objective=objective, gamma=gamma), tensor(*sam), rtol=1e-7, atol=2e-9)
    options = {"ascent": "obf"} if objective == "obf" else {}
    u = z_step("gsam", link=link, objective=objective, gamma=gamma, alpha=0.4, **options)
    assert_close(u, tensor(*gsam), rtol=1e-7, atol=2e-9)


def test_obf_with_the_loss_as_objective_is_sam():
    model = Quadratic()
    optimizer = make_optimizer("obf", model, lr=0.1, rho=0.5)
    closure = closure_of(model, model)
    optimizer.step(closure, ascent=closure)
    assert_close(model.w.detach(), tensor(2.67, 0.44), **NEAR)


def test_obf_composes_with_asam_and_chunks():
    # For one weight matrix, eps = rho T² a / |T a| with a = q x'; checked against that formula written out.
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


# -- what must always hold -------------------------------------------------------------------------------------------


def test_weight_decay_acts_outside_at_the_clean_weights():
    u, _, _ = step_of("sam", rho=0.5, weight_decay=0.5, decay_all=True)
    assert_close(u, tensor(4.8, 6.1), **NEAR)


@pytest.mark.parametrize("method", ["sam", "asam", "gsam", "randsam", "usam"])
def test_a_learning_rate_of_zero_leaves_the_weights_bit_for_bit(method):
    _, after, _ = step_of(method, rho=0.7, lr=1e-300)
    assert torch.equal(after, tensor(3.0, 1.0))


@pytest.mark.parametrize("method", ["sam", "asam", "gsam"])
def test_a_zero_gradient_is_a_plain_step(method):
    model = Quadratic()
    with torch.no_grad():
        model.parts[0].zero_()
    u, after, _ = step_of(method, model=model, rho=0.5)
    assert torch.equal(after, torch.zeros(2, dtype=F64))
    assert torch.equal(u, torch.zeros(2, dtype=F64))


def test_a_gradient_that_is_not_finite_never_reaches_the_weights_as_a_perturbation():
    model = Quadratic()
    optimizer = make_optimizer("sam", model, lr=0.1, rho=0.5)
    seen = []

    def closure():
        model.zero_grad()
        seen.append(model.w.detach().clone())
        (model() * math.nan).backward()
        return model()

    optimizer.step(closure)
    assert torch.equal(seen[1], tensor(3.0, 1.0))


@pytest.mark.parametrize(("method", "rho"), [("sam", 0.5), ("asam", 0.5), ("gsam", 0.5)])
def test_the_perturbation_does_not_depend_on_the_scale_of_the_loss(method, rho):
    u, _, _ = step_of(method, rho=rho)
    scaled, _, _ = step_of(method, rho=rho, scale=7.0)
    assert_close(scaled, 7 * u, rtol=1e-11, atol=0)


def test_asam_is_invariant_to_a_rescaling_that_keeps_the_function():
    def perturbed_loss(a, b, metric):
        model = nn.ParameterList([tensor(a), tensor(b)])
        optimizer = make_optimizer("asam" if metric else "sam", model, lr=1e-300, rho=0.5, **metric)
        seen = []

        def closure():
            model.zero_grad()
            value = (model[0] * model[1]).sum().cosh()
            value.backward()
            seen.append(float(value.detach()))
            return value

        optimizer.step(closure)
        return seen[1]

    asam = {"eta": 0.0, "scope": "all"}
    assert perturbed_loss(1.5, 0.5, asam) == pytest.approx(perturbed_loss(4.5, 0.5 / 3, asam), rel=1e-12)
    assert perturbed_loss(1.5, 0.5, {}) != pytest.approx(perturbed_loss(4.5, 0.5 / 3, {}), rel=1e-3)


def test_an_exception_in_the_second_pass_restores_the_weights():
    model = Quadratic()
    optimizer = make_optimizer("sam", model, lr=0.1, rho=0.5)
    calls = []

    def closure():
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("stop")
        model.zero_grad()
        value = model()
        value.backward()
        return value

    with pytest.raises(RuntimeError, match="stop"):
        optimizer.step(closure)
    assert torch.equal(model.w.detach(), tensor(3.0, 1.0))


def test_frozen_unused_and_tied_parameters(generator):
    shared = nn.Linear(3, 3, dtype=F64)
    model = nn.ModuleDict({"a": shared, "b": shared, "frozen": nn.Linear(3, 3, dtype=F64), "unused": nn.Linear(1, 1)})
    model["frozen"].requires_grad_(False)
    x = torch.randn(5, 3, generator=generator, dtype=F64)
    optimizer = make_optimizer("sam", model, lr=0.1, rho=0.5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    lengths = []

    def closure():
        model.zero_grad()
        moved = [p - before[n] for n, p in model.named_parameters()]
        lengths.append(float(torch.sqrt(sum((m.detach().double() ** 2).sum() for m in moved))))
        value = model["frozen"](model["b"](torch.tanh(model["a"](x)))).square().mean()
        value.backward()
        return value

    optimizer.step(closure)
    assert lengths[1] == pytest.approx(0.5, rel=1e-9)  # tied weights counted once
    for name in ("frozen.weight", "unused.weight"):
        assert torch.equal(model.state_dict()[name], before[name])


def test_schedulers_and_state_belong_to_the_base_optimizer():
    model = Quadratic()
    optimizer = make_optimizer("sam", model, lr=0.1, momentum=0.9, rho=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    optimizer.step(closure_of(model, model))
    scheduler.step()
    assert optimizer.base.param_groups[0]["lr"] == pytest.approx(0.05)
    assert optimizer.param_groups is optimizer.base.param_groups


def test_gradient_clipping_acts_on_the_final_gradient_only():
    u, _, optimizer = step_of("sam", rho=0.5, grad_clip=1.0)
    assert_close(u, tensor(3.3, 5.6) / 6.5, rtol=1e-6, atol=0)
    assert optimizer.last.length == pytest.approx(0.5, rel=1e-9)


@pytest.mark.parametrize("combiner", [SurrogateGap(0.4)])
def test_the_rejected_component_is_orthogonal(combiner):
    g, gp = {"w": tensor(3.0, 4.0)}, {"w": tensor(3.3, 5.6)}
    u = combiner(g, dict, gp)["w"]
    assert_close((gp["w"] - u) / 0.4, tensor(0.477159763, -0.281183432), **NEAR)
    assert float((gp["w"] - u) @ gp["w"]) == pytest.approx(0, abs=1e-12)


class TestBadInput:
    def test_unknown_method_names_the_nearest(self):
        with pytest.raises(ValueError, match=r"`method` 'assam' is unknown.*Did you mean 'asam'"):
            make_optimizer("assam", Quadratic(), lr=0.1)

    def test_unknown_option_names_the_nearest(self):
        with pytest.raises(ValueError, match=r"no option `alhpa`.*Did you mean 'alpha'"):
            make_optimizer("gsam", Quadratic(), lr=0.1, alhpa=0.4)

    @pytest.mark.parametrize("rho", [-0.1, math.nan, math.inf])
    def test_radius(self, rho):
        with pytest.raises(ValueError, match="`rho` must be a finite radius >= 0"):
            make_optimizer("sam", Quadratic(), lr=0.1, rho=rho)

    def test_radius_for_a_plain_method(self):
        with pytest.raises(ValueError, match="`rho` has no meaning for method 'sgd'"):
            make_optimizer("sgd", Quadratic(), lr=0.1, rho=0.5)

    def test_missing_learning_rate(self):
        with pytest.raises(ValueError, match="`lr` is needed"):
            make_optimizer("sam", Quadratic())

    def test_obf_without_its_objective(self):
        model = Quadratic()
        optimizer = make_optimizer("obf", model, lr=0.1)
        with pytest.raises(ValueError, match="pass `ascent=`"):
            optimizer.step(closure_of(model, model))

    def test_lists_of_different_length(self):
        model = Quadratic()
        optimizer = make_optimizer("sam", model, lr=0.1)
        with pytest.raises(ValueError, match="one entry a chunk, got 2, 1 and 2"):
            optimizer.step([closure_of(model, model)] * 2, sizes=[1])
        with pytest.raises(ValueError, match="`sizes` must be positive"):
            optimizer.step([closure_of(model, model)] * 2, sizes=[1, 0])
        with pytest.raises(ValueError, match="`closure` is an empty list"):
            optimizer.step([])

    def test_nothing_to_train(self):
        model = Quadratic().requires_grad_(False)
        with pytest.raises(ValueError, match="no parameter that requires a gradient"):
            SharpnessAware(model, torch.optim.SGD([tensor(1.0).requires_grad_()], lr=0.1), None)

    def test_foreign_state(self):
        optimizer = make_optimizer("sam", Quadratic(), lr=0.1)
        with pytest.raises(ValueError, match="not from a sharpness-aware optimizer"):
            optimizer.load_state_dict(optimizer.base.state_dict())


def test_the_general_norm_tends_to_sam_at_two():
    u, _, _ = step_of("sam", rho=0.5, p=2.0 + 1e-9)  # takes the dual-norm path, not the shortcut for 2
    sam, _, _ = step_of("sam", rho=0.5)
    assert_close(u, sam, rtol=1e-8, atol=0)


def test_ascent_on_other_data_is_n_sam():
    # The perturbation from both examples, the descent gradient from the first alone: u = r_1 + rho r / |r|.
    model = TwoExamples()
    optimizer = make_optimizer("sam", model, lr=1.0, rho=0.5)
    optimizer.step(closure_of(model, lambda: model([0])), ascent=closure_of(model, lambda: model([0, 1])))
    r = tensor(1.5, 2.5)
    assert_close(tensor(3.0, 1.0) - model.w.detach(), tensor(3.0, 1.0) + 0.5 * r / r.norm(), **NEAR)


def test_hooks_of_the_base_optimizer_still_run():
    model = Quadratic()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    base.register_step_post_hook(lambda *_: seen.append(1))
    optimizer = make_optimizer("sam", model, base, rho=0.5)
    optimizer.register_step_post_hook(lambda *_: seen.append(2))
    optimizer.step(closure_of(model, model))
    assert sorted(seen) == [1, 2]
