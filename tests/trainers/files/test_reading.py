"""Files that are damaged or hold something else: one error with the file's name and the way out."""

import json

import numpy as np
import pandas as pd
import pytest

from trainers.files.reading import LARGEST, Shape, read_arrays, read_json, read_table, read_yaml


class Wanted(Shape):
    name: str
    numbers: list[int] = []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not whole JSON"),
        (b'{"a": ', "is not whole JSON"),
        (b"[" * 100_000, r"is not whole JSON \(it is nested too deeply\)"),
        (b'{"name": NaN}', "it holds NaN, which is no number of JSON"),
        (b"[1]", "holds a list, not an object"),
        (b"3", "holds a number, not an object"),
        (b"null", "holds null, not an object"),
        (b"{}", "`name` is required"),
        (b'{"name": 3}', "`name` got 3: input should be a valid string"),
        (b'{"name": "x", "numbers": ["1"]}', r"`numbers.0` got '1': input should be a valid integer"),
        (json.dumps({"name": ["x" * 500]}).encode(), r"got \['x{40,60} \.\.\.: input"),
        (
            "{'name': 'é'}".encode("latin-1"),
            r"is not UTF-8 text \(byte 0xe9 at place 10\): save it as UTF-8",
        ),
    ],
)
def test_json_of_another_shape_is_refused_with_the_way_out(content, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"config\.json .*{message}.*train again\.$") as error:
        read_json(path, Wanted, hint="train again")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_json_keeps_what_other_versions_wrote(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"name": "x", "later": [1]}')  # an editor's byte order mark is no harm
    assert read_json(path, Wanted) == {"name": "x", "later": [1]}
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist: delete it"):
        read_json(tmp_path / "none.json")
    with pytest.raises(ValueError, match="is a folder where a file is expected"):
        read_json(tmp_path)


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "has the key 'a' twice, line 3, column 1"),
        ("a: {b: [{c: 1, d: 2, c: 3}]}", "has the key 'c' twice"),
        ("yes: 1\non: 2", "has the key True twice"),
        ("a: " + "[" * 1000, "is nested more than 50 levels deep"),
        ("a: " + "[" * 60 + "]" * 60, "is nested more than 50 levels deep"),
        ("a: &a [*a]", "holds a list or mapping that contains itself"),
        ("&a {b: {c: *a}}", "holds a list or mapping that contains itself"),
        (LAUGHS, f"stands for more than {LARGEST:,} values, most of them by reference"),
        ("a: [1", "is not YAML: .*line 1"),
        ("a: !!python/name:os.system x", "is not YAML: could not determine a constructor"),
        ("a: !!timestamp x", "is not YAML"),
        ("a: 2026-13-45", "is not YAML: month must be in 1..12"),
        ("? [a]\n: 1", "is not YAML: found unhashable key"),
        ("a: 1\n---\nb: 2", "is not YAML: expected a single document|is not YAML: but found another document"),
    ],
)
def test_yaml_that_means_nothing_good_is_refused(text, message, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"s\.yaml {message}") as error:
        read_yaml(path)
    assert "\n" not in str(error.value)


def test_yaml_may_refer_and_merge(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("﻿a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\n", encoding="utf-8")
    assert read_yaml(path) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": [{"x": 1, "y": 2}] * 2}
    path.write_bytes("name: café".encode("latin-1"))
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        read_yaml(path)
    path.write_text("")
    assert read_yaml(path) is None


DAMAGES = {
    "empty": lambda _: b"",
    "begun": lambda raw: raw[:60],
    "cut short": lambda raw: raw[:-20],
    "other": lambda _: b"x" * 99,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_tables_and_arrays_that_are_not_whole_are_refused(damage, tmp_path):
    table, arrays = tmp_path / "t.parquet", tmp_path / "a.npz"
    pd.DataFrame({"x": [1.0, 2.0]}).to_parquet(table)
    np.savez_compressed(arrays, x=np.arange(1000))
    assert list(read_table(table, ["x"])["x"]) == [1.0, 2.0]
    assert read_arrays(arrays, ["x"])["x"].shape == (1000,)
    with pytest.raises(ValueError, match=r"t\.parquet lacks the columns \['y'\]: delete it"):
        read_table(table, ["x", "y"])
    with pytest.raises(ValueError, match=r"a\.npz lacks the arrays \['y'\]"):
        read_arrays(arrays, ["y"])
    for path in (table, arrays):
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(ValueError, match=r"t\.parquet is not a Parquet table"):
        read_table(table)
    with pytest.raises(ValueError, match=r"a\.npz is not a whole \.npz file"):
        read_arrays(arrays)


def test_a_flipped_byte_inside_compressed_arrays_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).integers(0, 9, 10_000))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(bytes(raw))
    with pytest.raises(ValueError, match=r"a\.npz is not a whole \.npz file"):
        read_arrays(path)


def test_objects_in_arrays_are_not_loaded(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"not a whole \.npz file"):
        read_arrays(tmp_path / "a.npz")
