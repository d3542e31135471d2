import io
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from synthetic import make

from analysis.candidates import corrected_p, lineup
from analysis.reporting import tables
from analysis.reporting.latex import marked_latex
from analysis.reporting.numbers import command, to_tex
from analysis.reporting.table import captioned, remarks
from analysis.statistics.catalogue import STATISTICS
from analysis.statistics.correlation_rows import completed
from analysis.style import FAMILIES, fixed, interval


def changed(results, **frames):
    return replace(results, **frames)


@pytest.mark.parametrize("name", tables.TABLES)
def test_csv_holds_the_raw_values(results, name):
    table = tables.TABLES[name](results)
    assert table.name == name
    read = pd.read_csv(io.StringIO(tables.to_csv(table)), keep_default_na=False, na_values=[""])
    assert list(read.columns) == list(table.data.columns)
    assert len(read) == len(table.data)
    for column in table.data.select_dtypes("number"):
        np.testing.assert_allclose(read[column].to_numpy(float), table.data[column].to_numpy(float), rtol=1e-14)


@pytest.mark.parametrize("name", tables.TABLES)
def test_latex_is_a_booktabs_table_of_the_right_shape(results, name):
    table = tables.TABLES[name](results)
    text = tables.to_latex(table)
    assert text.startswith("% \\usepackage{booktabs}\n")
    blocks = re.findall(r"\\midrule\n(.*?)\n?\\bottomrule", text, re.DOTALL)
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{@{}", r"\end{tabular}" + "\n"):
        assert text.count(rule) == len(blocks)
    rows = [line for block in blocks for line in block.split("\n") if line]
    shapes = Counter(line.replace(r"\&", "").count("&") + 1 for line in rows)
    tables_of_columns = sum(shapes.values()) / max(len(table.shown), 1)  # blocks of columns, one below the other
    assert tables_of_columns == int(tables_of_columns)
    columns = sum(width * rows for width, rows in shapes.items()) / max(len(table.shown), 1)
    assert len(table.shown) == 0 or columns == len(table.shown.columns) + tables_of_columns - 1
    assert all(line.endswith(r"\tabularnewline") for line in rows)
    # Nothing special is left bare, and nothing is beyond ASCII but what LaTeX takes as it is.
    assert "_" not in text.replace(r"\_", "").replace(r"$\tau_b$", "").replace("\\label", "")
    assert not [c for c in text if ord(c) > 127]


def test_latex_escapes_every_special_character():
    given = r"50 % of a_b & c # {x} $y$ ~ ^ \ < > |"
    wanted = (
        r"50 \% of a\_b \& c \# \{x\} \$y\$ \textasciitilde{} \textasciicircum{} \textbackslash{} \textless{} "
        r"\textgreater{} \textbar{}"
    )
    assert tables.escape_latex(given) == wanted
    assert tables.escape_latex("τ_b −0.5 ± 0.1") == r"$\tau_b$ $-$0.5 $\pm$ 0.1"


def test_latex_sets_names_in_typewriter_and_keeps_the_caption_short():
    assert marked_latex("of `a_b` and `c`") == r"of \texttt{a\_\allowbreak{}b} and \texttt{c}"
    assert marked_latex("one ` alone") == "one ` alone"
    shown = pd.DataFrame({"a": ["1"]})
    text = tables.to_latex(
        tables.Table("t", "T", "Does `x_y` hold? It does (Doe et al. 2020). How: so. n: 3.", shown, shown)
    )
    assert r"\caption{T. Does \texttt{x\_\allowbreak{}y} hold? It does (Doe et al. 2020).}" in text
    assert r"\parbox{\linewidth}{\footnotesize\sloppy How: so. n: 3.}" in text
    assert "sloppy" not in tables.to_latex(tables.Table("t", "T", "One sentence.", shown, shown))


@pytest.mark.parametrize("name", tables.TABLES)
def test_captions_are_short_and_nothing_of_a_note_is_lost(results, name):
    note = tables.TABLES[name](results).note
    caption, notes = captioned(note)
    assert " ".join(filter(None, [caption, notes])) == note
    assert len(caption) < 330
    assert "`" not in tables.to_latex(tables.TABLES[name](results))


def test_markdown_keeps_cells_apart():
    shown = pd.DataFrame({"a": ["x|y", "two\nlines"], "b": ["1", "2"]})
    table = tables.Table("t", "T", "", shown, shown, ("a",))
    assert tables.to_markdown(table).split("\n") == ["| a | b |", "|---|---:|", r"| x\|y | 1 |", "| two lines | 2 |"]


def test_method_errors_are_means_and_deviations_over_seeds(results):
    table = tables.methods(results)
    final = results.history[results.history["epoch"] == 20].set_index("run_id")
    for row in table.data.to_dict("records"):
        runs = [r for r in final.index if _label(final.loc[r]) == row["method"]]
        best = final.loc[runs].groupby(["hp.rho", "hp.lr"])["validation_error"].mean().idxmin()
        here = final.loc[[r for r in runs if (final.loc[r, "hp.rho"], final.loc[r, "hp.lr"]) == best]]
        np.testing.assert_allclose(row["test_error_mean"], here["test_error"].mean())
        np.testing.assert_allclose(row["test_error_sd"], here["test_error"].std(ddof=1))
        shown = table.shown[table.data["method"] == row["method"]].iloc[0]
        mean, sd = 100 * here["test_error"].mean(), 100 * here["test_error"].std(ddof=1)
        assert shown["Test error (%)"] == f"{mean:.2f} ± {sd:.2f}"
    assert table.shown["Method"].tolist() == ["SGD", "SAM", "ASAM", "GSAM", "OBF", "SAM+OBF"]
    assert dict(zip(table.data["method"], table.data["diverged"], strict=True))["asam"] == 1


def _label(row):
    return row["hp.method"] + ("+OBF" if row["hp.ascent"] == "obf" else "")


def test_a_single_seed_has_no_deviation():
    table = tables.methods(make(methods=(("sgd", None),), seeds=1))
    assert "±" not in table.shown["Test error (%)"].iloc[0]
    assert np.isnan(table.data["test_error_sd"].iloc[0])


def test_correlations_show_named_measures_then_baselines_then_one_row_a_measure(results):
    table = tables.correlations(results)
    frame = results.correlations.query("target == 'gap_error' and coefficient == 'kendall'").set_index("measure")
    measures = table.shown["Measure"].str.strip(" †⚠")
    roles = table.shown["Stands for"].tolist()
    kinds = [family for family in FAMILIES if family in roles and family != "baseline"]
    assert roles[: len(kinds)] == kinds
    known = len(kinds) + 3
    assert roles[len(kinds) : known] == ["baseline"] * 3
    assert not any(roles[known:])
    for part in (slice(len(kinds), known), slice(known, None)):
        assert (np.diff(frame.loc[measures[part], "value"].abs()) <= 0).all()
    bases = measures.str.split("[").str[0]
    assert bases.is_unique
    rows = table.shown.assign(Measure=measures).set_index("Measure")
    row, shown = frame.loc["top_eigenvalue"], rows.loc["top_eigenvalue"]
    assert shown["τ_b [95 %]"] == interval(row["value"], row["low"], row["high"])
    assert shown["Stratified τ_b"] == interval(row["stratified"], row["stratified_low"], row["stratified_high"])
    assert shown["p (stratified)"] == "≤ 0.004"  # which is its floor
    assert shown["Within methods"] == "−0.30 ⇄"
    assert rows.loc["trace", "Stratified τ_b"].endswith("⇄")
    assert rows.loc["gradient_norm", "Warned"] == "100 %"
    assert "two tied parameters: 100 %" in table.note
    pd.testing.assert_frame_equal(table.data, results.correlations)


def test_variants_open_below_their_measure_and_none_is_lost(results):
    table = tables.correlations(results)
    frame = results.correlations.query("target == 'gap_error' and coefficient == 'kendall'")
    frame = frame[np.isfinite(frame["value"])]
    of_measure = frame.groupby(frame["measure"].str.split("[").str[0])["measure"].agg(set)
    for place, shown in enumerate(table.shown.to_dict("records")):
        name = shown["Measure"].strip(" †⚠")
        more = table.below.get(place, table.shown.iloc[:0])
        assert {name, *more["Measure"].str.strip(" †⚠")} == of_measure[name.partition("[")[0]]
        assert int(shown["Variants"]) == 1 + len(more)
        assert list(more.columns) == list(table.shown.columns)


def test_no_variant_is_shown_for_being_the_strongest(results):
    """Of measures that nobody named, the first variant by name, or the one that the study compares."""
    rows = results.correlations.query("target == 'gap_error' and coefficient == 'kendall'").copy()
    cw = sorted(rows.loc[rows["measure"].str.startswith("cw["), "measure"])
    rows.loc[rows["measure"] == cw[2], "value"] = 0.99
    study = {**results.study, "study": {"statistics": {"compare": [[cw[1], "trace"]]}}}
    for given, wanted in ((results.study, cw[0]), (study, cw[1])):
        shown = {s.row["measure"] for s in lineup(changed(results, study=given), rows)}
        assert {m for m in shown if m.startswith("cw[")} == {wanted}


def test_an_interval_that_is_not_there_is_a_dash_and_its_reason_is_told(results):
    unknown = dict.fromkeys(["low", "high", "p", "p_adjusted", "stratified", "stratified_p_adjusted"], np.nan)
    table = tables.correlations(
        changed(results, correlations=results.correlations.assign(**unknown, warnings="fewer than 5", warned_as=""))
    )
    shown = table.shown
    assert not shown["τ_b [95 %]"].str.contains("[", regex=False).any()
    assert set(shown["p (max-T)"]) == {"–"}
    assert "Stratified τ_b" not in shown
    assert set(shown["Remark"]) == {"(1)"}
    assert table.note.endswith("Remarks: (1) fewer than 5.")


def test_older_correlations_are_shown_without_what_they_lack(results):
    new = ["p_adjusted", "p_floor", "permuted", "stratified", "warned", "role", "correction", "cell_reversal", "cells"]
    older = results.correlations.query("role == 'candidate'").rename(columns={"p_adjusted": "p_holm"})
    older = completed(older.drop(columns=new, errors="ignore"))
    shown = tables.correlations(changed(results, correlations=older)).shown
    assert not {"Stratified τ_b", "Warned"} & set(shown.columns)
    assert "p (Holm)" in shown


@pytest.mark.parametrize(
    ("p", "adjusted", "floor", "correction", "shown"),
    [
        (1e-5, 1e-5, 1e-5, "max-T", "≤ 0.00001"),
        (1 / 24, 1 / 24, 1 / 24, "max-T", "≤ 0.042"),
        (0.0001, 0.035, 0.0001, "holm", "≤ 0.035"),  # the floor times the number of tests
        (0.0002, 0.035, 0.0001, "holm", "0.035"),
        (1e-5, 0.02, 1e-5, "max-T", "0.020"),
        (0.3, 1.0, 0.001, "holm", "1"),
        (0.3, np.nan, 0.001, "holm", "–"),
        (0.01, 0.01, np.nan, "max-T", "0.010"),
    ],
)
def test_a_p_value_at_its_floor_is_an_upper_bound(p, adjusted, floor, correction, shown):
    row = {"p": p, "p_adjusted": adjusted, "p_floor": floor, "correction": correction}
    assert corrected_p(row) == shown


def test_every_run_that_did_not_finish_is_listed(results):
    shown = tables.problems(results).shown.set_index("Run")
    assert sorted(shown.index) == ["asam-r2-l0.1-s0", "gsam-r0.1-l0.1-s1", "obf-r0.1-l0.1-s1"]
    assert shown.loc["asam-r2-l0.1-s0", "Reason"] == "loss is not finite at step 250"
    assert shown.loc["asam-r2-l0.1-s0", "Configuration"] == "method=asam, rho=2, lr=0.1, seed=0"


def test_settings_tell_what_was_varied(results):
    data = tables.grid(results).data.set_index("setting")
    assert data.loc["rho", "values"] == "0; 0.02; 0.05; 0.1; 0.2; 0.5; 2"
    assert data["varied"].to_dict() == {
        "method": True,
        "ascent": True,
        "rho": True,
        "lr": True,
        "seed": True,
        "model": False,
    }


def test_warnings_are_shown_by_kind(results):
    shown = tables.TABLES["warnings"](results).shown.set_index("For example")
    tied = shown.loc["two tied parameters"]
    assert tied[["Measures", "Values", "Of them missing"]].tolist() == ["1", "31", "0"]
    assert tied["Share"] == f"{3100 / len(results.measures):.1f} %"
    assert len(shown) == 2  # and one that did not converge


def test_doubts_are_counted(results):
    data = tables.measured(results).data.set_index("measure")
    assert data.loc["average_sharpness", "not_converged"] == 31
    assert data.loc["parameter_norm", "with_warning"] == 31
    assert data.loc["trace", ["not_finite", "not_converged", "with_warning"]].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("p", "shown"), [(0.0004, "< 0.001"), (0.04, "0.040"), (1.0, "1"), (np.nan, "–")])
