"""The measures of sharpness and of gradients on a small network: their rows against the functions behind them."""

import json
import math
from dataclasses import replace

import pytest
import torch
from problems import F64, o5
from torch import nn

from analysis.measures.catalogue import gradients, sharpness
from analysis.measures.subject import Subject
from landscape import AbsWeight, AscentStep, ascent_sharpness, displaced
from landscape.sharpness import first_order_sharpness, fisher_rao_norm, noise_radius, worst_case_sharpness
from trainers import build_model, load_dataset, make_optimizer

ALL = {**sharpness.MEASURES, **gradients.MEASURES}
QUICK = {"draws": 3, "steps": 2, "blocks": 4}


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits", train_size=50, validation_size=20, test_size=20)


@pytest.fixture(scope="module")
def subject(data):
    model = build_model("mlp", shape=(1, 8, 8), classes=10, generator_seed=0, options={"width": 6, "depth": 2})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.train.x), data.train.y).backward()
        optimizer.step()
    return Subject(model.eval(), data, "x")


def options_of(key):
    names = ALL[key].function.__kwdefaults__ or {}
    return {name: value for name, value in QUICK.items() if name in names}


@pytest.mark.parametrize("key", ALL)
def test_every_measure_makes_the_rows_that_it_names(key, subject):
    rows = ALL[key].function(subject, **options_of(key))
    assert {r.measure for r in rows} == set(ALL[key].rows)
    for r in rows:
        json.dumps(dict(r.options), allow_nan=True)
        assert {"mode", "n", "loss"} <= set(r.options)
        assert math.isfinite(r.value) or r.warnings
        assert r.draws >= 1
    again = ALL[key].function(subject, **options_of(key))
    assert [repr(r.value) for r in rows] == [repr(r.value) for r in again]


@pytest.mark.parametrize("key", [k for k in ALL if "adaptive" in k or "ascent" in k or "worst" in k])
def test_norm_radius_and_steps_stand_in_the_row(key, subject):
    for row in ALL[key].function(subject, **options_of(key)):
        if "average" in key:
            assert {"rho", "noise"} <= set(row.options)
        elif key != "worst_case_radius":
            assert {"rho", "norm", "steps"} <= set(row.options)
            assert row.options["norm"] == ("linf" if "linf" in key else "l2")


def test_values_are_those_of_the_functions(subject):
    risk = subject.risk
    (row,) = sharpness.linf_ascent_sharpness(subject, rho=(0.01,))
    assert row.value == pytest.approx(ascent_sharpness(risk, AscentStep(0.01, p=math.inf)).value, rel=1e-5)
    (row,) = sharpness.adaptive_worst_case_sharpness(subject, rho=(0.5,), examples=None)
    assert row.value == pytest.approx(worst_case_sharpness(risk, 0.5, metric=AbsWeight()).value, rel=1e-5)
    rows = sharpness.first_order_sharpness(subject, m=(1, 4, None), rho=0.1)
    assert rows[0].value == pytest.approx(first_order_sharpness(risk, 0.1, 1).value, rel=1e-5)
    assert [r.options["m"] for r in rows] == [1, 4, "all"]
    assert rows[1].options["n"] == 48  # what four divides
    assert rows[1].options["partition_seed"] == 0
    (row,) = gradients.fisher_rao(subject)
    assert row.value == pytest.approx(fisher_rao_norm(risk), rel=1e-4)
    rows = sharpness.noise_radius(subject, draws=4, tol=0.1)
    sigma = noise_radius(risk, draws=4, tol=0.1, generator=subject.generator("noise radius"))
    assert rows[0].value == pytest.approx(sigma.value**-2)
    assert rows[0].stderr == pytest.approx(2 * sigma.stderr / sigma.value**3)


def test_excess_is_the_part_of_the_sampling(subject):
    rows = sharpness.m_sharpness(subject, m=(5, None), rho=0.1)
    s5, excess, everything = rows
    assert (everything.options["m"], everything.options["n"]) == ("all", 50)
    assert s5.value - excess.value == pytest.approx(everything.value, rel=1e-4)
    assert excess.stderr == s5.stderr > 0


def test_radii_ascend_and_blocks_count(subject):
    rows = sharpness.worst_case_sharpness(subject, rho=(0.4, 0.1, 0.2), steps=1)
    assert [r.options["rho"] for r in rows] == [0.1, 0.2, 0.4]
    assert [r.value for r in rows] == sorted(r.value for r in rows)
    assert rows[0].draws == 1
    (row,) = sharpness.worst_case_sharpness(subject, rho=(0.1,), m=8, examples=40, steps=2)
    assert (row.draws, row.options["n"], row.options["m"]) == (5, 40, 8)
    (some,) = sharpness.worst_case_sharpness(subject, rho=(0.1,), examples=30, steps=2)
    assert some.options["n"] == 30


