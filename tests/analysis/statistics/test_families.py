import numpy as np
from numpy.testing import assert_allclose

from analysis.statistics import families
from analysis.statistics.correlation import correlate
from analysis.statistics.families import representative
from analysis.table import Row
from tests.analysis.tables import table_of_runs


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
    rows, configs = {}, {}
    for c in range(24):
        level = rng.normal()
        for seed in range(2):
            rows[f"r{c}-{seed}"] = [
                Row("test_error", 0.3 + 0.1 * level + 0.5 * (c % 2), 0.01, 100, "test"),
                Row("top_eigenvalue", level + 0.3 * rng.normal()),
                *(Row("ascent_sharpness", rng.normal(), options={"rho": r}) for r in (0.1, 0.2)),
                Row("F_mi", rng.normal(), split="held_out", options={"provider": "obf"}),
                Row("mine", 1.0),
            ]
            configs[f"r{c}-{seed}"] = {"method": "abcdef"[c // 4], "lr": c % 2, "seed": seed}
    long = table_of_runs(rows, configs)
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
    alone = correlate(
        long, measures=["top_eigenvalue", "ascent_sharpness"], draws=0, permutations=999, tables=["families"]
    )
    sharpest = alone.table.query("coefficient == 'kendall'")  # of the family alone: the smallest is its best's
    row = alone.families.set_index("family").loc["sharpness"]
    assert row["best_of_k_p"] == sharpest["p_adjusted"].min() == table.loc["sharpness", "best_of_k_p"]
    assert row["best_of_k_p_stratified"] == sharpest["stratified_p_adjusted"].min()
    assert table.loc["other", "strongest"] == ""  # constant
    assert "no representative" in table.loc["other", "warnings"]
