"""A sentence about a surface, with how much it matters."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from analysis.figures.surfaces.scales import compact, quantity

Level = Literal["fine", "mind", "wrong"]
LEVELS: tuple[Level, ...] = ("fine", "mind", "wrong")


@dataclass(frozen=True)
class Remark:
    """One fact about a surface, in a sentence or two.

    Attributes:
        topic: What it is about, in a word or two.
        level: "fine": nothing to mind; "mind": the picture is right, but may be misread; "wrong": do not draw
            conclusions from the picture before this is mended.
        text: The sentence, with numbers.
    """

    topic: str
    level: Level
    text: str

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"`level` must be one of {list(LEVELS)}, got {self.level!r}.")


def fine(topic: str, text: str) -> Remark:
    """Nothing to mind."""
    return Remark(topic, "fine", text)


def mind(topic: str, text: str) -> Remark:
    """Right, but may be misread."""
    return Remark(topic, "mind", text)


def wrong(topic: str, text: str) -> Remark:
    """No conclusions before this is mended."""
    return Remark(topic, "wrong", text)


def verdict(remarks: Iterable[Remark]) -> Level:
    """The gravest level among some remarks; "fine" if there are none."""
    return LEVELS[max((LEVELS.index(remark.level) for remark in remarks), default=0)]


def percent(share: float) -> str:
    """A share in percent, with two significant digits."""
    if not math.isfinite(share):
        return "–"
    return f"{compact(100 * share, 2)} %"


def shown(value: float, metric: str) -> str:
    """A value of a metric in the unit of the figures."""
    q = quantity(metric)
    return compact(q.factor * value) + (" %" if q.factor == 100 else "")


def counted(n: int, noun: str) -> str:
    """A number with its noun, thousands apart."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
