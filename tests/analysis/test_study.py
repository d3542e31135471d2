"""The whole path on the smoke study: files, repeatability, interruption, and foolish input."""

import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from commands import command as run

from analysis import table
from analysis.measures.collect import measure_run
from analysis.measures.plan import plan
from analysis.measures.subject import Subject
from analysis.measures.taking import measure_subject
from analysis.progress import quiet
from analysis.statistics.catalogue import STATISTICS
from analysis.study import Study, read_study
from trainers import Run, Runtime, build_model, fit, load_dataset
from trainers.files.writing import write_json

SMOKE = Path(__file__).parents[2] / "studies" / "smoke.yaml"

pytestmark = pytest.mark.xdist_group("smoke")


@pytest.fixture
def values():
    return yaml.safe_load(SMOKE.read_text())


def test_every_arrow_is_a_file(smoke):
    for name in ("study.json", "measures.parquet", "report/report.html", "report/report.md"):
        assert (smoke / name).is_file(), name
    assert {p.stem for p in (smoke / "statistics").iterdir()} == {
        "correlations",
        "comparisons",
        "ceilings",
        *STATISTICS,
    }
    measured = table.read(smoke / "measures.parquet")
    assert measured["run_id"].nunique() == 20
    failed = measured[measured["value"].isna() & ~measured["warnings"].str.contains("own|forgotten|class")]
    assert failed.empty, failed[["measure", "warnings"]].drop_duplicates().to_string()


def test_measures_of_a_sample_carry_their_error(smoke):
    measured = table.read(smoke / "measures.parquet")
    for name in ("hessian_trace", "test_error", "top_eigenvalue", "F_mi"):
        rows = measured[(measured["measure"] == name) & measured["value"].notna()]
        assert len(rows), name
        assert rows["stderr"].notna().all(), name


def test_two_runs_of_a_study_give_the_same_table_float_for_float(smoke, tmp_path, values):
    values["methods"] = values["methods"][:2]
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(values))
    work = Study(read_study(path), tmp_path / "again", runtime=Runtime(jobs=2))
    work.prepare()
    work.train(quiet)
    again = work.measure(quiet)
    first = table.read(smoke / "measures.parquet")
    first = first[first["run_id"].isin(set(again["run_id"]))].reset_index(drop=True)
    assert len(again) == len(first) > 0
    pd.testing.assert_frame_equal(again, first, check_exact=True)


def test_a_second_call_measures_nothing_again(smoke):
    work = Study.open(smoke, runtime=Runtime(jobs=1))
    files = sorted((smoke / "runs").glob("*/measures/*.parquet"))
    stamps = [p.stat().st_mtime_ns for p in files]
    before = table.read(smoke / "measures.parquet")
    pd.testing.assert_frame_equal(work.measure(quiet), before, check_exact=True)
    assert [p.stat().st_mtime_ns for p in files] == stamps


def test_a_broken_cache_is_measured_again(smoke, tmp_path):
    source = next(p for p in sorted((smoke / "runs").iterdir()))
    shutil.copytree(source, tmp_path / "run")
    chosen = plan({"norms": None})
    before = measure_run(tmp_path / "run", chosen)
    for path in (tmp_path / "run" / "measures").glob("*.parquet"):
        path.write_bytes(path.read_bytes()[:50])
    pd.testing.assert_frame_equal(measure_run(tmp_path / "run", chosen), before)


# -- one bad thing is one marked row ---------------------------------------------------------------------------------


def test_a_measure_that_fails_becomes_rows_with_the_reason(monkeypatch):
    data = load_dataset("digits", train_size=50, validation_size=50, test_size=50)
    model = build_model("mlp", shape=data.shape, classes=10, generator_seed=0, options={"width": 4})
    subject = Subject(model.eval(), data, "x")
    rows = measure_subject(subject, plan(["example_forgetting", "norms"]))
    assert all(math.isnan(r.value) and "foreign weights have none" in r.warnings for r in rows["example_forgetting"])
    by_name = {r.measure: r for r in rows["norms"]}
    assert math.isfinite(by_name["gradient_norm"].value)
    assert "initial weights are not known" in by_name["distance_from_init"].warnings


TINY = {"train_size": 40, "validation_size": 20, "test_size": 20, "epochs": 2, "model_options": {"width": 4}}


def test_a_diverged_run_is_rows_that_say_so(tmp_path):
    diverged = fit({**TINY, "lr": 1e9, "lr_schedule": "constant"}, out=tmp_path)
    rows = measure_run(diverged.folder, plan(["targets"]))
    assert rows["value"].isna().all()
    assert rows["warnings"].str.startswith("diverged: ").all()


