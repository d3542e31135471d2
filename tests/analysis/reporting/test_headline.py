"""The first sentences of a report, put together again from the CSV files beside it, with code that shares nothing."""

import csv
import math
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


def sorted_out(rows, begins, of):
    """The sentence by the rules that the documents state: interval without 0, and corrected p below 0.05."""
    value, low, high, p = (
        of or "value",
        f"{of}_low".lstrip("_"),
        f"{of}_high".lstrip("_"),
        f"{of}_p_adjusted".lstrip("_"),
    )
    order = sorted(rows.items(), key=lambda item: -abs(float(item[1][value])))
    kinds = {"clear": [], "perhaps": [], "vague": []}
    for family, row in order:
        without_zero = float(row[low]) > 0 or float(row[high]) < 0
        kind = "vague" if not without_zero else "perhaps" if float(row[p] or math.nan) >= 0.05 else "clear"
        tau = "τ_b = " if kind == "clear" and not kinds["clear"] else ""
        mark = " ⚠" if float(row["warned"]) > 0 else ""
        kinds[kind].append(f"{family} ({tau}{with_interval(row, value, low, high)}{mark})")
    text = f"{begins} {in_words(kinds['clear'])}" if kinds["clear"] else f"{begins} no family"
    if kinds["perhaps"]:
        text += f"; only before the correction for the number of measures with {in_words(kinds['perhaps'])}"
    return text + (
        f"; not shown for {in_words(kinds['vague'])}, where the interval contains 0." if kinds["vague"] else "."
    )


def named(page):
    """The rows of the measures that stand for families, of which the table of families has the named ones."""
    text = line(page, "Measures named")
    by = dict(re.findall(r"([a-z ]+?) by `([^`]+)`", text.split("or else the usual one: ")[1].replace(", ", ",\n")))
    by = {family.strip(): measure.replace(",\n", ", ") for family, measure in by.items()}
    for row in table(page, "families"):
        assert by[row["family"]] == row["representative"]
    rows = {row["measure"]: row for row in table(page, "correlations") if row["coefficient"] == "kendall"}
    return {family: rows[measure] for family, measure in by.items()}


def test_the_answer_is_that_of_the_table_of_correlations(page):
    rows, text = named(page), line(page, "In numbers")
    assert len(rows) >= 3
    assert sorted_out(rows, f"Over all models, `{TARGET}` goes with", "") in text
    assert sorted_out(rows, "With the hyper-parameters of training held fixed, it goes with", "stratified") in text


def test_the_first_words_are_those_of_the_numbers(page):
    rows, text = named(page), line(page, "Answer")
    for of, place in (("", "Over all models"), ("stratified_", "With the hyper-parameters of training held fixed")):
        sentence = next(s for s in text.split(". ") if s.startswith(place))
        ordering, _, others = sentence.removeprefix(place).partition("order")
        for family, row in rows.items():
            without_zero = float(row[f"{of}low"]) > 0 or float(row[f"{of}high"]) < 0
            orders = without_zero and float(row[f"{of}p_adjusted"]) < 0.05
            assert (family in ordering) == orders
            assert (family in others) != orders


def test_better_variants_of_a_family_are_those_of_the_table_of_families(page):
    text, rows = line(page, "Measures named"), named(page)
    for row in table(page, "families"):
        own = rows[row["family"]]
        unclear = float(own["low"]) <= 0 <= float(own["high"])
        wanted = f"`{row['strongest']}`, the strongest of {row['variants']} of {row['family']}, has"
        assert (wanted in text) == (unclear and float(row["best_of_k_p"]) < 0.05)


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
