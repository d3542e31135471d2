"""Whether the picture is whole, finite, above its noise, centred on a minimum, and fine enough."""

import math

import numpy as np
import torch

from analysis.figures.surfaces.marks import lowest_point, not_finite, pending
from analysis.figures.surfaces.scales import compact, shared_scale
from analysis.surfaces.context import number, prediction_of
from analysis.surfaces.reading.curvature import local_fit
from analysis.surfaces.reading.remark import Remark, counted, fine, mind, percent, shown, wrong
from landscape.surfaces import Surface
from landscape.surfaces.second_order import SecondOrder

CLEAR = 4.0  # standard errors that the range of a picture should have at least
JUMP = 0.35  # of the range between two neighbours: the shape between them is a guess
BALL = ("sam", "gsam", "obf", "randsam", "usam", "msam")  # methods whose ρ is a length in weight space
WITHIN, NEAR = 0.2, 0.1  # of the rise; of the reach
COARSE = 1.0  # steps of 1/√λ: the loss rises by half a nat within one


def wholeness(surface: Surface, metric: str) -> list[Remark]:
    """How many points were evaluated, filled in, or are still to be done."""
    n, done = int(surface.computed.numel()), int(surface.computed.sum())
    left = int(pending(surface, metric).sum())
    if left or not surface.whole:
        text = f"Only {done:,} of {counted(n, 'point')} were evaluated: run the same command again to finish the rest."
        return [wrong("whole", text)]
    if done < n:
        text = (
            f"{done:,} of {counted(n, 'point')} were evaluated; the others are interpolated, where the surface bends "
            "little."
        )
        return [fine("whole", text)]
    return [fine("whole", f"All {counted(n, 'point')} were evaluated.")]


def finiteness(surface: Surface, metric: str) -> list[Remark]:
    """Points where the model gave NaN or infinity."""
    bad = not_finite(surface, metric)
    centre = surface.centre.get(metric, (0.0, 0.0))[0]
    found = []
    if not math.isfinite(centre):
        found.append(wrong("finite", f"The model itself has no finite {metric}: it diverged, or is broken."))
    if bad.any():
        values = surface.values[metric].numpy()[bad]
        nan = int(np.isnan(values).sum())
        text = (
            f"{counted(int(bad.sum()), 'point')} of {bad.size:,} ({percent(bad.mean())}) have no finite value "
            f"({nan:,} NaN, {bad.sum() - nan:,} infinite); they are marked, and no level is drawn there."
        )
        found.append(mind("finite", text))
    return found


def noise(surface: Surface, metric: str) -> list[Remark]:
    """The range of the picture against the standard error of its points."""
    values = surface.values[metric].numpy()
    errors = surface.stderr[metric].numpy()
    finite = values[np.isfinite(values)]
    errors = errors[np.isfinite(errors)]
    if not len(finite) or not len(errors) or not np.median(errors) > 0:
        return []
    span, error = float(np.ptp(finite)), float(np.median(errors))
    text = (
        f"From the lowest to the highest point it is {shown(span, metric)}, {compact(span / error, 2)} standard errors "
        f"of a point ({shown(error, metric)}, from the choice of examples)"
    )
    if span < CLEAR * error:
        more = "All points share examples, so the shape is surer than the heights; others may show another."
        return [mind("noise", f"{text}. {more} Take more examples.")]
    return [fine("noise", f"{text}.")]


def centre(surface: Surface, metric: str) -> list[Remark]:
    """Whether the model is the lowest point of the slice, within the error."""
    value, error = surface.centre.get(metric, (math.nan, math.nan))
    lowest = lowest_point(surface, metric)
    if lowest is None or not math.isfinite(value):
        return []
    what = shown(value, metric)
    if not any(lowest):
        return [fine("minimum", f"The model, at {what}, is the lowest point of the picture.")]
    table = surface.values[metric].numpy()
    at = int(np.argmin(np.where(np.isfinite(table), table, math.inf)))
    least, other = float(table.ravel()[at]), float(surface.stderr[metric].numpy().ravel()[at])
    depth = value - least
    place = ", ".join(compact(a) for a in lowest)
    text = f"The lowest point of the picture is at ({place}), {shown(depth, metric)} below the model's {what}"
    both = 2 * math.hypot(error, other)
    if math.isfinite(both) and both > 0 and depth <= both:
        within = f"within twice the standard error of two independent points ({shown(both, metric)})"
        return [fine("minimum", f"{text}, {within}: no sign that the model is not at the minimum.")]
    reason = "training stopped before it, or the picture is of other examples or another loss than was trained on"
    return [mind("minimum", f"{text}: the model is not the minimum of this slice ({reason}).")]


