import math

import pandas as pd
import pytest

from analysis.forgetting.trajectory import forgetting_curve, second_half
from analysis.table import Row, to_frame
from trainers import fit


def curve(values, run="a", **options):
    frames = [
        to_frame(
            [Row("F_mi", v, 0.1 * (i + 1), draws=20 - i, split="held_out", **options)], run_id=run, step=s, epoch=s
        )
        for i, (s, v) in enumerate(values.items())
    ]
    return pd.concat(frames, ignore_index=True)


def test_the_mean_over_the_second_half_by_hand():
    found = second_half(curve({10: 1.0, 20: 2.0, 50: 3.0, 80: 5.0, 100: 10.0}))
    assert len(found) == 1
    row = found.iloc[0]
    assert row["value"] == pytest.approx((3 + 5 + 10) / 3)
    assert row["stderr"] == pytest.approx((0.3 + 0.4 + 0.5) / 3)
    assert (row["step"], row["epoch"], row["draws"], row["warnings"]) == (100, 100, 16, "")


def test_runs_are_kept_apart_and_gaps_are_said():
    two = pd.concat([curve({10: 1.0, 20: math.nan}), curve({10: 4.0, 20: 6.0}, run="b")])
    found = second_half(two).set_index("run_id")
    assert found.loc["a", "value"] == 1.0
    assert found.loc["a", "warnings"] == "only 2 checkpoints; no value at 1 of 2 checkpoints"
    assert found.loc["b", "value"] == 5.0


def test_a_table_without_its_columns_is_refused():
    with pytest.raises(ValueError, match="the measures table lacks the columns"):
        second_half(pd.DataFrame({"value": [1.0]}))


def test_the_curve_of_a_run(tmp_path):
    config = {
        "dataset": "digits", "train_size": 60, "validation_size": 60, "model": "mlp", "epochs": 4, "batch_size": 20,
        "model_options": {"width": 8, "depth": 1}, "method": "sam", "rho": 0.05, "checkpoints": [1, 2, 3], "seed": 0,
    }  # fmt: skip
    run = fit(config, out=tmp_path)
    options = {"providers": ["sam"], "radii": ["own"], "batches": 2, "m": 20}
    found = forgetting_curve(run.folder, options=options)
    assert found["step"].nunique() == 4
    assert (found["step"] > 0).all()
    halves = second_half(found)
    assert (halves["step"] == found["step"].max()).all()
    row = halves[(halves["measure"] == "dCE") & (halves["split"] == "exposed")].iloc[0]
    late = found[(found["measure"] == "dCE") & (found["split"] == "exposed") & (found["step"] * 2 >= row["step"])]
    assert row["value"] == pytest.approx(late["value"].mean())
    pd.testing.assert_frame_equal(forgetting_curve(run, options=options), found)