def test_p_values_claim_no_more_than_they_hold(p, shown):
    assert tables.p_value(p) == shown


def test_further_tables_show_the_leading_measures_of_the_leading_target(results):
    shown = tables.correlations(results).shown
    leading = shown.loc[shown["Stands for"] != "baseline", "Measure"].str.strip(" †⚠").tolist()[:12]
    for name in ("granulated", "information", "sign_errors", "power", "multilevel"):
        table = tables.TABLES[name](results)
        assert table.shown["Measure"].tolist() == leading
        assert "`gap_error`" in table.note
        pd.testing.assert_frame_equal(table.data, results.further[name])


def test_sign_errors_begin_with_the_lowest_and_say_which_sign_is_right(results):
    rows = results.further["sign_errors"]
    rows = rows.assign(mean=np.linspace(0.6, 0.1, len(rows)), sign=-1)
    shown = tables.TABLES["sign_errors"](changed(results, further={"sign_errors": rows})).shown
    assert shown["Mean"].astype(float).is_monotonic_increasing
    assert set(shown["Right sign"]) == {"− pooled"}


def test_controls_held_fixed_together_have_short_names_that_the_note_spells_out(results):
    controls = {
        "train_loss": "train_loss",
        "train_loss + train_error": "training baselines",
        "train_loss + train_error + validation_error": "all baselines",
        "lr + rho": "hyper-parameters",
    }
    rows = results.further["partial"].query("measure == 'top_eigenvalue' and target == 'gap_error'")
    rows = pd.concat([rows.assign(control=name) for name in controls], ignore_index=True)
    table = tables.TABLES["partial"](changed(results, further={"partial": rows}))
    assert set(table.shown["Held fixed"]) == set(controls.values())
    assert "Here training baselines: `train_loss`, `train_error`; all baselines:" in table.note
    assert set(table.data["control"]) == set(controls)


