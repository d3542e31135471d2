"""The further tables of `correlate`."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from analysis.statistics.catalogue import STATISTICS
from analysis.statistics.controls import baselines, hyper_parameters, usual
from analysis.statistics.correlation import correlate
from analysis.statistics.granulated import granulated_kendall
from analysis.statistics.information import conditional_information
from analysis.statistics.mixed import random_intercept
from analysis.statistics.partial import partial_correlation
from analysis.statistics.power import required_models
from analysis.statistics.prediction import leave_one_group_out
from analysis.statistics.sign_error import robust_sign_error
from analysis.statistics.slopes import simpson
from analysis.statistics.units import units
from analysis.table import Row
from tests.analysis.tables import table_of_runs

FEW = {"draws": 100, "permutations": 99}


def table(values, configs):
    """Long table from {run: {measure, or (measure, split, option, setting): value}}."""
    rows = {run: [] for run in values}
    for run, row in values.items():
        for key, value in row.items():
            measure, split, option, setting = key if isinstance(key, tuple) else (key, "train", "", None)
            split = "test" if measure.startswith("test") else split
            rows[run].append(Row(measure, value, split=split, options={option: setting} if option else {}, draws=1000))
    return table_of_runs(rows, configs)


def grid(seeds=2, seed=0, scale=0.05):
    """Three methods (SGD without radius), two learning rates, three decays."""
    rng = np.random.default_rng(seed)
    values, configs = {}, {}
    for method in ("sgd", "sam", "asam"):
        for lr in (0.1, 0.2):
            for decay in (0.0, 1e-4, 1e-3):
                level = rng.normal()
                for s in range(seeds):
                    run = f"{method}-{lr}-{decay}-{s}"
                    values[run] = {
                        "flat": level + 0.3 * rng.normal(),
                        "noise": rng.normal(),
                        ("size", "train", "rho", 0.1): level + rng.normal(),
                        ("size", "train", "rho", 0.2): level + 0.1 * rng.normal(),
                        ("F_mi", "held_out", "provider", "sam"): -level + rng.normal(),
                        ("dCE", "held_out", "provider", "sam"): level + rng.normal(),
                        "train_loss": rng.normal(),
                        "test_error": 0.3 + scale * level + 0.2 * scale * rng.normal(),
                    }
                    configs[run] = {"method": method, "lr": lr, "weight_decay": decay, "seed": s,
                                    "rho": None if method == "sgd" else 0.1}  # fmt: skip
    return table(values, configs)


def mean(long, name):
    rows = long[(long["measure"] == name)]
    return rows.groupby(["hp.method", "hp.lr", "hp.weight_decay"])["value"].mean()


LONG = grid()
FOUND = correlate(LONG, **FEW)


def one(frame, **where):
    for key, value in where.items():
        frame = frame[frame[key] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def test_every_table_is_there_with_its_warnings():
    for name in STATISTICS:
        frame = getattr(FOUND, name)
        assert len(frame), name
        assert frame["warnings"].map(type).eq(str).all(), name
    none = correlate(LONG, tables=(), **FEW)
    assert all(getattr(none, name).empty for name in STATISTICS)
    some = correlate(LONG, tables=["power"], **FEW)
    pd.testing.assert_frame_equal(some.power, FOUND.power)
    with pytest.raises(ValueError, match=r"`tables` must be one of .* got 'powr'. Did you mean 'power'"):
        correlate(LONG, tables=["powr"])
    with pytest.raises(ValueError, match="`interval` must be one of"):
        correlate(LONG, interval="normal")


def test_the_grid_statistics_are_those_of_the_seed_means():
    x, y = mean(LONG, "flat"), mean(LONG, "test_error")
    names = ["method", "lr", "weight_decay"]
    coordinates = {n: x.index.get_level_values(f"hp.{n}").tolist() for n in names}
    expected = granulated_kendall(x.to_numpy(), y.to_numpy(), coordinates)
    rows = FOUND.granulated.query("measure == 'flat'").set_index("axis")
    assert rows.loc["all", "psi"] == pytest.approx(expected.psi, abs=1e-12)
    assert rows.loc["all", "p"] < 0.05
    for name in names:
        assert rows.loc[name, "psi"] == pytest.approx(expected.axes[name].psi, abs=1e-12)
        assert rows.loc[name, "eligible_cells"] == expected.axes[name].eligible
    k = conditional_information(x.to_numpy(), y.to_numpy(), coordinates)
    row = one(FOUND.information, measure="flat")
    assert row["k"] == pytest.approx(k.value, abs=1e-12)
    assert row["subset"] == ("+".join(k.subset) or "none")
    assert row["sign_of_psi"] == 1.0
    assert row["fewest_pairs"] == k.subsets[k.subset].fewest
    assert 0 <= row["baseline"] < row["k"]
    assert row["excess"] == pytest.approx(row["k"] - row["baseline"])


def test_sign_errors_are_over_runs():
    runs = LONG.pivot_table(index="run_id", columns="measure", values="value", aggfunc="first")
    hyper = LONG.drop_duplicates("run_id").set_index("run_id").loc[runs.index]
    coordinates = {n: hyper[f"hp.{n}"].tolist() for n in ("method", "lr", "weight_decay")}
    x, y = runs["flat"].to_numpy(), runs["test_error"].to_numpy()
    expected = robust_sign_error(x, y, coordinates)
    for axis, e in expected.items():
        row = one(FOUND.sign_errors, measure="flat", axis=axis, weighting="equal")
        assert_allclose([row["mean"], row["p90"], row["max"]], [e.mean, e.p90, e.maximum], atol=1e-12)
    row = one(FOUND.sign_errors, measure="flat", axis="all", weighting="weighted")
    assert np.isnan(row["max"])  # two seeds give four pairs at most
    assert "no environment has 12 effective pairs of seeds (4 seeds" in row["warnings"]
    four = correlate(grid(seeds=4, scale=0.2), tables=["sign_errors"], **FEW).sign_errors
    row = one(four, measure="flat", axis="all", weighting="weighted")
    assert row["kept"] > 0
    assert row["max"] <= 1


def test_what_is_held_fixed_and_how():
    x, y = mean(LONG, "flat").to_numpy(), mean(LONG, "test_error").to_numpy()
    loss, lr = mean(LONG, "train_loss").to_numpy(), mean(LONG, "flat").index.get_level_values("hp.lr").to_numpy()
    for control, z in (("train_loss", loss[None]), ("lr", lr[None]), ("train_loss + lr", np.stack([loss, lr]))):
        rows = (
            FOUND.partial
            if " + " not in control
            else correlate(LONG, tables=["partial"], controls=[control], draws=1, permutations=0).partial
        )
        row = one(rows, measure="flat", control=control)
        expected = partial_correlation(x, y, z)
        assert_allclose(
            [row["value"], row["low"], row["high"]], [expected.value, expected.low, expected.high], atol=1e-10
        )
        assert row["coefficient"] == expected.coefficient
    # Each baseline and hyper-parameter, these together, and both together; a radius is the method's own.
    usual = {"train_loss", "lr", "weight_decay", "lr + weight_decay", "train_loss + lr + weight_decay"}
    assert set(FOUND.partial.query("measure == 'flat'")["control"]) == usual
    forgetting = FOUND.partial[FOUND.partial["measure"] == "F_mi[sam, held_out]"]
    assert set(forgetting["control"]) == {*usual, "dCE[sam, held_out]"}
    chosen = correlate(LONG, tables=["partial"], controls=["hp.lr", "noise"], **FEW).partial
    assert set(chosen["control"]) == {"lr", "noise"}
    with pytest.raises(ValueError, match=r"`controls` names 'lrr', which is not in the table. Did you mean 'lr'"):
        correlate(LONG, controls=["lrr + noise"], **FEW)


def baseline_runs(change=lambda _, row: row):
    """Twelve runs with every baseline, as the table of measures names them."""
    rng, values, configs = np.random.default_rng(0), {}, {}
    for k in range(12):
        loss, noise = rng.random(6), 1e-4 * rng.random()
        row = {
            "flat": loss[0] + rng.random(), "test_error": loss[0], "train_loss": loss[1], "train_error": loss[2],
            ("validation_error", "validation", "", None): loss[3], ("mean_entropy", "train", "", None): loss[4],
            ("mean_entropy", "held_out", "", None): loss[5], "output_entropy": loss[4],
            ("validation_loss", "validation", "", None): rng.random(),
            ("dCE", "exposed", "provider", "sam"): 0.1 + noise,
            ("F_mi", "exposed", "provider", "sam"): rng.random(), ("F_mi", "held_out", "provider", "sam"): rng.random(),
            ("dCE", "held_out", "provider", "sam"): rng.random(),
        }  # fmt: skip
        values[f"r{k}"] = change(k, row)
        configs[f"r{k}"] = {"method": "ab"[k % 2], "lr": 0.1, "seed": 0, "run": k}
    return table(values, configs)


def test_which_baselines_a_table_has():
    data = units(baseline_runs())
    assert baselines(data) == {
        "training": ["train_loss", "train_error", "mean_entropy"],
        "validation": ["validation_error[validation]", "validation_loss[validation]"],
        "held out": ["mean_entropy[held_out]"],
    }
    assert hyper_parameters(data) == ["run"]
    names = [c.name for c, _ in usual(data, ["flat", "F_mi[sam, exposed]", "F_mi[sam, held_out]"])]
    every = "train_loss + train_error + mean_entropy + validation_error[validation] + validation_loss[validation]"
    assert names[6:] == [
        "train_loss + train_error + mean_entropy", every, "run", "train_loss + train_error + mean_entropy + run",
        f"{every} + run", "dCE[sam, held_out]",
    ]  # fmt: skip
    # What is constant (a loss raised by the same amount everywhere, up to the search for it) is no control.
    poor = units(baseline_runs(lambda _, row: {
        **{k: v for k, v in row.items() if k not in ("train_loss", ("mean_entropy", "train", "", None))},
        "train_error": 0.0,
    }))  # fmt: skip
    assert baselines(poor)["training"] == ["output_entropy"]
    assert not any("train_error" in c.name for c, _ in usual(poor, ["flat"]))
    # A score of one's own has the place of the error.
    own = units(baseline_runs(lambda k, row: row | {"train_f1": k / 12, ("gap_f1", "test", "", None): k}))
    assert baselines(own)["training"] == ["train_loss", "train_error", "train_f1", "mean_entropy"]


def test_a_control_missing_in_one_seed_costs_the_seed_alone():
    long = LONG.copy()
    lost = (long["run_id"] == "sam-0.1-0.0-0") & (long["measure"] == "train_loss")
    long.loc[lost, "value"] = np.nan
    row = one(correlate(long, tables=["partial"], **FEW).partial, measure="flat", control="train_loss")
    assert row["n_configurations"] == 18
    rest = long[long["run_id"] != "sam-0.1-0.0-0"]
    x, y, z = (mean(rest, name).to_numpy() for name in ("flat", "test_error", "train_loss"))
    assert row["value"] == pytest.approx(partial_correlation(x, y, z[None]).value, abs=1e-10)


def test_slopes_of_both_levels():
    x, y = mean(LONG, "flat"), mean(LONG, "test_error")
    row = one(FOUND.multilevel, measure="flat", level="method")
    methods = x.index.get_level_values("hp.method").tolist()
    plain = simpson(x.to_numpy(), y.to_numpy(), methods)
    scale = x.std() / y.std()
    assert_allclose([row["pooled"], row["within"], row["between"]],
                    [v * scale for v in (plain.pooled, plain.within, plain.between)], rtol=1e-9)  # fmt: skip
    assert row["pooled"] == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert row["clusters"] == 3
    assert "3 clusters" in row["warnings"]
    assert 0 < row["p_permutation"] < 0.05
    runs = one(FOUND.multilevel, measure="flat", level="configuration")
    wide = LONG.pivot_table(index="run_id", columns="measure", values="value", aggfunc="first")
    key = [r.rsplit("-", 1)[0] for r in wide.index]
    a, b = ((v - v.mean()) / v.std(ddof=0) for v in (wide["flat"], wide["test_error"]))
    expected = random_intercept(a.to_numpy(), b.to_numpy(), key)
    assert runs["random_slope"] == pytest.approx(expected.slope, rel=1e-6)
    assert runs["icc_of_target"] > 0.7
    assert runs["design_effect"] == pytest.approx(1 + runs["icc_of_target"])


def test_selection_names_the_variant():
    row = one(FOUND.selection, measure="size")
    assert (row["best"], row["variants"], row["n_configurations"]) == ("size[rho=0.2]", 2, 18)
    assert row["naive"] > 0.5
    assert np.isfinite(row["held_out"])


def test_prediction_beats_hyper_parameters_that_say_nothing():
    rows = FOUND.prediction.set_index(["features", "model"])
    assert rows.loc[("measures", "ridge"), "r2"] > 0.5
    assert rows.loc[("hyper-parameters", "ridge"), "r2"] < 0.4
    assert rows.loc[("measures", "ridge"), "low"] < rows.loc[("measures", "ridge"), "r2"]
    assert (rows["methods"] == 3).all()
    assert rows["warnings"].str.contains("3 methods: hardly a sample of methods").all()


def test_what_a_measure_adds_to_baselines():
    rows = FOUND.prediction
    assert {"train_loss", "training baselines", "all baselines", "all baselines and hyper-parameters"} <= set(
        rows["features"]
    )
    added = rows[rows["features"] == "training baselines + measure"].set_index("added")
    assert set(added.index) == set(FOUND.table["measure"]) - {"train_loss"}
    x, y, z = (mean(LONG, name).to_numpy() for name in ("flat", "test_error", "train_loss"))
    methods = mean(LONG, "flat").index.get_level_values("hp.method").tolist()
    without, joint = (leave_one_group_out(np.stack(c, axis=1), y, methods, draws=0) for c in ([z], [z, x]))
    row = added.loc["flat"]
    assert_allclose([row["r2"], row["gain"], row["tau"], row["gain_tau"]],
                    [joint.r2, joint.r2 - without.r2, joint.tau, joint.tau - without.tau], atol=1e-9)  # fmt: skip
    assert row["gain"] > 0.5
    assert "no better than" not in row["warnings"]
    for name, row in added.iterrows():
        assert ("no better than train_loss alone (R²" in row["warnings"]) == (row["r2"] <= without.r2), name
    strong = LONG.copy()
    errors = strong[strong["measure"] == "test_error"].set_index("run_id")["value"]
    loss = strong["measure"] == "train_loss"
    strong.loc[loss, "value"] = 3 * strong.loc[loss, "run_id"].map(errors) ** 3
    rows = correlate(strong, tables=["prediction"], **FEW).prediction
    row = one(rows, features="training baselines + measure", added="noise")
    assert "no better than train_loss alone (R² 0.9" in row["warnings"]


def test_measures_that_saw_held_out_labels_are_judged_by_the_validation_error():
    found = correlate(baseline_runs(), tables=["partial", "prediction"], draws=0, permutations=0)
    told = found.partial[found.partial["warnings"].str.contains("sees held-out labels")]
    assert set(told["measure"]) == {"dCE[sam, held_out]"}  # not what compares predictions without labels
    assert "train_error" in set(told["control"])
    assert not told["control"].str.contains("validation").any()
    told = found.prediction[found.prediction["warnings"].str.contains("sees held-out labels")]
    assert set(told["features"]) == {"training baselines + measure"}
    assert set(told["added"]) == {"dCE[sam, held_out]"}


def methods_in_cells(decays=(0.0, 1e-3)):
    """Four methods of two radii that are alike in measure and target, in cells of learning rate and decay."""
    rng = np.random.default_rng(2)
    values, configs = {}, {}
    level = dict(zip("abcd", (0.0, 1.0, 2.0, 3.0), strict=True))
    for method, rho, lr, decay in product("abcd", (0.1, 0.2), (0.1, 0.2), decays):
        run = f"{method}-{rho}-{lr}-{decay}"
        values[run] = {"flat": level[method] + 0.6 * rng.normal(), "test_error": -level[method] + 0.6 * rng.normal()}
        configs[run] = {"method": method, "rho": rho, "lr": lr, "weight_decay": decay, "seed": 0}
    return table(values, configs)


@pytest.mark.parametrize("draws", [0, 200])
def test_strata_that_are_the_cells_have_one_interval_and_p(draws):
    found = correlate(methods_in_cells(), tables=["partial"], draws=draws, permutations=999)
    whole = one(found.table, measure="flat", coefficient="kendall")
    assert whole["stratified_permuted"] == "complete methods"
    row = one(found.partial, measure="flat", control="lr + weight_decay")
    numbers = [row[name] for name in ("value", "low", "high", "p")]
    assert_allclose(numbers, [whole[f"stratified{name}"] for name in ("", "_low", "_high", "_p")], atol=1e-12)
    assert np.isfinite(row["low"]) == bool(draws)
    assert "complete methods change places" in row["warnings"]
    coarse = one(found.partial, measure="flat", control="lr")  # strata of several cells
    assert coarse["coefficient"] == row["coefficient"]
    assert coarse["p"] < row["p"]
    assert "take them as exchangeable" in coarse["warnings"]


def test_ranked_controls_are_said_to_take_configurations_as_exchangeable():
    found = correlate(methods_in_cells((0.0, 1e-4, 1e-3, 1e-2)), tables=["partial"], **FEW).partial
    assert "take them as exchangeable" in one(found, measure="flat", control="weight_decay")["warnings"]
    rng = np.random.default_rng(0)
    values = {
        f"r{k}": {"flat": rng.normal(), "test_error": rng.normal(), "train_loss": rng.normal()} for k in range(24)
    }
    configs = {f"r{k}": {"method": "ab"[k % 2], "lr": k // 2 % 3, "rho": k // 6, "seed": 0} for k in range(24)}
    found = correlate(table(values, configs), tables=["partial"], **FEW).partial
    assert one(found, measure="flat", control="train_loss")["warnings"] == ""


def test_methods_of_equal_holes_in_another_order_change_places():
    rng = np.random.default_rng(1)
    values, configs = {}, {}
    missing = {("a", 0, 3), ("b", 1, 3)}  # the first setting of one method and the second of the other
    for method, rho, lr in product("abc", (0, 1), (1, 2, 3)):
        if (method, rho, lr) not in missing:
            run, level = f"{method}-{rho}-{lr}", 3 * "abc".index(method)
            values[run] = {"flat": level + 0.3 * rng.normal(), "test_error": level + 0.3 * rng.normal()}
            configs[run] = {"method": method, "rho": "abc".index(method) + rho / 10, "lr": lr, "seed": 0}
    row = one(correlate(table(values, configs), tables=(), **FEW).table, measure="flat", coefficient="kendall")
    assert row["stratified_permuted"] == "complete methods"
    assert row["stratified_p_floor"] == 1 / 4  # two methods change places, and so do the settings of the third


def test_power_of_what_was_found():
    for row in FOUND.power.itertuples():
        if np.isfinite(row.required_configurations):
            assert row.required_configurations == required_models(row.value)
        assert row.smallest_effect == pytest.approx(0.458, abs=1e-3)  # of 18 configurations
    assert (FOUND.power["n_configurations"] == 18).all()


def test_corrections_only_make_larger():
    rows = FOUND.table[FOUND.table["role"] == "candidate"]
    assert (rows["p_adjusted"] >= rows["p"]).all()
    assert (rows["p_bh"] >= rows["p"] - 1e-15).all()


@pytest.mark.parametrize("kind", ["bca", "percentile", "stabilised"])
def test_kinds_of_intervals_differ_but_little(kind):
    rows = correlate(LONG, interval=kind, tables=(), draws=500, permutations=0).table
    assert (rows["interval"] == kind).all()
    other = FOUND.table
    width = (other["high"] - other["low"]).to_numpy()
    assert np.median(np.abs(rows["low"] - other["low"]) / width) < 0.15
    assert (rows["low"] <= rows["value"] + 1e-12).all()


def test_models_of_several_shapes_are_said():
    long = grid()
    long["hp.model_options"] = np.where(long["hp.lr"] > 0.15, '{"width": 8}', '{"width": 16}')
    assert any("models of 2 shapes are mixed" in w for w in correlate(long, tables=(), **FEW).warnings)
    assert not any("shapes" in w for w in FOUND.warnings)


@pytest.mark.parametrize("also", [False, True])
def test_sizes_that_go_with_the_model_are_no_axis(also):
    long = grid()
    long["hp.model"] = np.where(long["hp.lr"] > 0.15, "mlp", "cnn")
    long["hp.model_options"] = np.where(long["hp.lr"] > 0.15, '{"width": 8}', '{"channels": 4}')
    if also:  # sizes of one model that differ, at one decay
        at = (long["hp.lr"] > 0.15) & (long["hp.weight_decay"] > 5e-4)
        long.loc[at, "hp.model_options"] = '{"width": 16}'
    found = correlate(long.drop(columns="hp.lr"), tables=["granulated"], measures=["flat"], **FEW).granulated
    assert ("model_options" in set(found["axis"])) == also
    assert (found.query("axis == 'model'")["pairs"] == 9 * (not also)).all()
    assert found.query("axis == 'all'")["warnings"].str.contains("no pair").all() == also


def test_a_radius_drawn_at_random_is_no_axis():
    long = grid()
    run = long["run_id"].astype("category").cat.codes
    long["hp.rho"] = 0.01 * (run // 2)
    found = correlate(long, tables=["granulated"], **FEW).granulated
    assert "rho" not in set(found["axis"])
    assert found.query("axis == 'all'")["warnings"].str.contains("more than 12 levels: rho").all()


def test_perfect_order_is_no_certainty():
    values = {f"r{k}": {"same": float(k), "test_error": float(k)} for k in range(8)}
    configs = {f"r{k}": {"method": "ab"[k // 4], "lr": k, "seed": 0} for k in range(8)}
    rows = correlate(table(values, configs), **FEW).table
    assert (rows["low"] == 1).all()
    assert rows["warnings"].str.contains("perfect order: the interval has no width").all()


NUMBERS = np.array([0.0, 1.0, 0.5, 0.25, 2.0, np.nan, np.inf, -np.inf, 1e200, -1e-200])
NAMES = ("flat", "test_error", ("size", "train", "rho", 0.1), ("size", "train", "rho", 0.2), "train_loss")
SHOWS = {
    "information": "k", "granulated": "psi", "sign_errors": "max", "partial": "value", "selection": "held_out",
    "prediction": "mae", "power": "value", "multilevel": "within", "table": "value",
}  # fmt: skip


@pytest.mark.parametrize("seed", range(16))
def test_no_table_crashes_or_gives_a_silent_nan(seed):
    """Missing measures, constants, ties, infinities, huge and tiny numbers, one seed, one method, few units."""
    rng = np.random.default_rng(seed)
    configurations, seeds, methods = rng.integers(1, (11, 4, 4))
    numbers = NUMBERS[: rng.integers(1, 11)]
    values, configs = {}, {}
    for c in range(configurations):
        for s in range(seeds):
            run = f"r{c}-{s}"
            values[run] = {n: rng.choice(numbers) for n in NAMES if n in ("test_error", "flat") or rng.random() < 0.9}
            configs[run] = {"method": f"m{c % methods}", "lr": c // methods, "seed": s}
    found = correlate(table(values, configs), draws=20, permutations=19, interval=["stabilised", "bca"][seed % 2])
    for name, column in SHOWS.items():
        frame = getattr(found, name)
        silent = frame[~np.isfinite(frame[column].astype(float)) & (frame["warnings"] == "")]
        assert silent.empty, (name, silent.to_dict("records"))


def test_configurations_are_sorted_into_cells_and_runs_into_draws_of_the_data():
    configs, values = {}, {}
    for k, (method, rho, lr, seed) in enumerate(product(("sgd", "sam"), (0.1, 0.2), (0.1, 0.3), (0, 1))):
        if method == "sgd" and rho == 0.2:
            continue
        configs[f"r{k}"] = {
            "method": method, "lr": lr, "seed": seed, "data_seed": seed, "rho": None if method == "sgd" else rho,
            "gate_options.k": 5 if method == "sam" else None,
        }  # fmt: skip
        values[f"r{k}"] = {"test_error": 0.1 + k, "x": float(k)}
    data = units(table(values, configs))
    assert len(data.methods) == 6  # sgd, and sam with two radii, at two learning rates each
    assert data.draws_of_data.tolist() == [configs[run]["data_seed"] for run in data.values.index]
    lr = data.hyper["hp.lr"].to_numpy(dtype=float)
    assert len(set(data.cells)) == 2
    assert all((data.cells[lr == level] == data.cells[lr == level][0]).all() for level in (0.1, 0.3))
