import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis.forgetting.information import (
    entropy,
    kl_divergence,
    output_information,
    selectivity,
    total_variation,
)
from analysis.forgetting.metrics import METRICS, Leaveout, Outputs, averaged, forgetting_metrics, pooled

# A table small enough for hand: two classes, two examples of each.
LABELS = np.array([0, 0, 1, 1])
BEFORE = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
AFTER = np.array([[0.7, 0.3], [0.45, 0.55], [0.4, 0.6], [0.55, 0.45]])
EXPECTED = {
    "before": (0.16580683906149873, 0.034994803120361795, 0.13081203594113694, 0.5273403414984466),
    "after": (0.026858260082248342, 0.021837234845099973, 0.005021025237148369, 0.6650383991228317),
}


def dirichlet(rng, labels, concentration=0.1, classes=10):
    return rng.dirichlet(np.full(classes, concentration), size=len(labels))


def outputs(probs):
    return Outputs.from_logits(torch.from_numpy(np.log(probs)), LABELS)


@pytest.mark.parametrize(("probs", "which"), [(BEFORE, "before"), (AFTER, "after")])
def test_information_of_the_hand_table(probs, which):
    info = output_information(probs, LABELS)
    found = [float(v) for v in (info.mi, info.cmi, info.useful, info.mean_entropy)]
    np.testing.assert_allclose(found, EXPECTED[which], rtol=0, atol=1e-13)


@pytest.mark.parametrize(("probs", "cmi"), [(BEFORE, 0.0683281365), (AFTER, 0.0434609873)])
def test_first_order_correction_of_the_hand_table(probs, cmi):
    info = output_information(probs, LABELS, correction="first-order")
    assert float(info.cmi) == pytest.approx(cmi, abs=1e-10)
    assert float(info.useful) == pytest.approx(float(info.mi - info.cmi), abs=1e-15)
    term = sum(np.var(probs[:, c], ddof=1) / probs[:, c].mean() for c in range(2)) / (2 * 4)
    assert float(info.mi) == pytest.approx(float(output_information(probs, LABELS).mi) + term, abs=1e-13)


@pytest.mark.parametrize("labels", [[0, 0, 1, 1], [0, 0, 0, 1, 2, 2, 2]], ids=["even", "ragged, one alone"])
def test_jackknife_against_the_definition(labels):
    labels = np.array(labels)
    probs = dirichlet(np.random.default_rng(0), labels, 1.0, 3)

    def corrected(p):
        n = len(p)
        full = float(entropy(p.mean(0)))
        if n == 1:
            return full
        return n * full - (n - 1) * np.mean([entropy(np.delete(p, i, 0).mean(0)) for i in range(n)])

    info = output_information(probs, labels, correction="jackknife")
    h = float(entropy(probs).mean())
    assert float(info.mi) == pytest.approx(corrected(probs) - h, abs=1e-13)
    cmi = sum((labels == y).mean() * corrected(probs[labels == y]) for y in np.unique(labels)) - h
    assert float(info.cmi) == pytest.approx(cmi, abs=1e-13)


@pytest.mark.parametrize(
    ("n_y", "plug_in", "corrected", "jackknife"),
    [(5, 1.013, 1.292, 1.410), (20, 1.337, 1.441, 1.454), (100, 1.433, 1.455, 1.456)],
)
def test_bias_of_the_three_estimators_on_dirichlet_outputs(n_y, plug_in, corrected, jackknife):
    # One class, Dirichlet(0.1) outputs over 10 classes; the truth is ln 10 - E H(p) = 1.456. The expected means are
    # printed to 3 digits, from a simulation whose own error adds to ours.
    draws = 1500
    probs = np.random.default_rng(1).dirichlet(np.full(10, 0.1), size=(draws, n_y))
    labels = np.zeros(n_y, dtype=int)
    for correction, mean in (("plug-in", plug_in), ("first-order", corrected), ("jackknife", jackknife)):
        cmi = output_information(probs, labels, correction=correction).cmi
        stderr = cmi.std(ddof=1) / math.sqrt(draws)
        assert abs(cmi.mean() - mean) < 4 * stderr + 0.006, correction


