"""Complexity measures of checkpoints: the table's rows against formulas written out here, and what is said without."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from folded_networks import Between, mlp, settled
from torch import nn

from analysis.measures.catalogue import complexity
from analysis.measures.catalogue.complexity import MEASURES
from analysis.measures.subject import Subject
from landscape import Estimate
from landscape.sharpness import noise_radius
from trainers import build_model, fit, load_dataset
from trainers.config import train_config

SIZES = {"train_size": 60, "validation_size": 20, "test_size": 20}
CHEAP = ("weight_norms", "spectral_norms_fft", "path_norm", "train_outputs", "training_speed", "gradient_noise")


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits", **SIZES)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that reaches a cross-entropy of 0.1 and then of 0.01."""
    settings = {
        **SIZES, "epochs": 30, "batch_size": 20, "lr": 0.05, "lr_schedule": "constant", "model_options": {"width": 12},
    }  # fmt: skip
    return fit(train_config(settings), out=tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def subject(run, data):
    return Subject.of_checkpoint(run, max(run.checkpoints()), data)


def values(rows):
    return {r.measure: r for r in rows}


def fitted_margin(subject):
    """A model whose margin is positive: its outputs far apart on every training example."""
    z, y = subject.train_outputs, subject.data.train.y
    return (z + 20 * nn.functional.one_hot(y, z.shape[1])), y


@pytest.mark.parametrize("name", CHEAP)
def test_every_row_is_there_and_finite_or_explained(subject, name):
    rows = MEASURES[name].function(subject)
    assert sorted(r.measure for r in rows) == sorted(MEASURES[name].rows)
    for r in rows:
        assert math.isfinite(r.value) != bool(r.warnings), r
        assert math.isfinite(r.stderr) == math.isfinite(r.value)
        assert r.split == "train"


def test_norms_against_numpy(subject):
    found = values(complexity.weight_norms(subject, form="raw"))
    weights = [p.detach().double() for n, p in subject.model.named_parameters() if n.endswith("weight")]
    starts = [subject.initial[n].double() for n, _ in subject.model.named_parameters() if n.endswith("weight")]
    spec = [float(torch.linalg.matrix_norm(w, 2)) ** 2 for w in weights]
    fro = [float(w.square().sum()) for w in weights]
    moved = [float((a - b).square().sum()) for a, b in zip(weights, starts, strict=True)]
    expected = {
        "params": sum(w.numel() for w in weights),
        "log_prod_of_spec": sum(map(math.log, spec)),
        "log_prod_of_fro": sum(map(math.log, fro)),
        "fro_over_spec": sum(f / s for f, s in zip(fro, spec, strict=True)),
        "fro_dist": sum(moved),
        "l2_dist": math.sqrt(sum(moved)),
        "param_norm": sum(fro),
    }
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, rel=1e-10), name
    p = sum(t.numel() for t in subject.model.parameters())
    assert found["vc_count"].value == pytest.approx(3 * p * math.log(p))
    adjusted = values(complexity.weight_norms(subject))
    n = 60
    assert adjusted["fro_dist"].value == pytest.approx(math.sqrt(sum(moved) / n), rel=1e-10)
    assert adjusted["log_prod_of_spec"].value == pytest.approx(
        (expected["log_prod_of_spec"] - math.log(n)) / 2, rel=1e-10
    )
    assert adjusted["fro_dist"].options == {"form": "adjusted", "n": n, "layers": 3, "folded": 0}


def test_the_margin_is_an_order_statistic_of_the_outputs(subject, monkeypatch):
    z, y = fitted_margin(subject)
    monkeypatch.setitem(subject.__dict__, "train_outputs", z)
    others = z.double().clone()
    others[torch.arange(60), y] = -math.inf
    margin = float((z.double()[torch.arange(60), y] - others.max(1).values).sort().values[5])  # the 6th of 60
    row = values(complexity.train_outputs(subject, form="raw"))["inverse_margin"]
    assert row.value == pytest.approx(1 / margin**2, rel=1e-10)
    assert row.options["margin"] == pytest.approx(margin)
    over = values(complexity.weight_norms(subject, form="raw"))
    assert over["log_prod_of_fro_over_margin"].value == pytest.approx(
        over["log_prod_of_fro"].value - 2 * math.log(margin), rel=1e-10
    )
    monkeypatch.setitem(subject.__dict__, "train_outputs", torch.full_like(z, math.nan))
    broken = values(complexity.train_outputs(subject))
    assert broken["inverse_margin"].warnings == "the margin is not known"
    assert broken["cross_entropy"].warnings == "the outputs are not all finite"


