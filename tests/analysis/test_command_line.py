"""The program: where it finds modules, what it says and how it ends; in-process where that can be."""

import importlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from commands import command as run
from safetensors.torch import save_file
from synthetic import make

from analysis import path as places
from analysis.cli.correlate import show_correlations
from analysis.cli.program import COMMANDS
from analysis.progress import quiet
from analysis.results import StudyResults
from analysis.study import Study, read_study
from trainers import Run, Runtime, list_runs
from trainers.data.augmentation import AUGMENTATIONS
from trainers.runs.checkpoint import read_weights

ROOT = Path(__file__).parents[2]
SMALL = {
    "name": "small",
    "base": {
        "epochs": 1, "train_size": 60, "validation_size": 40, "test_size": 60, "batch_size": 30,
        "model_options": {"width": 4, "depth": 1},
    },
    "methods": [{"method": "sgd"}, {"method": "sam", "rho": 0.1}],
    "grid": {"lr": [0.05, 0.1, 0.2], "seed": [0]},
    "measures": {"targets": {}, "norms": {}},
    "statistics": {"draws": 30, "permutations": 39, "level": 0.9, "lead": "test_error"},
}  # fmt: skip
OWN = """
import torch
class D(torch.utils.data.Dataset):
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __getitem__(self, i): return torch.randn(4, generator=torch.Generator().manual_seed(i)), i % 3
class Moving(D):
    def __getitem__(self, i): return torch.randn(4), i % 3
def load(): return D(60), D(30)
def moving(): return Moving(60), Moving(30)
def three(): return 3
def make(shape, classes): return torch.nn.Linear(4, classes)
def two(shape): return torch.nn.Linear(4, 2)
class Named(torch.nn.Linear):
    def forward(self, x): return {"out": super().forward(x)}
def named(): return Named(4, 3)
def digits(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
def named_digits(): return torch.nn.Sequential(torch.nn.Flatten(), Named(64, 10))
"""


def one_line(capsys):
    said = capsys.readouterr().err.strip()
    assert "\n" not in said, said
    assert "LANDSCAPE_TRACEBACK" not in said, said
    return said


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study of six runs, finished up to its statistics."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    work = Study(read_study(folder / "small.yaml"), folder / "study", runtime=Runtime(jobs=1))
    work.prepare()
    work.train(quiet)
    work.measure(quiet)
    work.correlate()
    return folder / "study"


@pytest.fixture
def study(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "study"))


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A working folder with a module of the user's own, on a path of its own."""
    (tmp_path / "own_things.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    sys.modules.pop("own_things", None)
    yield tmp_path
    sys.modules.pop("own_things", None)


def imported():
    places.find_own_modules(trust=True)
    return importlib.import_module("own_things")


# -- modules of the working folder -----------------------------------------------------------------------------------


def test_the_working_folder_is_searched_last_and_only_for_what_is_named_or_trusted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", before := ["a", "b"])
    places.find_own_modules("mlp", None)
    assert sys.path == before
    places.find_own_modules("mlp", "mine:load")
    assert sys.path == ["a", "b", str(tmp_path)]
    places.find_own_modules(trust=True)
    assert sys.path == ["a", "b", str(tmp_path)]


def test_files_of_the_working_folder_that_are_called_like_libraries_are_not_run(tmp_path, monkeypatch):
    libraries = ("jinja2", "numpy", "pandas", "typing", "joblib", "plotly")
    for name in libraries:
        (tmp_path / f"{name}.py").write_text(f"open('run-{name}', 'w')")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "analysis", "list", "models"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("run-*"))


def test_a_run_that_names_modules_is_read_only_with_trust(own, capsys):
    options = ["--validation-size", 10, "--epochs", 1, "--batch-size", 20]
    assert run("train", "--dataset", "own_things:load", "--model", "own_things:make", *options, "--out", "r") == 0
    (folder,) = Path("r").iterdir()
    sys.modules.pop("own_things")
    sys.path.remove(str(own))
    assert run("measure", folder, "--measures", "norms") == 1  # every value is missing
    assert "own_things" not in sys.modules
    assert "allow it with `--trust`" in capsys.readouterr().out
    assert run("measure", folder, "--measures", "norms", "--trust") == 0