@given(st.integers(0, 2**31), st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_information_splits_into_useful_and_superfluous(seed, labels):
    labels = np.array(labels)
    info = output_information(dirichlet(np.random.default_rng(seed), labels, 0.5, 4), labels)
    assert abs(float(info.mi - info.useful - info.cmi)) < 1e-12
    assert float(info.cmi) > -1e-12
    assert float(info.useful) > -1e-12


@pytest.mark.parametrize("correction", ["plug-in", "first-order", "jackknife"])
def test_leading_axes_and_members_are_the_loop_written_out(correction):
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 30)
    probs = rng.dirichlet(np.ones(4), size=(5, 30))
    members = rng.random((5, 30)) < 0.6
    members[0] &= labels != 2  # a set that lacks a class
    together = output_information(probs, labels, correction=correction, members=members)
    shared = output_information(probs[0], labels, correction=correction, members=members)
    for r in range(5):
        for result, p in ((together, probs[r]), (shared, probs[0])):
            alone = output_information(p[members[r]], labels[members[r]], correction=correction)
            for name in ("mi", "cmi", "useful", "mean_entropy", "marginal_entropy"):
                assert getattr(result, name)[r] == pytest.approx(float(getattr(alone, name)), abs=1e-12)


def test_outputs_constant_within_a_class_expose_nothing():
    labels = np.array([0, 0, 0, 1, 1])
    probs = np.array([[0.7, 0.3], [0.2, 0.8]])[labels]
    for correction in ("plug-in", "first-order", "jackknife"):
        assert abs(float(output_information(probs, labels, correction=correction).cmi)) < 1e-14


def test_one_hot_outputs_carry_the_entropy_of_the_labels():
    labels = np.array([0, 0, 1, 2, 2, 2])
    info = output_information(np.eye(3)[labels], labels)
    assert float(info.useful) == pytest.approx(float(entropy(np.bincount(labels) / 6)), abs=1e-15)
    assert float(info.mean_entropy) == 0
    assert float(info.cmi) == pytest.approx(0, abs=1e-15)


def test_outputs_that_are_not_finite_give_nan():
    probs = BEFORE.copy()
    probs[1] = np.nan
    for correction in ("plug-in", "first-order", "jackknife"):
        info = output_information(probs, LABELS, correction=correction)
        assert all(np.isnan(float(v)) for v in (info.mi, info.cmi, info.useful, info.mean_entropy))


def test_distances_on_the_hand_table():
    assert kl_divergence(BEFORE, AFTER).mean() == pytest.approx(0.09512697874583192, abs=1e-13)
    assert kl_divergence(AFTER, BEFORE).mean() == pytest.approx(0.1096389471, abs=1e-10)
    assert total_variation(BEFORE, AFTER).mean() == pytest.approx(0.2, abs=1e-13)
    assert kl_divergence(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == np.inf


def test_selectivity_of_the_hand_table():
    assert float(selectivity(0.013157568275261822, 0.12579101070398857)) == pytest.approx(0.0946937952, abs=1e-10)
    np.testing.assert_array_equal(selectivity(np.array([1e-13, -2.0]), np.array([-1e-13, 0.0])), [np.nan, -1.0])


def test_forgetting_metrics_of_the_hand_table():
    found = forgetting_metrics(outputs(BEFORE), outputs(AFTER), LABELS)
    expected = {
        "F_cmi": 0.013157568275261822,
        "F_mi": 0.1389485789792504,
        "F_use": 0.12579101070398857,
        "selectivity": 0.0946937952,
        "dH": 0.13769805762438514,
        "KL": 0.09512697874583192,
        "dCE": 0.3171278314,
        "cw": 0.5,
        "wc": 0.0,
        "F_bias": -0.0012505214,
    }
    assert set(found) == set(expected) == set(METRICS)
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, abs=1e-10), name
    back = forgetting_metrics(outputs(AFTER), outputs(BEFORE), LABELS)
    assert (float(back["cw"]), float(back["wc"])) == (0.0, 0.5)


