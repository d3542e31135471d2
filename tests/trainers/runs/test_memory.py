"""A run that finds no memory says what would fit, and goes on from its snapshot as if nothing had been."""

import pytest
import torch

from trainers import fit, train_all
from trainers.config import train_config
from trainers.runs.training import Training

TINY = {"epochs": 2, "train_size": 40, "validation_size": 0, "test_size": 20, "batch_size": 16, "method": "sam",
        "model_options": {"width": 4, "depth": 1}}  # fmt: skip
TOLD = (
    "out of memory on cpu with 16 examples a pass: 2 GiB more was asked for, and .* is free; at most 8 may fit "
    "(.`micro_batch`.); the same command, also with `--checkpoint-activations`, goes on from the run's last snapshot"
)


@pytest.fixture
def short(monkeypatch):
    """Memory runs out in the fifth step, of six."""
    step, left = Training.train_step, [5]

    def train_step(self):
        left[0] -= 1
        if not left[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity")
        step(self)

    monkeypatch.setattr(Training, "train_step", train_step)
    return left


def weights(run):
    return (run.checkpoint(max(run.checkpoints())) / "params.safetensors").read_bytes()


def test_a_run_without_memory_goes_on_bit_for_bit(tmp_path, short):
    with pytest.raises(MemoryError, match=TOLD):
        fit(TINY, out=tmp_path, snapshot_seconds=0.0)
    run = fit(TINY, out=tmp_path)
    assert short == [3 - 5]  # of six steps four were kept
    assert run.status()["status"] == "finished"
    assert weights(run) == weights(fit(TINY, out=tmp_path / "whole"))


def test_in_a_sweep_the_others_go_on(tmp_path, short):
    configs = [train_config({**TINY, "seed": seed}) for seed in (0, 1)]
    first, second = train_all(configs, out=tmp_path, jobs=1)
    assert (first.status()["status"], second.status()["status"]) == ("failed", "finished")
    assert first.status()["reason"].startswith("MemoryError: out of memory on cpu with 16 examples a pass")
    assert [run.status()["status"] for run in train_all(configs, out=tmp_path, jobs=1)] == ["finished"] * 2