def test_the_path_of_a_run_with_modules_of_its_own_is_drawn_with_trust(own):
    options = ["--validation-size", 10, "--epochs", 3, "--checkpoints", 1, 2, "--batch-size", 20]
    assert run("train", "--dataset", "own_things:load", "--model", "own_things:make", *options, "--out", "r") == 0
    (folder,) = Path("r").iterdir()
    shown = ["--axes", "pca", "pca", "--points", 3, "--splits", "train", "--jobs", 1, "--no-numbers", "--trust"]
    assert run("surface", folder, *shown) == 0


@pytest.mark.parametrize(("old", "new"), [('"data_seed": 0', '"data_seed": 1'), ('"lr": 0.05', '"lr": 0.15')])
def test_a_configuration_that_is_not_its_runs_any_more_is_named(old, new, study, capsys):
    path = next(p for p in study.glob("runs/*/config.json") if old in p.read_text())
    path.write_text(path.read_text().replace(old, new))
    assert run("correlate", study) == 2
    assert f"{path} is not the configuration of run {path.parent.name} any more" in one_line(capsys)


# -- messages and exit codes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["measure", "surface", "correlate", "compare", "report"])
def test_a_folder_that_is_not_there_is_said_in_a_line(command, tmp_path, capsys):
    assert run(command, tmp_path / "nope") == 2
    said = one_line(capsys)
    assert "nope" in said
    assert "Errno" not in said


@pytest.mark.parametrize("device", ["mps", "cuda:77", "gpu", "meta", ""])
@pytest.mark.parametrize("command", ["train --epochs 1 --out {}", "measure {}/x", "surface {}/x", "study {}/x.yaml"])
def test_a_device_that_is_not_there_is_said_in_a_line_before_anything_is_read(command, device, tmp_path, capsys):
    assert run(*command.format(tmp_path).split(), "--device", device) == 2
    assert f"`device` {device!r} is not there" in (said := one_line(capsys))
    assert "this machine has cpu" in said
    assert not list(tmp_path.iterdir())


def test_one_run_trains_on_one_device(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("trainers.runtime.device_of", lambda name: name)  # as if there were two
    assert run("train", "--epochs", 1, "--device", "cpu:0,1", "--out", tmp_path) == 2
    assert "`device` 'cpu:0,1' names several devices, and one run trains on one: name one" in one_line(capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("flags", "message"), [
    (("--jobs", 0), "`jobs` must be at least 1, got 0"),
    (("--device", "cpu:0,0"), "`device` 'cpu:0,0' names a device twice"),
    (("--device", "cpu:0", "--executor", "ray"), "`device` must be 'cpu' or 'cuda' with executor 'ray'"),
    (("--address", "there:1"), "`address` is a Ray cluster's, got 'there:1' with executor 'processes'"),
])  # fmt: skip
def test_places_that_do_not_go_together_are_refused(flags, message, tmp_path, capsys):
    assert run("measure", tmp_path, *flags) == 2
    assert message in one_line(capsys)


def test_augmentations_are_listed_and_taken_with_workers(tmp_path, capsys):
    assert run("list", "augmentations") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in AUGMENTATIONS)
    sizes = ("--train-size", 20, "--validation-size", 0, "--test-size", 20, "--epochs", 1)
    assert run("train", *sizes, "--augment", "crop:1", "flip", "mixup", "--workers", 1, "--out", tmp_path) == 0
    (made,) = list_runs(tmp_path)
    assert made.config().augment == ("crop:pad=1", "flip", "mixup:alpha=0.2")
    capsys.readouterr()
    assert run("train", *sizes, "--augment", "crp", "--out", tmp_path) == 2
    assert "Did you mean 'crop'?" in one_line(capsys)
    assert run("measure", made.folder, "--measures", "baselines", "--workers", -1) == 2
    assert "`workers` must be a whole number of processes >= 0, got -1" in one_line(capsys)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_a_terminal_cannot_show_is_replaced(encoding, monkeypatch):
    raw = {name: io.BytesIO() for name in ("stdout", "stderr")}
    for name, buffer in raw.items():
        monkeypatch.setattr(sys, name, io.TextIOWrapper(buffer, encoding=encoding, errors="strict"))
    assert run("list", "methods") == 0
    assert run("measure", "weights-τ") == 2
    sys.stdout.flush()
    assert b"gsam" in raw["stdout"].getvalue()
    assert b"weights-? does not exist" in raw["stderr"].getvalue()


