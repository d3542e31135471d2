"""Pages of made-up runs, whose errors are planted: what was planted is what the page says."""

import re
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import studies.__main__ as program
from analysis.run_outcomes import LAST, STOPPED
from analysis.study import read_study
from analysis.style import method_label
from studies.pages import PAGES

FOLDER = Path(program.__file__).parent
GAIN = {"sam": 0.05, "looksam": 0.05, "asam": 0.04, "gsam": 0.04, "esam": 0.02}  # of the planted errors
LITTLE = 0.004  # of all others: enough for a radius inside the grid to be chosen, and of no interest


@cache
def settings(name):
    return [c.model_dump() for c in read_study(FOLDER / f"{name}.yaml").configs()]


def planted(name, **more):
    """The runs of a study file without training: an error of 0.2, less the gain where rho is inside its grid."""
    frame = pd.DataFrame(settings(name))
    frame["method"] = [method_label(*pair) for pair in zip(frame["method"], frame["ascent"], strict=True)]
    frame["configuration"] = pd.factorize(frame.drop(columns=["seed", "data_seed"]).map(str).agg("|".join, axis=1))[0]
    radii = frame.groupby(["method", "m", "perturb_from"], dropna=False)["rho"]
    inside = (frame["rho"] > radii.transform("min")) & (frame["rho"] < radii.transform("max"))
    rate = frame["lr"] * frame["epochs"] / 30  # the best is 0.002 or 0.003, and half of it with twice the epochs
    middle = rate.isin([0.002, 0.003]) & frame["method"].eq("sgd")
    error = 0.2 - frame["method"].map(GAIN).fillna(LITTLE) * inside - 0.005 * middle
    luck = pd.Series(np.random.default_rng(0).normal(0, 0.002, len(frame)), frame.index)
    for column in (*LAST, *STOPPED, *more):
        frame[column] = error + luck
    return frame


def page(monkeypatch, name, frame, **more):
    module = import_module(f"studies.pages.{name}")
    monkeypatch.setattr(module, "outcomes", lambda *_: frame)
    for function, result in more.items():
        monkeypatch.setattr(module, function, lambda *_, result=result: result)
    answer = PAGES[name].answer(dict.fromkeys(PAGES[name].studies, Path()))
    return answer.short, "\n".join(answer.body)


def test_efficiency(monkeypatch):
    short, body = page(monkeypatch, "efficiency", planted("efficiency"))
    assert "Holds for `looksam`;" in short  # SAM's gain; esam has a part of it
    assert "does not hold for `esam`, `sssam`, `aesam`, `msam`, `s2sam`, `randsam`." in short
    assert re.search(r"against SAM (2.9|3.[01]) points", body)


def test_obf(monkeypatch):
    short, _ = page(monkeypatch, "obf", planted("obf"))
    assert "Does not hold for `obf` against `sam`, `asam+OBF` against `asam`, `gsam+OBF` against `gsam`." in short
    assert "Clearly worse: `obf` than `sam`" in short


@pytest.mark.parametrize(("from_then_on", "said"), [(1.0, "Holds for `sam`"), (0.5, "does not hold for `sam`")])
def test_late_phase(monkeypatch, from_then_on, said):
    frame = planted("late_phase")
    late = (frame["perturb_from"] > 0) & (frame["method"] == "sam")
    columns = [*LAST, *STOPPED]
    frame.loc[late, columns] = 0.2 - from_then_on * (0.2 - frame.loc[late, columns])
    short, body = page(monkeypatch, "late_phase", frame)
    assert said.lower() in short.lower()
    assert "sgd ×1.27" in body


def test_label_noise(monkeypatch):
    frame = planted("label_noise")
    columns = [*LAST, *STOPPED]
    frame.loc[frame["label_noise"] == 0, columns] = 0.03 + (frame.loc[frame["label_noise"] == 0, columns] - 0.2) / 20
    short, _ = page(monkeypatch, "label_noise", frame)
    end, stopped = short.index("At the end"), short.index("With early stopping")
    growing = short.index("Is the advantage larger")
    for part in (short[end:stopped], short[stopped:growing], short[growing:]):
        assert "Holds for `sam`, `asam`; does not hold for `obf`." in part


