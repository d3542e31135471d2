"""Which parameters a step concerns: those that the base optimizer trains, and no others."""

import math

import pytest
import torch
import torch.nn.functional as F
from networks import PERTURBED, closures_of, data, flat, make, needed, network
from quadratics import closure_of, tensor
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close

from trainers import METHODS, AscentObjective, Objective, make_optimizer, obf_loss
from trainers.randomness import seeded
from trainers.sharpness_aware.bsam import BSAM
from trainers.sharpness_aware.trained import Trained

ALL = sorted(METHODS)


def options_of(method, model):
    given = {"lr": 0.05} | needed(method, model) | PERTURBED.get(method, {})
    given.pop("examples", None)
    return given | ({"rho": 0.3} if METHODS[method].rho is not None else {})


def base_over(method, parameters):
    if method == "bsam":
        return BSAM(parameters, 0.05, examples=60)
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def reference_over(optimizer, model, loss=F.cross_entropy):
    (x, y), *_ = data(1)
    size = 1 if optimizer.needs_reference == "squares" else 4
    if optimizer.needs_reference:
        cuts = [slice(i, i + size) for i in range(0, 3 * size, size)]
        optimizer.reference = lambda: ([Objective(model, loss, x[c], y[c]) for c in cuts], [size] * 3)


def seen_inside(model, *watched):
    """How far parameters are from where they are now, at each forward pass of the model."""
    start = [p.detach().clone() for p in watched]
    seen = []

    def note(*_):
        seen.append(max(float((p.detach() - s).abs().max()) for p, s in zip(watched, start, strict=True)))

    return seen, model.register_forward_pre_hook(note)


# -- a base optimizer over a part ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ALL)
def test_a_base_over_some_layers_is_one_whose_other_layers_are_frozen(method):
    ends, records = [], []
    for frozen in (False, True):
        model = network(norm=nn.LayerNorm)
        rest, mine = list(model[0].parameters()), [*model[1].parameters(), *model[4].parameters()]
        for p in rest:
            p.requires_grad_(not frozen)
            p.grad = None if frozen else torch.full_like(p, math.nan)  # stale, and steers nothing
        optimizer = make_optimizer(
            method, model, base_over(method, mine), grad_clip=0.5, diagnose=True, **options_of(method, model)
        )
        reference_over(optimizer, model)
        moved, handle = seen_inside(model, *rest)
        for x, y in data(3):
            descents, sizes, ascents = closures_of(optimizer, model, x, y, m=None if optimizer.needs_previous else 6)
            optimizer.step(descents, sizes=sizes, ascent=ascents)
            records.append((optimizer.last.grad_norm, optimizer.last.length))
        handle.remove()
        assert max(moved) == 0
        ends.append(flat(model))
    assert torch.equal(*ends)
    assert repr(records[:3]) == repr(records[3:])


@pytest.mark.parametrize("method", [m for m in ALL if m not in ("functionalsam", "mup2")])
def test_weights_of_a_criterion_count_as_if_they_were_the_models(method):
    def steps(*, joint, added=False):
        with seeded(0):
            body, head = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5)).double(), nn.Linear(5, 3).double()
        model = nn.Sequential(body, head) if joint else body
        both = [*body.parameters(), *head.parameters()]
        base = base_over(method, list(body.parameters()) if added else both)
        optimizer = make_optimizer(method, model, base, grad_clip=0.5, **options_of(method, model))
        if added:
            optimizer.add_param_group({"params": head.parameters()})

        def loss(z, t):
            return F.cross_entropy(z if joint else head(z), t)

        def ascent(z, t):
            return obf_loss(z if joint else head(z), t)

        reference_over(optimizer, model, loss)
        for x, y in data(3):
            other = AscentObjective(model, loss, x, y, ascent=ascent) if optimizer.parts.ascent == "obf" else None
            optimizer.step(Objective(model, loss, x, y), ascent=other)
        return torch.cat([p.detach().reshape(-1) for p in both])

    expected = steps(joint=True)
    assert_close(steps(joint=False), expected, rtol=1e-12, atol=0)
    assert_close(steps(joint=False, added=True), expected, rtol=1e-12, atol=0)


def test_a_criterions_weights_keep_the_names_that_their_group_has():
    model, head = nn.Linear(2, 2), nn.Linear(2, 2)
    named = [*model.named_parameters(), *((f"head.{n}", p) for n, p in head.named_parameters())]
    assert list(Trained(model, torch.optim.SGD(named, lr=0.1)).parameters) == [
        "weight", "bias", "head.weight", "head.bias"
    ]  # fmt: skip
    unnamed = Trained(model, torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.1))
    assert unnamed.outside == ["param_groups.0.weight.2", "param_groups.0.bias.3"]


@pytest.mark.parametrize(
    ("method", "message"),
    [("functionalsam", "pass a module that holds all that is trained"), ("mup2", "`base_shapes` must have a shape")],
)
def test_methods_that_cannot_see_a_criterions_weights_refuse_them(method, message):
    model, head = network(norm=nn.LayerNorm), nn.Linear(3, 3).double()
    base = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.05)
    with pytest.raises(ValueError, match=message):
        make_optimizer(method, model, base, **options_of(method, model))


