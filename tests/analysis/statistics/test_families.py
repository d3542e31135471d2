import itertools

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from analysis.statistics import families
from analysis.statistics.correlation import correlate
from analysis.statistics.families import best_of_k, orders_inside, representative
from analysis.table import Row, join_config, to_frame

Y = np.array([0.1, 0.2, 0.25, 0.3, 0.5])
X = np.array([[3.0, 5, 1, 4, 2], [2, 1, 3, 5, 4], [1, 2, 3, 4, 5]])


def tau(x, y):
    return stats.kendalltau(x, y).statistic


def test_the_best_of_three_of_five_configurations():
    # All 120 orders: 0.05 for the best of the three (specification, S3); enumerated here with scipy.
    taus = [max(abs(tau(x, Y[list(order)])) for x in X) for order in itertools.permutations(range(5))]
    assert np.mean(np.array(taus) > 1 - 1e-9) == pytest.approx(0.05)
    found = best_of_k(X, Y, permutations=20_000, generator=np.random.default_rng(0))
    assert (found.place, found.value) == (2, 1.0)
    assert found.p == pytest.approx(0.05, abs=0.006)
    second = best_of_k(X[:2], Y, permutations=20_000, generator=np.random.default_rng(0))
    assert second.place == 1
    assert second.p == pytest.approx(
        np.mean([max(abs(tau(x, Y[list(o)])) for x in X[:2]) > 0.6 - 1e-9 for o in itertools.permutations(range(5))]),
        abs=0.012,
    )


def test_inside_cells_the_target_stays_in_its_cell():
    # Two cells of three, both in order: 2 of 36 orders are as strong (specification, S1).
    x, y = np.array([[5.0, 6, 7, 1, 2, 3]]), np.array([0.10, 0.11, 0.12, 0.30, 0.31, 0.33])
    cells = np.array([0, 0, 0, 1, 1, 1])
    found = best_of_k(x, y, cells=cells, permutations=20_000, generator=np.random.default_rng(0))
    assert found.value == pytest.approx(1.0)
    assert found.p == pytest.approx(2 / 36, abs=0.006)
    mixed = np.array([0, 1, 0, 1, 1, 0])  # whatever the order of the configurations
    place = np.array([0, 3, 1, 4, 5, 2])
    again = best_of_k(x[:, place], y[place], cells=mixed, permutations=20_000, generator=np.random.default_rng(0))
    assert again.value == pytest.approx(1.0)
    order = orders_inside(mixed, count=50, generator=np.random.default_rng(1))
    assert (np.sort(order, axis=1) == np.arange(6)).all()
    assert (mixed[order] == mixed).all()
    assert len(np.unique(order, axis=0)) > 20


def test_a_variant_more_that_tells_nothing_costs():
    rng = np.random.default_rng(2)
    y = rng.normal(size=20)
    x = np.concatenate([[y + 1.2 * rng.normal(size=20)], rng.normal(size=(40, 20))])
    alone = best_of_k(x[:1], y, generator=np.random.default_rng(0))
    many = best_of_k(x[:1].repeat(40, axis=0), y, generator=np.random.default_rng(0))
    assert alone.p == many.p  # copies of one measure are one measure
    assert best_of_k(x, y, generator=np.random.default_rng(0)).p > 3 * alone.p


def test_what_chance_alone_gives_is_as_rare_as_it_says():
    rng = np.random.default_rng(3)
    p = []
    for _ in range(200):
        common = rng.normal(size=(1, 14))
        x = common + rng.normal(size=(6, 14))  # variants of one measure
        x[0, :8] = np.nan  # one of few configurations, which alone would often be the strongest
        p.append(best_of_k(x, np.round(rng.normal(size=14), 1), permutations=199, generator=rng).p)
    assert (np.array(p) <= 0.05).mean() == pytest.approx(0.05, abs=0.035)
    assert (np.array(p) <= 0.5).mean() == pytest.approx(0.5, abs=0.11)


def test_a_measure_of_few_configurations_does_not_hide_the_strongest():
    rng = np.random.default_rng(4)
    y = np.arange(30.0)
    x = np.stack([y + 3 * rng.normal(size=30), np.where(y < 5, rng.normal(size=30), np.nan)])
    found = best_of_k(x, y, permutations=999)
    assert (found.place, found.p) == (0, 0.001)
    x[1, :3] = [1, 2, 3]
    x[1, 3:] = np.nan  # a perfect order of three
    assert best_of_k(x, y, permutations=999).place == 0


