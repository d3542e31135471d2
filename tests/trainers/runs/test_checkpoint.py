"""Checkpoints and foreign weights: whole or refused, never able to run code."""

import pickle  # noqa: TID251 - to make a file that must be refused
import shutil

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from trainers import build_model, load_checkpoint, read_weights, save_checkpoint
from trainers.files.tree import equal
from trainers.files.writing import remove_asides
from trainers.runs.checkpoint import apply_weights, model_state

CONFIG = {"model": "mlp", "model_options": {"width": 4, "depth": 1, "dropout": 0.0}, "seed": 0}


def small(seed=0):
    return build_model("mlp", shape=(1, 2, 2), classes=3, generator_seed=seed, options={"width": 4, "depth": 1})


@pytest.fixture
def folder(tmp_path):
    meta = {"run_id": "x", "step": 7, "epoch": 2, "config": CONFIG, "shape": [1, 2, 2], "classes": 3}
    return save_checkpoint(tmp_path / "7", small(seed=3), meta)


def test_written_and_read_back_is_the_same_model(folder):
    model, meta = load_checkpoint(folder)
    assert equal(model_state(model), model_state(small(seed=3)))
    assert not model.training
    assert meta["step"] == 7
    assert sorted(p.name for p in folder.iterdir()) == ["meta.json", "params.safetensors"]


def test_a_folder_without_meta_was_cut_short(folder):
    (folder / "meta.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no meta.json: the write was cut short; delete it"):
        load_checkpoint(folder)
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_checkpoint(folder)


def test_a_truncated_file_is_refused(folder):
    path = folder / "params.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="truncated"):
        load_checkpoint(folder)


def test_a_later_schema_is_refused(folder):
    text = (folder / "meta.json").read_text().replace('"schema": 1', '"schema": 99')
    (folder / "meta.json").write_text(text)
    with pytest.raises(ValueError, match="has schema 99, this version reads up to 1"):
        load_checkpoint(folder)


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_foreign_state_dicts_are_read(tmp_path, wrap, prefix):
    model = small(seed=5)
    state = {prefix + k: v for k, v in model.state_dict().items()}
    torch.save({wrap: state} if wrap else state, tmp_path / "w.pt")
    other = small(seed=6)
    apply_weights(other, read_weights(tmp_path / "w.pt"))
    assert equal(model_state(other), model_state(model))


def test_foreign_safetensors_are_read(tmp_path):
    model = small(seed=5)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    assert equal(read_weights(tmp_path / "w.safetensors"), dict(model.state_dict()))


class Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_a_file_that_would_run_code_is_refused(tmp_path, capsys):
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="cannot be read without running its code"):
        read_weights(tmp_path / "w.pt")
    torch.save(Evil(), tmp_path / "v.pt")
    with pytest.raises(ValueError, match="cannot be read without running its code"):
        read_weights(tmp_path / "v.pt")
    assert "never" not in capsys.readouterr().out


@pytest.mark.parametrize(("change", "message"), [
    (lambda s: s.pop("1.weight"), "the weights lack `1.weight`"),
    (lambda s: s.update({"1.wieght": s.pop("1.weight")}), r"hold `1.wieght`.*Did you mean '1.weight'"),
    (lambda s: s.update({"1.weight": torch.zeros(2, 2)}), r"`1.weight` has shape \(2, 2\) in the file and \(4, 4\)"),
])  # fmt: skip
def test_weights_of_another_model_are_named(change, message):
    state = dict(small().state_dict())
    change(state)
    with pytest.raises(ValueError, match=message):
        apply_weights(small(), state)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_weights(tmp_path / "w.pt")
    (tmp_path / "w.npz").write_bytes(b"x")
    with pytest.raises(ValueError, match="weights are read from"):
        read_weights(tmp_path / "w.npz")
    torch.save([1, 2], tmp_path / "l.pt")
    with pytest.raises(ValueError, match="holds no `state_dict`"):
        read_weights(tmp_path / "l.pt")


def test_tied_and_buffered_models_keep_everything(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 2)
            self.b = nn.Linear(2, 2)
            self.b.weight = self.a.weight
            self.norm = nn.BatchNorm1d(2)

    model, other = Tied(), Tied()
    model.norm.running_mean.add_(3)
    save_checkpoint(tmp_path / "1", model, {})
    apply_weights(other, read_weights(tmp_path / "1" / "params.safetensors"))
    assert equal(model_state(other), model_state(model))
    assert other.b.weight is other.a.weight


def test_what_killed_processes_left_aside_is_removed_and_nothing_else(tmp_path):
    ours, theirs = tmp_path / ".params.safetensors.ab12cd34", tmp_path / ".tmpJoUUmh"  # safetensors' own
    kept = [tmp_path / name for name in ("params.safetensors", ".gitignore", ".tmpfile_of_somebody")]
    for path in (ours, theirs, *kept):
        path.write_bytes(b"")
    remove_asides(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    ours.write_bytes(b"")
    remove_asides(tmp_path, ["meta.json"])
    assert ours.exists()
