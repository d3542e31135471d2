"""Batches that are read anew in every pass: the same numbers as from a list, and nothing kept."""

import gc
import pickle  # noqa: TID251 - as other processes are sent it
import random
import weakref

import numpy as np
import pytest
import torch
from problems import F64
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

from landscape import EmpiricalFisher, EmpiricalRisk, GaussNewton, Hessian, ascent_sharpness, flatten
from landscape.batches import as_batches
from landscape.checks import NotAdditiveError
from landscape.loaded import LoadedBatches
from landscape.perturbation import AscentStep

X, Y = torch.linspace(-1, 2, 60, dtype=F64).sin().reshape(20, 3), torch.arange(20) % 2


class Items(Dataset):
    """Items that are made when they are asked for; how many of them are alive is counted."""

    def __init__(self, change=lambda x: x):
        self.change, self.alive, self.most, self.read = change, 0, 0, 0

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        x = self.change(X[i].clone())
        self.read += 1
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(x, self._gone)
        return x, Y[i]

    def _gone(self):
        self.alive -= 1


def model():
    torch.random.set_rng_state(torch.Generator().manual_seed(0).get_state())
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(F64)


@pytest.fixture
def pair():
    with torch.random.fork_rng():
        net = model()
    loader = DataLoader(Items(), batch_size=8)
    return [EmpiricalRisk.from_model(net, cross_entropy, data) for data in (list(loader), loader)]


def test_numbers_are_those_of_the_batches_in_a_list(pair):
    kept, loaded = pair
    assert isinstance(loaded.batches, LoadedBatches)
    assert (loaded.sizes, loaded.n, len(loaded.batches)) == ([8, 8, 4], 20, 3)
    assert loaded.value() == kept.value()
    assert torch.equal(flatten(loaded.gradient()), flatten(kept.gradient()))
    assert torch.equal(loaded.outputs(), kept.outputs())
    assert torch.equal(loaded.targets(), Y)
    assert loaded.in_parts(3).sizes == kept.in_parts(3).sizes == [3, 3, 2, 3, 3, 2, 3, 1]
    assert isinstance(loaded.in_parts(3).batches, LoadedBatches)
    assert loaded.in_parts(3).value() == kept.in_parts(3).value()
    assert [c.value() for c in loaded.chunks(7)] == [c.value() for c in kept.chunks(7)]
    assert ascent_sharpness(loaded, AscentStep(0.1)).value == ascent_sharpness(kept, AscentStep(0.1)).value


@pytest.mark.parametrize("operator", [Hessian, GaussNewton, EmpiricalFisher])
@pytest.mark.parametrize("options", [{}, {"path": "afresh"}, {"micro_batch": 3, "path": "afresh"}], ids=str)
def test_products_are_those_of_the_batches_in_a_list(pair, operator, options):
    kept, loaded = (operator(risk, **options) for risk in pair)
    v = torch.linspace(-1, 1, kept.shape[0], dtype=F64)
    assert torch.equal(loaded @ v, kept @ v)


def test_no_batch_is_kept():
    items = Items()
    with torch.random.fork_rng():
        risk = EmpiricalRisk.from_model(model(), cross_entropy, DataLoader(items, batch_size=2))
    risk.value_and_gradient()
    H = Hessian(risk, path="afresh")
    H @ torch.ones(H.shape[0], dtype=F64)
    gc.collect()
    assert items.read > 4 * len(items)
    assert items.alive <= 4
    assert items.most <= 8


def test_sizes_and_weights_are_noted_in_one_pass_and_shared():
    items = Items()
    asked = []

    def weight(x, y):
        asked.append(len(x))
        return float(len(x))

    with torch.random.fork_rng():
        risk = EmpiricalRisk.from_model(model(), cross_entropy, DataLoader(items, batch_size=8), weight=weight)
    assert (risk.sizes, risk.weights) == ([8, 8, 4], [8.0, 8.0, 4.0])
    moved = risk.at({k: 2 * t for k, t in risk.theta.items()})
    assert (moved.sizes, moved.weights) == (risk.sizes, risk.weights)
    assert items.read == len(items)
    assert asked == [8, 8, 4]


def numpy_noise(x):
    return x + torch.from_numpy(np.random.randn(3)) + random.random()  # noqa: NPY002 - as augmentations draw


@pytest.mark.parametrize(
    "loader",
    [
        lambda: DataLoader(Items(), batch_size=8, shuffle=True),
        lambda: DataLoader(Items(), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(3)),
        lambda: DataLoader(Items(), batch_size=8, sampler=WeightedRandomSampler(torch.ones(20), 20)),
        lambda: DataLoader(Items(lambda x: x + torch.randn(3, dtype=F64)), batch_size=8),
        lambda: DataLoader(Items(lambda x: x + torch.randn(3, dtype=F64)), batch_size=8, num_workers=1),
        lambda: DataLoader(Items(numpy_noise), batch_size=8, shuffle=True),
        lambda: DataLoader(Items(), batch_size=8, shuffle=True, num_workers=1, persistent_workers=True),
    ],
    ids=[
        "shuffled",
        "by its own generator",
        "weighted",
        "augmented",
        "augmented by a worker",
        "by NumPy and Python",
        "persistent",
    ],
)
def test_loaders_that_shuffle_or_augment_are_one_draw_in_every_pass(loader):
    loader = loader()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    own = None if loader.generator is None else loader.generator.get_state()
    with torch.random.fork_rng():
        net = model()
    risk = EmpiricalRisk.from_model(net, cross_entropy, loader)
    kept = EmpiricalRisk.from_model(net, cross_entropy, list(risk.batches))
    assert isinstance(risk.batches, LoadedBatches)
    assert risk.value() == risk.value() == kept.value()
    ours, theirs = Hessian(risk, path="afresh"), Hessian(kept, path="afresh")
    v = torch.linspace(-1, 1, ours.shape[0], dtype=F64)
    assert torch.equal(ours @ v, theirs @ v)
    assert ascent_sharpness(risk, AscentStep(0.1), m=3).value == ascent_sharpness(kept, AscentStep(0.1), m=3).value
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert own is None or torch.equal(loader.generator.get_state(), own)