def test_a_truncated_checkpoint_is_rows_that_say_so(tmp_path):
    whole = fit(TINY, out=tmp_path)
    path = list(whole.checkpoints().values())[-1] / "params.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:100])
    rows = measure_run(whole.folder, plan(["norms"]))
    assert rows["value"].isna().all()
    assert rows["warnings"].str.contains("truncated").all()
    path.write_bytes(content)  # once the file is mended, the failure is not remembered
    assert measure_run(whole.folder, plan(["norms"]))["value"].notna().all()


def test_an_interrupted_run_is_rows_that_say_how_to_go_on(tmp_path):
    part = fit(TINY, out=tmp_path, stop=lambda epoch: epoch == 1)
    assert measure_run(part.folder, plan(["norms"]))["warnings"].str.contains("run the same command again").all()


def test_measures_do_not_change_the_model():
    data = load_dataset("digits", train_size=60, validation_size=60, test_size=60)
    model = build_model("resnet20", shape=data.shape, classes=10, generator_seed=0, options={"width": 4}).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    chosen = plan({
        "targets": None, "hessian_eigenvalues": {"max_products": 5}, "hessian_trace": {"draws": 4},
        "m_sharpness": {"m": (16,)}, "average_sharpness": {"draws": 2}, "perturbed_forgetting": {"batches": 2, "m": 16},
    })  # fmt: skip
    measure_subject(Subject(model, data, "x"), chosen)
    after = model.state_dict()
    assert all((after[k] == v).all() for k, v in before.items())
    assert not model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


# -- the command line ------------------------------------------------------------------------------------------------


def test_study_command_prints_the_report(tmp_path, values, capsys):
    values["methods"] = [{"method": "sam", "rho": [0.1]}]
    values["measures"] = {"targets": None, "norms": None}
    values["trajectory"] = {}
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(values))
    assert run("study", path, "--out", tmp_path / "s", "--jobs", 1) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == f"report: {tmp_path / 's' / 'report' / 'report.html'}"
    assert "fewer than 5 configurations" in (tmp_path / "s" / "report" / "report.md").read_text().lower()


def test_a_folder_of_another_study_is_refused_and_can_be_extended(tmp_path, values, capsys):
    values.update(methods=[{"method": "sgd"}], measures={"norms": None, "targets": None}, trajectory={})
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(values))
    work = Study(read_study(path), tmp_path / "s", runtime=Runtime(jobs=1))
    work.prepare()
    values["grid"]["seed"] = [0, 1, 2]
    path.write_text(yaml.safe_dump(values))
    assert run("study", path, "--out", tmp_path / "s", "--jobs", 1) == 2
    message = capsys.readouterr().err
    assert "was made with another configuration (other grid)" in message
    assert "--extend" in message
    Study(read_study(path), tmp_path / "s", runtime=Runtime(jobs=1)).prepare(extend=True)


def test_train_measure_correlate_list(tmp_path, capsys):
    options = ["--train-size", 40, "--validation-size", 20, "--test-size", 20, "--epochs", 2]
    assert run("train", "--method", "sam", "--rho", 0.05, *options, "--out", tmp_path) == 0
    out = capsys.readouterr().out
    assert "finished after 2 epochs" in out
    folder = Path(out.strip().splitlines()[-1].removeprefix("run: "))
    assert Run(folder).config().rho == 0.05
    assert run("measure", folder, "--measures", "norms", "targets") == 0
    assert "gradient_norm" in capsys.readouterr().out
    assert run("correlate", folder, "--draws", 0, "--permutations", 0) == 1  # nothing can be said of one run
    for what in ("methods", "measures", "models", "datasets"):
        assert run("list", what) == 0
    out = capsys.readouterr().out
    for name in ("gsam", "hessian_trace", "resnet20", "landscape-lab[mnist1d]"):
        assert name in out


def test_foreign_weights_can_be_measured(tmp_path, capsys):
    import torch

    model = build_model("mlp", shape=(1, 8, 8), classes=10, generator_seed=3, options={"width": 8})
    torch.save({"state_dict": model.state_dict()}, tmp_path / "theirs.pt")
    arguments = ["measure", tmp_path / "theirs.pt", "--measures", "norms", "targets", "--train-size", 50]
    assert run(*arguments) == 2
    assert "`--model` is needed" in capsys.readouterr().err
    assert run(*arguments, "--model", "mlp", "--model-options", "width", 8) == 0
    assert "theirs.measures.parquet" in capsys.readouterr().out
    assert run(*arguments, "--model", "mlp") == 2
    assert "has shape" in capsys.readouterr().err


