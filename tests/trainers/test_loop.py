"""The loop: what it records, and that stopping and going on is never having stopped."""

import json
import math
import time

import numpy as np
import pytest
import torch

from trainers import METHODS, fit, list_runs, load_checkpoint, read_weights
from trainers.config import train_config
from trainers.loop import Training
from trainers.runs import Run, load_data
from trainers.tree import equal

SMALL = {
    "train_size": 60, "validation_size": 40, "test_size": 50, "label_noise": 0.2, "epochs": 4, "batch_size": 16,
    "checkpoints": [2], "model_options": {"width": 8, "depth": 1, "dropout": 0.2},
}  # fmt: skip


def weights(run):
    return read_weights(list(run.checkpoints().values())[-1] / "params.safetensors")


def test_a_run_leaves_what_the_design_says(tmp_path):
    run = fit({**SMALL, "method": "sam", "rho": 0.2}, out=tmp_path)
    assert run.folder == tmp_path / run.run_id
    assert run.status()["status"] == "finished"
    assert list(run.checkpoints()) == [0, 8, 16]
    history = run.history()
    assert list(history["epoch"]) == [1, 2, 3, 4]
    assert history["perturbation_norm"].to_numpy() == pytest.approx(0.2, rel=1e-4)
    assert not (run.folder / "resume").exists()
    assert [r.run_id for r in list_runs(tmp_path)] == [run.run_id]
    for protocol in ("presentation", "sweep"):
        assert run.correctness(protocol).shape == (4, 60)
    model, meta = load_checkpoint(run.checkpoint(16))
    data = load_data(run.config())
    right = model(data.train.x).argmax(-1) == data.train.y
    np.testing.assert_array_equal(run.correctness("sweep")[-1], right.numpy())
    assert history["train_error"].iloc[-1] == pytest.approx(1 - right.float().mean().item(), abs=1e-6)
    test_error = (model(data.test.x).argmax(-1) != data.test.y).float().mean().item()
    assert history["test_error"].iloc[-1] == pytest.approx(test_error, abs=1e-6)
    assert meta["names"] == [n for n, _ in model.named_parameters()]


def test_presentation_records_answers_before_the_update(tmp_path):
    config = train_config({**SMALL, "batch_size": 60, "epochs": 1, "checkpoints": [], "model_options": {"width": 8}})
    run = fit(config, out=tmp_path)
    model, _ = load_checkpoint(run.checkpoint(0))
    data = load_data(config)
    np.testing.assert_array_equal(
        run.correctness("presentation")[0], (model(data.train.x).argmax(-1) == data.train.y).numpy()
    )


@pytest.mark.parametrize("method", list(METHODS))
def test_stopped_and_continued_equals_uninterrupted_bit_for_bit(method, tmp_path):
    config = {**SMALL, "method": method, "shrink_perturb": 0.001, "warmup_epochs": 1}
    if method == "gsam":
        config["m"] = 7
    whole = fit(config, out=tmp_path / "whole")
    part = fit(config, out=tmp_path / "part", stop=lambda epoch: epoch == 3)
    assert part.status()["status"] == "interrupted"
    assert not part.finished
    part = fit(config, out=tmp_path / "part")
    assert part.finished
    assert equal(weights(whole), weights(part))
    drop = ["seconds"]
    assert whole.history().drop(columns=drop).equals(part.history().drop(columns=drop))
    np.testing.assert_array_equal(whole.correctness("presentation"), part.correctness("presentation"))


def test_a_process_killed_between_snapshots_goes_on_from_the_last_one(tmp_path):
    whole = fit(SMALL, out=tmp_path / "whole")

    def die(row):
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(SMALL, out=tmp_path / "part", progress=die, snapshot_seconds=0.0)
    assert (tmp_path / "part" / whole.run_id / "resume" / "state.json").exists()
    assert equal(weights(fit(SMALL, out=tmp_path / "part")), weights(whole))


def test_the_callers_random_state_is_untouched(tmp_path):
    before = torch.get_rng_state()
    fit(SMALL, out=tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = fit(SMALL, out=tmp_path)
    stamp = (first.folder / "history.parquet").stat().st_mtime_ns
    time.sleep(0.01)
    assert fit(SMALL, out=tmp_path).finished
    assert (first.folder / "history.parquet").stat().st_mtime_ns == stamp


def test_a_run_that_diverges_says_so_and_is_not_repeated(tmp_path):
    run = fit({**SMALL, "lr": 1e9, "lr_schedule": "constant"}, out=tmp_path)
    status = run.status()
    assert status["status"] == "diverged"
    assert "epoch" in status["reason"]
    assert fit(run.config(), out=tmp_path).status() == status


def test_everything_but_the_label_stays_equal_across_seeds_of_training(tmp_path):
    a, b = (fit({**SMALL, "seed": s}, out=tmp_path) for s in (0, 1))
    assert not equal(weights(a), weights(b))
    assert equal(load_data(a.config()).train.y, load_data(b.config()).train.y)


def test_a_user_model_is_imported_only_when_trusted(tmp_path):
    config = {**SMALL, "model": "torch.nn:Flatten", "model_options": {}}
    with pytest.raises(PermissionError, match="--trust"):
        fit(config, out=tmp_path)


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet20", "vit"])
@pytest.mark.parametrize("method", ["sam", "obf"])
def test_every_model_trains_with_sharpness_aware_methods(model, method, tmp_path):
    sizes = {"mlp": {}, "cnn": {"width": 4}, "resnet20": {"width": 4}, "vit": {"dim": 16, "depth": 1, "heads": 2}}
    config = {**SMALL, "model": model, "model_options": sizes[model], "method": method, "epochs": 2, "lr": 0.02}
    history = fit(config, out=tmp_path).history()
    assert np.isfinite(history["loss"]).all()


def test_m_and_gradient_accumulation_reach_the_engine(tmp_path):
    training = Training(train_config({**SMALL, "method": "sam", "m": 5}).resolved(), Run(tmp_path / "r"))
    training.model.train()
    training.train_step(training.train.x[:16], training.train.y[:16])
    assert training.optimizer.last.passes == 8  # chunks of 5, 5, 5, 1, two passes each


def test_a_truncated_config_is_named(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text('{"method": ')
    with pytest.raises(ValueError, match=r"config.json is not whole JSON.*delete it and run the same command again"):
        Run(tmp_path / "x").settings()
    with pytest.raises(FileNotFoundError, match="holds no run"):
        list_runs(tmp_path / "nothing")


def test_histories_hold_nan_where_nothing_was_evaluated(tmp_path):
    history = fit({**SMALL, "evaluate_every": 3}, out=tmp_path).history()
    assert [math.isnan(v) for v in history["test_error"]] == [True, True, False, False]


def test_the_configuration_on_disk_rebuilds_the_run(tmp_path):
    run = fit(SMALL, out=tmp_path)
    stored = json.loads((run.folder / "config.json").read_text())
    assert stored.pop("run_id") == train_config(stored).run_id