@pytest.mark.parametrize(
    ("chance", "said"), [(0.0, "Holds for `sam`, `asam`, `gsam`;"), (0.65, "Inconclusive for `sam`")]
)
def test_spurious(monkeypatch, chance, said):
    providers = {"obf": 0.9, "sam": 0.5, "random": 0.5}
    frame = planted("spurious", **{"ood_error[spurious]": 0, "shortcut_followed": 0})
    frame["ood_error[spurious]"] += chance
    for number, (provider, value) in enumerate(providers.items()):
        luck = np.random.default_rng(number).normal(0, 0.01, len(frame))
        frame[f"spurious_selectivity[{provider}, iso-loss, m=64]"] = value + luck
    short, body = page(monkeypatch, "spurious", frame, what_is_forgotten=["the table"])
    assert said in short
    assert "Holds for the `obf` perturbation; does not hold for the `sam` perturbation." in short
    assert "the table" in body


def test_perturbation_batch(monkeypatch):
    frame = planted("perturbation_batch")
    for column in (*LAST, *STOPPED):
        frame[column] += 0.01 * (np.log2(frame["m"].fillna(64).astype(float)) - 6) * (frame["method"] == "sam")
    luck = np.random.default_rng(1).normal(0, 0.002, (8, 5))
    sizes = np.array([4, 8, 16, 32, 64])
    falling = pd.DataFrame(0.3 - 0.03 * np.log2(sizes) + luck, columns=sizes)
    made = {("obf", "exposed"): falling, ("sam", "held_out"): 0.6 - falling}
    short, body = page(monkeypatch, "perturbation_batch", frame, by_size=made)
    smallest, trend, forgets = short.index("Do smaller m"), short.index("Is there a trend"), short.index("forget more")
    for part in (short[smallest:trend], short[trend:forgets]):
        assert "Holds for `sam`; does not hold for `obf`." in part
    assert "Holds for `obf` on exposed inputs; does not hold for `sam` on held-out inputs." in short[forgets:]
    assert "change of F_mi with each doubling of m −0.030 nats" in body
    assert re.search(r"change with each halving of m −(0.9|1.0)\d points", body)


def test_transfer(monkeypatch):
    """OBF's networks are planted to transfer better; the settings of a fine-tuned run are those of its source."""
    sources = planted("transfer_source").drop(columns="configuration")
    sources["configuration"] = 0
    sources["run_id"] = [f"run{k}" for k in range(len(sources))]
    begun = sources.assign(init="runs/transfer_source/runs/" + sources["run_id"])
    untrained = begun.drop_duplicates("seed").assign(init=None)
    tuned = pd.concat([pd.concat([begun, untrained]).assign(lr=lr) for lr in (0.003, 0.01, 0.03)], ignore_index=True)
    luck = np.random.default_rng(2).normal(0, 0.002, len(tuned))
    planted_gain = 0.05 * ((tuned["method"] == "obf") & (tuned["rho"] == 0.1) & tuned["init"].notna())
    for column in (*LAST, *STOPPED):
        tuned[column] = 0.2 - planted_gain - 0.005 * (tuned["lr"] == 0.01) + luck
    tuned = tuned.assign(method="sgd", rho=np.nan, epochs=30)
    module = import_module("studies.pages.transfer")
    monkeypatch.setattr(module, "outcomes", lambda folder: sources if folder == Path("source") else tuned)
    answer = PAGES["transfer"].answer({"transfer_source": Path("source"), "transfer": Path("tuned")})
    assert "Holds for `obf`; does not hold for `sam`, `asam`." in answer.short
    assert re.search(r"against sgd ×2 −(4[.][5-9]|5[.][0-5]) points", "\n".join(answer.body))
    assert "From random weights the error is 19." in answer.short