def test_rows_and_columns_that_say_nothing_are_left_out(results):
    rows = results.further["granulated"].copy()
    measure = tables.TABLES["granulated"](results).shown["Measure"].iloc[0]
    rows.loc[rows["measure"] == measure, ["psi", "p"]] = np.nan
    rows["p"] = np.nan
    shown = tables.TABLES["granulated"](changed(results, further={"granulated": rows})).shown
    assert measure not in set(shown["Measure"])
    assert "p" not in shown
    silent = changed(results, further={"granulated": rows.assign(psi=np.nan)})
    assert tables.TABLES["granulated"](silent).shown.empty


def test_granulated_coefficients_stand_beside_their_axes(results):
    shown = tables.TABLES["granulated"](results).shown
    rows = results.further["granulated"].query("target == 'gap_error'").set_index(["measure", "axis"])
    for row in shown.to_dict("records"):
        assert row["Ψ"] == fixed(rows.loc[(row["Measure"], "all"), "psi"])
        for axis in ("lr", "rho"):
            own = rows.loc[(row["Measure"], axis)]
            assert row[axis] == f"{fixed(own['psi'])} ({own['pairs']})"


def test_within_slopes_that_turn_are_marked(results):
    shown = tables.TABLES["multilevel"](results).shown
    assert shown["Within"].str.endswith("⇄").all()
    assert set(shown["Groups"]) == {"methods"}


