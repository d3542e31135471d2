"""Shifted test sets in the formats of CIFAR-10-C, ImageNet-C and ImageNet-R, read back to the byte."""

import shutil
from functools import partial

import numpy as np
import photos
import pytest
import torch
from photos import CLASSES, SIDE, TEST, corrupted, made, write_arrays, write_images
from torch.testing import assert_close

from trainers.config import train_config
from trainers.data.loading import load_dataset
from trainers.data.shifted import check_fit, check_shifted, family_of, shifted_sets, with_shifted
from trainers.runs.folder import load_data

DATA = {"validation_size": 8}


def data(given, name="photos:photos", **options):
    return with_shifted(load_dataset(name, **DATA, **options), shifted_sets(given, trust=True))


def used(x):
    """Bytes as the run's images are used."""
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (photos.Photos.mean, photos.Photos.std))
    return (x.float() / 255 - mean) / std


# -- arrays ----------------------------------------------------------------------------------------------------------


def test_arrays_are_sets_by_corruption_and_severity(tmp_path):
    found = data({"photos-c": str(write_arrays(tmp_path / "c"))})
    assert found.shifted == tuple(f"photos-c/{c}:{s}" for c in ("brightness", "fog") for s in range(1, 6))
    assert set(found.ood) - set(found.shifted) == set(load_dataset("photos:photos", **DATA).ood)
    x, y = made(TEST, 1)
    official = found.test.index - found.official_test.start
    assert sorted(official.tolist()) == list(range(TEST))
    for corruption in ("brightness", "fog"):
        for severity in (1, 3, 5):
            split = found.ood[f"photos-c/{corruption}:{severity}"]
            assert_close(split.x, used(corrupted(x, corruption, severity))[official])
            assert torch.equal(split.y, y[official])
            assert torch.equal(split.index, found.test.index)
    assert {family_of(name) for name in found.shifted} == {"photos-c"}


def test_a_part_of_the_test_set_is_measured_on_copies_of_the_same_examples(tmp_path):
    found = data({"photos-c": str(write_arrays(tmp_path / "c"))}, test_size=12)
    split = found.ood["photos-c/fog:2"]
    assert torch.equal(split.index, found.test.index)
    assert len(split) == 12
    x = made(TEST, 1)[0][found.test.index - photos.TRAIN]
    assert_close(split.x, used(corrupted(x, "fog", 2)))


@pytest.mark.parametrize("kind", ["other labels", "another number"])
def test_copies_of_another_test_set_are_taken_whole(kind, tmp_path):
    x, y = made(TEST, 1) if kind == "other labels" else made(24, 5)
    y = y.roll(1) if kind == "other labels" else y
    found = data({"photos-c": str(write_arrays(tmp_path / "c", x=x, y=y))}, test_size=12)
    split = found.ood["photos-c/fog:1"]
    assert torch.equal(split.y, y)
    assert not torch.equal(split.index, found.test.index)
    assert_close(split.x, used(corrupted(x, "fog", 1)))


def test_arrays_stay_in_their_files_until_they_are_used(tmp_path, monkeypatch):
    folder = write_arrays(tmp_path / "c")
    taken = []
    load = np.load
    monkeypatch.setattr(np, "load", lambda path, **k: taken.append((str(path), k.get("mmap_mode"))) or load(path, **k))
    found = data({"photos-c": str(folder)})
    assert {mode for _, mode in taken} == {"r"}
    before = len(taken)
    found.ood["photos-c/fog:5"]
    assert taken[before:] == [(str(folder / "fog.npy"), "r")]


def test_runs_in_float64_see_them_in_float64(tmp_path):
    config = train_config({"dataset": "photos:photos", "precision": "float64", **DATA})
    sets = shifted_sets({"photos-c": str(write_arrays(tmp_path / "c"))})
    found = load_data(config, trust=True, shifted=sets)
    assert found.ood["photos-c/fog:1"].x.dtype == torch.float64
    assert found.shifted[0] == "photos-c/brightness:1"


# -- folders ---------------------------------------------------------------------------------------------------------


def labels_of(y):
    return [CLASSES[i] for i in y.tolist()]


@pytest.mark.parametrize("written", ["{}", "imagefolder:{}"])
def test_folders_of_classes_are_mapped_by_name(written, tmp_path):
    x, y = made(16, 7)
    folder = write_images(tmp_path / "mine", x, labels_of(y))
    split = data({"mine": written.format(folder)}).ood["mine"]
    order = np.argsort(y.numpy(), kind="stable")
    assert torch.equal(split.y, y[order])
    assert_close(split.x, used(x)[order])
    assert split.among is None
    assert not split.note


