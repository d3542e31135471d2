"""Trajectories over a surface: where training went, how far from the plane, and the loss there and on the plane."""

from dataclasses import dataclass

import pandas as pd

COLUMNS = ("step", "a1", "a2", "distance", "loss", "loss_stderr", "plane_loss")


@dataclass(frozen=True, eq=False)
class SurfacePath:
    """Points of one run, projected on the axes of a surface.

    Attributes:
        name: Of the run, for the legend.
        table: A row a point, with the columns `step`, `a1` (and `a2`, `a3`: coordinates of its projection), `distance`
            (l2, off the plane), `loss` and `loss_stderr` (at the point itself), `plane_loss` (at its projection), and,
            where the run's perturbation is known, `p1` (`p2`): the coordinates of the perturbed point.
        look: The training method, which decides colour and marker.
    """

    name: str
    table: pd.DataFrame
    look: str = ""
