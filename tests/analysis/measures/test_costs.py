"""What measuring is expected to cost: every measure is counted, and the sums are about what is then taken."""

import math
import time
from dataclasses import replace

import pytest

from analysis.measures import budget as budgets
from analysis.measures.budget import Pace, shown
from analysis.measures.costs import COSTS, Sizes, work_of
from analysis.measures.plan import plan
from analysis.measures.registry import MEASURES
from analysis.measures.subject import Subject
from analysis.measures.taking import measures_of
from trainers import build_model, load_dataset
from trainers.sweep.parallel import single_threaded

SIZES = Sizes(sample=2048, train=10_000, held_out=500, test=1000, shifted=15_000, drawn=True, own=True)
FREE = {"training_speed", "example_forgetting", "forgetting_counts"}  # which read records
SOME = ["targets", "hessian_trace", "average_sharpness", "gradient_covariance", "m_sharpness", "worst_case_sharpness"]


@pytest.fixture(scope="module")
def subject():
    data = load_dataset("digits", train_size=300, validation_size=100, test_size=100)
    model = build_model("cnn", shape=(1, 8, 8), classes=10, generator_seed=0, options={"width": 8})
    return Subject(model.eval(), data, "x")


def examples(key, **options):
    chosen = plan({key: options})
    return sum(w.examples for w in work_of(key, MEASURES[key], SIZES, chosen[key]))


def test_every_measure_costs_something_but_those_that_read_records():
    assert set(COSTS) == set(MEASURES)
    assert {key for key in MEASURES if not examples(key)} == FREE


def test_what_measures_share_is_paid_by_the_first():
    singles = [w for key in ("fisher_rao", "gradient_covariance") for w in work_of(key, MEASURES[key], SIZES, {})]
    assert singles[0] == singles[1]
    assert singles[0].once


def test_options_count():
    assert examples("hessian_trace", draws=100) - examples("hessian_trace", draws=60) == 40 * 2048
    assert examples("average_sharpness", draws=20, rho=[0.1, 0.2]) == 2 * 41 * 2048
    assert examples("worst_case_sharpness", rho=[0.1], examples=100, steps=9, restarts=1) == 100 * 10 * 2
    assert examples("m_sharpness", m=[16], blocks=10) == 3 * 160
    few = replace(SIZES, own=False)
    whole, half = (
        work_of(
            "perturbed_forgetting",
            MEASURES["perturbed_forgetting"],
            sizes,
            plan(["perturbed_forgetting"])["perturbed_forgetting"],
        )
        for sizes in (SIZES, few)
    )
    assert whole[1].kind == "reading"
    assert whole[0].examples == 2 * half[0].examples == 20 * 8 * (512 + 500 + 64)


def test_the_cost_is_about_what_is_taken(subject, monkeypatch):
    monkeypatch.setattr(budgets.time, "perf_counter", time.process_time)  # other processes do not count
    chosen = plan(SOME)

    def both():
        expected = Pace(subject).seconds(chosen)
        taken, begun = {}, time.process_time()
        for key, _ in measures_of(replace(subject), chosen):
            taken[key], begun = time.process_time() - begun, time.process_time()
        return expected, taken

    expected, taken = single_threaded(both)
    assert 1 / 4 < sum(expected.values()) / sum(taken.values()) < 4, (expected, taken)
    slowest = max(taken, key=taken.__getitem__)
    assert 1 / 8 < expected[slowest] / taken[slowest] < 8, (expected, taken)


def test_a_pass_that_the_model_refuses_costs_nothing(subject):
    pace = Pace(subject)
    pace._pass = lambda *_: lambda: 1 / 0
    assert pace.each("forward") == 0.0
    assert math.fsum(pace.seconds(plan(["norms"])).values()) == 0.0


def test_durations_are_shown_in_the_unit_that_suits_them():
    assert [shown(s) for s in (3, 600, 7200)] == ["3 s", "10 min", "2.0 h"]
