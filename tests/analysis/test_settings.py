"""Settings of weights from elsewhere, joined to what was measured of them."""

import numpy as np
import pandas as pd
import pytest

from analysis import table
from analysis.measures import checkpoints
from analysis.statistics.correlation import correlate
from analysis.table import Row, join_settings, read_settings, to_frame

CSV = """weights,method,lr,seed,note
weights/a.safetensors,sgd,0.1,0,
b.pt,sam,0.2,1,late
resnet.v2,sam,0.1,0,
"""


def written(folder, text=CSV, name="settings.csv"):
    path = folder / name
    path.write_text(text)
    return path


def test_names_count_without_folder_and_ending_and_empty_cells_are_nothing(tmp_path):
    found = read_settings(written(tmp_path))
    assert found == {
        "a": {"method": "sgd", "lr": 0.1, "seed": 0},
        "b": {"method": "sam", "lr": 0.2, "seed": 1, "note": "late"},
        "resnet.v2": {"method": "sam", "lr": 0.1, "seed": 0},
    }
    assert table.WEIGHTS == checkpoints.WEIGHTS


def test_parquet_other_keys_and_columns_named_as_in_our_tables(tmp_path):
    path = tmp_path / "settings.parquet"
    pd.DataFrame({"file": ["x\\y.bin"], "hp.lr": [0.5], "hp.method": ["sgd"]}).to_parquet(path)
    assert read_settings(path, key="file") == {"y": {"lr": 0.5, "method": "sgd"}}


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (
            CSV.replace("weights,", "weight,", 1),
            "s.csv",
            "has no column 'weights' that names the weights.*Did you mean",
        ),
        (CSV + "other/b.pt,sgd,0.1,3,\n", "s.csv", r"names the weights \['b.pt'\] more than once"),
        (CSV + ",sgd,0.1,3,\n", "s.csv", "names no weights in row 4"),
        ("weights\na.pt\n", "s.csv", "has no column beside 'weights'"),
        ("weights,lr,hp.lr\na.pt,1,2\n", "s.csv", r"has the columns \['lr'\] twice"),
        ("", "s.csv", "could not be read as csv"),
        ("no table", "s.parquet", "could not be read as parquet"),
        (CSV, "s.xlsx", "must end in .csv or .parquet"),
    ],
)
def test_what_is_no_table_of_settings_is_refused(text, name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_settings(written(tmp_path, text, name))


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="give a CSV or Parquet file with the settings of each run"):
        read_settings(tmp_path / "none.csv")


def measured(runs):
    rng = np.random.default_rng(0)
    frames = [
        to_frame(
            [Row("test_error", float(rng.random()), split="test"), Row("sharp", float(rng.random()))],
            run_id=run, step=1, epoch=1,
        )
        for run in runs
    ]  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def test_joined_settings_are_configurations_with_seeds(tmp_path):
    lines = [f"w{k}.pt,{'sgd' if k < 6 else 'sam'},{k // 2},{k % 2}" for k in range(12)]
    settings = read_settings(written(tmp_path, "weights,method,lr,seed\n" + "\n".join(lines) + "\nextra.pt,sgd,9,0\n"))
    found = correlate(join_settings(measured([f"w{k}" for k in range(12)]), settings), draws=0, permutations=19)
    row = found.table.query("coefficient == 'kendall'").iloc[0]
    assert (row["n_configurations"], row["n_runs"]) == (6, 12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"a": {"lr": 1}}, r"the settings lack 1 of 2 measured runs, such as \['b'\]\.$"),
        ({"a": {"lr": 1}, "b": {"seed": 1}}, r"such as \['b'\]\.$"),
        ({"c": {"lr": 1}}, r"the settings lack 2 of 2 measured runs, such as \['a', 'b'\]; it has \['c'\]\.$"),
    ],
)
def test_runs_without_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        join_settings(measured(["a", "b"]), settings)
