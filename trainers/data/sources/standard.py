"""MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100 and SVHN, from the files that torchvision keeps and their authors publish.

The readers are our own, because torchvision's take only files with the published checksums, MNIST's only unpacked ones
in a folder of that name, and CIFAR's run what a pickle says; torchvision is used to download. All images are kept as
bytes, once, and come to mean 0 and deviation 1 by the constants that papers on each set use.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainers.data.items import Pixels
from trainers.data.sources.files import Files, first_folder
from trainers.data.sources.formats import Batches, Format, Idx, Matlab, gathered
from trainers.data.sources.source import Source, bounds

FIGURES = tuple("0123456789")
GARMENTS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HUNDRED = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()  # noqa: SIM905
)
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of its package dataset-fashion-mnist


@dataclass(frozen=True)
class Standard:
    """A published data set of small images.

    Attributes:
        title: As it is called.
        files: Names of its files by part, each with the endings it may have.
        folders: Where they may lie, below the path that is given.
        form: Of the files.
        pixels: Mean and deviation that papers use.
        names: Of the classes.
        home: Where it is found without a path.
        library: Its class in `torchvision.datasets`, for the download.
    """

    title: str
    files: Mapping[str, Sequence[Sequence[str]]]
    folders: tuple[str, ...]
    form: Format
    pixels: Pixels
    names: tuple[str, ...]
    home: Path | None
    library: str

    @property
    def needed(self) -> list[str]:
        """The names of all its files."""
        return [group[0] for part in self.files.values() for group in part]

    def find(self, name: str, rest: str) -> Files:
        """Its files below a path.

        Raises:
            ValueError: If no path is given, and none is known.
            FileNotFoundError: If they are not all there, with what was looked for.
        """
        if not rest and (self.home is None or not self.home.is_dir()):
            raise ValueError(f"`dataset` {name!r} needs the folder of its files: write {name}:PATH.")
        root = Path(rest) if rest else self.home
        assert root is not None
        candidates = [root / folder for folder in self.folders]
        found = first_folder(candidates, [group for part in self.files.values() for group in part])
        if found is None:
            raise FileNotFoundError(self._missing(name, root, candidates))
        return Files(found[0], tuple(found[1]))

    def _missing(self, name: str, root: Path, candidates: Sequence[Path]) -> str:
        there = {path.name for folder in candidates if folder.is_dir() for path in folder.iterdir()}
        groups = [group for part in self.files.values() for group in part]
        lacking = [group[0] for group in groups if not there & set(group)]
        packed = sorted(n for n in there if n.endswith((".tar.gz", ".tgz", ".zip")))
        why = f"{root} does not exist" if not root.exists() else "not found: " + ", ".join(lacking or self.needed)
        return (
            f"`dataset` {name!r}: no whole {self.title} ({why}). Looked for {', '.join(self.needed)} in "
            f"{', '.join(str(folder) for folder in candidates)}. Give the folder that holds them, "
            + (f"unpack {packed[0]}, " if packed else "")
            + "or add `--download` to fetch them there."
        )

    def load(self, name: str, files: Files) -> Source:
        """All its images and labels.

        Raises:
            ValueError: If a file is damaged, or its labels are none of the classes.
        """
        rest = iter(files.names)
        parts = {part: [files.path(next(rest)) for _ in groups] for part, groups in self.files.items()}
        inputs, labels, sizes = gathered(parts, self.form)
        names = self.names
        bad = ((labels < 0) | (labels >= len(names))).nonzero()[:, 0]
        if len(bad):
            raise ValueError(
                f"`dataset` {name!r}: {len(bad)} labels of {files.root} are none of 0 to {len(names) - 1}, such as "
                f"{int(labels[bad[0]])} of example {int(bad[0])}: is it {self.title}?"
            )
        return Source(inputs, labels, len(names), **bounds(sizes), pixels=self.pixels, names=names, shared=False)

    def fetch(self, rest: str) -> None:
        """Have torchvision download it to where `find` looks.

        Raises:
            ImportError: If torchvision is missing.
        """
        try:
            from torchvision import datasets
        except ImportError as error:
            raise ImportError("`--download` needs torchvision: pip install 'landscape-lab[vision]'.") from error
        root = Path(rest)
        if root.name in self.folders:  # torchvision adds the folder's name itself
            root = root.parent
        library = getattr(datasets, self.library)
        if self.library == "SVHN":
            for part in ("train", "test"):
                library(root, split=part, download=True)
        else:
            library(root, download=True)


def _idx(part: str) -> tuple[tuple[str, str], ...]:
    names = (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte")
    return tuple((name, f"{name}.gz") for name in names)


STANDARD: dict[str, Standard] = {
    "fashion_mnist": Standard(
        "Fashion-MNIST", {"train": _idx("train"), "test": _idx("t10k")}, (".", "raw", "FashionMNIST/raw"), Idx(),
        Pixels((0.2860,), (0.3530,)), GARMENTS, DEBIAN, "FashionMNIST",
    ),
    "mnist": Standard(
        "MNIST", {"train": _idx("train"), "test": _idx("t10k")}, (".", "raw", "MNIST/raw"), Idx(),
        Pixels((0.1307,), (0.3081,)), FIGURES, None, "MNIST",
    ),
    "cifar10": Standard(
        "CIFAR-10", {"train": [(f"data_batch_{i}",) for i in range(1, 6)], "test": [("test_batch",)]},
        (".", "cifar-10-batches-py"), Batches("labels"), Pixels((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        OBJECTS, None, "CIFAR10",
    ),
    "cifar100": Standard(
        "CIFAR-100", {"train": [("train",)], "test": [("test",)]}, (".", "cifar-100-python"), Batches("fine_labels"),
        Pixels((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)), HUNDRED, None, "CIFAR100",
    ),
    "svhn": Standard(
        "SVHN", {"train": [("train_32x32.mat",)], "test": [("test_32x32.mat",)]}, (".",), Matlab(),
        Pixels((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)), FIGURES, None, "SVHN",
    ),
}  # fmt: skip
