"""Surfaces and trajectories made from formulas, for the tests of what draws and explains them."""

import math

import pandas as pd
import torch

from analysis.surfaces.trajectory import SurfacePath
from landscape.surfaces import Grid, Surface
from landscape.surfaces.second_order import SecondOrder


def bowl(*coordinates, curvature=(2.0, 0.5), slope=(0.0, 0.0), value=0.1):
    """value + sᵀa + aᵀKa/2 with K diagonal."""
    total = torch.full_like(coordinates[0], value)
    for a, k, s in zip(coordinates, curvature, slope, strict=False):
        total = total + s * a + k * a * a / 2
    return total


def second_order(curvature=(2.0, 0.5), slope=(0.0, 0.0), value=0.1, lengths=(1.0, 1.0), cosine=0.0):
    k = len(curvature)
    return SecondOrder(
        value,
        torch.tensor(slope[:k], dtype=torch.float64),
        torch.diag(torch.tensor(curvature, dtype=torch.float64)),
        gram(lengths[:k], cosine),
    )


def gram(lengths, cosine=0.0):
    sizes = torch.tensor(lengths, dtype=torch.float64)
    table = torch.full((len(lengths), len(lengths)), float(cosine), dtype=torch.float64)
    table.fill_diagonal_(1.0)
    return table * torch.outer(sizes, sizes)


def made(
    function=bowl,
    *,
    radius=1.0,
    points=21,
    axes=2,
    error=True,
    stderr=0.01,
    lengths=(1.0, 1.0, 1.0),
    cosine=0.0,
    kind="random",
    unit="filter norms",
    names=None,
    recipe=None,
    metric="loss",
    computed=None,
    spoil=None,
    **context,
):
    """A surface of a function of the coordinates; `spoil` maps the values to others, such as with NaN in them."""
    grid = Grid.around(radius, points, axes=axes)
    mesh = grid.mesh()
    loss = function(*mesh).double()
    values = {metric: loss if spoil is None else spoil(loss.clone(), *mesh)}
    zero = [torch.zeros((), dtype=torch.float64)] * axes
    centre = {metric: (float(function(*zero)), stderr)}
    if error:
        other = metric.replace("loss", "error")
        values[other] = (0.02 + 0.9 * (1 - torch.exp(-(loss - loss.min()) / 2))).clamp(max=1)
        centre[other] = (0.02, 0.005)
    names = names or [f"random direction {i + 1}" for i in range(axes)]
    about = [
        {"name": n, "unit": unit, "length": lengths[i], "recipe": {"kind": kind, **(recipe or {})}}
        for i, n in enumerate(names)
    ]
    return Surface(
        grid=grid,
        values=values,
        stderr={name: torch.full(grid.shape, stderr, dtype=torch.float64) for name in values},
        computed=torch.ones(grid.shape, dtype=torch.bool) if computed is None else computed(*mesh),
        centre=centre,
        axes=tuple(about),
        gram=gram(lengths[:axes], cosine),
        context=context,
    )


def banana(x, y):
    """A bent valley with walls."""
    return 0.15 + 1.2 * (y + 0.15 - 0.9 * x * x) ** 2 + 0.25 * (x - 0.05) ** 2 + 0.15 * (1 - torch.cos(4 * x))


def steep(x, y):
    """A bowl between walls of exp."""
    return bowl(x, y) + torch.exp(9 * (x.abs() - 0.6)) + torch.exp(9 * (y.abs() - 0.6))


def hole(t, *mesh):
    """NaN in one corner, infinity at one point."""
    t[sum(mesh) > 0.62 * len(mesh)] = math.nan
    t[(1,) * t.ndim] = math.inf
    return t


def path(name="SAM", look="sam", points=12, bend=0.3, perturbed=True):
    t = torch.linspace(0, 1, points, dtype=torch.float64)
    a1, a2 = -0.85 * (1 - t) * torch.cos(2 * t), bend * torch.sin(3 * t) * (1 - t) + 0.6 * (1 - t) ** 2
    table = pd.DataFrame(
        {
            "step": (100 * torch.arange(points)).numpy(),
            "a1": a1.numpy(),
            "a2": a2.numpy(),
            "distance": (2.0 * torch.sin(math.pi * t) * (1 + bend)).numpy(),
            "loss": (0.12 + 1.4 * torch.exp(-4 * t)).numpy(),
            "loss_stderr": (0.02 + 0 * t).numpy(),
            "plane_loss": (0.15 + 1.6 * torch.exp(-3 * t) + 0.3 * torch.sin(math.pi * t)).numpy(),
        }
    )
    if perturbed:
        table["p1"], table["p2"] = table["a1"] + 0.08, table["a2"] + 0.05
    return SurfacePath(name, table, look)
