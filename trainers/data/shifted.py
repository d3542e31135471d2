"""Shifted test sets from elsewhere: corrupted arrays, folders of corruptions or other images, data sets by name."""

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.utils.data import Dataset

from landscape.naming import nearest
from trainers.data.corruptions import CORRUPTIONS
from trainers.data.items import ItemInputs
from trainers.data.loading import DATASETS, read_source
from trainers.data.sources.files import Files
from trainers.data.sources.folders import ENDINGS, ImageFiles, Reading, images_of
from trainers.data.sources.named import SCHEMES, absolute, fingerprint, named
from trainers.data.sources.source import Source
from trainers.data.sources.text import TextReading
from trainers.data.splits import DataBundle, ShiftedSplits, Split
from trainers.randomness import stream
from trainers.reference import call, is_reference, load_reference, source_digest, well_formed

LABELS = "labels.npy"
OWN_SEVERITIES = (1, 2, 3)
SEVERITIES = 5  # in every array, one after the other, as in CIFAR-10-C and CIFAR-100-C
FOLDER = "imagefolder"
PARTS = ("test", "val", "validation")  # of a folder that holds several
NAMED = 3  # classes that a message names
BUILT_IN = (*CORRUPTIONS, "spurious")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
Maker = Callable[[], Split]


@dataclass(frozen=True)
class Shifted:
    """Shifted test sets that belong together, such as the corruptions of CIFAR-10-C.

    Attributes:
        name: What their rows are called by.
        source: A folder, or a data set by name, with an absolute path.
        identity: A hash of names, sizes and contents of its files (`Files.fingerprint`), by which measured rows are
            known. Of `module:function` it is the name.
    """

    name: str
    source: str
    identity: str


def check_shifted(given: Mapping[str, str], *, trust: bool = False) -> None:
    """Check what a study or a command line says of shifted sets, as far as goes without their files.

    Args:
        given: As for `shifted_sets`.
        trust: False refuses `module:function`, for what comes out of a file.

    Raises:
        ValueError: For a name that rows cannot have, or a source that is none.
        PermissionError: For a reference without `trust`.
    """
    for name, source in given.items():
        if not NAME.fullmatch(name) or name in BUILT_IN:
            raise ValueError(
                f"`shifted` {name!r} is no name for a shifted set: take letters, digits, '.', '_' and '-', and none of "
                f"{', '.join(BUILT_IN)}, which are built in."
            )
        if not source:
            raise ValueError(f"`shifted` {name!r} must be a folder or the name of a data set, got {source!r}.")
        if _folder(source) is None and is_reference(source):
            if not well_formed(source):
                raise ValueError(
                    f"`shifted` {name!r} {source!r} is no folder, no data set by name, and no function as "
                    f"`module:function`.{nearest(source.partition(':')[0], SCHEMES)}"
                )
            load_reference(source, trust=trust)


def shifted_sets(given: Mapping[str, str], *, trust: bool = False) -> tuple[Shifted, ...]:
    """The same, and that their files are there.

    Args:
        given: By name a function of one's own that corrupts the test examples, (x, severity, generator) -> x for
            severities 1, 2 and 3; or a folder: of arrays as CIFAR-10-C has them, of `corruption/severity/class/image`
            as ImageNet-C, or of `class/image` (`imagefolder:PATH` says the same); or the name of a data set, whose test
            set is taken.
        trust: False refuses `module:function`, for what comes out of a file.

    Raises:
        ValueError: As `check_shifted`, or for a folder without what is looked for.
        FileNotFoundError: For a folder that is not there.
        PermissionError: As `check_shifted`.
    """
    check_shifted(given, trust=trust)
    found = []
    for name, source in given.items():
        folder = _folder(source)
        if folder is not None:
            if not folder.is_dir():
                raise FileNotFoundError(f"`shifted` {name!r}: {folder} is no folder: give one, or a data set by name.")
            _layout(name, folder)
        place = absolute(source) if folder is None else str(folder.absolute())
        found.append(Shifted(name, place, _identity(name, place)))
    return tuple(found)


