"""The log of steps and the sums of an epoch: what stands in them, from formulas, and when."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from stopping import SMALL

from trainers import fit
from trainers.runs.folder import Run
from trainers.runs.records import STEPS, StepLog, Tally
from trainers.sharpness_aware.gates import Mode
from trainers.sharpness_aware.record import StepRecord


def record(mode=Mode.PERTURBED, clean=1.0, displaced=1.5, length=0.0, **values):
    losses = {"clean": [(1.0, torch.tensor(clean))], "displaced": [(1.0, torch.tensor(displaced))]}
    return StepRecord(mode=mode, **losses, moved=[(1.0, torch.tensor(length), 1.0, 1.0)], **values)


def test_a_row_a_step_with_what_the_step_did(tmp_path):
    run = fit({**SMALL, "method": "sam", "rho": 0.2}, out=tmp_path, log_steps=1)
    steps, history = run.steps(), run.history()
    assert list(steps.columns) == list(STEPS)
    assert list(steps["step"]) == list(range(1, 13))
    assert list(steps["epoch"]) == [e for e in (1, 2, 3) for _ in range(4)]
    assert steps["length"].to_numpy() == pytest.approx(0.2, rel=1e-4)  # SAM's displacement has the length rho
    assert set(steps["mode"]) == {"perturbed"}
    assert set(steps["overflow"]) == {""}
    np.testing.assert_array_equal(steps["gap"], steps["perturbed_loss"] - steps["clean_loss"])
    assert steps["cosine"].between(-1, 1).all()
    assert (steps["grad_norm"] > 0).all()
    assert steps["seconds"].is_monotonic_increasing
    sizes = np.array([16, 16, 16, 12])
    for epoch, rows in steps.groupby("epoch"):
        row = history.set_index("epoch").loc[epoch]
        assert row["loss"] == pytest.approx((rows["clean_loss"].to_numpy() * sizes).sum() / 60, rel=1e-6)
        assert row["mean_gap"] == pytest.approx(rows["gap"].mean(), rel=1e-12)
        assert row["lr"] == rows["lr"].iloc[-1]


def test_logging_changes_nothing_else(tmp_path):
    a, b = (fit({**SMALL, "method": "gsam"}, out=tmp_path / str(n), log_steps=n) for n in (None, 3))
    assert a.run_id == b.run_id
    drop = ["seconds"]
    assert a.history().drop(columns=drop).equals(b.history().drop(columns=drop))
    assert list(b.steps()["step"]) == [3, 6, 9, 12]
    with pytest.raises(FileNotFoundError, match=r"holds no log of steps: train with `log_steps` \(--log-steps 1\)"):
        a.steps()


def test_a_plain_step_has_neither_gap_nor_cosine(tmp_path):
    steps = fit({**SMALL, "method": "sgd"}, out=tmp_path, log_steps=1).steps()
    assert set(steps["mode"]) == {"plain"}
    assert steps[["gap", "cosine", "perturbed_loss"]].isna().all(axis=None)
    assert steps["clean_loss"].notna().all()


@pytest.mark.parametrize("every", [0, -1])
def test_a_period_below_one_is_refused(every, tmp_path):
    with pytest.raises(ValueError, match=f"`log_steps` must be at least 1, got {every}; leave it out"):
        fit(SMALL, out=tmp_path, log_steps=every)


def test_parts_belong_to_the_snapshot_that_lists_them(tmp_path):
    rows = [dict.fromkeys(STEPS, 0.0) | {"step": n, "mode": "plain", "overflow": ""} for n in range(1, 121)]
    log = StepLog(tmp_path, 1)
    assert log.flush() == []
    log.rows = rows[:90]
    kept = log.flush()
    log.rows = rows[90:]
    assert log.flush() == ["1.parquet", "91.parquet"]
    assert list(Run(tmp_path).steps()["step"]) == list(range(1, 121))  # in order of numbers, not of names

    again = StepLog(tmp_path, 1)  # the process died before the second snapshot counted
    again.take_over(kept)
    assert list(Run(tmp_path).steps()["step"]) == list(range(1, 91))
    again.rows = rows[90:100]
    again.finish()
    assert list(pd.read_parquet(tmp_path / "steps.parquet")["step"]) == list(range(1, 101))


def test_sums_of_an_epoch_leave_skipped_steps_out():
    tally = Tally()
    tally.add(record(length=3.0, rho=0.1), examples=16, lr=0.5)
    tally.add(record(overflow="first pass", clean=math.inf), examples=16, lr=0.4)
    tally.add(record(Mode.PLAIN, displaced=math.nan), examples=16, lr=0.3)
    tally.add(record(Mode.REUSE, displaced=math.nan), examples=16, lr=0.2)
    tally.add(record(length=4.0, displaced=1.25, rho=0.2), examples=12, lr=0.1)
    assert tally.examples == 60
    assert tally.row() == {
        "lr": 0.1,
        "rho": 0.2,
        "perturbation_norm": 2.5,  # sqrt((9 + 16) / 4)
        "perturbed_share": 0.5,
        "reused_share": 0.25,
        "skipped": 1,
        "mean_gap": 0.375,
    }
    other = Tally()
    other.load_state_dict(tally.state_dict())
    assert other.row() == tally.row()


def test_an_epoch_without_a_step_has_no_averages():
    tally = Tally()
    tally.add(record(overflow="second pass"), examples=16, lr=0.1)
    row = tally.row()
    assert row["skipped"] == 1
    assert math.isnan(row["perturbation_norm"])
    assert math.isnan(row["perturbed_share"])
