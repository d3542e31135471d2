import math

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.surfaces.files import read_surface, surface_table, write_surface
from analysis.surfaces.trajectory import SurfacePath
from landscape.surfaces import Grid, Surface


def made():
    grid = Grid.between([(-1, 1), (0, 2)], (3, 4))
    x, y = grid.mesh()
    loss = x**2 + y
    loss[0, 0], loss[1, 1] = math.nan, math.inf
    return Surface(
        grid=grid,
        values={"train loss": loss, "test error": 0.1 * y},
        stderr={"train loss": 0 * loss, "test error": x},
        computed=torch.rand(3, 4) > 0.5,
        centre={"train loss": (0.25, 0.01), "test error": (0.5, math.nan)},
        axes=({"name": "random direction 1", "unit": "filter norms", "length": 3.5, "recipe": {"seed": 4}}, {}),
        gram=torch.tensor([[2.0, 0.1], [0.1, 3.0]], dtype=torch.float64),
        context={"run": "abc", "n": {"train": 512}, "trace": math.nan, "bound": -math.inf, "names": ["x"]},
    )


def path():
    return SurfacePath("sam", pd.DataFrame({"step": [0.0, 5.0], "a1": [1.0, 0.0], "distance": [0.5, np.nan]}), "sam")


def test_a_surface_comes_back_as_it_was(tmp_path):
    surface = made()
    write_surface(surface, tmp_path / "s.npz", [path()])
    found, paths = read_surface(tmp_path / "s.npz")
    for a, b in zip(found.grid.coordinates, surface.grid.coordinates, strict=True):
        assert torch.equal(a, b)
    assert found.metrics == ["train loss", "test error"]
    for name in surface.metrics:
        assert torch.equal(found.values[name].nan_to_num(7.0), surface.values[name].nan_to_num(7.0))
        assert torch.equal(found.stderr[name].nan_to_num(7.0), surface.stderr[name].nan_to_num(7.0))
    assert torch.equal(found.computed, surface.computed)
    assert torch.equal(found.gram, surface.gram)
    assert found.axes == surface.axes
    assert found.centre["train loss"] == (0.25, 0.01)
    assert math.isnan(found.centre["test error"][1])
    assert found.context["bound"] == -math.inf
    assert math.isnan(found.context["trace"])
    assert found.context["n"] == {"train": 512}
    pd.testing.assert_frame_equal(paths[0].table, path().table)
    assert (paths[0].name, paths[0].look) == ("sam", "sam")


def test_the_same_content_gives_the_same_bytes(tmp_path):
    surface = made()
    a = write_surface(surface, tmp_path / "a.npz", [path()]).read_bytes()
    again, paths = read_surface(tmp_path / "a.npz")
    b = write_surface(again, tmp_path / "b.npz", paths).read_bytes()
    assert a == b


def test_foolish_files(tmp_path):
    with pytest.raises(ValueError, match=r"`path` must end in .npz"):
        write_surface(made(), tmp_path / "s.csv")
    with pytest.raises(FileNotFoundError, match="landscape surface"):
        read_surface(tmp_path / "none.npz")
    (tmp_path / "junk.npz").write_bytes(b"not a zip")
    with pytest.raises(ValueError, match="no whole surface"):
        read_surface(tmp_path / "junk.npz")
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    with pytest.raises(ValueError, match="no whole surface"):
        read_surface(tmp_path / "other.npz")
    whole = write_surface(made(), tmp_path / "s.npz")
    whole.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(ValueError, match="delete it and make it again"):
        read_surface(whole)


def test_the_table_has_a_row_a_point():
    table = surface_table(made())
    assert len(table) == 12
    assert table.columns.tolist() == [
        "a1", "a2", "computed", "train loss", "train loss stderr", "test error", "test error stderr",
    ]  # fmt: skip
    row = table[(table.a1 == 1) & (table.a2 == 2)].iloc[0]
    assert row["train loss"] == 3.0
