"""Data by name and path, against the arrays that were written and the readers of torchvision."""

import pickle  # noqa: TID251 - to write what must not be run
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import images, write_batch, write_cifar10, write_cifar100, write_folder, write_idx, write_svhn
from drop_in import need

from trainers.config import TrainConfig
from trainers.data.items import ItemInputs
from trainers.data.loading import load_dataset
from trainers.data.sources import files
from trainers.data.sources.files import Files
from trainers.data.sources.named import SCHEMES, download, fingerprint, identity

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
WRITERS = {
    "mnist": write_idx, "fashion_mnist": write_idx, "cifar10": write_cifar10, "cifar100": write_cifar100,
    "svhn": write_svhn,
}  # fmt: skip


def whole(bundle):
    """Stored images and labels of all splits, in the order of the source."""
    splits = (bundle.train, bundle.validation, bundle.test)
    index, order = torch.cat([s.index for s in splits]).sort()
    assert torch.equal(index, torch.arange(len(index)))
    return torch.cat([s.inputs for s in splits])[order], torch.cat([s.y for s in splits])[order]


@pytest.mark.parametrize("name", WRITERS)
def test_standard_data_are_what_was_written(name, tmp_path):
    x, y = WRITERS[name](tmp_path)
    bundle = load_dataset(f"{name}:{tmp_path}", validation_size=5, seed=1)
    stored, labels = whole(bundle)
    assert stored.dtype == torch.uint8
    assert np.array_equal(stored.numpy(), x)
    assert np.array_equal(labels.numpy(), y)
    assert bundle.classes == len(bundle.names) == (100 if name == "cifar100" else 10)
    assert bundle.test.index.min() == len(bundle.train) + len(bundle.validation)  # the test set is the data's own
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (bundle.train.pixels.mean, bundle.train.pixels.std))
    torch.testing.assert_close(bundle.train.x, (bundle.train.inputs / 255 - mean) / std)


@pytest.mark.parametrize("name", WRITERS)
def test_torchvision_reads_the_same(name, tmp_path, monkeypatch):
    need("torchvision")
    from torchvision import datasets

    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda *_: True)
    folder = {
        "mnist": "MNIST/raw", "fashion_mnist": "FashionMNIST/raw", "cifar10": "cifar-10-batches-py",
        "cifar100": "cifar-100-python", "svhn": ".",
    }[name]  # fmt: skip
    unpacked = {"packed": False} if "mnist" in name else {}
    WRITERS[name](tmp_path / folder, **unpacked)
    stored, labels = whole(load_dataset(f"{name}:{tmp_path}", validation_size=5))
    library = getattr(datasets, SCHEMES[name].load.__closure__[0].cell_contents.library)
    parts = [
        library(tmp_path, **({"split": part} if name == "svhn" else {"train": part == "train"}))
        for part in ("train", "test")
    ]
    theirs = torch.cat([torch.from_numpy(np.array(image)).reshape(*image.size, -1).permute(2, 0, 1)[None]
                        for part in parts for image, _ in part])  # fmt: skip
    assert torch.equal(stored, theirs)
    assert labels.tolist() == [label for part in parts for _, label in part]