def with_shifted(data: DataBundle, shifted: Sequence[Shifted]) -> DataBundle:
    """The data with further shifted sets in `ood`, by name, as `name/corruption:severity` or `name`.

    Images come to the run's size, as its own do, and to numbers by its own mean and deviation. A set whose folders have
    fewer classes than the run is of these classes alone (`Split.among`).

    Args:
        data: Of a run; corrupted copies of the official test set are those of its test examples, in their order.
        shifted: See `shifted_sets`.

    Raises:
        ValueError: If files are not what they should be, or do not fit the run's data; the message says why.
    """
    if not shifted:
        return data
    if data.selected:
        raise ValueError(
            f"`shifted` sets have labels of all classes, and a run has `classes` {list(data.selected)} alone: leave "
            f"them out."
        )
    makers: dict[str, Maker] = {name: partial(data.ood.__getitem__, name) for name in data.ood}
    for one in shifted:
        folder = _folder(one.source)
        if (own := _corruption(one.source)) is not None:
            makers |= {f"{one.name}:{s}": partial(_corrupted, one, own, s, data.test) for s in OWN_SEVERITIES}
        elif folder is None:
            makers[one.name] = partial(_of_source, one.name, one.source, data)
        elif (folder / LABELS).is_file():
            makers |= _of_arrays(one.name, folder, data)
        else:
            makers |= {one.name + place: _of_folder(one.name, path, data) for place, path in _layout(one.name, folder)}
    return replace(
        data, ood=ShiftedSplits(makers), shifted=(*data.shifted, *(name for name in makers if name not in data.ood))
    )


def check_fit(data: DataBundle, shifted: Sequence[Shifted]) -> None:
    """Read those sets once whose fit shows in no name or header: data sets by name.

    Args:
        data: What `with_shifted` gave.
        shifted: What it was given.

    Raises:
        ValueError: If they do not fit the run's data.
    """
    for one in shifted:
        if _corruption(one.source) is not None:
            data.ood[f"{one.name}:{OWN_SEVERITIES[0]}"]
        elif _folder(one.source) is None:
            data.ood[one.name]


def family_of(name: str) -> str:
    """The sets that one belongs to: `cifar10-c` for `cifar10-c/fog:3`, and its own name else."""
    return name.partition("/")[0].partition(":")[0]


# -- what is there ---------------------------------------------------------------------------------------------------


def _folder(source: str) -> Path | None:
    """The folder that a source is; None for a data set by name."""
    scheme, colon, rest = source.partition(":")
    if scheme == FOLDER and colon:
        return Path(rest).expanduser()
    known = source in DATASETS or named(source) is not None
    return None if known or (colon and not Path(source).is_dir()) else Path(source).expanduser()


def _identity(name: str, source: str) -> str:
    folder = _folder(source)
    if folder is None:
        own = _corruption(source)
        return fingerprint(source) or (source if own is None else f"{source} {source_digest(own)}")
    sets = _layout(name, folder)
    if not sets:
        return Files(folder, tuple(sorted(path.name for path in folder.glob("*.npy")))).fingerprint
    seen, files = [], list[str]()
    for place, path in sets:
        classes = [label.name for label in _folders(path)]
        seen.append([place, classes])
        below = path.relative_to(folder)
        files += [f"{below / label}/{file}" for label in classes for file in images_of(path / label)]
    known = Files(folder, tuple(files)).fingerprint
    return hashlib.sha256(json.dumps([seen, known]).encode()).hexdigest()[:16]


def _layout(name: str, folder: Path) -> list[tuple[str, Path]]:
    """The sets of a folder: what follows the name, and the folder of classes; of arrays none."""
    if (folder / LABELS).is_file():
        return []
    if any(folder.glob("*.npy")):
        raise ValueError(f"`shifted` {name!r}: {folder} has arrays and no {LABELS}: put it beside them.")
    folder = next((folder / part for part in PARTS if (folder / part).is_dir() and _folders(folder / part)), folder)
    below = _folders(folder)
    if any(_has_images(path) for path in below):
        return [("", folder)]
    sets = [(f"/{c.name}:{int(s.name)}", s) for c in below for s in _folders(c) if s.name.isdecimal()]
    if not any(_has_images(path) for _, place in sets for path in _folders(place)):
        raise ValueError(
            f"`shifted` {name!r}: {folder} has no shifted sets. Looked for {LABELS} with an array a corruption, for "
            f"images in corruption/severity/class/, and for images in class/ ({', '.join(ENDINGS)})."
        )
    return sets


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")) if path.is_dir() else []


def _has_images(path: Path) -> bool:
    return any(p.suffix.lower() in ENDINGS for p in path.iterdir())


# -- a corruption of one's own ---------------------------------------------------------------------------------------


