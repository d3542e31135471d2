"""Trajectories: planted planes, other libraries' principal components, the random walk, points that are loaded."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from landscape import Params, flatten, random_direction
from landscape.surfaces import trajectory
from landscape.surfaces.axes import Axes, Axis
from landscape.surfaces.trajectory import LoadedPoints, project_path, random_walk_shares, trajectory_axes

F64 = torch.float64
LIKE = {"w": torch.zeros(6, 5, dtype=F64), "b": torch.zeros(10, dtype=F64)}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def cut(vector, like=LIKE) -> Params:
    parts = vector.split([t.numel() for t in like.values()])
    return {n: part.view_as(t).to(t.dtype) for (n, t), part in zip(like.items(), parts, strict=True)}


def wandering(count=12, seed=0, dtype=F64):
    """A smooth path with noise; as points and as a matrix."""
    rows = torch.randn(count, 40, generator=seeded(seed), dtype=F64).cumsum(0) * 0.3 + 2
    like = {n: t.to(dtype) for n, t in LIKE.items()}
    return [cut(row, like) for row in rows], rows


def planted(seed=0):
    """Points in a plane through the last one."""
    g = seeded(seed)
    basis = torch.linalg.qr(torch.randn(40, 2, generator=g, dtype=F64)).Q
    inside = torch.tensor([[5.0, -1], [4, 1.5], [3, 1], [2, -0.5], [1, 0.3], [0, 0]], dtype=F64)
    rows = torch.randn(40, generator=g, dtype=F64) + inside @ basis.T
    return [cut(row) for row in rows], inside, basis


@pytest.mark.parametrize("centred", [False, True])
def test_a_planted_plane_is_found(centred):
    points, inside, basis = planted()
    found = trajectory_axes(points, centred=centred)
    D = torch.stack([flatten(axis.direction, list(LIKE)) for axis in found.axes.axes], 1)
    torch.testing.assert_close(D.T @ D, torch.eye(2, dtype=F64), rtol=0, atol=1e-12)
    torch.testing.assert_close(basis @ (basis.T @ D), D, rtol=0, atol=1e-11)
    assert float(found.distances.max()) < 1e-10
    assert found.shown == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(torch.cdist(found.coordinates, found.coordinates), torch.cdist(inside, inside))
    for point, at in zip(points, found.coordinates.tolist(), strict=True):
        torch.testing.assert_close(flatten(found.axes.at(at)), flatten(point), rtol=0, atol=1e-10)
    zero = found.coordinates.mean(0) if centred else found.coordinates[-1]
    torch.testing.assert_close(zero, torch.zeros(2, dtype=F64), rtol=0, atol=1e-11)


def test_centred_axes_are_those_of_scikit_learn():
    points, rows = wandering()
    found = trajectory_axes(points, centred=True, count=3)
    peer = PCA().fit(rows.numpy())
    for j, axis in enumerate(found.axes.axes):
        cosine = float(flatten(axis.direction) @ torch.from_numpy(peer.components_[j]))
        assert abs(cosine) == pytest.approx(1, abs=1e-10)
    np.testing.assert_allclose(found.explained.numpy(), peer.explained_variance_ratio_[:11], rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(flatten(found.axes.origin), rows.mean(0))
    left = rows - rows.mean(0) - found.coordinates @ torch.stack([flatten(a.direction) for a in found.axes.axes])
    torch.testing.assert_close(found.distances, left.norm(dim=1), rtol=1e-9, atol=1e-12)


def test_uncentred_axes_are_the_singular_vectors_of_the_differences_from_the_end():
    points, rows = wandering()
    found = trajectory_axes(points, centred=False)
    _, s, Vh = torch.linalg.svd(rows[:-1] - rows[-1], full_matrices=False)
    for j, axis in enumerate(found.axes.axes):
        assert abs(float(flatten(axis.direction) @ Vh[j])) == pytest.approx(1, abs=1e-10)
    torch.testing.assert_close(found.explained, s**2 / (s**2).sum(), rtol=1e-9, atol=1e-13)
    assert float(found.distances[-1]) == 0
    assert all(torch.equal(found.axes.origin[n], t) for n, t in points[-1].items())
    centred = trajectory_axes(points, centred=True)
    assert float(centred.distances[-1]) > 0.05, "the end point is off the centred plane"


def test_what_is_explained_is_what_the_distances_leave():
    points, rows = wandering()
    for centred in (False, True):
        found = trajectory_axes(points, centred=centred)
        origin = rows.mean(0) if centred else rows[-1]
        whole = float(((rows - origin) ** 2).sum())
        assert found.shown == pytest.approx(1 - float((found.distances**2).sum()) / whole, rel=1e-10)
        assert float(found.explained.sum()) == pytest.approx(1)
        assert len(found.explained) == len(found.null) == len(points) - 1
        assert found.centred == centred


@pytest.mark.parametrize("seed", range(5))
def test_the_largest_coordinate_along_each_axis_is_positive(seed):
    found = trajectory_axes(wandering(seed=seed)[0], centred=seed % 2 == 0, count=3)
    for c in found.coordinates.T:
        assert float(c[int((c.abs() >= 0.99 * c.abs().max()).int().argmax())]) > 0


def test_recipes_and_names():
    axis = trajectory_axes(wandering()[0], centred=True).axes.axes[1]
    assert axis.recipe["kind"] == "trajectory"
    assert axis.recipe["component"] == 2
    assert axis.recipe["random_walk"] < axis.recipe["explained"] * 10
    assert axis.name == f"principal axis 2 ({100 * axis.recipe['explained']:.1f} %)"
    assert json.loads(json.dumps(axis.recipe, allow_nan=False)) == axis.recipe


def test_single_precision_points_keep_their_dtype():
    points, _ = wandering(dtype=torch.float32)
    found, exact = trajectory_axes(points, centred=True), trajectory_axes(wandering()[0], centred=True)
    assert {t.dtype for t in found.axes.origin.values()} == {torch.float32}
    assert {t.dtype for a in found.axes.axes for t in a.direction.values()} == {torch.float32}
    torch.testing.assert_close(found.coordinates, exact.coordinates, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.distances, exact.distances, rtol=1e-4, atol=1e-5)


def test_points_are_not_changed():
    points, _ = wandering()
    before = [{n: t.clone() for n, t in p.items()} for p in points]
    trajectory_axes(points, centred=True)
    assert all(torch.equal(p[n], t) for p, b in zip(points, before, strict=True) for n, t in b.items())


def test_a_subset_of_parameters():
    points, rows = wandering()
    found = trajectory_axes(points, centred=False, parameters="w")
    assert all(list(axis.direction) == ["w"] for axis in found.axes.axes)
    s = torch.linalg.svdvals(rows[:-1, :30] - rows[-1, :30])
    torch.testing.assert_close(found.explained, s**2 / (s**2).sum(), rtol=1e-9, atol=1e-13)
    left = ((rows[:, :30] - rows[-1, :30]) ** 2).sum(1) - (found.coordinates**2).sum(1)
    torch.testing.assert_close(found.distances**2, left, rtol=1e-9, atol=1e-10)
    middle = trajectory_axes(points, centred=True, parameters="w")
    assert torch.equal(middle.axes.origin["b"], points[-1]["b"])
    with pytest.raises(ValueError, match=r"`parameters` leaves out \['w'\], which the axes move"):
        project_path(found.axes, points, parameters="b")


# Points that are loaded ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [2, 3, 5, 8, 100])
@pytest.mark.parametrize("centred", [False, True])
def test_blocks_give_the_same_as_all_at_once(monkeypatch, centred, at_once):
    points, _ = wandering()
    whole = trajectory_axes(points, centred=centred)
    monkeypatch.setattr(trajectory, "PIECE", 37)  # and pieces of tensors too
    made = trajectory_axes(LoadedPoints(points.__getitem__, len(points)), centred=centred, at_once=at_once)
    torch.testing.assert_close(made.coordinates, whole.coordinates, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(made.distances, whole.distances, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(made.explained, whole.explained, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("at_once", "count"), [(4, 30), (10, 30), (30, 30)])
def test_no_more_points_are_held_than_allowed_and_loads_are_as_promised(at_once, count):
    points, _ = wandering(count)
    held, most, loads = set(), 0, 0

    class Tracked(dict):
        def __del__(self):
            held.discard(id(self))

    def load(i):
        nonlocal most, loads
        point = Tracked(points[i])
        held.add(id(point))
        most, loads = max(most, len(held)), loads + 1
        return point

    trajectory_axes(LoadedPoints(load, count), centred=True, at_once=at_once)
    assert most <= at_once + 1  # and the last one, which the differences are taken from
    promised = count**2 / at_once + 2.5 * count
    assert loads <= promised + 10  # the tests' type checker looks at a few


def test_loaded_points_are_a_sequence():
    points = LoadedPoints(lambda i: {"w": torch.tensor(float(i))}, 4)
    assert len(points) == 4
    assert [float(p["w"]) for p in points] == [0, 1, 2, 3]
    assert float(points[-1]["w"]) == 3
    assert [float(p["w"]) for p in points[1:3]] == [1, 2]
    with pytest.raises(IndexError):
        points[4]
    with pytest.raises(ValueError, match=r"`count` must be at least 1 point, got 0"):
        LoadedPoints([].__getitem__, 0)


# The random walk -----------------------------------------------------------------------------------------------------


def test_shares_of_a_long_random_walk_tend_to_the_known_limits():
    centred, end = random_walk_shares(5000, centred=True), random_walk_shares(5000, centred=False)
    k = torch.arange(1, 5, dtype=F64)
    torch.testing.assert_close(centred[:4], 6 / (math.pi * k) ** 2, rtol=1e-3, atol=0)
    torch.testing.assert_close(end[:4], 8 / (math.pi * (2 * k - 1)) ** 2, rtol=1e-3, atol=0)
    assert [round(v, 3) for v in centred[:4].tolist()] == [0.608, 0.152, 0.068, 0.038]
    assert [round(v, 2) for v in end[:2].tolist()] == [0.81, 0.09]


@pytest.mark.parametrize("points", [2, 3, 10, 57])
@pytest.mark.parametrize("centred", [False, True])
def test_closed_forms_are_the_eigenvalues_of_the_walks_covariance(points, centred):
    steps = torch.tril(torch.ones(points, points - 1, dtype=F64), -1)  # θ_t as a sum of steps
    steps -= steps.mean(0) if centred else steps[-1].clone()
    expected = torch.linalg.eigvalsh(steps @ steps.T).flip(0)[: points - 1]
    torch.testing.assert_close(
        random_walk_shares(points, centred=centred), expected / expected.sum(), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("centred", [False, True])
def test_unequal_intervals(centred):
    even = random_walk_shares([2.0 * i for i in range(20)], centred=centred)
    torch.testing.assert_close(even, random_walk_shares(20, centred=centred), rtol=1e-9, atol=1e-12)
    times = torch.tensor([0.0, 1, 2, 4, 8, 16, 32])
    steps = torch.tril(torch.ones(7, 6, dtype=F64), -1) * times.diff().double().sqrt()
    steps -= steps.mean(0) if centred else steps[-1].clone()
    expected = torch.linalg.eigvalsh(steps @ steps.T).flip(0)[:6]
    found = random_walk_shares(times.tolist(), centred=centred)
    torch.testing.assert_close(found, expected / expected.sum(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("centred", [False, True])
def test_a_simulated_walk_in_high_dimension_has_the_shares_of_the_null(centred):
    p, count = 20_000, 40
    g = seeded(1)
    at, points = torch.zeros(p), []
    for _ in range(count):
        at = at + torch.randn(p, generator=g)
        points.append({"w": at})
    found = trajectory_axes(points, centred=centred)
    torch.testing.assert_close(found.explained[:4], found.null[:4], rtol=0.05, atol=0)
    assert found.shown == pytest.approx(found.shown_by_chance, rel=0.02)
    timed = trajectory_axes(points, centred=centred, times=[i**2 for i in range(count)])
    assert abs(timed.shown_by_chance - found.shown_by_chance) > 0.01


def test_bad_walks():
    with pytest.raises(ValueError, match=r"`points` must be at least 2, got 1"):
        random_walk_shares(1, centred=True)
    with pytest.raises(ValueError, match=r"`times` must be at least 2 numbers that ascend"):
        random_walk_shares([0.0, 2.0, 1.0], centred=True)


# Other runs on the same plane ----------------------------------------------------------------------------------------


def test_another_path_is_projected_by_least_squares_on_axes_that_are_not_orthonormal():
    points, rows = wandering(seed=3)
    g = seeded(4)
    axes = Axes(cut(torch.ones(40, dtype=F64)), tuple(Axis(random_direction(LIKE, g), f"d{i}") for i in range(2)))
    found = project_path(axes, iter(points))
    D = torch.stack([flatten(a.direction) for a in axes.axes], 1)
    expected = torch.linalg.lstsq(D, (rows - 1).T).solution.T
    torch.testing.assert_close(found.coordinates, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found.distances, (rows - 1 - expected @ D.T).norm(dim=1), rtol=1e-10, atol=0)
    lengths = (rows - 1) @ D / D.norm(dim=0)  # dividing by ‖d‖ once gives lengths, not coordinates
    assert float((lengths - expected).abs().max()) > 0.1


def test_bad_points():
    points, _ = wandering()
    with pytest.raises(ValueError, match=r"`count` must be from 1 to 3 axes, got 4"):
        trajectory_axes(points, centred=True, count=4)
    with pytest.raises(ValueError, match=r"`points` must be at least 3 for 2 axes, got 2"):
        trajectory_axes(points[:2], centred=True)
    with pytest.raises(ValueError, match=r"`at_once` must be at least 2 points, got 1"):
        trajectory_axes(points, centred=True, at_once=1)
    with pytest.raises(ValueError, match=r"`points` has at 1 \(2, 2\) for `w`"):
        trajectory_axes([points[0], {**points[1], "w": torch.ones(2, 2, dtype=F64)}, *points[2:]], centred=True)
    with pytest.raises(ValueError, match=r"`points` has at 0 no such parameter for `b`"):
        project_path(trajectory_axes(points, centred=True).axes, [{"w": points[0]["w"]}])
    with pytest.raises(ValueError, match=r"`points` is empty"):
        project_path(trajectory_axes(points, centred=True).axes, [])


@pytest.mark.parametrize("at", [3, -1])
def test_a_diverged_point_is_named(at):
    points, _ = wandering()
    points[at] = {**points[at], "b": torch.full((10,), math.nan, dtype=F64)}
    with pytest.raises(ValueError, match=rf"`points` \[{at % 12}\] are not finite"):
        trajectory_axes(points, centred=True)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_points_on_a_line_or_all_equal_have_no_plane(centred, dtype):
    step, base = torch.randn(40, generator=seeded(), dtype=F64), 100 * torch.randn(40, generator=seeded(1), dtype=F64)
    like = {n: t.to(dtype) for n, t in LIKE.items()}
    line = [cut(base + i / 7 * step, like) for i in range(6)]
    with pytest.raises(ValueError, match="span fewer than 2 dimensions"):
        trajectory_axes(line, centred=centred)
    assert trajectory_axes(line, centred=centred, count=1).shown == pytest.approx(1)
    with pytest.raises(ValueError, match="span fewer than 1 dimensions"):
        trajectory_axes([line[0]] * 4, centred=centred, count=1)
