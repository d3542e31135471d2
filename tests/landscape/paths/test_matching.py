"""Weight matching: planted permutations, brute force, and the distance that never rises."""

import itertools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from landscape.paths.groups import PermutationGroups
from landscape.paths.matching import weight_matching
from landscape.paths.states import ModelState

F64 = torch.float64
RECOVERED = ["mlp", "cnn", "signals", "batchnorm", "resnet20", "vit", "grouped", "attending", "encoder", "unknown"]


@pytest.mark.parametrize("kind", RECOVERED)
def test_permuted_copy_is_recovered_exactly(kind, build, generator):
    model, x = build(kind)
    groups, state = PermutationGroups.of_model(model, x), ModelState.of(model)
    planted = groups.random(generator)
    found = weight_matching(groups, state.parameters, groups.permuted(state.parameters, planted))
    assert found.distance == 0
    assert found.distance_before > 1
    assert found.converged
    for group, order in groups.inverse(planted).items():
        assert torch.equal(found.permutations[group], order), group


def _mlp(generator, sizes=(3, 4, 2)):
    layers = [nn.Linear(a, b, dtype=F64) for a, b in itertools.pairwise(sizes)]
    model = nn.Sequential(*[m for layer in layers for m in (layer, nn.Tanh())][:-1])
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=F64))
    return model


def _distance(groups, a, b, permutations):
    moved = groups.permuted(b, permutations)
    return sum(float((a[n] - moved[n]).square().sum()) for n in a) ** 0.5


def test_one_hidden_layer_is_solved_to_the_global_optimum(generator):
    first, second = _mlp(generator), _mlp(generator)
    groups = PermutationGroups.of_model(first, torch.zeros(2, 3, dtype=F64))
    a, b = ModelState.of(first).parameters, ModelState.of(second).parameters
    best = min(_distance(groups, a, b, {"0": torch.tensor(p)}) for p in itertools.permutations(range(4)))
    found = weight_matching(groups, a, b)
    assert found.distance == pytest.approx(best, rel=1e-12)
    assert found.distance == pytest.approx(_distance(groups, a, b, found.permutations), rel=1e-12)
    assert found.distance_before == pytest.approx(_distance(groups, a, b, groups.identity()), rel=1e-12)


def test_restarts_reach_the_global_optimum_of_two_layers(generator):
    first, second = _mlp(generator, (3, 4, 4, 2)), _mlp(generator, (3, 4, 4, 2))
    groups = PermutationGroups.of_model(first, torch.zeros(2, 3, dtype=F64))
    a, b = ModelState.of(first).parameters, ModelState.of(second).parameters
    orders = [torch.tensor(p) for p in itertools.permutations(range(4))]
    best = min(_distance(groups, a, b, {"0": p, "2": q}) for p in orders for q in orders)
    once = weight_matching(groups, a, b)
    many = weight_matching(groups, a, b, restarts=20, generator=generator)
    assert best <= many.distance * (1 + 1e-12)
    assert many.distance <= once.distance * (1 + 1e-12)
    assert many.distance == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("kind", ["recurring", "resnet20", "vit"])
def test_the_distance_never_rises_and_no_single_swap_lowers_it(kind, build):
    model, x = build(kind)
    other, _ = build(kind, seed=1)
    groups = PermutationGroups.of_model(model, x)
    a, b = ModelState.of(model).parameters, ModelState.of(other).parameters
    found = weight_matching(groups, a, b)
    assert found.distance <= found.distance_before
    assert found.distance == pytest.approx(_distance(groups, a, b, found.permutations), rel=1e-12)
    if kind == "recurring":  # a quadratic problem: only steps that help are taken
        return
    assert found.converged
    for group in list(groups.sizes)[:3]:
        swapped = found.permutations[group].clone()
        swapped[:2] = swapped[:2].flip(0)
        assert _distance(groups, a, b, {**found.permutations, group: swapped}) >= found.distance * (1 - 1e-12)


def test_same_generator_same_result(build):
    model, x = build("vit")
    other, _ = build("vit", seed=1)
    groups = PermutationGroups.of_model(model, x)
    a, b = ModelState.of(model).parameters, ModelState.of(other).parameters
    runs = [weight_matching(groups, a, b, restarts=1, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert runs[0].distance == runs[1].distance
    for group, order in runs[0].permutations.items():
        assert torch.equal(order, runs[1].permutations[group])


def test_identical_units_and_zero_biases_do_no_harm():
    model = nn.Sequential(nn.Linear(3, 4, dtype=F64), nn.ReLU(), nn.Linear(4, 2, dtype=F64))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    groups = PermutationGroups.of_model(model, torch.zeros(2, 3, dtype=F64))
    state = ModelState.of(model).parameters
    found = weight_matching(groups, state, state)
    assert found.distance == 0
    assert_close(found.permutations["0"].sort().values, torch.arange(4))


def test_bad_arguments(build):
    model, x = build("mlp")
    groups, state = PermutationGroups.of_model(model, x), ModelState.of(model).parameters
    with pytest.raises(ValueError, match="`passes` at least 1, got 0 and 0"):
        weight_matching(groups, state, state, passes=0)
    with pytest.raises(ValueError, match=r"`other` has no '1.weight' of shape"):
        weight_matching(groups, state, {"1.weight": torch.zeros(2)})
    broken = {**state, "1.bias": torch.full_like(state["1.bias"], torch.nan)}
    with pytest.raises(ValueError, match=r"must be finite, '1.bias' is not"):
        weight_matching(groups, state, broken)


def test_a_group_on_both_axes_of_a_matrix_only_takes_steps_that_help(generator):
    """πWπᵀ is quadratic in π: the best permutation of the linearised problem may be worse, and passes may go round."""
    groups = PermutationGroups.of_axes({"h": [("w", 0), ("w", 1)]}, {"w": torch.zeros(6, 6)})
    for _ in range(30):
        a, b = ({"w": torch.randn(6, 6, generator=generator, dtype=F64)} for _ in range(2))
        found = weight_matching(groups, a, b)
        assert found.converged
        assert found.distance <= found.distance_before