def _corruption(source: str) -> Callable[..., Tensor] | None:
    """A function that corrupts the test examples, known by its argument `severity`; None for all else.

    What names one was trusted when the sets were made.
    """
    if _folder(source) is not None or not (is_reference(source) and well_formed(source)):
        return None
    function = load_reference(source)
    return function if "severity" in inspect.signature(function).parameters else None


def _corrupted(one: Shifted, function: Callable[..., Tensor], severity: int, test: Split) -> Split:
    x = replace(test, side=None).x
    made = call(f"`shifted` {one.name!r}", function, x.clone(), severity, stream(0, f"corruption {one.source}"))
    if not isinstance(made, Tensor) or made.shape != x.shape or not made.is_floating_point():
        got = f"{made.dtype} of shape {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        raise ValueError(
            f"`shifted` {one.name!r}: {one.source} must return the inputs corrupted, floating point of shape "
            f"{tuple(x.shape)}, got {got}."
        )
    return replace(test, inputs=made.to(x.dtype), pixels=None, dtype=None)


# -- arrays ----------------------------------------------------------------------------------------------------------


def _of_arrays(name: str, folder: Path, data: DataBundle) -> dict[str, Maker]:
    """The corruptions of a folder of arrays, five severities each."""
    _require_bytes(name, data)
    labels = _array(name, folder / LABELS)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels) or len(labels) % SEVERITIES:
        raise ValueError(
            f"`shifted` {name!r}: {folder / LABELS} must hold whole numbers, one an image of {SEVERITIES} severities, "
            f"got {labels.dtype} of shape {labels.shape}."
        )
    _require_labels(name, y := torch.from_numpy(labels.astype(np.int64)), data)
    c, h, w = data.test.stored_shape
    files = sorted(path for path in folder.glob("*.npy") if path.name != LABELS)
    if not files:
        raise ValueError(f"`shifted` {name!r}: {folder} has {LABELS} and no array beside it, such as fog.npy.")
    for path in files:
        array = _array(name, path)
        if array.dtype != np.uint8 or array.shape not in {(len(labels), h, w, c)} | (
            {(len(labels), h, w)} if c == 1 else set()
        ):
            raise ValueError(
                f"`shifted` {name!r}: {path} must hold bytes of shape {(len(labels), h, w, c)}, as the run's images "
                f"and {LABELS} have it, got {array.dtype} of shape {array.shape}."
            )
    blocks = y.view(SEVERITIES, -1)
    positions = _paired(blocks, data)
    return {
        f"{name}/{path.stem}:{severity}": partial(_block, name, path, severity, blocks[severity - 1], positions, data)
        for path in files
        for severity in range(1, SEVERITIES + 1)
    }


def _paired(blocks: Int[Tensor, "s n"], data: DataBundle) -> Int[Tensor, " k"] | None:
    """Positions of the run's test examples in each severity, where these are copies of the official test set."""
    if data.official_test is None or len(data.official_test) != blocks.shape[1]:
        return None
    positions = data.test.index.cpu() - data.official_test.start
    same = all(torch.equal(block[positions], data.test.clean.cpu()) for block in blocks)
    return positions if same else None


def _block(name: str, path: Path, severity: int, y: Tensor, positions: Tensor | None, data: DataBundle) -> Split:
    n = len(y)
    chosen = torch.arange(n) if positions is None else positions
    images = _array(name, path)[(severity - 1) * n + chosen.numpy()]
    x = torch.from_numpy(images if images.ndim == 4 else images[..., None]).permute(0, 3, 1, 2).contiguous()
    index = chosen if positions is None else data.test.index.cpu()
    return Split(x, y[chosen], y[chosen], index, data.test.pixels, side=data.test.side)


def _array(name: str, path: Path) -> np.ndarray:
    """An array of a file, which stays there until it is used."""
    try:
        found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        said = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise ValueError(
            f"`shifted` {name!r}: {path} is no whole .npy file of numbers ({said[0]}): copy it again."
        ) from None
    return found


# -- folders ---------------------------------------------------------------------------------------------------------


def _of_folder(name: str, folder: Path, data: DataBundle) -> Maker:
    """The images of a folder of classes."""
    _require_bytes(name, data)
    known, note = _known(name, [path.name for path in _folders(folder)], data)
    return partial(_read, name, folder, known, note, data)