@pytest.mark.parametrize("protocol", range(6))
def test_batches_of_every_protocol_are_read(protocol, tmp_path):
    x, y = write_cifar10(tmp_path, protocol=protocol)
    stored, labels = whole(load_dataset(f"cifar10:{tmp_path}", validation_size=5))
    assert np.array_equal(stored.numpy(), x)
    assert np.array_equal(labels.numpy(), y)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("touched"),))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"data": Evil(), "labels": []}, r"data_batch_2 is no batch of arrays \(a call of \S+, which could run code\)"),
        ([1, 2], r"a list where a dictionary is expected"),
        ({"data": np.zeros((1, 3072), np.uint8)}, r"data_batch_2 has no labels, but data: is it CIFAR's\?"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, r"uint8 of shape \(2, 3072\) and \(1,\) labels"),
        ({"data": np.array([{}]), "labels": [0]}, r"arrays of object"),
    ],
)
def test_batches_run_nothing_and_say_what_they_hold(what, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps(what, 2))
    with pytest.raises(ValueError, match=message):
        load_dataset(f"cifar10:{tmp_path}")
    assert not (tmp_path / "touched").exists()


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist_is_found_and_has_its_published_moments():
    bundle = load_dataset("fashion_mnist", validation_size=5000)
    assert [len(s) for s in (bundle.train, bundle.validation, bundle.test)] == [55_000, 5000, 10_000]
    assert bundle.train.y.bincount().tolist() == [5500] * 10
    assert bundle.test.y.bincount().tolist() == [1000] * 10
    whole_train = torch.cat([bundle.train.inputs, bundle.validation.inputs]).double() / 255
    assert float(whole_train.mean()) == pytest.approx(0.2860, abs=5e-5)
    assert float(whole_train.std()) == pytest.approx(0.3530, abs=5e-5)
    assert bundle.names[int(bundle.train.y[0])] in ("T-shirt/top", *bundle.names)


def test_images_are_in_memory_once(tmp_path):
    write_cifar10(tmp_path, each=400)
    for noise in (0.0, 0.5):
        bundle = load_dataset(f"cifar10:{tmp_path}", validation_size=100, label_noise=noise)
        held = {s.inputs.untyped_storage().data_ptr(): s.inputs.untyped_storage().nbytes()
                for s in (bundle.train, bundle.validation, bundle.test)}  # fmt: skip
        assert sum(held.values()) <= 1.1 * 2400 * 3072
        assert len(held) == 1  # the splits are parts of what was read: there was no second copy at any time
    few = load_dataset(f"cifar10:{tmp_path}", train_size=50, validation_size=50, test_size=50)
    assert few.train.inputs.untyped_storage().nbytes() == 50 * 3072  # what is not used is let go


def test_splits_do_not_depend_on_how_much_is_kept(tmp_path):
    x, _ = write_cifar10(tmp_path, each=20)
    large = load_dataset(f"cifar10:{tmp_path}", validation_size=20)
    small = load_dataset(f"cifar10:{tmp_path}", validation_size=20, train_size=10, test_size=10)
    assert torch.equal(small.train.inputs, large.train.inputs[:10])
    assert torch.equal(small.validation.inputs, large.validation.inputs)
    assert torch.equal(small.test.inputs, large.test.inputs[:10])
    assert np.array_equal(large.train.inputs.numpy(), x[large.train.index.numpy()])


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("cifar10", lambda p: (p / "data_batch_3").unlink(), FileNotFoundError,
         r"no whole CIFAR-10 \(not found: data_batch_3\).* add `--download`"),
        ("cifar10", shutil.rmtree, FileNotFoundError, r"no whole CIFAR-10 \(\S+ does not exist\)"),
        ("mnist", lambda p: (p / "t10k-labels-idx1-ubyte.gz").unlink(), FileNotFoundError,
         "not found: t10k-labels-idx1-ubyte"),
        ("mnist", lambda p: (p / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8bno"), ValueError, "is damaged"),
        ("mnist", lambda p: (p / "train-images-idx3-ubyte.gz").write_bytes(struct.pack(">iiii", 2051, 9, 8, 8)),
         ValueError, "holds 9 images, and .* 30 labels"),
        ("mnist", lambda p: (p / "train-images-idx3-ubyte.gz").write_bytes(struct.pack(">iiii", 2051, 30, 8, 8)),
         ValueError, "ends 1920 bytes too early"),
        ("mnist", lambda p: (p / "train-images-idx3-ubyte.gz").write_bytes(bytes(40)), ValueError,
         r"is no IDX file of images \(it begins with 0\)"),
        ("mnist", lambda p: (p / "t10k-labels-idx1-ubyte.gz").write_bytes(struct.pack(">ii", 2049, 20) + b"\x0b" * 20),
         ValueError, r"20 labels of \S+ are none of 0 to 9, such as 11 of example 30: is it MNIST\?"),
        ("svhn", lambda p: (p / "test_32x32.mat").write_bytes(b"no"), ValueError, r"test_32x32.mat is no whole .mat"),
    ],
)  # fmt: skip
def test_damaged_standard_data_are_refused(name, change, error, message, tmp_path):
    folder = tmp_path / "data"
    WRITERS[name](folder)
    change(folder)
    with pytest.raises(error, match=message):
        load_dataset(f"{name}:{folder}")


