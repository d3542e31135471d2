"""Data sets: what is split how, what is noise, and what is shifted."""

import math
import random
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from trainers.data.corruptions import CORRUPTIONS
from trainers.data.loading import DATASETS, load_dataset, noisy_labels
from trainers.data.sources.builtin import DIGITS_MEAN, DIGITS_STD, digits
from trainers.data.splits import stratified_order
from trainers.data.spurious import patch_codes, stamp

SPLITS = ("train", "validation", "test")


def fresh(seed=0):
    return torch.Generator().manual_seed(seed)


def same(a, b):
    return all(torch.equal(getattr(a, key), getattr(b, key)) for key in ("x", "y", "clean", "index"))


@pytest.mark.parametrize("seed", [0, 1])
def test_digits_are_scikit_learns(seed):
    from sklearn.datasets import load_digits

    raw, bundle = load_digits(), load_dataset("digits", seed=seed)
    assert (bundle.name, bundle.classes, bundle.shape) == ("digits", 10, (1, 8, 8))
    assert [len(getattr(bundle, s)) for s in SPLITS] == [600, 500, 697]
    for name in SPLITS:
        split = getattr(bundle, name)
        assert (split.x.dtype, split.y.dtype, split.clean.dtype) == (torch.float32, torch.int64, torch.int64)
        assert split.x.shape == (len(split), 1, 8, 8)
        pixels = (split.x.double() * DIGITS_STD + DIGITS_MEAN) * 16
        assert_close(pixels[:, 0].numpy(), raw.images[split.index.numpy()], rtol=0, atol=1e-5)
        assert np.array_equal(split.clean.numpy(), raw.target[split.index.numpy()])
        assert torch.equal(split.y, split.clean)
    indices = torch.cat([getattr(bundle, s).index for s in SPLITS])
    assert torch.equal(indices.sort().values, torch.arange(1797))  # no overlap, nothing left out


def test_constants_of_digits_are_those_of_the_data():
    x = digits().inputs.double()
    assert abs(float(x.mean())) < 1e-7
    assert abs(float(x.std(correction=0)) - 1) < 1e-7
    assert float(x.min()) == pytest.approx(digits().shades.low, abs=1e-7)
    assert float(x.max()) == pytest.approx(digits().shades.high, abs=1e-7)


def test_seed_decides_the_split():
    assert same(load_dataset("digits", seed=3).train, load_dataset("digits", seed=3).train)
    assert not torch.equal(load_dataset("digits", seed=3).test.index, load_dataset("digits", seed=4).test.index)


def test_larger_train_set_begins_with_the_smaller_and_the_rest_stays():
    options = {"label_noise": 0.4, "spurious": 0.8, "seed": 2}
    small, large = (load_dataset("digits", train_size=k, **options) for k in (150, 600))
    for key in ("x", "y", "clean", "index"):
        assert torch.equal(getattr(small.train, key), getattr(large.train, key)[:150])
    assert same(small.test, large.test)
    assert same(small.validation, large.validation)
    assert all(same(small.ood[key], large.ood[key]) for key in small.ood)


def test_sizes_are_as_asked():
    bundle = load_dataset("digits", train_size=20, validation_size=0, test_size=30)
    assert [len(getattr(bundle, s)) for s in SPLITS] == [20, 0, 30]
    assert len(load_dataset("digits", validation_size=100).train) == 1000


def test_classes_are_numbered_anew_and_are_those_of_the_data():
    chosen = load_dataset("digits", classes=(7, 2, 5), validation_size=60, seed=1)
    raw, old = digits(), torch.tensor([7, 2, 5])
    assert (chosen.classes, sum(len(getattr(chosen, s)) for s in SPLITS)) == (3, int(torch.isin(raw.y, old).sum()))
    for name in SPLITS:
        split = getattr(chosen, name)
        assert torch.equal(raw.y[split.index], old[split.clean])
        assert torch.equal(split.x, raw.inputs[split.index])
    assert all(abs(n - 20) < 2 for n in torch.bincount(chosen.validation.y).tolist())
    noisy = load_dataset("digits", classes=(7, 2, 5), validation_size=60, label_noise=1.0, seed=1).train
    assert set(noisy.y.tolist()) == {0, 1, 2}


