"""The loop: what it records, and that stopping and going on is never having stopped."""

import json
import math
import time

import numpy as np
import pytest
import torch
from stopping import assert_same, without_checksums

from trainers import fit, list_runs, load_checkpoint, read_weights
from trainers.config import train_config
from trainers.data.splits import DataBundle, Split
from trainers.files.tree import equal
from trainers.runs.folder import Run, load_data
from trainers.runs.loop import Training
from trainers.tasks.evaluation import LiveEvaluation, batch_of
from trainers.tasks.task import Classification

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


def test_stopped_on_request_and_continued(tmp_path):
    whole = fit(SMALL, out=tmp_path / "whole")
    part = fit(SMALL, out=tmp_path / "part", stop=lambda epoch: epoch == 3)
    assert part.status()["status"] == "interrupted"
    assert part.status()["reason"] == "stopped on request after step 12 of 16; the same command continues"
    assert list(part.history()["epoch"]) == [1, 2, 3]
    assert not part.finished
    assert_same(whole, fit(SMALL, out=tmp_path / "part"))


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


@pytest.mark.parametrize(
    ("more", "sharing", "sizes", "m"),
    [
        ({"m": 5}, "chunk", [5, 5, 5, 1], 5),
        ({"micro_batch": 5}, "batch", [5, 5, 5, 1], 16),
        ({"micro_batch": 5, "sharing": "chunk"}, "chunk", [5, 5, 5, 1], 5),
        ({"m": 5, "micro_batch": 8}, "chunk", [5, 5, 5, 1], 5),
        ({"m": 16, "micro_batch": 8}, "batch", [8, 8], 16),
        ({}, "chunk", [16], 16),
    ],
    ids=str,
)
def test_m_and_accumulation_reach_the_optimizer_and_the_records(more, sharing, sizes, m, tmp_path):
    config = train_config({**SMALL, "method": "sam", "epochs": 1, "checkpoints": [], **more}).resolved()
    training = Training(config, Run(tmp_path / "r"))
    training.train_step()
    assert training.optimizer.sharing == sharing
    assert training.optimizer.last.passes == 2 * len(sizes)
    assert training.feeder.closures(*training.train.take(training.order[:16]), training.config.chunk).sizes == sizes
    assert (training.optimizer.last.m, training.optimizer.last.m_global) == (m, m)
    run = fit(config, out=tmp_path)
    assert set(run.history()["m"]) == set(run.history()["m_global"]) == {m}
    assert json.loads((run.checkpoint(4) / "meta.json").read_text())["m"] == m


WITHOUT_DROPOUT = {**SMALL, "model_options": {"width": 8, "depth": 1}, "precision": "float64", "base": "sgd"}


@pytest.mark.parametrize("method", ["sgd", "sam", "gsam", "obf"])
def test_micro_batches_equal_one_batch_where_they_share_the_perturbation(method, tmp_path):
    config = {**WITHOUT_DROPOUT, "method": method}
    one, many = (fit({**config, **more}, out=tmp_path) for more in ({}, {"micro_batch": 3}))
    assert one.run_id != many.run_id
    for name, tensor in weights(one).items():  # sums in another order: a few ulp a step
        torch.testing.assert_close(weights(many)[name], tensor, rtol=1e-9, atol=1e-11)


def test_micro_batches_with_their_own_perturbation_are_m_sam(tmp_path):
    config = {**SMALL, "method": "sam"}
    assert (
        train_config({**config, "micro_batch": 4, "sharing": "chunk"}).run_id == train_config({**config, "m": 4}).run_id
    )


