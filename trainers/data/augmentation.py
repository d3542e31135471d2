"""Augmentation by name: what `augment` of a configuration says, and what it does to the examples of an epoch."""

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int, Shaped
from torch import Generator, Tensor

from landscape.naming import nearest
from trainers.data.mixing import CutMix, Mixing, MixUp
from trainers.data.rereading import other_randomness
from trainers.data.transforms import (
    TORCHVISION,
    BatchTransform,
    Chain,
    Crop,
    Cutout,
    Flip,
    Hue,
    ImageTransform,
    Magnitude,
    Ops,
    Ratio,
    Share,
    Strength,
    Transform,
    torchvision_transform,
    torchvision_v2,
)
from trainers.options import checked, knobs
from trainers.randomness import ExampleDraws, derive, stream
from trainers.reference import call, is_reference, load_reference

if TYPE_CHECKING:
    from trainers.data.splits import Split

MIXING = ("mixup", "cutmix")  # what acts on batches, after all others
LOOKED_AT = 64  # examples, for the value of the background
Function = Callable[[Tensor, Generator], Tensor]


@dataclass(frozen=True)
class Augmentation:
    """Random transforms of single examples, decided by (seed, epoch, example) alone, on inputs as they are stored.

    Attributes:
        transform: Applied to each example by itself, where it is read: maps (input, generator) to an input of the same
            kind; None for none.
        seed: Of the run.
        epoch: Whose turn it is.
        batch: Applied to whole batches after that, on the device where the data are used.
        fill: What transforms of batches put where nothing was.
    """

    transform: Function | None
    seed: int
    epoch: int = 0
    batch: tuple[BatchTransform, ...] = ()
    fill: float = 0

    def one(self, stored: Tensor, example: int, epoch: int | None = None) -> Tensor:
        """The input of the example at this position of the source, as an epoch sees it before whole batches.

        Raises:
            ValueError: If the transform fails, naming the example.
        """
        assert self.transform is not None
        number = self.epoch if epoch is None else epoch
        try:
            return self.transform(stored, stream(self.seed, f"augmentation {number} {example}"))
        except ValueError as error:
            raise ValueError(f"example {example} of the source: {error}") from error

    def whole(self, stored: Shaped[Tensor, "n ..."], examples: Int[Tensor, " n"]) -> Shaped[Tensor, "n ..."]:
        """A batch, on its device, as this epoch sees it; `examples` are positions in the source."""
        examples = examples.to(stored.device)
        for place, transform in enumerate(self.batch):
            key = derive(self.seed, f"augmentation {self.epoch} of batches, {place}")
            stored = transform(stored, ExampleDraws(key, examples), self.fill)
        return stored


# -- by name -----------------------------------------------------------------------------------------------------------


def resized_crop(
    *, scale: tuple[Share, Share] = (0.08, 1.0), ratio: tuple[Ratio, Ratio] = (3 / 4, 4 / 3)
) -> ImageTransform:
    """A random part of the image, resized to its size."""
    torchvision_v2("resized_crop")
    return ImageTransform(f"{TORCHVISION}RandomResizedCrop", partial(_resized_crop, scale=scale, ratio=ratio))


def _resized_crop(image: Tensor, **options: Any) -> Any:
    return _resized_to(tuple(image.shape[-2:]), **options)(image)


@cache
def _resized_to(size: tuple[int, int], **options: Any) -> Any:
    return torchvision_transform("RandomResizedCrop", size=size, antialias=True, **options)


def randaugment(*, num_ops: Ops = 2, magnitude: Magnitude = 9) -> ImageTransform:
    """Operations of a list of 14, drawn at random, all of one strength."""
    return _of_torchvision("RandAugment", num_ops=num_ops, magnitude=magnitude)


def trivialaugment() -> ImageTransform:
    """One operation of a list of 14, of random strength."""
    return _of_torchvision("TrivialAugmentWide")


def color_jitter(
    *, brightness: Strength = 0.4, contrast: Strength = 0.4, saturation: Strength = 0.4, hue: Hue = 0.0
) -> ImageTransform:
    """Brightness, contrast, saturation and hue changed at random."""
    return _of_torchvision("ColorJitter", brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)


def _of_torchvision(name: str, **options: Any) -> ImageTransform:
    return ImageTransform(f"{TORCHVISION}{name}", torchvision_transform(name, **options))


