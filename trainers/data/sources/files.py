"""Files that hold data: where they are, and a fingerprint by which they are known again."""

import functools
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLED = 64  # files, spread over all, of which the content counts
LARGE = 2**28  # bytes of a file from which on only its beginning, middle and end count
BLOCK = 2**24
DIGITS = 16


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

        The name and the size of every file count, and the contents of 64 files spread over all: of files above 256 MiB
        the first, middle and last 16 MiB. So it is cheap for a million images, which take a look at each file's size.
        The name of a single file does not count.
        """
        found, alone, root = hashlib.sha256(), len(self.names) == 1, str(self.root)
        for name in self.names:
            size = os.stat(f"{root}/{name}").st_size  # noqa: PTH116 - a million of them
            found.update(f"{'' if alone else name}\0{size}\0".encode())
        for i in _spread(len(self.names)):
            stat = self.path(self.names[i]).stat()
            found.update(_content(f"{root}/{self.names[i]}", stat.st_size, stat.st_mtime_ns))
        return found.hexdigest()[:DIGITS]


def _spread(n: int) -> Sequence[int]:
    return sorted({i * (n - 1) // max(1, min(n, SAMPLED) - 1) for i in range(min(n, SAMPLED))})


@functools.lru_cache(maxsize=4 * SAMPLED)
def _content(path: str, size: int, _changed: int) -> bytes:
    """The hash of a file's content; remembered while its size and time of change stay."""
    found = hashlib.sha256()
    with Path(path).open("rb") as file:
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
