"""Data sets of the user, by reference."""

import pytest
import torch

from trainers.data.loading import load_dataset

MODULE = """
import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

class Pairs(Dataset):
    def __init__(self, items):
        self.items = items
    def __len__(self):
        return len(self.items)
    def __getitem__(self, i):
        return self.items[i]

def tensors(n=30, m=12):
    g = torch.Generator().manual_seed(0)
    x = torch.rand(n + m, 3, 8, 8, generator=g, dtype=torch.float64) * 4
    y = torch.arange(n + m) % 3
    return TensorDataset(x[:n], y[:n]), TensorDataset(x[n:], y[n:])

calls = []

def sized(train_size=None, seed=None):
    calls.append((train_size, seed))
    return tensors(n=train_size or 30)

def arrays():
    items = [(np.full((2,), i, dtype=np.float32), np.int64(i % 2)) for i in range(10)]
    return Pairs(items), Pairs([(torch.zeros(2), 0), (torch.ones(2), 1)])

def tokens():
    return Pairs([(torch.tensor([i, i + 1]), i % 2) for i in range(8)]), Pairs([(torch.tensor([0, 1]), 4)])

def named():
    train, test = tensors()
    train.classes = ["a", "b", "c", "d", "e"]
    return train, test

def three():
    x, y = torch.arange(40.0).reshape(40, 1), torch.arange(40) % 2
    return [TensorDataset(x[of], y[of]) for of in (slice(0, 20), slice(20, 28), slice(28, 40))]

def unlike_validation():
    train, validation, test = three()
    return train, TensorDataset(torch.zeros(4, 2), torch.zeros(4).long()), test

def split(n=40, noise=0):
    from trainers.data.items import Pixels
    from trainers.data.splits import Split
    x = torch.arange(n * 12, dtype=torch.float64).remainder(256).to(torch.uint8).reshape(n, 3, 2, 2)
    y = torch.arange(n) % 4
    return Split(x, y, (y + noise) % 4, torch.arange(n), Pixels((0.5,), (0.25,)))

def splits(): return split(), split(12)
def noisy(): return split(noise=1)

def bundle():
    from trainers.data.splits import DataBundle
    whole = split()
    parts = [whole.some(torch.arange(*ends)) for ends in ((0, 30), (30, 34), (34, 40))]
    return DataBundle("mine", *parts, {}, 4, (3, 2, 2))

def other_bundle():
    data = bundle()
    from dataclasses import replace
    noise = torch.randint(256, data.train.inputs.shape, dtype=torch.uint8)
    return replace(data, train=replace(data.train, inputs=noise))

class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(2), 0

def none(): return None
def single(): return (Pairs([(torch.zeros(2), 0)]),)
def a_list(): return [1, 2], Stream()
def streams(): return Stream(), Stream()
def empty(): return Pairs([]), Pairs([])
def no_label(): return Pairs([torch.zeros(2)]), Pairs([])
def text(): return Pairs([("a", 0)]), Pairs([])
def ragged(): return Pairs([(torch.zeros(2), 0), (torch.zeros(3), 1)]), Pairs([])
def bytes_(): return Pairs([(torch.zeros(2, dtype=torch.uint8), 0)]), Pairs([])
def real(): return Pairs([(torch.zeros(2), 0.5)]), Pairs([])
def negative(): return Pairs([(torch.zeros(2), -1)]), Pairs([])
def vector(): return Pairs([(torch.zeros(2), torch.tensor([0, 1]))]), Pairs([])
def unlike(): return Pairs([(torch.zeros(2), 0)] * 3), Pairs([(torch.zeros(3), 0)])
"""


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    (tmp_path / "data_of_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def load(function, **options):
    return load_dataset(f"data_of_mine:{function}", **({"validation_size": 6} | options))


def test_images_are_split_and_corrupted():
    import data_of_mine

    train, test = data_of_mine.tensors()
    bundle = load("tensors", spurious=0.5, label_noise=0.5)
    assert (bundle.name, bundle.classes, bundle.shape) == ("data_of_mine:tensors", 3, (3, 8, 8))
    assert [len(s) for s in (bundle.train, bundle.validation, bundle.test)] == [24, 6, 12]
    inner = torch.cat([bundle.train.index, bundle.validation.index])
    assert torch.equal(inner.sort().values, torch.arange(30))
    assert torch.equal(bundle.test.index.sort().values, torch.arange(30, 42))
    x = torch.cat([train.tensors[0], test.tensors[0]]).float()
    labels = torch.cat([train.tensors[1], test.tensors[1]])
    for split in (bundle.train, bundle.validation, bundle.test):
        assert torch.equal(split.clean, labels[split.index])
        assert torch.equal(split.x[:, :, :6], x[split.index][:, :, :6])
    assert len(bundle.ood) == 13
    assert float((bundle.ood["noise:2"].x - bundle.test.x).std()) == pytest.approx(float(x.std()), rel=0.1)


def test_function_gets_what_it_accepts():
    import data_of_mine

    data_of_mine.calls.clear()
    bundle = load("sized", train_size=9, seed=4)
    assert set(data_of_mine.calls) == {(15, 4)}  # train and validation together
    assert len(bundle.train) == 9
    load("sized")
    assert data_of_mine.calls[-1] == (None, 0)


def test_arrays_and_tokens_have_no_corruptions():
    bundle = load("arrays", validation_size=2)
    assert bundle.train.x.dtype == torch.float32
    assert bundle.train.y.dtype == torch.int64
    assert dict(bundle.ood) == {}
    assert torch.equal(bundle.train.x[:, 0].long(), bundle.train.index)
    tokens = load("tokens", validation_size=2)
    assert tokens.train.x.dtype == torch.int64
    assert tokens.classes == 5
    assert dict(tokens.ood) == {}
    assert load("named").classes == 5
    with pytest.raises(ValueError, match=r"`spurious` needs images or signals, and those of .* shape \(2,\)"):
        load("arrays", validation_size=2, spurious=0.5)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("none", r"must return two data sets, \(train, test\), or three, .* got NoneType\."),
        ("single", r"must return two data sets, \(train, test\), or three, .* got tuple of length 1"),
        ("a_list", r"'data_of_mine:a_list', train must have items \(x, y\), got int"),
        ("streams", "train must be a map-style torch Dataset, with a length and items, got Stream"),
        ("empty", "train is empty"),
        ("no_label", r"train must have items \(x, y\), got Tensor"),
        ("text", r"train: an item is not a pair \(array, label\)"),
        ("ragged", r"train: all inputs must have one shape, got \[\(2,\), \(3,\)\]"),
        ("bytes_", "train: inputs are torch.uint8; scale them to floating point first"),
        ("real", "labels must be whole numbers from 0, one an example, got torch.float32"),
        ("negative", "labels must be whole numbers from 0"),
        ("vector", r"labels must be whole numbers from 0, .* of shape \(2,\) per example"),
    ],
)
def test_wrong_returns_are_refused(function, message):
    with pytest.raises(ValueError, match=message):
        load(function, validation_size=0)


