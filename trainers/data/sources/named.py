"""Data by name and path, `scheme:PATH`: where the files are, what they are known by, and how they are read."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainers.data.sources import arrays, folders, hugging_face, tables, text
from trainers.data.sources.files import Files, stamps
from trainers.data.sources.folders import Reading
from trainers.data.sources.source import Source
from trainers.data.sources.standard import STANDARD
from trainers.reference import DATA_SCHEMES, scheme_of

TEXTS = ("pydoc", "text", "hf")  # what `task` language can read
Find = Callable[[str, str], Files]


@dataclass(frozen=True)
class Scheme:
    """One kind of named data.

    Attributes:
        find: Called with the name and what stands after the colon; returns the files, or says what was looked for.
        load: Called with name, files, reading and `labels`; reads them.
        help: What it is, and what path it takes.
        signature: Called as `find`; returns what changes when the files do, at little cost.
        images: Whether it reads files of images, which may differ in size and be damaged.
        fetch: Called with the path; downloads the data there. None where that cannot be.
    """

    find: Find
    load: Callable[..., Source]
    help: str
    signature: Callable[[str, str], tuple[Any, ...]]
    images: bool = False
    fetch: Callable[[str], None] | None = None


def _of_files(find: Find) -> Callable[[str, str], tuple[Any, ...]]:
    def signature(name: str, rest: str) -> tuple[Any, ...]:
        files = find(name, rest)
        return stamps(files.path(file) for file in files.names)

    return signature


def _standard(name: str) -> Scheme:
    kind = STANDARD[name]
    at = f"; found by itself in {kind.home}" if kind.home else ""
    return Scheme(
        kind.find,
        lambda name, files, _reading, *, labels: kind.load(name, files),  # noqa: ARG005
        f"{name}:PATH. {kind.title}, {len(kind.names)} classes: the folder of {', '.join(kind.needed[:2])}, ..., "
        f"or the one above it{at}.",
        _of_files(kind.find),
        fetch=kind.fetch,
    )


SCHEMES: dict[str, Scheme] = {name: _standard(name) for name in STANDARD} | {
    "imagefolder": Scheme(
        folders.find,
        lambda name, files, reading, *, labels: folders.load(name, files, reading),  # noqa: ARG005
        "imagefolder:PATH. Images in one folder a class, in PATH/train, PATH/val and PATH/test, or in PATH itself and "
        "then split by the seed; `input_size` brings them to one size.",
        folders.signature,
        images=True,
    ),
    "npz": Scheme(
        arrays.find,
        lambda name, files, _reading, *, labels: arrays.load(name, files, labels=labels),
        "npz:FILE. Arrays x_train, y_train, x_test, y_test (and x_val, y_val); or x, y; images, labels; or medMNIST's "
        "names.",
        _of_files(arrays.find),
    ),
    "hf": Scheme(
        hugging_face.find,
        lambda name, files, reading, *, labels: hugging_face.load(name, files, reading),  # noqa: ARG005
        "hf:PATH. Images, or text for `task` language, of Hugging Face's datasets, in a folder that `save_to_disk` "
        "made; needs landscape-lab[data].",
        _of_files(hugging_face.find),
        images=True,
    ),
    "csv": Scheme(
        tables.find,
        lambda name, files, reading, *, labels: tables.load(name, files, reading.columns, labels=labels),
        "csv:FILE. A table of numbers as text, one example a line; `target_columns` names the targets, by default the "
        "last column. Standardised on the training part.",
        _of_files(tables.find),
    ),
    "pydoc": Scheme(
        text.find_pydoc,
        lambda name, files, reading, *, labels: text.load_pydoc(name, files, reading.text),  # noqa: ARG005
        "pydoc. Python's own documentation, for `task` language: the language's reference, with the library's as a "
        "shifted set; another text in each version of Python.",
        _of_files(text.find_pydoc),
    ),
    "text": Scheme(
        text.find_text,
        lambda name, files, reading, *, labels: text.load_text(name, files, reading.text),  # noqa: ARG005
        "text:FILE. A text in UTF-8, for `task` language.",
        _of_files(text.find_text),
    ),
}
assert tuple(SCHEMES) == DATA_SCHEMES


def named(name: str) -> Scheme | None:
    """The scheme of a data set's name; None for a built-in one and for `module:function`."""
    return SCHEMES.get(scheme_of(name) or "")


def absolute(name: str) -> str:
    """The same name with its path from the root of the file system, so that it means the same in any folder."""
    scheme, colon, rest = name.partition(":")
    return f"{scheme}:{Path(rest).expanduser().absolute()}" if colon and rest and named(name) else name


