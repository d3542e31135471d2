"""What survives: a save and load in mid-training, a failed pass, odd parameters, schedulers, hooks."""

import copy
import math
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from networks import PASSES, PERTURBED, closures_of, data, flat, make, network, state, train
from quadratics import F64, Quadratic, closure_of, on_q, q_walk, tensor, walk
from torch import nn
from torch.testing import assert_close

from trainers import METHODS, make_optimizer
from trainers.files.tree import equal, join_tensors, split_tensors
from trainers.randomness import seeded

# -- save and load ---------------------------------------------------------------------------------------------------


def fresh(method, **options):
    model = network(dropout=0.3)
    return model, make(
        method, model, shrink_perturb=0.01, weight_decay=1e-3 * (method != "bsam"), seed=5, diagnose=True, **options
    )


def saved_state(model, optimizer):
    return split_tensors({"optimizer": optimizer.state_dict(), "model": state(model), "rng": torch.get_rng_state()})


@pytest.mark.parametrize(
    ("method", "options"),
    [(m, {}) for m in METHODS]
    + [
        ("nsam", {"ascent_data": "previous"}),
        ("gsam", {"gate": "adaptive", "gate_options": {"correct": True}, "window": (1, None)}),
        ("fsam", {"form": "paper"}),
        ("esam", {"granularity": "element"}),
        ("ssam_d", {"drop": "random"}),
        ("s2sam", {"live_only": True}),
        ("msam", {"base": "adamw"}),
        ("fsam", {"gate": "random"}),
        ("looksam", {"window": (2, None), "k": 3}),
    ],
)
@pytest.mark.parametrize("cut", [1, 3])
def test_save_and_load_in_the_middle_continues_identically(method, options, cut):
    batches = data(6)
    with seeded(2):
        model, optimizer = fresh(method, **options)
        losses = train(model, optimizer, batches)
        whole = saved_state(model, optimizer)
    with seeded(2):
        model, optimizer = fresh(method, **options)
        first = train(model, optimizer, batches[:cut])
        saved = saved_state(model, optimizer)
        kept = copy.deepcopy(saved)
        train(model, optimizer, batches[cut:])  # going on with the first must not reach what was saved
        assert equal(saved, kept)
    with seeded(99):
        model, optimizer = fresh(method, **options)
        train(model, optimizer, batches[:2])  # a used optimizer takes the state as well as a new one
        stored = join_tensors(*saved)
        model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        torch.set_rng_state(stored["rng"])
        if optimizer.needs_previous:
            descents, sizes, ascents = closures_of(optimizer, model, *batches[cut - 1])
            optimizer.remember(descents, sizes=sizes, ascent=ascents)
        assert first + train(model, optimizer, batches[cut:]) == losses
        assert equal(saved_state(model, optimizer), whole)


def test_loading_forgets_the_previous_batch_of_another_run():
    held = walk(on_q("sampa", rho=0.5), 2)
    early = copy.deepcopy(held.optimizer.state_dict())
    walk(held)
    assert not held.optimizer.previous_is_lost
    held.optimizer.load_state_dict(early)
    assert held.optimizer.previous_is_lost  # what it still holds is not the state's


def test_what_a_state_lent_is_not_written_into():
    # two optimizers from one state must not share a running mean
    for method, key in (("fsam", "average"), ("s2sam", "stored"), ("vasso", "average"), ("ogsam", "previous")):
        held = walk(on_q(method, rho=0.5))
        lent = held.optimizer.state_dict()
        before = copy.deepcopy(lent["sharpness_aware"])
        other = on_q(method, rho=0.5)
        other.optimizer.load_state_dict(lent)
        walk(other, 2)
        assert equal(lent["sharpness_aware"], before), method
        assert equal(getattr(held.optimizer.parts.source, key), before["parts"]["source"][key]), method


def test_the_kept_tensors_come_back_in_the_type_of_the_weights():
    model = network(dtype=torch.float32)
    optimizer = make("fsam", model)
    train(model, optimizer, data(1, dtype=torch.float32))
    kept = copy.deepcopy(optimizer.state_dict())
    wide = kept["sharpness_aware"]["parts"]["source"]["average"]
    kept["sharpness_aware"]["parts"]["source"]["average"] = {n: t.double() for n, t in wide.items()}
    optimizer.load_state_dict(kept)
    assert {t.dtype for t in optimizer.parts.source.average.values()} == {torch.float32}