@dataclass(frozen=True)
class AugmentationEntry:
    """An augmentation by name.

    Attributes:
        make: Its keyword arguments are its options.
        help: One line.
        needs: "signals" for images and signals, "images" for images alone, "bytes" for images stored as uint8; "any"
            for every input of floating point.
    """

    make: Callable[..., Transform | MixUp | CutMix]
    help: str
    needs: str = "signals"


AUGMENTATIONS: dict[str, AugmentationEntry] = {
    "crop": AugmentationEntry(
        Crop, "Pad each side by `pad` (an eighth of it; 4 at 32) with zeros, then cut the old size at a random place."
    ),
    "flip": AugmentationEntry(Flip, "Mirror left and right, with probability 1/2."),
    "cutout": AugmentationEntry(
        Cutout, "A square hole of side `size` (half the image) around a random pixel (DeVries and Taylor 2017)."
    ),
    "resized_crop": AugmentationEntry(
        resized_crop, "A random part of the area, `scale` 0.08 to 1 and `ratio` 3/4 to 4/3, at the old size.", "images"
    ),
    "randaugment": AugmentationEntry(
        randaugment, "RandAugment with `num_ops` 2 and `magnitude` 9 (Cubuk et al. 2020); torchvision's.", "bytes"
    ),
    "trivialaugment": AugmentationEntry(
        trivialaugment, "TrivialAugment, wide (Mueller and Hutter 2021); torchvision's.", "bytes"
    ),
    "color_jitter": AugmentationEntry(
        color_jitter, "Brightness, contrast, saturation by up to 0.4, hue by up to 0; torchvision's.", "bytes"
    ),
    "mixup": AugmentationEntry(
        MixUp, "Batches mixed with themselves in the ratio Beta(`alpha`, `alpha`), 0.2 (Zhang et al. 2018).", "any"
    ),
    "cutmix": AugmentationEntry(
        CutMix, "A box of each image from another one of the batch, `alpha` 1 (Yun et al. 2019)."
    ),
}


@dataclass(frozen=True)
class Given:
    """One entry of `augment`, such as cutout:8, randaugment:num_ops=2,magnitude=9 or module:function:strength=3.

    Attributes:
        name: In `AUGMENTATIONS`, or module:function.
        options: All of them, checked; of a reference those that were given.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str) -> "Given":
        """From text.

        Raises:
            ValueError: If there is no such augmentation, or the options are not its own.
        """
        name, _, rest = text.partition(":")
        if name in AUGMENTATIONS:
            make = AUGMENTATIONS[name].make
            return cls(name, checked(make, _options(rest, make, text), owner=f"`augment` {name!r}"))
        module, (function, _, rest) = name, rest.partition(":")
        if not function or not all(part.isidentifier() for part in (*module.split("."), *function.split("."))):
            raise ValueError(
                f"`augment` {text!r} is unknown; there are {', '.join(AUGMENTATIONS)}, options as in cutout:8 or "
                f"randaugment:num_ops=2,magnitude=9, any of torchvision as {TORCHVISION}GaussianBlur:kernel_size=3, or "
                f"your own as module:function.{nearest(name, AUGMENTATIONS)}"
            )
        return cls(f"{module}:{function}", _options(rest, None, text))

    def __str__(self) -> str:
        options = ",".join(f"{k}={v!r}".replace(" ", "") for k, v in self.options.items() if v is not None)
        return f"{self.name}:{options}" if options else self.name

    @property
    def needs_trust(self) -> bool:
        """Whether it runs code of the user's own."""
        return is_reference(self.name) and not self.name.startswith(TORCHVISION)

    def made(self, *, trust: bool = True) -> Transform | MixUp | CutMix:
        """The augmentation itself.

        Raises:
            ImportError: If torchvision is needed and not installed.
            PermissionError: If it is the user's own and `trust` is False.
            ValueError: If a reference cannot be loaded, or does not take the options.
        """
        if self.name in AUGMENTATIONS:
            return AUGMENTATIONS[self.name].make(**self.options)
        if not self.needs_trust:
            return _of_torchvision(self.name.removeprefix(TORCHVISION), **self.options)
        function = load_reference(self.name, trust=trust)
        transform = call(f"`augment` {self.name!r}", function, **self.options)
        if not callable(transform):
            raise ValueError(
                f"`augment` {self.name!r} must return a transform, a function of one stored input, got "
                f"{type(transform).__name__}."
            )
        return ImageTransform(self.name, transform)


