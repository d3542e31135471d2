"""Recipes that need a GPU and data from elsewhere: they build, and take a step, on a few images in the true formats."""

from pathlib import Path

import pytest
import torch
from data_files import write_cifar10, write_cifar100, write_folder
from drop_in import need
from safetensors.torch import save_file

from analysis.study import read_study
from trainers.config import train_config
from trainers.runs.folder import Run
from trainers.runs.training import Training

STUDIES = Path(__file__).parents[2] / "studies"
FEW = {
    "train_size": 2,
    "validation_size": 2,
    "test_size": 2,
    "batch_size": 2,
    "micro_batch": None,
    "dataset_digest": None,
}


def cifar10(folder):
    write_cifar10(folder / "cifar-10-batches-py")
    return "wide_resnet", 36_479_194


def cifar100(folder):
    import timm

    write_cifar100(folder / "cifar-100-python")
    start = timm.create_model("vit_small_patch32_224", class_token=False, global_pool="avg")
    save_file(start.state_dict(), folder / "vit_s32.safetensors")
    return "timm:vit_small_patch32_224", sum(p.numel() for p in start.parameters()) - 900 * 385


def imagenet(folder):
    write_folder(folder / "imagenet", parts=("train", "val"), size=(240, 250))
    return "timm:resnet50", 23_508_032 + 2 * 2049


@pytest.mark.parametrize(
    ("name", "write"), [("cifar10", cifar10), ("cifar100_vit", cifar100), ("imagenet_obf", imagenet)]
)
def test_a_recipe_takes_a_step(name, write, tmp_path, monkeypatch):
    if name != "cifar10":
        need("timm")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    model, size = write(tmp_path / "data")
    configs = read_study(STUDIES / f"{name}.yaml").configs()
    chosen = next(c for c in configs if c.model == model and c.method == "sam")
    few = chosen.model_dump() | FEW | {"m": 1 if chosen.m else None}
    few["input_size"] = 64 if name == "imagenet_obf" else chosen.input_size
    training = Training(train_config(few).resolved(), Run(tmp_path / "run"))
    assert sum(p.numel() for p in training.model.parameters()) == size
    before = [p.detach().clone() for p in training.model.parameters()]
    training.train_step()
    assert torch.isfinite(training.losses[0])
    assert 0 < training.optimizer.last.rho <= chosen.rho
    assert training.optimizer.last.length == pytest.approx(training.optimizer.last.rho, rel=1e-3)
    assert any(not torch.equal(a, b) for a, b in zip(before, training.model.parameters(), strict=True))
