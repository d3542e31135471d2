"""What lies between two models: is there a barrier, is a curve lower, did alignment help."""

import math
from typing import Any

from analysis.figures.surfaces.scales import compact, quantity, with_error
from analysis.surfaces.reading.remark import Remark, fine, mind, percent, wrong
from landscape.surfaces import Surface

CLEAR = 2.0  # standard errors above which a barrier is one


def is_between(surface: Surface) -> bool:
    """Whether a line is a way between two models."""
    return bool(surface.context.get("between"))


def barriers(surface: Surface, metric: str) -> list[Remark]:
    """Both barriers of a straight line, with the paired error of the examples."""
    told = (surface.context.get("between") or {}).get(metric) or {}
    if "B_lin" not in told:
        return []
    lin, top = told["B_lin"], told["B_max"]
    name = quantity(metric).name
    if not math.isfinite(float(lin["value"])):
        return [wrong("barrier", f"The {name} is not finite between the two models: there is no barrier to tell.")]
    text = (
        f"Between the two models the {name} rises by at most {_shown(lin, metric)} above the straight line between its "
        f"ends (B_lin, at a = {compact(float(lin['location']), 2)}), and by {_shown(top, metric)} above the higher end "
        "(B_max)"
    )
    if not float(lin["value"]) > CLEAR * float(lin["stderr"]):
        return [fine("barrier", f"{text}: no barrier beyond the error of the examples.")]
    return [fine("barrier", f"{text}: the two are not linearly connected.")]


def curve(surface: Surface, metric: str) -> list[Remark]:
    """The highest point of a fitted curve, its mean, and its length."""
    told = (surface.context.get("between") or {}).get(metric) or {}
    if "integral" not in told:
        return []
    length, straight = float(told["length"]), float(told["straight"])
    longer = f"; it is {compact(length / straight, 3)} times as long as the straight line" if straight else ""
    text = (
        f"Along the curve the {quantity(metric).name} is at most {_shown(told['max'], metric)} (at t = "
        f"{compact(float(told['argmax']), 2)}), and {_shown(told['integral'], metric)} on average by length{longer}. "
        "The curve was fitted for this: it shows that such a way exists, not that training would take it."
    )
    return [fine("curve", text)]


def alignment(surface: Surface) -> list[Remark]:
    """How much nearer permuting units brought the second model, and what was left in place."""
    told: dict[str, Any] = surface.context.get("passage") or {}
    if "distance_after" not in told:
        return []
    before, after = float(told["distance_before"]), float(told["distance_after"])
    text = (
        f"Permuting the second model's units, which changes no output, shortened the way from {compact(before, 3)} to "
        f"{compact(after, 3)} ({percent(1 - after / before)})"
    )
    left = told.get("left") or []
    if left:
        return [mind("alignment", f"{text}. Left in place: {'; '.join(map(str, left[:3]))}.")]
    return [fine("alignment", f"{text}.")]


def beyond(surface: Surface) -> list[Remark]:
    """What the parts of a line outside its ends are."""
    where = surface.grid.coordinates[0]
    if not (float(where[0]) < 0 or float(where[-1]) > 1):
        return []
    return [fine("beyond", "Left of 0 and right of 1 the line goes on beyond the models; barriers leave it out.")]


def statistics(surface: Surface) -> list[Remark]:
    """Where running statistics come from, for models that have any."""
    if surface.context.get("mode") == "recalibrate":
        return [fine("normalisation layers", "Running statistics are estimated anew at every point.")]
    if not surface.context.get("running_statistics"):
        return []
    text = (
        "Running statistics are interpolated with the weights, and in the middle they are nobody's own: a barrier may "
        "be theirs. Compare the way with statistics estimated anew."
    )
    return [mind("normalisation layers", text)]


def _shown(told: dict[str, Any], metric: str) -> str:
    q = quantity(metric)
    return with_error(float(told["value"]), float(told["stderr"]), q.factor) + (" %" if q.factor == 100 else "")
