"""Arrays in a `.npz` file: images or other inputs, and labels, under the names that such files customarily have."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.data.items import Pixels, targets_as_stored
from trainers.data.sources.files import Files, single_file
from trainers.data.sources.source import Shades, Source, bounds, held_out

# The names of inputs and targets by part: Keras', medMNIST's, and those of a file that is not split.
NAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "train": (
        ("x_train", "y_train"), ("X_train", "y_train"), ("train_images", "train_labels"), ("train_x", "train_y"),
        ("x", "y"), ("X", "y"), ("images", "labels"), ("data", "labels"), ("data", "target"), ("inputs", "targets"),
    ),
    "validation": (
        ("x_val", "y_val"), ("X_val", "y_val"), ("x_valid", "y_valid"), ("x_validation", "y_validation"),
        ("val_images", "val_labels"), ("val_x", "val_y"),
    ),
    "test": (("x_test", "y_test"), ("X_test", "y_test"), ("test_images", "test_labels"), ("test_x", "test_y")),
}  # fmt: skip
CHANNELS = (1, 3)
STEP = 4096  # examples whose mean is taken at a time


def find(name: str, rest: str) -> Files:
    """The file.

    Raises:
        ValueError: If none is given, or it is of another kind.
        FileNotFoundError: If it is not there.
    """
    files, path = single_file(name, rest, "a .npz file of arrays"), Path(rest)
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"`dataset` {name!r}: {path} is not a whole .npz file: write one with numpy.savez(FILE, x_train=..., "
            f"y_train=..., x_test=..., y_test=...)."
        )
    return files


def load(name: str, files: Files, *, labels: bool = True) -> Source:
    """All its inputs and targets, in one tensor each.

    Bytes are images: (n, h, w), or with one or three channels before or behind; they come to mean 0 and deviation 1 by
    the mean and deviation of the training images. Floating-point inputs are taken as they are, (n, h, w, c) with one or
    three channels as images; whole numbers are tokens. Labels (n,) or (n, 1) are whole numbers from 0.

    Raises:
        ValueError: If arrays are missing, hold objects, or do not fit together.
    """
    path = files.path(files.names[0])
    with np.load(path, allow_pickle=False) as stored:
        pairs = _pairs(name, path, stored.files)
        targets = {part: _as_targets(name, _read(name, path, stored, y), y) for part, (_, y) in pairs.items()}
        whole: Tensor | None = None
        start, total = 0, sum(len(y) for y in targets.values())
        for part, (key, other) in pairs.items():
            x = _as_inputs(name, _read(name, path, stored, key), key)
            if len(x) != len(targets[part]) or not len(x):
                raise ValueError(
                    f"`dataset` {name!r}: {path} holds {len(x)} inputs `{key}` and {len(targets[part])} targets "
                    f"`{other}`: there must be one a target, and not none."
                )
            if whole is None:
                whole = torch.empty((total, *x.shape[1:]), dtype=_dtype(x))
            if x.shape[1:] != tuple(whole.shape[1:]) or _dtype(x) != whole.dtype:
                raise ValueError(
                    f"`dataset` {name!r}: the inputs of all parts must be alike, got {x.dtype} {x.shape[1:]} in "
                    f"`{key}` and {whole.dtype} {tuple(whole.shape[1:])} before."
                )
            np.copyto(whole[start : start + len(x)].numpy(), x, casting="unsafe")
            start += len(x)
    assert whole is not None
    if whole.is_floating_point() and not bool((good := torch.isfinite(whole).flatten(1).all(1)).all()):
        bad = (~good).nonzero()[:, 0].tolist()
        raise ValueError(
            f"`dataset` {name!r}: {len(bad)} of {len(whole)} inputs hold NaN or infinite numbers, such as {bad[0]}: "
            f"leave them out, or fill them in."
        )
    sizes = {part: len(y) for part, y in targets.items()}
    pixels = _pixels(whole[: sizes["train"]]) if whole.dtype == torch.uint8 else None
    images = whole.ndim == 4 and whole.dtype in (torch.float32, torch.uint8)
    y = torch.cat([targets_as_stored(torch.from_numpy(_squeezed(t)), f"{name!r}, {p}", labels=labels)
                   for p, t in targets.items()])  # fmt: skip
    classes = int(y[: sizes["train"]].max()) + 1 if labels else max(1, y[0].numel())
    if labels and int(y.max()) >= classes:
        raise ValueError(
            f"`dataset` {name!r}: {path} has the label {int(y.max())} outside its training labels, whose largest is "
            f"{classes - 1}: leave these examples out."
        )
    return Source(
        whole, y, classes, **bounds(sizes),
        images=images, shades=Shades.of(whole) if images and pixels is None else None, pixels=pixels, shared=False,
    )  # fmt: skip


def _pairs(name: str, path: Path, there: list[str]) -> dict[str, tuple[str, str]]:
    found = {part: next(((x, y) for x, y in names if x in there and y in there), None) for part, names in NAMES.items()}
    pairs = {part: pair for part, pair in found.items() if pair is not None}
    if "train" not in pairs:
        raise ValueError(
            f"`dataset` {name!r}: {path} holds the arrays {', '.join(sorted(there))}, and no inputs with targets among "
            f"them: name them x_train, y_train, x_test, y_test (or x, y; images, labels; train_images, train_labels)."
        )
    return held_out(pairs)


def _read(name: str, path: Path, stored: Mapping[str, Any], key: str) -> np.ndarray:
    try:
        found: np.ndarray = stored[key]
    except Exception as error:  # a damaged file fails in any way
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        objects = "pickle" in said
        raise ValueError(
            f"`dataset` {name!r}: `{key}` of {path} "
            + (
                "holds Python objects, which are not read, as that could run code: save arrays of numbers."
                if objects
                else f"is damaged ({said}): write the file anew."
            )
        ) from None
    return found


def _as_inputs(name: str, x: np.ndarray, key: str) -> np.ndarray:
    """Inputs (n, ...), images with their channels first."""
    if x.dtype.kind not in "fiu" or x.ndim < 2:
        raise ValueError(
            f"`dataset` {name!r}: `{key}` is {x.dtype} of shape {x.shape}; inputs are numbers, of two axes at least."
        )
    if x.dtype == np.uint8:
        x = x[:, None] if x.ndim == 3 else x
        if x.ndim != 4 or not {x.shape[1], x.shape[3]} & set(CHANNELS):
            raise ValueError(
                f"`dataset` {name!r}: `{key}` holds bytes of shape {x.shape}; images are (n, h, w), (n, h, w, c) or "
                f"(n, c, h, w) with 1 or 3 channels; scale other inputs to floating point."
            )
    channels_last = x.ndim == 4 and x.shape[3] in CHANNELS and x.shape[1] not in CHANNELS
    return x.transpose(0, 3, 1, 2) if channels_last and x.dtype.kind in "fu" else x


def _as_targets(name: str, y: np.ndarray, key: str) -> np.ndarray:
    if y.dtype.kind not in "fiub":
        raise ValueError(
            f"`dataset` {name!r}: `{key}` is {y.dtype} of shape {y.shape}; labels must be whole numbers from 0: number "
            f"names of classes, as names, y = numpy.unique(y, return_inverse=True) does."
        )
    return y


def _dtype(x: np.ndarray) -> torch.dtype:
    if x.dtype == np.uint8:
        return torch.uint8
    return torch.float32 if x.dtype.kind == "f" else torch.int64


def _squeezed(y: np.ndarray) -> np.ndarray:
    """Labels (n,) of labels (n, 1), as medMNIST has them."""
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 and y.dtype.kind in "iu" else y
    return y.astype(np.int64) if y.dtype.kind in "iu" else y


def _pixels(images: Tensor) -> Pixels:
    """Mean and deviation of each channel, from exact sums of whole numbers."""
    sums = torch.zeros(2, images.shape[1], dtype=torch.int64)
    for part in images.split(STEP):
        whole = part.to(torch.int64)
        sums += torch.stack([whole.sum((0, 2, 3)), whole.square().sum((0, 2, 3))])
    count = images.numel() / images.shape[1]
    mean = [float(v) / count / 255 for v in sums[0]]
    std = [max(0.0, float(v) / count / 255**2 - m * m) ** 0.5 for v, m in zip(sums[1], mean, strict=True)]
    return Pixels(tuple(mean), tuple(v or 1.0 for v in std))
