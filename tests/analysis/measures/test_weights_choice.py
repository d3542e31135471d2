"""Which weights of a run are measured: the last, the best, or the average; and models of libraries."""

import json
import math

import pytest
import torch
from commands import command
from drop_in import need

from analysis import table
from analysis.measures.checkpoints import WeightsFile, measure_checkpoint
from analysis.measures.collect import to_measure
from analysis.measures.plan import plan
from analysis.measures.subject import Subject
from analysis.measures.taking import measure_subject
from analysis.studyfile import StudyConfig
from trainers import build_model, fit
from trainers.data.splits import DataBundle, Split

TINY = {"train_size": 40, "validation_size": 20, "test_size": 20, "epochs": 3, "model_options": {"width": 4}}
DATA = {"name": "digits", "train_size": 40, "validation_size": 20, "test_size": 20}
CHOSEN = plan({"norms": {}, "targets": {}, "hessian_trace": {"draws": 2}})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = {**TINY, "average": "ema", "average_from": 0.5, "average_decay": 0.5, "keep_best": True, "lr": 1.5}
    return fit({**config, "checkpoints": [1, 2]}, out=tmp_path_factory.mktemp("runs"))


def measured(run, weights, along=None):
    (marked, calls) = reversed(to_measure([run], CHOSEN, along, weights=weights))
    assert not marked
    return [measure_checkpoint(*call) for call in calls]


def test_the_average_is_measured_as_its_weights_are_and_says_so(run):
    (rows,) = measured(run, "average")
    options = rows["options"].map(json.loads)
    assert {o.pop("weights") for o in options} == {"ema"}
    last = max(run.checkpoints())
    assert set(rows["step"]) == {last}
    elsewhere = WeightsFile(
        run.checkpoint(last) / "average.safetensors", "mlp", {"width": 4}, DATA | {"validation_size": 20}
    )
    found = measure_checkpoint(elsewhere, CHOSEN)
    pairs = table.with_variant(rows).merge(table.with_variant(found), on=["variant", "split"])
    shared = pairs[~pairs["variant"].str.contains("train_loss_final|distance|initial")]
    assert len(shared) > 20
    assert (shared["value_x"] - shared["value_y"]).abs().max() < 1e-6
    (plain,) = measured(run, "last")
    assert plain.set_index("measure").loc["test_loss", "value"] != rows.set_index("measure").loc["test_loss", "value"]
    assert not any("weights" in json.loads(o) for o in plain["options"])


def test_along_training_the_average_is_measured_from_where_it_begins(run):
    steps = [set(frame["step"]) for frame in measured(run, "average", plan(["norms"]))]
    assert steps == [{4}, {6}]  # after epoch 1 of 3 there is none
    assert [set(f["step"]) for f in measured(run, "last", plan(["norms"]))] == [{2}, {4}, {6}]


def test_the_best_is_measured_and_what_was_before_it(run):
    best = run.status()["best"]
    frames = measured(run, "best", plan(["norms"]))
    assert set(frames[-1]["step"]) == {best["step"]}
    error = frames[-1].set_index("measure").loc["validation_error", "value"]
    assert error == pytest.approx(best["validation_error"], abs=1e-6)


@pytest.mark.parametrize(("weights", "why"), [("best", "`keep_best`"), ("average", "`average` ema or swa")])
def test_a_run_without_them_is_marked(weights, why, tmp_path):
    plain = fit({**TINY, "epochs": 1}, out=tmp_path)
    calls, (marked,) = to_measure([plain], CHOSEN, weights=weights)
    assert not calls
    assert marked["value"].isna().all()
    assert marked["warnings"].str.contains(why, regex=False).all()


def test_a_run_that_ended_before_its_average_began_is_marked(tmp_path):
    config = {**TINY, "average": "swa", "early_stopping": 1, "lr": 1e-6}  # nothing improves
    early = fit(config, out=tmp_path)
    calls, (marked,) = to_measure([early], CHOSEN, weights="average")
    assert not calls
    assert (
        marked["warnings"].str.contains("ended before weights were averaged (`average_from` 0.75)", regex=False).all()
    )


def test_the_command_takes_either(run, tmp_path, capsys):
    out = tmp_path / "table.parquet"
    assert command("measure", run.folder, "--measures", "norms", "--ema", "--out", out) == 0
    assert table.read(out)["options"].str.contains('"weights": "ema"').all()
    assert command("measure", run.folder, "--measures", "norms", "--best", "--out", out) == 0
    assert set(table.read(out)["step"]) == {run.best()}
    assert command("measure", run.folder, "--measures", "norms", "--best", "--ema", "--out", out) == 2
    assert "`--ema` and `--best` are two choices of weights" in capsys.readouterr().err


def test_a_study_names_its_weights_and_trains_what_they_need():
    study = {"name": "s", "base": {**TINY, "average": "swa"}, "weights": "average"}
    StudyConfig.parse(study).check()
    with pytest.raises(ValueError, match=r"`weights` is 'best', and 1 of 1 runs are trained without `keep_best`"):
        StudyConfig.parse({**study, "weights": "best"}).check()
    plain = StudyConfig.parse({k: v for k, v in study.items() if k != "weights"})
    assert plain.digest != StudyConfig.parse(study).digest


VIT = {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "drop_path_rate": 0.1, "proj_drop_rate": 0.1}
HF = {"patch_size": 4, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
LIBRARIES = {
    "timm:vit_tiny_patch16_224": ("timm", VIT, (3, 8, 8)),
    "timm:test_resnet": ("timm", {}, (3, 8, 8)),
    "torchvision:shufflenet_v2_x0_5": ("torchvision", {}, (3, 16, 16)),
    "hf:vit": ("transformers", HF, (3, 8, 8)),
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_curvature_sharpness_and_forgetting_of_models_of_libraries(name, generator):
    library, options, shape = LIBRARIES[name]
    need(library)

    def split(n):
        x, y = torch.randn(n, *shape, generator=generator), torch.arange(n) % 3
        return Split(x, y, y, torch.arange(n))

    data = DataBundle("made", split(6), split(6), split(6), {}, 3, shape)
    model = build_model(name, shape=shape, classes=3, generator_seed=0, options=options).eval()
    wanted = plan(
        {
            "hessian_eigenvalues": {"max_products": 2}, "hessian_trace": {"draws": 2},
            "ascent_sharpness": {"rho": [0.05]},
            "perturbed_forgetting": {"providers": ["sam"], "radii": ["relative"], "m": 3, "batches": 1},
        }
    )  # fmt: skip
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rows = [row for found in measure_subject(Subject(model, data, "r"), wanted).values() for row in found]
    assert {"top_eigenvalue", "hessian_trace", "ascent_sharpness", "F_mi"} <= {row.measure for row in rows}
    failed = {(row.measure, row.warnings) for row in rows if math.isnan(row.value)}
    assert not {(measure, why) for measure, why in failed if not why.endswith("nothing was forgotten")}
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
