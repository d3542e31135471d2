"""Files that hold data: where they are, and a fingerprint by which they are known again."""

import functools
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

LARGE = 2**28  # bytes up to which all content counts: of all files together, and of a single one
SAMPLED = 64  # files, spread over all, of which the content counts beyond
BLOCK = 2**24
DIGITS = 16

_known: dict[tuple[bytes, bool], str] = {}  # fingerprints by a hash of names, sizes and times of change


@dataclass(frozen=True)
class Files:
    """Files of one data set.

    Attributes:
        root: The folder that their names are relative to.
        names: In an order that never changes, with `/` between folders.
    """

    root: Path
    names: tuple[str, ...]

    def path(self, name: str) -> Path:
        """The place of one of them."""
        return self.root / name

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a hash of names, sizes and contents; the same wherever the folder lies.

        The name and the size of every file count, and all contents up to 256 MiB in total. Of more, the contents of 64
        files spread over all do: of files above 256 MiB the first, middle and last 16 MiB. So it is cheap for a million
        images, which take a look at each file's size. The name of a single file does not count.

        It is remembered while names, sizes and times of change stay.
        """
        return self._fingerprint(whole=True)

    @functools.cached_property
    def sampled_fingerprint(self) -> str:
        """The same with the contents of 64 files alone, by which data were known before."""
        return self._fingerprint(whole=False)

    def _fingerprint(self, *, whole: bool) -> str:
        found, alone, root = hashlib.sha256(), len(self.names) == 1, str(self.root)
        stamp, total = hashlib.sha256(f"{root}\0".encode()), 0
        for name in self.names:
            stat = os.stat(f"{root}/{name}")  # noqa: PTH116 - a million of them
            total += stat.st_size
            found.update(f"{'' if alone else name}\0{stat.st_size}\0".encode())
            stamp.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
        key = (stamp.digest(), whole)
        if key not in _known:
            n = len(self.names)
            for i in range(n) if whole and total <= LARGE else _spread(n):
                found.update(_content(f"{root}/{self.names[i]}"))
            _known[key] = found.hexdigest()[:DIGITS]
        return _known[key]


def single_file(name: str, rest: str, wanted: str) -> Files:
    """The file that a data set's name gives the path of.

    Args:
        name: Of the data set, `scheme:FILE`.
        rest: What stands after the colon.
        wanted: What the file should be, for messages.

    Raises:
        ValueError: If none is given.
        FileNotFoundError: If it is not there.
    """
    path = Path(rest)
    if not rest:
        raise ValueError(f"`dataset` {name!r} needs a file: write {name.partition(':')[0]}:FILE.")
    if not path.is_file():
        raise FileNotFoundError(f"`dataset` {name!r}: there is no file {path}: give {wanted}.")
    return Files(path.parent, (path.name,))


def _spread(n: int) -> Sequence[int]:
    return sorted({i * (n - 1) // max(1, min(n, SAMPLED) - 1) for i in range(min(n, SAMPLED))})


def _content(path: str) -> bytes:
    found = hashlib.sha256()
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for start in (0,) if size <= LARGE else (0, size // 2, size - BLOCK):
            file.seek(start)
            left = size if size <= LARGE else BLOCK
            while left > 0 and (block := file.read(min(left, BLOCK))):
                found.update(block)
                left -= len(block)
    return found.digest()


def stamps(paths: Iterable[Path]) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of change of files and folders, by which a change is noticed without reading them."""
    return tuple((str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths)


def first_folder(candidates: Iterable[Path], names: Iterable[Sequence[str]]) -> tuple[Path, list[str]] | None:
    """The first folder that holds one of each group of names, and which these are."""
    groups = list(names)
    for folder in candidates:
        found = [next((name for name in group if (folder / name).is_file()), "") for group in groups]
        if all(found):
            return folder, found
    return None
