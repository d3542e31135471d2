"""The specification of a method: frozen, checked when it is made, and the same as `make_optimizer`'s keywords."""

import dataclasses
import inspect
import pickle  # noqa: TID251 - as other processes are sent it

import pytest
import torch
from networks import flat, network

from trainers import Objective, make_optimizer
from trainers.config import train_config
from trainers.sharpness_aware.optimizers import optimizer_of
from trainers.sharpness_aware.spec import MethodSpec

SETTINGS = {
    "lr": 0.1, "momentum": 0.9, "rho": 0.3, "rho_schedule": "linear", "rho_min": 0.1, "rho_steps": 2,
    "gate": "periodic", "gate_options": {"k": 2}, "grad_clip": 0.5, "shrink_perturb": 0.01, "alpha": 0.2,
}  # fmt: skip


def test_it_is_frozen_and_holds_every_knob():
    spec = MethodSpec.of("gsam", "sgd", SETTINGS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.rho = 0.2
    assert spec.options["alpha"] == 0.2
    assert spec.options.keys() >= {"alpha", "minimize"}  # those left out with their defaults
    assert dataclasses.replace(spec, rho=0.4).options == spec.options


def test_nothing_in_it_changes_and_equal_ones_hash_alike():
    one, other = (MethodSpec.of("gsam", "sgd", SETTINGS) for _ in range(2))
    assert (one, hash(one)) == (other, hash(other))
    assert one != MethodSpec.of("gsam", "sgd", SETTINGS | {"alpha": 0.3})
    for options in (one.options, one.gate_options):
        with pytest.raises(TypeError, match="does not support item assignment"):
            options["k"] = 3
    again = pickle.loads(pickle.dumps(one))
    assert (again, hash(again)) == (one, hash(one))


def test_another_method_keeps_the_options_that_were_given_and_has_defaults_of_its_own():
    spec = MethodSpec.of("gsam", "sgd", SETTINGS)
    plain = dataclasses.replace(MethodSpec.of("gsam", "sgd", {"lr": 0.1}), method="sam")
    assert plain == MethodSpec.of("sam", "sgd", {"lr": 0.1})
    with pytest.raises(ValueError, match="method 'sam' has no option `alpha`"):
        dataclasses.replace(spec, method="sam")


def test_its_fields_are_the_keywords_of_make_optimizer():
    keywords = inspect.signature(make_optimizer).parameters
    mine = {f.name: f.default for f in dataclasses.fields(MethodSpec) if f.name not in ("method", "base", "options")}
    assert list(keywords) == ["method", "model", "base", *mine, "options"]
    assert {name: keywords[name].default for name in mine} == mine


def test_a_specification_makes_the_optimizer_that_the_keywords_make():
    ends = []
    x, y = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)).double(), torch.arange(12) % 3
    for build in (
        lambda m: make_optimizer("gsam", m, **SETTINGS),
        lambda m: optimizer_of(MethodSpec.of("gsam", "sgd", SETTINGS), m),
    ):
        model = network()
        optimizer = build(model)
        radii = []
        for _ in range(4):
            optimizer.step(Objective(model, torch.nn.functional.cross_entropy, x, y))
            radii.append(optimizer.last.rho)
        assert radii == pytest.approx([0.1, 0.0, 0.3, 0.0])  # every second step is perturbed
        ends.append(flat(model))
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": None}, "`lr` is needed to make the base optimizer 'sgd'"),
        ({"momentum": 1.0}, r"`momentum` must be in \[0, 1\), got 1.0"),
        ({"base": "bsam"}, "`base` 'bsam' belongs to method 'bsam', got method 'sam'"),
        ({"rho_schedule": "linaer"}, "`rho_schedule` must be one of .*Did you mean 'linear'"),
        ({"gate_options": {"k": 2}}, "`gate_options` belong to a gate by name"),
        ({"gate": "preiodic"}, "`gate` must be one of .*Did you mean 'periodic'"),
        ({"seed": -1}, "`seed` must be a whole number >= 0, got -1"),
        ({"seed": None}, "`seed` must be a number, got None; leave it out for 0"),
        ({"momentum": None}, "`momentum` must be a number, got None; leave it out for 0.0"),
        ({"gate_options": 3}, "`gate_options` must be a mapping by name, such as .*, got 3"),
        ({"examples": 2.5}, "`examples` must be a whole number"),
        ({"shrink_perturb": "0.1"}, "`shrink_perturb` must be a number"),
    ],
)
def test_it_is_checked_when_it_is_made(settings, message):
    given = {"lr": 0.1} | settings
    with pytest.raises(ValueError, match=message):
        MethodSpec.of("sam", given.pop("base", "sgd"), given)


@pytest.mark.parametrize(
    ("method", "base", "message"),
    [
        (
            "sgd",
            "adamw",
            "steps with, which is 'sgd': leave `base` out, or take method 'adamw' for that optimizer alone",
        ),
        ("bsam", "adamw", "steps with, which is 'bsam': leave `base` out"),
    ],
)
def test_a_base_that_the_method_does_not_step_with_is_refused(method, base, message):
    """It was left aside without a word: AdamW in name, SGD in fact."""
    with pytest.raises(ValueError, match=message):
        MethodSpec(method=method, base=base, lr=0.1, examples=5)
    with pytest.raises(ValueError, match=message):
        train_config({"method": method, "base": base})
    assert MethodSpec(method="adamw", base="adamw", lr=0.1).base == "adamw"
