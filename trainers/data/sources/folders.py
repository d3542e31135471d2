"""Folders of images, `class/image.jpg`, as torchvision's ImageFolder has them; read one by one unless they are few."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from landscape.memory import free_bytes
from trainers.data.items import MEMORY_SHARE, ItemInputs, Pixels
from trainers.data.sources.files import Files, stamps
from trainers.data.sources.source import Source, bounds, held_out
from trainers.data.sources.text import TextReading

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
PARTS = {"train": ("train", "training"), "validation": ("val", "validation", "valid"), "test": ("test", "testing")}
CROP = 0.875  # of the shorter side, that the middle square keeps: 224 of 256
IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NAMED = 3  # files that a message names
PROBED = 64  # files whose size is looked at before training, where images are read one by one
DEEP = ("I", "I;16", "I;16B", "I;16L", "F")  # Pillow's names for more than 8 bits a channel, which it would clip


@dataclass(frozen=True)
class Reading:
    """How examples of files become inputs.

    Attributes:
        size: Side to which images are brought: the shorter side becomes size / 0.875, and of that the middle is kept;
            None takes them as they are.
        on_corrupt: "refuse" stops at images that cannot be read, "skip" leaves them out.
        columns: Those of a table that are targets; empty is the last one.
        text: How text becomes sequences; None where the task takes none.
    """

    size: int | None = None
    on_corrupt: str = "refuse"
    columns: tuple[str, ...] = ()
    text: TextReading | None = None


def find(name: str, rest: str) -> Files:
    """The images below a folder, part by part, class by class and by name.

    Raises:
        ValueError: If no folder is given.
        FileNotFoundError: If it holds no folders of classes with images.
    """
    root = _root(name, rest)
    names = []
    for part in _parts(root).values():
        for label in _classes(root / part, name):
            names += [
                f"{part}/{label}/{file}" if part else f"{label}/{file}" for file in images_of(root / part / label)
            ]
    return Files(root, tuple(names))


def signature(name: str, rest: str) -> tuple[Any, ...]:
    """What changes when a file comes or goes, without listing a million of them."""
    root = _root(name, rest)
    places = [root / part / label for part in _parts(root).values() for label in _classes(root / part, name)]
    return stamps([root, *places])


def load(name: str, files: Files, reading: Reading) -> Source:
    """The images of a folder, RGB, as bytes.

    Raises:
        ValueError: If they differ in size and `reading` has none, a class is empty, a test image has a class that no
            training image has, or an image cannot be read.
    """
    found: dict[str, list[tuple[str, str]]] = {}  # of each part its files, with their classes
    parts = _parts(files.root)
    for part in parts:
        found[part] = []
    of_folder = {folder: part for part, folder in parts.items()}
    for file in files.names:
        head, _, tail = file.partition("/")
        part, label = (of_folder[head], tail.partition("/")[0]) if "" not in of_folder else ("train", head)
        found[part].append((file, label))
    classes = _classes(files.root / parts["train"], name)
    empty = sorted(set(classes) - {label for _, label in found["train"]})
    if empty:
        raise ValueError(
            f"`dataset` {name!r}: no image ({', '.join(ENDINGS)}) in the class folders {', '.join(empty[:NAMED])} of "
            f"{files.root / parts['train']}: put some there, or remove the folders."
        )
    number = {label: i for i, label in enumerate(classes)}
    sets = {}
    for part, entries in held_out(found).items():
        strange = sorted({label for _, label in entries} - set(number))
        if strange:
            raise ValueError(
                f"`dataset` {name!r}: the {part} images have classes that no training image has: "
                f"{', '.join(strange[:NAMED])}; give these folders the names of training classes."
            )
        sets[part] = ImageFiles(name, files.root, [f for f, _ in entries], [number[k] for _, k in entries], reading)
    return source_of_images(name, sets, tuple(classes), reading)


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Images of files with their labels, each read when it is asked for.

    Args:
        name: Of the data, for messages.
        root: What names are relative to.
        names: Of the files.
        targets: Their labels.
        reading: How they become inputs.
    """

    def __init__(self, name: str, root: Path, names: Sequence[str], targets: list[int], reading: Reading) -> None:
        self.name, self.root, self.names, self.targets, self.reading = name, root, list(names), targets, reading

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return image_of(self.name, self.root / self.names[i], self.reading, called=self.place(i)), self.targets[i]

    def place(self, i: int) -> str:
        """What an image is called in messages."""
        return str(self.root / self.names[i])

    def size(self, i: int) -> tuple[int, ...]:
        """Width and height of an image, from the head of its file."""
        import PIL.Image

        with PIL.Image.open(self.root / self.names[i]) as image:
            return image.size

    def without(self, bad: set[int]) -> "ImageFiles":
        """The others."""
        kept = [i for i in range(len(self)) if i not in bad]
        names, targets = [self.names[i] for i in kept], [self.targets[i] for i in kept]
        return ImageFiles(self.name, self.root, names, targets, self.reading)