@pytest.mark.parametrize("name", ["config.json", "status.json", "study.json", "statistics.json"])
@pytest.mark.parametrize("content", ["{}", "[1]", "", "[" * 5000])
def test_json_of_another_shape_in_a_study_is_named(name, content, study, capsys):
    place = study / name if name.startswith("st") and name != "status.json" else next((study / "runs").iterdir()) / name
    place.write_text(content)
    for command in ("measure", "correlate", "report"):
        code = run(command, study, *(["--figure", "forest"] if command == "report" else []))
        said = capsys.readouterr().err
        assert "LANDSCAPE_TRACEBACK" not in said
        assert code == 0 or (code == 2 and name in said and said.count("\n") == 1)


def test_a_model_of_hugging_face_and_a_broken_checkpoint_show_the_way(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["X"]}')
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="holds a model of Hugging Face, no run of ours: measure it with `landscape"):
        Run(tmp_path).settings()
    (tmp_path / "last.ckpt").write_bytes(b"PK")
    assert run("measure", tmp_path / "last.ckpt", "--model", "mlp") == 2
    assert "last.ckpt cannot be read" in one_line(capsys)


def test_a_reader_that_goes_away_is_no_error():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-m", "analysis", "list", "methods"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


# -- the study's own words -------------------------------------------------------------------------------------------


def test_correlate_takes_the_settings_of_the_study_and_the_report_tells_those_used(study, capsys):
    path = study / "statistics" / "correlations.parquet"
    before = pd.read_parquet(path)
    assert run("correlate", study) == 0
    pd.testing.assert_frame_equal(pd.read_parquet(path), before)
    assert capsys.readouterr().out.splitlines()[0].strip().endswith("with test_error")  # which leads
    assert StudyResults.load(study).facts()["permutations"] == "39 permutations"
    assert StudyResults.load(study).other_statistics() == ""
    assert run("correlate", study, "--permutations", 19) == 0
    assert not pd.read_parquet(path)["p"].equals(before["p"])
    assert StudyResults.load(study).facts()["permutations"] == "19 permutations"
    results = StudyResults.load(study)
    assert results.facts()["level"] == "90 %"
    assert results.other_statistics() == "permutations 19"
    used = json.loads((study / "statistics.json").read_text())  # every setting, those of nobody's choice too
    assert {key: used[key] for key in ("permutations", "interval", "seed")} == {
        "permutations": 19, "interval": "stabilised", "seed": 0,
    }  # fmt: skip


def test_correlations_are_printed_with_whole_names_and_baselines(capsys):
    rows = make().correlations.copy()
    rows.loc[rows["measure"] == "trace", ["role", "warnings"]] = "baseline", "two tied parameters"
    show_correlations(rows, 3)
    printed = capsys.readouterr().out
    words = "".join(printed.split())
    leading = rows.query("coefficient == 'kendall' and target == 'test_error' and role == 'candidate'")
    for name in leading.sort_values("value", key=abs, ascending=False)["measure"].head(3):
        assert "".join(name.split("[")[0].split()) in words
    assert "trace*" in words
    assert "note: two tied parameters: trace" in printed
    assert max(map(len, printed.splitlines())) <= 100
    assert "max-T" in printed


def test_compare_takes_the_level_of_the_study(study, capsys):
    assert run("compare", study) == 0
    assert "90 % t interval" in " ".join(capsys.readouterr().out.split())


