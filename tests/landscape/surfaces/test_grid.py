"""Grids: exact centres and ends, symmetry to the bit, order of points, bad input."""

import math

import pytest
import torch

from landscape.surfaces.grid import Grid

F64 = torch.float64


@pytest.mark.parametrize("radius", [1.0, 0.3, 1 / 3, 1e-7, 12345.678])
@pytest.mark.parametrize("points", [2, 3, 4, 5, 10, 51, 100, 101])
def test_around_is_symmetric_to_the_bit_with_exact_ends_and_centre(radius, points):
    (c,) = Grid.around(radius, points, axes=1).coordinates
    assert c.dtype == F64
    assert len(c) == points
    assert torch.equal(c, -c.flip(0))
    assert c[0] == -radius
    assert c[-1] == radius
    assert (0.0 in c.tolist()) == (points % 2 == 1)
    assert not any(math.copysign(1, x) < 0 for x in c.tolist() if x == 0), "the centre is 0, not -0"
    steps = c.diff()
    assert bool((steps > 0).all())
    torch.testing.assert_close(steps, torch.full_like(steps, 2 * radius / (points - 1)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("points", [21, 31, 41, 51, 101])
def test_between_holds_zero_and_both_ends_where_steps_fall_on_them(points):
    (c,) = Grid.between([(-0.5, 1.5)], points).coordinates
    exact = torch.tensor([-0.5 + 2.0 * i / (points - 1) for i in range(points)], dtype=F64)
    torch.testing.assert_close(c, exact, rtol=0, atol=1e-15)
    assert c[0] == -0.5
    assert c[-1] == 1.5
    on_zero = (points - 1) % 4 == 0
    assert (0.0 in c.tolist()) == on_zero


@pytest.mark.parametrize("limits", [(-0.1, 0.1 * r / m) for m in range(2, 9) for r in range(1, 6) if r != m])
def test_zero_is_exact_where_rounding_would_miss_it(limits):
    steps = round((limits[1] - limits[0]) / 0.1 * 840)  # 840 is a multiple of every m above
    (c,) = Grid.between([limits], steps + 1).coordinates
    assert c[840] == 0


def test_between_does_not_move_a_point_that_is_merely_near_zero():
    (c,) = Grid.between([(-1.0, 1.001)], 3).coordinates
    assert c[1] == pytest.approx(0.0005, rel=1e-9)


def test_points_run_in_c_order_with_the_last_axis_fastest():
    grid = Grid.between([(0.0, 1.0), (0.0, 2.0), (-1.0, 1.0)], [2, 3, 4])
    assert grid.shape == (2, 3, 4)
    assert len(grid) == 24
    mesh = grid.mesh()
    assert all(m.shape == grid.shape for m in mesh)
    listed = torch.tensor(list(grid.points()), dtype=F64)
    torch.testing.assert_close(listed, torch.stack([m.reshape(-1) for m in mesh], 1), rtol=0, atol=0)
    assert [grid.point(i) for i in range(24)] == list(grid.points())
    assert grid.point(1)[:2] == grid.point(0)[:2]


def test_one_number_or_one_an_axis():
    grid = Grid.around([1.0, 2.0], [3, 5], axes=2)
    assert grid.shape == (3, 5)
    assert [float(c[-1]) for c in grid.coordinates] == [1.0, 2.0]
    assert Grid.around(2, 3, axes=3).shape == (3, 3, 3)


@pytest.mark.parametrize("radius", [0.0, -1.0, math.nan, math.inf])
def test_a_bad_radius_is_refused(radius):
    with pytest.raises(ValueError, match=r"`radius` must be finite and above 0, got"):
        Grid.around(radius, 5, axes=2)


def test_wrong_counts_are_refused():
    with pytest.raises(ValueError, match=r"`points` must be a whole number of at least 2 an axis, got 1"):
        Grid.around(1.0, 1, axes=2)
    with pytest.raises(ValueError, match=r"`points` must be one number, or 2, one an axis, got 3"):
        Grid.around(1.0, [5, 5, 5], axes=2)
    with pytest.raises(ValueError, match=r"`radius` must be one number, or 2, one an axis, got 1"):
        Grid.around([1.0], 5, axes=2)


@pytest.mark.parametrize("limits", [(1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (0.0, math.inf)])
def test_bad_limits_are_refused(limits):
    with pytest.raises(ValueError, match=r"`limits` must be finite with low < high"):
        Grid.between([limits], 5)
