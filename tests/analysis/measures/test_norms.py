"""Norms of gradient, weights (a baseline) and way: against sums over all entries."""

import math

import pytest
import torch
from torch import nn

from analysis.measures.catalogue.baselines import baselines
from analysis.measures.catalogue.norms import MEASURES, norms
from analysis.measures.subject import Subject
from trainers import build_model, load_dataset


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits", train_size=40, validation_size=20, test_size=20)


def built(seed):
    return build_model("mlp", shape=(1, 8, 8), classes=10, generator_seed=seed, options={"width": 5}).eval()


def values(rows):
    return {r.measure: r for r in rows}


def all_norms(subject):
    return values([*norms(subject), *baselines(subject)])


def test_norms_over_all_parameters_jointly(data):
    model, start = built(0), built(1)
    initial = {n: p.detach() for n, p in start.named_parameters()}
    subject = Subject(model, data, "x", initial=initial)
    found = all_norms(subject)
    assert tuple(values(norms(subject))) == MEASURES["norms"].rows
    w, w0 = (torch.cat([p.detach().double().flatten() for p in m.parameters()]) for m in (model, start))
    loss = nn.functional.cross_entropy(model(data.train.x), data.train.y)
    g = torch.cat([t.double().flatten() for t in torch.autograd.grad(loss, list(model.parameters()))])
    assert found["parameter_norm"].value == pytest.approx(float(w.norm()), rel=1e-6)
    assert found["distance_from_init"].value == pytest.approx(float((w - w0).norm()), rel=1e-6)
    assert found["gradient_norm"].value == pytest.approx(float(g.norm()), rel=1e-5)
    assert found["gradient_norm"].options == {"loss": "cross_entropy", "mode": "eval", "n": 40}


def test_frozen_parameters_stay_out_and_an_unknown_start_is_said(data):
    model = built(0)
    model[1].weight.requires_grad_(False)
    found = all_norms(Subject(model, data, "x"))
    rest = [p for p in model.parameters() if p.requires_grad]
    assert found["parameter_norm"].value == pytest.approx(
        math.sqrt(sum(float(p.detach().double().square().sum()) for p in rest)), rel=1e-6
    )
    assert math.isnan(found["distance_from_init"].value)
    assert found["distance_from_init"].warnings == "the initial weights are not known"


def test_distance_is_exact_for_weights_that_hardly_moved(data):
    model = built(0)
    initial = {n: p.detach().clone() for n, p in model.named_parameters()}
    initial["1.bias"][0] += 2.0**-12
    found = values(norms(Subject(model, data, "x", initial=initial)))
    assert found["distance_from_init"].value == pytest.approx(2.0**-12, rel=1e-3)


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_rescaling_of_layers_changes_them_and_permutation_does_not(data, factor):
    model, order = built(0), torch.randperm(5, generator=torch.Generator().manual_seed(0))
    before = all_norms(Subject(model, data, "x"))
    with torch.no_grad():
        model[1].weight.copy_(factor * model[1].weight[order].clone())
        model[1].bias.copy_(factor * model[1].bias[order].clone())
        model[3].weight.copy_(model[3].weight[:, order].clone() / factor)
    after = all_norms(Subject(model, data, "x"))
    for name in ("gradient_norm", "parameter_norm"):
        assert (after[name].value == pytest.approx(before[name].value, rel=1e-5)) == (factor == 1)