def test_cross_entropy_and_entropy_of_the_outputs(subject):
    found = values(complexity.train_outputs(subject))
    p = subject.train_outputs.double().softmax(1)
    assert found["cross_entropy"].value == pytest.approx(subject.risk.value(), rel=1e-6)
    assert found["output_entropy"].value == pytest.approx(float(torch.distributions.Categorical(p).entropy().mean()))
    assert found["output_entropy"].draws == 60


def test_steps_to_a_loss_are_read_from_the_history(subject, run, data):
    history = run.history()
    reached = history.loc[history["train_loss"] <= 0.1, "step"].min()
    assert 0 < reached < subject.step
    found = values(complexity.training_speed(subject))
    assert found["steps_to_ce_0.1"].value == reached
    assert found["steps_to_ce_0.1"].options == {"every": "epoch"}
    assert found["steps_to_ce_0.01"].value == history.loc[history["train_loss"] <= 0.01, "step"].min() > reached
    between = values(complexity.training_speed(replace(subject, step=int(reached))))
    assert between["steps_to_ce_0.1"].value == reached
    assert "did not reach 0.01" in between["steps_to_ce_0.01"].warnings
    early = values(complexity.training_speed(replace(subject, step=int(reached) - 1)))
    assert "did not reach 0.1 by this checkpoint" in early["steps_to_ce_0.1"].warnings
    foreign = values(complexity.training_speed(Subject(subject.model, data, "x")))
    assert foreign["steps_to_ce_0.1"].warnings == "the record of training is not known"
    smooth = replace(subject, config=train_config({**subject.config.model_dump(), "label_smoothing": 0.1}))
    assert "not the plain" in values(complexity.training_speed(smooth))["steps_to_ce_0.1"].warnings


def test_gradient_noise_against_single_gradients(subject):
    found = values(complexity.gradient_noise(subject))
    for name, model in (("end", subject.model), ("start", subject.initial_model)):
        rows = []
        for x, y in zip(subject.data.train.x, subject.data.train.y, strict=True):
            loss = nn.functional.cross_entropy(model(x[None]), y[None])
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
        expected = float(torch.stack(rows).double().var(0).sum())
        assert found[f"gradient_noise_{name}"].value == pytest.approx(expected, rel=1e-5)
        assert 0 < found[f"gradient_noise_{name}"].stderr < expected


def test_without_the_initial_weights(data):
    model = build_model("mlp", shape=(1, 8, 8), classes=10, generator_seed=0, options={"width": 5}).eval()
    subject = Subject(model, data, "x")
    missing = {r.measure for r in complexity.weight_norms(subject) if "initial weights" in r.warnings}
    assert missing == {"log_spec_init_main", "fro_dist", "dist_spec_init", "l2_dist"}
    assert "initial weights" in values(complexity.gradient_noise(subject))["gradient_noise_start"].warnings


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(4 * 64, 10)

    def forward(self, x):
        return self.head(self.body(x))


def test_batch_norm_is_folded_at_the_start_too(data, generator):
    model, start = (settled(Normed(), generator).eval() for _ in range(2))
    initial = {n: p.detach() for n, p in start.named_parameters()}
    subject = Subject(model, data, "x", initial=initial, initial_buffers=dict(start.named_buffers()))
    found = values(complexity.weight_norms(subject, form="raw"))

    def weights(m):
        conv, norm = m.body[0], m.body[1]
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        return torch.cat([(conv.weight * scale.view(-1, 1, 1, 1)).flatten(), m.head.weight.flatten()]).detach().double()

    moved = float((weights(model) - weights(start)).square().sum())
    assert found["fro_dist"].value == pytest.approx(moved, rel=1e-5)
    assert found["fro_dist"].options["folded"] == 1
    circular = values(complexity.spectral_norms_fft(subject, form="raw"))
    assert circular["dist_spec_init_fft"].value > found["dist_spec_init"].value * 1.01
    assert circular["dist_spec_init_fft"].options["spectrum"] == "circular"
    unknown = replace(subject, initial_buffers=None)  # the statistics before training are part of the function
    assert "initial weights" in values(complexity.weight_norms(unknown))["fro_dist"].warnings


def test_runs_keep_the_statistics_before_training(tmp_path, data):
    options = {"width": 2, "blocks": 1}
    settings = {**SIZES, "epochs": 1, "batch_size": 30, "model": "resnet20", "model_options": options}
    run = fit(train_config(settings), out=tmp_path)
    subject = Subject.of_checkpoint(run, max(run.checkpoints()), data)
    found = values(complexity.weight_norms(subject))
    assert math.isfinite(found["dist_spec_init"].value)
    assert found["dist_spec_init"].options["folded"] == 7
    start = subject.initial_model.get_submodule("stem.1")
    assert torch.equal(start.running_var, torch.ones(2))
    assert not torch.equal(subject.model.get_submodule("stem.1").running_var, torch.ones(2))


