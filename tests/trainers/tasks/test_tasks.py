"""Tasks: what classification gives, and that a user's own task trains and is measured with what a task has, no more."""

import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from numbers_task import Regression, line
from torch.testing import assert_close

from analysis.cli import main
from analysis.measures.plan import plan
from analysis.measures.subject import Subject
from analysis.measures.taking import measure_subject
from analysis.statistics.correlation import correlate
from analysis.surfaces.files import read_surface
from trainers import Classification, Task, fit, load_checkpoint
from trainers.config import train_config
from trainers.data.splits import Split
from trainers.runs.folder import load_data
from trainers.tasks.task import measured, task_of

LINE = {
    "task": "numbers_task:Regression", "dataset": "numbers_task:line", "validation_size": 20, "epochs": 3, "lr": 0.05,
    "batch_size": 50, "model_options": {"width": 8, "depth": 1}, "method": "sam", "rho": 0.05,
}  # fmt: skip


@pytest.mark.parametrize(
    "task",
    [Classification(), Classification("cross_entropy", 0.2, "others"), Classification("bce", 0.1), Regression()],
    ids=["cross_entropy", "smoothed", "bce", "regression"],
)
def test_the_loss_is_the_mean_of_the_losses_of_examples(task):
    g = torch.Generator().manual_seed(0)
    out, y = torch.randn(7, 4, generator=g), torch.randint(4, (7,), generator=g)
    if isinstance(task, Regression):
        y = torch.randn(7, 4, generator=g)
    assert isinstance(task, Task)
    each = task.each(out, y)
    assert each.shape == (7,)
    assert_close(each.mean(), task.loss(out, y))
    assert_close(each[2:3].mean(), task.loss(out[2:3], y[2:3]))


def test_classification_is_measured_by_the_plain_cross_entropy():
    task = measured(Classification("bce", 0.3))
    assert task.loss is F.cross_entropy
    out, y = torch.tensor([[1.0, 3.0], [2.0, 0.0]]), torch.tensor([1, 1])
    assert task.scores(out, y)["error"].tolist() == [False, True]
    assert_close(task.probabilities(out)[0, 1], torch.tensor(1 / (1 + math.exp(-2)), dtype=torch.float64))
    assert measured(Regression()).name == "mse"


def test_a_task_of_ones_own_leaves_old_names_of_runs_as_they_are():
    assert train_config({"seed": 3}).run_id == train_config({"seed": 3, "task": "classification"}).run_id
    assert train_config({"seed": 3, "task": "a:B"}).run_id != train_config({"seed": 3}).run_id


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("numbers_task:Half", r"`task` 'numbers_task:Half' has no scores"),
        ("numbers_task:Third", "has no attribute 'Third'"),
        ("numbers_task:Idle", "`task` 'numbers_task:Idle': `each` must be a function, got None: see `trainers.Task`"),
        ("numbers_task:line", "`task` 'numbers_task:line' has no name, loss, each, scores, weight"),
    ],
)
def test_what_is_no_task_is_refused(task, message):
    with pytest.raises(ValueError, match=message):
        task_of(train_config({"task": task}), trust=True)


def test_a_task_is_imported_only_where_it_is_trusted():
    with pytest.raises(PermissionError, match="was not imported"):
        task_of(train_config(LINE))


@pytest.mark.parametrize(
    ("key", "value"), [("label_noise", 0.1), ("spurious", 0.1), ("label_smoothing", 0.1), ("loss", "bce")]
)
def test_what_needs_labels_is_refused(key, value):
    with pytest.raises(ValueError, match=f"`{key}` needs labels, that is `task` 'classification'"):
        train_config({**LINE, key: value})
    with pytest.raises(ValueError, match="`method` 'obf' ascends an objective that needs labels"):
        train_config({**LINE, "method": "obf"})
    with pytest.raises(ValueError, match=r"`task` 'regresion' is unknown; .* Did you mean 'regression'"):
        train_config({**LINE, "task": "regresion"})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(LINE, out=tmp_path_factory.mktemp("line"), trust=True)


def test_a_regression_is_trained(run):
    assert run.status()["status"] == "finished"
    model, _ = load_checkpoint(run.checkpoint(run.checkpoints().popitem()[0]), trust=True)
    test = load_data(run.config(), trust=True).test
    last = run.history().iloc[-1]
    with torch.no_grad():
        miss = model(test.x) - test.y
    assert last["test_loss"] == pytest.approx(float(miss.square().mean()), rel=1e-5)
    assert last["test_absolute_error"] == pytest.approx(float(miss.abs().mean()), rel=1e-5)
    assert last["train_loss"] < run.history()["train_loss"].iloc[0]
    assert math.isnan(last["test_error"])
    assert np.load(run.folder / "examples.npz")["n"] == 100  # and nothing of right and wrong


def test_a_regression_is_measured_with_what_it_has(run):
    step = max(run.checkpoints())
    data = load_data(run.config(), trust=True)
    subject = Subject.of_checkpoint(run, step, data, trust=True)
    names = ("targets", "hessian_trace", "ascent_sharpness", "output_bias", "noise_radius", "example_forgetting")
    found = {row.measure: row for rows in measure_subject(subject, plan(names)).values() for row in rows}
    with torch.no_grad():
        test, train = ((subject.model(s.x) - s.y).double() for s in (data.test, data.train))
    assert found["test_loss"].value == pytest.approx(float(test.square().mean()), rel=1e-6)
    assert found["test_absolute_error"].value == pytest.approx(float(test.abs().mean()), rel=1e-6)
    assert found["test_absolute_error"].stderr == pytest.approx(float(test.abs().std()) / math.sqrt(40), rel=1e-6)
    gap = float(test.abs().mean() - train.abs().mean())
    assert found["gap_absolute_error"].value == pytest.approx(gap, rel=1e-5)
    assert found["hessian_trace"].options["loss"] == "mse"
    assert math.isfinite(found["hessian_trace"].value)
    assert found["ascent_sharpness"].value > 0
    for name in ("ece", "b_marg", "inverse_noise_radius"):
        assert math.isnan(found[name].value)
        assert found[name].warnings == "needs probabilities of classes, which the task with loss 'mse' has not"
    assert "the run's task may not tell right from wrong" in found["forgetting_events"].warnings


