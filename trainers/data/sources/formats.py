"""The files of small published data sets, read block by block so that they are in memory once."""

import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from trainers.data.sources.unpickling import read_pickled

Block = tuple[np.ndarray, np.ndarray]  # images (n, c, h, w) and labels (n,)
IMAGES, LABELS = 2051, 2049  # the numbers by which IDX files of images and of labels begin
STEP = 1000  # images of an IDX file read at a time


class Format(Protocol):
    """How the files of one part of a data set hold images and labels."""

    def room(self, paths: Sequence[Path]) -> tuple[int, ...]:
        """Shape (n, c, h, w) of the images, n at least as many as there are."""
        ...

    def blocks(self, paths: Sequence[Path]) -> Iterator[Block]:
        """All images and labels, in order."""
        ...


class Idx:
    """MNIST's format: a file of images and a file of labels, both as they are or packed by gzip.

    Source:
        LeCun, Cortes and Burges, "The MNIST database": big-endian numbers, then bytes.
    """

    def room(self, paths: Sequence[Path]) -> tuple[int, ...]:
        """From the header."""
        with _opened(paths[0]) as file:
            n, height, width = _header(file, paths[0], IMAGES)
        return n, 1, height, width

    def blocks(self, paths: Sequence[Path]) -> Iterator[Block]:
        """Read in steps."""
        images, labels = paths
        n, _, height, width = self.room(paths)
        with _opened(labels) as file:
            (count,) = _header(file, labels, LABELS)
            y = _bytes(file, labels, count)
        if count != n:
            raise ValueError(f"{images} holds {n} images, and {labels} {count} labels: one of them is another set's.")
        with _opened(images) as file:
            _header(file, images, IMAGES)
            for start in range(0, n, STEP):
                k = min(STEP, n - start)
                yield _bytes(file, images, k * height * width).reshape(k, 1, height, width), y[start : start + k]


class Batches:
    """CIFAR's format: pickled dictionaries of rows of 3072 bytes, the red ones first, and of labels.

    Args:
        key: Under which the labels stand.

    Source:
        Krizhevsky (2009), "Learning multiple layers of features from tiny images".
    """

    side = 32

    def __init__(self, key: str) -> None:
        self.key = key

    def room(self, paths: Sequence[Path]) -> tuple[int, ...]:
        """By the files' sizes."""
        each = 3 * self.side**2
        return sum(path.stat().st_size // each for path in paths), 3, self.side, self.side

    def blocks(self, paths: Sequence[Path]) -> Iterator[Block]:
        """A file a block."""
        for path in paths:
            stored = read_pickled(path)
            missing = [key for key in ("data", self.key) if key not in stored]
            if missing:
                raise ValueError(f"{path} has no {', '.join(missing)}, but {', '.join(sorted(stored))}: is it CIFAR's?")
            images, labels = np.asarray(stored["data"]), np.asarray(stored[self.key])
            if images.dtype != np.uint8 or images.ndim != 2 or images.shape != (len(labels), 3 * self.side**2):
                raise ValueError(
                    f"{path} holds {images.dtype} of shape {images.shape} and {labels.shape} labels, where CIFAR has "
                    f"bytes of shape (n, 3072) and n labels."
                )
            yield images.reshape(-1, 3, self.side, self.side), labels
            del stored, images, labels  # before the next is read


class Matlab:
    """SVHN's format: `X` (h, w, c, n) and `y` (n, 1), where the digit 0 has the label 10.

    Source:
        Netzer et al. (2011), "Reading digits in natural images with unsupervised feature learning".
    """

    def room(self, paths: Sequence[Path]) -> tuple[int, ...]:
        """From the list of what the file holds."""
        from scipy.io import whosmat

        with _told(paths[0]):
            shapes = {name: shape for name, shape, _ in whosmat(str(paths[0]))}
        if len(shapes.get("X", ())) != 4 or "y" not in shapes:
            raise ValueError(f"{paths[0]} holds {shapes}, where SVHN has X (height, width, channel, image) and y.")
        height, width, channels, n = shapes["X"]
        return n, channels, height, width

    def blocks(self, paths: Sequence[Path]) -> Iterator[Block]:
        """All at once."""
        from scipy.io import loadmat

        with _told(paths[0]):
            stored = loadmat(str(paths[0]), variable_names=["X", "y"])
        images, labels = stored["X"], stored["y"].reshape(-1).astype(np.int64)
        if images.dtype != np.uint8 or len(labels) != images.shape[-1]:
            raise ValueError(
                f"{paths[0]} holds {images.dtype} images of shape {images.shape}, and {len(labels)} labels."
            )
        yield images.transpose(3, 2, 0, 1), np.where(labels == 10, 0, labels)


def gathered(parts: Mapping[str, Sequence[Path]], form: Format) -> tuple[Tensor, Tensor, dict[str, int]]:
    """Images (bytes) and labels of all parts, one after the other, and how many each part has.

    One array is filled; memory that no image came to stand in is never touched.

    Raises:
        ValueError: If a file is damaged, holds something else, or its images are of another size than the first's.
    """
    rooms = {part: form.room(paths) for part, paths in parts.items()}
    shapes = {room[1:] for room in rooms.values()}
    if len(shapes) > 1:
        raise ValueError(
            f"the images of {', '.join(str(p[0]) for p in parts.values())} differ in size: {sorted(shapes)}."
        )
    whole = np.empty((sum(room[0] for room in rooms.values()), *shapes.pop()), dtype=np.uint8)
    labels, sizes, filled = [], dict.fromkeys(parts, 0), 0
    for part, paths in parts.items():
        for images, targets in form.blocks(paths):
            whole[filled : filled + len(images)] = images
            filled += len(images)
            sizes[part] += len(images)
            labels.append(targets.astype(np.int64))
            del images
        if not sizes[part]:
            raise ValueError(f"{paths[0]} holds no image.")
    return torch.from_numpy(whole[:filled]), torch.from_numpy(np.concatenate(labels)), sizes


def _opened(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path, "rb")) if packed else path.open("rb")


def _header(file: BinaryIO, path: Path, number: int) -> list[int]:
    """The lengths of the axes."""
    begin, *lengths = (int(v) for v in _bytes(file, path, 4 * (1 + number % 256)).view(">i4"))
    if begin != number:
        raise ValueError(
            f"{path} is no IDX file of {'images' if number == IMAGES else 'labels'} (it begins with {begin})."
        )
    return lengths


def _bytes(file: BinaryIO, path: Path, count: int) -> np.ndarray:
    try:
        raw = file.read(count)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}): unpack or fetch it anew.") from None
    if len(raw) != count:
        raise ValueError(f"{path} ends {count - len(raw)} bytes too early: unpack or fetch it anew.")
    return np.frombuffer(raw, np.uint8)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What SciPy raises for a damaged file becomes one clear error."""
    try:
        yield
    except Exception as error:  # it lets many kinds through
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is no whole .mat file ({said}): fetch it anew.") from None
