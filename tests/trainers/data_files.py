"""Data sets on disk in their true formats, small: what tests of named data read."""

import gzip
import pickle  # noqa: TID251 - as CIFAR's authors wrote it
import struct
from pathlib import Path

import numpy as np

CIFAR10 = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def images(n, channels, side, seed=0):
    """Random images and labels that every class of ten has in turn."""
    draws = np.random.default_rng(seed)
    return draws.integers(0, 256, (n, channels, side, side), dtype=np.uint8), np.arange(n) % 10


def write_idx(folder, n=30, m=20, side=8, *, packed=True):
    """MNIST's four files; returns images and labels of all."""
    folder.mkdir(parents=True, exist_ok=True)
    x, y = images(n + m, 1, side)
    ending, opened = (".gz", gzip.open) if packed else ("", open)
    for part, of in (("train", slice(0, n)), ("t10k", slice(n, n + m))):
        pixels, labels = x[of, 0], y[of].astype(np.uint8)
        with opened(folder / f"{part}-images-idx3-ubyte{ending}", "wb") as file:
            file.write(struct.pack(">iiii", 2051, len(pixels), side, side) + pixels.tobytes())
        with opened(folder / f"{part}-labels-idx1-ubyte{ending}", "wb") as file:
            file.write(struct.pack(">ii", 2049, len(labels)) + labels.tobytes())
    return x, y


def write_cifar10(folder, each=10, *, protocol=None):
    """CIFAR-10's batches, as Python 2 pickled them, or by a protocol of this Python."""
    folder.mkdir(parents=True, exist_ok=True)
    x, y = images(6 * each, 3, 32)
    for k, name in enumerate(CIFAR10):
        of = slice(k * each, (k + 1) * each)
        rows, labels = x[of].reshape(each, -1), y[of].tolist()
        write_batch(folder / name, rows, {"labels": labels, "batch_label": name}, protocol)
    write_batch(folder / "batches.meta", None, {"label_names": [f"class {i}" for i in range(10)]}, protocol)
    return x, y


def write_cifar100(folder, n=40, m=20):
    folder.mkdir(parents=True, exist_ok=True)
    x, _ = images(n + m, 3, 32)
    fine = np.arange(n + m) * 7 % 100
    for name, of in (("train", slice(0, n)), ("test", slice(n, n + m))):
        rows = x[of].reshape(-1, 3072)
        write_batch(folder / name, rows, {"fine_labels": fine[of].tolist(), "coarse_labels": (fine[of] // 5).tolist()})
    write_batch(folder / "meta", None, {"fine_label_names": [str(i) for i in range(100)]})
    return x, fine


def write_batch(path, rows, more, protocol=None):
    """A dictionary with the array `data`; without a protocol byte for byte as cPickle 2 of Python 2 writes it."""
    if protocol is not None:
        path.write_bytes(pickle.dumps({**({} if rows is None else {"data": rows}), **more}, protocol))
        return

    def text(value):
        raw = value.encode("latin1") if isinstance(value, str) else value
        return b"U" + bytes([len(raw)]) + raw if len(raw) < 256 else b"T" + struct.pack("<i", len(raw)) + raw

    def entry(value):
        if isinstance(value, str):
            return text(value)
        if isinstance(value, list):
            return b"](" + b"".join(entry(v) for v in value) + b"e"
        return b"J" + struct.pack("<i", value)

    out = b"\x80\x02}("
    if rows is not None:
        kind = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        shape = b"".join(b"J" + struct.pack("<i", n) for n in rows.shape)
        out += text("data") + b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        out += b"(K\x01(" + shape + b"t" + kind + b"\x89" + text(rows.tobytes()) + b"tb"
    for key, value in more.items():
        out += text(key) + entry(value)
    path.write_bytes(out + b"u.")


def write_svhn(folder, n=30, m=20):
    from scipy.io import savemat

    folder.mkdir(parents=True, exist_ok=True)
    x, y = images(n + m, 3, 32)
    for name, of in (("train", slice(0, n)), ("test", slice(n, n + m))):
        labels = np.where(y[of] == 0, 10, y[of]).astype(np.uint8)[:, None]
        savemat(folder / f"{name}_32x32.mat", {"X": x[of].transpose(2, 3, 1, 0), "y": labels})
    return x, y


def write_folder(root, parts=("train", "val", "test"), classes=("cat", "dog"), each=4, size=(12, 10), ending="png"):
    """Class folders of RGB images of width and height `size`; returns the arrays (h, w, 3) by path."""
    from PIL import Image

    draws, found = np.random.default_rng(0), {}
    for part in parts:
        for name in classes:
            folder = Path(root) / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(each):
                pixels = draws.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.{ending}")
                found[folder / f"{i}.{ending}"] = pixels
    return found