def test_a_dead_model_has_no_normalised_sharpness(subject):
    model = build_model("mlp", shape=(1, 8, 8), classes=10, generator_seed=0, options={"width": 6, "depth": 2})
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    (row,) = sharpness.normalised_worst_case_sharpness(replace(subject, model=model.eval()))
    assert math.isnan(row.value)
    assert "the logits of 50 of 50 examples are constant" in row.warnings


def test_a_noise_scale_that_is_not_defined_says_its_parts(data):
    model = build_model("mlp", shape=(1, 8, 8), classes=10, generator_seed=0, options={"width": 6, "depth": 2}).eval()
    risk = Subject(model, data, "x")
    shifted = replace(risk.gradient_moments, mean={k: 0 * g for k, g in risk.gradient.items()})
    risk.__dict__["gradient_moments"] = replace(shifted, slopes=0 * shifted.slopes)
    row = gradients.gradient_covariance(risk)[1]
    assert math.isnan(row.value)
    assert "the squared norm of the gradient is estimated as -" in row.warnings


def test_a_radius_that_is_not_known_is_marked(subject):
    with pytest.warns(RuntimeWarning, match="no noise up to"):
        rows = sharpness.noise_radius(subject, drop=0.99, draws=2, tol=0.5)
    assert math.isnan(rows[0].value)
    assert not rows[0].converged
    assert "costs enough accuracy" in rows[0].warnings


def test_the_gap_says_where_it_is_no_curvature(subject):
    row, directional = sharpness.surrogate_gap(subject, rho=(1e-3,))
    assert "this is no curvature" in row.warnings
    assert directional.warnings == ""


def test_what_is_usual_is_cheap():
    usual = {key for key, entry in ALL.items() if entry.usual}
    assert usual == {
        "ascent_sharpness", "m_sharpness", "adaptive_ascent_sharpness", "average_sharpness", "relative_flatness",
        "adaptive_average_sharpness", "gradient_covariance", "fisher_rao",
    }  # fmt: skip


@pytest.mark.parametrize("measure", [sharpness.m_sharpness, sharpness.first_order_sharpness])
def test_blocks_as_large_as_the_data_are_one_row_however_many_sizes_ask_for_them(measure, subject):
    rows = measure(subject, m=(25, 50, 128, None, 25))
    sizes = [r.options["m"] for r in rows if r.measure == measure.__name__]
    assert sizes == [25, "all"]  # n = 50: three names of the same number


def test_the_excess_is_over_all_examples_of_the_blocks_and_no_others(subject):
    rows = {r.measure: r for r in sharpness.m_sharpness(subject, m=(7,), rho=0.1)}  # one of the 50 is left over
    risk, _ = sharpness.partitioned(subject, 7, 128)
    whole = ascent_sharpness(risk, AscentStep(0.1)).value
    assert risk.n == 49
    assert rows["m_sharpness_excess"].value == rows["m_sharpness"].value - whole
    assert whole != ascent_sharpness(subject.risk, AscentStep(0.1)).value


def test_the_decomposition_of_the_surrogate_gap_on_the_quadratic():
    """The gap's gradient is split along the perturbed one by the method that closes it, at the point the gap names."""
    g, perturbed = torch.tensor([0.4, -0.2], dtype=F64), torch.tensor([0.6236067977, -0.2], dtype=F64)
    risk = o5()
    delta = AscentStep(0.1)(risk.theta, risk.gradient())
    seen = risk.at(displaced(risk.theta, delta)).gradient()
    orthogonal = g - (g @ perturbed) / (perturbed @ perturbed) * perturbed
    near = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(orthogonal, torch.tensor([-0.0208546878, -0.0650256253], dtype=F64), **near)
    w = nn.Parameter(risk.theta["w"].clone())
    model = nn.Module()
    model.register_parameter("w", w)
    step = make_optimizer("gsam", model, lr=1.0, rho=0.1, alpha=0.4)

    def closure():
        step.zero_grad()
        loss = risk.loss(risk.predict({"w": w}, torch.zeros(1)), torch.zeros(1))
        loss.backward()
        return loss

    step.step(closure)
    moved = risk.theta["w"] - w.detach()
    torch.testing.assert_close(moved, torch.tensor([0.6319486729, -0.1739897499], dtype=F64), **near)
    torch.testing.assert_close(moved, seen["w"] - 0.4 * orthogonal, **near)
