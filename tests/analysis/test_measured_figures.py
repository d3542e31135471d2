"""Figures of single tables, and the tables: reliability, how often examples were forgotten, sharpness by radius."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from synthetic import make

from analysis.figures import FIGURES, NothingToDraw, forgetting_histogram, reliability_diagram, sharpness_by_radius
from analysis.figures.reliability import pool, wilson
from analysis.measures.catalogue.calibration import calibration_error, reliability
from analysis.measures.catalogue.forgetting import forgetting_counts
from analysis.measures.catalogue.targets import reliability_bins
from analysis.measures.subject import Subject
from analysis.statistics.correlation import correlate
from analysis.table import to_frame, with_variant
from trainers import build_model, load_dataset

CONFIDENCE = np.array([0.95, 0.85, 0.75, 0.65, 0.55, 0.92, 0.81, 0.33])
CORRECT = np.array([1, 1, 0, 1, 0, 1, 0, 0], dtype=bool)


@pytest.mark.parametrize(("bins", "binning"), [(10, "equal-width"), (15, "equal-width"), (4, "adaptive")])
def test_bins_are_those_of_the_calibration_error(bins, binning):
    table = reliability(CONFIDENCE, CORRECT, bins=bins, binning=binning)
    gap = (table["n"] * (table["confidence"] - table["accuracy"]).abs()).sum() / table["n"].sum()
    assert gap == pytest.approx(calibration_error(CONFIDENCE, CORRECT, bins=bins, binning=binning).value, abs=1e-12)
    assert gap == pytest.approx(0.25875 if binning == "adaptive" else 0.34625, abs=1e-12)
    assert table["n"].sum() == 8
    assert (table["n"] > 0).all()


def test_a_bin_by_hand():
    table = reliability(CONFIDENCE, CORRECT, bins=10).set_index("bin")
    assert table.loc[8].to_dict() == pytest.approx({"n": 2, "confidence": 0.83, "accuracy": 0.5})
    assert list(table.index) == [3, 5, 6, 7, 8, 9]
    with pytest.raises(ValueError, match="`bins` must be at least 1"):
        reliability(CONFIDENCE, CORRECT, bins=0)


def test_bins_of_several_runs_are_pooled_by_their_predictions():
    rows = pd.DataFrame({"bin": [1, 1, 2], "n": [30, 10, 5], "confidence": [0.2, 0.4, 0.5], "accuracy": [0.1, 0.5, 1]})
    found = pool(rows).set_index("bin")
    assert found.loc[1].to_dict() == pytest.approx({"confidence": 0.25, "accuracy": 0.2, "n": 40})


def test_wilsons_interval_is_statsmodels_and_has_a_width_at_the_ends():
    from statsmodels.stats.proportion import proportion_confint

    n = np.array([5, 40, 40, 1000])
    share = np.array([1.0, 0.0, 0.3, 0.5])
    low, high = wilson(share, n)
    expected = proportion_confint(np.round(share * n), n, method="wilson")
    np.testing.assert_allclose([low, high], expected, atol=1e-12)
    assert (high > low).all()


@pytest.fixture(scope="module")
def subject():
    data = load_dataset("digits", train_size=60, validation_size=60, test_size=100)
    model = build_model("mlp", shape=(1, 8, 8), classes=10, generator_seed=0, options={"width": 4, "depth": 1})
    return Subject(model.eval(), data, "x")


def test_rows_of_bins_add_up_to_the_calibration_error_of_the_targets(subject):
    rows = reliability_bins(subject)
    assert sum(r.draws for r in rows) == 100
    gap = sum(r.draws * abs(r.value - r.options["confidence"]) for r in rows) / 100
    p = subject.risk.on((subject.data.test.x, subject.data.test.y)).outputs().double().softmax(1).max(1)
    right = (p.indices == subject.data.test.y).numpy()
    assert gap == pytest.approx(calibration_error(p.values.numpy(), right).value, abs=1e-12)
    assert with_variant(to_frame(rows, run_id="a", step=1, epoch=1))["variant"].is_unique
    for r in rows:
        assert r.stderr == pytest.approx(math.sqrt(r.value * (1 - r.value) / r.draws))


class Recorded(Subject):
    def correctness(self, protocol):
        return np.array([[0, 0, 1, 1, 1, 1], [0, 1, 0, 1, 0, 1], [0] * 6, [1] * 6, [1, 0, 0, 1, 1, 0]], dtype=bool).T


def test_counts_of_the_five_sequences_keep_the_never_learned_apart(subject):
    rows = forgetting_counts(Recorded(subject.model, subject.data, "x"))
    found = {r.options["events"]: r.value for r in rows}
    assert found == {0: 0.4, 2: 0.4, "never": 0.2}
    assert sum(found.values()) == pytest.approx(1)
    assert {r.options["protocol"] for r in rows} == {"presentation"}
    assert with_variant(to_frame(rows, run_id="a", step=1, epoch=1))["variant"].tolist() == [
        "share_forgotten[presentation, events=0]", "share_forgotten[presentation, events=2]",
        "share_forgotten[presentation, never]",
    ]  # fmt: skip


def test_neither_is_taken_for_a_measure_that_explains():
    found = correlate(make().measures, draws=0, permutations=0, tables=())
    assert not found.table["measure"].str.startswith(("bin_accuracy", "share_forgotten")).any()


def test_the_histogram_has_a_bar_for_what_was_never_learned_and_none_for_what_is_not_there():
    ax = Figure().add_subplot()
    shares = pd.DataFrame({
        "run_id": ["a", "a", "a", "b", "b"], "method": ["sgd"] * 5, "events": [0, 30, "never", 0, "never"],
        "share": [0.7, 0.1, 0.2, 0.9, 0.1],
    })  # fmt: skip
    forgetting_histogram(ax, shares)
    bars = {round(p.get_x() + p.get_width() / 2): p.get_height() for p in ax.patches}
    assert bars == pytest.approx({0: 80.0, 12: 5.0, 14: 15.0})
    names = [t.get_text() for t in ax.get_xticklabels()]
    assert names[-1] == "never\nlearned"
    assert "12 +" in names
    with pytest.raises(ValueError, match="`shares` is empty: measure `forgetting_counts`"):
        forgetting_histogram(ax, shares.iloc[:0])


@pytest.mark.parametrize("curvature", [math.nan, 4.0])
def test_the_taylor_line_is_the_series_at_the_weights(curvature):
    ax = Figure().add_subplot()
    rises = pd.DataFrame(
        {"method": "sgd", "rho": [0.1, 1.0], "value": [0.2, 5.0], "slope": 1.5, "curvature": curvature}
    )
    sharpness_by_radius(ax, rises)
    line = next(line for line in ax.lines if line.get_linestyle() == "--")
    rho, y = line.get_data()
    np.testing.assert_allclose(y, 1.5 * rho + (2 * rho**2 if math.isfinite(curvature) else 0), rtol=1e-12)
    order = "second order" if math.isfinite(curvature) else "first order"
    assert [t.get_text() for t in ax.figure.legends[0].get_texts()] == ["SGD", order]
    with pytest.raises(ValueError, match="`rises` holds no rise above 0"):
        sharpness_by_radius(ax, rises.assign(value=-1.0))


def test_the_diagram_puts_confidence_against_accuracy():
    bins = pd.DataFrame(
        {"method": "sam", "bin": [9, 14], "n": [10, 30], "confidence": [0.6, 0.95], "accuracy": [0.5, 0.9]}
    )
    figure = reliability_diagram(Figure(), bins)
    above, below = figure.axes
    assert above.lines[1].get_xydata().tolist() == [[60.0, 50.0], [95.0, 90.0]]
    assert below.lines[0].get_ydata().tolist() == [25.0, 75.0]
    with pytest.raises(ValueError, match="`bins` holds no bin with a prediction"):
        reliability_diagram(Figure(), bins.assign(n=0))


@pytest.mark.parametrize(
    ("name", "measure", "reason"),
    [
        ("reliability", "bin_accuracy", "name `reliability` among the study's measures"),
        ("forgetting_events", "share_forgotten", "name `forgetting_counts` among the study's measures"),
        ("sharpness_by_radius", "ascent_sharpness", "give `ascent_sharpness` several `rho`"),
    ],
)
def test_the_report_says_what_to_measure_where_there_is_no_table(name, measure, reason):
    results = make()
    without = results.measures[results.measures["measure"] != measure]
    with pytest.raises(NothingToDraw, match=reason):
        FIGURES[name].draw(replace(results, measures=without))


def test_the_report_takes_the_curvature_at_the_smallest_radius():
    results = make()
    rows = results.measures
    sharp = rows[(rows["measure"] == "ascent_sharpness") & (rows["options"] == json.dumps({"rho": 0.05}))]
    bend = [sharp.assign(measure="surrogate_gap_directional", options=json.dumps({"rho": r}), value=v)
            for r, v in ((0.5, 7.0), (0.01, 3.0))]  # fmt: skip
    more = replace(results, measures=pd.concat([rows, *bend], ignore_index=True))
    figure, facts = FIGURES["sharpness_by_radius"].draw(more)
    assert facts["line"].endswith("κ the curvature along the gradient")
    line = next(line for line in figure.axes[0].lines if line.get_linestyle() == "--")
    rho, y = line.get_data()
    bent = np.polyfit(rho, y, 2)
    assert bent[0] == pytest.approx(1.5, rel=1e-6)  # κ/2
