"""Axes: points, lengths and cosines, projection by least squares, Gram–Schmidt, bad input."""

import math

import pytest
import torch

from landscape import Params, flatten, random_direction
from landscape.surfaces.axes import Axes, Axis

F64 = torch.float64
SHAPES = {"a": (3, 2), "b": (4,), "c": (2, 2, 2)}


def drawn(seed, dtype=F64, names=tuple(SHAPES)) -> Params:
    like = {n: torch.zeros(SHAPES[n], dtype=dtype) for n in names}
    return random_direction(like, torch.Generator().manual_seed(seed))


def whole(direction, like):
    return flatten({n: direction.get(n, torch.zeros_like(t)) for n, t in like.items()})


def plane(dtype=F64, names=(("a", "b", "c"), ("a", "c"))):
    return Axes(
        drawn(0, dtype), tuple(Axis(drawn(i + 1, dtype, n), f"axis {i + 1}", "weights") for i, n in enumerate(names))
    )


def test_a_point_is_the_origin_plus_the_axes():
    axes = plane()
    point = axes.at((0.3, -1.7))
    d1, d2 = (whole(axis.direction, axes.origin) for axis in axes.axes)
    torch.testing.assert_close(flatten(point), flatten(axes.origin) + 0.3 * d1 - 1.7 * d2, rtol=0, atol=1e-14)


def test_the_origin_itself_comes_back_to_the_bit_and_what_no_axis_moves_is_shared():
    axes = plane(names=(("a",), ("a", "c")))
    point = axes.at((0.0, 0.0))
    assert all(torch.equal(point[n], t) for n, t in axes.origin.items())
    assert point["b"] is axes.origin["b"]
    before = {n: t.clone() for n, t in axes.origin.items()}
    axes.at((5.0, 5.0))["a"].add_(1)
    assert all(torch.equal(t, before[n]) for n, t in axes.origin.items())


def test_gram_lengths_and_cosines():
    axes = plane()
    D = torch.stack([whole(axis.direction, axes.origin) for axis in axes.axes])
    torch.testing.assert_close(axes.gram, D @ D.T, rtol=1e-13, atol=0)
    torch.testing.assert_close(axes.lengths, D.norm(dim=1), rtol=1e-13, atol=0)
    cosine = float(torch.nn.functional.cosine_similarity(D[0], D[1], dim=0))
    assert float(axes.cosines[0, 1]) == pytest.approx(cosine, rel=1e-12)
    assert axes.cosines.diagonal().tolist() == pytest.approx([1.0, 1.0])


def test_products_of_single_precision_axes_are_summed_in_double():
    d = {"w": torch.rand(400_000, generator=torch.Generator().manual_seed(3))}
    axes = Axes({"w": torch.zeros(400_000)}, (Axis(d, "d"),))
    assert float(axes.gram[0, 0]) == pytest.approx(float((d["w"].double() ** 2).sum()), rel=1e-12)


def test_projection_finds_coordinates_on_axes_that_are_not_orthonormal():
    axes = plane()
    found, distance = axes.project(axes.at((0.7, -2.5)))
    torch.testing.assert_close(found, torch.tensor([0.7, -2.5], dtype=F64), rtol=1e-12, atol=0)
    assert distance < 1e-13


def test_projection_is_least_squares_and_the_distance_is_what_is_left():
    axes = plane()
    point = drawn(9)
    found, distance = axes.project(point)
    D = torch.stack([whole(axis.direction, axes.origin) for axis in axes.axes], 1)
    target = flatten(point) - flatten(axes.origin)
    solution = torch.linalg.lstsq(D, target[:, None]).solution[:, 0]
    torch.testing.assert_close(found, solution, rtol=1e-11, atol=1e-13)
    assert distance == pytest.approx(float((target - D @ solution).norm()), rel=1e-11)
    naive = D.T @ target / D.norm(dim=0)  # lengths of shadows, which are no coordinates on such axes
    assert float((naive - found).abs().max()) > 0.1