def test_classes_of_few_examples_leave_some_to_train_on(tmp_path):
    np.savez(tmp_path / "few.npz", x=np.zeros((40, 2)), y=np.r_[0, 1, np.full(38, 2)])
    found = load_dataset(f"npz:{tmp_path}/few.npz", classes=(0, 1), validation_size=0)
    assert [len(getattr(found, s)) for s in SPLITS] == [1, 0, 1]


@pytest.mark.parametrize("classes", [(), (3,), (3, 3), (0, 10)])
def test_classes_that_the_data_lack_are_refused(classes):
    with pytest.raises(ValueError, match=r"`classes` must be two or more different labels .* from 0 to 9"):
        load_dataset("digits", classes=classes)


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=80),
    st.integers(0, 2**31),
    st.floats(0, 1),
)
def test_stratified_order_is_a_permutation_with_every_class_in_proportion(labels, seed, share):
    y = torch.tensor(labels)
    order = stratified_order(y, fresh(seed))
    assert torch.equal(order.sort().values, torch.arange(len(y)))
    # Of the first k, a class has its share t of n_c, up to less than one, for the t at which k are reached; over the
    # classes present these errors add up in k itself, whence |t - k/n| < classes / n.
    k = round(share * len(y))
    present, counts = y.unique(return_counts=True)
    for label, count in zip(present.tolist(), counts.tolist(), strict=True):
        got = int((y[order[:k]] == label).sum())
        assert abs(got - k / len(y) * count) < 1 + len(present) * count / len(y)


def test_splits_of_digits_have_the_classes_of_the_whole():
    whole = torch.bincount(digits().y) / 1797
    bundle = load_dataset("digits", train_size=300)
    for name in SPLITS:
        split = getattr(bundle, name)
        assert float((torch.bincount(split.clean) - whole * len(split)).abs().max()) < 2.5


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_label_noise_is_uniform_over_all_classes(rate):
    y = torch.randint(10, (20_000,), generator=fresh(1))
    noisy = noisy_labels(y, rate, classes=10, generator=fresh(2))
    wrong = rate * 0.9
    deviation = math.sqrt(wrong * (1 - wrong) / len(y))
    assert abs(float((noisy != y).double().mean()) - wrong) <= 4 * deviation
    if rate == 1:  # independent of the true label: chi-squared over the 10 x 10 table has 81 degrees, deviation 12.7
        table = torch.zeros(10, 10).index_put_((y, noisy), torch.ones(()), accumulate=True)
        expected = table.sum(1, keepdim=True) * table.sum(0) / len(y)
        assert float(((table - expected) ** 2 / expected).sum()) < 81 + 4 * 12.7


def test_label_noise_is_in_train_only_and_grows_with_the_rate():
    clean, some, more = (load_dataset("digits", label_noise=r, seed=5) for r in (0.0, 0.2, 0.5))
    for bundle in (some, more):
        assert torch.equal(bundle.train.clean, clean.train.y)
        assert torch.equal(bundle.train.index, clean.train.index)
        assert same(bundle.test, clean.test)
        assert same(bundle.validation, clean.validation)
    wrong, wronger = (b.train.y != b.train.clean for b in (some, more))
    assert 60 < int(wrong.sum()) < 160  # binomial(600, 0.18): 108, four deviations are 38
    assert bool(wronger[wrong].all())
    assert torch.equal(more.train.y[wrong], some.train.y[wrong])


def test_clean_is_the_true_label_under_full_noise():
    train = load_dataset("digits", label_noise=1.0).train
    assert torch.equal(train.clean, digits().y[train.index])
    assert 0.02 < float((train.y == train.clean).double().mean()) < 0.18  # a tenth keep theirs, deviation 0.012


def read_codes(x):
    """The class that the 2 x 2 block in the lower left corner names."""
    lit = (x[:, 0, -2:, :2] > 0).long()
    return lit[:, 1, 0] + 2 * lit[:, 1, 1] + 4 * lit[:, 0, 0] + 8 * lit[:, 0, 1] - 1


