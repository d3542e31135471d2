"""Refinement: evaluates where the surface bends, is right within its bound elsewhere, and says which is which."""

import math

import pytest
import torch
from problems import F64
from torch.testing import assert_close

from landscape import EmpiricalRisk
from landscape.surfaces.axes import Axes, Axis
from landscape.surfaces.grid import Grid
from landscape.surfaces.refinement import Refinement, refined
from landscape.surfaces.scan import Scanner, scan


def shaped(f, k=2):
    """A risk whose value at coordinates a is f(a)."""
    theta = {"w": torch.zeros(k, dtype=F64)}

    def predict(theta, x):
        return f(theta["w"]) + x

    risk = EmpiricalRisk(predict, lambda out, _: out.mean(), [(torch.tensor([-0.5, 0, 0.5], dtype=F64),) * 2], theta)
    units = torch.eye(k, dtype=F64)
    return risk, Axes(theta, tuple(Axis({"w": units[i]}, f"w {i}") for i in range(k)))


def bowl(w):
    return (w**2).sum()


def ridge(w):
    """Flat but for a narrow wall: a coarse scan alone would miss its shape."""
    return torch.exp(-((w[0] - 0.3) ** 2) / 0.005) + 0.01 * w.sum()


@pytest.mark.parametrize("shape", [(41,), (40,), (33, 20), (9, 8, 10)])
def test_a_plane_is_interpolated_exactly_from_its_coarse_points(shape):
    risk, axes = shaped(lambda w: 2 + (w * torch.arange(1, len(w) + 1)).sum(), len(shape))
    grid = Grid.around(1.0, shape, axes=len(shape))
    surface, whole = refined(risk, axes, grid, levels=2), scan(risk, axes, grid)
    assert_close(surface.values["loss"], whole.values["loss"], rtol=1e-12, atol=1e-12)
    assert_close(surface.stderr["loss"], whole.stderr["loss"], rtol=1e-12, atol=1e-12)
    assert float(surface.computed.double().mean()) < 0.7 ** len(shape)
    assert surface.whole
    assert surface.context["refined"]["columns"]["loss"]["estimated"] < 1e-12


@pytest.mark.parametrize(
    "f",
    [bowl, ridge, lambda w: torch.sin(3 * w).sum(), lambda w: w.abs().sum()],
    ids=["bowl", "ridge", "waves", "edges"],
)
@pytest.mark.parametrize("tolerance", [0.02, 0.003])
def test_interpolated_values_are_within_the_tolerance(f, tolerance):
    risk, axes = shaped(f)
    grid = Grid.around(1.0, 49, axes=2)
    surface, whole = refined(risk, axes, grid, levels=3, tolerance=tolerance), scan(risk, axes, grid)
    difference = (surface.values["loss"] - whole.values["loss"]).abs()
    report = surface.context["refined"]["columns"]["loss"]
    assert torch.equal(surface.values["loss"][surface.computed], whole.values["loss"][surface.computed])
    span = float(whole.values["loss"].max() - whole.values["loss"].min())
    assert report["allowed"] == pytest.approx(tolerance * span, rel=0.01)  # of the points that were evaluated
    assert float(difference.max()) <= report["allowed"]
    assert report["found"] <= report["allowed"]
    assert surface.context["refined"]["evaluated"] == int(surface.computed.sum()) < 49**2
    assert surface.context["refined"]["checks"] > 0


def test_the_bound_of_a_quadratic_is_exact():
    """Linear interpolation of a x² between points w apart is off by a w² / 4 in the middle."""
    risk, axes = shaped(lambda w: 3 * w[0] ** 2, 1)
    surface = refined(risk, axes, Grid.around(1.0, 97, axes=1), levels=1, tolerance=0.1)
    report = surface.context["refined"]["columns"]["loss"]
    w = 2 / 48
    assert report["estimated"] == pytest.approx(3 * w**2 / 4, rel=1e-10)
    assert report["found"] == pytest.approx(3 * w**2 / 4, rel=1e-10)


def test_points_go_where_the_surface_bends():
    risk, axes = shaped(ridge)
    surface = refined(risk, axes, Grid.around(1.0, 65, axes=2), levels=3, tolerance=0.01)
    density = surface.computed.double().mean(1)
    x = surface.grid.coordinates[0]
    near = (x - 0.3).abs() < 0.15
    assert float(density[near].mean()) > 3 * float(density[x < -0.3].mean())