def test_sam_on_refuses_a_base_without_normalisation_layers():
    model = network()
    with pytest.raises(ValueError, match="`layers` chooses no parameter that is trained"):
        make_optimizer("sam_on", model, torch.optim.SGD(model[0].parameters(), lr=0.1))


def test_matrices_by_muon_and_the_rest_by_another_optimizer():
    model = network(norm=nn.LayerNorm)
    matrices, rest = [p for p in model.parameters() if p.ndim == 2], [p for p in model.parameters() if p.ndim != 2]
    optimizer = make_optimizer("sam", model, torch.optim.Muon(matrices, lr=0.02), rho=0.3)
    other = torch.optim.AdamW(rest, lr=0.01)
    moved, handle = seen_inside(model, *rest)
    (x, y), *_ = data(1)
    first = float(optimizer.step(Objective(model, F.cross_entropy, x, y)))
    assert max(moved) == 0
    handle.remove()
    assert optimizer.last.length == pytest.approx(0.3, rel=1e-9)
    for _ in range(5):
        other.step()  # with the gradients of one clean pass
        other.zero_grad()
        last = float(optimizer.step(Objective(model, F.cross_entropy, x, y)))
    assert last < first


def test_two_players_in_one_module_leave_each_others_weights_and_gradients_alone():
    with seeded(0):
        players = nn.ModuleDict({"g": nn.Linear(4, 6), "d": nn.Linear(6, 1)}).double()
        z, real = torch.randn(9, 4).double(), torch.randn(9, 6).double()
    g, d = players["g"], players["d"]
    of_d = make_optimizer("gsam", players, torch.optim.SGD(d.parameters(), lr=0.1), rho=0.1)
    of_g = make_optimizer("sam", players, torch.optim.SGD(g.parameters(), lr=0.1), rho=0.1)

    def judged():
        return F.softplus(-d(real)).mean() + F.softplus(d(g(z).detach())).mean()

    def fooled():
        return F.softplus(-d(g(z))).mean()

    g.weight.grad = torch.ones_like(g.weight)
    start = g.weight.detach().clone()
    of_d.step(lambda: backward(judged()))
    assert torch.equal(g.weight, start)
    assert torch.equal(g.weight.grad, torch.ones_like(g.weight))
    held = d.weight.grad.clone()
    (clean,) = torch.autograd.grad(fooled(), d.weight)
    g.weight.grad = None
    of_g.step(lambda: backward(fooled()))
    assert_close(d.weight.grad, held + clean, rtol=1e-12, atol=0)  # as one clean pass adds it


def backward(loss):
    loss.backward()
    return loss


# -- read anew each step ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sgd", "sam", "msam", "s2sam", "looksam", "fsam", "ogsam", "sampa", "randsam"])
def test_layers_are_frozen_and_unfrozen_in_the_middle(method):
    model = network(norm=None)
    optimizer = make(method, model, weight_decay=0.1)
    batch = data(1) * 2
    for x, y in batch:
        optimizer.step(Objective(model, F.cross_entropy, x, y))
    model[0].requires_grad_(False)  # with a gradient of the last step in `.grad`
    moved, handle = seen_inside(model, *model[0].parameters())
    for x, y in batch * 2:
        optimizer.step(Objective(model, F.cross_entropy, x, y))
    assert max(moved) == 0
    assert model[0].weight.grad is None
    model[0].requires_grad_(True)
    for x, y in batch:
        optimizer.step(Objective(model, F.cross_entropy, x, y))
    handle.remove()
    assert max(moved) > 0


@pytest.mark.parametrize("method", ["sam", "ssam_d", "ssam_f", "sam_on", "bsam", "looksam"])
def test_a_layer_that_is_added_is_perturbed_from_then_on(method):
    model = network(norm=nn.LayerNorm)
    options = options_of(method, model) | ({"complement": True} if method == "sam_on" else {})
    optimizer = make_optimizer(
        method, model, base_over(method, [*model[1].parameters(), *model[4].parameters()]), **options
    )
    reference_over(optimizer, model)
    (x, y), *_ = data(1)
    optimizer.step(Objective(model, F.cross_entropy, x, y))
    optimizer.base.add_param_group({"params": list(model[0].parameters())})  # past the engine, even
    for _ in range(2 if method == "ssam_f" else 0):  # until its mask is taken anew
        optimizer.step(Objective(model, F.cross_entropy, x, y))
    moved, handle = seen_inside(model, *model[0].parameters())
    optimizer.step(Objective(model, F.cross_entropy, x, y))
    handle.remove()
    assert moved[1] > 0


def test_the_memory_of_a_layer_that_is_gone_does_not_steer():
    # LookSAM's stored direction is scaled to the gradient by the norm of what is trained now
    model = nn.ParameterDict({"a": nn.Parameter(tensor(3.0)), "b": nn.Parameter(tensor(1.0))})
    optimizer = make_optimizer("looksam", model, lr=0.0, rho=0.5, k=2, alpha=0.5)

    def loss():
        return model["a"].square().sum() / 2 + 2 * model["b"].square().sum()

    optimizer.step(closure_of(model, loss))
    model["a"].requires_grad_(False)
    optimizer.step(closure_of(model, loss))
    # the one entry that is left: g = 4 b, and u = g + α ‖g‖/‖g_v‖ g_v = g (1 ± α)
    assert abs(float(model["b"].grad)) == pytest.approx(4 * 1.5, rel=1e-9)