def test_losses_are_measured_with_the_weights_of_the_task(tmp_path):
    given = {
        **LINE,
        "model": "numbers_task:to_one",
        "dataset": "numbers_task:weighted",
        "task": "numbers_task:Weighted",
    }
    run = fit({**given, "model_options": {}}, out=tmp_path, trust=True)
    data = load_data(run.config(), trust=True)
    subject = Subject.of_checkpoint(run, max(run.checkpoints()), data, trust=True)
    found = {row.measure: row for rows in measure_subject(subject, plan(("targets",))).values() for row in rows}
    last = run.history().iloc[-1]
    for split, part in (("train", data.train), ("test", data.test)):
        with torch.no_grad():
            e, w = (subject.model(part.x)[:, 0] - part.y[:, 0]).square().double(), part.y[:, 1].double()
        mean = float((w * e).sum() / w.sum())
        assert found[f"{split}_loss"].value == pytest.approx(mean, rel=1e-6)
        assert last[f"{split}_loss"] == pytest.approx(mean, rel=1e-5)
        n = len(e)
        error = math.sqrt(n / (n - 1) * float((w**2 * (e - mean) ** 2).sum())) / float(w.sum())
        assert found[f"{split}_loss"].stderr == pytest.approx(error, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Summed", r"`task` 'mse': `loss` is .* and the mean of `each` over them .*: let `loss` be that mean"),
        ("Silent", r"`task` 'mse': `scores` must give at least one score by name, got {}"),
        ("Pooled", r"`task` 'mse': `scores, 'absolute_error',` must give a real number an example, .* got \(\)"),
    ],
)
def test_a_task_that_contradicts_itself_is_refused(name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fit({**LINE, "task": f"numbers_task:{name}"}, out=tmp_path, trust=True)


def test_tokens_for_a_model_that_takes_numbers_are_refused(tmp_path):
    given = {**LINE, "task": "classification", "dataset": "numbers_task:tokens"}
    with pytest.raises(ValueError, match=r"`model` 'mlp' takes floating-point inputs, .* torch.int64, such as tokens"):
        fit(given, out=tmp_path, trust=True)


def test_targets_that_are_missing_on_both_sides_are_the_same():
    y = torch.tensor([[1.0, math.nan], [2.0, 3.0], [4.0, 5.0]])
    clean = torch.tensor([[1.0, math.nan], [2.0, math.nan], [4.0, 5.0]])
    assert Split(torch.zeros(3, 2), y, clean, torch.arange(3)).noisy.tolist() == [False, True, False]


def test_the_scores_of_a_task_of_ones_own_are_targets_and_explain_nothing():
    draw = np.random.default_rng(0)
    names = ("gap_absolute_error", "test_absolute_error", "ece", "train_absolute_error", "gap_loss", "sharpness")
    rows = [
        {"run_id": f"r{i}", "step": 1, "epoch": 1.0, "split": "test", "measure": name, "options": "{}", "value": value,
         "stderr": math.nan, "draws": 0, "converged": True, "warnings": "", "hp.method": "sam", "hp.rho": i,
         "hp.seed": 0}
        for i in range(6)
        for name, value in zip(names, draw.normal(size=6), strict=True)
    ]  # fmt: skip
    found = correlate(pd.DataFrame(rows), draws=20, permutations=19).table
    assert set(found.loc[found["role"] == "candidate", "measure"]) == {"sharpness"}
    assert set(found.loc[found["role"] == "baseline", "measure"]) == {"train_absolute_error"}
    assert set(found["target"]) == {"gap_absolute_error", "test_absolute_error", "gap_loss"}


def test_the_command_line_prints_the_score_that_leads(tmp_path, capsys):
    arguments = [f"--{key.replace('_', '-')}={value}" for key, value in LINE.items() if key != "model_options"]
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["train", *arguments, "--model-options", "width", "8", "depth", "1", "--out", str(tmp_path)])
    assert re.search(r"train absolute error \d\.\d{4}, test absolute error \d\.\d{4}", capsys.readouterr().out)


def test_the_data_are_those_of_the_function():
    train, test = line()
    data = load_data(train_config(LINE), trust=True)
    assert torch.equal(data.train.y, train.tensors[1][data.train.index])
    assert torch.equal(data.test.y, torch.cat([train.tensors[1], test.tensors[1]])[data.test.index])
    assert (data.classes, data.train.y.shape) == (1, (100, 1))


def test_a_surface_of_a_task_of_ones_own_shows_its_loss(run, tmp_path, capsys):
    shown = ["--points", "3", "--axes", "random", "--splits", "test", "--jobs", "1", "--no-numbers", "--trust"]
    with pytest.raises(SystemExit) as stopped:
        main(["surface", str(run.folder), *shown, "--out", str(tmp_path)])
    assert stopped.value.code == 0
    file = re.search(r"^surface: (.*)$", capsys.readouterr().out, re.MULTILINE)[1]
    assert read_surface(file)[0].metrics == ["test loss"]
    with pytest.raises(SystemExit) as stopped:
        main(["surface", str(run.folder), *shown, "--metrics", "numbers_task:Regression"])
    assert stopped.value.code == 2
    assert "`metrics` has 'numbers_task:Regression', which is a class" in capsys.readouterr().err
