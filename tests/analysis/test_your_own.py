"""Measures, methods and corruptions of one's own: the page's examples as they stand, here and in other processes."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from scipy.stats import kurtosis

from analysis.cli import main
from analysis.measures import own
from analysis.measures.cache import option_hash
from analysis.measures.collect import collect
from analysis.measures.plan import plan
from analysis.measures.registry import MEASURES
from analysis.studyfile import read_study
from landscape.params import flatten
from trainers import make_optimizer, train_all
from trainers.config import train_config
from trainers.data.shifted import shifted_sets
from trainers.reference import load_reference
from trainers.runs.checkpoint import load_checkpoint
from trainers.runs.folder import load_data
from trainers.sharpness_aware.methods import METHODS
from trainers.sharpness_aware.methods.own import NOT_IMPORTED, method_named

PAGE = Path(__file__).parents[2] / "docs" / "your_own.md"
BASE = {
    "dataset": "digits", "train_size": 100, "validation_size": 20, "test_size": 50, "epochs": 1,
    "model_options": {"width": 8}, "method": "page_mine:small_first", "rho": 0.1, "method_options": {"power": 2.0},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def mine(tmp_path_factory):
    """The page's blocks as a module of one's own."""
    folder = tmp_path_factory.mktemp("mine")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 4
    assert all(len(block.strip().splitlines()) <= 12 for block in blocks)
    wrong = "\n\ndef {}(subject):\n    return {!r}\n"
    blocks += [wrong.format(name, value) for name, value in (("wrong", "high"), ("gap_mine", 1), ("norms", 1))]
    (folder / "page_mine.py").write_text("\n\n".join(blocks))
    sys.path.append(str(folder))
    yield folder
    sys.path.remove(str(folder))
    for registry in (MEASURES, METHODS):
        for name in [name for name in registry if name.startswith("page_mine")]:
            del registry[name]
    del sys.modules["page_mine"]


def test_the_examples_of_the_page_in_other_processes(tmp_path):
    configs = [train_config({**BASE, "seed": seed}) for seed in (0, 1)]
    with pytest.raises(PermissionError, match=r"`method` 'page_mine:small_first' was not imported.*--trust"):
        list(train_all(configs, out=tmp_path, jobs=2))
    runs = list(train_all(configs, out=tmp_path, jobs=2, trust=True))
    assert [run.status()["status"] for run in runs] == ["finished", "finished"]
    asked = {
        "targets": {}, "page_mine:kurtosis": {"centred": False}, "page_mine:mean_curvature": {}, "page_mine:wrong": {},
    }  # fmt: skip
    sets = shifted_sets({"haze": "page_mine:haze"}, trust=True)
    table = pd.concat(collect(runs, measures=asked, jobs=2, trust=True, shifted=sets))
    for run in runs:
        model, _ = load_checkpoint(run.checkpoint(max(run.checkpoints())))
        rows = table[table["run_id"] == run.run_id].set_index("measure")
        weights = flatten(dict(model.named_parameters())).detach().double()
        assert rows.loc["kurtosis", "value"] == pytest.approx(float((weights**4).mean() / (weights**2).mean() ** 2))
        assert rows.loc["kurtosis", "options"] == '{"centred": false}'
        assert rows.loc["mean_curvature", "value"] > 0
        assert "`page_mine:wrong`" in rows.loc["wrong", "warnings"] or "returned str" in rows.loc["wrong", "warnings"]
        test = load_data(run.config()).test
        hazed = load_reference("page_mine:haze")(test.x, 2, None)
        error = float((model(hazed).argmax(1) != test.y).double().mean())
        severity = rows.loc[["ood_error_severity"]].query(
            "options.str.contains('haze') and options.str.contains(': 2')"
        )
        assert severity["value"].tolist() == [pytest.approx(error)]


def test_a_method_of_the_page_by_hand():
    model = torch.nn.Linear(3, 1, bias=False).double()
    weight = model.weight.detach().clone()
    a = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    optimizer = make_optimizer("page_mine:small_first", model, lr=0.1, rho=0.5, power=2.0)

    def closure():
        optimizer.zero_grad()
        loss = (model.weight @ a).square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    g = (weight @ a)[:, None] * a
    scale = (1 + weight.abs()) ** -2.0
    moved = weight + 0.5 * scale**2 * g / (scale * g).norm()
    torch.testing.assert_close(model.weight.detach(), weight - 0.1 * (moved @ a)[:, None] * a)
    with pytest.raises(ValueError, match=r"has no option `powr`; it has \['power'\]. Did you mean 'power'"):
        make_optimizer("page_mine:small_first", model, lr=0.1, powr=1.0)


def test_what_is_named_in_a_file_is_not_run_unasked(tmp_path):
    del METHODS["page_mine:small_first"]
    known = train_config({**BASE})
    assert method_named(known.method) is NOT_IMPORTED  # settings of a run can be read all the same
    with pytest.raises(PermissionError, match="was not imported"):
        known.spec().entry.compose(None)
    assert known.resolved().method_options == BASE["method_options"]
    (tmp_path / "study.yaml").write_text(
        "name: own\nquestion: own?\nbase: {dataset: digits}\ngrid: {lr: [0.1, 0.2], seed: [0, 1]}\n"
        "methods: [{method: sgd}, {method: sam}]\nmeasures: {targets: , 'page_mine:kurtosis': }\n"
    )
    with pytest.raises(PermissionError, match=r"study.yaml: `measures` 'page_mine:kurtosis' was not imported.*--trust"):
        read_study(tmp_path / "study.yaml")
    assert "page_mine:kurtosis" in read_study(tmp_path / "study.yaml", trust=True).measures


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("page_mine:gap_mine", r"makes rows called 'gap_mine', which no measure can have: .*as the scores do"),
        ("page_mine:norms", r"makes rows called 'norms', which `norms` makes"),
        ("page_mine:kurtosi", r"has no attribute 'kurtosi'. Did you mean 'kurtosis'"),
        ("kurtosis2", r"measure 'kurtosis2' is unknown; .* or your own as module:function"),
    ],
)
def test_measures_that_cannot_be_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        plan([name])


def test_what_a_measure_may_return(monkeypatch):
    from landscape import Estimate

    for value, wanted in (
        (torch.tensor(2.0), [("kurtosis", 2.0, 0.0)]),
        (Estimate(1.0, 0.5, draws=7), [("kurtosis", 1.0, 0.5)]),
        ({"left": 1, "right": Estimate(2.0, 0.1)}, [("left", 1.0, 0.0), ("right", 2.0, 0.1)]),
    ):

        def kurtosis_(subject, value=value):
            return value

        kurtosis_.__name__ = "kurtosis"
        monkeypatch.setattr(sys.modules["page_mine"], "kurtosis", kurtosis_)
        found = own.own_measure("page_mine:kurtosis", {}).function(None)
        assert [(row.measure, row.value, row.stderr) for row in found] == wanted
    monkeypatch.undo()
    key = "page_mine:kurtosis"
    before = option_hash(key, {}, 0)
    monkeypatch.setitem(MEASURES, key, replace(MEASURES[key], source="another"))
    assert option_hash(key, {}, 0) != before, "another file is another measure"
    normal = torch.randn(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    subject = type("S", (), {"model": torch.nn.ParameterList([normal])})
    measured = load_reference(key)(subject)
    assert float(measured.detach()) == pytest.approx(kurtosis(normal.numpy(), fisher=False))


def test_a_folder_to_start_from(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "new"
    MEASURES.pop("page_mine:kurtosis", None)  # two of one name cannot be
    with pytest.raises(SystemExit) as ended:
        main(["init", str(folder)])
    assert ended.value.code == 0
    assert "next: cd" in capsys.readouterr().out
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(MEASURES, "mine:kurtosis", raising=False)
    study = read_study(folder / "study.yaml", trust=True)
    assert len(study.configs()) == 36
    load_data(study.configs()[0], trust=True)
    del MEASURES["mine:kurtosis"]
    with pytest.raises(SystemExit) as ended:
        main(["init", str(folder)])
    assert ended.value.code == 2
    assert "study.yaml is there already" in capsys.readouterr().err
