"""Image data sets of Hugging Face's `datasets`, as `save_to_disk` left them; nothing is fetched."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from trainers.data.sources.files import Files
from trainers.data.sources.folders import Reading, image_of, source_of_images
from trainers.data.sources.source import Source, held_out
from trainers.data.sources.text import TextReading, of_documents

PARTS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
LABELS = ("label", "labels", "fine_label")  # which column, where several could be meant
TEXT = "text"
KEPT = ("data-*.arrow", "dataset_info.json")  # what was saved; other files are of caches


def find(name: str, rest: str) -> Files:
    """The files that hold the examples.

    Raises:
        ValueError: If no folder is given.
        FileNotFoundError: If `save_to_disk` did not make it.
    """
    root = Path(rest)
    if not rest:
        raise ValueError(f"`dataset` {name!r} needs a folder: write hf:PATH.")
    known = ("dataset_dict.json", "state.json")
    if not any((root / file).is_file() for file in known):
        raise FileNotFoundError(
            f"`dataset` {name!r}: {root} holds no {' and no '.join(known)}: give a folder that `save_to_disk` made, as "
            f"by datasets.load_dataset(...).save_to_disk({str(root)!r})."
        )
    return Files(root, tuple(sorted(path.relative_to(root).as_posix() for kind in KEPT for path in root.rglob(kind))))


def load(name: str, files: Files, reading: Reading) -> Source:
    """The images, RGB, as bytes, with the labels of the column of classes.

    Raises:
        ImportError: If `datasets` is missing.
        ValueError: If there is no one column of images and one of labels, or images cannot be used.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"`dataset` {name!r} needs `datasets`: pip install 'landscape-lab[data]'.") from error
    try:
        found = datasets.load_from_disk(str(files.root))
    except Exception as error:  # a damaged folder fails in any way
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(f"`dataset` {name!r}: {files.root} cannot be read ({said}): save it anew.") from None
    if reading.text is not None:
        return _text(name, files, found, reading.text, datasets)
    parts = {"train": found}
    if isinstance(found, datasets.DatasetDict):
        there = {part: next((key for key in keys if key in found), None) for part, keys in PARTS.items()}
        parts = {part: found[key] for part, key in there.items() if key is not None}
        if "train" not in parts:
            raise ValueError(f"`dataset` {name!r}: {files.root} has the splits {', '.join(found)}, but no train.")
    image, label, classes = _columns(name, parts["train"], datasets)
    sets = {part: HubImages(name, rows, image, label, reading) for part, rows in held_out(parts).items()}
    if not classes:
        classes = tuple(str(i) for i in range(max(sets["train"].targets) + 1))
    for part, dataset in sets.items():
        bad = [i for i, y in enumerate(dataset.targets) if not (isinstance(y, int) and 0 <= y < len(classes))]
        if bad:
            raise ValueError(
                f"`dataset` {name!r}: {len(bad)} {part} labels are none of 0 to {len(classes) - 1}, such as "
                f"{dataset.targets[bad[0]]!r} of item {bad[0]} (-1 stands for labels that are kept secret): save the "
                f"data without these."
            )
    return source_of_images(name, sets, classes, reading)


def _text(name: str, files: Files, found: Any, reading: TextReading, datasets: Any) -> Source:
    """The rows of the one column of text, each a document."""
    whole = isinstance(found, datasets.DatasetDict)
    there = {part: next((k for k in keys if k in found), None) for part, keys in PARTS.items()} if whole else {}
    parts = {part: found[key] for part, key in there.items() if key is not None} if whole else {"train": found}
    if "train" not in parts:
        raise ValueError(f"`dataset` {name!r}: {files.root} has the splits {', '.join(found)}, but no train.")
    kinds = parts["train"].features
    columns = [key for key, kind in kinds.items() if getattr(kind, "dtype", "") in ("string", "large_string")]
    columns = [TEXT] if TEXT in columns else columns
    if len(columns) != 1:
        raise ValueError(
            f"`dataset` {name!r}: there must be one column of text, or one called text; got {', '.join(kinds)}: choose "
            f"by select_columns, and save anew."
        )
    return of_documents(
        name, {part: [text for text in rows[columns[0]][:] if text and text.strip()] for part, rows in parts.items()},
        reading,
    )  # fmt: skip


class HubImages(Dataset[tuple[Tensor, int]]):
    """Rows of a table with their labels, each image decoded when it is asked for; the methods of `ImageFiles`."""

    def __init__(
        self, name: str, rows: Any, image: str, label: str, reading: Reading, index: Sequence[int] | None = None
    ) -> None:
        import datasets

        self.name, self.image, self.label, self.reading = name, image, label, reading
        self.rows = rows.cast_column(image, datasets.Image(decode=False))
        self.index = list(range(len(rows))) if index is None else list(index)
        labels = self.rows[label][:]
        self.targets = [labels[i] for i in self.index]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return image_of(self.name, self._file(i), self.reading, called=self.place(i)), self.targets[i]

    def place(self, i: int) -> str:
        """What an image is called in messages."""
        return f"item {self.index[i]}"

    def size(self, i: int) -> tuple[int, ...]:
        """Width and height of an image."""
        from PIL import Image

        with Image.open(self._file(i)) as image:
            return image.size

    def without(self, bad: set[int]) -> "HubImages":
        """The others."""
        index = [j for i, j in enumerate(self.index) if i not in bad]
        return HubImages(self.name, self.rows, self.image, self.label, self.reading, index)

    def _file(self, i: int) -> Any:
        stored = self.rows[self.index[i]][self.image] or {"bytes": b""}  # no image is read as an empty one
        return stored["path"] if stored["bytes"] is None else BytesIO(stored["bytes"])


def _columns(name: str, rows: Any, datasets: Any) -> tuple[str, str, tuple[str, ...]]:
    """The columns of images and of labels, by their types, and the names of the classes."""
    kinds = rows.features
    images = [key for key, kind in kinds.items() if isinstance(kind, datasets.Image)]
    labels = [key for key, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)]
    if not labels:
        labels = [k for k in LABELS if k in kinds and str(getattr(kinds[k], "dtype", "")).startswith(("int", "uint"))]
    if len(labels) > 1:
        labels = [key for key in LABELS if key in labels][:1] or labels
    if len(images) != 1 or len(labels) != 1:
        shown = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in kinds.items())
        raise ValueError(
            f"`dataset` {name!r}: there must be one column of images (Image) and one of labels (ClassLabel), or one of "
            f"whole numbers called label; got {shown}: choose by select_columns, and save anew."
        )
    kind = kinds[labels[0]]
    return images[0], labels[0], tuple(kind.names) if isinstance(kind, datasets.ClassLabel) else ()
