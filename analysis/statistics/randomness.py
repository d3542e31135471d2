"""Where a statistic's random numbers come from: the generator it is given, or a fresh one from seed 0."""

import numpy as np

from landscape.checks.arguments import require_generator


def source_of(generator: np.random.Generator | None) -> np.random.Generator:
    """The generator given; for None a fresh one from seed 0, so that each such call draws the same.

    Raises:
        ValueError: If it is something else, such as a seed.
    """
    if generator is None:
        return np.random.default_rng(0)
    require_generator(generator, np.random.Generator)
    return generator
