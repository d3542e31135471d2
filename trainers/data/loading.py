"""Data sets, split: train, validation, test and shifted copies of the test set, decided by a seed."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Generator, Tensor

from landscape.naming import nearest
from landscape.randomness import source_of
from trainers.data.corruptions import CORRUPTIONS, corrupt
from trainers.data.graphs import Graph
from trainers.data.items import ItemInputs, targets_as_stored
from trainers.data.sources.builtin import diabetes, digit_marks, digits, mnist1d
from trainers.data.sources.folders import Reading
from trainers.data.sources.functions import from_function
from trainers.data.sources.named import SCHEMES, from_files, named
from trainers.data.sources.networks import csbm, karate
from trainers.data.sources.source import Shades, Source
from trainers.data.sources.text import TextReading
from trainers.data.splits import DataBundle, ShiftedSplits, Split, stratified_order
from trainers.data.spurious import patch_codes, stamp
from trainers.data.standardising import standardised
from trainers.randomness import check_seed, stream
from trainers.reference import is_reference, load_reference, well_formed

__all__ = ["DATASETS", "DataBundle", "DatasetEntry", "ShiftedSplits", "Split", "load_dataset", "noisy_labels"]

USUAL = 500  # validation examples
DONE = -1


@dataclass(frozen=True)
class DatasetEntry:
    """A data set that is built in.

    Attributes:
        read: The function that reads it.
        help: One line.
        validation_size: Validation examples by default, where it has too few for the usual number.
    """

    read: Callable[[], Source]
    help: str
    validation_size: int = USUAL


DATASETS: dict[str, DatasetEntry] = {
    "digits": DatasetEntry(digits, "1,797 handwritten digits of 8 x 8 pixels, 10 classes; comes with scikit-learn."),
    "mnist1d": DatasetEntry(mnist1d, "5,000 generated signals of 40 points, 10 classes; needs landscape-lab[mnist1d]."),
    "diabetes": DatasetEntry(
        diabetes,
        "442 patients, ten numbers each and one to be told, for `task` regression; standardised on the training part; "
        "comes with scikit-learn.",
        validation_size=88,
    ),
    "karate": DatasetEntry(
        karate, "34 members of a club and their friendships, for `task` nodes; comes with networkx.", validation_size=8
    ),
    "csbm": DatasetEntry(
        csbm,
        "A generated graph of 1,000 nodes, 4 classes, 32 noisy features, for `task` nodes.",
        validation_size=200,
    ),
    "digit_marks": DatasetEntry(
        digit_marks, "The digits with four marks (even, prime, above four, loop), for `task` multilabel."
    ),
}


def load_dataset(
    name: str,
    *,
    train_size: int | None = None,
    validation_size: int | None = USUAL,
    test_size: int | None = None,
    classes: Sequence[int] | None = None,
    label_noise: float = 0.0,
    spurious: float | None = None,
    seed: int = 0,
    labels: bool = True,
    numbers: bool = False,
    columns: Sequence[str] = (),
    trust: bool = True,
    input_size: int | None = None,
    on_corrupt: str = "refuse",
    digest: str | None = None,
    text: TextReading | None = None,
) -> DataBundle:
    """Read a data set and split it, without overlap.

    One random order of the source, decided by `seed` and stratified (any stretch of it has every class nearly in
    proportion), is cut into test, validation and train, in this order. So test and validation do not depend on
    `train_size`, and a larger train set begins with the smaller. Where the source has a test set of its own, test is
    taken from it, and the rest from the other examples; a validation set of its own is kept whole and as it is,
    whatever `validation_size`.

    Each purpose has its own random stream, indexed by the source: label noise leaves the split as it is, an example's
    noisy label does not depend on `train_size`, and what is wrong at one noise rate is wrong, in the same way, at every
    higher one.

    Args:
        name: A name in `DATASETS`; `scheme:PATH` with a scheme of `trainers.data.sources.named.SCHEMES`; or
            `module:function` (`trainers.data.sources.functions.from_function`), which runs code.
        train_size: Examples to train on; None means all that are left.
        validation_size: Examples for validation, 0 included; None means 500, or none of a data set that has not so many
            beside the test; 500 is 88 of diabetes, which has not so many.
        test_size: Examples for the test; None means 697 for digits, else the whole official test set, and a fifth of
            data without one.
        classes: Only examples of these classes, which are numbered anew in this order; None takes all.
        label_noise: Probability with which a train label is replaced by a uniform draw over all classes; of these, one
            in `classes` is the true label again. Other targets are replaced by that of an example drawn uniformly from
            all of the data.
        spurious: Probability q that a patch in the corner names the label (in train, the label given to training), see
            `trainers.data.spurious`; None for no patch. In `ood["spurious"]` the patch names a random class.
        seed: Decides everything that is random here.
        labels: Whether the targets must be labels; False for a task of one's own, on data that a function returns.
        numbers: Whether targets that are no labels are numbers: then they are standardised where the data ask for it,
            and of shape (n, 1) where they were (n,).
        columns: Those of csv:FILE that are targets, by name; by default the last one.
        trust: False refuses references, for names that come out of a file.
        input_size: Side to which images of files are brought; None takes them as they are.
        on_corrupt: "refuse" stops at images that cannot be read; "skip" leaves them out, after reading all once.
        digest: Fingerprint that named files must have; None takes any.
        text: How text becomes sequences, for `task` language; None for other tasks.

    Returns:
        The splits, on the CPU. Corrupted copies of the test set are in `ood` where inputs are images or signals.

    Raises:
        ValueError: If the name is unknown or an argument out of range.
        ImportError: If a package for the data set is missing.
        PermissionError: If the name is a reference and `trust` is False.
    """
    _check_arguments(train_size, validation_size, test_size, label_noise, spurious)
    check_seed(seed)
    if name in DATASETS and validation_size == USUAL:
        validation_size = DATASETS[name].validation_size
    reading = Reading(input_size, on_corrupt, tuple(columns), text)
    if named(name) is not None:
        source = from_files(name, reading, labels=labels, digest=digest)
    elif reading != Reading(text=text):
        raise ValueError(
            f"`input_size` and `on_corrupt` are for files of images, and `target_columns` for csv:FILE, got `dataset` "
            f"{name!r}: leave them out."
        )
    else:
        made = _source(
            name, train_size, USUAL if validation_size is None else validation_size, seed, labels=labels, trust=trust
        )
        if isinstance(made, DataBundle):
            if classes is not None:
                raise ValueError(
                    f"`classes` {list(classes)} cannot be asked of a `DataBundle` of one's own ({name!r}), which is "
                    f"taken as it is: leave it out, or let the function do it."
                )
            return _as_made(replace(made, name=name), train_size, test_size, label_noise, spurious)
        source = made
    if spurious is not None and not source.images:
        raise ValueError(f"`spurious` needs images or signals, and those of {name!r} have shape {source.shape}.")
    if spurious is not None and source.side is not None:
        raise ValueError(f"`spurious` and `input_size` do not go together for {name!r}: leave one of them out.")
    if spurious is not None and not isinstance(source.inputs, Tensor):
        raise ValueError(
            f"`spurious` needs the data in memory, and those of {name!r} are read one by one: let the data set say "
            "`in_memory = True`, if they fit."
        )
    chosen = torch.ones(len(source.y), dtype=torch.bool)
    if classes is not None:
        source, chosen = _among(source, classes, name, labels=labels)
    if numbers and source.y.ndim == 1:
        source = replace(source, y=source.y[:, None])
    cut = _cut(source, chosen, train_size, validation_size, test_size, seed)
    train_index = cut[2]
    inputs = _parts(source, cut)
    if source.standardise:
        source, inputs = _standardised(source, inputs, train_index, numbers=numbers)

    given, noise = source.y.clone(), stream(seed, "label noise")
    if labels:
        noisy = noisy_labels(source.y, label_noise, classes=source.classes, generator=noise)
        given[train_index] = noisy[train_index]
    elif label_noise:
        given[train_index] = noisy_targets(source.y, label_noise, generator=noise)[train_index]

    codes = None
    if spurious is not None:
        codes = patch_codes(given, spurious, classes=source.classes, generator=stream(seed, "patch"))

    def split(part: int) -> Split:
        index = cut[part]
        plain = Split(inputs[part], given[index], source.y[index], index, source.pixels, side=source.side)
        return plain if codes is None else stamped(plain, codes[index], source.classes, source.shades)

    test = split(0)
    makers: dict[str, Callable[[], Split]] = {}
    if source.images:
        for kind in CORRUPTIONS:
            for severity in (1, 2, 3):
                makers[f"{kind}:{severity}"] = functools.partial(_corrupted, test, source.shades, kind, severity, seed)
    if spurious is not None:
        makers["spurious"] = functools.partial(_random_patches, test, source.classes, source.shades, seed)
    for kind, (x, y) in source.registers.items():
        makers[kind] = functools.partial(Split, x, y, y, torch.arange(len(y)))
    return DataBundle(
        name=name,
        train=split(2),
        validation=split(1),
        test=test,
        ood=ShiftedSplits(makers),
        classes=source.classes,
        shape=source.shape,
        names=source.names,
        official_test=None if source.test_start is None else range(source.test_start, len(source.y)),
        fill=0 if source.pixels is not None else None if source.shades is None else source.shades.fill,
        origin=source.origin,
        selected=() if classes is None else tuple(classes),
        graph=source.graph,
        text=source.text,
        shifted=tuple(source.registers),
    )


def read_source(name: str, *, input_size: int | None = None, text: TextReading | None = None) -> Source:
    """All examples of a data set by name, before they are split.

    Args:
        name: As for `load_dataset`.
        input_size: Side to which images of files are brought; other data do not read it.
        text: How text becomes sequences.

    Raises:
        ValueError: If it is unknown, or a function that splits its data by itself.
    """
    if (scheme := named(name)) is not None:
        return from_files(name, Reading(input_size if scheme.images else None, text=text))
    source = _source(name, None, 0, 0, labels=True, trust=True)
    if isinstance(source, DataBundle):
        raise ValueError(f"`dataset` {name!r} returns a bundle of splits: let it return data sets, (train, test).")
    return source


def read_graph(name: str, *, trust: bool = True) -> Graph | None:
    """The graph whose nodes are the examples of a data set by name; None for other data.

    Raises:
        PermissionError: If the name is a reference and `trust` is False.
    """
    if named(name) is not None or not (name in DATASETS or is_reference(name)):
        return None
    made = _source(name, None, 0, 0, labels=False, trust=trust)
    return made.graph


def noisy_labels(
    labels: Int[Tensor, " n"], rate: float, *, classes: int, generator: Generator | None = None
) -> Int[Tensor, " n"]:
    """Replace each label, with probability `rate`, by a uniform draw over all classes, its own included.

    The expected share of wrong labels is rate · (1 - 1 / classes). From one state of the generator, the labels
    replaced at one rate are replaced by the same at every higher rate. A generator of None means a fresh one from
    seed 0.
    """
    generator = source_of(generator)
    hit = torch.rand(len(labels), generator=generator, dtype=torch.float64) < rate
    return torch.where(hit, torch.randint(classes, (len(labels),), generator=generator), labels)


def noisy_targets(
    targets: Shaped[Tensor, "n ..."], rate: float, *, generator: Generator | None = None
) -> Shaped[Tensor, "n ..."]:
    """Replace each target, with probability `rate`, by that of an example drawn uniformly from all, itself included.

    So the targets keep their distribution, and those replaced say nothing of their inputs; our definition, which is
    that of `noisy_labels` for classes of one size. From one state of the generator, the targets replaced at one rate
    are replaced by the same at every higher rate. A generator of None means a fresh one from seed 0.
    """
    generator, n = source_of(generator), len(targets)
    hit = torch.rand(n, generator=generator, dtype=torch.float64) < rate
    return targets[torch.where(hit, torch.randint(n, (n,), generator=generator), torch.arange(n))]


def _standardised(
    source: Source, inputs: list[Tensor | ItemInputs], train: Int[Tensor, " n"], *, numbers: bool
) -> tuple[Source, list[Tensor | ItemInputs]]:
    """Inputs, and targets that are numbers, by the mean and deviation of the training examples, without their noise."""
    held = [part for part in inputs if isinstance(part, Tensor)]
    done, of_inputs = standardised(held, held[2])
    origin = {**source.origin, "standardised_inputs": of_inputs}
    if not numbers:
        return replace(source, origin=origin), [*done]
    (y,), of_targets = standardised([source.y], source.y[train])
    return replace(source, y=y, origin={**origin, "standardised_targets": of_targets}), [*done]


def _source(
    name: str, train_size: int | None, validation_size: int, seed: int, *, labels: bool, trust: bool
) -> Source | DataBundle:
    if is_reference(name) and well_formed(name):
        function = load_reference(name, trust=trust, key="dataset")
        return from_function(
            function, name, train_size=train_size, validation_size=validation_size, seed=seed, labels=labels
        )
    if name not in DATASETS:
        raise ValueError(
            f"`dataset` {name!r} is unknown; there are {', '.join(DATASETS)}, "
            f"{', '.join(f'{scheme}:PATH' for scheme in SCHEMES)}, or your own as `module:function`."
            + nearest(name.partition(":")[0], [*DATASETS, *SCHEMES])
        )
    source = DATASETS[name].read()
    targets_as_stored(source.y, repr(name), labels=labels)
    return source


def _among(source: Source, classes: Sequence[int], name: str, *, labels: bool) -> tuple[Source, Bool[Tensor, " n"]]:
    """A source whose labels number these classes alone, and which of its examples are of them."""
    known = labels and all(0 <= c < source.classes for c in classes)
    if not known or len(set(classes)) < max(2, len(classes)):
        there = f"whose labels go from 0 to {source.classes - 1}" if labels else "whose targets are no labels"
        raise ValueError(
            f"`classes` must be two or more different labels of the data, got {list(classes)} for {name!r}, {there}."
        )
    others = len(classes)  # a class of their own, so that the split is stratified as ever
    number = torch.full((source.classes,), others)
    number[list(classes)] = torch.arange(others)
    y = number[source.y]
    names = tuple(source.names[c] for c in classes) if source.names else ()
    return replace(source, y=y, classes=others, names=names), y < others


def _cut(
    source: Source,
    chosen: Bool[Tensor, " n"],
    train_size: int | None,
    validation_size: int | None,
    test_size: int | None,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of test, validation and train among the chosen examples."""
    n, start, own = int(chosen.sum()), source.test_start, source.validation_start
    generator = stream(seed, "split")
    if start is None:
        order = pool = stratified_order(source.y, generator)
    else:
        pool = stratified_order(source.y[: start if own is None else own], generator)
        order = start + stratified_order(source.y[start:], generator)
    pool, order = pool[chosen[pool]], order[chosen[order]]
    usual = source.test_size and max(1, round(source.test_size * n / len(source.y)))
    wanted = test_size or usual or len(order)
    if wanted > len(order):
        raise ValueError(f"`test_size` must be between 1 and {len(order)}, the examples there are, got {wanted}.")
    test = order[:wanted]
    rest = pool[wanted:] if start is None else pool
    if own is not None:
        assert start is not None
        if train_size is not None and train_size > len(rest):
            raise ValueError(
                f"`train_size` must be between 1 and {len(rest)}, the training examples, got {train_size}."
            )
        return test, own + chosen[own:start].nonzero()[:, 0], rest[:train_size]
    if validation_size is None:
        validation_size = USUAL if len(rest) > USUAL else 0
    if validation_size >= len(rest):
        raise ValueError(
            f"`validation_size` must leave some of the {len(rest)} examples that are not test to train on, "
            f"got {validation_size}{', the default' if validation_size == USUAL else ''}: make it smaller, such as "
            f"`--validation-size {len(rest) // 5}`."
        )
    left = len(rest) - validation_size
    if train_size is not None and train_size > left:
        raise ValueError(
            f"`train_size` must be between 1 and {left} (of {n} examples, {wanted} are for test, {validation_size} "
            f"for validation), got {train_size}."
        )
    return test, rest[:validation_size], rest[validation_size:][:train_size]


