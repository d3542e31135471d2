"""The first sentences of a report, put together again from the CSV files beside it, with code that shares nothing."""

import csv
import re

import pytest

pytestmark = pytest.mark.xdist_group("report")  # one page for all

TARGET = "gap_error"


def table(page, name):
    with (page.parent / "tables" / f"{name}.csv").open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row.get("target", TARGET) == TARGET]


def line(page, topic):
    text = (page.parent / "report.md").read_text(encoding="utf-8")
    found = re.search(rf"^- \*\*{topic}\.\*\* (.*)$", text, flags=re.M)
    return re.sub(r"\\(.)", r"\1", found[1])


def two(x):
    return f"{round(float(x), 2) + 0.0:.2f}".replace("-", "−")


def with_interval(row, value, low, high):
    return f"{two(row[value])} [{two(row[low])}, {two(row[high])}]"


def in_words(names):
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def named(page):
    """The rows of the measures that stand for families, of which the table of families has the named ones."""
    text = line(page, "Measures named")
    by = dict(re.findall(r"([a-z ]+?) by `([^`]+)`", text.split("or else the usual one: ")[1].replace(", ", ",\n")))
    by = {family.strip(): measure.replace(",\n", ", ") for family, measure in by.items()}
    for row in table(page, "families"):
        assert by[row["family"]] == row["representative"]
    rows = {row["measure"]: row for row in table(page, "correlations") if row["coefficient"] == "kendall"}
    return {family: rows[measure] for family, measure in by.items()}


def test_the_numbers_of_a_family_are_those_of_the_table_of_correlations(page):
    rows = named(page)
    assert len(rows) >= 3
    for family, row in rows.items():
        text, mark = line(page, family.capitalize()), " ⚠" if float(row["warned"]) > 0 else ""
        assert f"τ_b = {with_interval(row, 'value', 'low', 'high')}{mark} over {row['n_configurations']} " in text
        assert f"Within methods {two(row['within'])}" in text
        inside = with_interval(row, "stratified", "stratified_low", "stratified_high")
        assert f"With the hyper-parameters of training held fixed {inside}" in text


def test_the_first_words_are_those_of_the_numbers(page):
    rows, text = named(page), line(page, "Answer")
    for of, place in (("", "Over all models"), ("stratified_", "With the hyper-parameters of training held fixed")):
        sentence = next(s for s in text.split(". ") if s.startswith(place))
        ordering, _, others = sentence.removeprefix(place).partition(" rank")
        for family, row in rows.items():
            without_zero = float(row[f"{of}low"]) > 0 or float(row[f"{of}high"]) < 0
            orders = without_zero and float(row[f"{of}p_adjusted"]) < 0.05
            assert (family in ordering) == orders
            assert (family in others) != orders


def test_variants_of_a_family_that_survive_are_counted_by_their_signs(page):
    """From the rows of `correlations.csv` and the families that `families.csv` names, with rules written anew."""
    rows = [r for r in table(page, "correlations") if r["coefficient"] == "kendall" and r["role"] == "candidate"]
    sharp = [r for r in rows if "sharpness" in r["measure"] or r["measure"] == "top_eigenvalue"]
    text = line(page, "Sharpness")
    for of, place in (("", "over all models"), ("stratified_", "with the hyper-parameters held fixed")):
        known = [r for r in sharp if r[of.rstrip("_") or "value"]]
        clear = [r for r in known if float(r[f"{of}low"]) > 0 or float(r[f"{of}high"]) < 0]
        left = [r for r in clear if r[f"{of}p_adjusted"] and float(r[f"{of}p_adjusted"]) < 0.05]
        signs = [float(r[of.rstrip("_") or "value"]) * float(r["expected_sign"]) for r in left]
        told = f"{len(known)} variants of sharpness {place}, {len(left) or 'none'} survive"
        assert told.lower() in text.lower()
        assert ("against" in text.lower().split(told.lower())[1].split(";")[0]) == any(s < 0 for s in signs)


def test_which_family_is_stronger_is_that_of_the_table_of_comparisons(page):
    of_measure = {row["measure"]: family for family, row in named(page).items()}
    pairs = [
        row for row in table(page, "comparisons") if row["forgetting"] in of_measure and row["sharpness"] in of_measure
    ]
    assert pairs
    for row in pairs:
        first, second = of_measure[row["forgetting"]], of_measure[row["sharpness"]]
        difference = abs(float(row["tau_forgetting"])) - abs(float(row["tau_sharpness"]))
        assert float(row["low"]) > 0  # the made study decides it
        wanted = f"{first.capitalize()} against {second}: over all models {first} is the stronger, by {two(difference)}"
        assert f"{wanted} [{two(row['low'])}, {two(row['high'])}]" in line(page, "Which is stronger")


def test_counts_of_variants_are_those_of_the_table_of_correlations(page):
    rows = [
        row for row in table(page, "correlations") if row["coefficient"] == "kendall" and row["role"] == "candidate"
    ]
    clear = [row for row in rows if float(row["low"]) > 0 or float(row["high"]) < 0]
    left = [row for row in clear if float(row["p_adjusted"]) < 0.05]
    text = line(page, "Tried")
    assert f"Of {len(rows)} variants of measures, {len(clear)} have intervals" in text
    assert f"and {len(left)} of these survive the max-T correction" in text
