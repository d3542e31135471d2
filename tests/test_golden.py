"""The smoke study against the golden tables, and the comparison itself on tables that are changed on purpose."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.golden import EXACT, Tolerance, compare, differences, excerpt, machine, main, read_stored, read_study

GOLDEN = Path(__file__).parent / "golden"
pytestmark = pytest.mark.xdist_group("smoke")

# What another processor needs. The smoke study was made again with the kernels that torch, MKL and OpenBLAS have for
# older processors (ATEN_CPU_CAPABILITY=default and avx2, MKL_CBWR, OPENBLAS_CORETYPE). Weights differed by 1e-7 of
# their norm; no count, share, decision or message differed; what measures differed by beyond 1e-5 of their value was at
# most a tenth of the absolute tolerances.
OTHER = Tolerance(1e-5, 1e-6)
OTHER_MEASURES = {
    "ascent_sharpness": Tolerance(1e-5, 1e-5),  # differences of two losses in float32
    "m_sharpness": Tolerance(1e-5, 1e-5),
    "m_sharpness_excess": Tolerance(1e-5, 1e-5),
    "selectivity": Tolerance(1e-5, 1e-4),  # ratios of small differences
    "top_eigenvalue": Tolerance(1e-5, 1e-5),  # `stderr` is the residual
}
# Ranks stay as they are; slopes and ridge amplify by up to 1e-3; one draw in 199 falls on the other side.
OTHER_STATISTICS = Tolerance(1e-2, 1e-3)
OTHER_COLUMNS = {"p_wild": Tolerance(1e-2, 0.02), "p_bh": Tolerance(0, 1)}  # p_bh: of all measures, noise among them


def on_another_processor(table):
    """The tolerances for a table."""
    if table.startswith("statistics/"):
        return lambda _measure, column: OTHER_COLUMNS.get(column, OTHER_STATISTICS)
    return lambda measure, _column: OTHER_MEASURES.get(measure, OTHER)


def test_the_smoke_study_gives_the_golden_numbers(smoke):
    """To the last bit on the processor they were made on, elsewhere within tolerances; columns may be added."""
    old, new = read_stored(GOLDEN), excerpt(read_study(smoke))
    same = json.loads((GOLDEN / "machine.json").read_text()) == machine()
    if not same:
        old["weights"], new["weights"] = (tables["weights"].drop(columns="sha256") for tables in (old, new))
    assert sorted(old) == sorted(new)
    later = {name: [c for c in new[name].columns if c not in old[name].columns] for name in old}
    found = [
        difference
        for name in old
        for difference in compare(
            name, old[name], new[name].drop(columns=later[name]), exact if same else on_another_processor(name)
        )
    ]
    assert not found, "\n".join(map(str, found))


def exact(_measure, _column):
    return EXACT


# -- the comparison --------------------------------------------------------------------------------------------------


@pytest.fixture
def table():
    return pd.DataFrame({
        "run_id": ["a", "a", "b"], "measure": ["loss", "trace", "loss"], "value": [0.1, np.nan, 2.0],
        "draws": [1, 2, 3], "converged": [True, False, True], "warnings": ["", "few", ""], "seconds": [1.0, 2.0, 3.0],
    })  # fmt: skip


def test_equal_tables_do_not_differ(table):
    again = table.assign(seconds=0.0)
    assert compare("measures", table, again, exact) == []


def test_one_unit_in_the_last_place_is_found_with_its_size_and_place(table):
    changed = table.assign(value=[0.1, np.nan, np.nextafter(2.0, 3.0)])
    (difference,) = compare("measures", table, changed, exact)
    assert difference.where == "measures, value of loss"
    assert (difference.cells, difference.of, difference.ulps) == (1, 2, 1.0)
    assert difference.relative == pytest.approx(2.0**-52)
    assert difference.example.startswith("at b loss")


def test_units_in_the_last_place_are_those_of_float32_where_the_numbers_are(table):
    single = np.float32(0.1)
    first = table.assign(value=[float(single), np.nan, 2.0])
    second = table.assign(value=[float(np.nextafter(single, np.float32(1))), np.nan, 2.0])
    (difference,) = compare("measures", first, second, exact)
    assert difference.ulps == 1.0


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("value", [0.1, 1.0, 2.0]),
        ("value", [0.1, np.nan, np.inf]),
        ("draws", [1, 2, 4]),
        ("converged", [True, True, True]),
        ("warnings", ["", "", ""]),
    ],
)
def test_every_kind_of_cell_is_compared_whatever_the_tolerance(table, column, values):
    found = compare("measures", table, table.assign(**{column: values}), lambda *_: Tolerance(0.1))
    assert len(found) == 1
    assert f", {column}" in found[0].where


def test_a_difference_within_the_tolerance_is_none(table):
    changed = table.assign(value=[0.1 + 1e-9, np.nan, 2.0 - 1e-9])
    assert compare("measures", table, changed, lambda *_: Tolerance(1e-9, 1e-9)) == []
    assert len(compare("measures", table, changed, lambda *_: Tolerance(1e-10))) == 1


def test_rows_and_columns_that_come_or_go_are_found(table):
    lost = compare("measures", table, table.iloc[1:].drop(columns="draws"), exact)
    assert [d.where for d in lost] == ["measures, rows lost", "measures, columns lost"]
    added = compare("measures", table.iloc[1:], table, exact)
    assert [d.where for d in added] == ["measures, rows added"]
    (order,) = compare("measures", table, table.iloc[::-1], exact)
    assert order.where == "measures, order of rows"
    assert [d.where for d in differences({"runs": table}, {}, exact)] == ["runs"]


def test_the_command_exits_with_1_where_studies_differ(smoke, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(smoke, other, ignore=shutil.ignore_patterns("report"))
    path = other / "statistics" / "correlations.parquet"
    frame = pd.read_parquet(path)
    frame.assign(value=frame["value"] * (1 + 1e-7)).to_parquet(path, index=False)
    assert main([str(smoke), str(other)]) == 1
    assert "statistics/correlations, value" in capsys.readouterr().out
    assert main([str(smoke), str(other), "--tolerance", "1e-6"]) == 0
    assert "no difference in" in capsys.readouterr().out


def test_the_command_says_what_is_no_study(tmp_path, capsys):
    assert main([str(tmp_path), str(tmp_path)]) == 2
    assert "make it with `landscape study`" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
