"""The engine's own promises: what a step returns and records, what it refuses, what ill data do to it."""

import math

import pytest
import torch
from networks import SHARPNESS_AWARE, closures_of, data, make, network, train
from quadratics import (
    NEAR,
    Quadratic,
    TwoExamples,
    closure_of,
    on_q,
    q_walk,
    tensor,
    walk,
)
from torch.testing import assert_close

from trainers import METHODS, make_optimizer
from trainers.sharpness_aware.ascent import Gradient
from trainers.sharpness_aware.bsam import BSAM
from trainers.sharpness_aware.combiners import Combiner, Curvature, LookAgain, Mix, SurrogateGap, Total, Weighted
from trainers.sharpness_aware.engine import SharpnessAware
from trainers.sharpness_aware.masks import DynamicMask, Mask, RandomTensors
from trainers.sharpness_aware.memory import Averaged, Components, EmaResidual
from trainers.sharpness_aware.offsets import Smoothed
from trainers.sharpness_aware.penalties import Covariance, Universal
from trainers.sharpness_aware.plans import Plan
from trainers.sharpness_aware.selection import InverseSlope, LargestIncrease
from trainers.sharpness_aware.spec import MethodSpec

# -- m-SAM on problem M ----------------------------------------------------------------------------------------------


def m_step(index_lists, sizes, *, rho=0.5, method="sam", how="step", **options):
    model = TwoExamples()
    optimizer = make_optimizer(method, model, lr=1.0, rho=rho, **options)
    closures = [closure_of(model, lambda i=i: model(i)) for i in index_lists]
    if how == "step":
        optimizer.step(closures, sizes=sizes)
    else:
        for closure, size in zip(closures, sizes, strict=True):
            optimizer.accumulate(closure, size=size)
        optimizer.step()
    return tensor(3.0, 1.0) - model.w.detach()


@pytest.mark.parametrize("how", ["step", "accumulate"])
def test_m_sam_perturbs_each_chunk_by_itself(how):
    assert_close(m_step([[0], [1]], [1, 1], how=how), tensor(1.737170825, 2.829056942), **NEAR)
    assert_close(m_step([[0, 1]], [2], how=how), tensor(1.757247878, 2.928746463), **NEAR)


def test_chunks_without_sizes_count_alike():
    assert_close(m_step([[0], [1]], None), tensor(1.737170825, 2.829056942), **NEAR)


@pytest.mark.parametrize("how", ["step", "accumulate"])
def test_ragged_chunks_are_weighted_by_their_size(how):
    two, one = m_step([[0, 1]], [2]), m_step([[2]], [1])
    assert_close(m_step([[0, 1], [2]], [2, 1], how=how), two * 2 / 3 + one / 3, **NEAR)


def test_micro_batches_whose_closures_divide_the_loss_add_up():
    model = TwoExamples()
    optimizer = make_optimizer("sam", model, lr=1.0, rho=0.5)
    for i in (0, 1):
        optimizer.accumulate(closure_of(model, lambda i=i: model([i]) / 2))
    assert_close(model.w.grad, tensor(1.737170825, 2.829056942), **NEAR)  # where loggers look
    optimizer.step()
    assert_close(tensor(3.0, 1.0) - model.w.detach(), tensor(1.737170825, 2.829056942), **NEAR)


def test_chunks_that_share_a_perturbation_are_sam_on_the_batch():
    assert_close(m_step([[0], [1]], [1, 1], sharing="batch"), tensor(1.757247878, 2.928746463), **NEAR)
    for sharing in ("global",):  # one process: the same
        assert_close(m_step([[0], [1]], [1, 1], sharing=sharing), tensor(1.757247878, 2.928746463), **NEAR)


def test_plain_steps_accumulate_chunks_too():
    expected = (tensor(3.0, 1.0) + tensor(0.0, 4.0) + tensor(2.0, -1.0)) / 3
    for how in ("step", "accumulate"):
        assert_close(m_step([[0, 1], [2]], [2, 1], rho=0.0, how=how), expected, **NEAR)


def test_gsam_combines_chunk_by_chunk():
    def one(index):
        return m_step([index], None, method="gsam", alpha=0.4)

    together = m_step([[0], [1]], None, method="gsam", alpha=0.4)
    assert_close(together, (one([0]) + one([1])) / 2, **NEAR)


# -- the record ------------------------------------------------------------------------------------------------------