@pytest.mark.parametrize("name", STATISTICS)
def test_further_tables_that_were_not_made_are_not_shown(results, name):
    table = tables.TABLES[name](changed(results, further={}))
    assert table.optional
    assert table.shown.empty
    nothing = results.further[name].iloc[:0]
    assert tables.TABLES[name](changed(results, further={name: nothing})).shown.empty


def test_remarks_are_numbered_and_told_below():
    shown = pd.DataFrame({"Measure": list("abc"), "Remark": ["few pairs; no pair: lr", "", "no pair: lr"]})
    found, note = remarks(shown, "Note.")
    assert found["Remark"].tolist() == ["(1), (2)", "", "(2)"]
    assert note == "Note. Remarks: (1) few pairs; (2) no pair: lr."
    found, note = remarks(shown.assign(Remark=""), "Note.")
    assert "Remark" not in found
    assert note == "Note."


@pytest.mark.parametrize("name", tables.TABLES)
def test_no_cell_says_nan(results, name):
    table = tables.TABLES[name](results)
    assert not table.shown.map(lambda cell: "nan" in str(cell).lower().split()).any().any()
    assert not re.search(r"\bnan\b", table.note.lower())


def test_what_was_measured_is_told_from_the_registry(results):
    shown = tables.TABLES["measures"](results).shown.set_index("Measure")
    assert shown.loc["norms", "Rows"] == "gradient_norm"
    assert shown.loc["weight_norms", "Family"] == "complexity"
    assert shown.loc["hessian_eigenvalues", "Expected"] == "+"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex is installed")