def source_of_images(name: str, sets: dict[str, Any], classes: tuple[str, ...], reading: Reading) -> Source:
    """The source that data sets of images make: in memory where that takes an eighth of what is free.

    Args:
        name: Of the data, for messages.
        sets: By part, each with the methods of `ImageFiles`.
        classes: Names of the classes.
        reading: How images become inputs.

    Raises:
        ValueError: As `load`.
    """
    origin: dict[str, Any] = {}
    if reading.on_corrupt == "skip":
        sets, origin = _readable(sets)
    side = reading.size
    shape = (3, side, side) if side else tuple(_first(sets["train"])[0].shape)
    if not side:
        _check_sizes(name, sets, shape)
    where = [f"{name!r}, {part}" for part in sets]
    y = torch.tensor([label for dataset in sets.values() for label in dataset.targets], dtype=torch.int64)
    inputs: Tensor | ItemInputs = ItemInputs(list(sets.values()), where, y, shape=shape, dtype=torch.uint8)
    if len(y) * int(np.prod(shape)) <= free_bytes("cpu") // MEMORY_SHARE:
        inputs = _in_memory(name, sets, len(y), shape)
    sizes = {part: len(dataset) for part, dataset in sets.items()}
    return Source(
        inputs, y, len(classes), **bounds(sizes), pixels=IMAGENET, names=classes, origin=origin, shared=False
    )  # fmt: skip


def image_of(name: str, file: Any, reading: Reading, *, called: str) -> Tensor:
    """One image (3, h, w) as bytes: RGB, greyscale spread over three channels, transparency left out.

    Resizing and cropping are those of torchvision's presets: the shorter side bilinearly, with smoothing, to size /
    0.875, then the middle; what has the size already stays as it is.

    Args:
        name: Of the data, for messages.
        file: What Pillow opens.
        reading: How it becomes an input.
        called: What it is called in messages.

    Raises:
        ValueError: If it cannot be read, naming it.
    """
    import PIL.Image

    try:
        with PIL.Image.open(file) as opened:
            if opened.mode in DEEP:
                raise ValueError(f"more than 8 bits a channel, Pillow's mode {opened.mode}: save it as 8 bits")
            image: Image = opened.convert("RGB")
    except Exception as error:  # Pillow's readers fail in any way
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(
            f"`dataset` {name!r}: {called} cannot be read ({said}): mend it or take it out, or leave out all such "
            f"images by `on_corrupt` skip (--on-corrupt skip)."
        ) from None
    if reading.size is not None:
        image = square(image, reading.size)
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


def square(image: "Image", side: int) -> "Image":
    """The middle of an image, after its shorter side came to side / 0.875; itself where it is of that size already."""
    from PIL.Image import Resampling

    if image.size == (side, side):
        return image
    short, (width, height) = round(side / CROP), image.size
    least = min(width, height)
    width, height = (short if length == least else int(short * length / least) for length in (width, height))
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.resize((width, height), Resampling.BILINEAR).crop((left, top, left + side, top + side))


