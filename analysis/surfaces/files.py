"""Files of surfaces: one .npz that holds the numbers and all that is needed to draw and to explain them again.

`meta` is JSON text (schema, axes, context); `coordinates/<i>`, `values/<metric>`, `stderr/<metric>`, `computed`,
`centre/<metric>` and `gram` are arrays; `paths/<i>/<column>` are trajectories. The same content gives the same bytes.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydantic
import torch
from torch import Tensor

from analysis.surfaces.trajectory import SurfacePath
from landscape.surfaces import Grid, Surface
from trainers.files.reading import Shape, check_shape, read_arrays
from trainers.files.writing import write_atomically

SCHEMA = 1


class PathEntry(Shape):
    """One trajectory, in `meta`."""

    name: str
    look: str


class MetaFile(Shape):
    """`meta`."""

    schema_: int = pydantic.Field(alias="schema")
    axes: list[dict[str, Any]]
    context: dict[str, Any]
    metrics: list[str]
    paths: list[PathEntry]


def write_surface(surface: Surface, path: Path, paths: Sequence[SurfacePath] = ()) -> Path:
    """Write a surface, and trajectories over it, atomically.

    Args:
        surface: What was found.
        path: Its place; the name ends in .npz.
        paths: Trajectories drawn over it.

    Raises:
        ValueError: If the name has another ending.
        OSError: As the disk does; an old file stays whole.
    """
    _check(path)
    meta = {
        "schema": SCHEMA,
        "axes": [dict(axis) for axis in surface.axes],
        "context": dict(surface.context),
        "metrics": surface.metrics,
        "paths": [{"name": p.name, "look": p.look} for p in paths],
    }
    arrays: dict[str, np.ndarray] = {"meta": np.array(json.dumps(_plain(meta), sort_keys=True))}
    for i, c in enumerate(surface.grid.coordinates):
        arrays[f"coordinates/{i}"] = c.numpy()
    for name in surface.metrics:
        arrays[f"values/{name}"] = surface.values[name].numpy()
        arrays[f"stderr/{name}"] = surface.stderr[name].numpy()
        arrays[f"centre/{name}"] = np.array(surface.centre.get(name, (np.nan, np.nan)))
    arrays["computed"] = surface.computed.numpy()
    arrays["gram"] = surface.gram.numpy()
    for i, p in enumerate(paths):
        for column in p.table.columns:
            arrays[f"paths/{i}/{column}"] = p.table[column].to_numpy(dtype=np.float64)

    def write(aside: Path) -> None:
        with aside.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    write_atomically(path, write)
    return path


def read_surface(path: str | Path) -> tuple[Surface, list[SurfacePath]]:
    """Read a surface and its trajectories back; nothing in the file is run.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no surface, damaged, or of a later version.
    """
    path = Path(path)
    _check(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: make it with `landscape surface`.")
    try:
        arrays = read_arrays(path, ("meta",))
        meta = json.loads(str(arrays["meta"]))
        if isinstance(meta, dict) and isinstance(meta.get("schema"), int) and meta["schema"] > SCHEMA:
            schema = meta["schema"]
        else:
            check_shape(meta, MetaFile, path)
            return _surface(arrays, meta)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError, RecursionError) as error:
        raise ValueError(f"{path} is no whole surface ({error}): delete it and make it again.") from None
    raise ValueError(f"{path} has schema {schema}, this version reads up to {SCHEMA}: update landscape.")


def _surface(arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> tuple[Surface, list[SurfacePath]]:
    axes = len([name for name in arrays if name.startswith("coordinates/")])
    grid = Grid(tuple(torch.from_numpy(arrays[f"coordinates/{i}"]) for i in range(axes)))
    names = meta["metrics"]
    surface = Surface(
        grid=grid,
        values=_tensors(arrays, "values", names),
        stderr=_tensors(arrays, "stderr", names),
        computed=torch.from_numpy(arrays["computed"]),
        centre={name: (float(arrays[f"centre/{name}"][0]), float(arrays[f"centre/{name}"][1])) for name in names},
        axes=tuple(_numbers(meta["axes"])),
        gram=torch.from_numpy(arrays["gram"]),
        context=_numbers(meta["context"]),
    )
    paths = []
    for i, about in enumerate(meta["paths"]):
        start = f"paths/{i}/"
        columns = {name.removeprefix(start): a for name, a in arrays.items() if name.startswith(start)}
        paths.append(SurfacePath(about["name"], pd.DataFrame(columns), about["look"]))
    return surface, paths


def surface_table(surface: Surface) -> pd.DataFrame:
    """A row a point: coordinates (by axis number), `computed`, and each metric's value and standard error."""
    columns: dict[str, Any] = {f"a{i}": mesh.flatten().numpy() for i, mesh in enumerate(surface.grid.mesh(), start=1)}
    columns["computed"] = surface.computed.flatten().numpy()
    for name in surface.metrics:
        columns[name] = surface.values[name].flatten().numpy()
        columns[f"{name} stderr"] = surface.stderr[name].flatten().numpy()
    return pd.DataFrame(columns)


def _tensors(arrays: Mapping[str, np.ndarray], kind: str, names: Sequence[str]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(arrays[f"{kind}/{name}"]) for name in names}


def _check(path: Path) -> None:
    if path.suffix != ".npz":
        raise ValueError(f"`path` must end in .npz, got {path}.")


def _plain(value: Any) -> Any:
    """JSON has neither NaN nor infinities: they become the words that Python's float reads back."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value


def _numbers(value: Any) -> Any:
    """The reverse of `_plain`."""
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    return float(value) if value in ("nan", "inf", "-inf") else value