def test_foreign_state():
    optimizer = make_optimizer("sam", Quadratic(), lr=0.1)
    with pytest.raises(ValueError, match="not from a sharpness-aware optimizer"):
        optimizer.load_state_dict(optimizer.base.state_dict())
    optimizer.accumulate(closure_of(optimizer.model, optimizer.model))
    with pytest.raises(ValueError, match="in the middle of a step"):
        optimizer.state_dict()


def test_shrink_and_perturb_keeps_its_initial_point_over_a_save():
    with seeded(1):
        model = network()
        optimizer = make("sam", model, shrink_perturb=0.3)
        initial = flat(model)
    train(model, optimizer, data(2))
    stored = join_tensors(*split_tensors(optimizer.state_dict()))
    late = make("sam", model, shrink_perturb=0.3)
    late.load_state_dict(stored)
    kept = torch.cat([late.shrink.initial[n].reshape(-1) for n, _ in model.named_parameters()])
    assert torch.equal(kept, initial)


# -- a pass that fails -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_whichever_pass_fails_the_weights_are_back_and_the_next_step_is_sound(method):
    (x, y), (x2, y2) = data(2)
    options = PERTURBED.get(method, {})
    for fail_at in range(1, PASSES.get(method, 2) + 2):
        model = network()
        optimizer = make(method, model, **options)
        before, places = flat(model), [p.data_ptr() for p in model.parameters()]
        base_before = copy.deepcopy(optimizer.base.state_dict())
        calls = []

        def fail(*_, calls=calls, at=fail_at):
            calls.append(1)
            if len(calls) == at:
                raise RuntimeError("stop here")

        handle = model[0].register_forward_pre_hook(fail)
        descents, sizes, ascents = closures_of(optimizer, model, x, y)
        with suppress(RuntimeError):
            optimizer.step(descents, sizes=sizes, ascent=ascents)
        handle.remove()
        if len(calls) < fail_at:  # there was no such pass
            continue
        assert optimizer.steps_taken == 0 or method == "ssam_f"  # whose last passes follow the step
        assert optimizer.steps_taken or torch.equal(flat(model), before)
        assert [p.data_ptr() for p in model.parameters()] == places
        assert all(p.grad is None for p in model.parameters()) or optimizer.steps_taken
        assert all(p.requires_grad for p in model.parameters())
        assert model[1].track_running_stats
        if not optimizer.steps_taken:
            assert equal(optimizer.base.state_dict(), base_before)
        loss = train(model, optimizer, [(x2, y2)])[0]
        assert math.isfinite(loss)


@pytest.mark.parametrize("method", ["looksam", "bsam", "fsam", "wsam", "sampa", "gsam"])
def test_a_step_that_failed_on_its_second_chunk_leaves_nothing_in_the_next(method):
    ends = []
    options = {"k": 2} if method == "looksam" else {}  # the second step reuses what the first one stored
    for fails in (False, True):
        model = network(norm=None)
        optimizer = make(method, model, sharing="batch" if method == "sampa" else "chunk", **options)
        (x, y), *_ = data(1)
        if fails:
            before = optimizer.parts.state_dict()
            descents, sizes, _ = closures_of(optimizer, model, x, y, m=6)

            def broken():
                raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                optimizer.step([descents[0], broken], sizes=sizes)
            optimizer.parts.load_state_dict(before)  # the generators have been drawn from
        train(model, optimizer, data(3), m=None if method == "sampa" else 6)
        ends.append((flat(model), optimizer.base.state_dict()["state"]))
    assert equal(*ends)


def test_a_chunk_that_fails_in_accumulate_drops_the_step_begun():
    model = network(norm=None)
    optimizer = make("looksam", model, k=2)  # the second step reuses what the first one stored
    twin_model = network(norm=None)
    twin = make("looksam", twin_model, k=2)
    (x, y), *_ = data(1)
    descents, _, _ = closures_of(optimizer, model, x, y, m=6)
    optimizer.accumulate(descents[0], size=6)

    def broken():
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        optimizer.accumulate(broken, size=6)
    train(model, optimizer, data(2), m=6, how="accumulate")
    train(twin_model, twin, data(2), m=6)
    assert_close(flat(model), flat(twin_model), rtol=1e-11, atol=1e-13)


# -- parameters of every kind ----------------------------------------------------------------------------------------


