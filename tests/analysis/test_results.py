from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from synthetic import configs, make, write

from analysis.results import CORRELATIONS, StudyResults
from analysis.statistics.catalogue import STATISTICS


@pytest.fixture
def folder(tmp_path):
    return write(make(), tmp_path / "toy")


def test_what_was_written_is_what_is_read(folder):
    given, read = make(), StudyResults.load(folder)
    assert read.study == given.study
    for name in ("correlations", "comparisons", "ceilings"):
        pd.testing.assert_frame_equal(getattr(read, name), getattr(given, name), check_dtype=False)
    assert set(read.further) == set(STATISTICS)
    for name, table in given.further.items():
        pd.testing.assert_frame_equal(read.further[name], table, check_dtype=False)
    pd.testing.assert_frame_equal(
        read.measures.drop(columns="hp.ascent"), given.measures.drop(columns="hp.ascent"), check_dtype=False
    )
    assert dict(zip(read.runs["run_id"], read.runs["status"], strict=True)) == dict(
        zip(given.runs["run_id"], given.runs["status"], strict=True)
    )
    assert set(read.history["hp.method"]) == {"sgd", "sam", "asam", "gsam", "obf"}


def test_the_run_id_in_a_config_is_not_a_hyper_parameter(folder):
    read = StudyResults.load(folder)
    assert "hp.run_id" not in read.runs
    assert read.configurations()["configuration"].nunique() == 17


def test_a_table_that_is_worked_out_once_is_not_changed_by_who_got_it():
    given = make()
    for table in (given.configurations, given.final, given.forgetting):
        first = table()
        kept = first["run_id"].tolist()
        first["run_id"] = "another"
        first.loc[first.index[0], "method"] = "another"
        assert table()["run_id"].tolist() == kept
        assert "another" not in set(table()["method"])


def test_runs_that_are_not_whole_say_so(folder):
    (folder / "runs/sam-r0.02-l0.1-s0/status.json").unlink()
    (folder / "runs/sam-r0.02-l0.1-s1/config.json").unlink()
    for path in (folder / "runs/sgd-r0-l0.05-s0").iterdir():
        path.unlink()
    (folder / "runs/sgd-r0-l0.05-s0").rmdir()
    (folder / "runs/gsam-r0.05-l0.1-s0/history.parquet").unlink()
    runs = StudyResults.load(folder).runs.set_index("run_id")
    assert runs.loc["sam-r0.02-l0.1-s0", "status"] == "interrupted"
    assert runs.loc["sam-r0.02-l0.1-s1", ["status", "reason"]].tolist() == ["missing", "no config.json"]
    assert runs.loc["sgd-r0-l0.05-s0", ["status", "reason"]].tolist() == ["missing", "no run folder"]
    assert runs.loc["gsam-r0.05-l0.1-s0", "epochs"] == 0
    assert runs.loc["asam-r2-l0.1-s0", ["status", "epochs"]].tolist() == ["diverged", 10]
    assert len(runs) == 34


def test_a_study_without_a_single_whole_run_still_loads(folder):
    for path in folder.glob("runs/*/*"):
        path.unlink()
    read = StudyResults.load(folder)
    assert set(read.runs["status"]) == {"missing"}
    assert read.history.empty
    assert read.final().empty


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("study.json", "landscape study"),
        ("measures.parquet", "landscape measure"),
        ("statistics/correlations.parquet", "landscape correlate"),
        ("statistics/comparisons.parquet", "landscape correlate"),
        ("statistics/ceilings.parquet", "landscape correlate"),
    ],
)
def test_a_missing_file_is_named_with_the_command_that_makes_it(folder, name, command):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}.*does not exist.*{command}"):
        StudyResults.load(folder)


