"""Weights from elsewhere under measurement: the right ones, said in each row, and kept apart from others."""

import argparse
import json

import pandas as pd
import pytest
import torch
from commands import command as run

from analysis import table
from analysis.measures.checkpoints import WeightsFile, foreign_place, measure_checkpoint, weight_files
from analysis.measures.plan import plan
from analysis.measures.subject import Subject
from analysis.progress import quiet
from analysis.study import Study, read_study
from analysis.surfaces.places import checkpoint_of
from trainers import Runtime, build_model, fit, load_dataset
from trainers.weights import known, places

DATA = {"name": "digits", "train_size": 60, "validation_size": 20, "test_size": 40}
OPTIONS = {"width": 4, "depth": 1}
CHOSEN = plan({"targets": {}, "parameter_norm": {}})


def small(seed):
    return build_model("mlp", shape=(1, 8, 8), classes=10, generator_seed=seed, options=OPTIONS)


@pytest.fixture
def file(tmp_path):
    own, average = small(1).state_dict(), {f"module.{k}": t for k, t in small(2).state_dict().items()}
    torch.save({"state_dict": own, "state_dict_ema": average, "args": argparse.Namespace(lr=1)}, tmp_path / "m.pth.tar")
    return tmp_path / "m.pth.tar"


def norm(model):
    return float(torch.cat([p.detach().flatten() for p in model.parameters()]).norm())


def test_each_of_two_weights_in_a_file_is_measured_and_said_in_its_rows(file):
    rows = {ema: measure_checkpoint(WeightsFile(file, "mlp", OPTIONS, DATA, ema=ema), CHOSEN) for ema in (False, True)}
    for ema, frame in rows.items():
        value = frame.set_index("measure")["value"]["parameter_norm"]
        assert value == pytest.approx(norm(small(2 if ema else 1)), rel=1e-6)
        assert frame["options"].str.contains('"weights": "ema"').all() == ema
        said = "weights: an average of weights, `state_dict_ema`" if ema else "weights: `state_dict`"
        assert frame["warnings"].str.contains(said, regex=False).all()
        assert set(frame["run_id"]) == {"m"}
    assert rows[False]["warnings"].str.contains("`--ema` takes").all()
    again = measure_checkpoint(WeightsFile(file, "mlp", OPTIONS, DATA), CHOSEN)  # both are kept, neither for the other
    pd.testing.assert_frame_equal(again, rows[False])


def test_the_command_measures_the_average_into_a_table_of_its_own(file, capsys):
    for flag in ([], ["--ema"]):
        words = ["--model", "mlp", "--model-options", "width", "4", "depth", "1", "--measures", "baselines"]
        assert run("measure", file, *words, "--train-size", "60", *flag) == 0
    found = [table.read(file.with_name(name)) for name in ("m.measures.parquet", "m.ema.measures.parquet")]
    assert [f.loc[f["measure"] == "parameter_norm", "value"].iloc[0] for f in found] == [
        pytest.approx(norm(small(seed)), rel=1e-6) for seed in (1, 2)
    ]
    capsys.readouterr()
    torch.save(small(1).state_dict(), file.with_name("plain.pt"))
    assert run("measure", file.with_name("plain.pt"), *words, "--ema") == 2
    assert "plain.pt holds no average of weights (EMA, SWA): leave out `--ema`" in capsys.readouterr().err


def test_a_folder_holds_checkpoints_of_several_kinds_and_what_lies_beside_is_left_out(file):
    folder = file.parent
    torch.save({"state_dict": {f"net.{k}": t for k, t in small(3).state_dict().items()}}, folder / "last.ckpt")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "notes.txt"):
        (folder / name).write_bytes(b"x")
    found = weight_files(folder)
    assert [path.name for path, _ in found] == ["last.ckpt", "m.pth.tar"]
    names = [WeightsFile(path, "mlp").run_id for path, _ in found]
    assert names == ["last", "m"]
    settings = folder / "settings.csv"
    settings.write_text("weights,lr\nm.pth.tar,0.1\nlast.ckpt,0.2\n")
    assert set(table.read_settings(settings)) == {"m", "last"}
    torch.save(small(3).state_dict(), folder / "m.pt")
    assert WeightsFile(file, "mlp").run_id == "m.pth.tar"  # told apart from m.pt


