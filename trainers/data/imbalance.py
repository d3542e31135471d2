"""Training data of which some classes have many more examples than others: weights of classes, and balanced draws."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Int
from torch import Generator, Tensor


def class_weights(
    setting: Literal["balanced"] | Sequence[float], labels: Int[Tensor, " n"], classes: int
) -> tuple[float, ...]:
    """What an example of each class counts for in the training loss.

    "balanced" is n / (K n_c), as in scikit-learn, for n examples of K classes, n_c of them of class c: every class
    counts for the same in all, and an example for 1 on average.

    Args:
        setting: "balanced", or one number a class, all above 0.
        labels: Those given to training.
        classes: K.

    Raises:
        ValueError: If there is not one number above 0 a class, or a class has no example to be weighed by.

    Source:
        King and Zeng (2001), Political Analysis 9(2).
    """
    if setting != "balanced":
        given = tuple(float(value) for value in setting)
        if len(given) != classes or not all(math.isfinite(value) and value > 0 for value in given):
            raise ValueError(
                f"`class_weights` must be 'balanced' or {classes} finite numbers above 0, one a class, got "
                f"{list(given)}; leave examples that are not to count out of the data."
            )
        return given
    counts = torch.bincount(labels.cpu(), minlength=classes)
    if not bool(counts.all()):
        missing = (counts == 0).nonzero()[:, 0].tolist()
        raise ValueError(
            f"`class_weights` 'balanced' needs training examples of every class, and of {len(missing)} classes, such "
            f"as {missing[0]}, there is none: raise `train_size`, or give one number a class."
        )
    return tuple((len(labels) / (classes * counts.double())).tolist())


def balanced_draw(labels: Int[Tensor, " n"], generator: Generator) -> Int[Tensor, " n"]:
    """Positions of n examples drawn with replacement, each with a probability in proportion to 1 / n_c.

    So every class that has examples is drawn equally often, on average.
    """
    labels = labels.cpu()
    return torch.multinomial(1 / torch.bincount(labels)[labels].double(), len(labels), True, generator=generator)
