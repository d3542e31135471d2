"""The benchmark of surfaces at its quick size."""

import pytest
import torch

from benchmarks import surfaces


def test_rows_are_ratios_and_missing_peers_are_told():
    rows = list(surfaces.overhead(quick=True)) + list(surfaces.many(quick=True))
    assert len(rows) == 3
    assert all(row["value"] > 0 and row["unit"] == "x" for row in rows)
    assert [row.get("limit") for row in rows] == [1.05, None, 0.5]


@pytest.mark.filterwarnings("ignore")
def test_peers_have_a_row_each():
    rows = list(surfaces.peers(quick=True))
    assert [row["what"].rsplit(" ", 1)[-1] for row in rows] == ["loss-landscapes", "landscaper"]
    assert all(row["value"] is None or row["value"] > 0 for row in rows)


def test_the_axes_are_a_tenth_of_each_tensor():
    _, _, _, risk, axes = surfaces.problem("mlp", (1, 2, 2), 3, {"width": 4, "depth": 1})
    for name, t in risk.theta.items():
        ratio = axes.axes[0].direction[name].norm() / t.norm()
        torch.testing.assert_close(ratio, torch.tensor(0.1), rtol=1e-5, atol=0)