def test_patches_agree_as_often_as_asked():
    q = 0.7
    bundle = load_dataset("digits", spurious=q, label_noise=0.5, seed=1)
    agreement = {}
    for name in SPLITS:
        split = getattr(bundle, name)
        agreement[name] = read_codes(split.x) == split.y
    agreement["spurious"] = read_codes(bundle.ood["spurious"].x) == bundle.ood["spurious"].clean
    for name, agrees in agreement.items():
        p = 0.1 if name == "spurious" else q + (1 - q) / 10
        assert abs(float(agrees.double().mean()) - p) < 4 * math.sqrt(p * (1 - p) / len(agrees)), name
    assert bool((read_codes(bundle.train.x) >= 0).all())
    assert bool((read_codes(bundle.train.x) < 10).all())


def test_patches_change_nothing_but_the_corner():
    plain, stamped = load_dataset("digits"), load_dataset("digits", spurious=1.0)
    corner = torch.zeros(8, 8, dtype=torch.bool)
    corner[-2:, :2] = True
    for a, b in ((plain.train, stamped.train), (plain.test, stamped.test), (plain.test, stamped.ood["spurious"])):
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.x[..., ~corner], b.x[..., ~corner])
    cells = stamped.train.x[..., corner]
    assert set(cells.unique().tolist()) == {float(digits().inputs.min()), float(digits().inputs.max())}
    assert torch.equal(read_codes(stamped.test.x), stamped.test.clean)
    assert "spurious" not in plain.ood


def test_patch_codes_agree_at_every_larger_q():
    y = torch.randint(10, (500,), generator=fresh(3))
    previous = torch.zeros(500, dtype=torch.bool)
    for q in (0.0, 0.3, 0.9, 1.0):
        agrees = patch_codes(y, q, classes=10, generator=fresh(4)) == y
        assert bool(agrees[previous].all())
        previous = agrees
    assert bool(previous.all())


@pytest.mark.parametrize(("classes", "cells"), [(2, 2), (10, 4), (100, 7)])
def test_stamps_tell_all_classes_apart(classes, cells):
    codes = torch.arange(classes)
    image = stamp(torch.zeros(classes, 3, 8, 8), codes, classes=classes, low=-1.0, high=1.0)
    signal = stamp(torch.zeros(classes, 1, 40), codes, classes=classes, low=-1.0, high=1.0)
    assert len(image.unique(dim=0)) == len(signal.unique(dim=0)) == classes
    assert int((image[0] != 0).sum()) == 3 * cells
    assert int((signal[0] != 0).sum()) == cells
    assert bool((image == 1.0).flatten(1).any(1).all())  # no code is all dark


def test_stamp_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"`spurious` needs images or signals with room .* 4 bits, got shape \(1, 3\)"):
        stamp(torch.zeros(2, 1, 3), torch.tensor([0, 1]), classes=10, low=0.0, high=1.0)


@pytest.mark.parametrize("spurious", [None, 0.9])
def test_shifted_copies_of_the_test_set(spurious):
    bundle = load_dataset("digits", spurious=spurious)
    names = [f"{kind}:{s}" for kind in CORRUPTIONS for s in (1, 2, 3)] + (["spurious"] if spurious else [])
    assert list(bundle.ood) == names
    assert len(bundle.ood) == len(names)
    for name, split in bundle.ood.items():
        assert torch.equal(split.y, bundle.test.y)
        assert torch.equal(split.index, bundle.test.index)
        assert split.x.shape == bundle.test.x.shape
        assert not torch.equal(split.x, bundle.test.x)
        assert same(split, bundle.ood[name])  # made anew, and the same
    with pytest.raises(KeyError, match="no shifted test set 'fog:1'; there are noise:1, "):
        bundle.ood["fog:1"]


def test_corruptions_are_in_the_units_of_the_data():
    bundle = load_dataset("digits")
    difference = bundle.ood["noise:2"].x - bundle.test.x
    assert float(difference.std()) == pytest.approx(CORRUPTIONS["noise"].amounts[1], rel=0.02)
    assert float(bundle.ood["shift:3"].x.min()) == pytest.approx(digits().shades.low)  # dark enters, not grey