def test_every_latex_table_compiles_and_fits_the_page(results, tmp_path):
    """In LaTeX's own article class, whose text is narrower than that of most papers."""
    wide = {f"a_long_heading_{k}": [f"some_measure[rho=0.{k}, m=16]", "−0.12 [−0.34, 0.56] ⇄"] for k in range(9)}
    far = {"name": [f"a_name_{k} of 50 %" for k in range(90)], "words": ["of several words, " * 9] * 90}
    made = {"wide": (wide, ("a_long_heading_0", "a_long_heading_5")), "far": (far, ("name", "words"))}
    texts = {name: tables.to_latex(build(results)) for name, build in tables.TABLES.items()}
    for name, (shown, words) in made.items():
        frame = pd.DataFrame(shown)
        texts[name] = tables.to_latex(tables.Table(name, "A table", "Caption. Notes on `it`.", frame, frame, words))
    assert texts["wide"].count(r"\toprule") > 1  # blocks of columns
    assert texts["far"].count("(continued)") == texts["far"].count(r"\begin{table}") - 1 > 0
    texts["numbers"] = to_tex(results) + r"Of \lsRuns\ runs: \lsTauTopEigenvalue\ \lsTauTopEigenvalueInterval."
    for name, text in texts.items():
        (tmp_path / f"{name}.tex").write_text(text, encoding="ascii")
    body = "\n".join(rf"\typeout{{Table {name}}}\input{{{name}.tex}}\clearpage" for name in texts)
    packages = r"\usepackage{booktabs}"
    (tmp_path / "all.tex").write_text(rf"\documentclass{{article}}{packages}\begin{{document}}{body}\end{{document}}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    table = ""
    for line in done.stdout.splitlines():
        table = line if line.startswith("Table ") else table
        assert "too large for page" not in line, table
        assert not re.match(r"Overfull \\hbox \((\d{2,}|[5-9])[\d.]*pt", line), (table, line)  # 5 points are not seen


def test_numbers_for_a_text_are_those_of_the_tables(results):
    text = to_tex(results)
    found = dict(re.findall(r"^\\newcommand\{\\(ls[A-Za-z]+)\}\{(.*)\} % .+$", text, re.MULTILINE))
    assert len(found) == text.count("newcommand")  # no name twice
    row = results.correlations.query("target == 'gap_error' and coefficient == 'kendall'").set_index("measure")
    own = row.loc["top_eigenvalue"]
    assert found["lsTauTopEigenvalue"].replace("$-$", "−") == fixed(own["value"])
    assert found["lsTauTopEigenvalueInterval"].replace("$-$", "−") == f"[{fixed(own['low'])}, {fixed(own['high'])}]"
    assert found["lsRuns"] == str(len(results.runs))
    assert found["lsConfigurations"] == "17"
    best = tables.methods(results).data.set_index("method").loc["sam", "test_error_mean"]
    assert found["lsTestErrorSam"] == f"{100 * best:.2f}"
    assert not [c for c in text if ord(c) > 127]


def test_names_of_commands_are_letters():
    assert command("Tau", "F_mi[obf, iso-loss, m=64, held_out]") == "lsTauFMiObfIsoLossMSixFourHeldOut"
    assert command("Tau", "steps_to_ce_0.1") == "lsTauStepsToCeZeroOne"