def _parts(source: Source, cut: tuple[Tensor, Tensor, Tensor]) -> list[Tensor | ItemInputs]:
    """The inputs of test, validation and train, in memory at most once beside the source's own if that is shared.

    Inputs that nobody else has are put in the order of the splits where they lie; where the splits take less than half
    of them, the rest is let go.
    """
    if not isinstance(source.inputs, Tensor):
        return [source.inputs] * len(cut)
    used, n = sum(len(index) for index in cut), len(source.y)
    if source.shared or 2 * used < n:
        return [source.inputs[index] for index in cut]
    left = torch.ones(n, dtype=torch.bool)
    for index in cut:
        left[index] = False
    reorder(source.inputs, torch.cat([*cut, left.nonzero()[:, 0]]))
    return list(source.inputs[:used].split([len(index) for index in cut]))


def reorder(x: Shaped[Tensor, "n ..."], order: Int[Tensor, " n"]) -> None:
    """Put x[order] in the place of x, along the cycles of the permutation: one row is in memory twice."""
    rows, source = x.numpy(), order.tolist()
    for start in range(len(source)):
        if source[start] in (start, DONE):
            continue
        kept, at = rows[start].copy(), start
        while source[at] != start:
            rows[at] = rows[source[at]]
            following = source[at]
            source[at] = DONE
            at = following
        rows[at], source[at] = kept, DONE