def test_files_of_one_stem_have_tables_and_names_of_their_own(own):
    own_things = imported()
    state = own_things.digits().state_dict()
    torch.save(state, "w.pt")
    options = ["--model", "own_things:digits", "--train-size", 30, "--measures", "baselines"]
    assert run("measure", "w.pt", *options) == 0
    assert (own / "w.measures.parquet").exists()
    save_file({name: 2 * t for name, t in state.items()}, "w.safetensors")
    assert run("measure", "w.pt", *options) == run("measure", "w.safetensors", *options) == 0
    tables = {ending: pd.read_parquet(own / f"w.{ending}.measures.parquet") for ending in ("pt", "safetensors")}
    assert {ending: set(t["run_id"]) for ending, t in tables.items()} == {
        "pt": {"w.pt"}, "safetensors": {"w.safetensors"},
    }  # fmt: skip
    norms = [t.set_index("measure").loc["parameter_norm", "value"] for t in tables.values()]
    assert norms[1] == pytest.approx(2 * norms[0])
    assert run("measure", own, *options) == 0
    assert set(pd.read_parquet(own / "measures.parquet")["run_id"]) == {"w.pt", "w.safetensors"}


def test_measuring_ends_well_only_if_a_number_came_of_it(own):
    own_things = imported()
    torch.save(own_things.named_digits().state_dict(), "n.pt")
    options = ["--model", "own_things:named_digits", "--train-size", 30]
    assert run("measure", "n.pt", *options, "--measures", "targets") == 1
    rows = pd.read_parquet(own / "n.measures.parquet").set_index("measure")["value"]
    assert rows.notna()[lambda known: known].index.tolist() == ["parameter_norm"]  # a baseline, which nobody asked for


def test_weights_are_measured_on_data_of_fewer_examples_than_are_kept_for_validation(own, capsys):
    torch.save(torch.nn.Linear(4, 3).state_dict(), "w.pt")
    options = ["w.pt", "--model", "own_things:make", "--dataset", "own_things:load"]
    assert run("measure", *options, "--measures", "targets", "output_bias", "--out", "all.parquet") == 0
    assert "there are no validation examples: keep some, by `validation_size`" in capsys.readouterr().out
    rows = pd.read_parquet("all.parquet").set_index("measure")["value"]
    assert np.isfinite(rows["train_loss"])
    assert "validation_loss" not in rows
    model, data = torch.nn.Linear(4, 3), importlib.import_module("own_things").D(60)
    model.load_state_dict(read_weights("w.pt"))
    x, y = torch.stack([data[i][0] for i in range(60)]), torch.arange(60) % 3
    assert rows["train_loss"] == pytest.approx(torch.nn.functional.cross_entropy(model(x), y).item(), rel=1e-5)
    assert run("measure", *options, "--measures", "targets", "--validation-size", 20, "--out", "some.parquet") == 0
    assert "validation_loss" in set(pd.read_parquet("some.parquet")["measure"])