def test_small_images_are_resized_when_they_are_used(tmp_path):
    """Against Pillow, which rounds to bytes."""
    from PIL import Image

    x, _ = write_idx(tmp_path, side=8)
    bundle = load_dataset(f"mnist:{tmp_path}", input_size=20, validation_size=5)
    assert bundle.shape == (1, 20, 20)
    assert bundle.train.inputs.shape[1:] == (1, 8, 8)
    mean, std = bundle.train.pixels.mean[0], bundle.train.pixels.std[0]
    for (shown, _), index in zip(bundle.train.batches(size=10), bundle.train.index.split(10), strict=True):
        for image, i in zip(shown, index, strict=True):
            wanted = np.array(Image.fromarray(x[i, 0]).resize((20, 20), Image.Resampling.BILINEAR))
            assert np.abs((image[0].numpy() * std + mean) * 255 - wanted).max() < 1.01
    shifted = bundle.ood["contrast:1"]
    assert shifted.x.shape == (len(bundle.test), 1, 20, 20)
    assert load_dataset(f"mnist:{tmp_path}", input_size=8, validation_size=5).train.side is None


def test_standard_names_need_a_path():
    with pytest.raises(ValueError, match="`dataset` 'cifar10' needs the folder of its files: write cifar10:PATH"):
        load_dataset("cifar10")
    with pytest.raises(ValueError, match=r"`on_corrupt` is for files of images .*'cifar10:x'"):
        load_dataset("cifar10:x", on_corrupt="skip")
    with pytest.raises(
        ValueError, match="are for files of images, and `target_columns` for csv:FILE, got `dataset` 'digits'"
    ):
        load_dataset("digits", input_size=32)
    with pytest.raises(ValueError, match=r"'cifar11:x' .*no module|there is no module 'cifar11'"):
        load_dataset("cifar11:x")
    with pytest.raises(ValueError, match=r"'cifar' is unknown; .*cifar10:PATH.* Did you mean 'cifar10'\?"):
        load_dataset("cifar")


# Fingerprints and downloads ---------------------------------------------------------------------------------------


def test_data_are_known_by_their_files_wherever_they_lie(tmp_path):
    write_cifar10(tmp_path / "a" / "cifar-10-batches-py")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    names = [f"cifar10:{tmp_path}/a", f"cifar10:{tmp_path}/b", f"cifar10:{tmp_path}/b/cifar-10-batches-py"]
    assert len({fingerprint(name) for name in names}) == 1
    configs = [TrainConfig(dataset=name) for name in names]
    assert len({config.run_id for config in configs}) == 1
    assert identity(names[0]) == identity(names[1]) == f"cifar10:{fingerprint(names[0])}"
    write_batch(tmp_path / "b" / "cifar-10-batches-py" / "test_batch", *_other())
    assert fingerprint(names[1]) != fingerprint(names[0])
    assert TrainConfig(dataset=names[1]).run_id != configs[0].run_id
    moved = configs[0].resolved().moved(names[1])
    assert moved.run_id == configs[0].run_id
    with pytest.raises(ValueError, match=r"has changed: its files have the fingerprint \w+, and had \w+ when the run"):
        load_dataset(moved.dataset, digest=moved.dataset_digest)
    shutil.rmtree(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match=r"have moved, say where they are: --dataset cifar10:PATH"):
        load_dataset(moved.dataset, digest=moved.dataset_digest)
    for wrong in (f"cifar100:{tmp_path}", "digits"):
        with pytest.raises(ValueError, match=r"is not where the run's .* can have moved: give cifar10:PATH"):
            configs[0].resolved().moved(wrong)
    with pytest.raises(ValueError, match="'cifar10:x' is not where 'digits' lies, which has no path"):
        TrainConfig().resolved().moved("cifar10:x")


