"""How the pages of studies decide, against scipy and values worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.run_outcomes import LAST, STOPPED
from analysis.statistics.methods import chosen, edge_of_grid
from studies.pages.choices import by_cost, contrast, matrix, slopes, with_radius_zero
from studies.pages.predictors import BASELINES, FLATNESS, HYPOTHESIS, decided
from studies.pages.verdicts import Contrast, Hypothesis, decide, listed, reach

SEEDS = 8
NOISE = np.array([-1.2, 0.4, 0.9, -0.3, 0.1, 1.1, -0.6, -0.4]) / 100  # mean 0


def one(mean, *, spread=1.0, interest=0.01, **more):
    return Hypothesis("it", (Contrast("a against b", mean + spread * NOISE, interest, **more),))


def test_p_values_and_intervals_are_those_of_scipy():
    contrast = one(-0.004).contrasts[0]
    test = stats.ttest_1samp(contrast.differences, 0)
    assert contrast.p == pytest.approx(test.pvalue)
    assert contrast.interval(0.9) == pytest.approx(tuple(test.confidence_interval(0.9)))
    worse = one(0.004, kind="not above").contrasts[0]
    assert worse.p == pytest.approx(2 * stats.ttest_1samp(worse.differences, 0.01, alternative="less").pvalue)


def test_evidence_against_a_hypothesis_is_none_for_it():
    assert one(0.03).contrasts[0].p == 1
    assert one(0.03, kind="not above").contrasts[0].p == 1


@pytest.mark.parametrize(
    ("mean", "spread", "kind", "outcome"),
    [
        (-0.03, 1.0, "below", "holds"),
        (0.03, 1.0, "below", "does not hold"),  # worse
        (0.0, 0.1, "below", "does not hold"),  # any advantage is smaller than of interest
        (-0.005, 4.0, "below", "inconclusive"),  # too wide
        (-0.003, 0.1, "below", "holds"),  # clear, although small
        (0.0, 0.1, "not above", "holds"),
        (0.003, 0.1, "not above", "holds"),  # worse by less than of interest
        (0.03, 1.0, "not above", "does not hold"),
        (0.005, 4.0, "not above", "inconclusive"),
    ],
)
def test_the_three_outcomes(mean, spread, kind, outcome):
    found = decide([one(mean, spread=spread, kind=kind)])[0]
    assert found.outcome == outcome
    assert outcome in listed([found]).lower()


def test_a_small_advantage_is_said_to_be_small():
    assert "smaller than of interest" in decide([one(-0.003, spread=0.1)])[0].line
    assert "smaller than of interest" not in decide([one(-0.03)])[0].line


def test_all_contrasts_must_show_it_and_the_weakest_decides():
    good, bad = one(-0.03).contrasts[0], one(-0.003).contrasts[0]
    both = Hypothesis("it", (good, bad))
    assert both.p == bad.p > good.p
    assert decide([both])[0].outcome != "holds"
    worse = Hypothesis("it", (good, one(0.02).contrasts[0]))
    assert decide([worse])[0].outcome == "does not hold"


def test_holm_and_bonferroni_are_over_the_hypotheses_given():
    hypotheses = [one(-0.0075), one(-0.02), one(-0.03)]
    found = decide(hypotheses)
    raw = [h.p for h in hypotheses]
    order = np.argsort(raw)
    expected = np.empty(3)
    largest = 0.0
    for rank, k in enumerate(order):  # by hand: (3, 2, 1) times the sorted p-values, never falling
        largest = max(largest, min(1.0, (3 - rank) * raw[k]))
        expected[k] = largest
    assert [v.p for v in found] == pytest.approx(expected)
    assert found[0].level == pytest.approx(1 - 0.05 / 3)
    assert decide([hypotheses[0]])[0].outcome == "holds"  # alone it would not be corrected


@pytest.mark.parametrize(("mean", "open_side"), [(-0.03, "open_if_held"), (0.03, "open_if_excluded")])
def test_what_a_wider_grid_could_overturn_is_inconclusive(mean, open_side):
    doubt = "the chosen rho is the largest of its grid"
    assert decide([one(mean, **{open_side: doubt})])[0].outcome == "inconclusive"
    assert doubt in decide([one(mean, **{open_side: doubt})])[0].line.replace("The", "the")
    other = {"open_if_held": "open_if_excluded", "open_if_excluded": "open_if_held"}[open_side]
    assert decide([one(mean, **{other: doubt})])[0].outcome != "inconclusive"


def test_nothing_is_claimed_from_one_seed_or_from_equal_runs():
    lonely = Hypothesis("it", (Contrast("a", np.array([-0.5]), 0.01),))
    assert decide([lonely])[0].outcome == "inconclusive"
    same = Hypothesis("it", (Contrast("a", np.zeros(SEEDS), 0.01),))
    assert decide([same])[0].outcome == "does not hold"
    with pytest.raises(ValueError, match="`hypotheses` is empty"):
        decide([])
    with pytest.raises(ValueError, match="`interest` must be above 0"):
        Contrast("a", NOISE, 0.0)


def test_false_alarms_of_a_page_are_at_most_five_percent():
    generator = np.random.default_rng(0)
    pages = 600
    wrong = 0
    for _ in range(pages):
        shared = generator.normal(size=SEEDS)  # the comparator's luck, in all differences of a page
        made = [Hypothesis("it", (Contrast("a", generator.normal(size=SEEDS) + shared, 1.0),)) for _ in range(5)]
        wrong += any(v.outcome == "holds" for v in decide(made))
    assert wrong / pages < 0.05 / 2 + 3 * math.sqrt(0.025 * 0.975 / pages)  # half, as one of two directions counts


def test_the_reach_is_half_the_interval():
    contrast = one(0.0).contrasts[0]
    half = stats.t.ppf(0.975, SEEDS - 1) * stats.sem(contrast.differences)
    assert f"±{100 * half:.1f} points" in reach(decide([one(0.0)]))


def runs(**settings):
    """Runs of two seeds for each method, with errors that grow with the distance of rho (or lr) from the best."""
    rows = []
    for number, (method, values) in enumerate(settings.items()):
        for k, (value, error) in enumerate(values.items()):
            for seed in (0, 1):
                row = dict.fromkeys((*LAST, *STOPPED), error + 0.01 * seed) | {
                    "method": method,
                    "seed": seed,
                    "epochs": 30,
                }
                perturbed = not method.startswith("sgd")
                row |= {"rho": value if perturbed else np.nan, "lr": 0.02 if perturbed else value}
                rows.append(row | {"configuration": 100 * number + k})
    return pd.DataFrame(rows)


def test_the_setting_is_chosen_on_validation_data_and_its_edge_is_seen():
    found = runs(sgd={0.01: 0.3, 0.02: 0.2, 0.04: 0.4}, sam={0.1: 0.3, 0.2: 0.1, 0.4: 0.2}, obf={0.1: 0.3, 0.2: 0.05})
    of = dict(list(found.groupby("method")))
    assert chosen(of["sam"]).tolist() == pytest.approx([0.1, 0.11])
    assert contrast("", of["sam"], of["sgd"]).mean == pytest.approx(-0.1)
    inside = contrast("", of["sam"], of["sgd"])
    assert inside.open_if_held == inside.open_if_excluded == ""
    assert "rho is the largest" in contrast("", of["obf"], of["sgd"]).open_if_excluded  # a larger may be better still,
    assert contrast("", of["obf"], of["sgd"]).open_if_held == ""  # which could only help it
    assert "rho is the largest" in contrast("", of["sam"], of["obf"]).open_if_held
    assert "lr is the smallest" in contrast("", of["sam"], of["sgd"][of["sgd"]["lr"] > 0.01]).open_if_held


def test_sgd_stands_for_radius_zero_and_that_is_no_edge():
    found = with_radius_zero(runs(sgd={0.02: 0.1, 0.04: 0.05}, sam={0.1: 0.3, 0.2: 0.2}))
    sam = found[found["method"] == "sam"]
    assert sorted(set(sam["rho"])) == [0.0, 0.1, 0.2]
    assert chosen(sam).tolist() == pytest.approx([0.1, 0.11])  # of SGD at the same learning rate
    assert edge_of_grid(sam, chosen(sam).name) == ""
    assert edge_of_grid(sam, 101) == "rho is the largest of its grid"
    assert edge_of_grid(sam, 100) == ""
    assert not set(found.loc[found["method"] == "sgd", "configuration"]) & set(sam["configuration"])


def test_longer_runs_of_sgd_are_a_method_of_their_own():
    found = runs(sgd={0.02: 0.1}, sam={0.1: 0.3})
    longer = found[found["method"] == "sgd"].assign(epochs=60)
    assert set(by_cost(pd.concat([found, longer]))["method"]) == {"sgd", "sgd ×2", "sam"}


def test_slopes_are_those_of_least_squares_on_doublings():
    table = pd.DataFrame(np.random.default_rng(1).normal(size=(3, 4)), columns=[4, 8, 32, 64])
    expected = [stats.linregress([2, 3, 5, 6], row).slope for row in table.to_numpy()]
    assert slopes(table) == pytest.approx(expected)


def test_the_matrix_of_levels_keeps_whole_seeds():
    found = runs(sam={0.1: 0.3, 0.2: 0.2}).assign(m=lambda t: t["rho"].map({0.1: 4, 0.2: 64}))
    table = matrix(found, "m")
    assert table.columns.tolist() == [4, 64]
    assert table.to_numpy() == pytest.approx(np.array([[0.3, 0.2], [0.31, 0.21]]))
    lost = (found["m"] == 4) & (found["seed"] == 0)
    assert matrix(found.assign(test_error=found["test_error"].mask(lost)), "m").index.tolist() == [1]


def compared(lows, highs, tau=-0.5):
    others = [*FLATNESS, *BASELINES]
    rows = [
        {"forgetting": HYPOTHESIS, "other": other, "pairs": pairs, "tau_forgetting": tau, "difference": (a + b) / 2}
        | {"low_draws": a, "high_draws": b}
        for pairs in ("pooled", "stratified")
        for other, a, b in zip(others, lows, highs, strict=True)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("lows", "highs", "tau", "outcome"),
    [
        ([0.1] * 5, [0.5] * 5, -0.5, "Holds"),
        ([0.1] * 5, [0.5] * 5, 0.5, "Inconclusive"),  # of the other sign
        ([0.1, -0.3, 0.1, 0.1, 0.1], [0.5, 0.05, 0.5, 0.5, 0.5], -0.5, "Does not hold"),
        ([0.1, -0.3, 0.1, 0.1, 0.1], [0.5, 0.4, 0.5, 0.5, 0.5], -0.5, "Inconclusive"),
        ([0.1, math.nan, 0.1, 0.1, 0.1], [0.5, math.nan, 0.5, 0.5, 0.5], -0.5, "Holds"),  # one that does not vary
    ],
)
def test_predictors_are_told_apart_by_all_their_intervals(lows, highs, tau, outcome):
    rows = compared(lows, highs, tau)
    assert decided(rows, FLATNESS) == outcome
    assert decided(rows[:0], FLATNESS) == "Inconclusive"