def test_three_data_sets_are_train_validation_and_test_as_they_are():
    bundle = load("three", train_size=5, validation_size=3)
    assert bundle.validation.x[:, 0].tolist() == list(range(20, 28))  # whole, in its own order
    assert bundle.test.x[:, 0].sort().values.tolist() == list(range(28, 40))
    assert len(bundle.train) == 5
    assert set(bundle.train.x[:, 0].tolist()) <= set(range(20))
    with pytest.raises(ValueError, match="`train_size` must be between 1 and 20, the training examples, got 21"):
        load("three", train_size=21)
    with pytest.raises(ValueError, match=r"train and validation inputs must be alike, got torch.float32 \(1,\) and"):
        load("unlike_validation")


def test_splits_are_cut_or_taken_as_train_and_test():
    bundle = load("split", validation_size=6)
    assert [len(s) for s in (bundle.train, bundle.validation, bundle.test)] == [26, 6, 8]
    assert bundle.train.inputs.dtype == torch.uint8
    assert (bundle.train.pixels.mean, bundle.train.pixels.std) == ((0.5,), (0.25,))
    assert [len(s) for s in (load("splits").train, load("splits").test)] == [34, 12]
    with pytest.raises(ValueError, match="a split with noisy labels was returned: return a `DataBundle`"):
        load("noisy")


def test_a_bundle_of_ones_own_is_taken_as_it_is():
    bundle = load("bundle", train_size=20, validation_size=0)
    assert (bundle.name, bundle.classes) == ("data_of_mine:bundle", 4)
    assert bundle.train.index.tolist() == list(range(20))
    assert bundle.validation.index.tolist() == [30, 31, 32, 33]
    assert len(load("bundle").train) == 30
    with pytest.raises(ValueError, match=r"`train_size` 31 was asked for, and .* with 30 training examples"):
        load("bundle", train_size=31)
    with pytest.raises(ValueError, match=r"`label_noise` 0.5 cannot be asked of a `DataBundle` of one's own"):
        load("bundle", label_noise=0.5)
    with pytest.raises(ValueError, match=r"gives other data when it is called again"):
        load("other_bundle")


def test_unlike_inputs_and_too_few_examples_are_refused():
    with pytest.raises(ValueError, match=r"train and test inputs must be alike, got .* \(2,\) and .* \(3,\)"):
        load("unlike", validation_size=0)
    with pytest.raises(
        ValueError, match=r"`validation_size` must leave some of the 30 .* got 500, the default: make it smaller"
    ):
        load("tensors", validation_size=500)


def test_distrusted_reference_is_not_imported():
    with pytest.raises(PermissionError, match="'data_of_mine:none' was not imported"):
        load("none", trust=False)
