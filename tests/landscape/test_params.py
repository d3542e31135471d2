"""Dicts of tensors as vectors, and the operations that everything else is written in."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import F64
from torch.testing import assert_close

from landscape import flatten, inner, norm, unflatten

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