def test_frozen_unused_and_tied_parameters(generator):
    shared = nn.Linear(3, 3, dtype=F64)
    model = nn.ModuleDict(
        {"a": shared, "b": shared, "frozen": nn.Linear(3, 3, dtype=F64), "unused": nn.Linear(1, 1, dtype=F64)}
    )
    model["frozen"].requires_grad_(False)
    x = torch.randn(5, 3, generator=generator, dtype=F64)
    for method in ("sam", "asam", "gsam", "fsam", "wsam", "looksam", "crsam", "usam"):
        optimizer = make_optimizer(method, model, lr=0.1, rho=0.5, weight_decay=0.1, decay_all=True)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        lengths = []

        def closure(before=before, lengths=lengths):
            model.zero_grad()
            moved = [p.detach() - before[n] for n, p in model.named_parameters()]
            lengths.append(math.sqrt(sum(float((m**2).sum()) for m in moved)))
            value = model["frozen"](model["b"](torch.tanh(model["a"](x)))).square().mean()
            value.backward()
            return value

        optimizer.step(closure)
        if method in ("sam", "gsam", "fsam", "wsam", "looksam", "crsam"):
            assert lengths[1] == pytest.approx(0.5, rel=1e-9), method  # tied weights counted once
        for name in ("frozen.weight", "frozen.bias", "unused.weight", "unused.bias"):
            assert torch.equal(model.state_dict()[name], before[name]), (method, name)  # not even decayed
        assert model["unused"].weight.grad is None


@pytest.mark.parametrize(
    "method", ["sam", "gsam", "wsam", "gnp", "looksam", "crsam", "lookbehind", "tracesam", "frobsam", "grst"]
)
def test_a_parameter_that_only_some_chunks_use_counts_with_their_share(method):
    # the same problem with the parameter always in the graph, multiplied by zero where it is not used
    ends = []
    for always in (False, True):
        model = nn.ParameterDict({"w": tensor(3.0, 1.0), "sometimes": tensor(2.0)})
        options = PERTURBED.get(method, {}) | ({"k": 2} if method == "looksam" else {})
        optimizer = make_optimizer(method, model, lr=0.1, rho=0.5, seed=1, **options)

        def loss(uses, model=model, always=always):
            value = (tensor(1.0, 4.0) * model["w"] ** 2).sum() / 2
            if uses:
                value = value * (1 + model["sometimes"][0] ** 2 / 8)
            elif always:
                value = value + 0 * model["sometimes"].sum()
            return value

        for step in range(3):
            order = (True, False) if step != 1 else (False, True)
            optimizer.step([closure_of(model, lambda u=u, f=loss: f(u)) for u in order], sizes=[1, 2])
        ends.append(torch.cat([p.detach() for p in model.values()]))
    assert_close(*ends, rtol=1e-10, atol=1e-12)


