"""Trackers: imported only when asked for, fed with the numbers of the files, continued after a stop."""

import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
from stopping import SMALL, signal_after

from trainers import expand, fit, train_all
from trainers.runs.tracking import check_trackers, numbers


def test_only_finite_numbers_are_shown():
    row = {"step": 3, "loss": 0.5, "gap": float("nan"), "mode": "plain", "m": None, "skipped": 0}
    assert numbers(row, "epoch") == {"epoch/loss": 0.5, "epoch/skipped": 0.0}


def test_nothing_is_imported_unless_asked_for():
    code = "import sys, trainers; print(sorted({'tensorboard', 'wandb'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`track` 'tensorbord' is unknown.*Did you mean 'tensorboard'"):
        fit(SMALL, out=tmp_path, track="tensorbord")


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_named_with_the_line_that_installs_it(name, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ImportError, match=rf"`track` '{name}' needs the package {name}: pip install 'landscape-lab\[track\]'"
    ):
        fit(SMALL, out=tmp_path, track=[name])
    assert not list(tmp_path.iterdir())


def test_tensorboard_shows_the_history_and_the_steps_also_after_a_stop(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="tensorboard is an extra: pip install 'landscape-lab[track]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = {**SMALL, "method": "sam"}
    signal_after(monkeypatch, 6)
    with pytest.raises(SystemExit):
        fit(config, out=tmp_path, log_steps=2, track="tensorboard")
    run = fit(config, out=tmp_path, log_steps=2, track="tensorboard")
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    shown = {e.step: e.value for e in events.Scalars("epoch/train_loss")}
    assert shown == pytest.approx(dict(zip(run.history()["step"], run.history()["train_loss"], strict=True)), rel=1e-6)
    shown = [(e.step, e.value) for e in events.Scalars("step/gap")]
    assert [step for step, _ in shown] == list(run.steps()["step"])
    assert [value for _, value in shown] == pytest.approx(list(run.steps()["gap"]), rel=1e-5, abs=1e-7)


class FakeWandB(ModuleType):
    """What `trainers.runs.tracking` uses of W&B, keeping what it is given."""

    def __init__(self):
        super().__init__("wandb")
        self.calls, self.rows, self.metrics, self.finished = [], [], [], 0

    def init(self, **settings):
        self.calls.append(settings)

        def finish():
            self.finished += 1

        return SimpleNamespace(
            log=self.rows.append, finish=finish, define_metric=lambda *a, **k: self.metrics.append((a, k))
        )


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_gets_one_run_of_the_same_id_whatever_stops_it(wandb, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    signal_after(monkeypatch, 6)
    with pytest.raises(SystemExit):
        fit({**SMALL, "method": "sam"}, out=tmp_path, log_steps=3, track=("wandb",))
    run = fit({**SMALL, "method": "sam"}, out=tmp_path, log_steps=3, track=("wandb",))
    assert [(c["id"], c["project"], c["resume"]) for c in wandb.calls] == 2 * [(run.run_id, "mine", "allow")]
    assert wandb.calls[0]["config"]["method"] == "sam"
    assert wandb.finished == 2
    assert (("*",), {"step_metric": "step"}) in wandb.metrics
    epochs = {row["step"]: row["epoch/test_error"] for row in wandb.rows if "epoch/test_error" in row}
    assert epochs == dict(zip(run.history()["step"], run.history()["test_error"], strict=True))
    assert [row["step"] for row in wandb.rows if "step/clean_loss" in row] == [3, 6, 9, 12]


def test_trackers_are_closed_after_an_error(wandb, tmp_path):
    def broken(row):
        raise RuntimeError("from the caller's progress")

    with pytest.raises(RuntimeError, match="from the caller"):
        fit(SMALL, out=tmp_path, track="wandb", progress=broken)
    assert wandb.finished == 1


def test_names_may_come_one_or_many(wandb):
    assert check_trackers(()) == ()
    assert check_trackers("wandb") == ("wandb",) == check_trackers(["wandb"])


def test_the_runs_of_a_sweep_are_shown_one_by_one(wandb, tmp_path):
    configs = expand({**SMALL, "epochs": 1, "checkpoints": []}, {"seed": [0, 1]})
    runs = list(train_all(configs, out=tmp_path, jobs=1, track=["wandb"]))
    assert sorted(call["id"] for call in wandb.calls) == sorted(run.run_id for run in runs)
    shown = sorted(row["epoch/test_error"] for row in wandb.rows)
    assert shown == sorted(run.history()["test_error"].iloc[0] for run in runs)
    assert wandb.finished == 2


def test_an_unknown_tracker_of_a_sweep_is_refused_before_the_first_run(tmp_path):
    with pytest.raises(ValueError, match=r"`track` 'wand' is unknown.*Did you mean 'wandb'"):
        train_all(expand(SMALL, {}), out=tmp_path, jobs=1, track=["wand"])
    assert not list(tmp_path.iterdir())