def test_projection_of_single_precision_points():
    axes = plane(torch.float32)
    found, distance = axes.project(axes.at((0.5, 0.25)))
    torch.testing.assert_close(found, torch.tensor([0.5, 0.25], dtype=F64), rtol=1e-6, atol=0)
    assert distance < 1e-6


def test_orthogonalised_axes_span_the_same_and_keep_their_lengths():
    axes = plane(names=(("a", "c"), ("a", "b", "c"), ("b", "c")))
    made = axes.orthogonalised()
    gram = made.gram
    assert float((gram - gram.diagonal().diag()).abs().max()) < 1e-12
    torch.testing.assert_close(made.lengths, axes.lengths, rtol=1e-12, atol=0)
    assert torch.equal(made.axes[0].direction["a"], axes.axes[0].direction["a"])
    for axis in made.axes:
        moved = {n: t + axis.direction[n] if n in axis.direction else t for n, t in axes.origin.items()}
        assert axes.project(moved)[1] < 1e-12
    assert [axis.recipe["orthogonalised"] for axis in made.axes] == [False, True, True]


def test_running_statistics_turn_with_their_axes():
    """The point of the set where the second model lies keeps that model's statistics."""
    one, two = ({"m": torch.tensor(v, dtype=F64)} for v in ([1.0, 2.0], [-1.0, 0.5]))
    first, second = drawn(1), drawn(2)
    axes = Axes(drawn(0), (Axis(first, "first", buffers=one), Axis(second, "second", buffers=two)))
    made = axes.orthogonalised()
    where, distance = made.project(axes.at((0.0, 1.0)))
    assert distance < 1e-12
    assert abs(float(where[0])) > 1e-3
    torch.testing.assert_close(made.buffers_at(where.tolist())["m"], two["m"], rtol=1e-12, atol=0)


def test_buffers_are_combined_where_axes_have_them():
    change = {"m": torch.tensor([1.0, 2.0])}
    axes = Axes(drawn(0), (Axis(drawn(1), "one", buffers=change), Axis(drawn(2), "two")))
    torch.testing.assert_close(axes.buffers_at((3.0, 5.0)), {"m": torch.tensor([3.0, 6.0])})
    assert plane().buffers_at((1.0, 1.0)) == {}


def test_bad_axes_are_refused():
    origin = drawn(0)
    with pytest.raises(ValueError, match=r"`axes` must be one to 3 directions, got 0"):
        Axes(origin, ())
    with pytest.raises(ValueError, match=r"`axes` must be one to 3 directions, got 4"):
        Axes(origin, tuple(Axis(drawn(i), "d") for i in range(4)))
    with pytest.raises(ValueError, match=r"axis 'd' has `z` of shape \(2,\), the model has no such parameter"):
        Axes(origin, (Axis({"z": torch.ones(2)}, "d"),))
    with pytest.raises(ValueError, match=r"axis 'd' has `b` of shape \(2,\), the model has \(4,\)"):
        Axes(origin, (Axis({"b": torch.ones(2)}, "d"),))
    with pytest.raises(ValueError, match=r"entries in `b` that are not finite"):
        Axes(origin, (Axis({"b": torch.tensor([1.0, math.nan, 0, 0])}, "d"),))
    with pytest.raises(ValueError, match=r"axis 'd' has length zero"):
        Axes(origin, (Axis({"b": torch.zeros(4)}, "d"),))
    Axes(origin, (Axis({"b": torch.zeros(4)}, "d", buffers={"m": torch.ones(1)}),))  # statistics alone may move


def test_parallel_axes_are_refused_where_they_must_be_independent():
    d = drawn(1)
    axes = Axes(drawn(0), (Axis(d, "one"), Axis({n: -2 * t for n, t in d.items()}, "two")))
    with pytest.raises(ValueError, match=r"the axes \['one', 'two'\] are linearly dependent"):
        axes.project(drawn(5))
    with pytest.raises(ValueError, match="linearly dependent"):
        axes.orthogonalised()
    with pytest.raises(ValueError, match=r"`coordinates` must be 2 numbers, one an axis, got 1"):
        axes.at((1.0,))