def test_many_pairs_give_way_to_ranks(monkeypatch):
    rng = np.random.default_rng(5)
    y = np.round(rng.normal(size=60), 1)
    x = np.round(rng.normal(size=(3, 60)), 1) + 0.25 * y
    cells = np.repeat([0, 1, 2], 20)
    for inside in (None, cells):
        exact = best_of_k(x, y, cells=inside, generator=np.random.default_rng(0))
        with monkeypatch.context() as change:
            change.setattr(families, "EXACT_PAIRS", 10)
            close = best_of_k(x, y, cells=inside, generator=np.random.default_rng(0))
        assert (close.place, close.value) == (exact.place, exact.value)
        assert close.p == pytest.approx(exact.p, rel=0.15, abs=0.01)
        assert 0.001 < exact.p < 0.4


def test_nothing_to_choose_from():
    found = best_of_k(np.ones((2, 6)), np.arange(6.0))
    assert found.place == -1
    assert np.isnan([found.value, found.p]).all()
    assert np.isnan(best_of_k(X, Y, permutations=0).p)


def test_who_stands_for_a_family():
    taken = ["hessian_trace", "m_sharpness[m=4]", "m_sharpness[m=16]", "top_eigenvalue"]
    assert representative("sharpness", taken, {}) == ("top_eigenvalue", "")
    assert representative("sharpness", taken, {"sharpness": "m_sharpness[m=16]"}) == ("m_sharpness[m=16]", "")
    name, remark = representative("sharpness", taken, {"sharpness": "m_sharpness"})
    assert (name, remark) == ("m_sharpness[m=4]", "m_sharpness has 2 variants, its first stands for it")
    assert representative("sharpness", taken[:1], {"sharpness": "top_eigenvalue"})[0] == ""
    assert (
        "top_eigenvalue was not measured" in representative("sharpness", taken[:1], {"sharpness": "top_eigenvalue"})[1]
    )
    assert "name one in the study" in representative("other", ["mine"], {})[1]


def test_every_usual_representative_is_a_measure_of_its_family():
    from analysis.measures.registry import entry_of
    from analysis.style import family

    for name, wanted in families.REPRESENTATIVES.items():
        for variant in wanted:
            assert entry_of(variant.partition("[")[0]) is not None, variant
            assert family(variant) == name, variant


def test_the_table_of_families():
    rng = np.random.default_rng(6)
    frames, configs = [], {}
    for c in range(24):
        level = rng.normal()
        for seed in range(2):
            rows = [
                Row("test_error", 0.3 + 0.1 * level + 0.5 * (c % 2), 0.01, 100, "test"),
                Row("top_eigenvalue", level + 0.3 * rng.normal()),
                *(Row("ascent_sharpness", rng.normal(), options={"rho": r}) for r in (0.1, 0.2)),
                Row("F_mi", rng.normal(), split="held_out", options={"provider": "obf"}),
                Row("mine", 1.0),
            ]
            frames.append(to_frame(rows, run_id=f"r{c}-{seed}", step=1, epoch=1))
            configs[f"r{c}-{seed}"] = {"method": "abcdef"[c // 4], "lr": c % 2, "seed": seed}
    long = join_config(pd.concat(frames, ignore_index=True), configs)
    found = correlate(
        long, draws=0, permutations=999, tables=["families"], representatives={"sharpness": "ascent_sharpness[rho=0.1]"}
    )
    table = found.families.set_index("family")
    assert table["variants"].to_dict() == {"sharpness": 3, "forgetting": 1, "other": 1}
    row = table.loc["sharpness"]
    pooled = found.table.query("coefficient == 'kendall'").set_index("measure")
    assert row["representative"] == "ascent_sharpness[rho=0.1]"
    assert row["value"] == pooled.loc["ascent_sharpness[rho=0.1]", "value"]
    assert row["p_of_representative"] == pooled.loc["ascent_sharpness[rho=0.1]", "p"]
    assert row["strongest"] == row["strongest_stratified"] == "top_eigenvalue"
    assert_allclose(row["strongest_value"], pooled.loc["top_eigenvalue", "value"], atol=1e-12)
    assert row["strongest_stratified_value"] > 0.6 > row["strongest_value"]
    assert row["best_of_k_p_stratified"] == 0.001
    assert table.loc["other", "strongest"] == ""  # constant
    assert "no representative" in table.loc["other", "warnings"]
