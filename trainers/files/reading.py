"""Reading files that may be damaged or hold something else: one clear error with the file's name and the way out.

Whatever reads JSON, YAML, Parquet or `.npz` does it here, so that no reader has to expect a file of another shape.
"""

import json
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa
import pydantic
import yaml

from landscape.naming import nearest

AGAIN = "delete it and run the same command again"
DEEPEST = 50  # levels of a YAML file
LARGEST = 100_000  # values of a YAML file, those counted again that it repeats by reference
SHOWN = 60  # characters of a value in a message


class Shape(pydantic.BaseModel):
    """What a JSON object must hold; further keys are of other versions, and stay."""

    model_config = pydantic.ConfigDict(strict=True, extra="ignore")


def read_json(path: Path, shape: type[Shape] | None = None, *, hint: str = AGAIN) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.
        shape: What it must hold; None takes any object.
        hint: The way out, for the error.

    Returns:
        The object as it stands in the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no UTF-8 text, no JSON, no object, or of another shape.
    """
    _check_exists(path, hint)
    content = parse_json(path.read_bytes(), path, hint)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {_kind(content)}, not an object: {hint}.")
    if shape is not None:
        check_shape(content, shape, path, hint=hint)
    return content


def parse_json(raw: bytes, path: Path, hint: str) -> Any:
    """What stands in the content of a JSON file, object or not; as `read_json`."""
    text = _decoded(raw, path, hint)
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not whole JSON ({_first(error)}): {hint}.") from None


def check_shape(content: Any, shape: type[Shape], path: Path, *, hint: str = AGAIN) -> None:
    """Raise a ValueError that names the file where an object lacks a key, or one holds something else."""
    try:
        shape.model_validate(content)
    except pydantic.ValidationError as error:
        wrong = "; ".join(explain(error, shape.model_fields)).rstrip(".")
        raise ValueError(f"{path} holds something else than it should ({wrong}): {hint}.") from None


def read_yaml(path: Path) -> Any:
    """Read a YAML file; nothing in it is run.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no UTF-8 text, no YAML, has a key twice, is nested too deeply, refers to itself, or grows
            beyond measure by references.
    """
    text = _text(path, "give a file that is there")
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _Walk(path, loader).values(node, 0)
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError(f"{path} is nested more than {DEEPEST} levels deep: is a bracket left open?") from None
    except _RefusedError as error:
        raise ValueError(str(error)) from None
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"{path} is not YAML: {error.problem or error.context}{_place(error.problem_mark)}.") from None
    except Exception as error:  # PyYAML lets many kinds through where a value does not fit its tag
        raise ValueError(f"{path} is not YAML: {_first(error)}.") from None
    finally:
        if loader is not None:
            loader.dispose()


def read_table(path: Path, columns: Iterable[str] = (), *, hint: str = AGAIN) -> pd.DataFrame:
    """Read a Parquet table.

    Args:
        path: The file.
        columns: What it must have.
        hint: The way out, for the error.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no whole table, or lacks a column.
    """
    _check_exists(path, hint)
    try:
        table = pd.read_parquet(path)
    except (pa.ArrowException, ValueError, OSError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a Parquet table ({_first(error)}): {hint}.") from None
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise ValueError(f"{path} lacks the columns {missing}: {hint}.")
    return table


def read_arrays(path: Path, names: Iterable[str] = (), *, hint: str = AGAIN) -> dict[str, np.ndarray]:
    """Read all arrays of a `.npz` file; nothing in it is run.

    Args:
        path: The file.
        names: What it must hold.
        hint: The way out, for the error.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no whole `.npz`, or lacks an array.
    """
    _check_exists(path, hint)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise ValueError("it is one array, not several")
            arrays = {name: stored[name] for name in stored.files}
    except (
        OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, RuntimeError, MemoryError, OverflowError,
        SyntaxError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise ValueError(f"{path} is not a whole .npz file ({_first(error)}): {hint}.") from None
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(f"{path} lacks the arrays {missing}: {hint}.")
    return arrays


def explain(error: pydantic.ValidationError, keys: Iterable[str]) -> list[str]:
    """One line for each problem of a validation error, in the words of this project."""
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"] if part not in ("bool", "int", "float", "str"))
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key `{key}`.{nearest(key, keys) or f' Known keys: {sorted(keys)}.'}")
        elif problem["type"] == "missing":
            lines.append(f"`{key}` is required.")
        elif problem["type"] == "value_error":
            text = str(problem["ctx"]["error"])
            lines.append(text if "`" in text else f"`{key}`: {text}")
        else:
            reason = problem["msg"][0].lower() + problem["msg"][1:]
            hint = "; a date that is meant as a name belongs into quotes" * isinstance(problem["input"], date)
            lines.append(f"`{key}` got {short(problem['input'])}: {reason}{hint}.")
    return list(dict.fromkeys(lines))


def short(value: Any) -> str:
    """A value for a message, cut where it is long."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} nested without end"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."


class _RefusedError(Exception):
    """What is wrong with a YAML file that is YAML."""


class _Walk:
    """Looks through the nodes of a YAML file for what must not be there."""

    def __init__(self, path: Path, loader: yaml.SafeLoader) -> None:
        self.path, self.loader = path, loader
        self.sizes: dict[int, int] = {}
        self.open: set[int] = set()

    def values(self, node: yaml.Node, depth: int) -> int:
        """How many values a node stands for."""
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) in self.sizes:
            return self.sizes[id(node)]
        if id(node) in self.open:
            self.refuse("holds a list or mapping that contains itself", node)
        if depth == DEEPEST:
            self.refuse(f"is nested more than {DEEPEST} levels deep", node)
        self.open.add(id(node))
        size = 1 + sum(self.values(child, depth + 1) for child in self.children(node))
        if size > LARGEST:
            self.refuse(f"stands for more than {LARGEST:,} values, most of them by reference", node)
        self.open.remove(id(node))
        self.sizes[id(node)] = size
        return size

    def children(self, node: yaml.Node) -> list[yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            return list(node.value)
        seen: set[Any] = set()
        for key, _ in node.value:
            merged = key.tag == "tag:yaml.org,2002:merge"
            name = "<<" if merged else self.loader.construct_object(key) if isinstance(key, yaml.ScalarNode) else None
            if name is not None and (type(name), name) in seen:
                self.refuse(f"has the key {short(name)} twice", key)
            seen.add((type(name), name))
        return [part for pair in node.value for part in pair]

    def refuse(self, why: str, node: yaml.Node) -> NoReturn:
        raise _RefusedError(f"{self.path} {why}{_place(node.start_mark)}.")


def _text(path: Path, hint: str) -> str:
    _check_exists(path, hint)
    return _decoded(path.read_bytes(), path, hint)


def _decoded(raw: bytes, path: Path, hint: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.object[error.start]:#04x} at place {error.start}): save it as "
            f"UTF-8, or {hint}."
        ) from None


def _check_exists(path: Path, hint: str) -> None:
    if path.is_dir():
        raise ValueError(f"{path} is a folder where a file is expected: move it away, then {hint}.")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: {hint}.")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"it holds {constant}, which is no number of JSON")


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _first(error: BaseException) -> str:
    """The first line of a library's message."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    lines: Sequence[str] = str(error).strip().splitlines()
    return lines[0].rstrip(".:")[: 3 * SHOWN] if lines else type(error).__name__


def _place(mark: yaml.Mark | None) -> str:
    return "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
