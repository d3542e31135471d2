"""Regression and several labels go the whole way: stopped and continued, measured, drawn, listed."""

import math
import re

import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score, r2_score
from stopping import signal_after

from analysis.cli import main
from analysis.measures.plan import plan
from analysis.measures.registry import MEASURES, is_candidate
from analysis.measures.subject import Subject
from analysis.measures.taking import measure_subject
from analysis.score import Score, is_share
from analysis.surfaces.files import read_surface
from analysis.table import variant
from trainers import fit, read_weights
from trainers.runs.folder import Run, load_data

SMALL = {"epochs": 3, "batch_size": 50, "method": "sam", "rho": 0.05, "lr": 0.05,
         "model_options": {"width": 8, "depth": 1, "dropout": 0.1}}  # fmt: skip
RUNS = {
    "regression": {"task": "regression", "dataset": "diabetes", "label_noise": 0.2,
                   "task_options": {"loss_name": "gaussian"}},
    "multilabel": {"task": "multilabel", "dataset": "digit_marks", "train_size": 120, "validation_size": 60,
                   "test_size": 80},
}  # fmt: skip


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory):
    return fit({**RUNS[request.param], **SMALL}, out=tmp_path_factory.mktemp(request.param))


def test_stopped_and_continued_is_never_having_stopped(run, tmp_path, monkeypatch):
    given = {**RUNS[run.config().task], **SMALL}
    signal_after(monkeypatch, 4)
    with pytest.raises(SystemExit):
        fit(given, out=tmp_path)
    assert not Run(tmp_path / run.run_id).finished
    other, clock = fit(given, out=tmp_path), ["seconds"]
    pd.testing.assert_frame_equal(run.history().drop(columns=clock), other.history().drop(columns=clock))
    for step, folder in run.checkpoints().items():
        here, there = (read_weights(f / "params.safetensors") for f in (folder, other.checkpoint(step)))
        assert here.keys() == there.keys()
        assert all(torch.equal(here[name], there[name]) for name in here)


def test_measures_of_a_task_without_classes(run):
    data = load_data(run.config())
    subject = Subject.of_checkpoint(run, max(run.checkpoints()), data)
    names = {
        "targets": None, "hessian_trace": {"draws": 2}, "weight_norms": None, "training_speed": None,
        "example_forgetting": None, "output_bias": None,
        "perturbed_forgetting": {"providers": ("sam", "obf"), "batches": 2, "m": 30},
    }  # fmt: skip
    rows = measure_subject(subject, plan(names))
    named = [variant(row.measure, row.options, row.split) for each in rows.values() for row in each]
    assert len(set(named)) == len(named)  # `correlate` refuses two numbers under one name
    found = {row.measure: row for each in rows.values() for row in each}
    with torch.no_grad():
        z, y = subject.model(data.test.x), data.test.y
    if run.config().task == "regression":
        value, name, lead = r2_score(y, z[:, :1]), "test_r2", "squared_error"
        assert found["test_variance_ratio"].value > 0
        assert found["hessian_trace"].options["loss"] == "gaussian_nll"
    else:
        value, name, lead = average_precision_score(y, z), "test_average_precision", "label_error"
        assert math.isfinite(found["ood_label_error_mean"].value)  # of shifted images
        entries = [r for r in rows["perturbed_forgetting"] if r.measure == "KL_entry" and r.split == "held_out"]
        assert {r.options["entry"] for r in entries} == {0, 1, 2, 3}
    assert found[name].value == pytest.approx(value, rel=1e-5)
    assert found[name].stderr > 0
    assert not is_candidate(name)
    assert found[f"gap_{lead}"].value == pytest.approx(found[f"test_{lead}"].value - found[f"train_{lead}"].value)
    assert Score.of_history(run.history().columns) == Score(lead)
    for measure, reason in (
        ("ece", "needs probabilities of classes"), ("b_marg", "needs probabilities of classes"),
        ("F_mi", "needs probabilities of classes"), ("log_prod_of_spec_over_margin", "needs probabilities of classes"),
        ("steps_to_ce_0.1", "needs the plain cross-entropy"), ("forgetting_events", "needs one decision an example"),
    ):  # fmt: skip
        assert math.isnan(found[measure].value)
        assert re.match(f"{reason}.*, which the task with loss '.*' has not$", found[measure].warnings)
    assert math.isfinite(found["log_prod_of_spec"].value)
    of_sam = {(r.measure, r.split): r for r in rows["perturbed_forgetting"] if r.options.get("provider") == "sam"}
    assert of_sam["KL", "held_out"].value > 0
    assert of_sam["dloss", "exposed"].value > of_sam["dloss", "held_out"].value - 1
    assert any("OBF ascends an objective of labels" in r.warnings for r in rows["perturbed_forgetting"])


def test_a_surface_and_the_list_of_measures(run, tmp_path, capsys):
    shown = ["--points", "3", "--axes", "random", "--splits", "test", "--jobs", "1", "--no-numbers"]
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["surface", str(run.folder), *shown, "--out", str(tmp_path)])
    file = re.search(r"^surface: (.*)$", capsys.readouterr().out, re.MULTILINE)[1]
    assert read_surface(file)[0].metrics == ["test loss"]
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["list", "measures", "--task", run.config().task])
    said = capsys.readouterr().out
    assert sum(key[:20] in said for key in MEASURES) == len(MEASURES)
    assert "no: needs" in said


def test_what_is_a_share():
    assert all(map(is_share, ("test_error", "gap_label_error", "ood_error_mean", "test error", "train accuracy")))
    assert not any(map(is_share, ("test_squared_error", "gap_absolute_error", "test squared error", "test_loss", "r2")))
    assert (Score("squared_error").unit, Score("label_error").unit, Score().factor) == ("", " (%)", 100)
