"""Figures of curvature: what stands on the axes is what the numbers say."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from analysis.figures import edge_of_stability, eigenvalue_curves, layer_traces, spectrum
from analysis.style import ALERT, rc
from analysis.table import Row, to_frame
from landscape import Eigenpairs, Estimate, SpectralDensity


@pytest.fixture
def ax():
    return Figure(figsize=(4, 3), layout="constrained").add_subplot()


def density(shift=0.0):
    nodes = torch.tensor([-1.0, -0.9, 0.0, 0.1, 5.0, 5.1], dtype=torch.float64) + shift
    weights = torch.tensor([0.05, 0.05, 0.4, 0.3, 0.1, 0.1], dtype=torch.float64)
    return SpectralDensity(nodes, weights, torch.tensor([0, 1, 0, 1, 0, 1]), 2, 1000, 6, False)


def pairs(*values):
    k = len(values)
    return Eigenpairs(
        torch.tensor(values, dtype=torch.float64), None, torch.full((k,), 1e-3).double(), True, 9, "largest"
    )


def table(**runs):
    frames = []
    for name, (lr, values) in runs.items():
        for step, value in values.items():
            rows = [
                Row("top_eigenvalue", value, 0.1, converged=step != 20),
                Row("bottom_eigenvalue", -value / 10, 0.1),
                Row("stability_ratio", value * lr / 2, 0.01, options={"lr": lr, "threshold": 2 / lr}),
            ]
            frames.append(to_frame(rows, run_id=name, step=step, epoch=step))
    return pd.concat(frames)


RUNS = {"a": (0.1, {10: 5.0, 20: 19.0}), "b": (0.5, {20: 4.2, 10: 3.0})}


def by_id(ax, name):
    return [line for line in ax.lines if line.get_gid() == name]


def test_a_spectrum_is_the_density_with_its_band_and_outliers(ax):
    found = density()
    spectrum(ax, found, pairs=pairs(5.05, 5.2), label="Hessian")
    curve = next(line for line in ax.lines if line.get_label() == "Hessian")
    x, y = curve.get_xdata(), curve.get_ydata()
    height = found.density(torch.from_numpy(x)).numpy()
    shown = np.isfinite(y)
    np.testing.assert_allclose(y[shown], height[shown], rtol=1e-12)
    floor = float(by_id(ax, "floor")[0].get_ydata()[0])
    assert floor == pytest.approx(1e-7 * height.max())
    assert (height[~shown] <= floor).all()
    (ticks,) = by_id(ax, "ticks")
    assert ticks.get_xdata().tolist() == [5.05, 5.2]
    assert (ticks.get_ydata() < floor).all()
    band = ax.collections[0].get_paths()[0].vertices
    k = int(np.argmin(abs(x - 5.05)))
    at = torch.from_numpy(x[k : k + 1])
    upper = float(found.density(at) + 2 * found.stderr(at))
    assert band[band[:, 0] == x[k], 1].max() == pytest.approx(upper)
    assert ax.get_yscale() == "log"
    assert x[0] < -1.2
    assert x[-1] > 5.3


def test_a_second_spectrum_stands_beside_the_first(ax):
    spectrum(ax, density(), pairs=pairs(5.0), label="one")
    spectrum(ax, density(0.2), pairs=pairs(5.1), label="two", colour="#d55e00")
    first, second = by_id(ax, "ticks")
    assert second.get_ydata()[0] < first.get_ydata()[0]
    assert to_hex(second.get_color()) == "#d55e00"
    assert ax.get_ylim()[0] < second.get_ydata()[0]


def test_a_single_run_has_no_band_but_a_curve(ax):
    nodes = torch.tensor([0.0, 1.0], dtype=torch.float64)
    one = SpectralDensity(nodes, torch.tensor([0.5, 0.5]).double(), torch.zeros(2).long(), 1, 100, 2, False)
    spectrum(ax, one)
    assert np.isfinite(ax.lines[0].get_ydata()).any()


def test_the_edge_of_stability_is_drawn_at_each_run_s_own_threshold(ax):
    edge_of_stability(ax, table(**RUNS), labels={"a": "lr = 0.1", "b": "lr = 0.5"})
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert [set(line.get_ydata()) for line in dashed] == [{20.0}, {4.0}]
    for name, line in zip("ab", dashed, strict=True):
        (curve,) = by_id(ax, name)
        assert curve.get_color() == line.get_color()
        assert curve.get_xdata().tolist() == [10, 20]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["lr = 0.1", "lr = 0.5", "edge of stability"]
    assert by_id(ax, "b")[0].get_ydata().tolist() == [3.0, 4.2]


def test_what_did_not_converge_is_crossed_out(ax):
    edge_of_stability(ax, table(a=RUNS["a"]))
    crosses = [line for line in ax.lines if line.get_marker() == "x"]
    assert [line.get_xdata().tolist() for line in crosses] == [[20]]
    assert to_hex(crosses[0].get_color()) == ALERT


def test_eigenvalue_curves_show_both_ends():
    figure = eigenvalue_curves(Figure(layout="constrained"), table(**RUNS))
    upper, lower = figure.axes
    np.testing.assert_allclose(by_id(upper, "a")[0].get_ydata(), [5.0, 19.0])
    np.testing.assert_allclose(by_id(lower, "a")[0].get_ydata(), [-0.5, -1.9])
    assert [t.get_text() for t in upper.get_legend().get_texts()] == ["a", "b"]


def test_runs_without_a_threshold_are_refused(ax):
    rows = table(**RUNS)
    with pytest.raises(ValueError, match="`table` has no values of 'stability_ratio'"):
        edge_of_stability(ax, rows[rows["measure"] != "stability_ratio"])
    with pytest.raises(ValueError, match="`table` has no values of 'top_eigenvalue'"):
        eigenvalue_curves(Figure(), rows[rows["measure"] == "stability_ratio"])


def test_layer_traces_show_each_part_with_its_interval(ax):
    parts = {"conv": Estimate(5.0, 0.5, 10), "fc": Estimate(-1.0, 0.2, 10)}
    whole = Estimate(4.0, 0.6, 10, parts=parts)
    layer_traces(ax, whole, level=0.9)
    assert [bar.get_width() for bar in ax.patches] == [5.0, -1.0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["conv", "fc"]
    ends = [segment[:, 0].tolist() for segment in ax.collections[0].get_segments()]
    np.testing.assert_allclose(ends, [part.interval(0.9) for part in parts.values()])
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the model's first layer on top


def test_a_trace_without_parts_is_refused(ax):
    with pytest.raises(ValueError, match="`whole` has no parts"):
        layer_traces(ax, Estimate(1.0, 0.1, 10))


@pytest.mark.parametrize("medium", ["screen", "icml"])
def test_they_draw_in_every_medium(medium, tmp_path):
    with mpl.rc_context(rc(medium)):
        figure = Figure(figsize=(4, 6), layout="constrained")
        axes = figure.subplots(3, 1)
        spectrum(axes[0], density(), pairs=pairs(5.0))
        edge_of_stability(axes[1], table(**RUNS))
        layer_traces(axes[2], Estimate(4.0, 0.6, 10, parts={"conv": Estimate(5.0, 0.5, 10)}))
        figure.savefig(tmp_path / "x.pdf")
    assert (tmp_path / "x.pdf").stat().st_size > 1000
