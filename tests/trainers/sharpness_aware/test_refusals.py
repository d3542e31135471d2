"""What cannot work is refused when an optimizer is made or at its first step, in words that name the way out."""

import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import F64, flat, network
from torch import nn
from torch.amp import GradScaler

from trainers import Objective, make_optimizer

SGD = torch.optim.SGD


class NeedsClosure(SGD):
    def step(self, closure):
        return super().step(closure)


def batch(dtype=F64):
    g = torch.Generator().manual_seed(0)
    return torch.randn(12, 6, generator=g, dtype=dtype), torch.randint(3, (12,), generator=g)


MADE = {
    "the parameters": (lambda m: ("sam", m.parameters()), "`model` must be the torch.nn.Module itself.*generator"),
    "a list": (lambda m: ("sam", list(m.parameters())), "got a list of Parameter.*`base="),
    "a class": (lambda _: ("sam", nn.Linear), "got the class Linear"),
    "the wrong order": (lambda m: (m, "sam"), "the order is `make_optimizer"),
    "a class as base": (lambda m: ("sam", m, SGD), r"got the class SGD: pass `base=torch.optim.SGD\(model.parameters"),
    "a partial as base": (lambda m: ("sam", m, functools.partial(SGD, lr=0.1)), "got a partial"),
    "LBFGS": (lambda m: ("sam", m, torch.optim.LBFGS(m.parameters())), "`base` LBFGS evaluates the loss itself.*SGD"),
    "a step that needs a closure": (lambda m: ("sgd", m, NeedsClosure(m.parameters(), lr=0.1)), "NeedsClosure"),
    "SparseAdam": (lambda m: ("sam", m, torch.optim.SparseAdam(m.parameters())), "SparseAdam.*`sparse=False`"),
    "one around another": (lambda m: ("sam", m, make_optimizer("sam", m, lr=0.1)), "sharpness-aware optimizer already"),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_models_and_bases(name):
    arguments, message = MADE[name]
    with pytest.raises(ValueError, match=message):
        make_optimizer(*arguments(network()))


def test_settings_that_contradict_a_base_that_has_been_made():
    model = network()
    base = SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"`lr` 0.2 was given together with a `base`.*SGD with lr 0.1"):
        make_optimizer("sam", model, base, lr=0.2)
    with pytest.raises(ValueError, match=r"`momentum` 0.9 was given together"):
        make_optimizer("sam", model, base, momentum=0.9)
    make_optimizer("sam", model, base, lr=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": "0.1"}, "`lr` must be a number, got '0.1'.*quotes"),
        ({"lr": [0.1]}, "`lr` must be a number"),
        ({"rho": "0.05"}, "`rho` must be a number"),
        ({"rho": True}, "`rho` must be a number, got True"),
        ({"momentum": "0.9"}, "`momentum` must be a number"),
        ({"weight_decay": -1.0}, "`weight_decay` must be finite and >= 0"),
        ({"weight_decay": math.nan}, "`weight_decay` must be finite and >= 0"),
        ({"grad_clip": 0}, "`grad_clip` must be above 0"),
        ({"grad_clip": -1.0}, "`grad_clip` must be above 0"),
        ({"grad_clip": math.nan}, "`grad_clip` must be above 0"),
        ({"total_steps": "10"}, "`total_steps` must be a number"),
        ({"total_steps": 2.5}, "`total_steps` must be a whole number"),
        ({"betas": ("0.9", 0.99)}, "`betas` must be a number"),
        ({"betas": 0.9}, "`betas` must be two numbers"),
        ({"same_rng": "false"}, "`same_rng` must be True or False"),
        ({"window": 3}, "`window` must be"),
        ({"grad_scaler": True}, "`grad_scaler` must be a torch.amp.GradScaler"),
        ({"eta": "0.1"}, "option `eta` of method 'sam' must be a number, got '0.1'"),
        ({"eta": True}, "option `eta` of method 'sam' must be a number, got True"),
        ({"gate": "periodic", "gate_options": {"k": "5"}}, "option `k` of gate 'periodic' must be a number"),
        ({"roh": 0.1}, "Did you mean 'rho'"),
        ({"momentun": 0.9}, "Did you mean 'momentum'"),
    ],
)
def test_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer("sam", network(), **({"lr": 0.1} | options))


def test_an_option_that_is_nan_is_refused_where_no_range_stops_it():
    with pytest.raises(ValueError, match="`keep` must be a number, got nan"):
        make_optimizer("rsam", network(), lr=0.1, keep=math.nan)


RETURNED = {
    "nothing": lambda _: None,
    "a tuple": lambda loss: (loss, loss),
    "a dict": lambda loss: {"loss": loss},
    "a whole number": lambda _: 1,
    "several numbers": lambda loss: loss.expand(3),
    "an integer tensor": lambda _: torch.tensor(1),
    "a complex number": lambda loss: loss.to(torch.complex128),
}


def closure_of(model, returned=lambda loss: loss):
    x, y = batch()

    def closure():
        model.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return returned(loss)

    return closure


