"""Kendall's coefficient with the hyper-parameters held fixed: only pairs inside one cell count.

A cell is the group of configurations with equal hyper-parameters of training (learning rate, batch size, ...), which
differ in the method alone. A measure that only tells the learning rates apart says nothing inside a cell, and one that
orders the methods in every cell may be hidden by the differences between cells.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from analysis.statistics.intervals import kendall_row_sums
from analysis.statistics.kendall import pair_sums

CELL_MINIMUM = 3  # configurations below which a cell is left out


@dataclass(frozen=True)
class Strata:
    """The cells whose pairs count.

    Attributes:
        groups: Places of the configurations of each cell with at least 3.
        dropped: Cells with fewer.
    """

    groups: list[Int[np.ndarray, " g"]]
    dropped: int

    @classmethod
    def of(cls, cells: Int[np.ndarray, " n"]) -> "Strata":
        """The cells of n configurations, from the number of the cell of each."""
        every = [np.flatnonzero(cells == label) for label in np.unique(cells)]
        large = [rows for rows in every if len(rows) >= CELL_MINIMUM]
        return cls(large, len(every) - len(large))

    @property
    def n(self) -> int:
        """Configurations in the cells that count."""
        return sum(map(len, self.groups))


def stratified_kendall(
    x: Float[np.ndarray, "m n"],
    y: Float[np.ndarray, "t n"],
    strata: Strata,
    counts: Int[np.ndarray, "d n"] | None = None,
) -> Float[np.ndarray, "m t d"]:
    """Stratified tau_b of every row of x with every row of y, in every resample.

    τ_s = Σ_c (C_c - D_c) / √(Σ_c (n0_c - n1_c) · Σ_c (n0_c - n2_c)), with the concordant, discordant and all pairs
    inside cell c, and those tied in x and in y. Pairs in two cells do not count; a cell counts by its pairs. With one
    cell it is tau_b.

    Args:
        x: m measures of n configurations, finite.
        y: t targets of the same configurations, finite.
        strata: Their cells.
        counts: d resamples, how often each configuration was drawn; None for the data as they are (d = 1).

    Returns:
        Shape (m, t, d); NaN where no pair inside a cell is untied in x, or none in y.

    Source:
        Quade (1974), Nonparametric partial correlation; cf. Korn (1984), Biometrics 40(4).
    """
    counts = np.ones((1, x.shape[1]), dtype=np.int64) if counts is None else counts
    m, t, d = len(x), len(y), len(counts)
    score, untied_x, untied_y = np.zeros((m, t, d)), np.zeros((m, d)), np.zeros((t, d))
    for rows in strata.groups:
        for total, part in zip(
            (score, untied_x, untied_y), pair_sums(x[:, rows], y[:, rows], counts[:, rows]), strict=True
        ):
            total += part
    return _ratio(score, untied_x, untied_y)


def stratified_leave_one_out(
    x: Float[np.ndarray, "m n"], y: Float[np.ndarray, "t n"], strata: Strata
) -> Float[np.ndarray, "m t n"]:
    """Stratified tau_b without each configuration in turn; one outside the cells changes nothing."""
    m, t, n = len(x), len(y), x.shape[1]
    score, untied_x, untied_y = np.zeros((m, t, n)), np.zeros((m, n)), np.zeros((t, n))
    for rows in strata.groups:
        score[:, :, rows], untied_x[:, rows], untied_y[:, rows] = kendall_row_sums(x[:, rows], y[:, rows])
    return _ratio(*(each.sum(axis=-1, keepdims=True) / 2 - each for each in (score, untied_x, untied_y)))


def _ratio(
    score: Float[np.ndarray, "m t d"], untied_x: Float[np.ndarray, "m d"], untied_y: Float[np.ndarray, "t d"]
) -> Float[np.ndarray, "m t d"]:
    scale = np.sqrt(untied_x[:, None] * untied_y[None])
    tau: Float[np.ndarray, "m t d"] = np.divide(score, scale, out=np.full(score.shape, np.nan), where=scale > 0)
    return tau
