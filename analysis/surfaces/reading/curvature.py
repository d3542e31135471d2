"""How a slice bends at the centre, from the grid and from second derivatives, and what share of the whole that is."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import beta

from analysis.figures.surfaces.scales import compact, with_error
from analysis.surfaces.context import number, prediction_of
from analysis.surfaces.reading.remark import Remark, fine, mind, percent, wrong
from landscape.surfaces import Surface
from landscape.surfaces.second_order import SecondOrder

WINDOWS = (2, 4, 8, 16)  # steps to either side of the centre: the first that holds enough points, and the next
SMALL_SHARE = 0.1
EPSILON = {"float32": 6e-8, "float64": 1.1e-16, "bfloat16": 4e-3, "float16": 5e-4}


@dataclass(frozen=True, eq=False)
class LocalFit:
    """A quadratic fitted to the points around the centre.

    Attributes:
        expansion: Value, slope and curvature in coordinates.
        stderr: Of the curvature, of shape (k, k): the part that two widths of the window differ in, and rounding.
        points: In the narrow window.
    """

    expansion: SecondOrder
    stderr: np.ndarray
    points: int

    @property
    def largest(self) -> tuple[float, float]:
        """Largest curvature in the slice per squared l2 length, and its error, by the norm of the errors."""
        sizes = self.expansion.gram.diagonal().numpy()
        scaled = self.stderr / np.sqrt(np.outer(sizes, sizes))
        cosines = self.expansion.gram.numpy() / np.sqrt(np.outer(sizes, sizes))
        skew = 1 / max(float(np.linalg.eigvalsh(cosines)[0]), 1e-9)
        return float(self.expansion.principal[0]), float(np.linalg.norm(scaled)) * skew


def local_fit(surface: Surface, metric: str) -> LocalFit | None:
    """The slice to second order around its origin, from evaluated points only; None where there are too few.

    Least squares over the points within 2 steps of the origin along each axis, and within 4; where refinement left too
    few there, within 4 and 8, and so on. The bias by terms of fourth order grows with the square of the width, so
    K = K_2 - (K_4 - K_2)/3 and the error is |K_4 - K_2|/3, plus that of rounding (Richardson's extrapolation).
    """
    k = len(surface.grid.shape)
    steps = [float((c[1:] - c[:-1]).max()) for c in surface.grid.coordinates]
    fits = ((width, _fitted(surface, metric, steps, width)) for width in WINDOWS)
    width, narrow = next((found for found in fits if found[1] is not None), (0, None))
    if narrow is None:
        return None
    wide = _fitted(surface, metric, steps, 2 * width)
    value, slope, K, count = narrow
    rounding = EPSILON.get(str(surface.context.get("dtype", "float32")), 6e-8) * abs(value)
    error = np.full((k, k), 0.0)
    if wide is not None and wide[3] > count:
        error = abs(wide[2] - K) / 3
        K = K - (wide[2] - K) / 3
    h = np.array(steps) * width
    error = error + 4 * rounding / np.outer(h, h)
    expansion = SecondOrder(value, torch.from_numpy(slope), torch.from_numpy(K), surface.gram.double())
    try:
        expansion.principal  # noqa: B018 -- axes that are parallel have none
    except ValueError:
        return None
    return LocalFit(expansion, error, count)


def _fitted(
    surface: Surface, metric: str, steps: list[float], width: int
) -> tuple[float, np.ndarray, np.ndarray, int] | None:
    """Value, slope, curvature and number of points of one least-squares fit; None where the points do not decide it."""
    k = len(steps)
    mesh = [m.numpy() for m in surface.grid.mesh()]
    near = surface.computed.numpy() & np.isfinite(surface.values[metric].numpy())
    for m, step in zip(mesh, steps, strict=True):
        near = near & (abs(m) <= (width + 1e-6) * step)
    a = np.stack([m[near] / (width * s) for m, s in zip(mesh, steps, strict=True)], -1)
    pairs = [(i, j) for i in range(k) for j in range(i, k)]
    columns = [np.ones(len(a)), *a.T, *(a[:, i] * a[:, j] for i, j in pairs)]
    columns += [a[:, i] ** 3 for i in range(k)]  # so that the slope of a lopsided valley is not bent by it
    table = np.stack(columns, -1)
    if len(a) < table.shape[1] or np.linalg.matrix_rank(table) < table.shape[1]:
        return None
    found = np.linalg.lstsq(table, surface.values[metric].numpy()[near], rcond=None)[0]
    scale = np.array(steps) * width
    K = np.zeros((k, k))
    for (i, j), c in zip(pairs, found[1 + k : 1 + k + len(pairs)], strict=True):
        K[i, j] = K[j, i] = c * (2 if i == j else 1) / (scale[i] * scale[j])
    return float(found[0]), found[1 : 1 + k] / scale, K, len(a)


def slice_curvature(surface: Surface, metric: str) -> list[Remark]:
    """How the slice bends, against the largest eigenvalue and against the mean curvature tr(H)/p."""
    fit = local_fit(surface, metric)
    exact = prediction_of(surface, metric)
    if fit is None and exact is None:
        return []
    found: list[Remark] = []
    if exact is not None:
        largest, error, source = float(exact.principal[0]), 0.0, "by Hessian products"
    else:
        assert fit is not None
        (largest, error), source = fit.largest, f"fitted to the {fit.points} points around the centre"
    top = number(surface, "top_eigenvalue")
    text = f"The slice bends by at most {with_error(largest, error)} per squared length of weights ({source})"
    if not (math.isfinite(top) and top > 0):
        found.append(fine("curvature", f"{text}."))
    else:
        share = largest / top
        text += f", {percent(share)} of the largest Hessian eigenvalue λ_max = {compact(top)}"
        if largest - 3 * error > 1.05 * top:
            what = (
                "No direction can bend more than λ_max: the two come from other data or another mode, or λ_max has not "
                "converged."
            )
            found.append(wrong("curvature", f"{text}. {what}"))
        elif share < SMALL_SHARE:
            what = "How flat it looks says little about sharpness: the sharp directions are not in it."
            found.append(mind("curvature", f"{text}. {what}"))
        else:
            found.append(fine("curvature", f"{text}."))
    found += _against_mean(surface, exact or (fit.expansion if fit is not None else None))
    if exact is not None and fit is not None:
        found += _agreement(fit, largest)
    if exact is not None:
        found += _negative(exact)
    return found


def _against_mean(surface: Surface, expansion: SecondOrder | None) -> list[Remark]:
    whole, p = number(surface, "trace"), number(surface, "parameters")
    if expansion is None or not (math.isfinite(whole) and p > 0):
        return []
    inside = expansion.principal
    mean = whole / p
    shown = f"Its mean curvature is {compact(float(inside.mean()))}"
    text = f"{shown}, where a random direction of {p:,.0f} weights has tr(H)/p = {compact(mean)} on average"
    if mean > 0:
        text += f" ({compact(float(inside.mean()) / mean, 2)} times as much)"
    share = float(inside.sum()) / whole if whole else math.nan
    return [fine("trace", f"{text}; the slice holds {percent(share)} of the trace.")]


def _agreement(fit: LocalFit, largest: float) -> list[Remark]:
    """Whether the grid is fine enough to show the bend that second derivatives find."""
    found, error = fit.largest
    slack = max(3 * error, 0.2 * abs(largest))
    if abs(found - largest) <= slack:
        return []
    return [
        mind(
            "second order",
            f"The points around the centre bend by {with_error(found, error)}, second derivatives say "
            f"{compact(largest)}: the quadratic holds only nearer to the centre than the grid shows (kinks of ReLU, or "
            "a grid too coarse).",
        )
    ]


def _negative(exact: SecondOrder) -> list[Remark]:
    lowest = float(exact.principal[-1])
    scale = float(exact.principal.abs().max())
    if lowest >= -1e-3 * scale:
        return []
    return [
        mind(
            "negative curvature",
            f"The slice bends downwards somewhere, by {compact(lowest)}: to second order the centre is a saddle of it, "
            "not a minimum.",
        )
    ]


def what_chance_misses(surface: Surface) -> list[Remark]:
    """What a random plane can show of one given direction, such as the sharpest."""
    p, k = number(surface, "parameters"), len(surface.grid.shape)
    if not p > k or not all((axis.get("recipe") or {}).get("kind") == "random" for axis in surface.axes):
        return []
    chance = float(beta.sf(0.01, k / 2, (p - k) / 2))  # squared cosine of a direction with a random k-plane
    least = "less than 10⁻⁹" if chance < 1e-9 else compact(chance, 2)
    return [
        mind(
            "random directions",
            f"A random direction of {p:,.0f} weights meets any given one, such as the sharpest, at |cos| of about "
            f"1/√p = {compact(p**-0.5, 2)}. The chance that this picture shows even 1 % of the curvature of one sharp "
            f"direction is {least} (unscaled directions). It shows the mean curvature; for the sharpest draw "
            "the plane of the top Hessian eigenvectors.",
        )
    ]
