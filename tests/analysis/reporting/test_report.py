import re
import time
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from synthetic import make, write

from analysis.figures import FIGURES
from analysis.media import MEDIA
from analysis.reporting import pages
from analysis.reporting.drawing import Edition
from analysis.reporting.findings import findings, key_numbers
from analysis.reporting.pages import report
from analysis.reporting.tables import TABLES
from analysis.results import CEILINGS, COMPARISONS, CORRELATIONS
from analysis.statistics.catalogue import STATISTICS
from analysis.style import fixed

pytestmark = pytest.mark.xdist_group("report")  # one page for all


def changed(results, **parts):
    return replace(results, **parts)


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.found += [(tag, k, v) for k, v in attrs if k in ("src", "href", "srcset", "data", "action")]
        if tag not in ("meta", "img", "br", "link", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_every_figure_and_table_is_a_file(page):
    names = {p.relative_to(page.parent).as_posix() for p in page.parent.rglob("*") if p.is_file()}
    wanted = {"report.html", "report.md", "numbers.tex", "explorer.html"}
    wanted |= {f"figures/{n}.{s}" for n in FIGURES for s in ("pdf", "png")}
    wanted |= {f"tables/{n}.{s}" for n in TABLES for s in ("csv", "tex")}
    assert names == wanted
    for path in page.parent.glob("figures/*.pdf"):
        assert path.read_bytes().startswith(b"%PDF")
        assert b"/Subtype /Type3" not in path.read_bytes()
    for path in page.parent.glob("figures/*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_page_stands_alone(page):
    text = page.read_text(encoding="utf-8")
    parser = Links()
    parser.feed(text)
    assert parser.open == []
    assert {tag for tag, _, _ in parser.found} == {"img", "source", "a"}
    assert all(v.startswith("data:image/png;base64,") for tag, _, v in parser.found if tag != "a")
    anchors = [v for tag, _, v in parser.found if tag == "a"]
    assert anchors.count("explorer.html") == 1  # which lies beside it
    assert all(v.startswith("#") and f'id="{v[1:]}"' in text for v in anchors if v != "explorer.html")
    assert not re.search(r"https?://|url\(|@import|<script", text)
    assert str(page.parent) not in text


def test_the_page_names_the_runs_that_went_wrong_and_the_environment(page):
    text = page.read_text(encoding="utf-8")
    for wanted in ("asam-r2-l0.1-s0", "loss is not finite at step 250", "2.13.0", "Linux &amp; more", "20 min 34 s"):
        assert wanted in text
    for name in FIGURES:
        assert f"landscape report toy --figure {name}" in text


def test_markdown_points_to_the_files_beside_it(page):
    text = (page.parent / "report.md").read_text(encoding="utf-8")
    for path in re.findall(r"\]\(([^)]+)\)", text):
        assert (page.parent / path).is_file()
    assert text.count("![") == len(FIGURES)


def test_the_same_results_give_the_same_bytes(results, tmp_path):
    only = ["training_curves"]
    first = report(results, out=tmp_path / "a", figures=only)
    second = report(results, out=tmp_path / "b", figures=only)
    for name in ("training_curves.pdf", "training_curves.png"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_one_figure_is_redone_alone_from_the_folder(results, tmp_path):
    folder = write(results, tmp_path / "toy")
    made = report(folder, figures=["radius"])
    assert made == folder / "report" / "figures"
    assert sorted(p.name for p in made.parent.rglob("*") if p.is_file()) == ["radius.pdf", "radius.png"]


def test_matplotlib_is_left_as_it_was(results, tmp_path):
    before = dict(mpl.rcParams)
    report(results, out=tmp_path, figures=["radius"])
    assert dict(mpl.rcParams) == before


def test_an_unknown_figure_is_named(results, tmp_path):
    with pytest.raises(ValueError, match=r"`figures` holds \['pie'\].*choose from \['forest'"):
        report(results, out=tmp_path, figures=["pie"])


def test_a_figure_without_data_that_was_asked_for_is_an_error_and_its_old_files_go(results, tmp_path):
    report(results, out=tmp_path, figures=["comparison"])
    empty = changed(results, comparisons=results.comparisons.iloc[:0])
    with pytest.raises(ValueError, match="nothing to draw: No two measures were compared"):
        report(empty, out=tmp_path, figures=["comparison"])
    assert list((tmp_path / "figures").iterdir()) == []


def nothing_finite(results):
    numbers = ["value", "low", "high", "p", "p_holm", "p_adjusted", "within", "stratified"]
    history = results.history.assign(**dict.fromkeys(["test_error", "train_error", "validation_error"], np.nan))
    return changed(
        results,
        history=history,
        measures=results.measures.assign(value=np.nan),
        correlations=results.correlations.assign(**dict.fromkeys(numbers, np.nan)),
        comparisons=results.comparisons.assign(difference=np.nan, low=np.nan, high=np.nan),
        ceilings=results.ceilings.assign(split_half=np.nan, spearman_brown=np.nan, oracle_with_noise=np.nan),
    )


EMPTY = {
    "all runs diverged": lambda: make(all_diverged=True),
    "nothing finite": lambda: nothing_finite(make(methods=(("sgd", None), ("sam", None)), seeds=1)),
    "one method, one seed, no forgetting, no statistics": lambda: changed(
        (small := make(methods=(("sgd", None),), seeds=1)),
        measures=small.measures[small.measures["split"].isin(["train", "test"])],
        correlations=pd.DataFrame(columns=list(CORRELATIONS)),
        comparisons=pd.DataFrame(columns=list(COMPARISONS)),
        ceilings=pd.DataFrame(columns=list(CEILINGS)),
    ),
}


@pytest.mark.parametrize("case", EMPTY)
def test_what_is_missing_is_told_and_not_drawn(case, tmp_path):
    page = report(EMPTY[case](), out=tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "No correlation could be computed" in text
    assert 'id="not-shown"' in text
    assert text.count("No correlation could be computed") <= 2  # in the answer, and once for all that is not shown
    assert not (tmp_path / "figures/forest.pdf").exists()
    assert "nan" not in re.sub(r"base64,[^\"]+", "", text).lower().replace("nanmean", "")


def test_without_forgetting_the_section_says_so(results, tmp_path):
    rows = results.measures[~results.measures["split"].isin(["exposed", "other_train", "held_out"])]
    with pytest.raises(ValueError, match="No perturbed forgetting was measured"):
        report(changed(results, measures=rows), out=tmp_path, figures=["forgetting_bars"])


def test_names_are_escaped(results, tmp_path):
    small = make(methods=(("sgd", None),), seeds=1, all_diverged=True)
    study = {**small.study, "name": "<b>&", "question": "Is a < b?"}
    text = report(changed(small, study=study), out=tmp_path).read_text(encoding="utf-8")
    assert "<h1>&lt;b&gt;&amp;</h1>" in text
    assert "Is a &lt; b?" in text


def said(results, topic):
    return " ".join(f.text for f in findings(results) if f.topic == topic)


def sole(results, **values):
    """The results with such values in every correlation."""
    return changed(results, correlations=results.correlations.assign(**values))


def test_a_lead_without_a_correlation_is_named(results):
    wanted = {"study": {"statistics": {"lead": "gap_loss"}}}
    told = said(changed(results, study=wanted), "Another target")
    assert told.startswith("The study leads with `gap_loss`, which has no correlation")
    assert said(results, "Another target") == ""


def test_few_configurations_claim_nothing(results):
    few = sole(results, n_configurations=4, low=np.nan, high=np.nan)
    poor = changed(few, comparisons=results.comparisons.assign(n_configurations=4))
    assert "no correlation is claimed" in said(poor, "Answer")
    assert "too few configurations" in said(poor, "Pairs that were named")
    assert said(poor, "Sharpness") == ""
    assert len(key_numbers(poor)) == 2


def test_within_methods_families_are_told_by_their_intervals_and_a_sign_that_is_another_inside_cells(results):
    within = {"within": -0.6, "within_low": -0.9, "within_high": -0.2}
    inside = {"stratified": 0.6, "stratified_low": 0.4, "stratified_high": 0.8}
    text = said(sole(results, **within, **inside), "Answer")
    assert "Within methods, " in text
    assert "sharpness (−)" in text.split("Within methods")[1]
    assert " have the opposite sign with the hyper-parameters held fixed: between settings" in text
    assert "Within methods −0.60 [−0.90, −0.20]." in said(sole(results, **within), "Sharpness")
    vague = sole(results, **(within | {"within_high": 0.2}), **inside)
    assert "Within methods, no family is shown to rank them." in said(vague, "Answer")
    assert "opposite sign" not in said(vague, "Answer")
    assert "Within methods −0.60 [−0.90, 0.20], not shown." in said(vague, "Sharpness")


def test_variants_that_survive_against_the_expected_sign_are_in_the_answer(results):
    rows = results.correlations.assign(value=0.1, low=-0.2, high=0.4)
    turned = rows["measure"].str.startswith("ascent_sharpness") & (rows["coefficient"] == "kendall")
    rows.loc[turned, ["value", "low", "high", "p_adjusted", "expected_sign"]] = [-0.6, -0.8, -0.3, 0.001, 1]
    text = said(changed(results, correlations=rows), "Answer")
    assert "others survive the correction: over all models 3 of 6 variants of sharpness (all against)" in text
    told = said(changed(results, correlations=rows), "Sharpness")
    assert "Of 6 variants of sharpness over all models, 3 survive the correction, all against the sign" in told
    assert "3 of these survive" in said(changed(results, correlations=rows), "Tried")


def test_one_cell_of_hyper_parameters_is_told_once(results):
    once = sole(results, cells=1, cells_dropped=0)
    pairs = results.comparisons.assign(pairs="stratified")
    both = pd.concat([results.comparisons, pairs], ignore_index=True)
    one = changed(once, comparisons=both)
    assert "All models share the hyper-parameters of training" in said(one, "Answer")
    assert "other learning rates, batch sizes and the like" in said(one, "Scope")
    every = " ".join(f.text for f in findings(one))
    assert "inside cells" not in every
    assert "hyper-parameters held fixed" not in every
    for name in ("correlations", "comparisons"):
        table = TABLES[name](one)
        assert not [c for c in table.shown.columns if "tratified" in c]
        assert "stratified" not in table.shown.to_string()


def test_a_task_of_one_s_own_leads_with_the_gap_of_its_score(results):
    rows = results.correlations
    own = rows["target"].map({"gap_error": "gap_loss", "test_error": "gap_absolute_error"}).fillna(rows["target"])
    assert changed(results, correlations=rows.assign(target=own)).targets[0] == "gap_absolute_error"
    assert results.targets[0] == "gap_error"


def test_what_changes_places_is_told_where_it_is_more_than_single_configurations(results):
    sure = {"value": 0.45, "low": 0.3, "high": 0.6, "p": 0.01, "p_adjusted": 0.02, "p_floor": 1e-4}
    inside = {f"stratified{'_' * (k != 'value')}{k.removeprefix('value')}": v for k, v in sure.items()}
    told = said(
        sole(results, **sure, permuted="freely", **inside, stratified_permuted="complete variants"), "Sharpness"
    )
    assert "corrected p = 0.020;" in told
    assert "corrected p = 0.020 (complete variants of methods change places)" in told
    cells = said(sole(results, **sure, permuted="complete cells"), "Sharpness")
    assert "(complete cells, and complete variants of methods, change places)" in cells


def test_one_method_is_not_told_as_many(results):
    one = make(methods=(("sgd", None),), seeds=1)
    every = " ".join(f.text for f in findings(one))
    assert "ithin methods" not in every
    assert "which differ in method" not in every
    assert "Lowest" not in every
    assert "None of" in said(sole(results, low=-0.9, high=0.9), "Tried")


@pytest.mark.parametrize("also", [False, True])
def test_sizes_that_go_with_the_model_are_not_told_as_settings(results, also):
    first = results.runs["hp.lr"] == results.runs["hp.lr"].min()
    sizes = np.where(first, '{"channels": 4}', np.where(also & (results.runs.index % 2 == 0), '{"w": 4}', '{"w": 8}'))
    runs = results.runs.assign(**{"hp.model": np.where(first, "cnn", "mlp"), "hp.model_options": sizes})
    told = said(sole(changed(results, runs=runs), low=0.1, high=0.9), "Scope")
    assert "`model`" in told
    assert ("`model_options`" in told) == also


def test_no_sentence_is_said_twice(results):
    noisy = changed(results, runs=results.runs.assign(**{"hp.label_noise": 0.2}))
    one = sole(results, cells=1, cells_dropped=0)
    for study in (results, noisy, one, make(methods=(("sgd", None),), seeds=1)):
        sentences = [s for f in findings(study) for s in re.split(r"(?<=\.) (?=[A-Z])", f.text)]
        alike = ("†", "‡", "Within methods", "With the hyper-parameters of training held fixed")  # of every family
        own = [s for s in sentences if not s.startswith(alike)]
        assert len(own) == len(set(own))


def test_intervals_that_hold_zero_claim_nothing(results):
    vague = sole(results, low=-0.9, high=0.9, stratified_low=-0.9, stratified_high=0.9)
    text = said(vague, "Answer")
    assert text.startswith("Over all models, forgetting, norm, sharpness and output bias are not shown to rank them")
    assert "held fixed, forgetting, norm, sharpness and output bias are not shown to rank them." in text
    assert "no relation over all models is claimed" in said(vague, "Forgetting")
    assert ": not shown." in said(vague, "Forgetting")


def test_the_answer_is_that_of_the_measures_named_without_the_target(results):
    """The strongest variant of forgetting is another one; it is in the sentence on what was tried alone."""
    named = {"sharpness": "trace", "forgetting": "cw[sam, iso-loss, m=16, exposed]"}
    study = {**results.study, "study": {"statistics": {"representatives": named}}}
    rows = results.correlations.query("target == 'gap_error' and coefficient == 'kendall'").set_index("measure")
    chosen = changed(results, study=study, further={})
    for family, measure in named.items():
        assert said(chosen, family.capitalize()).startswith(f"`{measure}`: τ_b = {fixed(rows.loc[measure, 'value'])}")
    assert f"τ_b of `{named['forgetting']}`" in " ".join(meaning for _, meaning in key_numbers(chosen))
    usual = {f.topic: f.text for f in findings(results)}
    assert usual["Forgetting"].startswith("`F_mi[")
    assert usual["Sharpness"].startswith("`top_eigenvalue`")


def test_the_order_of_families_is_that_of_the_frame_pooled_and_inside_cells(results):
    forgetting = "F_mi[obf, iso-loss, m=16, held_out]"
    values = {"top_eigenvalue": (0.2, 0.7), forgetting: (-0.8, -0.5), "validation_error": (0.9, 0.8)}
    rows = results.correlations.copy()
    for measure, (pooled, inside) in values.items():
        ends = [pooled, pooled - 0.1, pooled + 0.1, inside, inside - 0.1, inside + 0.1]
        columns = ["value", "low", "high", "stratified", "stratified_low", "stratified_high"]
        rows.loc[rows["measure"] == measure, columns] = ends
    rows = rows[rows["measure"].isin(list(values))]
    words = said(changed(results, correlations=rows), "Answer")
    assert words.startswith("Over all models, forgetting (−) ranks them by `gap_error` (+: more of it with a larger")
    assert "held fixed, sharpness (+) and forgetting (−) rank them." in words
    text = said(changed(results, correlations=rows), "Sharpness")
    assert "τ_b = 0.20 [0.10, 0.30]" in text
    assert "so that among as many measures as were tried it may be chance" in text
    assert "held fixed 0.70 [0.60, 0.80]" in text
    known = said(changed(results, correlations=rows), "Baselines")
    assert "τ_b with `gap_error`: `validation_error` (0.90 [0.80, 1.00], inside cells 0.80)." in known
    assert "none is said to be better or worse than one" in known


def test_findings_hold_the_numbers_of_the_frames(results):
    rows = results.correlations.query("target == 'gap_error' and coefficient == 'kendall' and role == 'candidate'")
    clear = rows[(rows["low"] > 0) | (rows["high"] < 0)]
    survive = int((clear["p_adjusted"] < 0.05).sum())
    text = said(results, "Tried")
    assert f"Of {len(rows)} variants of measures, {len(clear)} have intervals" in text
    assert f"{survive} of these survive" in text
    pairs = results.comparisons.query("target == 'gap_error'")
    more = int((pairs["low"] > 0).sum())
    told, rest = said(results, "Which is stronger"), said(results, "Other pairs that were named")
    assert told.count(" is the stronger, by ") + rest.count("is stronger than") == more
    assert f"of {len(pairs) - 1} pairs as" in rest  # the other has been told
    assert "to a τ_b of 0.88" in said(results, "Noise ceiling")
    assert "at most 0.90; one of the same runs shares their noise, and can exceed" in said(results, "Noise ceiling")
    assert "31 of 34 runs finished; 2 diverged, 1 interrupted" in said(results, "Runs")
    assert "31 did not converge, 31 carry a warning and 0 are not finite" in said(results, "Measurements")
    assert "No baseline is shown to rank the models" in said(results, "Baselines")


@pytest.mark.parametrize(
    ("correction", "p", "text"),
    [
        ("holm", 0.01, "corrected p = 0.010;"),
        ("max-T", 0.2, "corrected p = 0.200, so that among as many measures as were tried it may be chance"),
        ("max-T", 1e-4, "corrected p ≤ 0.0001;"),
        ("max-T", np.nan, "no p-value"),
    ],
)
def test_the_correction_is_always_told(results, correction, p, text):
    sure = sole(results, low=0.3, high=0.6, value=0.45, p=0.01, p_adjusted=p, p_floor=1e-4, correction=correction)
    assert text in said(sure, "Sharpness")


@pytest.mark.parametrize(("sign", "text"), [(1, "the one its theory predicts"), (-1, "opposite to what its theory")])
def test_the_expected_sign_is_told_for_the_gap_alone(results, sign, text):
    sure = sole(results, low=0.3, high=0.6, value=0.45, p_adjusted=0.001, expected_sign=sign)
    assert text in said(sure, "Sharpness")
    other = sure.correlations[sure.correlations["target"] == "test_error"]
    assert "its theory" not in said(changed(results, correlations=other), "Sharpness")


def test_reversals_are_named_also_where_nothing_is_clear_over_all_models(results):
    text = said(sole(results, low=-0.9, high=-0.1), "What reverses")
    assert "1 of 75 variants have the opposite sign within methods (`top_eigenvalue`)" in text
    assert "mixes in differences between methods" in text
    inside = sole(results, low=-0.9, high=0.9, stratified_low=0.1, stratified_high=0.9)
    assert "with an interval there that excludes 0 (`trace`)" in said(inside, "What reverses")
    vague = sole(inside, stratified_low=-0.9, stratified_high=0.9)
    assert "opposite sign" not in said(vague, "What reverses")
    assert "⇄ marks 1 variant" in said(vague, "What reverses")


def test_warnings_and_held_out_labels_stand_in_the_sentence(results):
    text = said(results, "Norm")
    assert "⚠" in text
    assert "100 % of its values carry a warning (two tied parameters: 100 %)" in text
    study = {"study": {"statistics": {"representatives": {"forgetting": "cw[sam, own, m=16, held_out]"}}}}
    assert "† It sees held-out labels" in said(changed(results, study=study, further={}), "Forgetting")


def test_what_is_left_given_the_baselines_is_that_given_all_of_them(results):
    rows = pd.DataFrame({
        "measure": "top_eigenvalue", "target": "gap_error", "control": ["train_loss", "train_loss + validation_error"],
        "coefficient": "spearman of residuals", "value": [0.5, 0.1], "low": [0.2, -0.2], "high": [0.7, 0.4], "p": 0.1,
        "n_configurations": 15, "warnings": "",
    })  # fmt: skip
    joint = changed(results, further={"partial": rows})
    wanted = "Given all baselines, nothing is shown to be left for sharpness (0.10 [−0.20, 0.40])."
    assert wanted in said(joint, "Beyond the baselines")
    older = changed(results, further={"partial": rows.assign(coefficient="kendall")})
    assert said(older, "Beyond the baselines") == ""
    alone = changed(results, further={"partial": rows.head(1)})
    one = (
        "Given the baseline that leaves least, a rank correlation is left for sharpness given `train_loss` (0.50 [0.20,"
    )
    assert one in said(alone, "Beyond the baselines")


def pair(first, second, **numbers):
    whole = {"forgetting": first, "sharpness": second, "target": "gap_error", "pairs": "pooled", "n_configurations": 28}
    return {**dict.fromkeys(COMPARISONS, np.nan), **whole, "warnings": "", **numbers}


@pytest.mark.parametrize(
    ("draws", "text"),
    [
        ((0.2, 0.7), "Forgetting against sharpness: over all models forgetting is the stronger, by 0.50 [0.20, 0.70]"),
        ((-0.1, 0.9), "over all models neither is shown to be the stronger (0.50 [−0.10, 0.90])"),
        ((np.nan, np.nan), "over all models forgetting is the stronger, by 0.50 [0.30, 0.60]"),
    ],
)
def test_none_is_called_stronger_unless_over_draws_too(results, draws, text):
    numbers = {"difference": 0.5, "low": 0.3, "high": 0.6, "low_draws": draws[0], "high_draws": draws[1]}
    rows = pd.DataFrame([pair("F_mi[obf, iso-loss, m=16, held_out]", "top_eigenvalue", **numbers)])
    assert text in said(changed(results, comparisons=rows), "Which is stronger")


def test_a_measure_and_a_baseline_are_compared_by_the_interval_of_their_difference(results):
    numbers = {"difference": -0.3, "low": -0.5, "high": -0.1}
    pooled = pair("top_eigenvalue", "train_error", **numbers)
    rows = pd.DataFrame([pooled, {**pooled, "pairs": "stratified", "high": 0.1}])
    assert (
        "Sharpness against `train_error`: over all models `train_error` is the stronger, by 0.30 [0.10, 0.50]; with "
        "the hyper-parameters held fixed neither is shown to be the stronger (−0.30 [−0.50, 0.10])."
        in said(changed(results, comparisons=rows), "Baselines")
    )


def test_what_a_measure_adds_to_a_prediction_is_told_where_it_adds_something(results):
    rows = results.further["prediction"].copy()
    one = (rows["added"] == "top_eigenvalue") & (rows["target"] == "gap_error")
    rows.loc[one, ["r2", "gain", "gain_low", "gain_high"]] = [0.6, 0.2, 0.1, 0.3]
    rows.loc[one, "warnings"] = "few; no better than train_loss alone (R² 0.65)"
    text = said(changed(results, further={"prediction": rows}), "Beyond the baselines")
    assert "from all baselines 0.40, 0.60 with sharpness (gain 0.20 [0.10, 0.30]; no better than train_loss" in text
    assert "no gain is shown with norm, forgetting and output bias" in text


def test_noisy_labels_are_marked_where_training_labels_are_noisy(results):
    named = {"statistics": {"representatives": {"forgetting": "cw[sam, iso-loss, m=16, exposed]"}}}
    clean = changed(results, study={**results.study, "study": named}, further={})
    noisy = changed(clean, runs=results.runs.assign(**{"hp.label_noise": 0.2}))
    assert "‡" not in said(clean, "Forgetting") + TABLES["correlations"](clean).note
    assert "‡ It sorts examples by the noisy labels" in said(noisy, "Forgetting")
    assert "‡ Sorts examples by the noisy labels" in TABLES["correlations"](noisy).note


def test_what_was_not_tested_is_said(results):
    assert "other draws of the data" in said(results, "Scope")
    assert "baselines" not in said(results, "Scope")
    bare = results.correlations[results.correlations["role"] == "candidate"].assign(stratified=np.nan)
    text = said(changed(results, correlations=bare), "Scope")
    assert "none was correlated" in text
    assert "no cell of at least 3 configurations" in text
    drawn = results.comparisons.assign(low_draws=-0.1, high_draws=0.5)
    assert "other draws" not in said(changed(results, comparisons=drawn), "Scope")


def test_statistics_that_were_not_made_are_left_out_and_their_old_files_go(monkeypatch, tmp_path):
    tables_alone = {t: [name for name in names if name not in FIGURES] for t, names in pages.SECTIONS.items()}
    monkeypatch.setattr(pages, "SECTIONS", tables_alone)  # figures are not the point, and take their time
    small = make(methods=(("sgd", None), ("sam", None)), seeds=1)
    report(small, out=tmp_path)
    assert (tmp_path / "tables/power.csv").exists()
    assert "Does it hold up" in (tmp_path / "report.md").read_text(encoding="utf-8")
    text = report(changed(small, further={}), out=tmp_path).read_text(encoding="utf-8")
    assert "Does it hold up" not in text
    assert not [p for p in (tmp_path / "tables").iterdir() if p.stem in STATISTICS]


def test_the_paper_s_figures_have_its_width(page):
    for name in FIGURES:
        box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ", (page.parent / f"figures/{name}.pdf").read_bytes())
        assert float(box[1]) / 72 == pytest.approx(MEDIA["screen"].width, abs=0.01)


class Slow:
    """Takes long to be sent to another process."""

    def __reduce__(self):
        time.sleep(0.5)
        return int, ()


def test_what_is_sent_to_other_processes_does_not_change_under_way(results, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "SECTIONS", {"some": ["training_curves", "radius", next(iter(TABLES))]})
    fresh = replace(results)  # which keeps nothing yet
    vars(fresh)["slow"] = Slow()
    before = len(vars(fresh))
    pages._sections(fresh, Edition(), tmp_path, 2)
    assert len(vars(fresh)) > before, "drawing keeps more in it"
