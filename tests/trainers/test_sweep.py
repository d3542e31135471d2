"""Grids of runs: expansion, skipping, failures that stop nobody else."""

import pytest

from trainers.config import train_config
from trainers.files import read_json, write_atomically, write_json
from trainers.runs import Run
from trainers.schedules import LearningRate
from trainers.sharpness_aware.radii import ConstantRadius, ProportionalRadius
from trainers.sweep import expand, train_all
from trainers.tree import equal, join_tensors, split_tensors

TINY = {"train_size": 40, "validation_size": 20, "test_size": 20, "epochs": 1, "model_options": {"width": 4}}


def test_a_grid_is_the_product_within_each_variant_without_repetition():
    configs = expand(
        TINY, {"lr": [0.1, 0.2]}, [{"method": "sgd"}, {"method": "sam", "rho": [0.1, 0.2]}, {"method": "sgd"}]
    )
    assert [(c.method, c.lr, c.rho) for c in configs] == [
        ("sgd", 0.1, None), ("sgd", 0.2, None),
        ("sam", 0.1, 0.1), ("sam", 0.1, 0.2), ("sam", 0.2, 0.1), ("sam", 0.2, 0.2),
    ]  # fmt: skip


@pytest.mark.parametrize(("grid", "variants", "message"), [
    ({"lr": []}, [{}], "`grid` needs a list with at least one value for `lr`"),
    ({"lr": 0.1}, [{}], "`grid` needs a list with at least one value for `lr`, got 0.1"),
    ({}, [], "`methods` is empty"),
    ({"lrr": [0.1]}, [{}], r"unknown key `lrr`\. Did you mean 'lr'"),
])  # fmt: skip
def test_bad_grids(grid, variants, message):
    with pytest.raises(ValueError, match=message):
        expand(TINY, grid, variants)


def test_one_failure_does_not_stop_the_others(tmp_path):
    configs = [train_config(TINY), train_config({**TINY, "train_size": 5000}), train_config({**TINY, "seed": 1})]
    runs = list(train_all(configs, out=tmp_path, jobs=1))
    states = {r.run_id: r.status() for r in runs}
    assert [states[c.run_id]["status"] for c in configs] == ["finished", "failed", "finished"]
    assert "`train_size` must be" in states[configs[1].run_id]["reason"]
    assert len(list(train_all(configs[:1], out=tmp_path, jobs=1))) == 1  # finished before, only handed back


def test_processes_give_the_same_runs_as_one(tmp_path):
    configs = expand(TINY, {"seed": [0, 1]}, [{"method": "sam"}])
    here = {r.run_id: r.history() for r in train_all(configs, out=tmp_path / "1", jobs=1)}
    there = {r.run_id: r.history() for r in train_all(configs, out=tmp_path / "2", jobs=2)}
    assert here.keys() == there.keys()
    for run_id, history in here.items():
        assert history.drop(columns="seconds").equals(there[run_id].drop(columns="seconds"))


# -- the small parts below -------------------------------------------------------------------------------------------


def test_learning_rate_schedules():
    cosine = LearningRate(kind="cosine", peak=1.0, total=10, warmup=2, floor=0.1)
    assert [cosine(0), cosine(1), cosine(2)] == [0.5, 1.0, 1.0]
    assert cosine(6) == pytest.approx(0.55)
    assert cosine(10) == pytest.approx(0.1)
    step = LearningRate(kind="step", peak=1.0, total=8, milestones=(0.5, 0.75), factor=0.1)
    assert [step(3), step(4), step(6)] == pytest.approx([1.0, 0.1, 0.01])
    assert LearningRate(kind="constant", peak=0.3, total=5)(4) == 0.3


def test_radius_in_proportion_to_the_learning_rate():
    radius = ProportionalRadius(0.6, 0.2, lr_max=3.0, lr_min=1.0)
    assert [radius(3.0), radius(2.0), radius(1.0)] == pytest.approx([0.6, 0.4, 0.2])
    assert ProportionalRadius(0.6, 0.0, lr_max=3.0, lr_min=1.0)(0.5) == 0.0  # warm-up from below the minimum
    assert ProportionalRadius(0.6, 0.2, lr_max=3.0, lr_min=3.0)(1.0) == 0.6
    assert ConstantRadius(0.4)(9.9) == 0.4
    with pytest.raises(ValueError, match="`rho_min` must be a finite radius"):
        ProportionalRadius(0.6, -0.2, lr_max=3.0, lr_min=1.0)


def test_states_survive_the_way_through_json():
    import json

    import torch

    state = {
        "a": [torch.arange(3), (1, 2.5, float("nan"))],
        0: {"x": None, "inf": float("-inf")},
        "s": "text",
        "b": True,
    }
    skeleton, tensors = split_tensors(state)
    back = join_tensors(json.loads(json.dumps(skeleton, allow_nan=False)), tensors)
    assert back["a"][1][2] != back["a"][1][2]
    assert back[0] == {"x": None, "inf": float("-inf")}
    assert equal(back["a"][0], state["a"][0])
    assert isinstance(back["a"][1], tuple)
    with pytest.raises(TypeError, match="cannot save object"):
        split_tensors({"x": object()})


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})

    def full(aside):
        aside.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, full)
    assert read_json(path) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_runs_that_never_ended_are_interrupted(tmp_path):
    assert Run(tmp_path).status()["status"] == "interrupted"
