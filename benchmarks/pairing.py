"""Times that are compared are taken in mirrored order, so that a drift of the machine's speed cancels.

They are the process's own processor time, which waits for other processes leave out; with one thread, on an idle
machine, it is the time of the clock.
"""

import statistics
import time
from collections.abc import Callable, Mapping

Step = Callable[[], object]


def mirrored(
    steps: Mapping[str, Step],
    *,
    rounds: int,
    inner: int = 1,
    warm_up: int = 1,
    clock: Callable[[], float] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each step in each round A B C C B A; two steps give the order A B B A.

    A steady drift adds the same to every step of a round, since each has the same mean position.

    Args:
        steps: What is timed, by name.
        rounds: Number of rounds; a round gives one number a step.
        inner: Calls that are timed together.
        warm_up: Calls of each step before the first round.
        clock: Tells the time in seconds; for a device, one that waits for it. None is the process's own time.

    Returns:
        Seconds a call, one for each round, by name.
    """

    clock = clock or time.process_time

    def spent(step: Step) -> float:
        start = clock()
        for _ in range(inner):
            step()
        return (clock() - start) / inner

    for step in steps.values():
        for _ in range(warm_up):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        first = {name: spent(step) for name, step in steps.items()}
        for name in reversed(list(steps)):
            seconds[name].append((first[name] + spent(steps[name])) / 2)
    return seconds


def quartiles(values: list[float]) -> dict[str, float]:
    """Median as "value", quartiles as "low" and "high" (the extremes where there are fewer than three values)."""
    if len(values) < 3:
        return {"value": statistics.median(values), "low": min(values), "high": max(values)}
    low, middle, high = statistics.quantiles(values, n=4)
    return {"value": middle, "low": low, "high": high}


def ratio(seconds: Mapping[str, list[float]], one: str, other: str) -> dict[str, float]:
    """Median and quartiles of time(one) / time(other), round by round."""
    return quartiles([a / b for a, b in zip(seconds[one], seconds[other], strict=True)])
