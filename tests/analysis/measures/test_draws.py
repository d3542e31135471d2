"""Measures on a draw of the training examples: which they are, what the rows say, and what stays on all of them."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from commands import command
from forgetting_problems import classifier, rng

from analysis.forgetting.displacements import Displacements
from analysis.forgetting.perturbed import measure_displacements
from analysis.measures import taking
from analysis.measures.cache import option_hash
from analysis.measures.checkpoints import RunCheckpoint, keys_of
from analysis.measures.plan import plan, settings_of
from analysis.measures.registry import MEASURES
from analysis.measures.subject import Subject
from analysis.measures.taking import measure_subject
from analysis.studyfile import StudyConfig
from analysis.table import variant
from trainers import build_model, fit, list_runs, load_dataset

RUN = {"train_size": 60, "validation_size": 20, "test_size": 20, "epochs": 1, "model_options": {"width": 4}}
CHEAP = {"norms": {}, "ascent_sharpness": {}, "hessian_trace": {"draws": 400}, "empirical_fisher": {}}


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits", train_size=200, validation_size=30, test_size=20)


def subject_of(data, seed=0, **given):
    model = build_model("mlp", shape=(1, 8, 8), classes=10, generator_seed=seed, options={"width": 4, "depth": 1})
    return Subject(model.eval(), data, "x", **given)


def rows_of(subject, chosen):
    return {row.measure: row for rows in measure_subject(subject, chosen).values() for row in rows}


# -- which examples --------------------------------------------------------------------------------------------------


def test_a_draw_is_stratified_nested_and_the_same_for_every_model(data):
    first, other = subject_of(data, examples=100), subject_of(data, seed=1, examples=100)
    assert torch.equal(first.sample.index, other.sample.index)
    counts, whole = (torch.bincount(split.y, minlength=10) for split in (first.sample, data.train))
    assert int((counts - whole / 2).abs().max()) <= 1
    assert len(first.sample.index.unique()) == 100
    assert torch.equal(subject_of(data, examples=30).sample.index, first.sample.index[:30])
    assert not torch.equal(replace(first, seed=1).sample.index, first.sample.index)
    assert subject_of(data, examples=200).sample is data.train
    assert subject_of(data).sample is data.train


def test_a_measure_of_a_draw_is_that_of_these_examples_alone(data):
    drawn = subject_of(data, examples=50)
    found = rows_of(drawn, plan(CHEAP))
    alone = rows_of(replace(drawn, data=replace(data, train=drawn.sample), examples=None), plan(CHEAP))
    for name, row in found.items():
        assert row.value == pytest.approx(alone[name].value, rel=1e-5, nan_ok=True), name
    assert found["hessian_trace"].options == {**alone["hessian_trace"].options, "examples": 50}
    assert "examples" not in alone["hessian_trace"].options


def test_a_mean_over_a_draw_is_off_by_its_error(data):
    chosen = plan(["empirical_fisher", "fisher_rao"], examples=50)
    whole = rows_of(subject_of(data), plan(list(chosen)))
    found = [rows_of(replace(subject_of(data), seed=seed), chosen) for seed in range(30)]
    for name in ("empirical_fisher_trace", "fisher_rao_norm"):
        values, errors = (np.array([getattr(rows[name], part) for rows in found]) for part in ("value", "stderr"))
        assert whole[name].stderr == 0
        assert 0.6 < values.std(ddof=1) / math.sqrt((errors**2).mean()) < 1.3, name


def test_what_is_exact_of_all_examples_is_not_of_a_draw(data):
    drawn, every = (rows_of(subject_of(data), plan(["norms", "ascent_sharpness"], examples=e)) for e in (50, None))
    for name in ("gradient_norm", "ascent_sharpness"):
        assert every[name].stderr == 0
        assert math.isnan(drawn[name].stderr)


@pytest.mark.parametrize("shift", [-100, 10**12])
def test_targets_may_be_any_whole_numbers(data, shift):
    moved = replace(data, train=replace(data.train, y=data.train.y + shift))
    assert torch.equal(subject_of(moved, examples=50).sample.index, subject_of(data, examples=50).sample.index)


def test_every_example_that_is_read_one_by_one_is_read_once(data):
    train = data.train
    reads = []

    class Items:
        shape, dtype, bytes_each = (1, 8, 8), torch.float32, 256

        def __getitem__(self, i):
            reads.append(i)
            return train.inputs[(train.index == i).nonzero()[0, 0]]

    one_by_one = replace(data, train=replace(train, inputs=Items()))
    subject = subject_of(one_by_one, examples=40)
    assert torch.equal(subject.sample.x, subject_of(data, examples=40).sample.x)
    for _ in range(3):
        subject.risk.value()
    assert set(reads) <= {*subject.sample.index.tolist(), int(train.index[0])}
    assert len(reads) <= 42  # of which the first shows how large they are


# -- what the rows say -----------------------------------------------------------------------------------------------


def test_rows_say_so_only_where_a_draw_was_made(data):
    few = rows_of(subject_of(data), plan(CHEAP))
    assert not any("examples" in row.options for row in few.values())
    asked = rows_of(subject_of(data), plan(CHEAP, examples=50))
    assert {name for name, row in asked.items() if row.options.get("examples") == 50} == set(few) - {
        "distance_from_init"
    }
    more = rows_of(subject_of(data), plan(CHEAP, examples=5000))
    assert {name: row.options for name, row in more.items()} == {name: row.options for name, row in few.items()}


def test_all_of_many_is_said_too(data, monkeypatch):
    monkeypatch.setattr(taking, "DRAWN", 100)
    subject = subject_of(data, examples=100)
    chosen = plan({"norms": None, "hessian_trace": {"draws": 2, "examples": "all"}})
    found = rows_of(subject, chosen)
    assert found["hessian_trace"].options["examples"] == "all"
    assert found["hessian_trace"].options["n"] == 200
    assert found["gradient_norm"].options["examples"] == 100


def test_a_search_of_the_worst_case_draws_its_own_number(data, monkeypatch):
    monkeypatch.setattr(taking, "DRAWN", 100)
    options = {"rho": [0.05], "steps": 2}
    usual, few, every = (
        rows_of(subject_of(data, examples=100), plan({"worst_case_sharpness": {**options, **more}}))
        for more in ({}, {"examples": 30}, {"examples": "all"})
    )
    name = "worst_case_sharpness"
    assert [found[name].options["n"] for found in (usual, few, every)] == [200, 30, 200]  # 1,024 are all of them
    assert "examples" not in usual[name].options
    assert few[name].options["examples"] == 30
    assert every[name].options["examples"] == "all"
    assert few[name].options.get("partition_seed") is None


def test_two_numbers_of_examples_are_two_variants():
    usual, few, every = (variant("hessian_trace", {"examples": e}, "train") for e in (2048, 512, "all"))
    assert usual == "hessian_trace" == variant("hessian_trace", {}, "train")
    assert (few, every) == ("hessian_trace[examples=512]", "hessian_trace[examples=all]")


def test_errors_losses_and_what_takes_one_pass_are_of_all_examples(data):
    names = ["targets", "baselines", "train_outputs", "weight_norms"]
    drawn, whole = subject_of(data, examples=50), subject_of(data, examples=None)
    some, every = (rows_of(subject, plan(names)) for subject in (drawn, whole))
    assert set(some) == set(every)
    for name, row in some.items():
        assert row.value == pytest.approx(every[name].value, rel=1e-5, nan_ok=True), name
        assert row.options == pytest.approx(every[name].options), name


def test_bounds_divide_by_the_number_of_training_examples(data):
    drawn = subject_of(data, examples=50)
    theta = drawn.risk.theta
    for _ in range(300):
        theta = {name: theta[name] - 0.5 * g for name, g in drawn.risk.gradient(theta).items()}
    drawn.model.load_state_dict(theta)
    drawn = replace(drawn)  # nothing that was computed before
    values = {
        form: rows_of(drawn, plan({"pacbayes": {"form": form, "draws": 2, "tol": 0.5}}))["pacbayes_orig"].value
        for form in ("raw", "adjusted")
    }
    assert values["adjusted"] == pytest.approx(math.sqrt(values["raw"] / 200))


# -- what is asked for -----------------------------------------------------------------------------------------------


def test_the_number_of_examples_of_a_measure_goes_before_that_of_all():
    chosen = plan({"norms": {"examples": 10}, "hessian_trace": None, "targets": None}, examples=20)
    assert chosen["norms"] == {"examples": 10}
    assert chosen["hessian_trace"]["examples"] == 20
    assert "examples" not in chosen["targets"]
    assert plan({"worst_case_sharpness": None}, examples="all")["worst_case_sharpness"]["examples"] is None
    assert plan({"worst_case_sharpness": None})["worst_case_sharpness"]["examples"] == 1024


@pytest.mark.parametrize(("arguments", "message"), [
    (({"norms": {"examples": 0}},), "option `examples` of measure 'norms' must be a number of training examples"),
    (({"norms": {"examples": True}},), "of at least 1, or all, got True"),
    (({"targets": {"examples": 5}},), "measure 'targets' has no option `examples`"),
    (({"norms": {"exampels": 5}},), r"has no option `exampels`.*Did you mean 'examples'"),
])  # fmt: skip
def test_foolish_numbers_of_examples(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan(*arguments)


def test_options_on_the_command_line_are_read_as_in_a_study_file():
    read = settings_of(["hessian_eigenvalues.tol=0.05", "m_sharpness.m=[16, null]", "hessian_eigenvalues.own_tol=1e-1"])
    assert read == {"hessian_eigenvalues": {"tol": 0.05, "own_tol": "1e-1"}, "m_sharpness": {"m": [16, None]}}
    chosen = plan(["hessian_eigenvalues"], settings={"hessian_eigenvalues": read["hessian_eigenvalues"]})
    assert (chosen["hessian_eigenvalues"]["tol"], chosen["hessian_eigenvalues"]["own_tol"]) == (0.05, 0.1)
    assert settings_of(["top_eigenvalue.tol=1"]) == {"hessian_eigenvalues": {"tol": 1}}


@pytest.mark.parametrize(("text", "message"), [
    ("hessian_trace.draws", r"takes measure.option=value.*got 'hessian_trace.draws'"),
    ("draws=3", "takes measure.option=value"),
    ("hessian_trac.draws=3", r"measure 'hessian_trac' is unknown.*Did you mean 'hessian_trace'"),
    ("hessian_trace.draws=[3", "has a value that is not YAML"),
])  # fmt: skip
def test_foolish_settings(text, message):
    with pytest.raises(ValueError, match=message):
        settings_of([text])


def test_settings_of_a_measure_that_is_not_taken_are_refused():
    with pytest.raises(ValueError, match=r"`--set hessian_trace.draws` is for a measure that is not taken"):
        plan(["norms"], settings={"hessian_trace": {"draws": 3}})


# -- what is kept ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return fit(RUN, out=tmp_path_factory.mktemp("runs"))


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained.folder, tmp_path / trained.run_id)
    return list_runs(tmp_path)[0]


def test_rows_of_small_data_are_known_as_before_and_those_of_large_data_are_not(run, monkeypatch):
    checkpoint, chosen = RunCheckpoint(run.folder, max(run.checkpoints())), plan(["norms", "targets"])
    before = {key: option_hash(key, options, 0, {}) for key, options in chosen.items()}
    assert keys_of(checkpoint, chosen, 0) == before
    for size in (None, 2049):
        monkeypatch.setattr(RunCheckpoint, "train_size", size)
        there = keys_of(checkpoint, chosen, 0)
        assert {key for key in there if there[key] != before[key]} == {"norms"}


def test_a_study_says_how_many_examples_and_its_folder_stays_its_own():
    values = {"name": "s", "measures": {"targets": None, "norms": None}, "base": {"epochs": 1}}
    plain, some = (StudyConfig.parse(v, where="s") for v in (values, {**values, "examples": 30}))
    assert plain.digest != some.digest
    assert plain.digest == "".join(plain.digest)
    some.check()
    with pytest.raises(ValueError, match="examples"):
        StudyConfig.parse({**values, "examples": "some"}, where="s")


def test_the_command_takes_examples_options_and_a_batch_size(run):
    ask = ("measure", run.folder, "--jobs", 1, "--measures", "hessian_trace", "gradient_covariance")
    assert command(*ask, "--examples", 30, "--set", "hessian_trace.draws=4") == 0
    table = pd.read_parquet(run.folder / "measures.parquet")
    told = [json.loads(text) for text in table["options"]]
    assert {(o["examples"], o["n"]) for o in told} == {(30, 30)}
    few = command(
        *ask, "--examples", 30, "--set", "hessian_trace.draws=4", "--batch-size", 7, "--out", run.folder / "b"
    )
    assert few == 0  # what is kept is taken, whatever the size of a batch
    shutil.rmtree(run.folder / "measures")
    command(*ask, "--examples", 30, "--set", "hessian_trace.draws=4", "--batch-size", 7, "--out", run.folder / "c")
    again = pd.read_parquet(run.folder / "c")
    assert list(again["options"]) == list(table["options"])
    np.testing.assert_allclose(again["value"], table["value"], rtol=1e-3)


@pytest.mark.parametrize(("flags", "message"), [
    (("--examples", "few"), "`--examples` must be a number of training examples of at least 1, or all, got 'few'"),
    (("--batch-size", 0), "`batch_size` must be at least 1 example a pass, got 0"),
    (("--set", "norms.x=3"), "measure 'norms' has no option `x`"),
])  # fmt: skip
def test_foolish_flags(run, capsys, flags, message):
    assert command("measure", run.folder, "--measures", "norms", *flags) == 2
    assert message in " ".join(capsys.readouterr().err.split())


# -- forgetting ------------------------------------------------------------------------------------------------------


def test_fewer_others_leave_what_the_batches_and_held_out_data_forget():
    risk, held_out = classifier(sizes=(120,))
    asked = Displacements(providers=("sam", "random"), radii=("iso-loss",), m=40, batches=3)
    some, every = (
        measure_displacements(risk, held_out, asked, others=others, generator=rng(0)) for others in (50, None)
    )
    assert [row.measure for row in some] == [row.measure for row in every]
    moved = set()
    for one, other in zip(some, every, strict=True):
        if one.split == "other_train":
            moved |= {one.measure} if one.value != pytest.approx(other.value, rel=1e-6) else set()
        else:
            assert one.value == pytest.approx(other.value, rel=1e-9, abs=1e-12), one.measure
            assert one.stderr == pytest.approx(other.stderr, rel=1e-6, abs=1e-12, nan_ok=True)
    assert "F_cmi" in moved


def test_others_are_the_first_examples_less_those_of_the_batch():
    risk, held_out = classifier(sizes=(120,))
    asked = Displacements(providers=("random",), radii=("relative",), m=40, batches=1, relative=0.5)
    x, y = risk.batches[0]
    drawn = asked.draw(120, rng(0))[0]
    found = measure_displacements(risk, held_out, asked, others=50, correction="plug-in", generator=rng(0))
    first = torch.tensor([i for i in range(50) if i not in set(drawn.index.tolist())])
    ((_, moves),) = asked.along(risk, x, y, [drawn])
    ((_, move),) = moves
    moved = {name: t + move.delta[name] for name, t in risk.theta.items()}
    loss = [float(risk.on((x[first], y[first])).value(theta)) for theta in (moved, risk.theta)]
    row = next(r for r in found if (r.measure, r.split) == ("dCE", "other_train"))
    assert row.value == pytest.approx(loss[0] - loss[1], rel=1e-9)


def test_every_measure_that_takes_products_or_many_passes_has_the_option():
    one_pass = {
        "targets", "reliability", "baselines", "weight_norms", "spectral_norms_fft", "path_norm", "train_outputs",
        "training_speed", "example_forgetting", "forgetting_counts", "output_bias",
    }  # fmt: skip
    assert {key for key, entry in MEASURES.items() if not entry.sampled} == one_pass
