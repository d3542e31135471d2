"""How far a perturbation goes: the radius at which the loss has risen by a given amount."""

import math
from collections.abc import Callable

CLOSE = 1e-3  # a rise is met within this share of the target
MOST = 60  # evaluations before the search is given up


def iso_loss_radius(
    rise: Callable[[float], float],
    target: float,
    *,
    start: float,
    largest: float,
    smallest: float,
) -> float | None:
    """Find a radius r at which the loss has risen by `target`, from a few evaluations.

    A bracket is found by steps of at most a factor 2 from `start`, shorter where the first rise is near the target;
    inside it, regula falsi with the Illinois rule on
    ln rise against ln r, where a rise that goes like a power of r is a straight line. If the rise crosses the target
    more than once, the crossing next to the bracket found first is taken.

    Args:
        rise: Maps a radius to L(θ + r u) - L(θ); NaN counts as above the target.
        target: Rise to reach, above 0.
        start: First guess, between `smallest` and `largest`.
        largest: Give up above it.
        smallest: Give up below it.

    Returns:
        The radius, or None if the target was not met in range: a direction in which the loss does not rise so far, or
        one in which it jumps.

    Raises:
        ValueError: If `target` is not above 0.
    """
    if not (math.isfinite(target) and target > 0):
        raise ValueError(f"`target` must be a finite rise of the loss above 0, got {target!r}.")

    def height(radius: float) -> float:
        ratio = rise(radius) / target
        return math.log(min(max(ratio, 1e-3), 1e3)) if not math.isnan(ratio) else math.log(1e3)

    near = math.log1p(CLOSE)
    low = high = math.log(start)
    h_low = h_high = height(start)
    # a rise between linear and quadratic in r is bracketed by this first step, and closely
    stride = min(math.log(2), 1.1 * abs(h_low))
    spent = 1
    while h_high < 0 and abs(h_high) > near:  # below the target: go outwards
        low, h_low = high, h_high
        if high >= math.log(largest) or spent >= MOST:
            return None
        high = min(high + stride, math.log(largest))
        stride = math.log(2)
        h_high = height(math.exp(high))
        spent += 1
    while h_low > 0 and abs(h_low) > near:  # above it: go inwards
        high, h_high = low, h_low
        if low <= math.log(smallest) or spent >= MOST:
            return None
        low = max(low - stride, math.log(smallest))
        stride = math.log(2)
        h_low = height(math.exp(low))
        spent += 1
    for u, h in ((low, h_low), (high, h_high)):
        if abs(h) <= near:
            return math.exp(u)

    moved = 0  # the end that the last step moved; if the same one moves again, the other's height is halved
    while spent < MOST and high - low > 1e-12:
        u = (low * h_high - high * h_low) / (h_high - h_low)
        h = height(math.exp(u))
        spent += 1
        if abs(h) <= near:
            return math.exp(u)
        if h < 0:
            low, h_low = u, h
            h_high = h_high / 2 if moved < 0 else h_high
            moved = -1
        else:
            high, h_high = u, h
            h_low = h_low / 2 if moved > 0 else h_low
            moved = 1
    return None