@pytest.mark.parametrize("precision", ["float64", "bfloat16", "float16"])
def test_precision_of_weights_and_passes(precision, tmp_path):
    config = {**SMALL, "method": "sam", "precision": precision}
    run = fit(config, out=tmp_path)
    assert run.status()["status"] == "finished"
    kept = torch.float64 if precision == "float64" else torch.float32
    assert {t.dtype for t in weights(run).values()} == {kept}
    training = Training(run.config(), run)
    training.train_step()
    closures = training.feeder.closures(*training.train.take(training.order[:4]), training.config.chunk)
    closures.descents[0].forward()
    expected = {"float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    assert closures.descents[0].first_logits.dtype == expected
    model, _ = load_checkpoint(run.checkpoint(16))
    data = load_data(run.config())
    assert model(data.train.x).dtype == kept
    assert next(iter(data.ood.values())).x.dtype == kept


def test_half_precision_is_close_to_single(tmp_path):
    config = {**SMALL, "method": "sam", "lr": 0.02, "model_options": {"width": 8, "depth": 1}}
    single = fit(config, out=tmp_path)
    for precision, tolerance in (("bfloat16", 0.05), ("float16", 0.01)):
        half = fit({**config, "precision": precision}, out=tmp_path)
        for name, tensor in weights(single).items():  # rounding of 2^-9 and 2^-12, over 16 steps of length <= 0.02
            torch.testing.assert_close(weights(half)[name], tensor, rtol=tolerance, atol=tolerance)


def test_overflowing_steps_are_skipped_counted_and_named(tmp_path):
    """A loss of about 1e4 at the first scale of 2^16 is far beyond float16; each skipped step halves the scale."""
    config = {
        **SMALL, "method": "sam", "precision": "float16", "model": "test_loop:steep", "model_options": {}, "lr": 1e-9,
        "epochs": 6, "checkpoints": [],
    }  # fmt: skip
    run = fit(config, out=tmp_path, trust=True, log_steps=1)
    status, history, steps = run.status(), run.history(), run.steps()
    skipped = int((steps["overflow"] != "").sum())
    assert 0 < skipped < 24
    assert status["skipped_steps"] == skipped == history["skipped"].sum()
    first = list(zip(steps["step"], steps["overflow"], strict=True))[:5]
    assert status["first_skipped"] == [f"step {step} ({where})" for step, where in first if where]
    assert history["loss"].iloc[-1] > 0  # the last epoch took steps
    assert all(
        bool((t.abs() < 1).all()) for t in weights(run).values()
    )  # and none of them with a momentum out of nowhere
    assert status["status"] == "finished"


class Steep(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.flatten(1)) * 1000


def steep(shape, classes):
    return Steep()


def test_a_run_whose_every_step_overflows_has_diverged(tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.runs.training.HOPELESS", 3)
    config = {**SMALL, "method": "sam", "precision": "float16", "model": "test_loop:infinite", "model_options": {}}
    status = fit(config, out=tmp_path, trust=True).status()
    assert status["status"] == "diverged"
    assert status["reason"] == "4 steps in a row overflowed float16 up to epoch 1"


class Infinite(Steep):
    def forward(self, x):
        return super().forward(x) * 1e30


def infinite(shape, classes):
    return Infinite()


def test_gates_and_windows_reach_the_optimizer(tmp_path):
    def modes(**more):
        return "".join(m[1] for m in fit({**SMALL, "method": "sam", **more}, out=tmp_path, log_steps=1).steps()["mode"])

    assert modes() == 16 * "e"  # p-e-rturbed
    assert modes(perturb_from=0.5) == 8 * "l" + 8 * "e"  # p-l-ain
    assert modes(perturb_from=0.25, perturb_until=0.75) == 4 * "l" + 8 * "e" + 4 * "l"
    assert modes(gate="periodic", gate_options={"k": 4}) == 4 * "elll"
    with pytest.raises(ValueError, match=r"gate 'periodic' has no option `kk`"):
        modes(gate="periodic", gate_options={"kk": 4})


def test_the_share_of_perturbed_steps_is_in_the_history(tmp_path):
    history = fit({**SMALL, "method": "looksam", "method_options": {"k": 4}}, out=tmp_path).history()
    assert list(history["perturbed_share"]) == 4 * [0.25]
    assert list(history["reused_share"]) == 4 * [0.75]
    plain = fit({**SMALL, "method": "sgd"}, out=tmp_path).history()
    assert list(plain["perturbed_share"]) == 4 * [0.0]
    assert plain[["mean_gap", "m", "m_global"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("more", "radii"),
    [
        ({"rho_schedule": "linear", "rho_warmup_epochs": 1}, [0.0, 0.05, 0.1, 0.15, 0.2, 0.2]),
        ({"rho_schedule": "start_jump", "rho_warmup_epochs": 0.5}, [0.0, 0.0, 0.2, 0.2]),
        ({"rho_schedule": "lr_multiple", "lr_schedule": "constant", "lr": 0.05}, [0.01, 0.01]),
        ({"rho_schedule": "cosine", "rho_min": 0.1}, [0.2, 0.15 + 0.05 * math.cos(math.pi / 16)]),
    ],
    ids=lambda v: v.get("rho_schedule") if isinstance(v, dict) else None,
)
def test_schedules_of_the_radius_count_in_epochs(more, radii, tmp_path):
    steps = fit({**SMALL, "method": "sam", "rho": 0.2, **more}, out=tmp_path, log_steps=1).steps()
    assert list(steps["rho"])[: len(radii)] == pytest.approx(radii, rel=1e-12)


def test_old_histories_can_still_be_read(tmp_path):
    run = fit(SMALL, out=tmp_path)
    new = run.history()
    added = ["perturbed_share", "reused_share", "skipped", "mean_gap", "m", "m_global"]
    new.drop(columns=added).to_parquet(run.folder / "history.parquet", index=False)
    without_checksums(run.folder)
    old = run.history()
    assert list(old.columns) == list(new.columns)
    assert old[added].isna().all(axis=None)


def test_a_truncated_config_is_named(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text('{"method": ')
    with pytest.raises(ValueError, match=r"config.json is not whole JSON.*delete it and run the same command again"):
        Run(tmp_path / "x").settings()
    with pytest.raises(FileNotFoundError, match="holds no run"):
        list_runs(tmp_path / "nothing")


def test_the_records_say_where_evaluation_was_left_out(tmp_path):
    every, third = (fit({**SMALL, "evaluate_every": k}, out=tmp_path) for k in (1, 3))
    assert equal(weights(every), weights(third))
    for column in ("test_error", "train_loss", "train_error", "train_clean_error"):
        assert [math.isnan(v) for v in third.history()[column]] == [True, True, False, False]
    assert (
        third.history()
        .iloc[[2, 3]]
        .drop(columns="seconds")
        .equals(every.history().iloc[[2, 3]].drop(columns="seconds"))
    )
    np.testing.assert_array_equal(third.correctness("presentation"), every.correctness("presentation"))
    np.testing.assert_array_equal(third.correctness("sweep"), every.correctness("sweep")[[2, 3]])
    assert [len(third.correctness("sweep", until=k)) for k in range(5)] == [0, 0, 0, 1, 2]
    with np.load(third.folder / "examples.npz") as stored:
        arrays = dict(stored)
    assert list(arrays.pop("swept")) == [3, 4]
    without_checksums(every.folder)
    with np.load(every.folder / "examples.npz") as stored:
        old = {key: value for key, value in stored.items() if key != "swept"}
    np.savez_compressed(every.folder / "examples.npz", **old)  # as earlier versions wrote it
    assert [len(every.correctness("sweep", until=k)) for k in range(5)] == [0, 1, 2, 3, 4]


def test_evaluation_goes_in_batches_that_fit_the_cache_and_in_one_for_small_inputs():
    assert batch_of(torch.zeros(3, 1, 8, 8)) == batch_of(torch.zeros(3, 1, 40)) == 2048
    assert 128 <= batch_of(torch.zeros(3, 1, 28, 28)) <= 512
    assert batch_of(torch.zeros(3, 3, 224, 224)) == 128
    assert batch_of(torch.zeros(3, 3, 32, 32, device="meta")) == 2048
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 1, 28, 28, generator=draw), torch.randint(4, (300,), generator=draw)
    given = torch.where(torch.arange(300) < 30, (y + 1) % 4, y)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 4))
    train, none = Split(x, given, y, torch.arange(300)), Split(x[:0], y[:0], y[:0], torch.arange(0))
    held_out = Split(x, y, y, torch.arange(300))
    data = DataBundle("own", train, none, held_out, {}, 4, (1, 28, 28))
    row, right = LiveEvaluation(model, Classification(), train, data)()
    logits = model(x).detach()
    assert row["train_loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, given)), rel=1e-6)
    assert row["test_loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, y)), rel=1e-6)
    assert row["train_error"] == pytest.approx(float((logits.argmax(1) != given).float().mean()), abs=1e-7)
    assert row["train_clean_error"] == row["test_error"]
    assert row["test_error"] == pytest.approx(float((logits.argmax(1) != y).float().mean()), abs=1e-7)
    assert math.isnan(row["validation_loss"])
    assert torch.equal(right, logits.argmax(1) == given)


def test_the_configuration_on_disk_rebuilds_the_run(tmp_path):
    run = fit(SMALL, out=tmp_path)
    stored = json.loads((run.folder / "config.json").read_text())
    assert stored.pop("run_id") == train_config(stored).run_id