def test_what_is_not_defined_is_said_in_the_rows(data):
    vit = build_model("vit", shape=(1, 8, 8), classes=10, generator_seed=0, options={"dim": 8, "depth": 1, "heads": 2})
    subject = Subject(vit.eval(), data, "x")
    norms = values(complexity.weight_norms(subject))
    assert math.isfinite(norms["log_prod_of_spec"].value)
    assert norms["log_prod_of_spec"].warnings == "not among the layers: positions"
    assert all(math.isnan(r.value) and "piecewise linear" in r.warnings for r in complexity.path_norm(subject))
    odd = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), Between("activation"), nn.Linear(3, 10)).eval()
    for name in ("weight_norms", "spectral_norms_fft", "path_norm"):
        rows = MEASURES[name].function(Subject(odd, data, "x"))
        assert all(math.isnan(r.value) and "does not directly follow" in r.warnings for r in rows)
        assert tuple(r.measure for r in rows) == MEASURES[name].rows
    assert "not above 0" in complexity.train_outputs(Subject(odd, data, "x"))[0].warnings  # needs no folding


def test_bounds_share_one_search_and_carry_its_error(subject, monkeypatch):
    calls = []

    def counted(risk, **options):
        calls.append(options["magnitude"])
        return noise_radius(risk, **options)

    monkeypatch.setattr(complexity, "noise_radius", counted)
    found = values(complexity.pacbayes(subject, draws=6, form="raw"))
    assert calls == [False, True]
    s = found["pacbayes_flatness"].options["level"]
    t = found["pacbayes_mag_flatness"].options["level"]
    assert found["pacbayes_flatness"].value == pytest.approx(1 / s**2)
    assert found["pacbayes_mag_flatness"].value == pytest.approx(1 / t**2)
    square = values(complexity.weight_norms(subject, form="raw"))["param_norm"].value
    orig = found["pacbayes_orig"]
    assert orig.value == pytest.approx(square / (4 * s**2) + math.log(60 / s) + 10, rel=1e-10)
    risk = complexity._folded_risk(subject)
    level = noise_radius(risk, draws=6, generator=subject.generator("noise radius"))
    assert level.value == pytest.approx(s)
    slope = square / (2 * s**3) + 1 / s  # of the formula in s
    assert orig.stderr == pytest.approx(slope * level.stderr, rel=0.1)  # first order; the formula curves
    assert all(r.draws == 6 and r.converged for r in found.values())


def test_the_search_at_the_usual_settings_is_the_subject_s_own(run, data, monkeypatch):
    subject = Subject.of_checkpoint(run, max(run.checkpoints()), data)
    plain, scaled = (
        Estimate(0.5, 0.01, 32), Estimate(0.25, 0.01, 32, converged=False),
    )  # fmt: skip
    monkeypatch.setitem(subject.__dict__, "noise_radius", plain)
    monkeypatch.setitem(subject.__dict__, "magnitude_noise_radius", scaled)
    found = values(complexity.pacbayes(subject, form="raw"))
    assert (found["pacbayes_flatness"].value, found["pacbayes_mag_flatness"].value) == (4.0, 16.0)
    assert [found[name].converged for name in ("pacbayes_orig", "pacbayes_mag_orig")] == [True, False]
    assert found["pacbayes_flatness"].stderr == pytest.approx((1 / 0.49**2 - 1 / 0.51**2) / 2)


def test_worst_case_bounds(subject):
    found = values(complexity.worst_case_bounds(subject, steps=3, tol=0.2, form="raw"))
    assert sorted(found) == sorted(MEASURES["worst_case_bounds"].rows)
    a = found["sharpness_flatness"].options["level"]
    assert found["sharpness_flatness"].value == pytest.approx(1 / a**2)
    w = values(complexity.weight_norms(subject, form="raw"))
    expected = w["param_norm"].value * math.log(2 * w["params"].value) / (4 * a**2) + math.log(60 / a) + 10
    assert found["sharpness_orig"].value == pytest.approx(expected, rel=1e-10)


def test_a_model_at_chance_has_no_noise_level(data):
    model = mlp((64, 4, 10))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    subject = Subject(nn.Sequential(nn.Flatten(), model).eval(), data, "x")
    with pytest.warns(RuntimeWarning):
        rows = complexity.pacbayes(subject, draws=2)
    assert all(math.isnan(r.value) and r.warnings for r in rows)
    assert all(not r.converged for r in rows if "mag" not in r.measure)
    norms = values(complexity.weight_norms(subject))
    assert norms["log_prod_of_spec"].warnings == "a layer's weights are all zero"


def test_measuring_changes_nothing(subject):
    state, mode = copy.deepcopy(subject.model.state_dict()), subject.model.training
    for name in CHEAP:
        MEASURES[name].function(subject)
    assert subject.model.training == mode
    assert all(torch.equal(t, state[name]) for name, t in subject.model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in subject.model.parameters())