def _other():
    x, y = images(10, 3, 32, seed=1)
    return x.reshape(10, -1), {"labels": y.tolist(), "batch_label": "test_batch"}


def test_a_folder_is_known_by_names_sizes_and_some_contents(tmp_path):
    write_folder(tmp_path / "a", each=3)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    name, other = f"imagefolder:{tmp_path}/a", f"imagefolder:{tmp_path}/b"
    before = fingerprint(name)
    assert before == fingerprint(other)
    (tmp_path / "b/train/cat/0.png").rename(tmp_path / "b/train/cat/new.png")
    assert fingerprint(other) != before
    raw = bytearray((tmp_path / "a/test/dog/2.png").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "a/test/dog/2.png").write_bytes(raw)
    with pytest.raises(
        ValueError, match="has changed"
    ):  # as seen when it is loaded, if not by folders' times of change
        load_dataset(name, digest=before)


def test_all_contents_of_small_data_count_and_some_of_large(tmp_path, monkeypatch):
    for i in range(120):
        (tmp_path / f"{i:03}").write_bytes(bytes([i] * 9))
    names = tuple(sorted(path.name for path in tmp_path.iterdir()))
    read = []
    content = files._content
    monkeypatch.setattr(files, "_content", lambda path: read.append(path) or content(path))
    before, known = Files(tmp_path, names).fingerprint, Files(tmp_path, names).sampled_fingerprint
    read.clear()
    assert Files(tmp_path, names).fingerprint == before
    assert not read  # remembered
    (tmp_path / "002").write_bytes(b"123456789")  # none of the 64
    assert Files(tmp_path, names).sampled_fingerprint == known
    assert Files(tmp_path, names).fingerprint != before
    assert len(read) == 64 + 120
    monkeypatch.setattr(files, "LARGE", 9 * 120 - 1)
    monkeypatch.setattr(files, "_known", {})
    assert Files(tmp_path, names).fingerprint == known


def test_runs_known_by_some_files_of_a_folder_keep_their_data(tmp_path):
    write_folder(tmp_path / "a", each=30)
    name = f"imagefolder:{tmp_path}/a"
    known = SCHEMES["imagefolder"].find(name, f"{tmp_path}/a").sampled_fingerprint
    assert known != fingerprint(name)
    load_dataset(name, digest=known, validation_size=4)


def test_paths_are_kept_whole_and_only_asked_downloads_fetch(tmp_path, monkeypatch):
    need("torchvision")
    monkeypatch.chdir(tmp_path)
    calls = []

    class Fetched:
        def __init__(self, root, **options):
            calls.append((root, options))
            if "fails" in str(root):
                raise RuntimeError("File not found or corrupted.\nmore")
            write_cifar10(Path(root) / "cifar-10-batches-py")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Fetched)
    download("cifar10:here")
    download("cifar10:here")  # it is there
    download("cifar10:there/cifar-10-batches-py")
    download("digits")
    assert calls == [(tmp_path / "here", {"download": True}), (tmp_path / "there", {"download": True})]
    assert TrainConfig(dataset="cifar10:here").resolved().dataset == f"cifar10:{tmp_path}/here"
    with pytest.raises(OSError, match=r"`download` of 'cifar10:fails' failed \(File not found or corrupted"):
        download("cifar10:fails")
    with pytest.raises(ValueError, match="`download` of 'svhn' needs the folder to fetch the data to: write svhn:PATH"):
        download("svhn")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        download("npz:none.npz")


