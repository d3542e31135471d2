"""A user's data set whose items lie in files: trained on and measured without ever being in memory whole."""

import numpy as np
import pandas as pd
import pytest
from stopping import signal_after

from analysis.measures.collect import measure_run
from analysis.measures.plan import plan
from trainers import fit, list_runs
from trainers.data.items import ItemInputs
from trainers.data.loading import load_dataset

TRAIN, TEST, MEASURES = 2200, 60, ["hessian_trace", "ascent_sharpness"]

MODULE = """
import weakref
from pathlib import Path
import numpy as np
import torch
from torch.utils.data import Dataset, TensorDataset

HERE = Path(__file__).parent
alive = {"now": 0, "most": 0}

def gone():
    alive["now"] -= 1

class Files(Dataset):
    in_memory = False
    mean, std = 0.5, 0.25
    def __init__(self, part):
        self.images = np.load(HERE / f"{part}.npy", mmap_mode="r")
        self.targets = np.load(HERE / f"{part}_labels.npy").tolist()
    def __len__(self):
        return len(self.targets)
    def __getitem__(self, i):
        x = torch.from_numpy(np.array(self.images[i]))
        alive["now"] += 1
        alive["most"] = max(alive.values())
        weakref.finalize(x, gone)
        return x, self.targets[i]

def files():
    return Files("train"), Files("test")

def tensors():
    sets = []
    for part in ("train", "test"):
        images = torch.from_numpy(np.load(HERE / f"{part}.npy"))
        sets.append(TensorDataset(images, torch.from_numpy(np.load(HERE / f"{part}_labels.npy"))))
        sets[-1].mean, sets[-1].std = 0.5, 0.25
    return sets
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    draws = np.random.default_rng(0)
    for part, n in (("train", TRAIN), ("test", TEST)):
        labels = np.arange(n) % 3
        images = draws.integers(0, 120, (n, 1, 4, 4)) + 60 * (labels[:, None, None, None] == np.arange(4)[:, None])
        np.save(tmp_path / f"{part}.npy", images.astype(np.uint8))
        np.save(tmp_path / f"{part}_labels.npy", labels)
    (tmp_path / "filed_data.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_files_are_trained_on_and_measured_without_being_in_memory(folder):
    import filed_data

    config = {
        "dataset": "filed_data:files", "validation_size": 20, "epochs": 1, "batch_size": 256, "method": "sam",
        "rho": 0.05, "model_options": {"width": 8, "depth": 1},
    }  # fmt: skip
    run = fit(config, out=folder / "runs", trust=True)
    assert run.status()["status"] == "finished"
    rows = measure_run(run.folder, plan(MEASURES), trust=True)
    assert filed_data.alive["most"] < 2100  # of a batch; the training set has 2180
    assert rows["value"].notna().all()

    ahead = fit(config, out=folder / "ahead", trust=True, workers=2)
    held = fit({**config, "dataset": "filed_data:tensors"}, out=folder / "held", trust=True)
    runs = (run, ahead, held)
    last = [list(each.checkpoints().values())[-1] for each in runs]
    weights = [(checkpoint / "params.safetensors").read_bytes() for checkpoint in last]
    assert weights[0] == weights[1]
    histories = [pd.read_parquet(r.folder / "history.parquet").drop(columns="seconds") for r in runs]
    for other in histories[1:]:
        pd.testing.assert_frame_equal(histories[0], other, check_exact=True)
    other = measure_run(held.folder, plan(MEASURES), trust=True)
    assert rows["value"].tolist() == other["value"].tolist()


def test_a_stopped_epoch_of_files_goes_on_with_the_same_batches(folder, monkeypatch):
    config = {
        "dataset": "filed_data:files", "train_size": 60, "validation_size": 20, "epochs": 2, "batch_size": 16,
        "model_options": {"width": 8, "depth": 1},
    }  # fmt: skip
    whole = fit(config, out=folder / "whole", trust=True)
    signal_after(monkeypatch, 3)  # of the 4 steps of an epoch
    with pytest.raises(SystemExit):
        fit(config, out=folder / "parts", trust=True)
    assert list_runs(folder / "parts")[0].status()["status"] == "interrupted"
    parts = fit(config, out=folder / "parts", trust=True, workers=1)
    for name in ("loss", "train_loss", "test_error"):
        assert whole.history()[name].tolist() == parts.history()[name].tolist()
    assert isinstance(load_dataset("filed_data:files", validation_size=20).train.inputs, ItemInputs)