# -- weights that were replaced --------------------------------------------------------------------------------------


def swapped(how):
    model = network(norm=None)
    optimizer = make("sam", model)
    (x, y), *_ = data(1)
    optimizer.step(Objective(model, F.cross_entropy, x, y))
    how(model)
    before = flat(model)
    optimizer.step(Objective(model, F.cross_entropy, x, y))
    return model, before


@pytest.mark.parametrize(
    "how",
    [
        lambda m: m.load_state_dict({k: v.clone() for k, v in m.state_dict().items()}, assign=True),
        lambda m: setattr(m[0], "weight", nn.Parameter(m[0].weight.detach().clone())),
        lambda m: m.__setitem__(4, nn.Linear(8, 3).double()),
        lambda m: parametrizations.weight_norm(m[0]),
    ],
    ids=["assigned", "one", "head", "weight_norm"],
)
def test_weights_that_replace_those_of_the_base_are_refused(how):
    with pytest.raises(ValueError, match=r"in place of some that the base optimizer trains.*add_param_group"):
        swapped(how)


@pytest.mark.parametrize(
    "how",
    [
        lambda m: prune.l1_unstructured(m[0], "weight", 0.5),
        lambda m: m.__setitem__(4, nn.Linear(8, 3).double().requires_grad_(False)),
        lambda m: [setattr(p, "data", p.data * 0.5) for p in m.parameters()],
        lambda m: m.load_state_dict({k: v * 0.5 for k, v in m.state_dict().items()}),
    ],
    ids=["pruned", "frozen head", "data", "loaded"],
)
def test_what_leaves_the_bases_weights_in_place_goes_on(how):
    model, before = swapped(how)
    assert not torch.equal(flat(model), before)


def test_a_new_head_that_is_added_takes_the_place_of_the_old_one():
    model = network(norm=None)
    optimizer = make("randsam", model)
    (x, y), *_ = data(1)
    optimizer.step(Objective(model, F.cross_entropy, x, y))
    old = model[4].weight
    model[4] = nn.Linear(8, 3).double()
    optimizer.add_param_group({"params": model[4].parameters()})
    model[0].bias.requires_grad_(False)  # one look more, at which the old head is still forgotten
    before, kept = model[4].weight.detach().clone(), old.detach().clone()
    optimizer.step(Objective(model, F.cross_entropy, x, y))
    assert not torch.equal(model[4].weight, before)
    assert torch.equal(old, kept)
    assert optimizer.last.length == pytest.approx(0.3, rel=1e-9)  # no noise went to what the model does not see


def test_a_base_over_another_model_is_refused():
    model, other = network(), network()
    with pytest.raises(ValueError, match="`base` trains no parameter of `model`"):
        make_optimizer("sam", model, torch.optim.SGD(other.parameters(), lr=0.1))


def test_nothing_is_left_to_train():
    model = network(norm=None)
    optimizer = make("sam", model)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="all parameters of the base optimizer are frozen"):
        optimizer.step(lambda: model(torch.ones(1, 6).double()).sum())


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("model", [network(norm=None).requires_grad_(False), torch.nn.Identity()])
def test_a_model_without_anything_to_train_is_refused(model, weight_decay):
    for base in ("sgd", "adamw"):
        with pytest.raises(ValueError, match="`model` has no parameter that requires a gradient"):
            make_optimizer("sam", model, base, lr=0.1, weight_decay=weight_decay)


# -- what is kept ----------------------------------------------------------------------------------------------------


def test_parameters_in_another_order_keep_what_belongs_to_them():
    model = network(norm=None)
    optimizer = make("sampa", model)
    (x, y), *_ = data(1)
    optimizer.step(Objective(model, F.cross_entropy, x, y))
    prune.l1_unstructured(model[0], "weight", 0.25)  # `weight_orig` now comes after `bias`
    optimizer.step(Objective(model, F.cross_entropy, x, y))
    stored = optimizer.parts.source.stored
    assert {n: t.shape for n, t in stored.items()} == {n: p.shape for n, p in optimizer._trained.parameters.items()}
    assert list(stored) == ["0.weight", "0.bias", "4.weight", "4.bias"]  # under the names that they had


def test_a_step_moves_only_by_what_is_clipped():
    with seeded(0):
        body, head = nn.Linear(6, 5).double(), nn.Linear(5, 3).double()
    base = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=1.0)
    optimizer = make_optimizer("sam", body, base, grad_clip=1e-3)
    both = nn.ModuleList([body, head])
    before = flat(both)
    (x, y), *_ = data(1)
    optimizer.step(Objective(body, lambda z, t: F.cross_entropy(head(z), t), x, y))
    assert_close((flat(both) - before).norm(), tensor(1e-3)[0], rtol=1e-4, atol=0)
