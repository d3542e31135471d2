"""Bad tables and folders through the real commands: no traceback, and no number without what speaks against it."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from commands import command
from safetensors.torch import save_file

from analysis import table
from analysis.study import StudyConfig
from analysis.table import Row, to_frame
from trainers import build_model
from trainers.config import train_config

FORGETTING = {"provider": "obf", "radius": "iso-loss", "m": 64}
VALUE = {  # of each table of statistics, the column that must be finite or explained
    "correlations": "value", "comparisons": "difference", "ceilings": "spearman_brown", "granulated": "psi",
    "information": "k", "sign_errors": "mean", "partial": "value", "multilevel": "pooled", "selection": "held_out",
    "prediction": "r2", "power": "required_configurations", "families": "value",
}  # fmt: skip


def configurations(methods=("sgd", "sam"), lrs=(0.05, 0.1, 0.2), seeds=(0, 1), widths=(16,)):
    return [
        train_config({
            "method": m, "lr": lr, "seed": s, "model": "mlp", "model_options": {"width": w}, "epochs": 3,
            **({} if m == "sgd" else {"rho": 0.05}),
        })
        for m in methods for lr in lrs for w in widths for s in seeds
    ]  # fmt: skip


def rows(rng):
    error = float(rng.random() / 5)
    return [
        Row("test_error", error, 0.01, 100, "test"),
        Row("gap_error", error / 2, 0.01, 100, "test"),
        Row("train_loss_final", 2 * error),
        Row("top_eigenvalue", 3 * float(rng.random())),
        Row("ascent_sharpness", error + 0.1 * float(rng.random()), options={"rho": 0.05}),
        Row("F_mi", float(rng.random()), 0.1, 20, "held_out", FORGETTING),
    ]


def study(folder, change=lambda _, made: made, **grid):
    """A study's folder as its commands leave it after measuring, with the rows that `change` makes of each run's."""
    rng, frames = np.random.default_rng(0), []
    configs = configurations(**grid)
    for number, config in enumerate(configs):
        run = folder / "runs" / config.run_id
        run.mkdir(parents=True)
        (run / "config.json").write_text(json.dumps({**config.model_dump(mode="json"), "run_id": config.run_id}))
        status = {"status": "finished", "reason": "", "seconds": 1.0, "epochs": 3}
        (run / "status.json").write_text(json.dumps(status))
        history = {"epoch": [1, 2, 3], "step": [1, 2, 3], "lr": config.lr, "rho": 0.05, "loss": 1.0, "seconds": 0.1}
        history |= {f"{split}_loss": [1.0, 0.5, 0.2] for split in ("train", "validation", "test")}
        history |= {f"{split}_error": rng.random(3) for split in ("train", "validation", "test")}
        pd.DataFrame(history).to_parquet(run / "history.parquet", index=False)
        made = change(number, rows(rng))
        frames.append(to_frame(made, run_id=config.run_id, step=3, epoch=3))
    table.write(pd.concat(frames), folder / "measures.parquet")
    config = StudyConfig(
        name="bad", base={"model": "mlp", "epochs": 3}, grid={"lr": [0.1], "seed": [0]},
        statistics={"compare": [("F_mi[obf, iso-loss, m=64, held_out]", "top_eigenvalue")]},
    )  # fmt: skip
    stored = {
        "name": "bad", "command": "", "created": "", "seconds": {}, "digest": config.digest,
        "study": config.model_dump(mode="json"), "compare": [], "runs": [c.run_id for c in configs], "environment": {},
    }  # fmt: skip
    (folder / "study.json").write_text(json.dumps(stored))
    return folder


def each(value, *measures):
    """A change of the values of some measures, or of all: `value` maps (run, value) to another."""

    def change(number, made):
        return [replace(r, value=value(number, r.value)) if not measures or r.measure in measures else r for r in made]

    return change


def without(measure, every=1):
    return lambda number, made: [r for r in made if r.measure != measure or number % every]


STUDIES = {
    "as it should be": ({}, ""),
    "a measure is missing in half of the runs": ({"change": without("top_eigenvalue", 2)}, ""),
    "a target is missing in half of the runs": ({"change": without("test_error", 2)}, ""),
    "a measure is missing everywhere but in one": ({"change": without("top_eigenvalue", 11)}, ""),
    "a constant measure": ({"change": each(lambda *_: 1.0, "top_eigenvalue")}, ""),
    "a constant target": ({"change": each(lambda *_: 0.0, "test_error")}, ""),
    "a measure that is NaN": ({"change": each(lambda *_: math.nan, "top_eigenvalue")}, ""),
    "nothing but NaN": ({"change": each(lambda *_: math.nan)}, "12 of 12 runs have no finite target"),
    "infinite values": ({"change": each(lambda k, v: math.inf if k % 3 else v, "top_eigenvalue")}, ""),
    "ties everywhere": ({"change": each(lambda _, v: float(v > 0.1))}, ""),
    "everything is equal": ({"change": each(lambda *_: 0.5)}, ""),
    "huge values": ({"change": each(lambda _, v: v * 1e300)}, ""),
    "tiny values": ({"change": each(lambda _, v: v * 1e-300)}, ""),
    "one seed": ({"seeds": (0,)}, "every configuration has one run: no noise ceiling"),
    "one method": ({"methods": ("sam",), "lrs": (0.1, 0.2)}, "one method: within it and pooled are the same"),
    "one configuration": ({"methods": ("sam",), "lrs": (0.1,)}, "1 configurations: fewer than 5 configurations"),
    "one run": ({"methods": ("sam",), "lrs": (0.1,), "seeds": (0,)}, "fewer than 5 configurations: no claim"),
    "models of two sizes": ({"widths": (8, 64)}, "models of 2 shapes are mixed"),
}


@pytest.mark.parametrize("name", STUDIES)
def test_correlations_of_a_bad_table_are_explained(name, tmp_path, capsys):
    given, note = STUDIES[name]
    folder = study(tmp_path, **given)
    code = command("correlate", folder, "--draws", 20, "--permutations", 19)
    said = capsys.readouterr().err
    assert note in said
    found = pd.read_parquet(folder / "statistics" / "correlations.parquet")["value"].to_numpy(dtype=float)
    assert code == (0 if np.isfinite(found).any() else 1)
    assert "Traceback" not in said
    for path in sorted((folder / "statistics").glob("*.parquet")):
        made = pd.read_parquet(path)
        number = made[VALUE[path.stem]].to_numpy(dtype=float)
        silent = made[~np.isfinite(number) & made["warnings"].fillna("").eq("")]
        if path.stem == "power":  # no number of configurations shows what is not there
            silent = silent[silent["value"].abs() > 1e-12]
        assert silent.empty, (path.stem, silent.head(1).to_dict("records"))


@pytest.mark.parametrize("name", ["ties everywhere", "one run", "nothing but NaN"])
def test_the_report_of_a_bad_table_has_its_figures_or_says_why_not(name, tmp_path, capsys):
    folder = study(tmp_path, **STUDIES[name][0])
    command("correlate", folder, "--draws", 20, "--permutations", 19)
    capsys.readouterr()
    code = command("report", folder, "--figure", "forest")
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert code == 0 or (code == 2 and "there is nothing to draw: No correlation could be computed" in said)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, made: [r for r in made if r.measure in ("test_error", "gap_error")], "has no measure besides"),
        (lambda _, made: [r for r in made if r.split != "test"], "has none of the targets"),
    ],
)
def test_a_table_without_either_side_is_refused(change, message, tmp_path, capsys):
    folder = study(tmp_path, change)
    assert command("correlate", folder) == 2
    assert message in capsys.readouterr().err
    assert command("report", folder) == 2
    assert "make it with `landscape correlate" in capsys.readouterr().err


def test_a_table_of_other_runs_is_refused(tmp_path, capsys):
    folder = study(tmp_path)
    frame = table.read(folder / "measures.parquet")
    table.write(frame.assign(run_id=frame["run_id"].str.replace("^.", "z", regex=True)), folder / "measures.parquet")
    assert command("correlate", folder) == 2
    assert "runs without a configuration" in capsys.readouterr().err


@pytest.mark.parametrize("broken", ["text", "other columns"])
def test_a_file_that_is_no_table_is_refused(broken, tmp_path, capsys):
    folder = study(tmp_path)
    if broken == "text":
        (folder / "measures.parquet").write_text("not a table")
    else:
        pd.DataFrame({"a": [1]}).to_parquet(folder / "measures.parquet")
    assert command("correlate", folder) == 2
    assert capsys.readouterr().err.startswith("landscape: ")


def test_methods_without_the_baseline_or_with_one_seed_are_said(tmp_path, capsys):
    folder = study(tmp_path, methods=("sam",))
    assert command("compare", folder) == 2
    assert "`baseline` 'sgd' is no method of these runs; there are ['sam']" in capsys.readouterr().err
    folder = study(tmp_path / "one", seeds=(0,))
    assert command("compare", folder) == 0
    assert "one seed: no deviation, no test" in (folder / "comparison.csv").read_text()
    folder = study(tmp_path / "nan", each(lambda *_: math.nan, "top_eigenvalue"))
    assert command("compare", folder, "--target", "top_eigenvalue") == 1  # nothing was compared
    assert "no seed in common with the baseline" in (folder / "comparison.csv").read_text()


# Weights from elsewhere ---------------------------------------------------------------------------------------------

SIZE = ["--dataset", "digits", "--train-size", 60, "--measures", "targets", "ascent_sharpness", "--jobs", 1]


def weights(width, **change):
    model = build_model("mlp", shape=(1, 8, 8), classes=10, generator_seed=0, options={"width": width})
    state = model.state_dict()
    return {**state, **{name: make(state[name]) for name, make in change.items()}}


def test_weights_of_another_model_are_refused_alone_and_marked_in_a_folder(tmp_path, capsys):
    save_file(weights(8), tmp_path / "other.safetensors")
    given = [*SIZE, "--model", "mlp", "--model-options", "width", 4]
    assert command("measure", tmp_path / "other.safetensors", *given) == 2
    assert "other.safetensors" in (said := capsys.readouterr().err) or "shape" in said
    save_file(weights(4), tmp_path / "right.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "right.safetensors").read_bytes()[:200])
    assert command("measure", tmp_path, *given) == 0
    found = table.read(tmp_path / "measures.parquet").groupby("run_id")
    assert found["value"].apply(lambda v: v.notna().any()).to_dict() == {"cut": False, "other": False, "right": True}
    bad = found.get_group("other")
    assert bad["warnings"].str.contains("ValueError").all()


def test_weights_that_are_not_finite_are_rows_that_say_so(tmp_path):
    state = weights(4)
    name = next(iter(state))
    save_file({**state, name: torch.full_like(state[name], math.nan)}, tmp_path / "nan.safetensors")
    path = tmp_path / "nan.safetensors"
    assert command("measure", path, *SIZE, "--model", "mlp", "--model-options", "width", 4) == 1  # nothing was had
    found = table.read(tmp_path / "nan.measures.parquet")
    loud = found[found["value"].isna()]
    assert len(loud) > 0.5 * len(found)
    assert loud["warnings"].ne("").all()
    assert "the loss at these weights is not finite" in set(loud["warnings"])


def test_test_data_that_were_trained_on_are_counted_in_the_row_and_in_the_statistics(tmp_path, capsys):
    said = "7 of 100 test examples are in the training data too"

    def change(number, made):
        return [replace(r, warnings=said) if r.split == "test" else r for r in made]

    folder = study(tmp_path, change)
    assert command("correlate", folder, "--draws", 20, "--permutations", 19, "--tables-only", "power") == 0
    assert f"test_error: {said} (12 of 12 runs)" in " ".join(capsys.readouterr().err.split())
