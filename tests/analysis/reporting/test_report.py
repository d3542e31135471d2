import re
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from synthetic import make, write

from analysis.figures import FIGURES
from analysis.reporting import pages
from analysis.reporting.findings import findings, key_numbers
from analysis.reporting.pages import report
from analysis.reporting.tables import TABLES
from analysis.results import CEILINGS, COMPARISONS, CORRELATIONS, StudyResults
from analysis.statistics.catalogue import STATISTICS
from analysis.style import WIDTHS

pytestmark = pytest.mark.xdist_group("report")  # one page for all


def changed(results, **parts):
    return StudyResults(**{**results.__dict__, **parts})


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.found += [(tag, k, v) for k, v in attrs if k in ("src", "href", "srcset", "data", "action")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_every_figure_and_table_is_a_file(page):
    names = {p.relative_to(page.parent).as_posix() for p in page.parent.rglob("*") if p.is_file()}
    wanted = {"report.html", "report.md"}
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
    assert {tag for tag, _, _ in parser.found} == {"img", "a"}
    assert all(v.startswith("data:image/png;base64,") for tag, _, v in parser.found if tag == "img")
    anchors = [v for tag, _, v in parser.found if tag == "a"]
    assert all(v.startswith("#") and f'id="{v[1:]}"' in text for v in anchors)
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
    with pytest.raises(ValueError, match="nothing to draw: No forgetting measure was compared"):
        report(empty, out=tmp_path, figures=["comparison"])
    assert list((tmp_path / "figures").iterdir()) == []


def nothing_finite(results):
    numbers = ["value", "low", "high", "p", "p_adjusted", "within"]
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
    assert 'class="absent"' in text
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


def test_few_configurations_claim_nothing(results):
    few = results.correlations.assign(n_configurations=4, low=np.nan, high=np.nan)
    pairs = results.comparisons.assign(n_configurations=4)
    poor = changed(results, correlations=few, comparisons=pairs)
    assert "no correlation is claimed" in said(poor, "Correlation")
    assert "too few configurations" in said(poor, "Forgetting against sharpness")
    assert said(poor, "Strongest sharpness measure") == ""
    assert len(key_numbers(poor)) == 2


def test_intervals_that_hold_zero_claim_nothing(results):
    wide = results.correlations.assign(low=-0.9, high=0.9)
    pairs = results.comparisons.assign(low=-0.9, high=0.9)
    vague = changed(results, correlations=wide, comparisons=pairs)
    assert said(vague, "Correlation").startswith("No measure is shown to correlate with `gap_error`")
    assert "no relation is claimed" in said(vague, "Strongest forgetting measure")
    assert said(vague, "Forgetting against sharpness").startswith("Neither is shown to be the stronger")


def test_findings_hold_the_numbers_of_the_frames(results):
    rows = results.correlations.query("target == 'gap_error' and coefficient == 'kendall'")
    clear = rows[(rows["low"] > 0) | (rows["high"] < 0)]
    survive = int((clear["p_adjusted"] < 0.05).sum())
    text = said(results, "Correlation")
    assert f"Of {len(rows)} measures, {len(clear)} have intervals" in text
    assert f"{survive} of these survive" in text
    pairs = results.comparisons.query("target == 'gap_error'")
    more = int((pairs["low"] > 0).sum())
    assert f"Of {len(pairs)} pairs compared on `gap_error`, forgetting is the stronger correlate in {more}" in said(
        results, "Forgetting against sharpness"
    )
    assert "0.85 to 0.88" in said(results, "Noise ceiling")
    assert "31 of 34 runs finished; 2 diverged, 1 interrupted" in said(results, "Runs")
    assert "31 did not converge, 31 carry a warning and 0 are not finite" in said(results, "Measurements")


@pytest.mark.parametrize(
    ("p_adjusted", "text"), [(0.01, "it survives Holm's"), (0.2, "may well be chance"), (np.nan, "no p-value")]
)
def test_holm_is_always_told(results, p_adjusted, text):
    sure = results.correlations.assign(low=0.3, high=0.6, value=0.45, p_adjusted=p_adjusted, expected_sign=1)
    assert text in said(changed(results, correlations=sure), "Strongest sharpness measure")


@pytest.mark.parametrize(("sign", "text"), [(1, "the one its theory predicts"), (-1, "opposite to what its theory")])
def test_the_expected_sign_is_told_for_the_gap_alone(results, sign, text):
    sure = results.correlations.assign(low=0.3, high=0.6, value=0.45, p_adjusted=0.001, expected_sign=sign)
    assert text in said(changed(results, correlations=sure), "Strongest sharpness measure")
    other = sure[sure["target"] == "test_error"]
    assert "theory" not in said(changed(results, correlations=other), "Strongest sharpness measure")


def test_reversals_among_clear_correlations_are_named(results):
    turned = results.correlations.assign(low=-0.9, high=-0.1)
    text = said(changed(results, correlations=turned), "Within methods")
    assert "`top_eigenvalue`" in text
    assert "differences between methods" in text


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
    for name, plate in FIGURES.items():
        box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ", (page.parent / f"figures/{name}.pdf").read_bytes())
        assert float(box[1]) / 72 == pytest.approx(WIDTHS[plate.paper], abs=0.01)
