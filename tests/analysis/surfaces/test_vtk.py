"""Surfaces for ParaView: read back by an own reader of the format, which shares nothing with the writer."""

import base64
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from made_surfaces import bowl, hole, made

from analysis.surfaces.vtk import write_vtk


def read_xml(path):
    root = ET.parse(path).getroot()
    assert root.attrib["byte_order"] == "LittleEndian"
    grid = root.find("StructuredGrid")
    extent = [int(v) for v in grid.attrib["WholeExtent"].split()]
    size = tuple(high - low + 1 for low, high in zip(extent[::2], extent[1::2], strict=True))

    def numbers(element):
        content = base64.b64decode(element.text)
        assert int.from_bytes(content[:8], "little") == len(content) - 8
        found = np.frombuffer(content[8:], "<f8")
        return found.reshape(-1, 3) if element.attrib["NumberOfComponents"] == "3" else found

    piece = grid.find("Piece")
    points = numbers(piece.find("Points/DataArray"))
    data = {e.attrib["Name"]: numbers(e) for e in piece.findall("PointData/DataArray")}
    return size, points, data


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_every_point_has_its_coordinates_and_values(axes, tmp_path):
    surface = made(
        lambda *c: bowl(*c, curvature=(2.0, 0.5, 7.0), slope=(0.3, 0.1, 0.2)), axes=axes, points=[4, 5, 3][:axes],
        metric="train loss", spoil=hole, computed=lambda *c: c[0] > -0.9,
    )  # fmt: skip
    size, points, data = read_xml(write_vtk(surface, tmp_path / "x.vts"))
    assert size == (*surface.grid.shape, 1, 1)[:3]
    values = surface.values["train loss"]
    shown = data["train loss"]
    number = 0
    for k in range(size[2]):  # by hand: the first index runs fastest
        for j in range(size[1]):
            for i in range(size[0]):
                at = (i, j, k)[:axes]
                place = [float(surface.grid.coordinates[d][at[d]]) for d in range(axes)] + [0.0] * (3 - axes)
                assert points[number].tolist() == place
                assert shown[number] == float(values[at]) or (math.isnan(shown[number]) and bool(values[at].isnan()))
                assert bool(data["computed"][number]) == bool(surface.computed[at])
                number += 1
    assert np.isnan(shown).any()
    assert np.isinf(shown).any()
    np.testing.assert_array_equal(data["train loss stderr"], 0.01)
    assert len(data) == 5


def test_equal_surfaces_give_equal_bytes(tmp_path):
    first, second = (write_vtk(made(), tmp_path / f"{n}.vts").read_bytes() for n in "ab")
    assert first == second


def test_a_name_cannot_break_the_file(tmp_path):
    surface = made(error=False, metric='a "b" <c> & loss', names=["ligne\nπ", "2"])
    _, _, data = read_xml(write_vtk(surface, tmp_path / "x.vts"))
    assert 'a "b" <c> & loss' in data


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match=r"`path` must end in .vts, got 'x.vtp'"):
        write_vtk(made(), tmp_path / "x.vtp")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_vtk(made(), tmp_path / "x.vts")
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="the disk is full"):
        write_vtk(made(points=5), path)
    assert path.read_bytes() == before