def _in_memory(name: str, sets: dict[str, Any], n: int, shape: tuple[int, ...]) -> Tensor:
    """All images in one tensor; those that cannot be read are counted before they are refused."""
    inputs = torch.empty((n, *shape), dtype=torch.uint8)
    bad: list[str] = []
    for position, (dataset, i) in enumerate((d, i) for d in sets.values() for i in range(len(d))):
        try:
            x = dataset[i][0]
        except ValueError as error:
            bad.append(str(error))
            continue
        if tuple(x.shape) != shape:
            raise ValueError(_mixed(name, dataset.place(i), tuple(x.shape), shape))
        inputs[position] = x
    if bad:
        more = f" So are {len(bad) - 1} more of {n} images." if len(bad) > 1 else ""
        raise ValueError(bad[0] + more)
    return inputs


def _readable(sets: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sets without the images that cannot be read, and what is noted about these."""
    kept, named = {}, []
    for part, dataset in sets.items():
        bad = set()
        for i in range(len(dataset)):
            try:
                dataset[i]
            except ValueError:
                bad.add(i)
                named.append(dataset.place(i))
        kept[part] = dataset.without(bad) if bad else dataset
        if not len(kept[part]):
            raise ValueError(f"none of the {len(dataset)} {part} images can be read, such as {named[-1]}.")
    return kept, ({"skipped": len(named), "first_skipped": named[:NAMED]} if named else {})


def _first(dataset: Any) -> Any:
    """The first item that can be read; where none can, the first error."""
    problem: ValueError | None = None
    for i in range(len(dataset)):
        try:
            return dataset[i]
        except ValueError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _check_sizes(name: str, sets: dict[str, Any], shape: tuple[int, ...]) -> None:
    """Look at some images of each part before anything is trained."""
    for dataset in sets.values():
        for i in sorted({round(j) for j in np.linspace(0, len(dataset) - 1, min(len(dataset), PROBED)).tolist()}):
            try:
                width, height = dataset.size(i)
            except (OSError, ValueError):
                continue  # said, or left out, where it is read
            if (height, width) != shape[1:]:
                raise ValueError(_mixed(name, dataset.place(i), (3, height, width), shape))


def _mixed(name: str, place: str, found: tuple[int, ...], shape: tuple[int, ...]) -> str:
    return (
        f"`dataset` {name!r}: images differ in size: {place} has {found[1]} x {found[2]} pixels, the first "
        f"{shape[1]} x {shape[2]}: bring all to one side by `input_size` (--input-size {min(shape[1:])})."
    )


def _root(name: str, rest: str) -> Path:
    root = Path(rest)
    if not rest:
        raise ValueError(f"`dataset` {name!r} needs the folder of images: write imagefolder:PATH.")
    if not root.is_dir():
        kind = "is a file" if root.exists() else "does not exist"
        raise FileNotFoundError(f"`dataset` {name!r}: {root} {kind}: give a folder of folders of images, one a class.")
    return root


def _parts(root: Path) -> dict[str, str]:
    """The folders of parts by part; one folder of classes is all of them."""
    found = {part: next((n for n in names if (root / n).is_dir()), None) for part, names in PARTS.items()}
    there = {part: folder for part, folder in found.items() if folder is not None}
    return there if "train" in there else {"train": ""}


def _classes(folder: Path, name: str) -> list[str]:
    with os.scandir(folder) as entries:
        found, loose = [], 0
        for entry in entries:
            if entry.is_dir() and not entry.name.startswith("."):
                found.append(entry.name)
            else:
                loose += entry.name.lower().endswith(ENDINGS)
    if not found:
        lies = f"{loose} images that lie in no class folder" if loose else "no folders"
        raise FileNotFoundError(
            f"`dataset` {name!r}: {folder} holds {lies}: it must hold one folder a class, with images in it."
        )
    return sorted(found)


def images_of(folder: Path) -> Iterator[str]:
    """Names of images below a folder, in torchvision's order."""
    for place, _, names in sorted(os.walk(folder, followlinks=True)):
        below = os.path.relpath(place, folder).replace(os.sep, "/")  # a million of them
        for file in sorted(names):
            if file.lower().endswith(ENDINGS):
                yield file if below == "." else f"{below}/{file}"