def test_other_draws_in_each_pass_are_refused():
    source = torch.Generator()  # which nobody knows of
    loader = DataLoader(Items(lambda x: x + torch.randn(3, dtype=F64, generator=source)), batch_size=8)
    with torch.random.fork_rng():
        risk = EmpiricalRisk.from_model(model(), cross_entropy, loader)
    for ask in (risk.value, lambda: Hessian(risk), lambda: ascent_sharpness(risk, AscentStep(0.1))):
        with pytest.raises(ValueError, match=r"`data` gave other batches .* from batch 0 on, .* pass list\(data\)"):
            ask()
    assert EmpiricalRisk.from_model(nn.Linear(3, 2, dtype=F64), cross_entropy, list(loader)).value() > 0


def test_a_source_that_runs_dry_or_grows_is_refused():
    class Source:
        counts = iter([3, 2, 4])

        def __iter__(self):
            return iter([(X, Y)] * next(self.counts))

    batches = as_batches(Source())
    assert batches.sizes == [20] * 3
    with pytest.raises(ValueError, match="from batch 2 on"):
        list(batches)
    with pytest.raises(ValueError, match="from batch 3 on"):
        list(batches)


def test_the_global_random_state_stays():
    before = torch.get_rng_state()
    loader = DataLoader(Items(lambda x: x + 0 * torch.rand(3, dtype=F64)), batch_size=8)
    batches = as_batches(loader)
    assert batches.sizes == [8, 8, 4]
    list(batches)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_can_be_gone_through_once_is_kept_and_tensors_in_order_are_cut():
    once = as_batches((X[i : i + 8], Y[i : i + 8]) for i in range(0, 20, 8))
    assert [len(x) for x, _ in once] == [len(x) for x, _ in once] == [8, 8, 4]
    for drop in (False, True):
        loader = DataLoader(TensorDataset(X, Y), batch_size=8, drop_last=drop)
        cut = as_batches(loader)
        assert type(cut) is list
        assert all(x.untyped_storage().data_ptr() == X.untyped_storage().data_ptr() for x, _ in cut)
        assert all(
            torch.equal(a, b) for one, two in zip(cut, loader, strict=True) for a, b in zip(one, two, strict=True)
        )
    assert isinstance(as_batches(DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True)), LoadedBatches)


def test_additivity_is_checked_of_what_is_loaded():
    def total(out, y):
        return cross_entropy(out, y, reduction="sum")

    with torch.random.fork_rng():
        risk = EmpiricalRisk.from_model(model(), total, DataLoader(Items(), batch_size=8))
    with pytest.raises(NotAdditiveError, match="reduction='mean'"):
        risk.value()
    with torch.random.fork_rng():
        pairs = EmpiricalRisk.from_model(model(), lambda out, _: out.var(0).sum(), DataLoader(Items(), batch_size=20))
    with pytest.raises(NotAdditiveError, match="`size` = 3 would cut"):
        pairs.in_parts(3)


def test_a_verdict_on_one_cut_is_none_on_another():
    """A loss that is additive over pairs of neighbours, and over nothing else."""

    def paired(out, y):
        out = out[:, 0]
        return (out[::2] * out[1::2]).mean() if len(out) % 2 == 0 else out.mean() ** 2

    risk = EmpiricalRisk.from_model(nn.Linear(3, 1, dtype=F64), paired, (X, Y))
    assert risk.in_parts(4).value() == pytest.approx(risk.value(), rel=1e-12)
    with pytest.raises(NotAdditiveError, match="`size` = 3 would cut"):
        risk.in_parts(3)


def test_all_data_at_once_are_refused_where_they_do_not_fit(pair, monkeypatch):
    import landscape.memory

    _, loaded = pair
    monkeypatch.setattr(landscape.memory, "free_bytes", lambda _: 100)
    with pytest.raises(MemoryError, match=r"`m` = 5, which holds all .* needs 1.25 KiB, but 100 bytes"):
        loaded.chunks(5)


def test_a_split_gives_its_batches():
    class Split:
        def batches(self):
            return [(X[:8], Y[:8]), (X[8:], Y[8:])]

    net = nn.Linear(3, 2, dtype=F64)
    assert_close(
        EmpiricalRisk.from_model(net, cross_entropy, Split()).value(),
        EmpiricalRisk.from_model(net, cross_entropy, (X, Y)).value(),
    )


def test_a_risk_over_a_loader_travels_to_other_processes():
    model = nn.Linear(3, 2, dtype=F64)
    loader = DataLoader(TensorDataset(X, Y), 8, shuffle=True, generator=torch.Generator().manual_seed(4))
    risk = EmpiricalRisk.from_model(model, cross_entropy, loader)
    for one in (risk, risk.in_parts(5)):
        other = pickle.loads(pickle.dumps(one))
        assert other.value() == one.value()
        assert_close(other.gradient(), one.gradient(), rtol=0, atol=0)
