"""Weights sharded over processes: equal to whole weights, or refused before training."""

import re

import numpy as np
import pytest
from workers import pool

pytestmark = pytest.mark.xdist_group("ranks")

WORKS = {
    "sgd": {},
    "sam": {},
    "sam-multi-step": {"method": "sam", "steps_": 2},
    "usam": {},
    "asam": {},
    "gsam": {},
    "fsam": {},
    "vasso": {},
    "msam": {},
    "s2sam": {},
    "looksam": {"k": 2},
    "wsam": {},
    "gnp": {},
    "grst": {},
    "obf": {},
    "nsam": {},
    "noisesam": {},
    "sam_step_size": {},
    "aosam": {"lambda1": 0.2, "lambda2": 0.2},
    "crsam": {},
    "stablesam": {},
    "egsam": {},
    "ogsam": {},
    "sampa": {},
    "lookbehind": {},
    "aesam": {"lambda1": 0.2, "lambda2": 0.2},
    "sssam": {},
    "sam_on": {"layers": "first*"},
    "sam-adamw": {"method": "sam", "base": "adamw"},
    "sam-clip": {"method": "sam", "grad_clip": 0.1},
    "gsam-scaler": {"method": "gsam", "scale": 8.0},
}


def run(function, ranks, **arguments):
    return pool().run("workers_sharded", function, ranks=ranks, **arguments)


@pytest.mark.parametrize("case", WORKS)
def test_sharded_weights_equal_whole_ones(case):
    options = {k: v for k, v in WORKS[case].items() if k not in ("method", "scale")}
    if "steps_" in options:
        options["steps"] = options.pop("steps_")
    method, scale = WORKS[case].get("method", case), WORKS[case].get("scale")
    common = {"method": method, "options": options, "scale": scale}
    ((alone, lengths),) = run("train", 1, sharded=False, **common)
    for weights, records in run("train", 2, sharded=True, **common):
        for a, b in zip(weights, alone, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(np.array(records)[:, :2], np.array(lengths)[:, :2], rtol=1e-11)


@pytest.mark.parametrize("method", ["gsam", "fsam"])
def test_copies_of_shards_count_once(method):
    ((alone, _),) = run("train", 1, method=method, options={}, sharded=False, mesh=(2, 2))
    for weights, _ in run("train", 4, method=method, options={}, sharded=True, mesh=(2, 2)):
        for a, b in zip(weights, alone, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def test_weights_gathered_without_backward_do_not_outlive_a_displacement():
    (alone,) = run("evaluated_between", 1, sharded=False)
    for weights in run("evaluated_between", 2, sharded=True):
        for a, b in zip(weights, alone, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def test_an_exception_puts_the_weights_back():
    for same, difference in run("exception", 2):
        assert same
        assert difference < 1e-14


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("sam", {"sharing": "chunk"}, "`sharing` must be 'global', got 'chunk'"),
        ("sam", {"p": 1.0}, r"takes the 1.0-norm"),
        ("sam", {"p": float("inf")}, r"takes the inf-norm"),
        ("asam", {"granularity": "filter"}, "norms of whole tensors or filters"),
        ("asam", {"granularity": "tensor"}, "norms of whole tensors or filters"),
        ("look_layersam", {}, "norms of whole tensors or filters"),
        ("randsam", {}, "draws random numbers for whole tensors"),
        ("rsam", {}, "draws random numbers for whole tensors"),
        ("tracesam", {}, "draws random numbers for whole tensors"),
        ("bsam", {"examples": 50}, "draws random numbers for whole tensors"),
        ("ssam_f", {"steps_per_epoch": 1}, "ranks entries or tensors against each other"),
        ("ssam_d", {"steps_per_epoch": 1}, "ranks entries or tensors against each other"),
        ("esam", {}, "ranks entries or tensors against each other"),
        ("esam", {"beta": 1.0}, "treats the examples of a batch apart"),
        ("deltasam", {}, "treats the examples of a batch apart"),
        ("functionalsam", {}, "treats the examples of a batch apart"),
        ("crsam", {"by_loss": True}, "divides by differences of losses"),
        ("sam", {"model": "in part"}, r"sharded in part: \['second.weight'\] are not"),
        ("sam", {"model": "flat"}, "is a FullyShardedDataParallel"),
        ("sam", {"base": "fused"}, "fused SGD cannot step sharded weights"),
    ],
)
def test_what_does_not_work_is_refused_with_its_reason(method, options, message):
    for text in run("refused", 2, method=method, options=options):
        assert re.search(message, text), text