@pytest.mark.parametrize("method", ["sam", "sgd"])
@pytest.mark.parametrize("what", RETURNED)
def test_what_closures_return(method, what):
    model = network()
    before = flat(model)
    with pytest.raises(ValueError, match="a closure must return its loss, one real number"):
        make_optimizer(method, model, lr=0.1).step(closure_of(model, RETURNED[what]))
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize(
    "returned",
    [lambda loss: loss.item(), lambda loss: loss.reshape(1), lambda loss: np.float32(loss.item())],
    ids=["a float", "a tensor of one entry", "a float of numpy"],
)
def test_losses_in_other_forms_are_taken(returned):
    model = network()
    loss = make_optimizer("sam", model, lr=0.1).step(closure_of(model, returned))
    assert loss.shape == ()
    assert torch.isfinite(loss)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o, _: o.step(torch.tensor(1.0)), "`closure` is a tensor.*pass a function"),
        (lambda o, _: o.step([torch.tensor(1.0)]), "`closure` must be a function.*got a Tensor"),
        (lambda o, c: o.step({"loss": c}), "`closure` must be a function"),
        (lambda o, _: o.step(3), "`closure` must be a function.*got 3"),
        (lambda o, c: o.step(c, ascent=torch.tensor(1.0)), "`ascent` is a tensor"),
        (lambda o, c: o.accumulate([c, c]), "`accumulate` takes one closure at a time"),
        (lambda o, c: o.step(c, sizes=32), "`sizes` must be a list"),
        (lambda o, c: o.step([c], sizes=["32"]), "`sizes` must be a number, got '32'"),
        (lambda o, c: o.step([c, c], sizes=[math.nan, 1]), "`sizes` must be positive"),
        (lambda o, c: o.step([c, c], sizes=[1]), "one entry a chunk, got 2, 1"),
        (lambda o, _: o.step(), "`step` needs a closure"),
    ],
)
def test_what_a_step_is_given(call, message):
    model = network()
    with pytest.raises(ValueError, match=message):
        call(make_optimizer("sam", model, lr=0.1), closure_of(model))


def test_a_generator_of_closures_is_a_list():
    ends = []
    for form in (list, iter):
        model = network(norm=None)
        make_optimizer("sam", model, lr=0.1).step(form([closure_of(model), closure_of(model)]), sizes=iter([1, 3]))
        ends.append(flat(model))
    assert torch.equal(*ends)


@pytest.mark.parametrize("name", ["first_step", "second_step"])
def test_the_calls_of_other_libraries(name):
    optimizer = make_optimizer("sam", network(), lr=0.1)
    assert not hasattr(optimizer, name)
    with pytest.raises(AttributeError, match=r"`optimizer.step\(closure\)`"):
        getattr(optimizer, name)(zero_grad=True)
    with pytest.raises(AttributeError, match="object has no attribute 'third_step'"):
        _ = optimizer.third_step


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CrossEntropyLoss(reduction="none"), r"`loss` must return one number.*got shape \(12,\)"),
        (lambda *_: None, "`loss` must return one number.*got None"),
        (lambda z, t: F.cross_entropy(z, t).detach(), "does not depend on any parameter that requires a gradient"),
        (lambda z, t: (z.argmax(1) != t).double().mean(), "such as argmax"),
    ],
    ids=["no reduction", "nothing", "detached", "the error"],
)
def test_losses_without_a_number_or_a_gradient(loss, message):
    model = network()
    with pytest.raises(ValueError, match=message):
        make_optimizer("sam", model, lr=0.1).step(Objective(model, loss, *batch()))


def test_sparse_gradients_are_left_to_plain_optimizers():
    def model():
        return nn.Sequential(nn.EmbeddingBag(20, 4, sparse=True), nn.Linear(4, 3))

    words, y = torch.arange(24).remainder(20).reshape(12, 2), batch()[1]
    for method in ("sam", "gsam", "randsam"):
        held = model()
        with pytest.raises(ValueError, match=r"gradient of '0.weight' is sparse.*`sparse=False`"):
            make_optimizer(method, held, lr=0.1).step(Objective(held, F.cross_entropy, words, y))
    held = model()
    before = flat(held)
    make_optimizer("sgd", held, SGD(held.parameters(), lr=0.1)).step(Objective(held, F.cross_entropy, words, y))
    assert not torch.equal(flat(held), before)


@pytest.mark.parametrize("where", ["inside", "inside, of the base", "inside, not passed", "before"])
def test_unscaling_by_hand(where):
    model, scaler = network(dtype=torch.float32), GradScaler("cpu")
    given = None if where == "inside, not passed" else scaler
    optimizer = make_optimizer("sam", model, lr=0.1, grad_scaler=given)
    x, y = batch(torch.float32)
    before = flat(model)

    def closure():
        model.zero_grad()
        loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        if "inside" in where:
            scaler.unscale_(optimizer.base if "base" in where else optimizer)
        return loss

    if where == "before":
        closure()
        scaler.unscale_(optimizer)
        model.zero_grad()
    with pytest.raises(ValueError, match=r"`grad_scaler.unscale_` or.*pass `grad_scaler=`"):
        optimizer.step(closure)
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize(("kept", "taken", "message"), [
    ("sam", "fsam", "of method 'sam', and this optimizer's is 'fsam'"),
    ("gsam", "sam", "of method 'gsam', and this optimizer's is 'sam'.*`optimizer.base.load_state_dict`"),  # parts alike
])  # fmt: skip
def test_the_state_of_another_method_is_refused_and_nothing_taken_over(kept, taken, message):
    optimizer = make_optimizer(kept, network(), lr=0.1, momentum=0.9)
    other = make_optimizer(taken, network(), lr=0.2, momentum=0.9)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.2