@pytest.mark.parametrize(("change", "message"), [
    ({"bse": {}}, "unknown key `bse`. Did you mean 'base'?"),
    ({"base": {"epochss": 3}}, "unknown key `epochss`. Did you mean 'epochs'?"),
    ({"grid": {"lr": []}}, "needs a list with at least one value for `lr`"),
    ({"methods": [{"method": "smm"}]}, "Did you mean 'sam'?"),
    ({"methods": [{"method": "sam", "rho": [-1]}]}, "`rho` got -1"),
    ({"methods": []}, "`methods` is empty"),
    ({"measures": {"top_eigenvalu": None}}, "measure 'top_eigenvalu' is unknown"),
    ({"measures": {"hessian_trace": {"draw": 3}}}, "measure 'hessian_trace' has no option `draw`"),
    ({"name": "../up"}, "`name`"),
    ({"statistics": {"level": 2}}, "`statistics.level` got 2"),
])  # fmt: skip
def test_foolish_study_files_get_one_clear_message(tmp_path, values, change, message, capsys):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({**values, **change}))
    assert run("study", path, "--out", tmp_path / "s") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_files_that_are_no_studies(tmp_path, capsys):
    assert run("study", tmp_path / "none.yaml") == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "x.yaml").write_text("a: [1")
    assert run("study", tmp_path / "x.yaml") == 2
    assert "is not YAML" in capsys.readouterr().err
    (tmp_path / "y.yaml").write_text("- 1")
    assert run("study", tmp_path / "y.yaml") == 2
    assert "is no study" in capsys.readouterr().err
    (tmp_path / "z.yaml").write_text("!!python/object/apply:os.system ['echo never']")
    assert run("study", tmp_path / "z.yaml") == 2
    assert "is not YAML" in capsys.readouterr().err


def test_a_study_file_cannot_import_code_without_trust(tmp_path, values, capsys):
    values["base"]["model"] = "os:getcwd"
    values["base"].pop("model_options")
    path = tmp_path / "evil.yaml"
    path.write_text(yaml.safe_dump(values))
    assert run("study", path, "--out", tmp_path / "s", "--jobs", 1) == 2
    assert "allow it with `--trust`" in capsys.readouterr().err


def test_missing_steps_name_the_command_that_makes_them(tmp_path, capsys):
    for command, folder in (("report", tmp_path), ("correlate", tmp_path), ("measure", tmp_path)):
        assert run(command, folder) == 2
        assert "landscape" in capsys.readouterr().err


def test_a_full_disk_says_so_and_nothing_half_is_left(tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainers.runs.checkpoint.save_file", full)
    assert run("train", "--epochs", 1, "--train-size", 40, "--out", tmp_path) == 1
    assert "the disk is full: make room" in capsys.readouterr().err
    assert not list(tmp_path.rglob("meta.json"))


def test_ctrl_c_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("analysis.cli.train.fit", stop)
    assert run("train", "--out", tmp_path) == 130
    assert "the same command continues" in capsys.readouterr().err


def test_study_json_is_plain(smoke):
    stored = json.loads((smoke / "study.json").read_text())
    assert stored["name"] == "smoke"
    assert len(stored["runs"]) == 20
    assert set(stored["seconds"]) == {"training", "measuring", "statistics"}
    assert stored["environment"]["torch"].startswith("2.")


def test_a_run_that_left_nothing_is_still_counted(smoke, tmp_path):
    work = Study.open(smoke)
    assert len(work.runs()) == 20
    write_json(tmp_path / "study.json", {"study": {"nme": 1}})
    with pytest.raises(ValueError, match=r"unknown key `nme`\. Did you mean 'name'"):
        Study.open(tmp_path)


def test_warnings_of_a_measure_stand_in_its_rows():
    data = load_dataset("digits", train_size=50, validation_size=50, test_size=50)
    model = build_model("mlp", shape=data.shape, classes=10, generator_seed=0, options={"width": 4})
    chosen = plan({"hessian_eigenvalues": {"max_products": 3, "tol": 1e-6}})
    rows = measure_subject(Subject(model.eval(), data, "x"), chosen)["hessian_eigenvalues"]
    assert [r.converged for r in rows] == [False] * 3  # the two ends and their ratio
    assert all("did not reach a residual" in r.warnings for r in rows)
