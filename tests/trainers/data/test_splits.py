"""Splits: what they hold, what their batches are, whatever reads them, and what a transform sees."""

import pytest
import torch
from torch.utils.data import TensorDataset

from landscape.batches import LoadedBatches
from trainers.data.items import Pixels
from trainers.data.loading import load_dataset
from trainers.data.splits import Augmentation, Split

MODULE = """
import torch
from torch.utils.data import Dataset, TensorDataset

N, M = 40, 12
BYTES = torch.arange((N + M) * 3 * 4 * 4).mul(37).remainder(256).to(torch.uint8).reshape(N + M, 3, 4, 4)
LABELS = torch.arange(N + M) % 3

class Items(Dataset):
    in_memory = False
    def __init__(self, x, y, targets=True):
        self.x, self.y = x, y
        if targets:
            self.targets = y.tolist()
    def __len__(self):
        return len(self.y)
    def __getitem__(self, i):
        return self.x[i].clone(), int(self.y[i])

class Scaled(Items):
    mean, std = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)

def halves(make):
    return make(BYTES[:N], LABELS[:N]), make(BYTES[N:], LABELS[N:])

def bytes_(): return halves(TensorDataset)
def loaded_bytes(): return halves(Items)
def unlabelled(): return halves(lambda x, y: Items(x, y, targets=False))
def scaled(): return halves(Scaled)
def floats(): return halves(lambda x, y: TensorDataset(x / 255, y))
def loaded_floats(): return halves(lambda x, y: Items(x / 255, y))

class Liar(Items):
    def __init__(self, x, y):
        super().__init__(x, y)
        self.targets = [0] * len(y)

class Ragged(Items):
    def __getitem__(self, i):
        return self.x[i][:, : 4 - (i == 5)].clone(), int(self.y[i])

class Broken(Items):
    def __getitem__(self, i):
        return self.x[i].float() / (i != 5), int(self.y[i])

class Odd(Items):
    mean = (0.5, 0.5)

class Short(Items):
    def __init__(self, x, y):
        super().__init__(x, y)
        self.targets = self.targets[1:]

def vectors(): return halves(lambda x, y: TensorDataset(x / 255, x[:, 0, 0] / 255))
def loaded_vectors():
    class Vectors(Items):
        def __getitem__(self, i):
            return self.x[i] / 255, self.x[i, 0, 0] / 255
    return halves(lambda x, y: Vectors(x, y, targets=False))

def liar(): return halves(Liar)
def ragged(): return halves(Ragged)
def broken(): return halves(Broken)
def odd(): return halves(Odd)
def short(): return halves(Short)
"""


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    (tmp_path / "stored_data.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def load(function, **options):
    return load_dataset(f"stored_data:{function}", **({"validation_size": 8, "seed": 3} | options))


def whole(batches):
    x, y = zip(*batches, strict=True)
    return torch.cat(x), torch.cat(y)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("function", ["bytes_", "loaded_bytes", "unlabelled", "floats", "loaded_floats"])
def test_batches_are_the_same_from_memory_and_from_items(function, workers):
    bundle, plain = load(function, label_noise=0.3).to("cpu", workers=workers), load("floats", label_noise=0.3)
    order = torch.tensor([5, 0, 31, 7, 7, 2, 16])
    for split, other in ((bundle.train, plain.train), (bundle.validation, plain.validation), (bundle.test, plain.test)):
        assert torch.equal(split.index, other.index)
        assert torch.equal(split.y, other.y)
        if not workers:
            assert torch.equal(split.x, other.x)
            assert torch.equal(split.take(order[:2])[0], other.x[order[:2]])
    batches = bundle.train.batches(order, 3)
    for _ in range(2):  # gone through again
        assert [len(y) for _, y in batches] == [3, 3, 1]
        assert torch.equal(whole(batches)[0], plain.train.x[order])
        assert torch.equal(whole(batches)[1], plain.train.y[order])
    assert torch.equal(whole(bundle.train.batches(size=10))[0], plain.train.x)
    if not workers:
        assert {name: split.x.shape for name, split in bundle.ood.items()} == {
            n: s.x.shape for n, s in plain.ood.items()
        }


def test_pixels_become_inputs_by_the_train_sets_mean_and_deviation():
    import stored_data

    split = load("scaled").train
    assert split.pixels == Pixels((0.5, 0.4, 0.3), (0.25, 0.2, 0.1))
    v = stored_data.BYTES[split.index].double() / 255
    mean, std = (torch.tensor(t, dtype=torch.float64).view(3, 1, 1) for t in (split.pixels.mean, split.pixels.std))
    assert (split.double().x - (v - mean) / std).abs().max() < 1e-14
    assert (split.x - (v - mean) / std).abs().max() < 1e-5
    assert (split.x.dtype, split.double().x.dtype) == (torch.float32, torch.float64)


def test_a_patch_on_bytes_is_dark_and_lit():
    train = load("bytes_", spurious=1.0).train
    assert set(train.inputs[:, :, -1, :2].unique().tolist()) == {0, 255}
    assert torch.equal(train.inputs[:, :, :-1], load("bytes_").train.inputs[:, :, :-1])
    with pytest.raises(ValueError, match=r"`spurious` needs the data in memory, .* `in_memory = True`"):
        load("loaded_bytes", spurious=1.0)


def test_memory_is_that_of_the_data_once():
    """50,000 images of 3 x 32 x 32 bytes: splits and what makes shifted sets hold them once, and batches nothing."""
    import stored_data

    n = 50_000
    x = torch.zeros(n, 3, 32, 32, dtype=torch.uint8)
    x[:, 0, 0, 0] = torch.arange(n).remainder(251).to(torch.uint8)
    y = torch.arange(n) % 10
    stored_data.large = lambda: (
        TensorDataset(x[: n - 1000], y[: n - 1000]),
        TensorDataset(x[n - 1000 :], y[n - 1000 :]),
    )
    bundle = load("large")
    seen, stack, held = set(), [bundle], {}
    while stack:  # everything that can be reached
        part = stack.pop()
        if id(part) in seen or isinstance(part, type):
            continue
        seen.add(id(part))
        if isinstance(part, torch.Tensor):
            held[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
        elif isinstance(part, dict | tuple | list):
            stack += part.values() if isinstance(part, dict) else part
        else:
            stack += [getattr(part, name, ()) for name in ("__dict__", "args", "keywords", "__closure__")]
            stack += [part.cell_contents] if type(part).__name__ == "cell" else []
    assert x.untyped_storage().data_ptr() not in held
    assert x.nbytes <= sum(held.values()) <= 1.1 * x.nbytes
    assert bundle.train.to("cpu").inputs.data_ptr() == bundle.train.inputs.data_ptr()
    floats = load_dataset("digits").train
    for batch, _ in floats.batches(size=100):
        assert batch.untyped_storage().data_ptr() == floats.inputs.untyped_storage().data_ptr()


def noise(x, generator):
    return torch.rand(x.shape, generator=generator)


@pytest.mark.parametrize("function", ["floats", "loaded_floats"])
def test_a_transform_depends_on_seed_epoch_and_example_alone(function):
    split = load(function).train
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(1))

    def seen(order, size, workers=0, seed=5, epoch=2):
        augment = Augmentation(noise, seed, epoch)
        return whole(split.to("cpu", workers=workers).batches(order, size, augment=augment))[0]

    first = seen(order, 7)
    assert torch.equal(first, seen(order, 7, workers=2))
    assert torch.equal(first[14:], seen(order[14:], 5))  # resumed, and in other batches
    assert torch.equal(first[order.argsort()], seen(None, 32))
    for other in (seen(order, 7, seed=6), seen(order, 7, epoch=3)):
        assert not (other == first).flatten(1).all(1).any()
    assert not torch.equal(first[0], first[1])
    alone = split.some(order[9:10]).batches(augment=Augmentation(noise, 5, 2))
    assert torch.equal(first[9:10], whole(alone)[0])  # whatever its place in the split


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("liar", r"'stored_data:liar', train: item \d+ has label [12], not 0"),
        (
            "ragged",
            r"train: all inputs must be alike, got torch.uint8 \(3, 3, 4\) in item 5 and .* \(3, 4, 4\)",
        ),
        ("broken", r"train: item 5 holds NaN or infinite numbers: leave it out"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_items_that_are_none_are_named_when_they_are_read(function, message, workers):
    split = load(function).to("cpu", workers=workers).train
    with pytest.raises(ValueError, match=message) as refused:
        whole(split.batches(size=4))
    assert "\n" not in str(refused.value)


def test_targets_of_a_task_of_ones_own():
    held, loaded = load("vectors", labels=False), load("loaded_vectors", labels=False)
    assert held.classes == loaded.classes == 4
    assert torch.equal(held.train.y, held.train.x[:, 0, 0])
    for (x, y), (z, w) in zip(held.train.batches(size=5), loaded.train.batches(size=5), strict=True):
        assert torch.equal(x, z)
        assert torch.equal(y, w)
    with pytest.raises(ValueError, match=r"labels must be whole numbers from 0, one an example, got torch\.float32"):
        load("loaded_vectors")


def test_wrong_pixels_and_targets_are_refused():
    with pytest.raises(ValueError, match=r"train: `mean` must be .* for each of 3 channels, .* \(0.5, 0.5\)"):
        load("odd")
    with pytest.raises(ValueError, match="train: `targets` has 39 labels for 40 items"):
        load("short")


def test_all_inputs_of_loaded_data_are_read_where_they_fit(monkeypatch):
    import landscape.memory

    split = load("loaded_floats").train
    assert split.x.shape == (32, 3, 4, 4)
    monkeypatch.setattr(landscape.memory, "free_bytes", lambda _: 100)
    with pytest.raises(MemoryError, match=r"All inputs of a split, which are read one by one, needs 6 KiB"):
        _ = split.x


def test_what_fits_is_in_memory(monkeypatch):
    import stored_data

    monkeypatch.delattr(stored_data.Items, "in_memory")
    assert isinstance(load("loaded_floats").train.inputs, torch.Tensor)
    monkeypatch.setattr("trainers.data.items.free_bytes", lambda _: 40 * 192 * 8)
    assert not isinstance(load("loaded_floats").train.inputs, torch.Tensor)
    assert isinstance(load("floats").train.inputs, torch.Tensor)  # which is in memory anyway


def test_a_subset_has_its_own_examples():
    for function in ("floats", "loaded_floats"):
        split = load(function).train
        some = split.some(torch.tensor([3, 1]))
        assert torch.equal(some.x, split.x[[3, 1]])
        assert torch.equal(some.index, split.index[[3, 1]])
    positional = Split(torch.zeros(2, 3), torch.zeros(2).long(), torch.zeros(2).long(), torch.arange(2))
    assert type(positional.batches(size=1)) is list
    assert isinstance(positional.batches(torch.tensor([1]), 1), LoadedBatches)


@pytest.mark.parametrize("function", ["bytes_", "loaded_bytes", "floats"])
def test_no_examples_make_no_batch_and_a_size_below_one_is_refused(function):
    split, none = load(function).train, torch.tensor([], dtype=torch.int64)
    assert split.take(none)[0].shape == (0, 3, 4, 4)
    for part in (split.batches(none, 4), split.some(none).batches(size=4)):
        assert list(part) == []
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"`size` must be at least 1 example a batch, got {size}"):
            split.batches(size=size)