# Folders of images ------------------------------------------------------------------------------------------------


def test_folders_are_torchvisions(tmp_path):
    need("torchvision")
    from torchvision.datasets import ImageFolder

    written = write_folder(tmp_path)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    bundle = load_dataset(f"imagefolder:{tmp_path}")
    assert (bundle.names, bundle.classes, bundle.shape) == (("cat", "dog"), 2, (3, 10, 12))
    theirs = [ImageFolder(tmp_path / part) for part in ("train", "val", "test")]
    stored, labels = whole(bundle)
    samples = [sample for folder in theirs for sample in folder.samples]
    assert labels.tolist() == [label for _, label in samples]
    assert torch.equal(stored, torch.stack([torch.from_numpy(written[Path(p)]).permute(2, 0, 1) for p, _ in samples]))
    assert bundle.validation.index.tolist() == list(range(8, 16))  # its own, whole and as it is
    assert len(load_dataset(f"imagefolder:{tmp_path}", validation_size=1, train_size=3).validation) == 8


@pytest.mark.parametrize("size", [(50, 40), (41, 41), (16, 16), (10, 33)])
def test_resizing_is_that_of_torchvisions_presets(size, tmp_path):
    need("torchvision")
    from PIL import Image
    from torchvision.transforms import v2

    written = write_folder(tmp_path, parts=("",), each=6, size=size)
    usual = v2.Compose([v2.Resize(round(16 / 0.875)), v2.CenterCrop(16)])
    bundle = load_dataset(f"imagefolder:{tmp_path}", validation_size=3, input_size=16)
    stored, _ = whole(bundle)
    assert len(bundle.test) == 2  # a fifth, as there is no test folder
    for x, pixels in zip(stored, written.values(), strict=True):
        image = Image.fromarray(pixels) if size == (16, 16) else usual(Image.fromarray(pixels))
        assert torch.equal(x, torch.from_numpy(np.array(image)).permute(2, 0, 1))


def test_large_folders_are_read_one_by_one_with_the_same_bits(tmp_path, monkeypatch):
    write_folder(tmp_path, parts=("train", "val"))
    held = load_dataset(f"imagefolder:{tmp_path}", validation_size=2)
    monkeypatch.setattr("trainers.data.sources.folders.free_bytes", lambda _: 100)
    read = load_dataset(f"imagefolder:{tmp_path}", validation_size=2)
    assert isinstance(read.train.inputs, ItemInputs)
    assert len(read.test) == 8  # val stands for the test set where there is none
    for part in ("train", "validation", "test"):
        one, other = getattr(held, part), getattr(read, part)
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.y, other.y)
        ahead = torch.cat([x for x, _ in other.to("cpu", workers=2).batches(size=3)])
        assert torch.equal(ahead, one.x)
    (tmp_path / "train/cat/1.png").write_bytes(b"no image")
    for workers in (0, 1):
        with pytest.raises(
            ValueError, match=r"^`dataset` 'imagefolder:\S+': \S+cat/1.png cannot be read \(cannot ident"
        ):
            list(load_dataset(f"imagefolder:{tmp_path}", validation_size=0).train.to("cpu", workers=workers).batches())