def test_nothing_touches_global_randomness_or_the_source():
    before, source = torch.get_rng_state(), digits().inputs.clone()
    bundle = load_dataset("digits", label_noise=0.3, spurious=0.5)
    bundle.train.x.zero_()
    list(bundle.ood.values())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(digits().inputs, source)


def test_bundles_move_to_another_device():
    bundle = load_dataset("digits", spurious=0.5)
    moved = bundle.to("meta")
    assert {moved.train.x.device.type, moved.test.index.device.type, moved.ood["blur:1"].x.device.type} == {"meta"}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar01:x/y", {}, r"`dataset` 'cifar01:x/y' is unknown; there are .* Did you mean 'cifar10'\?"),
        ("cifar01:data", {}, r"`dataset` 'cifar01:data': there is no module 'cifar01'; .* Did you mean 'cifar10'\?"),
        ("digit", {}, r"`dataset` 'digit' is unknown; there are digits, mnist1d, .* Did you mean 'digits'\?"),
        ("digits", {"train_size": 601}, r"`train_size` must be between 1 and 600 \(of 1797 .*697 .*500 .*, got 601"),
        ("digits", {"train_size": 0}, "`train_size` must be a whole number >= 1, got 0"),
        ("digits", {"train_size": 10.0}, "`train_size` must be a whole number >= 1, got 10.0"),
        ("digits", {"validation_size": -1}, "`validation_size` must be a whole number >= 0, got -1"),
        ("digits", {"validation_size": 1100}, "`validation_size` must leave some of the 1100 .* got 1100"),
        ("digits", {"test_size": 1697}, r"some of the 100 .* got 500, the default: .* such as `--validation-size 20`"),
        ("digits", {"test_size": 0}, "`test_size` must be a whole number >= 1, got 0"),
        ("digits", {"test_size": 1798}, "`test_size` must be between 1 and 1797, .* got 1798"),
        ("digits", {"test_size": 1797}, "`validation_size` must leave some of the 0"),
        ("digits", {"label_noise": 1.5}, r"`label_noise` must be a probability in \[0, 1\], got 1.5"),
        ("digits", {"label_noise": float("nan")}, r"`label_noise` must be a probability in \[0, 1\], got nan"),
        ("digits", {"spurious": -0.1}, r"`spurious` must be a probability in \[0, 1\], or None .* got -0.1"),
        ("digits", {"seed": -1}, "`seed` must be an integer"),
    ],
)
def test_wrong_arguments_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(name, **options)


def test_wrong_probability_of_codes_is_refused():
    with pytest.raises(ValueError, match=r"`spurious` must be a probability in \[0, 1\], or None"):
        patch_codes(torch.zeros(2, dtype=torch.int64), 1.5, classes=10, generator=fresh())


def test_missing_package_is_named(monkeypatch):
    DATASETS["mnist1d"].read.cache_clear()
    monkeypatch.setitem(sys.modules, "mnist1d", None)
    monkeypatch.setitem(sys.modules, "mnist1d.data", None)
    with pytest.raises(ImportError, match=r"pip install 'landscape-lab\[mnist1d\]'"):
        load_dataset("mnist1d")


def test_mnist1d_keeps_its_test_set_and_the_global_random_state():
    pytest.importorskip("mnist1d.data", exc_type=ImportError)
    np.random.seed(7)  # noqa: NPY002 - the state that must survive
    random.seed(7)
    expected = np.random.RandomState(7).rand(), random.Random(7).random()
    bundle = load_dataset("mnist1d", spurious=0.5)
    assert (np.random.rand(), random.random()) == expected  # noqa: NPY002
    assert [len(getattr(bundle, s)) for s in SPLITS] == [3500, 500, 1000]
    assert (bundle.shape, bundle.classes) == ((1, 40), 10)
    assert bool((bundle.test.index >= 4000).all())
    assert bool((bundle.train.index < 4000).all())
    assert len(bundle.ood) == 13
    plain = load_dataset("mnist1d")
    x = torch.cat([getattr(plain, s).x for s in SPLITS]).double()
    assert abs(float(x.mean())) < 1e-6
    assert abs(float(x.std(correction=0)) - 1) < 1e-6