def test_folders_of_hugging_face_say_their_model(tmp_path):
    for name in ("checkpoint-2", "checkpoint-1"):
        folder = tmp_path / "out" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"model_type": "vit", "architectures": ["X"]}')
        torch.save(small(1).state_dict(), folder / "pytorch_model.bin")
    folder = tmp_path / "out" / "checkpoint-1"
    assert foreign_place(folder) == foreign_place(f"hf:{folder}") == (folder, f"hf:{folder}")
    assert [(p.name, model) for p, model in weight_files(tmp_path / "out")] == [
        (name, f"hf:{tmp_path / 'out' / name}") for name in ("checkpoint-1", "checkpoint-2")
    ]
    one, other = (checkpoint_of(tmp_path / "out" / f"checkpoint-{i}") for i in (1, 2))
    assert one.context == other.context  # wherever the folder lies
    before = one.cache.stamp()
    (folder / "config.json").write_text('{"model_type": "vit", "architectures": ["X"], "hidden_size": 3}')
    assert one.cache.stamp()["sha256"] != before["sha256"]  # its config.json counts
    with pytest.raises(FileNotFoundError, match=r"is no folder of Hugging Face \(no config.json\)"):
        foreign_place(f"hf:{tmp_path}")
    assert foreign_place(tmp_path) is None
    (folder / "config.json").write_text('{"architecture": "test_vit", "num_classes": 10}')  # as timm writes it
    assert foreign_place(folder) == (folder, "timm:test_vit")


def test_a_broken_folder_is_rows_that_say_so_and_does_not_stop_the_others(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "vit"}')
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "model-1.safetensors"}}')
    rows = measure_checkpoint(WeightsFile(folder, "mlp", OPTIONS, DATA), plan(["ascent_sharpness"]))
    assert rows["warnings"].str.contains("model-1.safetensors is missing, which model.safetensors.index.json").all()


def test_names_are_compared_without_what_all_of_a_file_begin_with(file):
    ours = WeightsFile(file, "mlp", OPTIONS, DATA)
    torch.save({"state_dict": {f"net.{k}": t for k, t in small(3).state_dict().items()}}, file.with_name("l.ckpt"))
    assert WeightsFile(file.with_name("l.ckpt"), "mlp", OPTIONS, DATA).shapes() == ours.shapes()
    assert ours.shapes()["1.weight"] == (4, 64)


def test_rows_of_a_run_with_frozen_parameters_are_about_the_trained_ones(tmp_path):
    values = {"model": "mlp", "model_options": OPTIONS, "epochs": 1, "lr": 0.1, "batch_size": 32, **DATA}
    values = {("dataset" if key == "name" else key): value for key, value in values.items()}
    folder = fit({**values, "freeze": ["1"]}, out=tmp_path).folder
    place = checkpoint_of(folder)
    subject = place.load(0)
    assert list(subject.risk.theta) == ["3.weight", "3.bias"]
    dense = subject.hessian.dense()
    assert dense.shape == (50, 50)
    data = load_dataset(**DATA)
    whole = Subject.of_weights(folder / "checkpoints" / str(place.step), small(0), data)
    every = whole.hessian.dense()
    torch.testing.assert_close(every[-50:, -50:], dense, rtol=1e-4, atol=1e-6)
    rows = measure_checkpoint(place, plan(["hessian_eigenvalues", "parameter_norm"]))
    said = "frozen: 2 of 4 parameter tensors are held fixed, as in training"
    assert rows["warnings"].str.contains(said, regex=False).all()


def test_a_study_goes_on_and_is_measured_when_its_initial_weights_are_gone(tmp_path):
    start = tmp_path / "start.pt"
    torch.save(small(1).state_dict(), start)
    base = {"model": "mlp", "model_options": OPTIONS, "epochs": 2, "train_size": 60, "validation_size": 20}
    values = {"name": "s", "base": {**base, "test_size": 40, "init": str(start)}, "grid": {"lr": [0.1, 0.2]}}
    values["measures"] = {"targets": {}, "ascent_sharpness": {}}
    file, folder = tmp_path / "study.yaml", tmp_path / "s"
    file.write_text(json.dumps(values))
    work = Study(read_study(file, folder=folder), folder, runtime=Runtime(jobs=1))
    one, other = work.prepare()
    fit(one, out=folder / "runs", stop=lambda epoch: epoch == 1)
    fit(other, out=folder / "runs")
    start.rename(tmp_path / "moved.pt")
    places._digest.cache_clear()
    known._noted.clear()  # as in a process that has not seen the file
    with pytest.raises(FileNotFoundError, match=r"`init` .*start.pt does not exist"):
        read_study(file, folder=tmp_path / "another")
    again = Study(read_study(file, folder=folder), folder, runtime=Runtime(jobs=1))
    assert [run.status()["status"] for run in again.train(quiet)] == ["finished", "finished"]
    again.look_ahead()
    known._noted.clear()
    assert {c.run_id for c, *_ in Study.open(folder).to_measure()[0]} == {one.run_id, other.run_id}
    values["base"]["init"] = str(tmp_path / "moved.pt")  # the same weights elsewhere: the same runs
    file.write_text(json.dumps(values))
    assert {c.run_id for c in read_study(file, folder=folder).configs()} == {one.run_id, other.run_id}