def test_images_of_every_kind_become_rgb(tmp_path):
    from PIL import Image

    written = write_folder(tmp_path, parts=("",), each=6, size=(8, 8))
    first = Image.fromarray(next(iter(written.values())))
    for i, mode in enumerate(("L", "RGBA", "P", "CMYK", "1")):
        first.convert(mode).save(tmp_path / "cat" / f"{i}.tif")
    (tmp_path / "cat" / "LA.png").write_bytes((tmp_path / "cat" / "0.png").read_bytes())
    bundle = load_dataset(f"imagefolder:{tmp_path}", validation_size=3)
    stored, _ = whole(bundle)
    assert stored.shape == (18, 3, 8, 8)
    grey = stored[1]  # cat/0.tif after cat/0.png
    assert torch.equal(grey, torch.from_numpy(np.array(first.convert("L"))).expand(3, 8, 8))
    Image.fromarray(np.full((8, 8), 300, np.uint16)).save(tmp_path / "cat" / "deep.png")
    with pytest.raises(ValueError, match=r"deep.png cannot be read \(more than 8 bits a channel, Pillow's mode I;16"):
        load_dataset(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize("memory", [2**30, 100])
def test_images_that_cannot_be_read_are_refused_or_skipped(memory, tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.data.sources.folders.free_bytes", lambda _: memory)
    written = write_folder(tmp_path)
    bad = [tmp_path / "train/cat/0.png", tmp_path / "train/dog/2.png", tmp_path / "test/cat/1.png"]
    bad[0].write_bytes(b"")
    bad[1].write_bytes(bad[1].read_bytes()[:90])
    bad[2].write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"\d.png cannot be read .*on_corrupt") as said:
        list(load_dataset(f"imagefolder:{tmp_path}").train.batches())
    assert ("So are 2 more of 24 images." in str(said.value)) == (memory == 2**30)
    bundle = load_dataset(f"imagefolder:{tmp_path}", on_corrupt="skip")
    assert [len(s) for s in (bundle.train, bundle.validation, bundle.test)] == [6, 8, 7]
    assert bundle.origin["skipped"] == 3
    assert bundle.origin["first_skipped"] == [str(path) for path in bad]
    good = [path for path in written if path not in bad and "train" in path.parts]
    assert torch.equal(bundle.train.inputs[0] if memory > 100 else bundle.train.take(slice(1))[0][0] * 0, (
        torch.from_numpy(written[good[int(bundle.train.index[0])]]).permute(2, 0, 1)
        if memory > 100 else torch.zeros(3, 10, 12)))  # fmt: skip


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p: shutil.rmtree(p), FileNotFoundError, "does not exist: give a folder of folders of images"),
        (lambda p: [shutil.rmtree(p / "train" / c) for c in ("cat", "dog")], FileNotFoundError,
         "train holds no folders: it must hold one folder a class"),
        (lambda p: [shutil.move(p / f"val/cat/{i}.png", p / f"val/{i}.png") for i in range(4)]
         + [shutil.rmtree(p / "val" / c) for c in ("cat", "dog")], FileNotFoundError,
         "val holds 4 images that lie in no class folder"),
        (lambda p: [f.unlink() for f in (p / "train/dog").iterdir()], ValueError, "no image .* class folders dog"),
        (lambda p: (p / "test/dog").rename(p / "test/wolf"), ValueError,
         "the test images have classes that no training image has: wolf"),
        (lambda p: write_folder(p, parts=("val",), each=1, size=(9, 9)), ValueError,
         r"images differ in size: \S+val/cat/0.png has 9 x 9 pixels, the first 10 x 12: .*--input-size 10"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("memory", [2**30, 100])
def test_wrong_folders_are_refused(change, error, message, memory, tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.data.sources.folders.free_bytes", lambda _: memory)
    write_folder(tmp_path / "images")
    change(tmp_path / "images")
    with pytest.raises(error, match=message):
        load_dataset(f"imagefolder:{tmp_path}/images")


# Arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["grey", "first", "last"])
@pytest.mark.parametrize(
    "names", ["x_train y_train x_test y_test", "train_images train_labels test_images test_labels"]
)
def test_arrays_of_images_are_read(layout, names, tmp_path):
    x, y = images(50, 1 if layout == "grey" else 3, 8)
    stored = {"grey": x[:, 0], "first": x, "last": x.transpose(0, 2, 3, 1)}[layout]
    labels = y[:, None].astype(np.uint8) if "images" in names else y
    a, b, c, d = names.split()
    np.savez_compressed(tmp_path / "data.npz", **{a: stored[:30], b: labels[:30], c: stored[30:], d: labels[30:]})
    bundle = load_dataset(f"npz:{tmp_path}/data.npz", validation_size=10)
    found, targets = whole(bundle)
    assert np.array_equal(found.numpy(), x)
    assert np.array_equal(targets.numpy(), y)
    train = torch.from_numpy(x[:30]).double() / 255
    torch.testing.assert_close(torch.tensor(bundle.train.pixels.mean), train.mean((0, 2, 3)).float())
    torch.testing.assert_close(torch.tensor(bundle.train.pixels.std), train.std((0, 2, 3), correction=0).float())


def test_arrays_of_numbers_are_taken_as_they_are(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 5))
    np.savez(tmp_path / "table.npz", x=x, y=np.arange(40) % 4)
    bundle = load_dataset(f"npz:{tmp_path}/table.npz", validation_size=8)
    assert [len(s) for s in (bundle.train, bundle.validation, bundle.test)] == [24, 8, 8]
    assert np.array_equal(whole(bundle)[0].numpy(), x.astype(np.float32))
    assert dict(bundle.ood) == {}
    np.savez(tmp_path / "own.npz", x=x, y=x[:, :2])
    regression = load_dataset(f"npz:{tmp_path}/own.npz", validation_size=8, labels=False)
    assert regression.train.y.shape == (24, 2)
    assert regression.classes == 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.array([{}, {}]), "y": np.zeros(2, int)}, "`x` of .* holds Python objects, which are not read"),
        ({"a": np.zeros(2)}, "holds the arrays a, and no inputs with targets among them: name them x_train, y_train"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(2, int)}, "holds 3 inputs `x` and 2 targets `y`"),
        ({"x": np.zeros((3, 2), np.uint8), "y": np.zeros(3, int)}, r"`x` holds bytes of shape \(3, 2\); images are"),
        ({"x": np.full((3, 2), np.nan), "y": np.zeros(3, int)}, "3 of 3 inputs hold NaN or infinite .* such as 0"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(3)}, "labels must be whole numbers from 0"),
        ({"x": np.zeros((3, 2)), "y": -np.ones(3, int)}, "labels must be whole numbers from 0"),
        ({"x": np.zeros((3, 2)), "y": np.array(["cat", "dog", "cat"])},
         r"`dataset` 'npz:.*wrong.npz': `y` is <U3 of shape \(3,\); labels must be whole numbers from 0: number names"),
        ({"x": np.array(["a", "b"]), "y": np.zeros(2, int)}, "inputs are numbers, of two axes at least"),
        ({"x_train": np.zeros((3, 2)), "y_train": np.zeros(3, int), "x_test": np.zeros((3, 3)),
          "y_test": np.zeros(3, int)}, r"inputs of all parts must be alike, got float64 \(3,\) in `x_test`"),
        ({"x_train": np.zeros((3, 2)), "y_train": np.zeros(3, int), "x_test": np.zeros((3, 2)),
          "y_test": np.ones(3, int)}, "has the label 1 outside its training labels, whose largest is 0"),
    ],
)  # fmt: skip
def test_wrong_arrays_are_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_dataset(f"npz:{tmp_path}/wrong.npz", validation_size=0)


