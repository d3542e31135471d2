"""Kendall's coefficient with the hyper-parameters held fixed: only pairs inside one cell count.

A cell is the group of configurations with equal hyper-parameters of training (learning rate, batch size, ...), which
differ in the method alone. A measure that only tells the learning rates apart says nothing inside a cell, and one that
orders the methods in every cell may be hidden by the differences between cells.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from analysis.statistics.kendall import pair_sums, row_sums, tau_of_sums, without_each

CELL_MINIMUM = 3  # configurations below which a cell is left out


@dataclass(frozen=True)
class Strata:
    """The cells whose pairs count.

    Attributes:
        groups: Places of the configurations of each cell with at least 3.
        dropped: Cells with fewer.
        variants: Number of the variant of a method of each configuration; each by itself where nothing is known.
    """

    groups: list[Int[np.ndarray, " g"]]
    dropped: int
    variants: Int[np.ndarray, " n"]

    @classmethod
    def of(cls, cells: Int[np.ndarray, " n"], variants: Int[np.ndarray, " n"] | None = None) -> "Strata":
        """The cells of n configurations, from the number of the cell of each."""
        every = [np.flatnonzero(cells == label) for label in np.unique(cells)]
        large = [rows for rows in every if len(rows) >= CELL_MINIMUM]
        return cls(large, len(every) - len(large), np.arange(len(cells)) if variants is None else variants)

    @classmethod
    def whole(cls, n: int) -> "Strata":
        """All configurations in one cell."""
        return cls([np.arange(n)], 0, np.arange(n))

    @property
    def n(self) -> int:
        """Configurations in the cells that count."""
        return sum(map(len, self.groups))

    def pairs(self) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
        """Places of the first and the second configuration of every pair inside a cell."""
        each = [rows[np.array(np.triu_indices(len(rows), 1))] for rows in self.groups]
        first, second = np.concatenate(each, axis=1) if each else np.zeros((2, 0), dtype=np.int64)
        return first, second

    def resampled(self, n: int, drawn: Callable[[int, int], Int[np.ndarray, "d g"]]) -> Int[np.ndarray, "d n"]:
        """How often each of n configurations is drawn, from each cell as many as it has.

        Args:
            n: Configurations in all.
            drawn: Resamples of so many configurations of the cell with a number.
        """
        parts = [drawn(len(rows), k) for k, rows in enumerate(self.groups)]
        counts = np.zeros((len(parts[0]) if parts else 0, n), dtype=np.int64)
        for rows, part in zip(self.groups, parts, strict=True):
            counts[:, rows] = part
        return counts


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
    return tau_of_sums(score, untied_x, untied_y)


def stratified_leave_one_out(
    x: Float[np.ndarray, "m n"], y: Float[np.ndarray, "t n"], strata: Strata
) -> Float[np.ndarray, "m t n"]:
    """Stratified tau_b without each configuration in turn; one outside the cells changes nothing."""
    m, t, n = len(x), len(y), x.shape[1]
    score, untied_x, untied_y = np.zeros((m, t, n)), np.zeros((m, n)), np.zeros((t, n))
    for rows in strata.groups:
        score[:, :, rows], untied_x[:, rows], untied_y[:, rows] = row_sums(x[:, rows], y[:, rows])
    return without_each(score, untied_x, untied_y)