# -- before the first run --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "trust", "message"),
    [
        ({"dataset": "own_things:three"}, True, "must return two data sets, .* got int"),
        ({"dataset": "own_things:three"}, False, "was not imported: that would run its code"),
        ({"dataset": "own_things:moving"}, True, "differs when it is read again, as with random transforms"),
        (
            {"dataset": "own_things:load", "model": "own_things:two"},
            True,
            "gives 2 logits, and the data have labels up",
        ),
        ({"dataset": "own_things:load", "model": "own_things:named"}, True, "got dict with \\['out'\\]"),
        ({"train_size": 10_000}, False, "`train_size` must be between"),
        ({"model": "vit", "model_options": {"patch": 3}}, False, "`patch` must divide the sides"),
    ],
)
def test_a_study_looks_at_data_and_models_before_its_first_run(base, trust, message, own, capsys):
    values = {**SMALL, "base": {**SMALL["base"], "train_size": 20, "validation_size": 10, "test_size": 20, **base}}
    if "dataset" in base:
        values["base"]["model_options"] = {}
        values["base"].setdefault("model", "own_things:make")
    (own / "s.yaml").write_text(yaml.safe_dump(values))
    assert run("study", "s.yaml", "--out", "out", "--jobs", 1, *(["--trust"] if trust else [])) == 2
    assert re.search(message, one_line(capsys))
    assert not (own / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measures": {"norms": {}}}, "`measures` lacks targets"),
        ({"measures": {"targets": {}}}, "`measures` has nothing beside targets"),
        ({"statistics": {"lead": "test_eror"}}, "Did you mean 'test_error'?"),
        (
            {"statistics": {"compare": [["F_mii", "gradient_norm"]]}},
            "names 'F_mii', which is no measure. Did you mean 'F_mi'?",
        ),
        ({"statistics": {"representatives": {"sharpness": "F_mi"}}}, "but it is of the family forgetting"),
        ({"statistics": {"representatives": {"sharpnes": "top_eigenvalue"}}}, "which is no family of measures"),
        ({"trajectory": {"where": {"seeed": 0}, "measures": {"norms": {}}}}, "unknown key `seeed`"),
        ({"trajectory": {"where": {"seed": 7}, "measures": {"norms": {}}}}, "is met by no run of the study"),
        ({"random": {"draws": 10**9, "space": {"momentum": {"uniform": [0, 0.9]}}}}, "`random.draws` got 1000000000"),
        ({"base": {"epochs": True}}, "`epochs` got True: true and false are no value of it"),
        ({"name": False}, "`name` got False: true and false are no value"),
        ({"grid": {"lr": {"values": [0.1], "when": {"method": [["sam"]]}}}}, "`method` ['sam'] is unknown"),
        ({"grid": {"lr": {"values": [0.1], "when": {1: 2}}}}, "unknown key `1`"),
        ({"surfaces": {"methods": ["sgd"], "options": {"metrics": ["os:getcwd"]}}}, "was not imported"),
    ],
)
def test_a_study_file_is_checked_to_its_end(change, message, tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**SMALL, **change}))
    assert run("study", tmp_path / "s.yaml", "--out", tmp_path / "out") == 2
    said = one_line(capsys)
    assert "s.yaml: " in said
    assert message in said
    assert not (tmp_path / "out").exists()


# -- the program's own help ------------------------------------------------------------------------------------------


def test_every_command_is_shown_and_its_help_begins_with_what_it_does(capsys):
    assert run("--help") == 0
    shown = capsys.readouterr().out
    for name, entry in COMMANDS.items():
        assert f"  {name} " in shown
        assert entry.help in shown
        assert entry.function().__doc__, name
    assert run() == 2
    assert capsys.readouterr().out == shown
    assert run("--version") == 0
    assert re.fullmatch(r"landscape \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_an_unknown_command_is_answered_with_the_nearest(capsys):
    assert run("mesure", "runs") == 2
    assert "there is no command 'mesure'" in (said := capsys.readouterr().err)
    assert "Did you mean 'measure'?" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--labelnoise", "0.1"], "unrecognized options: --labelnoise, 0.1. Did you mean --label-noise?"),
        (["train", "--precision", "bf16"], "invalid choice 'bf16' for argument '--precision'. Expected one of"),
        (["train", "--epochs", "x"], "error parsing --epochs: invalid literal for int() with base 10: 'x'."),
        (["study", "--jobs"], "missing value for argument '--jobs'."),
        (["measure"], "missing from landscape measure: PATH"),
    ],
    ids=" ".join,
)
def test_options_that_cannot_be_read_are_one_line(arguments, said, capsys):
    assert run(*arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"landscape: {said}")
    assert shown.err.endswith(f"`landscape {arguments[0]} --help` shows the options.\n")
    assert shown.err.count("\n") == 1


def test_help_needs_neither_torch_nor_pandas(tmp_path):
    code = "import sys; from analysis.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'pandas', 'scipy', 'tyro') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


# -- Ctrl-C ----------------------------------------------------------------------------------------------------------

TWICE = """
import atexit, os, signal, sys, time
import analysis.cli.train
from analysis.cli import main

def stop(*_, **__):
    raise KeyboardInterrupt

def once_more():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(once_more)
analysis.cli.train.fit = stop
sys.argv = ["landscape", "train"]
main()
"""


def test_one_more_ctrl_c_ends_the_program_at_once_while_it_tidies_up(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", TWICE]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT
    assert done.stderr.startswith("landscape: stopped")
    assert "Traceback" not in done.stderr