def test_what_is_no_npz_is_refused(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"one.npy is not a whole .npz file: write one with numpy.savez"):
        load_dataset(f"npz:{tmp_path}/one.npy")
    with pytest.raises(ValueError, match="'npz' needs a file: write npz:FILE"):
        load_dataset("npz")
    np.savez(tmp_path / "cut.npz", x=np.zeros((300, 20)), y=np.zeros(300, int))
    raw = bytearray((tmp_path / "cut.npz").read_bytes())
    raw[2000] ^= 255
    (tmp_path / "cut.npz").write_bytes(raw)
    with pytest.raises(ValueError, match=r"`x` of .* is damaged .*: write the file anew"):
        load_dataset(f"npz:{tmp_path}/cut.npz")


# Hugging Face -----------------------------------------------------------------------------------------------------


@pytest.fixture
def hub():
    need("torch")
    return pytest.importorskip("datasets")


def rows(hub, x, y, label="label", **more):
    from PIL import Image

    features = hub.Features({"picture": hub.Image(), label: hub.ClassLabel(names=["no", "yes", "maybe"]), **more})
    pictures = [Image.fromarray(a.transpose(1, 2, 0)) for a in x]
    columns = {key: [0] * len(y) for key in more}
    return hub.Dataset.from_dict({"picture": pictures, label: [int(v) for v in y], **columns}, features=features)


