"""The figures that compare methods."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis.figures import cost_against_error, paths_on_surface


@pytest.fixture
def ax():
    return Figure().subplots()


def test_each_path_is_drawn_in_the_order_of_its_steps(ax):
    paths = pd.DataFrame({
        "method": ["sam", "sgd", "sam", "sgd"], "step": [1, 0, 0, 1],
        "x": [1.0, 0.0, 0.0, 2.0], "y": [3.0, 0.0, 0.0, 4.0],
    })  # fmt: skip
    paths_on_surface(ax, lambda x, y: x**2 + y**2, paths, limits=(-1, 3, -1, 5))
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.lines if not line.get_label().startswith("_")}
    assert lines == {"SAM": [[0.0, 0.0], [1.0, 3.0]], "SGD": [[0.0, 0.0], [2.0, 4.0]]}


def test_the_front_joins_what_nothing_beats(ax):
    table = pd.DataFrame({
        "method": ["sgd", "sgd", "sam", "sam", "gsam", "msam"], "seed": [0, 1, 0, 1, 0, 0],
        "cost": [1.0, 1.0, 2.0, 2.0, 2.1, 1.05], "error": [0.10, 0.12, 0.05, 0.07, 0.08, 0.09],
    })  # fmt: skip
    cost_against_error(ax, table)
    front = ax.lines[-1].get_xydata()
    np.testing.assert_allclose(front, [[1.0, 11.0], [1.05, 9.0], [2.0, 6.0]])


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda ax, t: paths_on_surface(ax, np.add, t, limits=(0, 1, 0, 1)),
            "`paths` lacks the columns \\['step', 'x', 'y'\\]",
        ),
        (cost_against_error, "`table` lacks the columns \\['cost', 'error', 'seed'\\]"),
    ],
)
def test_a_missing_column_is_named(ax, draw, message):
    with pytest.raises(ValueError, match=message):
        draw(ax, pd.DataFrame({"method": ["sam"]}))
