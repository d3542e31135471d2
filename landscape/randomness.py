"""Where a function's random numbers come from: the generator it is given, or a fresh one from seed 0."""

import torch
from torch import Generator

from landscape.checks.arguments import require_generator


def source_of(generator: Generator | None, device: torch.device | str = "cpu") -> Generator:
    """The generator given; for None a fresh one from seed 0, so that each such call draws the same.

    Numbers are drawn where the generator lives, and then moved: one of the CPU gives the same numbers on every device,
    and one of the device none that have to travel. Kinds of devices draw other numbers from the same seed.

    Args:
        generator: What the caller was given.
        device: Of a fresh one: where what is drawn is used.

    Raises:
        ValueError: If it is something else, such as a seed.
    """
    if generator is None:
        return Generator(device).manual_seed(0)
    require_generator(generator)
    return generator