def test_the_record_of_a_step_on_chunks():
    model = TwoExamples()
    optimizer = make_optimizer("sam", model, lr=0.1, rho=0.5, diagnose=True)
    optimizer.step([closure_of(model, lambda r=r: model(r)) for r in ([0, 1], [2])], sizes=[2, 1])
    last = optimizer.last
    assert (last.rho, last.mode, last.perturbed, last.overflow, last.passes) == (0.5, "perturbed", True, "", 4)
    assert (last.m, last.m_global) == (2, 2)
    assert last.length == pytest.approx(0.5, rel=1e-9)
    assert last.cosine == pytest.approx(1.0, rel=1e-9)  # Hessian I: g_p is parallel to g
    a, b = tensor(1.5, 2.5), tensor(2.0, -1.0)
    u = (2 * (a + 0.5 * a / a.norm()) + b + 0.5 * b / b.norm()) / 3
    assert last.grad_norm == pytest.approx(float(u.norm()), rel=1e-9)


def test_the_record_of_a_plain_step():
    held = q_walk("sgd", diagnose=True)
    last = held.optimizer.last
    assert (last.rho, last.mode, last.perturbed, last.length, last.passes) == (0.0, "plain", False, 0.0, 1)
    assert last.clean_loss == pytest.approx(6.5)
    assert last.grad_norm == pytest.approx(5.0)
    assert math.isnan(last.perturbed_loss)
    assert math.isnan(last.gap)
    assert math.isnan(last.cosine)


@pytest.mark.parametrize(
    ("method", "cosine"),
    [("sam", 32.3 / 32.5), ("gsam", 32.3 / 32.5), ("wsam", 32.3 / 32.5), ("crsam", 32.3 / 32.5), ("fsam", 32.3 / 32.5)],
)
def test_the_cosine_is_that_of_the_clean_and_the_perturbed_gradient(method, cosine):
    assert q_walk(method, rho=0.5, diagnose=True).optimizer.last.cosine == pytest.approx(cosine, rel=1e-9)
    assert math.isnan(q_walk(method, rho=0.5).optimizer.last.cosine)


@pytest.mark.parametrize("method", SHARPNESS_AWARE)
def test_the_length_in_the_record_is_the_displacement_that_the_model_saw(method):
    model = network()
    optimizer = make(
        method, model, **({"lambda1": -math.inf, "lambda2": -math.inf} if method in ("aesam", "aosam") else {})
    )
    train(model, optimizer, data(3))
    start = [p.detach().clone() for p in model.parameters()]
    seen = []

    def note(*_):
        seen.append(
            math.sqrt(
                sum(float((p.detach() - s).square().sum()) for p, s in zip(model.parameters(), start, strict=True))
            )
        )

    model.register_forward_pre_hook(note)
    train(model, optimizer, data(1))
    if optimizer.last.perturbed:
        draws = optimizer.parts.plan.draws
        if draws > 1:
            expected = math.sqrt(sum(v**2 for v in seen[-draws:]) / draws)
        elif method == "sampa":
            expected = seen[0]
        else:
            expected = seen[-1]
        assert optimizer.last.length == pytest.approx(expected, rel=1e-9, abs=1e-12)


# -- ill data --------------------------------------------------------------------------------------------------------


def test_a_gradient_that_is_not_finite_is_a_plain_step():
    held = on_q("sam", rho=0.5)
    seen = []

    def closure():
        held.model.zero_grad()
        seen.append(held.w)
        (held.model() * math.nan).backward()
        return held.model().detach()

    held.optimizer.step(closure)
    assert torch.equal(seen[1], tensor(3.0, 1.0))


def test_the_general_norm_tends_to_sam_at_two():
    u = q_walk("sam", rho=0.5, p=2.0 + 1e-9).us[0]  # takes the dual-norm path, not the shortcut for 2
    assert_close(u, q_walk("sam", rho=0.5).us[0], rtol=1e-8, atol=0)


