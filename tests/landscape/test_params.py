"""Dicts of tensors as vectors, and the operations that everything else is written in."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import F64
from torch.testing import assert_close

from landscape import flatten, inner, norm, unflatten
from landscape.params import dot, layer_slices, select, slices

THETA = {"w": torch.tensor([[1.0, -2.0], [3.0, 0.0]], dtype=F64), "b": torch.tensor([4.0], dtype=F64)}


def test_vectors_follow_the_names_not_the_dict():
    backwards = dict(reversed(THETA.items()))
    expected = torch.tensor([1, -2, 3, 0, 4], dtype=F64)
    assert_close(flatten(THETA), expected)
    assert_close(flatten(backwards, ["w", "b"]), expected)
    assert_close(flatten(backwards), torch.tensor([4, 1, -2, 3, 0], dtype=F64))


@given(st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=4))
def test_unflatten_undoes_flatten(shapes):
    like = {f"t{i}": torch.empty(shape, dtype=F64) for i, shape in enumerate(shapes)}
    vector = torch.arange(sum(t.numel() for t in like.values()), dtype=F64)
    cut = unflatten(vector, like)
    assert list(cut) == list(like)
    assert [t.shape for t in cut.values()] == [t.shape for t in like.values()]
    assert_close(flatten(cut), vector)


def test_a_vector_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="`vector` must have 5 entries, one per parameter, got 4"):
        unflatten(torch.zeros(4), THETA)


@pytest.mark.parametrize(("p", "value"), [(2.0, math.sqrt(30)), (1.0, 10.0), (math.inf, 4.0)])
def test_norms_run_over_all_tensors_jointly(p, value):
    assert float(norm(THETA, p)) == pytest.approx(value)


def test_inner_product_is_that_of_the_vectors():
    other = {name: t + 1 for name, t in THETA.items()}
    assert_close(inner(THETA, other), flatten(THETA) @ flatten(other))
    assert_close(inner(THETA, dict(reversed(other.items()))), flatten(THETA) @ flatten(other))


def test_half_precision_is_summed_in_single():
    many = {"w": torch.full((70_000,), 10.0, dtype=torch.float16)}  # the sum of squares, 7e6, overflows float16
    assert float(norm(many)) == pytest.approx(10 * math.sqrt(70_000), rel=1e-3)
    assert norm(many).dtype == torch.float32


NAMES = ["stem.weight", "blocks.0.fc.weight", "blocks.0.fc.bias", "blocks.10.fc.weight", "blocks.1.fc.weight", "scale"]


@pytest.mark.parametrize(
    ("wanted", "places"),
    [
        (None, [0, 1, 2, 3, 4, 5]),
        ("stem.weight", [0]),
        ("blocks.0", [1, 2]),
        ("blocks.1", [4]),  # and not blocks.10
        ("blocks", [1, 2, 3, 4]),
        ("*.weight", [0, 1, 3, 4]),
        ("blocks.?.fc.weight", [1, 4]),
        ("blocks.[01].*", [1, 2, 4]),
        (["scale", "stem"], [0, 5]),
        (("blocks.0", "blocks.0.fc.bias"), [1, 2]),
        ((name for name in ["scale", "stem.weight"]), [0, 5]),
    ],
)
def test_parameters_are_chosen_in_their_own_order(wanted, places):
    assert select(NAMES, wanted) == [NAMES[i] for i in places]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("block", r"`parameters` has 'block', which is no name, glob or module of the parameters \['stem.weight'"),
        (["scale", "*.gain"], r"`parameters` has '\*\.gain', which is no name"),
        ("SCALE", r"`parameters` has 'SCALE'"),
        ("", r"`parameters` has '', which is no name"),
        ([], r"`parameters` must choose some of \['stem.weight', .*\], got none"),
    ],
)
def test_choices_that_choose_nothing_are_refused(wanted, message):
    with pytest.raises(ValueError, match=message):
        select(NAMES, wanted)


def test_the_callers_own_name_of_the_argument_is_in_the_message():
    with pytest.raises(ValueError, match="`layers` has 'x', which is no name"):
        select(NAMES, "x", argument="layers")


def theta(**sizes):
    return {name.replace("_", "."): torch.zeros(size) for name, size in sizes.items()}


def test_slices_follow_each_other():
    places = slices(theta(a_weight=6, a_bias=2, b=0, c=3))
    assert places == {"a.weight": slice(0, 6), "a.bias": slice(6, 8), "b": slice(8, 8), "c": slice(8, 11)}


def test_layers_are_the_parameters_of_one_module():
    assert layer_slices(theta(a_weight=6, a_bias=2, scale=1, b_c_weight=3)) == {
        "a": slice(0, 8),
        "scale": slice(8, 9),
        "b.c": slice(9, 12),
    }


def test_layers_that_others_interrupt_are_numbered():
    """A module with its own parameter before and after a child's, as multi-head attention has."""
    places = layer_slices(theta(m_in=4, m_out_weight=3, m_last=2, m_out_bias=1, m_more=1))
    assert places == {
        "m": slice(0, 4),
        "m.out": slice(4, 7),
        "m#2": slice(7, 9),
        "m.out#2": slice(9, 10),
        "m#3": slice(10, 11),
    }


@given(st.lists(st.sampled_from(["a.w", "a.b", "a.c.w", "b.w", "w", "v"]), min_size=1, unique=True))
def test_layers_cover_every_entry_once(names):
    point = {name: torch.zeros(i + 1) for i, name in enumerate(names)}
    places = list(layer_slices(point).values())
    assert [s.start for s in places] == [0, *[s.stop for s in places[:-1]]]
    assert places[-1].stop == sum(t.numel() for t in point.values())


def test_complex_tensors_are_their_real_and_imaginary_parts(generator):
    theta = {"a": torch.randn(2, 3, dtype=torch.complex128, generator=generator), "b": torch.ones(3, dtype=F64)}
    vector = flatten(theta)
    assert vector.shape == (15,)
    assert torch.equal(vector[:2], torch.view_as_real(theta["a"]).flatten()[:2])
    assert all(torch.equal(t, theta[name]) for name, t in unflatten(vector, theta).items())
    assert all(torch.equal(t, theta[k]) for k, t in unflatten(vector.roll(3).roll(-3), theta).items())
    assert float(inner(theta, theta)) == pytest.approx(float(vector @ vector), rel=1e-14)
    assert dot(theta, theta) == pytest.approx(float(vector @ vector), rel=1e-14)
    assert float(norm(theta)) == pytest.approx(float(vector.norm()), rel=1e-14)
    assert slices(theta) == {"a": slice(0, 12), "b": slice(12, 15)}