def test_fewer_classes_than_the_runs_are_the_only_ones_that_count(tmp_path):
    x, y = made(16, 7)
    kept = (y == 1) | (y == 3)
    split = data({"r": str(write_images(tmp_path / "r", x[kept], labels_of(y[kept])))}).ood["r"]
    assert split.among == (1, 3)
    assert sorted(set(split.y.tolist())) == [1, 3]


def test_classes_that_the_run_does_not_know_are_left_out_and_said(tmp_path):
    x, y = made(16, 7)
    names = ["whale" if label == "fox" else label for label in labels_of(y)]
    split = data({"r": str(write_images(tmp_path / "r", x, names))}).ood["r"]
    assert split.among == (0, 1, 2)
    assert len(split) == 12
    assert split.note == "1 of the set's 4 classes, such as whale, are none of the run's: left out"


def test_folders_by_corruption_and_severity(tmp_path):
    x, y = made(8, 7)
    for corruption in ("brightness", "fog"):
        for severity in (1, 5):
            write_images(tmp_path / "c" / corruption / str(severity), corrupted(x, corruption, severity), labels_of(y))
    found = data({"in-c": str(tmp_path / "c")})
    assert found.shifted == tuple(f"in-c/{c}:{s}" for c in ("brightness", "fog") for s in (1, 5))
    order = np.argsort(y.numpy(), kind="stable")
    assert_close(found.ood["in-c/fog:5"].x, used(corrupted(x, "fog", 5))[order])


def test_images_of_another_size_come_to_the_runs(tmp_path):
    x, y = made(8, 7, side=3 * SIDE)
    split = data({"large": str(write_images(tmp_path / "large", x, labels_of(y)))}).ood["large"]
    assert split.x.shape == (8, 3, SIDE, SIDE)


def test_runs_on_shades_of_grey_see_images_in_shades_of_grey(tmp_path):
    from PIL import Image

    x, y = made(8, 7)
    folder = write_images(tmp_path / "mine", x, labels_of(y))
    split = data({"mine": str(folder)}, name="photos:grey").ood["mine"]
    files = sorted(folder.glob("*/*.png"))
    expected = torch.stack([torch.from_numpy(np.array(Image.open(file).convert("L"))) for file in files])
    assert_close(split.x, expected[:, None].float() / 255)


def test_numbered_folders_count_as_numbers(tmp_path):
    x, y = made(8, 7)
    split = data({"n": str(write_images(tmp_path / "n", x, [str(i) for i in y.tolist()]))}).ood["n"]
    assert split.y.tolist() == sorted(y.tolist())


# -- data sets by name -----------------------------------------------------------------------------------------------


def test_a_data_set_by_name_gives_its_test_set():
    found = data({"own": "photos:photos"})
    x, y = made(TEST, 1)
    assert torch.equal(found.ood["own"].y, y)
    assert_close(found.ood["own"].x, used(x))
    check_fit(found, shifted_sets({"own": "photos:photos"}, trust=True))


def test_a_data_set_that_does_not_fit_is_named_before_anything_is_trained():
    with pytest.raises(
        ValueError, match=r"`shifted` 'own': inputs of 'photos:numbers' are torch.float32 of shape \(3, 8"
    ):
        check_fit(data(given := {"own": "photos:numbers"}), shifted_sets(given, trust=True))


# -- identity and bad input ------------------------------------------------------------------------------------------


def test_the_identity_tells_other_files_apart(tmp_path):
    folder = write_arrays(tmp_path / "c", ("fog",))
    (first,) = shifted_sets({"c": str(folder)})
    assert shifted_sets({"other": str(folder)})[0].identity == first.identity
    write_arrays(folder, ("brightness",))
    (second,) = shifted_sets({"c": str(folder)})
    moved = write_arrays(tmp_path / "d", ("fog",))
    assert first.identity != second.identity
    assert shifted_sets({"c": str(moved)})[0].identity == first.identity  # wherever the files lie
    x, y = made(8, 7)
    images = write_images(tmp_path / "mine", x, labels_of(y))
    before = shifted_sets({"mine": str(images)})[0].identity
    write_images(images, 255 - x, labels_of(y))
    assert shifted_sets({"mine": str(images)})[0].identity != before


def test_the_identity_sees_every_class_of_every_corruption(tmp_path):
    x, y = made(8, 7)
    for severity in ("1", "2"):
        write_images(tmp_path / "c" / "fog" / severity, x, labels_of(y))
    seen = [shifted_sets({"c": str(tmp_path / "c")})[0].identity]
    write_images(tmp_path / "c" / "fog" / "2", 255 - x[3:4], labels_of(y[3:4]))  # into the last class
    seen.append(shifted_sets({"c": str(tmp_path / "c")})[0].identity)
    (tmp_path / "c/fog/1/fox").joinpath("0003.png").unlink()
    seen.append(shifted_sets({"c": str(tmp_path / "c")})[0].identity)
    assert len(set(seen)) == 3
    shutil.copytree(tmp_path / "c", tmp_path / "d")
    assert shifted_sets({"c": str(tmp_path / "d")})[0].identity == seen[-1]