def test_a_study_without_runs_says_how_to_train(folder):
    (folder / "runs").rename(folder / "elsewhere")
    with pytest.raises(FileNotFoundError, match="runs does not exist: train with `landscape study"):
        StudyResults.load(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("study.json", "{", "is not whole JSON"),
        ("study.json", "[1]", "holds a list, not an object"),
        ("measures.parquet", "nothing", "is not a Parquet table"),
    ],
)
def test_a_broken_file_is_named(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        StudyResults.load(folder)


def test_a_table_without_its_columns_is_refused():
    given = make(methods=(("sgd", None),))
    with pytest.raises(ValueError, match=r"`ceilings` lacks the columns \['split_half'\]"):
        replace(given, ceilings=given.ceilings.drop(columns="split_half"))


def test_comparisons_and_ceilings_of_before_are_pooled_and_lack_the_rest(folder):
    older = {
        "comparisons": ["pairs", "low_draws", "high_draws", "signed", "signed_low", "signed_high", "draws"],
        "ceilings": ["independent", "strongest", "strongest_value", "strongest_across"],
    }
    for name, columns in older.items():
        path = folder / f"statistics/{name}.parquet"
        pd.read_parquet(path).drop(columns=columns).to_parquet(path)
    read = StudyResults.load(folder)
    assert set(read.comparisons["pairs"]) == {"pooled"}
    assert read.comparisons["signed_low"].isna().all()
    assert read.ceilings["independent"].isna().all()
    path = folder / "statistics/ceilings.parquet"
    pd.read_parquet(path).drop(columns="split_half").to_parquet(path)
    with pytest.raises(ValueError, match="split_half"):
        StudyResults.load(folder)


def test_statistics_without_expected_signs_are_read_as_unknown(folder):
    path = folder / "statistics/correlations.parquet"
    pd.read_parquet(path).drop(columns="expected_sign").to_parquet(path)
    assert set(StudyResults.load(folder).correlations["expected_sign"]) == {0}


def test_points_are_means_and_deviations_over_seeds():
    given = make()
    points = given.points("top_eigenvalue", "test_error")
    chosen = configs()
    runs = [
        r for r, c in chosen.items() if c["method"] == "sam" and not c["ascent"] and (c["rho"], c["lr"]) == (0.05, 0.1)
    ]
    assert len(runs) == 2
    rows = given.measures[given.measures["run_id"].isin(runs)]
    x = rows.loc[(rows["measure"] == "top_eigenvalue") & (rows["epoch"] == 20), "value"].to_numpy()
    y = rows.loc[rows["measure"] == "test_error", "value"].to_numpy()
    here = points[np.isclose(points["x"], x.mean())]
    assert here["method"].tolist() == ["sam"]
    np.testing.assert_allclose(here[["y", "x_sd", "y_sd"]].to_numpy()[0], [y.mean(), x.std(ddof=1), y.std(ddof=1)])
    assert here["seeds"].tolist() == [2]


def test_deviations_of_points_are_without_what_draws_of_the_data_add():
    given = make()
    seeds = given.runs["run_id"].str[-1].astype(int)
    drawn = replace(given, runs=given.runs.assign(**{"hp.data_seed": seeds}))
    shift = given.measures["run_id"].str.endswith("s1") & (given.measures["measure"] == "test_error")
    easier = given.measures.assign(value=given.measures["value"].where(~shift, given.measures["value"] + 0.5))
    before, after = (r.points("top_eigenvalue", "test_error") for r in (drawn, replace(drawn, measures=easier)))
    both = after["seeds"] == 2
    np.testing.assert_allclose(after["y"][both], before["y"][both] + 0.25)
    assert after["y_sd"].max() < 0.1  # where half a unit is added to one draw, the plain deviation is 0.35
    # The same by hand, run by run: a configuration's runs differ in the last letter of their name.
    end = given.measures.query("measure == 'test_error'").set_index("run_id")["value"]
    left = {run: value - end[[r for r in end.index if r[:-1] == run[:-1]]].mean() for run, value in end.items()}
    of_draw = {s: np.mean([x for run, x in left.items() if run[-1] == s]) for s in "01"}
    pairs = [run[:-1] for run in end.index if run[-1] == "1" and f"{run[:-1]}0" in end.index]
    wanted = [np.hypot(*(left[f"{name}{s}"] - of_draw[s] for s in "01")) for name in pairs]
    np.testing.assert_allclose(np.sort(before["y_sd"][both]), np.sort(wanted))


def test_points_of_a_misspelt_measure_are_refused_with_the_nearest_name():
    given = make()
    with pytest.raises(ValueError, match=r"`measure` names 'top_eigenvalu', .*Did you mean 'top_eigenvalue'\?"):
        given.points("top_eigenvalu", "test_error")
    with pytest.raises(ValueError, match=r"`target` names 'test_eror', .*Did you mean 'test_error'\?"):
        given.points("top_eigenvalue", "test_eror")
    with pytest.raises(ValueError, match=r"`measure` names 'F_mi', .* It has \['F_mi\[.*name one of them"):
        given.points("F_mi", "test_error")


def test_points_leave_out_what_is_not_finite():
    given = make()
    run = "sam-r0.05-l0.1-s0"
    rows = given.measures.copy()
    rows.loc[(rows["run_id"] == run) & (rows["measure"] == "top_eigenvalue"), "value"] = np.inf
    changed = replace(given, measures=rows)
    before, after = (r.points("top_eigenvalue", "test_error") for r in (given, changed))
    assert np.isfinite(after["x"]).all()
    assert after["seeds"].sum() == before["seeds"].sum() - 1


def test_the_best_configuration_is_chosen_by_validation_and_never_by_test():
    given = make(methods=(("sam", None),))
    history = given.history.copy()
    config = (history["hp.rho"] == 0.1) & (history["hp.lr"] == 0.1)
    history.loc[config, "validation_error"] = 0.0
    history.loc[config, "test_error"] = 0.9  # the worst test error must not keep it from being chosen
    chosen, rule = replace(given, history=history).best_configurations()
    assert set(chosen["run_id"]) == {"sam-r0.1-l0.1-s0", "sam-r0.1-l0.1-s1"}
    assert "validation" in rule


def test_without_validation_nothing_is_chosen():
    given = make(methods=(("sam", None),))
    blind = replace(given, history=given.history.assign(validation_error=np.nan))
    chosen, rule = blind.best_configurations()
    assert chosen["configuration"].nunique() == 3
    assert rule.startswith("all finished configurations")


def test_facts_are_those_that_the_statistics_were_made_with():
    given = make(methods=(("sgd", None),))
    study = {**given.study, "study": {"statistics": {"level": 0.9, "draws": 500, "permutations": 99}}}
    used = {"level": 0.8, "draws": 400, "permutations": 19, "usual": []}
    facts = replace(given, study=study, statistics=used).facts()
    assert facts["level"] == "80 %"
    assert facts["intervals"].startswith("80 % intervals resample configurations (400 times)")
    assert facts["permutations"] == "19 permutations"
    older = replace(given, study=study).facts()  # what it asked for need not be what was done
    assert older["level"] == "90 %"
    assert older["intervals"].startswith("90 % intervals resample configurations, all")
    assert older["permutations"] == "permutations"


def test_what_a_rule_decided_is_not_otherwise():
    given = make(methods=(("sgd", None),))
    used = {"level": 0.95, "draws": 2000, "permutations": 9999, "interval": "bca"}
    study = {**given.study, "study": {"statistics": {"permutations": None}}}
    results = replace(given, study=study, statistics={**used, "usual": ["permutations"]})
    assert results.other_statistics() == "interval bca"
    chosen = replace(given, study=study, statistics={**used, "usual": []})
    assert chosen.other_statistics() == "permutations 9999, interval bca"


def test_weights_other_than_the_last_are_said():
    given = make(methods=(("sgd", None),))
    assert given.other_weights() == ""
    measures = given.measures.assign(options='{"weights": "ema"}')
    averaged = replace(given, measures=measures)
    assert averaged.other_weights() == "the average of weights (ema)"
    best = replace(given, study={**given.study, "study": {"weights": "best"}})
    assert best.other_weights() == "those with the best validation error, by which they were chosen"


def test_results_print_as_one_line():
    given = make()
    assert repr(given) == (
        "<StudyResults 'toy_study': 34 runs (31 finished) of 17 configurations, "
        f"{given.correlations['measure'].nunique()} measures, 3 targets; folder 'toy'>"
    )


def test_further_statistics_may_be_absent(folder):
    for name in STATISTICS:
        if name != "power":
            (folder / "statistics" / f"{name}.parquet").unlink()
    assert set(StudyResults.load(folder).further) == {"power"}


def test_further_statistics_without_their_columns_or_of_no_known_name_are_refused():
    given = make(methods=(("sgd", None),))
    with pytest.raises(ValueError, match=r"`power` lacks the columns \['value'\]"):
        replace(given, further={"power": given.further["power"].drop(columns="value")})
    with pytest.raises(ValueError, match=r"`further` holds \['sorcery'\]"):
        replace(given, further={"sorcery": given.further["power"]})


def test_entries_are_those_of_the_registry_that_left_rows():
    given = make()
    timed = given.measures.assign(seconds=np.where(given.measures["step"] == 500, 3.0, 1.0))
    entries = replace(given, measures=timed).entries().set_index("measure")
    assert entries.loc["norms", "rows"] == "gradient_norm"
    assert entries.loc["norms", ["family", "checkpoints", "seconds"]].tolist() == ["norm", 31, 3.0]
    finished = given.configurations().query("status == 'finished'")["run_id"]
    early = 3 * finished.str.endswith("s0").sum()  # also measured at three checkpoints before the last
    assert entries.loc["hessian_eigenvalues", "checkpoints"] == 31 + early
    np.testing.assert_allclose(entries.loc["hessian_eigenvalues", "seconds"], (31 * 3.0 + early) / (31 + early))
    assert given.entries()["seconds"].isna().all()
    assert "trace" not in entries.index  # of no entry


def test_seconds_in_the_table_are_kept(folder):
    path = folder / "measures.parquet"
    pd.read_parquet(path).assign(seconds=0.5, other=1).to_parquet(path)
    read = StudyResults.load(folder).measures
    assert set(read["seconds"]) == {0.5}
    assert "other" not in read.columns


def test_captions_say_how_intervals_were_made():
    given = make(methods=(("sgd", None),))
    assert "resample configurations" in given.facts()["intervals"]
    new = replace(given, correlations=given.correlations.assign(interval="stabilised"))
    assert "jackknife" in new.facts()["intervals"]
    assert "resample configurations" in new.facts()["resampled"]


def test_tables_of_correlations_made_earlier_stay_readable(folder):
    path = folder / "statistics" / "correlations.parquet"
    old = pd.read_parquet(path).rename(columns={"p_adjusted": "p_holm"})
    early = ["measure", "target", "coefficient", "value", "low", "high", "p", "p_holm", "n_configurations", "n_runs"]
    early += ["dropped", "within", "within_low", "within_high", "groups", "reversal", "warnings"]
    old[early].to_parquet(path, index=False)
    read = StudyResults.load(folder).correlations
    assert set(CORRELATIONS) <= set(read.columns)
    assert read["p_adjusted"].tolist() == old["p_holm"].tolist()
    assert set(read["correction"]) == {"holm"}
    assert set(read.loc[read["measure"] == "top_eigenvalue", "role"]) == {"candidate"}
    assert set(read.loc[read["measure"] == "parameter_norm", "role"]) == {"baseline"}
    assert read[["stratified", "stratified_p", "p_floor", "warned"]].isna().all(axis=None)
    assert not read["cell_reversal"].any()
    old[early].drop(columns="p_holm").to_parquet(path, index=False)
    with pytest.raises(ValueError, match="lacks the columns"):
        StudyResults.load(folder)