def spelled(augment: Sequence[str]) -> tuple[str, ...]:
    """The same with all options by name, and what mixes batches last, as it is applied.

    Raises:
        ValueError: If one is unknown, or mixes in the same way as one before.
    """
    given = [Given.read(text) for text in augment]
    mixing = sorted(one.name for one in given if one.name in MIXING)
    if len(set(mixing)) < len(mixing):
        raise ValueError(f"`augment` names {mixing[0]!r} twice, got {tuple(augment)}: leave one of them out.")
    return tuple(str(one) for one in sorted(given, key=lambda one: one.name in MIXING))


def augmentation(
    augment: Sequence[str],
    train: "Split",
    *,
    classes: int,
    seed: int,
    fill: float | None = None,
    name: str = "",
    trust: bool = True,
) -> tuple[Augmentation | None, Mixing | None]:
    """What a configuration's `augment` does: to single examples, and to batches.

    Args:
        augment: Names, with options.
        train: What is trained on; the transforms are tried on its first example.
        classes: Number of classes.
        seed: Of the run.
        fill: What stored inputs have where nothing is; None is the smallest value of the first examples.
        name: Of the data, for messages.
        trust: False refuses a user's own transforms.

    Returns:
        Both; None where there is none.

    Raises:
        ValueError: If one does not fit the inputs.
        ImportError: If torchvision is needed and not installed.
        PermissionError: For a user's own without `trust`.
    """
    if not augment:
        return None, None
    stored, transforms = train.reader().stored, list[Transform]()
    (example,) = stored.first(1)
    mixers: dict[str, MixUp | CutMix] = {}
    for given in map(Given.read, augment):
        _require(given, example, name)
        made = given.made(trust=trust)
        if isinstance(made, MixUp | CutMix):
            mixers[given.name] = made
        else:
            transforms.append(made)
    mixing = Mixing(tuple(mixers[way] for way in MIXING if way in mixers), classes, seed) if mixers else None
    if not transforms:
        return None, mixing
    if fill is None:
        fill = float(min(x.min() for x in stored.first(LOOKED_AT)))
    alone = 1 + max((i for i, t in enumerate(transforms) if isinstance(t, ImageTransform)), default=-1)
    batch = tuple(t for t in transforms[alone:] if not isinstance(t, ImageTransform))
    found = Augmentation(Chain(tuple(transforms[:alone]), fill) if alone else None, seed, batch=batch, fill=fill)
    with other_randomness(0):
        tried = found.one(example, 0) if alone else example
        found.whole(tried[None], torch.tensor([0]))
    return found, mixing


def _require(given: Given, example: Tensor, data: str) -> None:
    """Check that inputs are of the kind that a named augmentation needs."""
    if given.name not in AUGMENTATIONS:
        return
    needs, shape = AUGMENTATIONS[given.name].needs, tuple(example.shape)
    kinds = {
        "any": (example.is_floating_point() or example.dtype == torch.uint8, "inputs of floating point"),
        "signals": (example.ndim in (2, 3) and example.dtype != torch.int64, "images (c, h, w) or signals (c, length)"),
        "images": (example.ndim == 3 and example.dtype != torch.int64, "images (c, h, w)"),
        "bytes": (
            example.ndim == 3 and example.dtype == torch.uint8 and len(example) in (1, 3),
            "images (c, h, w) of torch.uint8 with 1 or 3 channels, since its operations are defined by shades from 0 "
            "to 255",
        ),
    }
    fits, wanted = kinds[needs]
    if not fits:
        raise ValueError(
            f"`augment` {given.name!r} needs {wanted}, and the inputs of {data!r} are {example.dtype} of shape "
            f"{shape}: leave it out."
        )


def _options(text: str, make: Callable[..., Any] | None, whole: str) -> dict[str, Any]:
    """Options from text as in 8 or pad=4,size=(8,8): Python's literals, with words for strings.

    Raises:
        ValueError: If it is no such text, or has a value without a name where there is no first option.
    """
    try:
        found = ast.parse(f"_({text})", mode="eval").body
        if not isinstance(found, ast.Call) or not isinstance(found.func, ast.Name):
            raise SyntaxError("more than options")
        values = {keyword.arg: _literal(keyword.value) for keyword in found.keywords if keyword.arg is not None}
        first = next(iter(knobs(make)), None) if make is not None else None
        if len(found.args) > (first is not None and first not in values) or len(values) < len(found.keywords):
            raise SyntaxError("a value without a name")
        return {**({str(first): _literal(found.args[0])} if found.args else {}), **values}
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ValueError(
            f"`augment` {whole!r}: options are written name=value, with commas between them, numbers or words, as in "
            f"randaugment:num_ops=2,magnitude=9; the first may go without its name, as in cutout:8."
        ) from None


def _literal(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)