def _as_made(
    data: DataBundle, train_size: int | None, test_size: int | None, label_noise: float, spurious: float | None
) -> DataBundle:
    """A user's own bundle, as it is, but for the first `train_size` training examples where fewer are asked for."""
    for key, given in (("test_size", test_size), ("label_noise", label_noise), ("spurious", spurious)):
        if given:
            raise ValueError(
                f"`{key}` {given!r} cannot be asked of a `DataBundle` of one's own ({data.name!r}), which is taken as "
                f"it is: leave it out, or let the function do it."
            )
    if train_size is not None and train_size > len(data.train):
        raise ValueError(
            f"`train_size` {train_size} was asked for, and {data.name!r} returned a `DataBundle` with "
            f"{len(data.train)} training examples: make it smaller, or leave it out."
        )
    if train_size is not None:
        return replace(data, train=data.train.some(torch.arange(train_size)))
    return data


def _check_arguments(
    train_size: int | None,
    validation_size: int | None,
    test_size: int | None,
    label_noise: float,
    spurious: float | None,
) -> None:
    sizes = (("train_size", train_size, 1), ("validation_size", validation_size, 0), ("test_size", test_size, 1))
    for key, size, least in sizes:
        if size is None:
            continue
        if not isinstance(size, int) or isinstance(size, bool) or size < least:
            raise ValueError(f"`{key}` must be a whole number >= {least}, got {size!r}.")
    if not 0 <= label_noise <= 1:
        raise ValueError(f"`label_noise` must be a probability in [0, 1], got {label_noise!r}.")
    if spurious is not None and not 0 <= spurious <= 1:
        raise ValueError(f"`spurious` must be a probability in [0, 1], or None for no patch, got {spurious!r}.")


def stamped(split: Split, codes: Tensor, classes: int, shades: Shades | None) -> Split:
    """A split whose inputs have a patch that names a class, see `trainers.data.spurious.stamp`."""
    assert isinstance(split.inputs, Tensor)
    low, high = (0, 255) if shades is None else (shades.low, shades.high)  # of bytes
    return replace(split, inputs=stamp(split.inputs, codes, classes=classes, low=low, high=high))


def _corrupted(test: Split, shades: Shades | None, kind: str, severity: int, seed: int) -> Split:
    x = replace(test, side=None).x
    shades = shades or Shades.of(x)
    generator = stream(seed, f"corruption {kind}")
    x = corrupt(x, kind, severity, generator=generator, fill=shades.fill, scale=shades.scale)
    return replace(test, inputs=x, pixels=None, dtype=None)


def _random_patches(test: Split, classes: int, shades: Shades | None, seed: int) -> Split:
    codes = torch.randint(classes, (len(test),), generator=stream(seed, "random patch"))
    return stamped(test, codes, classes, shades)
