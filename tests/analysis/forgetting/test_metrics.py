import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis.forgetting.information import decision_information, output_information
from analysis.forgetting.metrics import ALL_METRICS, BIAS_METRICS, BIAS_OF, METRICS, Outputs, forgetting_metrics
from analysis.forgetting.output_bias import BIASES, bias_values, classwise_bias, output_bias
from analysis.measures.catalogue.targets import calibration_error

LABELS = np.array([0, 0, 1, 1])
BEFORE = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
AFTER = np.array([[0.7, 0.3], [0.45, 0.55], [0.4, 0.6], [0.55, 0.45]])


def outputs(probs, labels=LABELS):
    return Outputs.from_logits(torch.from_numpy(np.log(probs)), labels)


# The hand table: worked out apart from this code, to ten digits.
TABLE = {
    "F_mi": 0.1389485790, "F_cmi": 0.0131575683, "F_use": 0.1257910107, "selectivity": 0.0946937952,
    "F_rel": 0.3759863495, "dH": 0.1376980576, "KL": 0.0951269787, "KL_r": 0.1096389471, "JS": 0.0250651281, "TV": 0.2,
    "dCE": 0.3171278314, "cw": 0.5, "wc": 0.0, "ww": 0.0, "cw_correct": 0.5, "F_bias": -0.0012505214,
    "F_bias_tv": -0.025, "F_bias_count": 0.0, "F_confidence": 0.15, "F_overconfidence": -0.35,
    "F_classwise": (0.25 + 0.25) / 2 - (0.425 + 0.475) / 2,
}  # fmt: skip


@pytest.mark.parametrize("name", list(TABLE))
def test_hand_table(name):
    found = forgetting_metrics(outputs(BEFORE), outputs(AFTER), LABELS, metrics=[name])
    assert list(found) == [name]
    assert float(found[name]) == pytest.approx(TABLE[name], abs=1e-10)


def test_decisions_of_three_classes():
    labels = np.zeros(6, dtype=int)
    before = np.eye(3)[[0, 0, 1, 1, 2, 2]] * 0.7 + 0.1
    after = np.eye(3)[[0, 1, 0, 2, 2, 1]] * 0.7 + 0.1
    m = forgetting_metrics(outputs(before, labels), outputs(after, labels), labels, metrics=ALL_METRICS)
    expected = {"cw": 1 / 6, "wc": 1 / 6, "ww": 2 / 6, "cw_correct": 1 / 2, "wc_wrong": 1 / 4}
    assert {k: float(m[k]) for k in expected} == pytest.approx(expected)


def test_equal_outputs_give_exact_zeros_in_every_metric():
    o = outputs(BEFORE)
    m = forgetting_metrics(o, o, LABELS, correction="first-order", metrics=ALL_METRICS)
    undefined = {"selectivity", "wc_wrong"}  # nothing was forgotten, no example was wrong
    assert {k: float(v) for k, v in m.items() if k not in undefined} == dict.fromkeys(set(ALL_METRICS) - undefined, 0.0)


def test_uniform_outputs_forget_everything():
    m = forgetting_metrics(outputs(BEFORE), outputs(np.full((4, 2), 0.5)), LABELS, metrics=ALL_METRICS)
    info = output_information(BEFORE, LABELS)
    assert float(m["F_rel"]) == pytest.approx(1.0, abs=1e-13)
    assert float(m["F_mi"]) == pytest.approx(float(info.mi), abs=1e-14)
    assert float(m["KL"]) == pytest.approx(math.log(2) - float(info.mean_entropy), abs=1e-14)


def test_the_share_of_nothing_is_not_defined():
    flat = np.array([[0.7, 0.3], [0.7, 0.3], [0.2, 0.8], [0.2, 0.8]])
    m = forgetting_metrics(outputs(flat), outputs(AFTER), LABELS, metrics=["F_rel", "wc_wrong"])
    assert math.isnan(m["F_rel"])
    assert math.isnan(m["wc_wrong"])


