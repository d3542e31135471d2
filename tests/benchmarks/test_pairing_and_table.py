"""Mirrored timing, and rows as lines and as a table."""

import pytest

from benchmarks import pairing
from benchmarks.__main__ import main
from benchmarks.pairing import mirrored, quartiles, ratio
from benchmarks.table import line, markdown


def test_a_steady_drift_of_speed_cancels(monkeypatch):
    clock = {"now": 0.0}
    monkeypatch.setattr(pairing.time, "process_time", lambda: clock["now"])

    def step(seconds):
        def run():
            clock["now"] += seconds * (1 + clock["calls"] * 0.1)  # each call is slower than the one before
            clock["calls"] += 1

        return run

    clock["calls"] = 0
    seconds = mirrored({"a": step(1.0), "b": step(1.0), "c": step(2.0)}, rounds=3)
    assert ratio(seconds, "b", "a")["value"] == pytest.approx(1.0)
    assert ratio(seconds, "c", "a")["value"] == pytest.approx(2.0)


def test_quartiles_of_few_values_are_their_extremes():
    assert quartiles([2.0, 1.0]) == {"value": 1.5, "low": 1.0, "high": 2.0}
    assert quartiles([3.0, 1.0, 2.0]) == {"value": 2.0, "low": 1.0, "high": 3.0}


def test_a_row_says_whether_its_limit_was_met():
    row = {"what": "a | b", "value": 0.7, "low": 0.6, "high": 0.8, "unit": "ratio", "limit": 0.65, "truth": 5.0}
    assert line(row).endswith("0.7 ratio [0.6, 0.8]  limit 0.65, MISSED")
    assert "met" in line({**row, "value": 0.65})
    assert markdown([row]).splitlines() == [
        "| what | measured | limit | remarks |",
        "|---|---|---|---|",
        "| a \\| b | 0.7 ratio [0.6, 0.8] | 0.65, MISSED | truth 5 |",
    ]


def test_a_missing_peer_is_a_row():
    row = {"what": "PyHessian", "value": None, "unit": "missing, not compared", "note": "it is not installed"}
    assert "missing, not compared" in line(row)
    assert markdown([row]).endswith("| PyHessian | missing, not compared |  | it is not installed |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], "unknown benchmark 'speed'"),
        (["curvature:speed"], "unknown group 'speed'"),
        (["steps", "--quick"], "no quick size"),
        (["memory:peaks"], "has no groups"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
