"""Where texts of a figure run into each other or off the page."""

import itertools

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

SLACK = 1.0  # pixels by which the boxes of texts, which have some air, may touch


def texts(figure):
    """The texts that are drawn: of ticks those inside the axis alone."""
    unseen = set()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_transform().transform(axis.get_view_interval()))
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                at = axis.get_transform().transform([tick.get_loc()])[0]
                reach = 1e-6 * (high - low)
                if not low - reach <= at <= high + reach or not ax.get_visible():
                    unseen |= {id(tick.label1), id(tick.label2)}
        if not ax.get_visible():
            unseen |= {id(text) for text in ax.findobj(Text)}
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and id(t) not in unseen]


def collisions(figure, dpi=150):
    """Pairs of texts whose boxes overlap, and texts that leave the page; empty where the figure holds."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts(figure)]
    page = np.array([-SLACK, -SLACK, figure.bbox.width + SLACK, figure.bbox.height + SLACK])
    found = [(text, "off the page") for text, b in boxes if ((b.extents - page) * [1, 1, -1, -1] < 0).any()]
    for (text, a), (other, b) in itertools.combinations(boxes, 2):
        wide, high = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        if wide > SLACK and high > SLACK:
            found.append((text, other))
    return found