@pytest.mark.parametrize("correction", ["plug-in", "first-order", "jackknife"])
def test_multiplicities_are_repeated_rows(correction):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 20)
    before, after = (outputs(rng.dirichlet(np.ones(4), 20), labels) for _ in range(2))
    counts = rng.integers(0, 4, (5, 20))
    together = forgetting_metrics(before, after, labels, correction=correction, members=counts, metrics=ALL_METRICS)
    for s in range(5):
        index = np.repeat(np.arange(20), counts[s])
        alone = forgetting_metrics(
            before.at(index), after.at(index), labels[index], correction=correction, metrics=ALL_METRICS
        )
        for name in ALL_METRICS:
            assert together[name][s] == pytest.approx(float(alone[name]), abs=1e-11, nan_ok=True), name


def test_miller_and_madow_by_hand():
    labels = np.array([0, 0, 0, 0, 1, 1])
    top = np.array([0, 0, 0, 2, 1, 1])
    plain = decision_information(top, labels, classes=3)
    within = 4 / 6 * -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    overall = -(0.5 * math.log(0.5) + 1 / 6 * math.log(1 / 6) + 1 / 3 * math.log(1 / 3))
    assert float(plain.cmi) == pytest.approx(within, abs=1e-14)
    assert float(plain.mi) == pytest.approx(overall, abs=1e-14)
    fixed = decision_information(top, labels, classes=3, correction="first-order")
    assert float(fixed.mi) == pytest.approx(overall + 2 / 12, abs=1e-14)
    assert float(fixed.cmi) == pytest.approx(within + 4 / 6 * 1 / 8, abs=1e-14)
    with pytest.raises(ValueError, match=r"`correction` must be one of .*'none'"):
        decision_information(top, labels, classes=3, correction="none")


@given(st.integers(0, 2**31))
def test_bias_drops_are_differences_of_the_biases(seed):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(12) % 3)
    before, after = (rng.dirichlet(np.ones(3), 12) for _ in range(2))
    m = forgetting_metrics(outputs(before, labels), outputs(after, labels), labels, metrics=BIAS_METRICS)
    first, second = ({r.measure: r.value for r in output_bias(p, labels)} for p in (before, after))
    for name, bias in BIAS_OF.items():
        if bias != "ece":
            assert float(m[name]) == pytest.approx(first[bias] - second[bias], abs=1e-12), name


def test_biases_against_their_definitions():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 60)
    probs = rng.dirichlet(np.full(4, 0.5), 60)
    found = bias_values(probs, labels)
    correct = probs.argmax(1) == labels
    assert float(found["ece"]) == pytest.approx(calibration_error(probs.max(1), correct).value, abs=1e-14)
    table = classwise_bias(probs, labels)
    assert float(found["classwise_bias"]) == pytest.approx(np.mean([np.abs(t).sum() / 2 for t in table]), abs=1e-14)
    assert set(found) == set(BIASES)
    broken = probs.copy()
    broken[3] = np.nan
    assert all(np.isnan(v) for v in bias_values(broken, labels).values())


def test_ece_of_the_known_example():
    confidence = [0.95, 0.85, 0.75, 0.65, 0.55, 0.92, 0.81, 0.33]
    correct = [1, 1, 0, 1, 0, 1, 0, 0]
    probs = np.array([[c, *((1 - c) / 3,) * 3] for c in confidence])
    labels = np.array([0 if right else 1 for right in correct])
    assert float(bias_values(probs, labels, ["ece"])["ece"]) == pytest.approx(0.34625, abs=1e-14)


def test_ece_bins_are_closed_on_the_right():
    # 9/15 ends the bin that holds 0.58 too: their errors, 0.6 - 1 and 0.58 - 0, partly cancel there
    probs = np.array([[9 / 15, 1 - 9 / 15], [0.58, 0.42]])
    found = bias_values(probs, np.array([0, 1]), ["ece"])["ece"]
    assert float(found) == pytest.approx(abs(0.6 - 1 + 0.58) / 2, abs=1e-14)


def test_unknown_names_are_named():
    with pytest.raises(ValueError, match=r"`metrics` has \['F_nothing'\]"):
        forgetting_metrics(outputs(BEFORE), outputs(AFTER), LABELS, metrics=["F_nothing", *METRICS])
    with pytest.raises(ValueError, match=r"`names` has \['bias'\]"):
        bias_values(BEFORE, LABELS, ["bias"])
