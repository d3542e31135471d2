"""Targets on shifted sets from elsewhere; top-5, balanced and calibration errors, against scikit-learn and loops."""

import json
import math

import numpy as np
import pandas as pd
import photos
import pytest
import torch
import torch.nn.functional as F
from commands import command
from photos import corrupted, made, write_arrays, write_images
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from analysis import table
from analysis.measures.cache import option_hash
from analysis.measures.catalogue.calibration import balanced_error, calibration_error, top_error
from analysis.measures.catalogue.targets import TARGETS, target_rows, targets
from analysis.measures.catalogue.values import uneven
from analysis.measures.checkpoints import RunCheckpoint, keys_of
from analysis.measures.plan import plan
from analysis.measures.registry import failed_rows, is_candidate
from analysis.measures.subject import Subject
from analysis.study import Study, StudyConfig, read_study
from trainers import Classification, Runtime, fit
from trainers.data.shifted import shifted_sets
from trainers.runs.folder import load_data

SETTINGS = {
    "dataset": "photos:photos", "validation_size": 8, "test_size": 20, "epochs": 2, "batch_size": 16,
    "model_options": {"width": 8, "depth": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(SETTINGS, out=tmp_path_factory.mktemp("runs"), trust=True)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """CIFAR-10-C's format, and a folder of two of the four classes with one that the run does not know."""
    folder = tmp_path_factory.mktemp("sets")
    x, y = made(30, 9)
    names = [{0: "bear", 3: "fox"}.get(label, "whale") for label in y.tolist()]
    return {"photos-c": str(write_arrays(folder / "c")), "r": str(write_images(folder / "r", x, names))}


def subject_of(run, given):
    data = load_data(run.config(), trust=True, shifted=shifted_sets(given))
    return Subject.of_checkpoint(run, max(run.checkpoints()), data, trust=True)


def used(x):
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (photos.Photos.mean, photos.Photos.std))
    return (x.float() / 255 - mean) / std


def test_rows_of_shifted_sets_are_those_of_plain_loops(run, sets):
    subject = subject_of(run, sets)
    rows = {(r.measure, r.options.get("corruption"), r.options.get("severity")): r for r in targets(subject)}
    model, test = subject.model.eval(), subject.data.test
    x, y = (t[test.index - photos.TRAIN] for t in made(photos.TEST, 1))
    wrong = {}
    with torch.no_grad():
        for corruption in ("brightness", "fog"):
            logits = [model(used(corrupted(x, corruption, severity))) for severity in range(1, 6)]
            wrong[corruption] = torch.stack([(z.argmax(1) != y).double() for z in logits])
            losses = torch.stack([F.cross_entropy(z, y) for z in logits])
            assert rows["ood_loss", f"photos-c/{corruption}", None].value == pytest.approx(
                float(losses.mean()), rel=1e-6
            )
        clean = (model(used(x)).argmax(1) != y).double()
    for corruption, found in wrong.items():
        place = f"photos-c/{corruption}"
        for severity in range(1, 6):
            assert rows["ood_error_severity", place, severity].value == pytest.approx(float(found[severity - 1].mean()))
        assert rows["ood_error", place, None].value == pytest.approx(float(found.mean()))
    each = torch.stack(list(wrong.values())).mean((0, 1))
    overall, gap = rows["ood_error", "photos-c", None], rows["ood_gap", "photos-c", None]
    assert overall.value == pytest.approx(float(each.mean()))
    assert overall.stderr == pytest.approx(float(each.std(correction=0)) / math.sqrt(20))  # over the same 20 examples
    assert gap.value == pytest.approx(float((each - clean).mean()))
    assert gap.stderr == pytest.approx(float((each - clean).std(correction=0)) / math.sqrt(20), abs=1e-12)
    # built-in copies are what they were without
    alone = [r for r in targets(subject_of(run, {})) if r.split == "ood"]
    assert alone == [r for r in rows.values() if r.split == "ood" and not str(r.options.get("corruption")).startswith(
        ("photos-c", "r"))]  # fmt: skip


def test_a_set_of_fewer_classes_is_scored_among_them(run, sets):
    subject = subject_of(run, sets)
    rows = {r.measure: r for r in targets(subject) if r.options.get("corruption") == "r"}
    x, y = made(30, 9)
    kept = (y == 0) | (y == 3)
    with torch.no_grad():
        z = subject.model.eval()(used(x[kept]))[:, [0, 3]]
    error = (torch.tensor([0, 3])[z.argmax(1)] != y[kept]).double().mean()
    loss = F.cross_entropy(z, (y[kept] == 3).long())
    assert rows["ood_error"].value == pytest.approx(float(error))
    assert rows["ood_loss"].value == pytest.approx(float(loss), rel=1e-6)
    top = z.double().softmax(1).max(1)
    right = (top.indices == (y[kept] == 3).long()).numpy()
    assert rows["ood_ece"].value == pytest.approx(calibration_error(top.values.numpy(), right).value)
    assert rows["ood_error"].options["classes"] == 2
    assert rows["ood_error"].draws == int(kept.sum())
    assert rows["ood_error"].warnings == "1 of the set's 3 classes, such as whale, are none of the run's: left out"


# -- errors ----------------------------------------------------------------------------------------------------------


def logits(n=200, classes=14):
    g = torch.Generator().manual_seed(0)
    y = torch.multinomial(torch.arange(1.0, classes + 1), n, True, generator=g)
    return torch.randn(n, classes, generator=g), y


def test_top_error_is_that_of_scikit_learn():
    z, y = logits()
    for k in (1, 3, 5):
        expected = 1 - top_k_accuracy_score(y.numpy(), z.numpy(), k=k, labels=np.arange(14))
        assert top_error(z, y, k).value == pytest.approx(expected)
    found = top_error(z, y)
    assert found.stderr == pytest.approx(math.sqrt(found.value * (1 - found.value) / 200))
    # of equal logits the first are the largest, as argmax has it
    assert top_error(torch.zeros(3, 8), torch.tensor([0, 4, 5])).value == pytest.approx(1 / 3)
    assert top_error(torch.zeros(3, 8), torch.tensor([0, 4, 5]), 1).value == pytest.approx(2 / 3)


def test_balanced_error_is_that_of_scikit_learn():
    z, y = logits()
    wrong = z.argmax(1) != y
    found = balanced_error(wrong, y)
    assert found.value == pytest.approx(1 - balanced_accuracy_score(y.numpy(), z.argmax(1).numpy()))
    rates = [float(wrong[y == c].double().mean()) for c in y.unique()]
    counts = [int((y == c).sum()) for c in y.unique()]
    variance = sum(e * (1 - e) / n for e, n in zip(rates, counts, strict=True))
    assert found.stderr == pytest.approx(math.sqrt(variance) / len(rates))
    weights = torch.tensor([1 / (len(rates) * int((y == c).sum())) for c in y.tolist()])  # of a sum of weighted errors
    assert found.draws == round(1 / float(weights.square().sum()))
    assert balanced_error(wrong[:40], torch.arange(40) % 10).draws == 40
    with pytest.raises(ValueError, match="`wrong` and `labels` must be one an example"):
        balanced_error(wrong, y[:3])


def test_errors_that_say_nothing_new_have_no_rows():
    z, y = logits()
    names = {r.measure for r in target_rows(lambda x: x, {"test": (z, y), "train": (z, y), "ood": {"a:1": (z, y)}})}
    assert {f"{s}_{e}" for s in ("train", "test", "ood") for e in ("top5_error", "balanced_error")} <= names
    z, y = torch.randn(40, 10, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 10
    even = {r.measure for r in target_rows(lambda x: x, {"test": (z, y), "ood": {"a:1": (z, y)}})}
    assert not [name for name in even if "top5" in name or "balanced" in name]
    assert not uneven(Classification(), torch.tensor([0] * 4 + [1] * 2))  # as a stratified cut may leave them
    assert uneven(Classification(), torch.tensor([0] * 5 + [1] * 2))
    # training data have it where the test set has, and not by the chance of noisy labels
    assert not [r for r in target_rows(lambda x: x, {"test": (z, y), "train": logits()}) if "balanced" in r.measure]


def test_balanced_errors_of_paired_sets_are_means_over_examples():
    z, y = logits()
    other = z.roll(1, 0)
    rows = target_rows(lambda x: x, {"ood": {"a:1": (z, y), "a:2": (other, y)}}, paired=True)
    found = next(r for r in rows if r.measure == "ood_balanced_error")
    expected = np.mean([1 - balanced_accuracy_score(y.numpy(), t.argmax(1).numpy()) for t in (z, other)])
    assert found.value == pytest.approx(expected)


def test_calibration_is_told_on_every_set():
    z, y = logits()
    rows = {r.measure: r for r in target_rows(lambda x: x, {
        "train": (z, y), "validation": (2 * z, y), "test": (z, y), "ood": {"a:1": (z, y), "a:2": (3 * z, y)},
    }, bins=7)}  # fmt: skip

    def ece(t):
        top = t.double().softmax(1).max(1)
        return calibration_error(top.values.numpy(), (top.indices == y).numpy(), bins=7).value

    assert rows["train_ece"].value == rows["ece"].value == pytest.approx(ece(z))
    assert rows["validation_ece"].value == pytest.approx(ece(2 * z))
    assert rows["ood_ece"].value == pytest.approx((ece(z) + ece(3 * z)) / 2)
    assert rows["ood_ece"].options == {"corruption": "a", "bins": 7}


def test_no_further_row_is_a_candidate_and_failures_name_none_that_may_be_missing():
    for name in ("test_top5_error", "test_balanced_error", "ood_loss", "ood_ece", "train_ece", "ood_top5_error"):
        assert not is_candidate(name)
    failed = {r.measure for r in failed_rows("targets", "why")}
    assert "test_top5_error" in TARGETS
    assert "test_top5_error" not in failed
    assert "ood_error_mean" in failed


# -- keeping rows apart, and the commands ------------------------------------------------------------------------------


def test_kept_rows_are_known_by_the_shifted_sets_where_these_decide_them(run, sets):
    step, wanted = max(run.checkpoints()), plan(["targets", "norms"])
    plain = keys_of(RunCheckpoint(run.folder, step), wanted, 0)
    assert plain["targets"] == option_hash("targets", wanted["targets"], 0, {})
    with_sets = keys_of(RunCheckpoint(run.folder, step, shifted=shifted_sets(sets)), wanted, 0)
    other = keys_of(RunCheckpoint(run.folder, step, shifted=shifted_sets({"r": sets["r"]})), wanted, 0)
    assert len({plain["targets"], with_sets["targets"], other["targets"]}) == 3
    assert plain["norms"] == with_sets["norms"]


def test_measure_takes_shifted_sets_and_forgets_none(run, sets, capsys):
    given = [f"{name}={source}" for name, source in sets.items()]
    assert command("measure", run.folder, "--measures", "targets", "--trust", "--shifted", *given) == 0
    frame = table.with_variant(pd.read_parquet(run.folder / "measures.parquet"))
    assert {"ood_error[photos-c]", "ood_error[photos-c/fog]", "ood_error[r]", "ood_error[noise]"} <= set(
        frame["variant"]
    )
    assert command("measure", run.folder, "--measures", "targets", "--trust") == 0
    assert "photos-c" not in "".join(pd.read_parquet(run.folder / "measures.parquet")["options"])
    capsys.readouterr()
    for wrong, message in (
        (["photos-c"], "`--shifted` takes name=source, such as cifar10-c=PATH, got 'photos-c'"),
        (["a=x", "a=y"], "names 'a' twice"),
        (["a=nowhere"], "`shifted` 'a': nowhere is no folder"),
        (["a=photos:numbers"], "`shifted` 'a': inputs of 'photos:numbers' are torch.float32"),
    ):
        assert command("measure", run.folder, "--trust", "--shifted", *wrong) == 2
        assert message in capsys.readouterr().err


def test_a_study_has_its_shifted_sets_as_targets(sets, tmp_path):
    from analysis.progress import quiet

    path = tmp_path / "study.yaml"
    values = {
        "name": "shifts", "base": {**SETTINGS, "epochs": 1, "lr": 0.01}, "grid": {"lr": [0.01, 0.1], "seed": [0, 1]},
        "measures": {"targets": None, "norms": None}, "shifted": sets,
        "statistics": {"draws": 20, "permutations": 20, "lead": "ood_error[photos-c]"},
    }  # fmt: skip
    path.write_text(json.dumps(values))
    study = Study(read_study(path, trust=True), tmp_path / "study", trust=True, runtime=Runtime(jobs=1))
    study.prepare()
    study.train(quiet)
    study.measure(quiet)
    found = study.correlate().table
    assert {"ood_error[photos-c]", "ood_error[photos-c/fog]", "ood_error[r]"} <= set(found["target"])
    path.write_text(json.dumps({**values, "shifted": {**sets, "gone": str(tmp_path / "gone")}}))
    with pytest.raises(FileNotFoundError, match="`shifted` 'gone'"):
        Study(read_study(path, trust=True), tmp_path / "other", trust=True).prepare()
    assert not (tmp_path / "other").exists()
    path.write_text(json.dumps({**values, "shifted": {"own": "photos:photos"}, "base": {}}))
    with pytest.raises(PermissionError, match="'photos:photos' was not imported"):
        read_study(path)


def test_a_study_without_shifted_sets_is_the_one_it_was():
    config = {"name": "a", "methods": [{"method": "sgd"}]}
    plain = StudyConfig.parse(config)
    assert plain.digest == StudyConfig.parse({**config, "shifted": {}}).digest
    assert plain.digest != StudyConfig.parse({**config, "shifted": {"c": "there"}}).digest
