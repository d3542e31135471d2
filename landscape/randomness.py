"""Where a function's random numbers come from: the generator it is given, or a fresh one from seed 0."""

from torch import Generator

from landscape.checks.arguments import require_generator


def source_of(generator: Generator | None) -> Generator:
    """The generator given; for None a fresh one on the CPU from seed 0, so that each such call draws the same.

    Raises:
        ValueError: If it is something else, such as a seed.
    """
    if generator is None:
        return Generator().manual_seed(0)
    require_generator(generator)
    return generator