def test_bias_forgotten_is_entropy_gained_less_information_forgotten():
    for correction in ("plug-in", "first-order", "jackknife"):
        m = forgetting_metrics(outputs(BEFORE), outputs(AFTER), LABELS, correction=correction)
        assert float(m["F_bias"]) == pytest.approx(float(m["dH"] - m["F_mi"]), abs=1e-14)


def test_uniform_outputs_have_forgotten_everything():
    m = forgetting_metrics(outputs(BEFORE), outputs(np.full((4, 2), 0.5)), LABELS)
    mi, cmi, _, h = EXPECTED["before"]
    assert float(m["F_mi"]) == pytest.approx(mi, abs=1e-14)
    assert float(m["F_cmi"]) == pytest.approx(cmi, abs=1e-14)
    assert float(m["KL"]) == pytest.approx(math.log(2) - h, abs=1e-14)


def test_equal_outputs_give_exact_zeros():
    m = forgetting_metrics(outputs(BEFORE), outputs(BEFORE), LABELS, correction="first-order")
    assert {k: float(v) for k, v in m.items() if k != "selectivity"} == dict.fromkeys(
        set(METRICS) - {"selectivity"}, 0.0
    )
    assert np.isnan(m["selectivity"])


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, 0.0, -1e4], [0.0, 1e4, -1e4]])
    o = Outputs.from_logits(logits, np.array([0, 0]))
    np.testing.assert_array_equal(o.entropies, [0, 0])
    np.testing.assert_array_equal(o.losses, [0, 1e4])
    np.testing.assert_array_equal(o.correct, [1, 0])


def test_leaving_one_group_out_is_recomputing_without_it():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 24)
    before, after = (Outputs.from_logits(torch.from_numpy(rng.normal(size=(24, 3))), labels) for _ in range(2))
    found = pooled(before, after, labels, 4, correction="first-order")
    for group in range(4):
        kept = np.delete(np.arange(24), np.s_[group * 6 : group * 6 + 6])
        alone = forgetting_metrics(before.at(kept), after.at(kept), labels[kept], correction="first-order")
        for name in METRICS:
            assert found[name].without[group] == pytest.approx(float(alone[name]), abs=1e-12), name
    assert np.isnan(pooled(before, after, labels, 1)["cw"].stderr)


def test_the_jackknife_error_of_a_mean_is_sd_over_root_n():
    x = np.array([1.0, 4.0, 2.0, 7.0])
    rows = averaged([dict.fromkeys(METRICS, v) for v in x])
    assert rows["cw"].value == pytest.approx(x.mean())
    assert rows["cw"].stderr == pytest.approx(x.std(ddof=1) / 2, rel=1e-12)
    gap = rows["cw"] - rows["cw"]
    assert (gap.value, gap.stderr) == (0, 0)
    assert np.isnan(Leaveout(1.0, np.array([np.nan])).stderr)


@pytest.mark.parametrize(
    ("probs", "labels", "options", "message"),
    [
        (BEFORE[0], LABELS, {}, r"`probs` must have shape \(\.\.\., n, c\)"),
        (BEFORE, LABELS[:3], {}, "`labels` must be one class for each of the 4 examples"),
        (2 * BEFORE, LABELS, {}, r"`probs` must hold distributions.*softmax"),
        (BEFORE - [[0.5, -0.5]], LABELS, {}, "`probs` must hold distributions: no entry below 0"),
        (BEFORE, LABELS, {"correction": "miller"}, "`correction` must be one of .*'miller'"),
        (BEFORE, LABELS, {"members": np.ones(3, dtype=bool)}, "`members` must have 4 entries"),
    ],
)
def test_bad_arguments_are_named(probs, labels, options, message):
    with pytest.raises(ValueError, match=message):
        output_information(probs, labels, **options)
