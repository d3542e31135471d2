"""Plots of a line a name, such as the forest plot: names beside the axes or, in a narrow figure, above each line."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from analysis.figures.room import letters
from analysis.style import INK

NUMBERS = 21  # letters of the numbers at the right
PLOT = 24  # letters that the plot itself needs beside them
LINE = 0.165  # inches of a line of text, where text has 9 points


@dataclass(frozen=True)
class Lines:
    """Where names and marks of each row stand, in rows.

    Attributes:
        names: From the top down.
        marks: How many marks a row has, one below the other: 1 or 2.
        stacked: Whether the name stands above its marks and not beside them.
    """

    names: Sequence[str]
    marks: int
    stacked: bool

    @classmethod
    def of(cls, names: Sequence[str], marks: int, ax: Axes | None = None) -> "Lines":
        """As axes, or a page to be, have room for them."""
        widest = max((len(part) for name in names for part in name.split("\n")), default=0)
        return cls(names, marks, letters(ax) < widest + NUMBERS + PLOT)

    @property
    def _texts(self) -> int:
        return max((name.count("\n") + 1 for name in self.names), default=1)

    @property
    def height(self) -> float:
        """Inches of a row, where text has 9 points."""
        if self.stacked:
            return LINE * (self._texts + self.marks + 0.35)
        return max(0.36 if self.marks == 2 else 0.24, LINE * self._texts)

    def places(self) -> list[float]:
        """By how much each mark is above the middle of its row, the upper first."""
        if not self.stacked:
            return [0.19, -0.19] if self.marks == 2 else [0.0]
        step = LINE / self.height
        return [0.5 - step * (self._texts + 0.55 + k) for k in range(self.marks)]

    def write(self, ax: Axes, colours: Sequence[str] | None = None) -> np.ndarray:
        """Write the names, and return the middle of each row."""
        y = np.arange(len(self.names))[::-1]
        inks = colours or [INK] * len(y)
        if self.stacked:
            ax.set_yticks([])
            top = 0.5 - LINE / self.height * 0.15
            for at, name, colour in zip(y, self.names, inks, strict=True):
                ax.text(
                    0, at + top, name, transform=ax.get_yaxis_transform(), va="top", fontsize="small", color=colour,
                    zorder=1.5, gid="name", bbox={"facecolor": mpl.rcParams["axes.facecolor"], "lw": 0, "pad": 0.4},
                )  # fmt: skip
        else:
            ax.set_yticks(y, self.names, fontsize="small")
            for label, colour in zip(ax.get_yticklabels(), inks, strict=True):
                label.set_color(colour)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.set_ylim(*((-0.5, len(y) - 0.5) if self.stacked else (-0.7, len(y) - 0.3)))
        return y