@pytest.mark.parametrize("p", [1.001, 1.01, 60.0])
def test_extreme_exponents_do_not_overflow(p):
    held = on_q("sam", rho=0.5, p=p, scale=1e200)
    walk(held)
    assert float(torch.linalg.vector_norm(held.displacement(), p)) == pytest.approx(0.5, rel=1e-6)


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("assam", {}, r"`method` 'assam' is unknown.*Did you mean 'asam'"),
        ("gsam", {"alhpa": 0.4}, r"no option `alhpa`.*Did you mean 'alpha'"),
        ("gsam", {"alpha": "much"}, r"option `alpha` of method 'gsam' got 'much'"),
        ("gsam", {"alpha": math.nan}, "`alpha` must be finite"),
        ("gsam", {"minimize": "both"}, "option `minimize` of method 'gsam' got 'both'"),
        ("sam", {"rho": -0.1}, "`rho` must be a finite radius >= 0"),
        ("sam", {"rho": math.nan}, "`rho` must be a finite radius >= 0"),
        ("sam", {"rho": math.inf}, "`rho` must be a finite radius >= 0"),
        ("sam", {"p": 0.5}, r"`p` must be in \[1, inf\]"),
        ("sam", {"steps": 0}, "`steps` must be at least 1"),
        ("nsam", {"ascent_data": "batch"}, "option `ascent_data` of method 'nsam' got 'batch'"),
        ("sam", {"eta": -1.0, "adaptive": "both"}, "`eta` must be a finite radius"),
        ("sgd", {"rho": 0.5}, "`rho` has no meaning for method 'sgd'"),
        ("sam", {"lr": None}, "`lr` is needed"),
        ("sam", {"lr": math.nan}, "`lr` must be finite and >= 0"),
        ("sam", {"lr": -1.0}, "`lr` must be finite and >= 0"),
        ("sam", {"momentum": 1.0}, r"`momentum` must be in \[0, 1\)"),
        ("sam", {"base": "adam"}, "`base` must be one of.*Did you mean 'adamw'"),
        ("sam", {"ascent": "osf"}, "`ascent` must be 'loss' or 'obf'.*Did you mean 'obf'"),
        ("randsam", {"ascent": "obf"}, "`ascent` 'obf' has no meaning for method 'randsam'"),
        ("sam", {"sharing": "batches"}, "`sharing` must be one of.*Did you mean 'batch'"),
        ("sam", {"shrink_perturb": 1.5}, r"`shrink_perturb` must be in \[0, 1\]"),
        ("wsam", {"gamma": 1.0}, r"`gamma` must be in \[0, 1\)"),
        ("gnp", {"c": math.inf}, "`c` must be finite"),
        ("crsam", {"gamma": math.nan}, "`gamma` must be finite"),
        ("tracesam", {"draws": 0}, "`draws` must be at least 1"),
        ("frobsam", {"draws": 1}, "`draws` must be at least 2"),
        ("frobsam", {"lam": math.inf}, "`lam` must be finite"),
        ("detsam", {"lam": math.inf}, "`lam` must be finite"),
        ("sampa", {"lam": 1.5}, r"`lam` must be in \[0, 1\]"),
        ("lookbehind", {"k": 0}, "`k` must be at least 1"),
        ("lookbehind", {"alpha": math.nan}, "`alpha` must be finite"),
        ("looksam", {"alpha": math.nan}, "`alpha` must be finite"),
        ("esam", {"beta": 0.0}, r"`beta` must be in \(0, 1\]"),
        ("esam", {"gamma": 0.0}, r"`gamma` must be in \(0, 1\]"),
        ("rsam", {"sigma": -1.0}, "`sigma` must be finite and >= 0"),
        ("fsam", {"sigma": math.nan}, "`sigma` must be finite"),
        ("fsam", {"decay": 1.0}, r"`decay` must be in \[0, 1\)"),
        ("vasso", {"theta": 0.0}, r"`theta` must be in \(0, 1\]"),
        ("noisesam", {"refresh_every": 0}, "`refresh_every` must be at least 1"),
        ("deltasam", {"tau": math.inf}, "`tau` must be finite"),
        ("deltasam", {"draws": 0}, "`draws` must be at least 1"),
        ("deltasam", {"xi": 0.0}, "`xi` must be finite and above 0"),
        ("ssam_f", {"sparsity": 1.0, "steps_per_epoch": 2}, r"`sparsity` must be in \[0, 1\)"),
        ("ssam_f", {}, "`update_epochs` counts epochs: pass `steps_per_epoch=`"),
    ],
)
def test_bad_arguments_are_refused_by_name_with_a_way_out(method, options, message):
    options = dict(options)
    base = options.pop("base", "sgd")
    with pytest.raises(ValueError, match=message):
        make_optimizer(method, Quadratic(), base, **({"lr": 0.1} | options))


@pytest.mark.parametrize(
    ("make_part", "message"),
    [
        (lambda: Gradient("else"), "`ascent_data` must be"),
        (lambda: DynamicMask(0.5, 0), "`update_epochs` must be at least one step"),
        (
            lambda: BSAM([torch.nn.Parameter(tensor(1.0))], 0.1, examples=10, precision=0.0),
            "`precision` must be above 0",
        ),
        (lambda: make_optimizer("sam", Quadratic(), "lion", lr=0.1), "`base` must be one of"),
        (lambda: Plan(draws=0), "`draws` must be at least 1"),
    ],
)
def test_bad_parts_are_refused(make_part, message):
    with pytest.raises(ValueError, match=message):
        make_part()