def _read(name: str, folder: Path, known: Mapping[str, int], note: str, data: DataBundle) -> Split:
    """The images, which are read one by one."""
    names, labels = [], []
    for label, number in known.items():
        files = [f"{label}/{file}" for file in images_of(folder / label)]
        names += files
        labels += [number] * len(files)
    if not names:
        raise ValueError(f"`shifted` {name!r}: the class folders of {folder} hold no image ({', '.join(ENDINGS)}).")
    images = ImageFiles(name, folder, names, labels, Reading(_side(data)))
    y = torch.tensor(labels)
    stored: Dataset[tuple[Tensor, int]] = images if data.test.stored_shape[0] == 3 else Grey(images)
    inputs = ItemInputs([stored], [f"{name!r}"], y, shape=data.test.stored_shape)
    return Split(
        inputs, y, y, torch.arange(len(y)), data.test.pixels, side=data.test.side, among=_among(known, data), note=note
    )


def _side(data: DataBundle) -> int | None:
    """The side of a run's images; None where they are no squares."""
    _, height, width = data.test.stored_shape
    return height if height == width else None


class Grey(Dataset[tuple[Tensor, int]]):
    """Images in shades of grey, with Pillow's weights of colours (ITU-R 601-2)."""

    def __init__(self, images: ImageFiles) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image, label = self.images[i]
        red, green, blue = image.to(torch.int32)
        return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)[None], label


# -- data sets by name -----------------------------------------------------------------------------------------------


def _of_source(name: str, source: str, data: DataBundle) -> Split:
    """The test set of a data set, or all of one that has none."""
    found = _source(source, _side(data) if len(data.shape) == 3 else None, data.text)
    index = torch.arange(found.test_start or 0, len(found.y))
    stored = data.test.inputs
    if found.shape != data.test.stored_shape or found.inputs.dtype != stored.dtype:
        raise ValueError(
            f"`shifted` {name!r}: inputs of {source!r} are {found.inputs.dtype} of shape {found.shape}, and those of "
            f"the run {stored.dtype} of shape {data.test.stored_shape}: they must be stored alike."
        )
    y, among, note = found.y[index], None, ""
    names = found.names
    if names and data.names and names != data.names:
        known, note = _known(name, names, data, numbered=False)
        among = _among(known, data)
        number = torch.tensor([known.get(label, -1) for label in names])
        index = index[number[y] >= 0]
        y = number[found.y[index]]
    elif data.text is None:
        _require_labels(name, y, data)
    inputs = found.inputs[index] if isinstance(found.inputs, Tensor) else found.inputs
    return Split(inputs, y, y, index, data.test.pixels, side=data.test.side, among=among, note=note)


@cache
def _source(source: str, input_size: int | None, text: TextReading | None) -> Source:
    return read_source(source, input_size=input_size, text=text)


# -- classes ---------------------------------------------------------------------------------------------------------


def _known(name: str, classes: Sequence[str], data: DataBundle, *, numbered: bool = True) -> tuple[dict[str, int], str]:
    """The run's number of each class that it knows, by name, or else by its number; and a note on the others."""
    number = {label: i for i, label in enumerate(data.names)}
    if numbered and not number.keys() & set(classes):
        number = {label: int(label) for label in classes if label.isdecimal() and int(label) < data.classes}
    known = {label: number[label] for label in classes if label in number}
    others = [label for label in classes if label not in number]
    if not known:
        own = _some(data.names) or f"0 to {data.classes - 1}"
        raise ValueError(
            f"`shifted` {name!r}: its classes {_some(others)} are none of the run's ({own}): give their folders the "
            f"names of the run's classes."
        )
    note = ""
    if others:
        note = (
            f"{len(others)} of the set's {len(classes)} classes, such as {others[0]}, are none of the run's: left out"
        )
    return known, note


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:NAMED], *["..."] * (len(names) > NAMED)])


def _among(known: Mapping[str, int], data: DataBundle) -> tuple[int, ...] | None:
    chosen = tuple(sorted(set(known.values())))
    return chosen if len(chosen) < data.classes else None


def _require_labels(name: str, y: Shaped[Tensor, " n ..."], data: DataBundle) -> None:
    if y.ndim == 1 and not y.is_floating_point() and (int(y.min()) < 0 or int(y.max()) >= data.classes):
        raise ValueError(
            f"`shifted` {name!r}: labels are {int(y.min())} to {int(y.max())}, and the run has {data.classes} classes, "
            f"numbered from 0: number them as the run does."
        )


def _require_bytes(name: str, data: DataBundle) -> None:
    if data.test.pixels is None or len(data.shape) != 3:
        raise ValueError(
            f"`shifted` {name!r} holds images in bytes, and the run's inputs are no such images ({data.name!r}, of "
            f"shape {data.shape}): they need a data set of images in uint8."
        )