def resolution(surface: Surface, metric: str) -> list[Remark]:
    """Whether neighbours are near enough to show what lies between them."""
    found = []
    scale = shared_scale([surface], metric) if np.isfinite(surface.values[metric].numpy()).any() else None
    if scale is None:
        return []
    places = np.minimum(scale.positions(surface.values[metric].numpy()), 1.0)
    jumps = [abs(np.diff(places, axis=i)) for i in range(places.ndim)]
    jump = max((float(np.nanmax(j)) for j in jumps if np.isfinite(j).any()), default=0.0)
    if jump > JUMP and not len(np.unique(places[np.isfinite(places)])) <= 1:
        text = (
            f"Between two neighbouring points it changes by up to {percent(jump)} of the drawn range: take more points."
        )
        found.append(mind("resolution", text))
    fit = local_fit(surface, metric)
    exact = prediction_of(surface, metric)
    expansion = exact or (fit.expansion if fit is not None else None)
    if expansion is None:
        return found
    for i, c in enumerate(surface.grid.coordinates):
        bend = float(expansion.curvature[i, i])
        if not bend > 0:
            continue
        step = float((c[1:] - c[:-1]).max())
        unit = bend**-0.5  # where the loss has risen by a half
        if step > COARSE * unit:
            text = (
                f"A step along axis {i + 1}, {compact(step)}, is longer than the bend there, 1/√(curvature) = "
                f"{compact(unit)}: the valley falls between the points. Take more points, or a smaller radius."
            )
            found.append(wrong("resolution", text))
    if not found:
        found.append(fine("resolution", "Neighbouring points are near enough to show how it bends."))
    return found


def reach(surface: Surface, metric: str) -> list[Remark]:
    """How far the second order holds, and how far the model was perturbed in training, against the picture's width."""
    exact = prediction_of(surface, metric)
    found = [] if exact is None else [_second_order_holds(surface, metric, exact)]
    rho = number(surface, "rho")
    ends = [float(c.abs().max()) for c in surface.grid.coordinates]
    furthest = max(float(axis.get("length") or 0.0) * end for axis, end in zip(surface.axes, ends, strict=True))
    if surface.context.get("method") in BALL and rho > 0 and furthest > 0:
        text = (
            f"The picture reaches {compact(furthest)} in weight space from the model; training perturbed it by ρ = "
            f"{compact(rho)}, {percent(rho / furthest)} of that."
        )
        found.append(fine("reach", text))
    return found


def _second_order_holds(surface: Surface, metric: str, exact: SecondOrder) -> Remark:
    """Up to what part of the reach of each axis the prediction errs by less than a fifth of the rise, and of noise."""
    mesh = surface.grid.mesh()
    predicted = exact.predict(torch.stack(mesh, -1)).numpy()
    values = surface.values[metric].numpy()
    parts = [abs(m.numpy()) / float(c.abs().max()) for m, c in zip(mesh, surface.grid.coordinates, strict=True)]
    far = np.max(parts, axis=0)
    slack = 1e-4 * max(abs(exact.value), 1e-12)  # rounding, where the rise itself is tiny
    bad = ~(abs(values - predicted) <= WITHIN * abs(values - exact.value) + slack)
    if not bad.any():
        return fine(
            "second order",
            "Gradient and Hessian at the centre predict the whole picture, "
            "with an error of at most a fifth of the rise.",
        )
    holds = far[far < far[bad].min()]
    share = float(holds.max()) if len(holds) else 0.0
    text = (
        f"Gradient and Hessian at the centre predict the rise of the loss, with an error of at most a fifth, up to "
        f"{percent(share)} of the way to the picture's edge; further out they say little."
        if share > 0
        else "Gradient and Hessian at the centre predict the rise of the loss nowhere in the picture with an error of "
        "at most a fifth: it shows more than they know."
    )
    return Remark("second order", "fine" if share >= NEAR else "mind", text)