def test_data_of_some_classes_have_no_shifted_sets(tmp_path):
    folder = str(write_arrays(tmp_path / "c"))
    with pytest.raises(ValueError, match=r"labels of all classes, and a run has `classes` \[2, 1\] alone: leave them"):
        data({"c": folder}, classes=(2, 1))
    config = train_config({"dataset": "photos:photos", "classes": [2, 1], **DATA})
    with pytest.raises(ValueError, match=r"a run has `classes` \[2, 1\] alone"):
        load_data(config, trust=True, shifted=shifted_sets({"c": folder}))


def test_a_reference_in_a_file_is_imported_only_where_it_is_trusted():
    with pytest.raises(PermissionError, match="'photos:photos' was not imported"):
        check_shifted({"own": "photos:photos"})
    check_shifted({"own": "photos:photos"}, trust=True)


def without(folder, name):
    (folder / name).unlink()


def labelled(folder, values):
    np.save(folder / "labels.npy", values)


def replaced(folder, values):
    np.save(folder / "fog.npy", values)


DAMAGE = {
    "no labels": (partial(without, name="labels.npy"), "has arrays and no labels.npy: put it beside them"),
    "not of five": (
        partial(labelled, values=np.zeros(7, int)),
        r"one an image of 5 severities, got int64 of shape \(7,\)",
    ),
    "real labels": (partial(labelled, values=np.zeros(200)), "must hold whole numbers"),
    "strange labels": (partial(labelled, values=np.full(200, 9)), "labels are 9 to 9, and the run has 4 classes"),
    "objects": (partial(replaced, values=np.array([{}])), "fog.npy is no whole .npy file of numbers"),
    "other numbers": (partial(replaced, values=np.zeros((200, 8, 8, 3))), "fog.npy must hold bytes of shape .*float64"),
    "other images": (
        partial(replaced, values=np.zeros((200, 9, 8, 3), np.uint8)),
        r"got uint8 of shape \(200, 9, 8, 3\)",
    ),
    "cut short": (lambda f: (f / "fog.npy").write_bytes((f / "fog.npy").read_bytes()[:999]), "copy it again"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_arrays_are_named(kind, tmp_path):
    folder = write_arrays(tmp_path / "c", ("fog",))
    damage, message = DAMAGE[kind]
    damage(folder)
    with pytest.raises(ValueError, match=message):
        data({"c": str(folder)})


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"a b": "x"}, ValueError, "`shifted` 'a b' is no name"),
        ({"noise": "x"}, ValueError, "none of noise, blur, shift, contrast, spurious, which are built in"),
        ({"a": ""}, ValueError, "`shifted` 'a' must be a folder or the name of a data set, got ''"),
        ({"a": "cifar01:/data"}, ValueError, r"`shifted` 'a' 'cifar01:/data' is no .* Did you mean 'cifar10'\?"),
        ({"a": "nowhere/at/all"}, FileNotFoundError, "`shifted` 'a': nowhere/at/all is no folder"),
        ({"a": "imagefolder:nowhere"}, FileNotFoundError, "`shifted` 'a': nowhere is no folder"),
        ({"a": "{empty}"}, ValueError, "has no shifted sets. Looked for labels.npy .* corruption/severity/class/"),
        ({"a": "{strange}"}, ValueError, "its classes whale are none of the run's .bear, cat, dog, ...."),
        ({"a": "{broken}"}, ValueError, "0000.png cannot be read"),
    ],
    ids=["spaces", "built in", "nothing", "misspelt", "no folder", "no image folder", "empty", "strange", "broken"],
)
def test_what_is_no_shifted_set_is_named(given, error, message, tmp_path):
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "strange", made(2, 0)[0], ["whale", "whale"])
    write_images(tmp_path / "broken", made(1, 0)[0], ["bear"])
    (tmp_path / "broken" / "bear" / "0000.png").write_bytes(b"no image")
    given = {k: v.format(**{p.name: p for p in tmp_path.iterdir()}) for k, v in given.items()}
    with pytest.raises(error, match=message):
        data(given).ood["a"].take(slice(1))


def test_images_need_a_run_on_images(tmp_path):
    with pytest.raises(
        ValueError, match=r"'c' holds images in bytes, and the run's inputs are no such images .'digits'"
    ):
        data({"c": str(write_arrays(tmp_path / "c"))}, name="digits")