def test_what_is_not_finite_is_always_refined_and_kept():
    risk, axes = shaped(lambda w: torch.where(w[0] + w[1] > 1.05, math.nan, 0.1 * w.sum()))
    grid = Grid.around(1.0, 33, axes=2)
    surface, whole = refined(risk, axes, grid, levels=3), scan(risk, axes, grid)
    assert torch.equal(surface.values["loss"].isnan(), whole.values["loss"].isnan())
    assert surface.computed[whole.values["loss"].isnan()].all()
    assert int(surface.computed.sum()) < 33**2


def test_what_is_infinite_is_refined_under_a_ceiling_too():
    risk, axes = shaped(lambda w: torch.where(w[0] > 0.5, math.inf, 0.1 * w.sum()))
    surface = refined(risk, axes, Grid.around(1.0, 17, axes=2), levels=2, ceiling=1.0)
    assert surface.values["loss"].isinf().any()
    assert surface.computed[surface.values["loss"].isinf()].all()


def test_a_bump_between_the_coarse_points_is_found_by_the_checks():
    risk, axes = shaped(lambda w: torch.exp(-((w[0] - 0.125) ** 2) / 0.0005) + 1e-3 * w[0], 1)
    grid = Grid.around(1.0, 65, axes=1)
    surface, whole = refined(risk, axes, grid, levels=3), scan(risk, axes, grid)
    assert float((surface.values["loss"] - whole.values["loss"]).abs().max()) < 0.011
    assert int(surface.computed.sum()) < 65


def test_a_ceiling_leaves_alone_what_is_cut_off_in_the_figure():
    risk, axes = shaped(lambda w: torch.exp(6 * (w**2).sum()))
    grid = Grid.around(1.0, 33, axes=2)
    clipped = refined(risk, axes, grid, ceiling=10.0)
    whole = scan(risk, axes, grid).values["loss"].clamp_max(10)
    assert float((clipped.values["loss"].clamp_max(10) - whole).abs().max()) <= 0.01 * 9 * 1.001
    above = whole >= 10
    assert float(clipped.computed[above].double().mean()) < 0.8
    inside = refined(risk, axes, grid).values["loss"].clamp_max(10)
    assert float((inside - whole).abs().max()) > 0.5  # a share of 160 000 says little about what lies below 10


def test_the_judged_columns_decide():
    risk, axes = shaped(bowl)
    grid = Grid.around(1.0, 17, axes=2)
    flat = {"loss": "loss", "flat": lambda out, _: torch.zeros_like(out)}
    by_flat = refined(risk, axes, grid, metrics=flat, judge=["flat"])
    by_loss = refined(risk, axes, grid, metrics=flat)
    assert list(by_loss.context["refined"]["columns"]) == ["loss"]
    assert by_flat.computed.sum() < by_loss.computed.sum()


def test_the_same_call_gives_the_same_bits_whatever_was_evaluated_before():
    risk, axes = shaped(ridge)
    grid = Grid.around(1.0, 33, axes=2)
    first = refined(risk, axes, grid, batch_points=1)
    scanner = Scanner(risk, axes, batch_points=1)
    known = scan(risk, axes, grid, batch_points=1)

    def look_up(wanted):
        return {"loss": (known.values["loss"].reshape(-1)[wanted], known.stderr["loss"].reshape(-1)[wanted])}

    again = Refinement(scanner, grid, levels=3, tolerance=0.01, evaluate=look_up).run()
    assert torch.equal(first.values["loss"], again.values["loss"])
    assert torch.equal(first.computed, again.computed)
    assert first.context == again.context


def test_no_levels_evaluate_everything():
    risk, axes = shaped(bowl)
    grid = Grid.around(1.0, (5, 6), axes=2)
    told = []
    surface = refined(risk, axes, grid, levels=0, batch_points=1, progress=lambda *now: told.append(now))
    assert surface.computed.all()
    assert torch.equal(surface.values["loss"], scan(risk, axes, grid, batch_points=1).values["loss"])
    assert told[-1] == (30, 30)


def test_wrong_arguments_are_refused():
    risk, axes = shaped(bowl)
    grid = Grid.around(1.0, 5, axes=2)
    with pytest.raises(ValueError, match="`levels` must be at least 0, got -1"):
        refined(risk, axes, grid, levels=-1)
    with pytest.raises(ValueError, match=r"`tolerance` must be a share of the range above 0, got nan"):
        refined(risk, axes, grid, tolerance=math.nan)
    with pytest.raises(ValueError, match=r"`judge` must be some of \['loss'\], got \['error'\]"):
        refined(risk, axes, grid, judge=["error"])
    with pytest.raises(ValueError, match="`grid` has 1 rows of coordinates for 2 axes"):
        refined(risk, axes, Grid.around(1.0, 5, axes=1))
