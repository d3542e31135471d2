"""Small images of a user's own, with names of classes, and shifted copies of them in the field's formats."""

import numpy as np
import torch
from torch.utils.data import TensorDataset

CLASSES = ["bear", "cat", "dog", "fox"]
TRAIN, TEST, SIDE = 48, 40, 8


class Photos(TensorDataset):
    classes = CLASSES
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def made(n, seed, side=SIDE):
    """Images whose class is told by their lightest corner, more or less, in bytes, and their labels."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % len(CLASSES)
    x = torch.randint(0, 160, (n, 3, side, side), generator=g, dtype=torch.uint8)
    for i, label in enumerate(y.tolist()):
        x[
            i,
            :,
            (label // 2) * side // 2 : (label // 2 + 1) * side // 2,
            (label % 2) * side // 2 : (label % 2 + 1) * side // 2,
        ] += 60
    return x, y


def photos():
    """Training and test images."""
    return Photos(*made(TRAIN, 0)), Photos(*made(TEST, 1))


def grey():
    """The first channel alone."""
    found = []
    for x, y in (made(TRAIN, 0), made(TEST, 1)):
        found.append(TensorDataset(x[:, :1], y))
        found[-1].classes = CLASSES
    return found


def numbers():
    """The same as floating point, without names."""
    return tuple(TensorDataset(x.float(), y) for x, y in (made(TRAIN, 0), made(TEST, 1)))


def corrupted(x, corruption, severity):
    """A corruption of bytes that is easy to see: darker, or brighter, by the severity."""
    step = 20 * severity * (1 if corruption == "brightness" else -1)
    return (x.to(torch.int16) + step).clamp(0, 255).to(torch.uint8)


def write_arrays(folder, corruptions=("brightness", "fog"), *, x=None, y=None):
    """As CIFAR-10-C: an array a corruption, five severities of all test images one after the other, and the labels."""
    folder.mkdir(parents=True, exist_ok=True)
    if x is None:
        x, y = made(TEST, 1)
    for name in corruptions:
        blocks = [corrupted(x, name, severity).permute(0, 2, 3, 1) for severity in range(1, 6)]
        np.save(folder / f"{name}.npy", torch.cat(blocks).numpy())
    np.save(folder / "labels.npy", y.repeat(5).numpy())
    return folder


def write_images(folder, x, labels, ending="png"):
    """Images in class/0001.png."""
    from PIL import Image

    for i, (image, label) in enumerate(zip(x, labels, strict=True)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / label / f"{i:04}.{ending}")
    return folder
