import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from analysis.statistics.correlation import COLUMNS, NO_CELL, Correlations, correlate, units
from analysis.statistics.correlation_rows import TOO_FEW
from analysis.statistics.resampling import holm
from analysis.statistics.units import without_rounding
from analysis.table import Row
from tests.analysis.tables import table_of_runs

FEW = {"draws": 200, "permutations": 199, "tables": ()}

# Three methods inside which y falls with x, while it rises from method to method (Simpson's paradox).
SIMPSON_X = [1, 2, 3, 4, 4, 5, 6, 7, 7, 8, 9, 10]
SIMPSON_Y = [4, 3.5, 2.5, 2, 7, 6, 6, 4.5, 10, 9, 9, 8]


def table(values, configs, *, options=None):
    """Long table from {run: {measure: value}}; targets on the test split, options for measures that have some."""
    rows = {
        run: [
            Row(
                name, value, split="test" if name.startswith("test") else "train", options=(options or {}).get(name, {})
            )
            for name, value in row.items()
        ]
        for run, row in values.items()
    }
    return table_of_runs(rows, configs, step=10)


def simpson(seeds=1):
    values, configs = {}, {}
    for k, (x, y) in enumerate(zip(SIMPSON_X, SIMPSON_Y, strict=True)):
        for seed in range(seeds):
            wiggle = 0.1 * (seed - (seeds - 1) / 2)
            values[f"run{k:02d}-{seed}"] = {"flat": x + wiggle, "other": float(k % 5), "test_error": y - wiggle}
            configs[f"run{k:02d}-{seed}"] = {"method": "abc"[k // 4], "lr": k % 4, "seed": seed}
    return table(values, configs)


def noisy(n=16, seeds=3, measures=4, seed=0):
    rng = np.random.default_rng(seed)
    values, configs = {}, {}
    for c in range(n):
        level = rng.normal()
        for s in range(seeds):
            row = {f"m{k}": level + (k + 1) * rng.normal() for k in range(measures)}
            values[f"r{c}-{s}"] = {**row, "test_error": level + 0.3 * rng.normal(), "gap_error": rng.normal()}
            configs[f"r{c}-{s}"] = {"method": ["sgd", "sam"][c % 2], "lr": 0.1 * (c // 2), "seed": s}
    return table(values, configs)


def row(found, measure="flat", coefficient="kendall", target="test_error"):
    rows = found.table.query("measure == @measure and target == @target and coefficient == @coefficient")
    assert len(rows) == 1
    return rows.iloc[0]


def per_configuration(long, name):
    """Mean over seeds, the slow and obvious way."""
    rows = long[long["measure"] == name].assign(value=lambda t: t["value"].where(np.isfinite(t["value"])))
    return rows.groupby(["hp.method", "hp.lr"])["value"].mean()


@pytest.mark.parametrize("seeds", [1, 2])
def test_reversal_between_pooled_and_within_is_flagged(seeds):
    found = correlate(simpson(seeds), **FEW)
    kendall = row(found)
    assert kendall["value"] == pytest.approx(0.46875, abs=1e-12)
    assert kendall["within"] == pytest.approx(-0.9419139528, abs=1e-9)
    assert (kendall["n_configurations"], kendall["n_runs"], kendall["groups"]) == (12, 12 * seeds, 3)
    assert kendall["reversal"]
    assert kendall["within_high"] < 0
    assert row(found, coefficient="spearman")["value"] == pytest.approx(0.7535211268, abs=1e-9)
    assert row(found, coefficient="pearson")["value"] == pytest.approx(0.7414275563, abs=1e-9)
    assert list(found.table.columns) == list(COLUMNS)


def test_no_flag_where_signs_agree_or_there_is_no_sign():
    values = {f"r{k}": {"same": float(k), "test_error": float(k)} for k in range(8)}
    values = {run: {**v, "even": [1.0, -1, -1, 1][k % 4]} for k, (run, v) in enumerate(values.items())}
    configs = {f"r{k}": {"method": "ab"[k // 4], "lr": k, "seed": 0} for k in range(8)}
    found = correlate(table(values, configs), **FEW)
    assert not found.table["reversal"].any()
    assert row(found, "even")["value"] == pytest.approx(0.0, abs=1e-15)


def test_every_value_is_scipys_over_seed_means():
    long = noisy()
    found = correlate(long, **FEW)
    plain = {"kendall": stats.kendalltau, "spearman": stats.spearmanr, "pearson": stats.pearsonr}
    assert len(found.table) == 4 * 2 * 3
    for _, r in found.table.iterrows():
        x, y = per_configuration(long, r["measure"]), per_configuration(long, r["target"])
        f = plain[r["coefficient"]]
        assert r["value"] == pytest.approx(f(x, y)[0], abs=1e-10)
        inside = [f(x[m], y[m])[0] for m in ("sam", "sgd")]
        assert r["within"] == pytest.approx(np.mean(inside), abs=1e-10)
        assert r["low"] <= r["value"] <= r["high"]
        assert r["within_low"] <= r["within"] <= r["within_high"]
        assert r["warnings"] in TOO_FEW[""]  # two methods


def test_pvalues_agree_with_scipy_and_are_corrected_over_measures():
    long = noisy(n=20)
    long["hp.lr"] = long["run_id"].str.extract(r"r(\d+)", expand=False).astype(float)  # each in a cell of its own
    found = correlate(long, draws=0, permutations=9999, tables=())
    for (target, name), rows in found.table.groupby(["target", "coefficient"]):
        assert (rows["p_adjusted"] >= rows["p"]).all()
        assert (rows.sort_values("value", key=abs, ascending=False)["p_adjusted"].diff().dropna() >= 0).all()
        assert (rows["p_adjusted"] <= holm(rows["p"].to_numpy()) + 0.01).all()
        assert len(rows) == 4
        for _, r in rows.iterrows():
            x, y = per_configuration(long, r["measure"]), per_configuration(long, target)
            plain = {"kendall": stats.kendalltau, "spearman": stats.spearmanr, "pearson": stats.pearsonr}[name]
            # Student's t is an approximation to the permutation distribution; at 20 units good to a few hundredths.
            assert r["p"] == pytest.approx(plain(x, y)[1], abs=0.03)
    assert found.table[["low", "high"]].isna().all(axis=None)


def test_few_configurations_are_enumerated():
    values = {f"r{k}": {"flat": float(k), "test_error": y} for k, y in enumerate([1.0, 3, 2, 5, 4])}
    configs = {f"r{k}": {"method": "sgd", "lr": k, "seed": 0} for k in range(5)}
    found = row(correlate(table(values, configs)))
    assert found["value"] == pytest.approx(0.6, abs=1e-14)
    assert found["p"] == pytest.approx(28 / 120, abs=1e-14)
    assert np.isfinite(found["low"])


def test_below_five_configurations_values_but_no_claims():
    long = noisy(n=4)
    found = correlate(long, compare=[("m0", "m1")], **FEW)
    assert np.isfinite(found.table["value"]).all()
    assert found.table[["low", "high", "p", "p_adjusted", "within_low", "within_high"]].isna().all(axis=None)
    assert (found.table["warnings"] == "fewer than 5 configurations: no claim").all()
    assert found.comparisons["low"].isna().all()
    assert found.comparisons["warnings"].str.contains("fewer than 5 configurations: no claim").all()
    assert found.warnings[0] == "4 configurations: fewer than 5 configurations: no claim"


def test_runs_that_are_not_finite_are_dropped_and_counted():
    long = noisy()
    missing = long["run_id"].isin(["r0-0", "r0-1", "r0-2"]) & (long["measure"] == "m0")  # a whole configuration
    long.loc[missing, "value"] = [np.nan, np.inf, -np.inf]
    long.loc[(long["run_id"] == "r1-0") & (long["measure"] == "m0"), "value"] = np.nan  # one seed of three
    diverged = (long["run_id"] == "r2-1") & long["measure"].isin(["test_error", "gap_error"])
    long.loc[diverged, "value"] = np.nan
    found = correlate(long, **FEW)
    m0, m1 = row(found, "m0"), row(found, "m1")
    assert (m0["n_configurations"], m0["dropped"], m0["n_runs"]) == (15, 1, 48 - 3 - 1 - 1)
    assert (m1["n_configurations"], m1["dropped"], m1["n_runs"]) == (16, 0, 47)
    lost = "1 of 48 runs have no finite target (diverged, or not measured) and are left out"
    assert found.warnings == [NO_CELL, lost]
    # Measure and target are averaged over the same runs.
    both = long[long["run_id"] != "r2-1"]
    x, y = per_configuration(both, "m1"), per_configuration(both, "test_error")
    assert m1["value"] == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)
    both = both[~both["run_id"].isin(["r0-0", "r0-1", "r0-2", "r1-0"])]
    x, y = per_configuration(both, "m0"), per_configuration(both, "test_error")
    assert m0["value"] == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)


def test_measure_without_any_finite_run():
    long = noisy()
    long.loc[long["measure"] == "m0", "value"] = np.nan
    found = row(correlate(long, **FEW), "m0")
    assert (found["n_configurations"], found["n_runs"], found["dropped"], found["groups"]) == (0, 0, 16, 0)
    assert np.isnan(found[["value", "low", "p", "p_adjusted", "within"]].astype(float)).all()
    assert found["warnings"].startswith("no run in which both are finite")


@pytest.mark.parametrize(("name", "remark"), [("m0", "constant measure"), ("test_error", "constant target")])
def test_constants_are_rows_that_say_so(name, remark):
    long = noisy()
    long.loc[long["measure"] == name, "value"] = 0.1
    found = correlate(long, **FEW)
    rows = found.table[(found.table["measure"] == name) | (found.table["target"] == name)]
    assert rows[["value", "low", "high", "p", "p_adjusted", "within", "within_low"]].isna().all(axis=None)
    assert (rows["warnings"] == remark).all()
    assert np.isfinite(found.table.drop(rows.index)[["value", "low", "p", "p_adjusted"]]).all(axis=None)


def test_rates_that_are_equal_stay_tied_whatever_their_seeds():
    rates = [(0.1, 0.2, 0.3), (0.3, 0.2, 0.1), (0.2, 0.2, 0.2), (0.05, 0.2, 0.35), (0.4, 0.4, 0.4), (0.5, 0.4, 0.3)]
    values, configs = {}, {}
    for c, seeds in enumerate(rates):
        for s, rate in enumerate(seeds):
            values[f"r{c}-{s}"] = {"flat": float(c > 3), "test_error": rate}
            configs[f"r{c}-{s}"] = {"method": "sgd", "lr": c, "seed": s}
    assert row(correlate(table(values, configs), **FEW))["value"] == 1.0


def test_ties_everywhere():
    values = {f"r{k}": {"flat": float(k == 0), "test_error": float(k == 7)} for k in range(8)}
    configs = {f"r{k}": {"method": "ab"[k % 2], "lr": k, "seed": 0} for k in range(8)}
    found = row(correlate(table(values, configs)))
    assert found["value"] == pytest.approx(-1 / 7, abs=1e-14)
    assert found["p"] == 1.0
    assert found["groups"] == 0  # inside a method one of the two is constant
    assert np.isnan(found["within"])


def test_one_method_is_its_own_within():
    long = noisy()
    long["hp.method"] = "sam"
    long["hp.lr"] = long["run_id"].str.split("-").str[0]
    found = correlate(long, **FEW)
    for end in ("", "_low", "_high"):
        assert_allclose(found.table[f"within{end}"], found.table[end[1:] or "value"], atol=0)
    assert "one method: within it and pooled are the same" in found.warnings


def test_one_seed_has_no_ceiling_and_says_why():
    found = correlate(noisy(seeds=1), **FEW)
    assert found.ceilings[["split_half", "spearman_brown", "oracle_with_noise"]].isna().all(axis=None)
    assert found.ceilings["warnings"].str.contains("one seed a configuration").all()
    assert any("no noise ceiling" in w for w in found.warnings)


def test_ceilings_of_a_target_with_little_noise_and_of_noise():
    ceilings = correlate(noisy(), **FEW).ceilings.set_index(["target", "coefficient"])
    assert len(ceilings) == 6
    assert ceilings.loc[("test_error", "pearson"), "split_half"] > 0.8
    assert ceilings.loc[("test_error", "kendall"), "oracle_with_noise"] > 0.7
    assert abs(ceilings.loc[("gap_error", "pearson"), "split_half"]) < 0.4
    assert (ceilings["n_configurations"] == 16).all()


def test_comparison_of_two_measures():
    long = noisy(n=30)
    long.loc[(long["run_id"].str.startswith("r3-")) & (long["measure"] == "m2"), "value"] = np.nan
    found = correlate(long, compare=[("m0", "m2"), ("m2", "m0")], targets=["test_error"], **FEW).comparisons
    x, z, y = (per_configuration(long, name) for name in ("m0", "m2", "test_error"))
    used = z.notna()
    a, b = (stats.kendalltau(m[used], y[used]).statistic for m in (x, z))
    assert (found["pairs"].tolist(), found["draws"].tolist()) == (["pooled", "stratified"] * 2, [1, 0, 1, 0])
    found = found[found["pairs"] == "pooled"]
    first = found.iloc[0]
    assert first["n_configurations"] == 29
    assert_allclose([first["tau_forgetting"], first["tau_sharpness"]], [a, b], atol=1e-12)
    assert first["difference"] == pytest.approx(abs(a) - abs(b), abs=1e-12)
    assert first["low"] < first["difference"] < first["high"]
    assert_allclose(found["low"], -found["high"][::-1], atol=1e-12)


def test_no_comparison_is_an_empty_table_with_its_columns():
    found = correlate(noisy(), **FEW).comparisons
    assert found.empty
    assert list(found.columns)[:4] == ["forgetting", "sharpness", "target", "pairs"]


def same(a, b):
    assert isinstance(a, Correlations)
    for name in ("table", "comparisons", "ceilings"):
        pd.testing.assert_frame_equal(getattr(a, name), getattr(b, name))


def test_seed_decides_and_the_order_of_rows_does_not():
    long = noisy()
    first = correlate(long, compare=[("m0", "m1")], **FEW)
    same(first, correlate(long, compare=[("m0", "m1")], **FEW))
    same(first, correlate(long.sample(frac=1, random_state=1), compare=[("m0", "m1")], **FEW))
    other = correlate(long, seed=1, **FEW)
    assert (first.table["p"] != other.table["p"]).any()
    assert_allclose(first.table["low"], other.table["low"], atol=0)  # the jackknife has no randomness
    assert_allclose(first.table["value"], other.table["value"], atol=0)


def test_another_measure_changes_nothing_but_the_correction(monkeypatch):
    long = noisy()
    whole, part = correlate(long, **FEW), correlate(long, measures=["m1"], targets=["gap_error"], **FEW)
    monkeypatch.setattr("analysis.statistics.coefficients._ROWS", 1000)  # and so do the blocks
    blocked = correlate(long, **FEW)
    pd.testing.assert_frame_equal(blocked.table, whole.table)
    rows = whole.table.query("measure == 'm1' and target == 'gap_error'").reset_index(drop=True)
    corrected = ["p_adjusted", "stratified_p_adjusted", "p_bh"]
    pd.testing.assert_frame_equal(part.table.drop(columns=corrected), rows.drop(columns=corrected))
    assert (part.table["p_adjusted"] == part.table["p"]).all()


def test_the_caller_s_table_is_left_alone():
    long = noisy()
    before = long.copy(deep=True)
    correlate(long, **FEW)
    pd.testing.assert_frame_equal(long, before)


def test_names_of_measures_stand_for_their_variants():
    long = noisy(measures=2)
    extra = [long[long["measure"] == m].assign(options='{"rho": 0.1}') for m in ("m0", "gap_error")]
    long = pd.concat([long, *extra], ignore_index=True)

    def pairs(**options):
        rows = correlate(long, **options, **FEW).table
        return set(rows["measure"]), set(rows["target"])

    whole = {"test_error", "gap_error", "gap_error[rho=0.1]"}
    assert pairs() == ({"m0", "m0[rho=0.1]", "m1"}, whole)
    assert pairs(measures=["m0", "m0[rho=0.1]"])[0] == {"m0", "m0[rho=0.1]"}
    assert pairs(measures=["m0"], targets=["gap_error"]) == ({"m0"}, {"gap_error"})  # exact names of variants
    assert pairs(exclude=["m0"])[0] == {"m1"}
    assert pairs(exclude=["m0[rho=0.1]"])[0] == {"m0", "m1"}
    long = long[~((long["measure"] == "m0") & (long["options"] == "{}"))]
    assert pairs(measures=["m0"])[0] == {"m0[rho=0.1]"}
    with pytest.raises(ValueError, match=r"`compare` names 'test', which is not in the table. There are"):
        correlate(long, compare=[("m0", "test")], **FEW)


def test_a_name_for_two_variants_is_no_side_of_a_comparison():
    long = noisy(measures=2)
    long.loc[long["measure"] == "m0", "options"] = '{"rho": 0.1}'
    extra = long[long["measure"] == "m0"].assign(options='{"rho": 0.2}')
    with pytest.raises(
        ValueError, match=r"`compare` names 'm0', which stands for \['m0\[rho=0.1\]', 'm0\[rho=0.2\]'\]"
    ):
        correlate(pd.concat([long, extra], ignore_index=True), compare=[("m0", "m1")], **FEW)


def test_targets_and_controls_are_no_measures_unless_asked_for():
    long = noisy(measures=2)
    control = long[long["measure"] == "m0"].assign(measure="train_loss")
    long = pd.concat([long, control], ignore_index=True)
    assert set(candidates(correlate(long, **FEW))["measure"]) == {"m0", "m1"}
    assert set(candidates(correlate(long, exclude=["m1"], **FEW))["measure"]) == {"m0"}
    assert set(candidates(correlate(long, targets=["gap_error"], **FEW))["measure"]) == {"m0", "m1"}
    asked = correlate(long, measures=["train_loss", "test_error"], targets=["test_error"], **FEW)
    assert set(asked.table["measure"]) == {"train_loss"}  # nothing is correlated with itself


def candidates(found):
    return found.table[found.table["role"] == "candidate"]


def test_baselines_are_always_there_and_are_not_corrected_for():
    long = noisy(measures=2)
    control = long[long["measure"] == "m0"].assign(measure="validation_error", split="test")
    whole = pd.concat([long, control], ignore_index=True)
    found, plain = correlate(whole, measures=["m1"], **FEW).table, correlate(long, measures=["m1"], **FEW).table
    assert found.groupby("measure")["role"].first().to_dict() == {"m1": "candidate", "validation_error": "baseline"}
    rows = found[found["measure"] == "m1"].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, plain)  # a baseline changes nothing, corrections included
    judged = found[found["role"] == "baseline"]
    assert np.isfinite(judged["p"]).all()
    assert judged[["p_adjusted", "p_bh"]].isna().all(axis=None)
    assert "validation_error" not in set(correlate(whole, targets=["validation_error"], **FEW).table["measure"])


def test_methods_join_their_ascent():
    long = noisy()
    assert units(long).methods.count("sam") == 8
    long["hp.ascent"] = np.where(long["hp.lr"] > 0.4, "obf", None)
    found = units(long)
    assert sorted(set(found.methods)) == ["sam", "sam+obf", "sgd", "sgd+obf"]
    assert sorted(set(units(long, group="hp.method").methods)) == ["sam", "sgd"]
    assert set(units(long, group=[]).methods) == {"all"}
    assert len(found.methods) == 16
    assert len(units(long, seed_column="hp.none").methods) == 48


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measures": ["m9"]}, r"`measures` names 'm9', which is not in the table\. There are"),
        ({"targets": ["test_eror"]}, "`targets` names 'test_eror', .* Did you mean 'test_error'"),
        ({"compare": [("m0", "zzzz")]}, r"`compare` names 'zzzz', which is not in the table. There are \["),
        ({"group": "hp.metod"}, "`group` names 'hp.metod', .* Did you mean 'hp.method'"),
        ({"draws": -1}, "`draws` must be a whole number of resamples"),
        ({"permutations": -1}, "`permutations` must be a whole number"),
        ({"draws": 2.5}, "`draws` must be a whole number .* got 2.5"),
        ({"permutations": 10**12}, r"`permutations` must be a whole number .* <= 1,000,000, got 1000000000000"),
        ({"seed": -1}, "`seed` must be a whole number >= 0, got -1"),
        ({"level": 95}, "`level` must lie inside"),
        ({"targets": "test_error"}, r"`targets` must be a list of names, such as \['test_error'\]"),
        ({"group": 3}, "`group` must be a list of names"),
        ({"compare": ("m0", "m1")}, r"`compare` must be a list of pairs of names"),
        ({"compare": [("m0", "m0")]}, "`compare` names 'm0' twice in a pair"),
        ({"compare": [("m0", "test_error")]}, "`compare` names 'test_error', which is a target"),
        (
            {"measures": ["test_error"], "targets": ["test_error"]},
            "`measures` names 'test_error', which is the only target",
        ),
        ({"exclude": ["m00"]}, "`exclude` names 'm00', which is not in the table. Did you mean 'm0'"),
        ({"representatives": {"sharpnes": "m0"}}, "`representatives` names 'sharpnes', .* Did you mean 'sharpness'"),
        ({"representatives": {"sharpness": "F_mi"}}, "`representatives` names 'F_mi' for sharpness, but it is of"),
        ({"representatives": {"sharpness": 3}}, "`representatives` must name a measure for sharpness, got 3"),
        ({"targets": ["m0", "m1"], "exclude": ["m2", "m3"]}, "`table` has no measure besides the targets"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        correlate(noisy(), **options)


def test_bad_tables_are_named():
    long = noisy()
    with pytest.raises(ValueError, match=r"`table` must have rows and `hp.\*` columns"):
        correlate(long.drop(columns=[c for c in long if c.startswith("hp.")]))
    with pytest.raises(ValueError, match=r"`table` must have rows"):
        correlate(long.iloc[:0])
    with pytest.raises(ValueError, match=r"`table` has none of the targets \['test_error'"):
        correlate(long[~long["measure"].isin(["test_error", "gap_error"])])
    lost = long.copy()
    lost.loc[lost["run_id"] == "r3-1", ["hp.method", "hp.lr", "hp.seed"]] = None
    with pytest.raises(ValueError, match=r"`table` has runs without a configuration, \['r3-1'\]"):
        correlate(lost)


def test_values_that_did_not_converge_and_what_was_said_of_a_target_are_repeated():
    long = noisy()
    loose = (long["measure"] == "m0") & long["run_id"].isin(["r0-0", "r1-0", "r2-0"])
    long.loc[loose, "converged"] = False
    long.loc[(long["run_id"] == "r2-0") & (long["measure"] == "gap_error"), "value"] = np.nan
    twice = "7 of 100 test examples are in the training data too"
    long.loc[(long["measure"] == "test_error") & long["run_id"].str.endswith("-1"), "warnings"] = twice
    found = correlate(long, **FEW)
    assert row(found, "m0")["warnings"].startswith("3 of 48 values did not converge")
    assert row(found, "m0", target="gap_error")["warnings"] == "2 of 47 values did not converge"
    assert row(found, "m1")["warnings"] in TOO_FEW[""]
    assert found.warnings == [NO_CELL, f"test_error: {twice} (16 of 48 runs)"]
    assert row(found, "m0")["warned"] == pytest.approx(3 / 48)
    assert row(found, "m0")["warned_as"] == "did not converge (6 %)"
    assert (row(found, "m1")["warned"], row(found, "m1")["warned_as"]) == (0.0, "")


def crossed(seed=0, *, cells=4, variants=7, seeds=2):
    """Rates crossed with methods: `flat` rises with the error inside every rate, and falls from one to the next."""
    rng = np.random.default_rng(seed)
    values, configs = {}, {}
    for c in range(cells):
        for v in range(variants):
            inside = rng.normal()
            for s in range(seeds):
                run = f"r{c}-{v}-{s}"
                values[run] = {
                    "flat": inside - 3.0 * c + 0.1 * rng.normal(),
                    "rate": float(c),
                    "test_error": 0.2 + 0.01 * inside + 0.02 * c + 0.001 * rng.normal(),
                }
                configs[run] = {"method": f"v{v}", "rho": 0.1 * v, "lr": 0.1 * (c + 1), "seed": s}
    return table(values, configs)


def test_holding_the_hyper_parameters_fixed_turns_a_coefficient_round():
    long = crossed()
    found = correlate(long, **FEW)
    flat = row(found)
    mean = long.groupby(["measure", "hp.lr", "hp.method"])["value"].mean().unstack("measure")
    inside = [stats.kendalltau(g["flat"], g["test_error"]).statistic for _, g in mean.groupby("hp.lr")]
    assert flat["stratified"] == pytest.approx(np.mean(inside), abs=1e-12)  # equal cells without ties
    assert flat["stratified_mean"] == pytest.approx(np.mean(inside), abs=1e-12)
    assert flat["value"] < 0 < flat["stratified_low"] < flat["stratified"] < flat["stratified_high"]
    assert (flat["cells"], flat["cells_dropped"], flat["cell_reversal"]) == (4, 0, True)
    assert flat["stratified_p"] == flat["stratified_p_floor"] == 1 / 200
    rate = row(found, "rate")
    assert rate["value"] > 0.8  # and inside a cell it says nothing
    assert rate[["stratified", "stratified_p", "stratified_low"]].isna().all()
    other = found.table[found.table["coefficient"] != "kendall"]
    assert other[["stratified", "stratified_p", "stratified_low"]].isna().all(axis=None)


def test_a_reversal_by_hyper_parameters_is_seen_where_the_pooled_interval_holds_zero():
    rng = np.random.default_rng(1)
    values, configs = {}, {}
    for c in range(4):
        for v in range(8):
            inside = rng.normal()
            shift = (0.0, 6.0, 0.0, 6.0)[c]  # the level of the measure has nothing to do with that of the error
            values[f"r{c}-{v}"] = {"flat": inside + shift, "test_error": inside + 6.0 * (c > 1)}
            configs[f"r{c}-{v}"] = {"method": f"v{v}", "lr": c, "seed": 0}
    flat = row(correlate(table(values, configs), **FEW))
    assert flat["low"] < 0 < flat["high"]
    assert flat["stratified"] == 1.0
    assert flat["cell_reversal"]


def by_methods(seed, *, share_x, share_y, methods=8, size=6):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, methods))
    values, configs = {}, {}
    for m in range(methods):
        for k in range(size):
            values[f"r{m}-{k}"] = {
                "flat": np.sqrt(share_x) * a[m] + np.sqrt(1 - share_x) * rng.normal(),
                "test_error": np.sqrt(share_y) * b[m] + np.sqrt(1 - share_y) * rng.normal(),
            }
            configs[f"r{m}-{k}"] = {"method": f"v{m}", "lr": k, "seed": 0}
    return table(values, configs)


def test_what_differs_by_method_is_permuted_inside_methods_and_said():
    both = correlate(by_methods(0, share_x=0.8, share_y=0.8), **FEW)
    one = correlate(by_methods(0, share_x=0.8, share_y=0.0), **FEW)
    assert (both.table["permuted"] == "inside methods").all()
    assert (one.table["permuted"] == "freely").all()
    kendall = row(both)
    assert kendall["high"] - kendall["low"] > row(one)["high"] - row(one)["low"]  # over methods
    few = correlate(noisy(n=4), **FEW)
    assert (few.table["permuted"] == "").all()


def test_a_configuration_that_is_alone_in_its_method_is_said():
    long = by_methods(0, share_x=0.8, share_y=0.8)
    alone = long["run_id"].isin(["r0-0", *(f"r{m}-{k}" for m in range(1, 8) for k in range(6))])
    said = "1 of 43 configurations are alone in their method: never permuted"
    assert said in row(correlate(long[alone], **FEW))["warnings"]
    assert "alone" not in row(correlate(long, **FEW))["warnings"]


def test_what_differs_by_variant_inside_cells_is_permuted_by_whole_variants():
    both, one = (row(correlate(by_methods(0, share_x=0.8, share_y=share), **FEW)) for share in (0.8, 0.0))
    assert both["stratified_permuted"] == "complete variants"
    assert one["stratified_permuted"] == "inside cells"
    assert both["stratified_low"] < both["stratified"] < both["stratified_high"]
    assert both["stratified_high"] - both["stratified_low"] > one["stratified_high"] - one["stratified_low"]
    few = row(correlate(by_methods(0, share_x=0.8, share_y=0.8, methods=4), **FEW))
    assert few["stratified_p_floor"] == 1 / 24  # of four variants
    assert few["stratified_p"] in np.arange(1, 25) / 24  # all of them, not a sample


@pytest.mark.parametrize("kind", ["bca", "percentile"])
def test_other_intervals_are_over_methods_too(kind):
    found = row(correlate(by_methods(0, share_x=0.8, share_y=0.8), interval=kind, **FEW))
    assert found["low"] < found["value"] < found["high"]
    assert found["high"] - found["low"] > 0.3


def test_holm_remains_a_choice():
    found = correlate(noisy(), correction="holm", **FEW).table
    assert (found["correction"] == "holm").all()
    for _, rows in found.groupby(["target", "coefficient"]):
        assert_allclose(rows["p_adjusted"], holm(rows["p"].to_numpy()), atol=0)


def test_measures_that_differ_by_rounding_alone_are_constant():
    long = noisy(n=16)
    radius = long["measure"] == "m0"
    rng = np.random.default_rng(0)
    long.loc[radius, "value"] = np.float32(0.05) * (1 + 3e-7 * rng.normal(size=radius.sum()))
    small = long["measure"] == "m1"
    long.loc[small, "value"] = 1 + 1e-4 * long.loc[small, "value"]
    found = correlate(long, **FEW)
    assert row(found, "m0")["warnings"] == "constant measure"
    assert np.isnan(row(found, "m0")["value"])
    assert row(found, "m1")["value"] == row(correlate(noisy(n=16), **FEW), "m1")["value"]


def test_rounding_is_taken_off_and_nothing_else():
    x = np.array(
        [
            [0.05, 0.05 * (1 + 5e-7), 0.05 * (1 - 3e-7), 0.1, 0.1 * (1 + 4e-7)],
            [1.0, 1 + 2e-6, 1 + 4e-6, 1 + 6e-6, 1 + 8e-6],  # small steps, but steps
            [1e6, 1e6 + 1, 1e6 + 2, 1e6, 1e6 + 1],  # counts are exact
            [-3.0, -3.0 * (1 + 2e-7), np.nan, 0.0, 1e-9],
            1 + 3e-7 * np.arange(5.0),  # a dense row does not run together
        ]
    )
    found = without_rounding(x)
    assert [len(set(row[np.isfinite(row)])) for row in found] == [2, 5, 3, 3, 2]
    assert_allclose(found, x, rtol=2.0**-20)
    assert_allclose(without_rounding(found), found, atol=0)


def test_kinds_of_warnings_have_their_shares():
    long = noisy()
    some = (long["measure"] == "m0") & long["run_id"].str.endswith("-0")
    long.loc[some, "warnings"] = [f"only {k} examples of a class; no root" if k % 2 else f"only {k} examples of a class"
                                  for k in range(int(some.sum()))]  # fmt: skip
    found = row(correlate(long, **FEW), "m0")
    assert found["warned"] == pytest.approx(1 / 3)
    assert found["warned_as"] == "few examples of a class (33 %); no root (17 %)"


def test_a_target_without_a_finite_value_leaves_the_others_as_they_are():
    long = noisy()
    none = long[long["measure"] == "test_error"].assign(measure="gap_loss", value=np.nan)
    alone, both = (correlate(t, **FEW).table for t in (long, pd.concat([long, none], ignore_index=True)))
    rows = both[both["target"] == "gap_loss"]
    assert rows[["value", "p", "stratified_p"]].isna().all(axis=None)
    assert rows["warnings"].str.startswith("no run in which both are finite").all()
    kept = both[both["target"] != "gap_loss"].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept[["measure", "target", "p"]], alone[["measure", "target", "p"]])


def test_two_methods_give_no_interval_over_methods_and_say_so():
    x = [0.33, 3.58, 0.63, 2.05, 1, 3.82, -0.66, 2.05]
    y = [-0.26, 3.32, -2.2, 2.68, -0.62, 0.68, 0.94, 4]
    values = {f"r{i}": {"a": x[i], "test_error": y[i]} for i in range(8)}
    configs = {f"r{i}": {"method": "sv"[i % 2], "lr": 0.1 * (i // 2), "seed": 0} for i in range(8)}
    found = correlate(table(values, configs), **FEW).table.iloc[0]
    assert found["permuted"] == "inside methods"
    assert found["low"] < found["value"] < found["high"]
    assert "two methods that differ in both: the interval is over configurations" in found["warnings"]


def settings(share, *, methods=6, each=4, cells=1, seed=0):
    """Methods with several settings in every cell; methods differ in measure and target, independently."""
    rng = np.random.default_rng(seed)
    values, configs = {}, {}
    for m, level in enumerate(rng.normal(size=(methods, 2))):
        for k, c in np.ndindex(each, cells):
            a, b = np.sqrt(share) * level + np.sqrt(1 - share) * rng.normal(size=2)
            values[f"r{m}-{k}-{c}"] = {"flat": a, "test_error": b}
            configs[f"r{m}-{k}-{c}"] = {"method": f"v{m}", "rho": k, "lr": c, "seed": 0}
    return table(values, configs)


def test_methods_with_several_settings_in_a_cell_change_places_with_all_of_them():
    both, none = (row(correlate(settings(s, cells=2, seed=2), **FEW)) for s in (0.9, 0.0))
    assert both["stratified_permuted"] == "complete methods"
    assert none["stratified_permuted"] != "complete methods"
    assert both["stratified_high"] - both["stratified_low"] > none["stratified_high"] - none["stratified_low"]
    two = row(correlate(settings(0.9, methods=2, seed=2), **FEW))
    assert "two methods that differ in both: inside cells the interval is over configurations" in two["warnings"]


def by_cells(share, *, cells=4, methods=7, alike=False, seed=1):
    """Every method once in every cell; cells differ in measure and target, alike or independently, and nothing else."""
    rng = np.random.default_rng(seed)
    values, configs = {}, {}
    for c, level in enumerate(rng.normal(size=(cells, 2))):
        for m in range(methods):
            a, b = np.sqrt(share) * level + np.sqrt(1 - share) * rng.normal(size=2)
            values[f"r{m}-{c}"] = {"flat": a, "test_error": b + 5 * level[0] * alike}
            configs[f"r{m}-{c}"] = {"method": f"v{m}", "lr": c, "seed": 0}
    return table(values, configs)


def test_a_measure_that_tells_cells_apart_has_as_many_values_as_there_are_cells():
    """Cells in the same order as in the target, and no more: free permutation of 28 would find p < 1e-4."""
    long = by_cells(0.95, alike=True)
    found = correlate(long, **FEW).table
    assert (found["permuted"] == "complete cells").all()
    kendall = found[found["coefficient"] == "kendall"].iloc[0]
    assert kendall["value"] > 0.6
    assert stats.kendalltau(*(per_configuration(long, name) for name in ("flat", "test_error"))).pvalue < 1e-4
    assert kendall["p"] > 0.02
    assert kendall["high"] - kendall["low"] > 0.5
    assert row(correlate(by_cells(0.0), **FEW))["permuted"] == "freely"
    two = row(correlate(by_cells(0.99, cells=2, seed=2), **FEW))
    assert "two cells that differ in both: the interval is over configurations" in two["warnings"]


@pytest.mark.parametrize("kind", ["bca", "percentile"])
def test_other_intervals_are_over_cells_and_methods_too(kind):
    found = row(correlate(by_cells(0.9), interval=kind, **FEW))
    assert found["low"] < found["value"] < found["high"]
    assert found["high"] - found["low"] > 0.5


def test_no_p_value_where_nothing_may_change_places():
    """Each cell has methods of its own, one setting each, and no two cells have the same ones."""
    rng = np.random.default_rng(0)
    names = ("ab", "bcd", "cde", "dea", "abe")
    values, configs = {}, {}
    for c, methods in enumerate(names):
        for m in methods:
            values[f"r{c}-{m}"] = {"flat": 10 * c + rng.normal(), "test_error": -10 * c + rng.normal()}
            configs[f"r{c}-{m}"] = {"method": m, "lr": c, "seed": 0}
    found = row(correlate(table(values, configs), **FEW))
    assert found["permuted"] == "complete cells"
    assert np.isnan([found["p"], found["p_adjusted"], found["p_floor"]]).all()
    assert "nothing may change places: no p-value" in found["warnings"]
    assert found["low"] < found["value"] < found["high"]


def test_tables_that_contradict_themselves_are_refused():
    long = noisy()
    for column in ("options", "step"):
        with pytest.raises(ValueError, match=rf"`table` lacks the columns \['{column}'\]: give the table that"):
            correlate(long.drop(columns=column), **FEW)
    twice = pd.concat([long, long.iloc[[0]].assign(value=9.0)])
    with pytest.raises(ValueError, match="`table` has 2 different rows of 'm0' for the run 'r0-0', with the options"):
        correlate(twice, **FEW)
    pd.testing.assert_frame_equal(
        correlate(pd.concat([long, long.iloc[[0]]]), **FEW).table, correlate(long, **FEW).table
    )
    other = long.copy()
    other.loc[0, "hp.lr"] = 77.0
    with pytest.raises(ValueError, match=r"`table` gives the run 'r0-0' several settings \[77.0, 0.0\] of 'hp.lr'"):
        correlate(other, **FEW)


def test_a_column_of_seeds_is_one_whatever_its_capital_letters():
    named = correlate(noisy().rename(columns={"hp.seed": "hp.Seed"}), **FEW).table
    pd.testing.assert_frame_equal(named, correlate(noisy(), **FEW).table)


def test_tables_say_that_a_target_has_no_value_rather_than_something_else():
    long = noisy()
    long.loc[long["measure"].isin(["test_error", "gap_error"]), "value"] = np.nan
    found = correlate(long, draws=20, permutations=19, compare=[("m0", "m1")], tables=["multilevel"])
    assert found.multilevel["warnings"].str.startswith("no run in which both are finite").all()
    assert not found.multilevel["warnings"].str.contains("constant").any()
    assert found.ceilings["warnings"].eq("no run in which the target is finite").all()
    assert found.comparisons["warnings"].str.startswith("no run in which all are finite").all()
