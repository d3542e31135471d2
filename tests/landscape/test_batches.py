"""Batches in all forms: read, counted, cut, and mapped over."""

from collections import UserDict, namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from landscape.batches import as_batches, batch_size, map_tensors, slice_batch, split_batches, tensors

X, Y = torch.arange(12.0).reshape(6, 2), torch.arange(6)
Named = namedtuple("Named", ["a", "b"])


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x, z) and torch.equal(y, w) for (x, y), (z, w) in zip(a, b, strict=True)
    )


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        [(X, Y)],
        [[X, Y]],
        ((X, Y),),
        iter([(X, Y)]),
        DataLoader(TensorDataset(X, Y), batch_size=6),
    ],
    ids=["pair", "list", "list of lists", "tuple of pairs", "iterator", "loader"],
)
def test_forms_of_one_batch(data):
    assert same(as_batches(data), [(X, Y)])


def test_two_pairs_in_a_tuple_are_two_batches():
    assert same(as_batches(((X[:4], Y[:4]), (X[4:], Y[4:]))), [(X[:4], Y[:4]), (X[4:], Y[4:])])


def test_a_dict_is_its_own_target():
    batch = {"x": X, "y": Y}
    for data in (batch, [batch], UserDict(batch), [UserDict(batch)]):
        [(inputs, targets)] = as_batches(data)
        assert inputs is targets
        assert type(inputs) is dict
        assert inputs.keys() == {"x", "y"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (X, r"`data` must be a pair \(inputs, targets\), a dict, a list of such batches or a DataLoader, got Tensor"),
        (None, r"`data` must be .* got NoneType"),
        (3, r"`data` must be .* got int"),
        ("mnist", r"`data` must be .* got str \(files are read by the caller\)"),
        ([(X, Y, Y)], r"but a tuple of 3: several inputs make a tuple, \(\(a, b\), targets\)"),
        ((X, Y, Y), r"`data` has a batch that is neither a pair .* but a Tensor"),
        ([X], r"but a Tensor"),
        ([(X,)], r"but a tuple of 1"),
    ],
    ids=["tensor", "none", "number", "text", "triples", "triple", "inputs alone", "single"],
)
def test_refused_data(data, message):
    with pytest.raises(ValueError, match=message):
        as_batches(data)


def test_a_batch_without_a_tensor_is_refused():
    with pytest.raises(ValueError, match="`data` has a batch without a tensor"):
        batch_size(({"a": 1}, None))


@pytest.mark.parametrize("inputs", [X, (X, Y), {"n": 3, "x": X}, [[X], Y], Named(X, 1)])
def test_the_size_is_the_first_tensors_length(inputs):
    assert batch_size((inputs, None)) == 6


def test_cutting_keeps_structure_and_what_is_not_per_example():
    mask = torch.ones(3, 3)
    batch = ({"x": X, "mask": mask, "scale": torch.tensor(2.0), "flag": True, "more": Named(Y, [X, "name"])}, (Y, X))
    inputs, targets = slice_batch(batch, 1, 4)
    assert torch.equal(inputs["x"], X[1:4])
    assert inputs["mask"] is mask
    assert inputs["scale"] == 2
    assert inputs["flag"] is True
    assert type(inputs["more"]) is Named
    assert torch.equal(inputs["more"].a, Y[1:4])
    assert torch.equal(inputs["more"].b[0], X[1:4])
    assert inputs["more"].b[1] == "name"
    assert torch.equal(targets[0], Y[1:4])
    assert torch.equal(batch[0]["x"], X)


def test_cutting_a_dict_keeps_it_its_own_target():
    batch = {"x": X, "y": Y}
    inputs, targets = slice_batch((batch, batch), 0, 2)
    assert inputs is targets


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 7))
def test_split_batches_are_the_same_examples_in_order(sizes, most):
    x = torch.arange(sum(sizes))
    batches = [(part, 2 * part) for part in x.split(sizes)]
    parts = split_batches(batches, most)
    assert max(map(batch_size, parts)) <= most
    assert torch.equal(torch.cat([p for p, _ in parts]), x)
    assert torch.equal(torch.cat([q for _, q in parts]), 2 * x)
    assert len(parts) == sum(-(-k // most) for k in sizes)


def test_batches_that_fit_are_not_copied():
    batch = (X, Y)
    assert split_batches([batch], 6)[0] is batch


def test_tensors_of_a_tree_in_order():
    tree = {"a": (X, [Y]), "b": Named(X + 1, "no"), "c": None, "d": UserDict(z=Y + 1)}
    assert [t.shape for t in tensors(tree)] == [X.shape, Y.shape, X.shape, Y.shape]
    doubled = map_tensors(lambda t: 2 * t, {k: v for k, v in tree.items() if k != "d"})
    assert torch.equal(doubled["a"][1][0], 2 * Y)
    assert type(doubled["b"]) is Named
    assert doubled["c"] is None