def test_saved_data_of_the_hub_are_read(hub, tmp_path):
    x, y = images(40, 3, 8)
    y = y % 3
    parts = {"train": slice(0, 20), "validation": slice(20, 30), "test": slice(30, 40)}
    hub.DatasetDict({key: rows(hub, x[of], y[of]) for key, of in parts.items()}).save_to_disk(tmp_path / "a")
    bundle = load_dataset(f"hf:{tmp_path}/a")
    found, targets = whole(bundle)
    assert np.array_equal(found.numpy(), x)
    assert np.array_equal(targets.numpy(), y)
    assert bundle.names == ("no", "yes", "maybe")
    assert bundle.validation.index.tolist() == list(range(20, 30))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert fingerprint(f"hf:{tmp_path}/a") == fingerprint(f"hf:{tmp_path}/b")
    rows(hub, x, y, fine=hub.Value("int64")).save_to_disk(tmp_path / "one")
    one = load_dataset(f"hf:{tmp_path}/one", validation_size=8, input_size=4)
    assert [len(s) for s in (one.train, one.validation, one.test)] == [24, 8, 8]
    assert one.shape == (3, 4, 4)


def test_wrong_data_of_the_hub_are_refused(hub, tmp_path, monkeypatch):
    x, _ = images(10, 3, 8)
    with pytest.raises(
        FileNotFoundError, match=r"holds no dataset_dict.json and no state.json: give a folder that `save"
    ):
        load_dataset(f"hf:{tmp_path}")
    rows(hub, x, np.array([0, -1] * 5)).save_to_disk(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"5 train labels are none of 0 to 2, such as -1 of item 1 \(-1 stands for"):
        load_dataset(f"hf:{tmp_path}/secret")
    hub.Dataset.from_dict({"text": ["a"], "label": [0]}).save_to_disk(tmp_path / "text")
    with pytest.raises(ValueError, match=r"one column of images .* got text \(Value\), label \(Value\)"):
        load_dataset(f"hf:{tmp_path}/text")
    (tmp_path / "text" / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"text cannot be read \(.*\): save it anew"):
        load_dataset(f"hf:{tmp_path}/text")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ImportError, match=r"needs `datasets`: pip install 'landscape-lab\[data\]'"):
        load_dataset(f"hf:{tmp_path}/secret")


def test_shifted_images_come_to_the_runs_size_as_its_own_do(tmp_path):
    from trainers.data.shifted import shifted_sets, with_shifted

    write_folder(tmp_path, size=(50, 40))
    data = load_dataset(f"imagefolder:{tmp_path}", input_size=16)
    sets = shifted_sets({"same": f"imagefolder:{tmp_path}/test"})
    shifted = with_shifted(data, sets).ood["same"]
    assert torch.equal(shifted.x, data.test.x[data.test.index.argsort()])


def test_shifted_data_by_name_are_known_by_their_files(tmp_path):
    from trainers.data.shifted import shifted_sets

    write_cifar10(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (one,), (other,) = (shifted_sets({"more": f"cifar10:{tmp_path}/{part}"}) for part in "ab")
    assert one.identity == other.identity == fingerprint(f"cifar10:{tmp_path}/a")