def test_parts_that_a_protocol_leaves_open():
    with pytest.raises(NotImplementedError):
        Combiner()(None)
    with pytest.raises(NotImplementedError):
        Combiner().extra(None)
    with pytest.raises(NotImplementedError):
        Mask()(None, {})
    parts = (Curvature(), LookAgain(), Mix(), SurrogateGap(), Total(), Weighted(1.0), Covariance(), Universal())
    assert all(isinstance(part, Combiner) for part in parts)
    g = torch.Generator()
    for part in (RandomTensors(0.5, g), Averaged(), Components(), EmaResidual(), Smoothed(g), LookAgain()):
        part.load_state_dict(part.state_dict())
    assert LargestIncrease(1.0).active is False
    assert InverseSlope(g).draws == 1


class TestStep:
    def test_obf_without_its_objective(self):
        model = Quadratic()
        with pytest.raises(ValueError, match="pass `ascent=`"):
            make_optimizer("obf", model, lr=0.1).step(closure_of(model, model))

    def test_lists_of_different_length(self):
        model = Quadratic()
        optimizer, closure = make_optimizer("sam", model, lr=0.1), closure_of(model, model)
        with pytest.raises(ValueError, match="one entry a chunk, got 2, 1 and 2"):
            optimizer.step([closure] * 2, sizes=[1])
        with pytest.raises(ValueError, match="`sizes` must be positive"):
            optimizer.step([closure] * 2, sizes=[1, 0])
        with pytest.raises(ValueError, match="`closure` is an empty list"):
            optimizer.step([])

    def test_no_closure(self):
        with pytest.raises(ValueError, match="`step` needs a closure"):
            make_optimizer("sam", Quadratic(), lr=0.1).step()

    def test_a_closure_in_the_middle_of_an_accumulated_step(self):
        model = Quadratic()
        optimizer, closure = make_optimizer("sam", model, lr=0.1), closure_of(model, model)
        optimizer.accumulate(closure)
        with pytest.raises(ValueError, match=r"end (it|them) with `step\(\)` first"):
            optimizer.step(closure)
        with pytest.raises(ValueError, match="`size` must be given for all chunks"):
            optimizer.accumulate(closure, size=3)

    def test_chunks_for_a_method_that_sees_whole_batches_again(self):
        model = Quadratic()
        optimizer, closure = make_optimizer("sampa", model, lr=0.1), closure_of(model, model)
        with pytest.raises(ValueError, match="this method evaluates whole batches again"):
            optimizer.step([closure] * 2)

    @pytest.mark.parametrize("method", ["nsam", "noisesam", "ssam_f"])
    def test_missing_reference_data(self, method):
        model = Quadratic()
        optimizer = make_optimizer(method, model, lr=0.1, steps_per_epoch=1)
        with pytest.raises(ValueError, match=r"set `optimizer\.reference`"):
            optimizer.step(closure_of(model, model))

    def test_functional_sam_with_a_plain_closure(self):
        model = Quadratic()
        with pytest.raises(ValueError, match="this method needs the logits"):
            make_optimizer("functionalsam", model, lr=0.1).step(closure_of(model, model))

    @pytest.mark.parametrize("method", [m for m in SHARPNESS_AWARE if not METHODS[m].other_ascent])
    def test_an_ascent_objective_for_a_method_that_would_not_ascend_it(self, method):
        # silently ignored, or worse, descended on
        model = network()
        optimizer = make(method, model)
        (x, y), *_ = data(1)
        descents, sizes, _ = closures_of(optimizer, model, x, y)
        with pytest.raises(ValueError, match="`ascent`"):
            optimizer.step(descents, sizes=sizes, ascent=[closure_of(model, lambda: model(x).sum())])

    def test_nothing_to_train(self):
        model = Quadratic().requires_grad_(False)
        with pytest.raises(ValueError, match="no parameter that requires a gradient"):
            SharpnessAware(
                model, torch.optim.SGD([tensor(1.0).requires_grad_()], lr=0.1), None, MethodSpec(method="sgd", lr=0.1)
            )

    def test_sampa_without_its_previous_batch_after_a_resume(self):
        held = walk(on_q("sampa", rho=0.5), 2)
        late = on_q("sampa", rho=0.5)
        late.optimizer.load_state_dict(held.optimizer.state_dict())
        with pytest.raises(ValueError, match="give it back with `remember"):
            walk(late)
