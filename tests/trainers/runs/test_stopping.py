"""Early stopping and the best checkpoint: by the rule written out, from the history of the whole run."""

import math

import numpy as np
import pytest
from stopping import SMALL

from trainers import fit
from trainers.config import train_config
from trainers.files.tree import equal
from trainers.runs.checkpoint import read_weights
from trainers.runs.stopping import Best, best_of

LONG = {**SMALL, "epochs": 12, "lr": 0.3, "checkpoints": list(range(1, 12))}


def rows(*errors):
    return [{"epoch": i, "step": 4 * i, "error": e} for i, e in enumerate(errors, 1)]


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ((), None),
        ((math.nan,), None),
        ((0.5,), Best(1, 4, 0.5, 0)),
        ((0.5, 0.4, 0.4, math.nan, 0.45), Best(2, 8, 0.4, 2)),  # of equals the first; epochs without evaluation pass
        ((0.5, math.inf, 0.3), Best(3, 12, 0.3, 0)),
    ],
)
def test_the_best_evaluation(errors, expected):
    assert best_of(rows(*errors), "error") == expected


def test_a_run_stops_where_the_rule_says_and_is_the_whole_run_until_then(tmp_path):
    whole = fit(LONG, out=tmp_path)
    errors = list(whole.history()["validation_error"])
    best, waited, end = math.inf, 0, len(errors)
    for epoch, error in enumerate(errors, 1):
        best, waited = (error, 0) if error < best else (best, waited + 1)
        if waited == 2:
            end = epoch
            break
    assert end < 12, "the case shows nothing"
    run = fit({**LONG, "early_stopping": 2, "keep_best": True, "checkpoints": [], "epochs": 12}, out=tmp_path)
    status = run.status()
    assert status["status"] == "finished"
    assert status["epochs"] == end
    assert status["reason"].startswith(f"stopped after epoch {end} of 12: 2 evaluations without a better validation")
    columns = [c for c in whole.history().columns if c != "seconds"]
    assert run.history()[columns].equals(whole.history()[columns].iloc[:end])  # the schedule of the rate, too
    at = errors.index(best) + 1
    assert status["best"] == {"epoch": at, "step": 4 * at, "validation_error": best}
    assert list(run.checkpoints()) == [0, 4 * at, 4 * end]
    assert run.best() == 4 * at
    pair = [read_weights(r.checkpoint(4 * at) / "params.safetensors") for r in (run, whole)]
    assert equal(*pair)
    assert not run.missing()


def test_a_best_checkpoint_that_was_asked_for_by_its_epoch_stays(tmp_path):
    run = fit({**LONG, "keep_best": True, "checkpoints": [1]}, out=tmp_path)
    assert run.best() != 4
    assert 4 in run.checkpoints()


def test_without_the_settings_nothing_is_said_of_a_best(tmp_path):
    run = fit({**SMALL, "epochs": 1, "checkpoints": []}, out=tmp_path)
    assert "best" not in run.status()
    assert run.best() is None


@pytest.mark.parametrize("key", ["early_stopping", "keep_best"])
def test_both_need_validation_examples(key):
    with pytest.raises(ValueError, match=rf"`{key}` goes by the validation error, and `validation_size` is 0"):
        train_config({"validation_size": 0, key: 1 if key == "early_stopping" else True})


@pytest.mark.parametrize("key", ["early_stopping", "keep_best"])
def test_both_need_examples_in_the_datas_own_validation_set(key, tmp_path):
    y = np.arange(12) % 3
    parts = {f"{kind}_{part}": v for part in ("train", "test") for kind, v in (("x", np.eye(12)), ("y", y))}
    np.savez(tmp_path / "own.npz", **parts, x_val=np.eye(12)[:2], y_val=np.zeros(2, int))
    config = {**SMALL, "dataset": f"npz:{tmp_path}/own.npz", "classes": [1, 2], "model": "mlp", "train_size": None}
    config |= {"test_size": None, key: 1 if key == "early_stopping" else True}
    with pytest.raises(ValueError, match=rf"`{key}` goes by .*own.npz' has no validation examples of its own of these"):
        fit(config, out=tmp_path / "runs")
