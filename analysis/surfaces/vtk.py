"""Surfaces as files for ParaView and other readers of VTK's XML format."""

import base64
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np

from landscape.surfaces import Surface
from trainers.files.writing import write_bytes


def write_vtk(surface: Surface, path: str | Path) -> Path:
    """Write a surface as a structured grid, `.vts`.

    Points lie at the coordinates, in the axes' units; a line or a plane has zeros for the coordinates that it lacks
    ("Warp By Scalar" makes a relief of it). Point data are every metric, its standard error as "<metric> stderr", and
    "computed". Values that are NaN or infinite stay so. The same surface gives the same bytes.

    Args:
        surface: What to write.
        path: Its place, ending in .vts; written aside and renamed.

    Returns:
        The path.

    Raises:
        ValueError: If the ending is another one.
        OSError: As the disk does; an old file stays whole.

    Source:
        "VTK file formats", VTK user's guide, Kitware: structured grids.
    """
    path = Path(path)
    if path.suffix != ".vts":
        raise ValueError(f"`path` must end in .vts, got {path.name!r}.")
    mesh = [m.numpy() for m in surface.grid.mesh()]
    mesh += [np.zeros(surface.grid.shape)] * (3 - len(mesh))
    write_bytes(path, _xml(np.stack([_flat(m) for m in mesh], -1), (*surface.grid.shape, 1, 1)[:3], _data(surface)))
    return path


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