def fingerprint(name: str) -> str | None:
    """What the files of named data are known by, wherever they lie (`Files.fingerprint`); None for other data.

    Raises:
        ValueError: If the path is missing or of another kind.
        FileNotFoundError: If the files are not there.
    """
    scheme = named(name)
    if scheme is None:
        return None
    whole = absolute(name)
    rest = whole.partition(":")[2]
    return _fingerprint(whole, scheme.signature(name, rest))


@functools.lru_cache(maxsize=64)
def _fingerprint(name: str, _signature: tuple[Any, ...]) -> str:
    return SCHEMES[name.partition(":")[0]].find(name, name.partition(":")[2]).fingerprint


def identity(name: str) -> str:
    """A data set's name, with the fingerprint of its files in place of their path."""
    noted = fingerprint(name)
    return name if noted is None else f"{scheme_of(name)}:{noted}"


def resized(source: Source, side: int, name: str) -> Source:
    """The same images, which are brought to this side when they are used, each as a whole.

    Raises:
        ValueError: If the inputs are no images in bytes.
    """
    if source.pixels is None or len(source.shape) != 3:
        raise ValueError(
            f"`input_size` is for images, and inputs of `dataset` {name!r} have shape {source.shape}: leave it out."
        )
    return replace(source, side=None if tuple(source.shape[1:]) == (side, side) else side)


def from_files(name: str, reading: Reading, *, labels: bool = True, digest: str | None = None) -> Source:
    """Read named data.

    Args:
        name: `scheme:PATH`.
        reading: For files of images.
        labels: Whether the targets must be labels.
        digest: The fingerprint that the files must have; None takes any.

    Raises:
        ValueError: If the files have another fingerprint, or cannot be read.
        FileNotFoundError: If they are not there.
        ImportError: If a package is missing.
    """
    scheme = named(name)
    assert scheme is not None
    if not scheme.images and reading.on_corrupt != Reading().on_corrupt:
        those = ", ".join(key for key, other in SCHEMES.items() if other.images)
        raise ValueError(f"`on_corrupt` is for files of images ({those}), got `dataset` {name!r}: leave it out.")
    if reading.columns and scheme is not SCHEMES["csv"]:
        raise ValueError(
            f"`target_columns` {list(reading.columns)} is for csv:FILE, got `dataset` {name!r}: leave it out."
        )
    if reading.text is not None and name.partition(":")[0] not in TEXTS:
        raise ValueError(
            f"`task` language learns text, and `dataset` {name!r} is none: take pydoc, text:FILE or hf:PATH."
        )
    try:
        files = scheme.find(name, absolute(name).partition(":")[2])
    except FileNotFoundError as error:
        if digest is None:
            raise
        way = f"If the data of this run have moved, say where they are: --dataset {scheme_of(name)}:PATH."
        raise FileNotFoundError(f"{error} {way}") from None
    if digest is not None and digest not in (files.fingerprint, files.sampled_fingerprint):
        raise ValueError(
            f"`dataset` {name!r} has changed: its files have the fingerprint {files.fingerprint}, and had {digest} "
            f"when the run began (its `dataset_digest`): put back what was there, give the place of the old files by "
            f"`--dataset {scheme_of(name)}:PATH`, or train a new run."
        )
    source = scheme.load(name, files, reading, labels=labels)
    if reading.size is not None and not scheme.images:
        source = resized(source, reading.size, name)
    noted: dict[str, Any] = {"files": len(files.names), "fingerprint": files.fingerprint}
    if reading.size is not None:
        noted["input_size"] = reading.size  # to which shifted test sets come as well
    return replace(source, origin={**noted, **source.origin})


def download(name: str) -> None:
    """Fetch named data to their path by torchvision, unless they are there; the only way that anything is fetched.

    Raises:
        ValueError: If the data cannot be fetched, or no path is given.
        ImportError: If torchvision is missing.
    """
    scheme, rest = named(name), absolute(name).partition(":")[2]
    if scheme is None:
        return
    try:
        scheme.find(name, rest)
    except FileNotFoundError:
        if scheme.fetch is None:
            raise
    except ValueError:
        if scheme.fetch is not None:
            raise ValueError(
                f"`download` of {name!r} needs the folder to fetch the data to: write {name}:PATH."
            ) from None
        raise
    else:
        return
    try:
        scheme.fetch(rest)
    except (RuntimeError, OSError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OSError(
            f"`download` of {name!r} failed ({said}): fetch the files by hand and put them there, or try again."
        ) from error