def test_param_groups_keep_their_own_learning_rates():
    walks = {}
    for method in ("sam", "gsam", "fsam", "wsam"):
        held = on_q(method, "groups", rho=0.5)
        held.optimizer.param_groups[1]["lr"] = 0.01
        u = q_walk(method, rho=0.5).us[0]
        walks[method] = walk(held).w
        assert_close(walks[method], tensor(3.0, 1.0) - tensor(0.1, 0.01) * u, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", ["egsam", "ogsam"])
def test_looking_ahead_takes_each_groups_own_learning_rate(form):
    held = on_q(form, "groups", rho=1.0)
    held.optimizer.param_groups[1]["lr"] = 0.01
    walk(held, 2)
    g0 = tensor(3.0, 4.0)
    back = g0 if form == "egsam" else torch.zeros(2, dtype=F64)
    assert_close(held.visited[1], tensor(3.0, 1.0) + g0 / 5 - tensor(0.1, 0.01) * back, rtol=1e-9, atol=1e-12)


# -- schedulers, hooks, clipping, decay ------------------------------------------------------------------------------


def test_schedulers_and_state_belong_to_the_base_optimizer():
    held = on_q("sam", momentum=0.9, rho=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(held.optimizer, 1, gamma=0.5)
    walk(held)
    scheduler.step()
    assert held.optimizer.base.param_groups[0]["lr"] == pytest.approx(0.05)
    assert held.optimizer.param_groups is held.optimizer.base.param_groups
    assert held.optimizer.state is held.optimizer.base.state
    w, buffer = held.w, held.us[0]
    g = tensor(1.0, 4.0) * w
    walk(held)
    expected = w - 0.05 * (0.9 * buffer + tensor(1.0, 4.0) * (w + 0.5 * g / g.norm()))
    assert_close(held.w, expected, rtol=1e-11, atol=1e-12)
    held.optimizer.load_state_dict(held.optimizer.state_dict())
    assert held.optimizer.param_groups is held.optimizer.base.param_groups


@pytest.mark.parametrize("late", [False, True])
def test_hooks_of_the_base_optimizer_run_whenever_they_were_registered(late):
    model = Quadratic()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    if not late:
        base.register_step_post_hook(lambda *_: seen.append(1))
    optimizer = make_optimizer("sam", model, base, rho=0.5)
    if late:
        base.register_step_post_hook(lambda *_: seen.append(1))
    optimizer.register_step_post_hook(lambda *_: seen.append(2))
    optimizer.step(closure_of(model, model))
    assert sorted(seen) == [1, 2]


def test_gradient_clipping_acts_on_the_final_gradient_only():
    near = {"rtol": 1e-6, "atol": 0}  # clip_grad_norm_ adds 1e-6 to the norm
    held = q_walk("sam", rho=0.5, grad_clip=1.0, diagnose=True)
    assert_close(held.us[0], tensor(3.3, 5.6) / 6.5, **near)
    assert held.optimizer.last.length == pytest.approx(0.5, rel=1e-9)
    assert held.optimizer.last.grad_norm == pytest.approx(6.5, rel=1e-9)  # before clipping
    # methods that a clipped ascent would change: USAM's displacement, GSAM's and F-SAM's stored gradients
    assert_close(q_walk("usam", rho=0.1, grad_clip=1.0).us[0], tensor(3.3, 5.6) / 6.5, **near)
    u = tensor(3.109136095, 5.712473373)
    assert_close(q_walk("gsam", rho=0.5, alpha=0.4, grad_clip=1.0).us[0], u / u.norm(), **near)
    fsam = q_walk("fsam", rho=0.5, grad_clip=1.0)
    assert_close(fsam.optimizer.parts.source.average["parts.0"], tensor(3.0, 4.0), rtol=1e-12, atol=0)
    og = q_walk("ogsam", rho=0.5, grad_clip=1.0)
    assert_close(og.optimizer.parts.source.previous["parts.0"], tensor(3.3, 5.6), rtol=1e-9, atol=0)


def test_clipping_acts_after_the_mean_over_chunks():
    model = network(norm=None)
    start = flat(model)
    (x, y), *_ = data(1)
    train(model, make("sam", model, lr=1.0, momentum=0.0), [(x, y)], m=6)
    u = start - flat(model)
    model = network(norm=None)
    train(model, make("sam", model, lr=1.0, momentum=0.0, grad_clip=1e-3), [(x, y)], m=6)
    assert_close(start - flat(model), 1e-3 * u / (u.norm() + 1e-6), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("method", ["sam", "obf"])
def test_weight_decay_acts_outside_at_the_clean_weights(method):
    # the oracle of methods.md 2.4, "outside"; "inside" would be (5.030330086, 6.090990258)
    held = on_q(method, rho=0.5, weight_decay=0.5, decay_all=True)
    closure = closure_of(held.model, held.model)
    held.optimizer.step(closure, ascent=closure if method == "obf" else None)
    assert_close((tensor(3.0, 1.0) - held.w) / 0.1, tensor(4.8, 6.1), rtol=1e-7, atol=0)


def test_decoupled_decay_acts_at_the_clean_weights():
    held = q_walk("sam", base="adamw", rho=0.5, weight_decay=0.5, decay_all=True)
    assert_close(held.w, tensor(3.0, 1.0) * (1 - 0.05) - 0.1, rtol=1e-6, atol=1e-9)  # Adam's first step is lr sign(u)


def test_decay_leaves_out_what_has_one_dimension_or_is_listed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.norm, self.place = nn.Linear(2, 2), nn.LayerNorm(2), nn.Parameter(torch.ones(1, 3, 2))
            self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)

        def no_weight_decay(self):
            return {"place"}

    model = Net()
    groups = make_optimizer("sam", model, lr=0.1, weight_decay=0.3).param_groups
    assert [g["weight_decay"] for g in groups] == [0.3, 0.0]
    assert [id(p) for p in groups[0]["params"]] == [id(model.fc.weight)]
    assert len(groups[1]["params"]) == 4
    assert len(make_optimizer("sam", model, lr=0.1, weight_decay=0.3, decay_all=True).param_groups) == 1


def test_amounts_of_memory_stay_what_they_were():
    # the copy of the weights is made once, and no step leaves a graph or a gradient of the first pass behind
    model = network()
    optimizer = make("gsam", model)
    train(model, optimizer, data(1))
    places = [t.data_ptr() for t in optimizer._weights._copy.values()]
    train(model, optimizer, data(2))
    assert [t.data_ptr() for t in optimizer._weights._copy.values()] == places
    assert all(p.grad is None or not p.grad.requires_grad for p in model.parameters())


def test_the_loss_returned_is_free_of_a_graph():
    model = network()
    (x, y), *_ = data(1)
    loss = make("sam", model).step(closure_of(model, lambda: F.cross_entropy(model(x), y)))
    assert not loss.requires_grad
