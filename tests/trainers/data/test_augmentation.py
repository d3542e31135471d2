"""Augmentation: what each transform does, by other means; what it depends on; and what is refused."""

import numpy as np
import pytest
import torch
from drop_in import need
from torch.utils.data import TensorDataset

from trainers import fit
from trainers.config import train_config
from trainers.data.augmentation import AUGMENTATIONS, Augmentation, Given, augmentation, spelled
from trainers.data.items import Pixels
from trainers.data.loading import load_dataset
from trainers.data.splits import Split
from trainers.data.transforms import Crop, Cutout, Flip
from trainers.randomness import ExampleDraws, derive

V2 = "torchvision.transforms.v2:"
ALL = (
    "crop",
    "flip",
    "cutout:4",
    "randaugment",
    "resized_crop",
    "trivialaugment",
    "color_jitter",
    f"{V2}GaussianBlur:kernel_size=3",
)


def images(n=40, shape=(3, 16, 12)):
    return torch.randint(1, 256, (n, *shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def split_of(x, workers=0):
    y = torch.arange(len(x)) % 4
    index = torch.arange(len(x)) * 7 % 101  # not in order, and not without gaps
    return Split(x, y, y, index, Pixels() if x.dtype == torch.uint8 else None, workers=workers)


def seen(split, names, order=None, size=16, *, seed=5, epoch=0, trust=True):
    found, _ = augmentation(names, split, classes=4, seed=seed, fill=0, trust=trust)
    augment = Augmentation(found.transform, seed, epoch, found.batch, found.fill)
    return torch.cat([x for x, _ in split.batches(order, size, augment=augment)])


def splitmix64(state):
    """The generator's next output, in Python's integers, as it is published."""
    mask = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_draws_are_those_of_splitmix64():
    assert splitmix64(1234567) == 6457827717110365317  # from the authors' reference implementation
    examples = torch.tensor([0, 1, 2, 77, 10**9])
    for key in (0, 2**63 - 1, derive(3, "x")):
        for bound, draw in ((2, 0), (9, 1), (1000, 7)):
            start = [key + (8 * i + draw) * 0x9E3779B97F4A7C15 for i in examples.tolist()]
            expected = [((splitmix64(s) >> 33) * bound) >> 31 for s in start]
            assert ExampleDraws(key, examples).below(bound, draw).tolist() == expected


def test_draws_are_uniform_and_unrelated():
    n = 90_000
    draws = ExampleDraws(derive(0, "uniform"), torch.arange(n))
    first, second = draws.below(9, 0), draws.below(9, 1)
    for counts in (
        first.bincount(),
        second.bincount(),
        (first * 9 + second).bincount(),
        (first[1:] * 9 + first[:-1]).bincount(),
    ):
        cells = len(counts)
        chi = ((counts - counts.sum() / cells) ** 2 / (counts.sum() / cells)).sum()
        assert abs(chi - (cells - 1)) < 4 * (2 * (cells - 1)) ** 0.5


@pytest.mark.parametrize("shape", [(3, 16, 12), (1, 20)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_flip_and_cutout_are_what_a_loop_does(shape, dtype):
    x, fill = images(30, shape).to(dtype), 0 if dtype == torch.uint8 else -0.5
    draws = ExampleDraws(9, torch.arange(30) * 3)
    size = shape[1:]
    pads = [max(1, side // 8) for side in size]
    shifts = [draws.below(2 * pad + 1, axis).tolist() for axis, pad in enumerate(pads)]
    middles = [draws.below(side, axis).tolist() for axis, side in enumerate(size)]
    mirrored = draws.below(2, 0).bool()
    cropped, holed = torch.full_like(x, fill), x.clone()
    for i in range(30):
        for place in np.ndindex(*size):
            source = [p + shift[i] - pad for p, shift, pad in zip(place, shifts, pads, strict=True)]
            if all(0 <= s < side for s, side in zip(source, size, strict=True)):
                cropped[(i, slice(None), *place)] = x[(i, slice(None), *source)]
            if all(m[i] - 2 <= p < m[i] + 3 for p, m in zip(place, middles, strict=True)):
                holed[(i, slice(None), *place)] = fill
    assert torch.equal(Crop()(x, draws, fill), cropped)
    assert torch.equal(
        Flip()(x, draws, fill), torch.stack([t.flip(-1) if m else t for t, m in zip(x, mirrored, strict=True)])
    )
    assert torch.equal(Cutout(size=5)(x, draws, fill), holed)
    assert 8 < int(mirrored.sum()) < 22
    assert torch.equal(Crop(pad=0)(x, draws, fill), x)
    assert len({tuple(s) for s in zip(*shifts, strict=True)}) > 3


@pytest.mark.parametrize(
    "names", [("crop", "flip", "cutout:4"), ("flip", "randaugment", "crop"), *((name,) for name in ALL[3:])]
)
def test_only_seed_epoch_and_example_decide(names):
    """Not the batch, its size, its place in the order, the workers, the device's path or the global states."""
    need("torchvision")
    split = split_of(images())
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    first = seen(split, names, order)
    states = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert torch.equal(first[16:], seen(split, names, order[16:], 5))
    # Python's own is drawn from by the check of types, which looks at items at random
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states  # noqa: NPY002
    assert torch.equal(first[order.argsort()], seen(split, names))
    some = split.some(order[9:12])
    assert torch.equal(first[9:12], seen(some, names))
    for other in (seen(split, names, order, seed=6), seen(split, names, order, epoch=1)):
        assert (other != first).flatten(1).any(1).float().mean() > 0.5
    assert not torch.equal(first, split.x[order])


def test_any_number_of_workers_gives_the_same_bits_and_they_live_on():
    need("torchvision")
    names, order = ("crop", f"{V2}RandomVerticalFlip", "flip"), torch.arange(39, -1, -1)
    plain = [seen(split_of(images()), names, order, epoch=e) for e in (0, 1)]
    assert not torch.equal(*plain)
    for workers in (1, 2):
        split = split_of(images(), workers)
        found, _ = augmentation(names, split, classes=4, seed=5, fill=0)
        reader, processes = split.reader(found, lasting=True), set()
        for epoch in (0, 1):
            batches = split.batches(
                order, 16, augment=Augmentation(found.transform, 5, epoch, found.batch), reader=reader
            )
            assert torch.equal(torch.cat([x for x, _ in batches]), plain[epoch])
            processes |= {p.pid for p in reader._loader._iterator._workers}
            next(iter(batches))  # and a pass that is given up
        assert len(processes) == workers
        reader.close()


@pytest.mark.parametrize(("names", "same"), [
    (("resized_crop",), "RandomResizedCrop(size=(16, 12), antialias=True)"),
    (("resized_crop:scale=(0.5,1)",), "RandomResizedCrop(size=(16, 12), scale=(0.5, 1), antialias=True)"),
    (("randaugment",), "RandAugment(num_ops=2, magnitude=9)"),
    (("trivialaugment",), "TrivialAugmentWide()"),
    (("color_jitter:0.2,hue=0.1",), "ColorJitter(0.2, 0.4, 0.4, 0.1)"),
    ((f"{V2}GaussianBlur:kernel_size=3,sigma=(0.1,2.0)",), "GaussianBlur(3, (0.1, 2.0))"),
])  # fmt: skip
def test_torchvisions_own_see_the_same_random_state(names, same):
    need("torchvision")
    from torchvision.transforms import v2

    x = images(6)
    split, transform = split_of(x), eval(f"v2.{same}", {"v2": v2})
    for i, shown in enumerate(seen(split, names, size=3, epoch=2) * 255):
        torch.default_generator.manual_seed(derive(5, f"augmentation 2 {int(split.index[i])}"))
        assert torch.equal(shown.round().to(torch.uint8), transform(x[i]))


def test_what_is_written_is_spelled_out():
    given = [
        "mixup:0.4",
        "crop",
        "cutout:8",
        "randaugment:magnitude=5",
        "resized_crop:scale=(0.5,1)",
        "my.module:make:kind=soft,n=3",
    ]
    assert spelled(given) == (
        "crop", "cutout:size=8", "randaugment:num_ops=2,magnitude=5",
        "resized_crop:scale=(0.5,1.0),ratio=(0.75,1.3333333333333333)", "my.module:make:kind='soft',n=3",
        "mixup:alpha=0.4",
    )  # fmt: skip
    assert spelled(spelled(given)) == spelled(given)
    assert Given.read("my.module:make:kind=soft").options == {"kind": "soft"}
    both = [train_config({"augment": a}).run_id for a in (["flip", "mixup:0.2"], ["mixup", "flip"])]
    assert both[0] == both[1] != train_config({}).run_id
    assert train_config({"augment": []}).run_id == train_config({}).run_id


@pytest.mark.parametrize(("names", "message"), [
    (["crp"], r"`augment` 'crp' is unknown; there are crop, flip, .* Did you mean 'crop'\?"),
    (["crop:-1"], r"option `pad` of `augment` 'crop' got -1: .* greater than or equal to 0"),
    (["crop:pda=4"], r"`augment` 'crop' has no option `pda`; it has \['pad'\]. Did you mean 'pad'\?"),
    (["flip:0.5"], r"`augment` 'flip:0.5': options are written name=value"),
    (["cutout:8,9"], r"'cutout:8,9': options are written name=value, .* as in cutout:8\."),
    (["cutout:__import__('os')"], r"options are written name=value"),
    (["cutout:1)(2"], r"options are written name=value"),
    (["mixup:0"], r"option `alpha` of `augment` 'mixup' got 0: .* greater than 0"),
    (["mixup", "mixup:0.4"], r"`augment` names 'mixup' twice"),
    (["mine:make:3"], r"'mine:make:3': options are written name=value"),
    (["resized_crop:scale=0.5"], r"option `scale` of `augment` 'resized_crop' got 0.5"),
])  # fmt: skip
def test_foolish_names_are_refused_when_the_configuration_is_made(names, message):
    with pytest.raises(ValueError, match=message):
        train_config({"augment": names})


def test_mixing_needs_labels():
    with pytest.raises(ValueError, match=r"`augment` with mixup or cutmix mixes labels.* got 'a:B'"):
        train_config({"augment": ["mixup"], "task": "a:B"})


MODULE = """
import random
import numpy as np
import torch

def noise(scale=1.0):
    def add(x):
        return x + scale * (torch.rand(x.shape) + float(np.random.rand()) + random.random())
    return add

def smaller():
    return lambda x: x[..., 1:]

def broken():
    def fail(x):
        raise KeyError("why")
    return fail

def nothing():
    return None
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_transforms.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own")
def test_a_users_own_draws_from_every_global_state():
    split = split_of(images().float())
    first = seen(split, ["own_transforms:noise:scale=2", "flip"])
    assert torch.equal(first, seen(split_of(images().float(), 2), ["own_transforms:noise:scale=2", "flip"], size=7))
    assert len((seen(split, ["own_transforms:noise"]) - split.x).flatten(1)[:, 0].unique()) > 35
    with pytest.raises(PermissionError, match="--trust"):
        seen(split, ["own_transforms:noise"], trust=False)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(("names", "x", "message"), [
    (["crop"], torch.zeros(9, 5), r"`augment` 'crop' needs images \(c, h, w\) or signals .* torch.float32 of shape"),
    (["cutmix"], torch.zeros(9, 5), r"'cutmix' needs images"),
    (["mixup"], torch.zeros(9, 5).long(), r"'mixup' needs inputs of floating point, .* torch.int64 of shape \(5,\)"),
    (["resized_crop"], torch.zeros(9, 1, 5), r"'resized_crop' needs images \(c, h, w\), .* \(1, 5\)"),
    (["randaugment"], torch.zeros(9, 3, 8, 8), r"'randaugment' needs images \(c, h, w\) of torch.uint8 .* shades from"),
    (["color_jitter"], images(9, (2, 8, 8)), r"with 1 or 3 channels.* of shape \(2, 8, 8\)"),
    (["own_transforms:smaller"], images(9), r"must give what it takes, .* got torch.uint8 \(3, 16, 11\)"),
    (["own_transforms:broken"], images(9), r"example 0 of the source: `augment` .* failed: KeyError: 'why'"),
    (["own_transforms:nothing"], images(9), r"must return a transform, .* got NoneType"),
    (["own_transforms:noise:scal=2"], images(9), r"`augment` 'own_transforms:noise' failed: TypeError: .*scal"),
    ([f"{V2}Blur"], images(9), r"torchvision.transforms.v2 has no transform 'Blur'"),
    ([f"{V2}functional"], images(9), r"has no transform 'functional'"),
    ([f"{V2}GaussianBlur"], images(9), r"GaussianBlur failed: TypeError: .*kernel_size"),
    ([f"{V2}Resize:size=8"], images(9), r"must give what it takes"),
])  # fmt: skip
def test_what_does_not_fit_the_data_is_refused_at_the_start(names, x, message):
    need("torchvision")
    states = torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        augmentation(names, split_of(x), classes=4, seed=0)
    assert torch.equal(torch.get_rng_state(), states)


def test_without_torchvision_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchvision.transforms", None)
    for name in ("randaugment", "resized_crop", f"{V2}Grayscale"):
        with pytest.raises(ImportError, match=r"needs torchvision: pip install 'landscape-lab\[vision\]'"):
            augmentation([name], split_of(images()), classes=4, seed=0)
    assert augmentation(["crop", "flip"], split_of(images()), classes=4, seed=0)[0].batch == (Crop(), Flip())


def test_the_background_is_what_stored_inputs_have_there():
    digits = load_dataset("digits")
    assert digits.fill == pytest.approx(float(digits.train.x.min()))
    found, _ = augmentation(["crop"], digits.train, classes=10, seed=0, fill=digits.fill)
    assert found.fill == digits.fill
    least = images(9).float() - 7
    assert augmentation(["crop"], split_of(least), classes=4, seed=0)[0].fill == float(least.min())


def bytes_():
    x = images(90, (3, 8, 8))
    return TensorDataset(x[:60], torch.arange(60) % 4), TensorDataset(x[60:], torch.arange(30) % 4)


def test_evaluation_sees_the_data_as_they_are(tmp_path, monkeypatch):
    """The history's columns are those of the unaugmented data, at the weights that augmentation led to."""
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    config = {"dataset": "test_augmentation:bytes_", "validation_size": 10, "epochs": 2, "model_options": {"width": 8}}
    run = fit({**config, "augment": ["crop", "flip"]}, out=tmp_path, trust=True)
    from trainers.runs.checkpoint import load_checkpoint

    model, _ = load_checkpoint(list(run.checkpoints().values())[-1])
    train = load_dataset("test_augmentation:bytes_", validation_size=10).train
    loss = torch.nn.functional.cross_entropy(model(train.x), train.y).detach()
    assert run.history()["train_loss"].iloc[-1] == pytest.approx(float(loss), rel=1e-6)
    plain = fit(config, out=tmp_path, trust=True)
    assert run.history()["loss"].tolist() != plain.history()["loss"].tolist()
    assert run.correctness("presentation").shape == (2, 50)


def test_every_name_has_a_line_of_help():
    assert all(entry.help.endswith(".") for entry in AUGMENTATIONS.values())
