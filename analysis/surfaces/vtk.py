"""Surfaces as files for ParaView and other readers of VTK's formats."""

import base64
import math
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np

from landscape.surfaces import Surface
from trainers.files.writing import write_bytes

BYTES = 8  # of a number


def write_vtk(surface: Surface, path: str | Path, *, height: str | None = None) -> Path:
    """Write a surface as a structured grid: `.vts` (XML, the current format) or `.vtk` (the older one, binary).

    Points lie at the coordinates, in the axes' units; a line or a plane has zeros for the coordinates that it lacks.
    Point data are every metric, its standard error as "<metric> stderr", and "computed". Values that are NaN or
    infinite stay so. The same surface gives the same bytes.

    Args:
        surface: What to write.
        path: Its place, ending in .vts or .vtk; written aside and renamed.
        height: A metric that becomes the last coordinate of a line or plane, so that it stands as a relief at once;
            where it is not finite the point lies at the highest finite value. None leaves it flat, for "Warp By
            Scalar".

    Returns:
        The path.

    Raises:
        ValueError: If the ending is another one, or `height` is no metric of a line or plane.
        OSError: As the disk does; an old file stays whole.

    Source:
        "VTK file formats", VTK user's guide, Kitware: structured grids.
    """
    path = Path(path)
    if path.suffix not in (".vts", ".vtk"):
        raise ValueError(f"`path` must end in .vts or .vtk, got {path.name!r}.")
    points, size = _points(surface, height)
    data = _data(surface)
    write_bytes(path, _xml(points, size, data) if path.suffix == ".vts" else _legacy(surface, points, size, data))
    return path


def _points(surface: Surface, height: str | None) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Coordinates of all points, the first axis running fastest, and points along each axis."""
    k = len(surface.grid.shape)
    mesh = [m.numpy() for m in surface.grid.mesh()]
    if height is not None:
        if k == 3 or height not in surface.values:
            raise ValueError(f"`height` must be one of {surface.metrics}, of a line or plane, got {height!r}.")
        values = surface.values[height].numpy()
        finite = values[np.isfinite(values)]
        mesh.append(np.where(np.isfinite(values), values, finite.max() if len(finite) else 0.0))
    mesh += [np.zeros(surface.grid.shape)] * (3 - len(mesh))
    size = (*surface.grid.shape, 1, 1)[:3]
    return np.stack([_flat(m) for m in mesh], -1), size  # type: ignore[return-value]


def _data(surface: Surface) -> Mapping[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name in surface.metrics:
        found[name] = _flat(surface.values[name].numpy())
        found[f"{name} stderr"] = _flat(surface.stderr[name].numpy())
    found["computed"] = _flat(surface.computed.numpy().astype(np.float64))
    return found


def _flat(values: np.ndarray) -> np.ndarray:
    """VTK counts points with the first axis running fastest."""
    return np.asarray(values, dtype=np.float64).ravel(order="F")


def _xml(points: np.ndarray, size: Sequence[int], data: Mapping[str, np.ndarray]) -> bytes:
    extent = " ".join(f"0 {n - 1}" for n in size)
    parts = [
        '<?xml version="1.0"?>',
        '<VTKFile type="StructuredGrid" version="1.0" byte_order="LittleEndian" header_type="UInt64">',
        f'<StructuredGrid WholeExtent="{extent}"><Piece Extent="{extent}">',
        f"<PointData Scalars={quoteattr(next(iter(data)))}>",
        *(_array(name, values) for name, values in data.items()),
        "</PointData><Points>",
        _array("Points", points, components=3),
        "</Points></Piece></StructuredGrid></VTKFile>\n",
    ]
    return "\n".join(parts).encode("utf-8")


def _array(name: str, values: np.ndarray, *, components: int = 1) -> str:
    """One array, in base64 behind its size in bytes; XML text could not hold NaN for every reader."""
    content = np.ascontiguousarray(values, dtype="<f8").tobytes()
    text = base64.b64encode(struct.pack("<Q", len(content)) + content).decode("ascii")
    about = f'type="Float64" Name={quoteattr(name)} NumberOfComponents="{components}" format="binary"'
    return f"<DataArray {about}>{text}</DataArray>"


def _legacy(surface: Surface, points: np.ndarray, size: Sequence[int], data: Mapping[str, np.ndarray]) -> bytes:
    """The older format: names without spaces, a title of at most 255 letters of ASCII, numbers' high bytes first."""
    title = "surface over " + ", ".join(str(axis.get("name", "")) for axis in surface.axes)
    count = math.prod(size)
    parts = [
        b"# vtk DataFile Version 3.0\n",
        title.encode("ascii", "replace").replace(b"\n", b" ")[:255] + b"\nBINARY\nDATASET STRUCTURED_GRID\n",
        b"DIMENSIONS %d %d %d\nPOINTS %d double\n" % (*size, count),
        np.ascontiguousarray(points, dtype=">f8").tobytes() + b"\n",
        b"POINT_DATA %d\n" % count,
    ]
    for name, values in data.items():
        plain = re.sub(r"[^\w.-]+", "_", name).encode("ascii", "replace")
        parts.append(b"SCALARS " + plain + b" double 1\nLOOKUP_TABLE default\n")
        parts.append(np.ascontiguousarray(values, dtype=">f8").tobytes() + b"\n")
    return b"".join(parts)
