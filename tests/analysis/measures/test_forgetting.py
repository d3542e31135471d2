"""The entries of the registry: options reach the mathematics, rows are those announced, a run's parts are found."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stopping import without_checksums

from analysis.measures.catalogue import forgetting as entries
from analysis.measures.catalogue.complexity import training_speed
from analysis.measures.registry import MEASURES, SIGNS
from analysis.measures.subject import Subject
from analysis.table import to_frame, with_variant
from trainers import build_model, fit, load_dataset
from trainers.data.spurious import stamp
from trainers.runs.folder import Run

SMALL = {
    "dataset": "digits", "train_size": 80, "validation_size": 60, "test_size": 80, "model": "mlp", "epochs": 3,
    "model_options": {"width": 8, "depth": 1}, "method": "sam", "rho": 0.05, "seed": 0, "batch_size": 20,
    "spurious": 0.8,
}  # fmt: skip
KEYS = [
    "perturbed_forgetting", "forgetting_distances", "forgetting_of_bias", "membership", "feature_forgetting",
    "spurious_forgetting",
]  # fmt: skip


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    made = fit(SMALL, out=tmp_path_factory.mktemp("runs"))
    run = made if isinstance(made, Run) else Run(made.folder)
    config = run.config()
    data = load_dataset("digits", train_size=80, validation_size=60, test_size=80, spurious=0.8, seed=config.data_seed)
    return Subject.of_checkpoint(run, max(run.checkpoints()), data)


@pytest.mark.parametrize("key", KEYS)
def test_rows_are_those_announced_and_have_names_of_their_own(subject, key):
    rows = MEASURES[key].function(subject, providers=("sam", "shrink", "zero"), batches=2, m=20)
    assert {r.measure for r in rows} == set(MEASURES[key].rows) - set(MEASURES[key].sometimes)
    table = with_variant(to_frame(rows, run_id="a", step=1, epoch=1))
    assert table["variant"].is_unique
    known = [r for r in rows if r.options.get("provider") == "sam" and "selectivity" not in r.measure]
    assert known
    assert sum(math.isfinite(r.value) for r in known) > 0.8 * len(known)


def test_all_entries_together_name_nothing_twice(subject):
    rows = [r for key in KEYS for r in MEASURES[key].function(subject, providers=("sam",), batches=2, m=20)]
    assert with_variant(to_frame(rows, run_id="a", step=1, epoch=1))["variant"].is_unique


def test_only_what_is_nearly_free_is_usual():
    assert [key for key in KEYS if MEASURES[key].usual] == ["perturbed_forgetting"]
    assert {name for name in SIGNS if name.startswith("F_")} <= {row for e in MEASURES.values() for row in e.rows}


def test_the_batches_are_the_same_for_every_entry(subject):
    a = entries.perturbed_forgetting(subject, providers=("sam",), radii=("own",), batches=3, m=20)
    b = entries.perturbed_forgetting(subject, providers=("sam", "obf"), radii=("own",), batches=3, m=20, resamples=50)
    values = [
        {r.split: r.value for r in rows if r.measure == "dCE" and r.options["provider"] == "sam"} for rows in (a, b)
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-9)
    assert next(r for r in b if r.measure == "dCE").options["resamples"] == 50


def test_a_last_update_needs_the_checkpoint_one_step_before(subject, tmp_path):
    assert entries.last_update(subject) is None
    rows = entries.membership(subject, providers=("last_update",), radii=("iso-loss",), batches=2, m=20)
    assert rows[1].warnings == "the run's last update is not known"
    run = Run(tmp_path / "run")
    source = subject.run.checkpoint(subject.step)
    for step, shift in ((4, 0.0), (5, 0.25)):
        folder = run.checkpoint(step)
        folder.mkdir(parents=True)
        from safetensors.torch import load_file, save_file

        weights = {name: t + shift for name, t in load_file(source / "params.safetensors").items()}
        save_file(weights, folder / "params.safetensors")
        (folder / "meta.json").write_text((source / "meta.json").read_text())
        without_checksums(folder)
    model = type(subject)(subject.model, subject.data, "b", step=5, run=run)
    moved = entries.last_update(model)  # this model's weights are those of step 4
    assert all(float(t.abs().max()) < 1e-7 for t in moved.values())


def test_a_record_says_where_the_sweep_was_left_out(tmp_path):
    run = fit({**SMALL, "evaluate_every": 2, "checkpoints": [1], "spurious": None}, out=tmp_path)
    data = load_dataset("digits", train_size=80, validation_size=60, test_size=80, seed=0)
    first, last = (Subject.of_checkpoint(run, step, data) for step in (4, 12))
    swept = {r.measure: r for r in entries.example_forgetting(last) if r.options["protocol"] == "sweep"}
    assert swept["forgetting_events"].options["presentations"] == 2  # epochs 2 and 3
    shown, left_out = (
        [r for r in entries.example_forgetting(first) if r.options["protocol"] == p] for p in ("presentation", "sweep")
    )
    assert all(math.isfinite(r.value) for r in shown)
    assert {r.measure for r in left_out} == set(swept)
    assert all(math.isnan(r.value) and "`evaluate_every` left out the sweep" in r.warnings for r in left_out)
    assert {r.options["every"] for r in training_speed(last)} == {"2 epochs"}


def test_data_without_a_shortcut_say_so(subject):
    from dataclasses import replace

    plain = replace(subject, data=load_dataset("digits", train_size=80, validation_size=60, test_size=80))
    rows = entries.spurious_forgetting(plain)
    assert {r.measure for r in rows} == set(MEASURES["spurious_forgetting"].rows)
    assert all(math.isnan(r.value) and r.warnings.startswith("the data have no planted shortcut") for r in rows)


@given(st.integers(0, 2**31), st.integers(2, 20), st.booleans())
def test_a_patch_is_read_as_it_was_stamped(seed, classes, image):
    g = torch.Generator().manual_seed(seed)
    codes = torch.cat([torch.arange(classes), torch.randint(classes, (5,), generator=g)])
    x = torch.rand((len(codes), 1, 8, 8) if image else (len(codes), 1, 20), generator=g)
    found, low, high = entries.read_patch(stamp(x, codes, classes=classes, low=-1.0, high=2.0), classes=classes)
    assert torch.equal(found, codes)
    assert (low, high) == (-1.0, 2.0)


def test_several_sizes_of_the_batch_are_rows_of_their_own():
    model = build_model("mlp", shape=(1, 8, 8), classes=10, generator_seed=0, options={"width": 6}).eval()
    subject = Subject(model, load_dataset("digits", train_size=60, validation_size=60, test_size=20), "x")
    options = {"providers": ("sam",), "radii": ("iso-loss",), "batches": 2}
    both = MEASURES["perturbed_forgetting"].function(subject, m=(8, None), **options)
    single = [MEASURES["perturbed_forgetting"].function(subject, m=m, **options) for m in (8, None)]
    assert [(r.measure, r.options["m"], r.value) for r in both if r.value == r.value] == [
        (r.measure, r.options["m"], r.value) for rows in single for r in rows if r.value == r.value
    ]
    assert {r.options["m"] for r in both} == {8, None}
