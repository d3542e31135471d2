"""Populations: each step is the engine's to rounding, each run one like any other, and none disturbs another."""

import copy
import logging
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from analysis.cli.measure import measure
from analysis.cli.options import SpreadPlace
from analysis.study import pays
from analysis.studyfile import StudyConfig
from trainers import AscentObjective, Objective, build_model, fit, make_optimizer, obf_loss, read_weights
from trainers.config import train_config
from trainers.files.lock import locked
from trainers.files.tree import equal
from trainers.files.writing import write_json
from trainers.runs.folder import Run
from trainers.runtime import Runtime
from trainers.sharpness_aware.moment import Moment
from trainers.sweep.alike import populations, why_alone
from trainers.sweep.population import Population
from trainers.sweep.running import train_all
from trainers.sweep.stacked import Rule, Stack, StackedStep
from trainers.sweep.together import fit_together
from trainers.tasks.classification import Classification

F64 = torch.float64
LR, RHO, DECAY = [0.1, 0.05, 0.2], [0.3, 0.0, 0.1], [0.01, 0.0, 0.02]
MLP = ("mlp", (1, 3, 3), {"width": 6, "depth": 1})
RESNET = ("resnet20", (3, 8, 8), {"width": 2, "blocks": 1})
SMALL = {
    "train_size": 60, "validation_size": 40, "test_size": 50, "label_noise": 0.2, "epochs": 3, "batch_size": 16,
    "checkpoints": [2], "model_options": {"width": 8, "depth": 1}, "data_seed": "seed", "executor": "population",
}  # fmt: skip
STEPS = 4  # of an epoch of SMALL
MIXED = [{"method": "sam"}, {"method": "obf", "rho": 0.2, "lr": 0.05}, {"method": "gsam", "seed": 1, "weight_decay": 0}]
CASES = {
    "sgd": ("sgd", MLP, {}),
    "Nesterov": ("sgd", MLP, {"nesterov": True}),
    "sam": ("sam", MLP, {}),
    "clipped": ("sam", MLP, {"grad_clip": 0.1}),
    "usam": ("usam", MLP, {}),
    "asam": ("asam", MLP, {}),
    "asam, one side": ("asam", MLP, {"where": "before", "scope": "all"}),
    "gsam": ("gsam", MLP, {}),
    "gsam of directions": ("gsam", MLP, {"ascent": "obf", "backup": "direction", "adaptive": "after", "eta": 0.1}),
    "gsam, clean": ("gsam", MLP, {"minimize": "clean"}),
    "obf": ("obf", MLP, {}),
    "wsam": ("wsam", MLP, {}),
    "wsam, coupled": ("wsam", MLP, {"decouple": False}),
    "stablesam": ("stablesam", MLP, {}),
    "sam_step_size": ("sam_step_size", MLP, {}),
    "randsam": ("randsam", MLP, {}),
    "BatchNorm": ("gsam", RESNET, {}),
    "BatchNorm, drawn": ("randsam", RESNET, {}),
    "BatchNorm, plain": ("sgd", RESNET, {}),
}


def models(model, shape, options, dtype=F64):
    return [build_model(model, shape=shape, classes=4, generator_seed=i, options=options).to(dtype) for i in range(3)]


def batches(shape, size=5, dtype=F64):
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        yield torch.randn(3, size, *shape, generator=draw, dtype=dtype), torch.randint(4, (3, size), generator=draw)


def optimizers(method, made, settings):
    radii = [{} if method == "sgd" else {"rho": rho} for rho in RHO]
    return [
        make_optimizer(method, m, lr=lr, momentum=0.9, weight_decay=decay, **radius, **settings)
        for m, lr, decay, radius in zip(made, LR, DECAY, radii, strict=True)
    ]


def rule(parts, rows=slice(0, 3)):
    return Rule(rows, parts.scaler, parts.combiner, (None, 1.0, "softmax") if parts.ascent == "obf" else None)


def columns(dtype=F64):
    return torch.tensor(LR, dtype=dtype)[:, None], torch.tensor(RHO, dtype=dtype)[:, None]


def engine_step(optimizer, model, x, y):
    ascent = None
    if optimizer.parts.ascent == "obf":
        ascent = [AscentObjective(model, F.cross_entropy, x, y, ascent=obf_loss)]
    return float(optimizer.step([Objective(model, F.cross_entropy, x, y)], sizes=[len(y)], ascent=ascent))


def assert_same_models(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_that_of_the_engine(name):
    method, problem, settings = CASES[name]
    theirs, ours = models(*problem), models(*problem)
    engines, own = optimizers(method, theirs, settings), optimizers(method, ours, settings)
    stack = Stack(ours, [o.base for o in own])
    rules = [] if method == "sgd" else [rule(own[0].parts)]
    step = StackedStep(
        stack, rules, Classification().each, 0.9, settings.get("nesterov", False), settings.get("grad_clip")
    )
    lr, rho = columns()
    for t, (x, y) in enumerate(batches(problem[1])):
        losses = [engine_step(o, m, x[i], y[i]) for i, (o, m) in enumerate(zip(engines, theirs, strict=True))]
        drawn = None
        if method == "randsam":
            moments = [Moment(t, 0.0, 0.0, {n: p.detach() for n, p in m.named_parameters()}) for m in ours]
            found = [
                o.parts.source.direction(at, None) if r else None for o, at, r in zip(own, moments, RHO, strict=True)
            ]
            drawn = torch.stack([torch.zeros_like(stack.weights[0]) if d is None else stack.row(d) for d in found])
        seen = step(x, y, lr, rho, drawn)
        torch.testing.assert_close(seen.loss, torch.tensor(losses, dtype=F64), rtol=1e-12, atol=1e-12)
        for i, engine in enumerate(engines):
            assert float(seen.length[i]) == pytest.approx(engine.last.length, rel=1e-12)
            gap = engine.last.gap if engine.last.perturbed else 0.0
            assert float(seen.gap[i]) == pytest.approx(gap, abs=1e-12)
    assert_same_models(ours, theirs)
    for engine, other in zip(engines, own, strict=True):
        a, b = engine.state_dict()["state"], other.state_dict()["state"]
        for place, held in a.items():
            torch.testing.assert_close(b[place]["momentum_buffer"], held["momentum_buffer"], rtol=1e-12, atol=1e-12)


def test_a_step_reads_no_number_and_stays_on_its_device():
    parts = optimizers("gsam", models(*MLP), {})[0].parts

    class Reads(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.found += function is torch.ops.aten._local_scalar_dense.default
            return function(*args, **(kwargs or {}))

    ours = models(*MLP)
    step = StackedStep(
        Stack(ours, [o.base for o in optimizers("gsam", ours, {})]), [rule(parts)], Classification().each, 0.9
    )
    x, y = next(batches(MLP[1]))
    with Reads() as reads:
        step(x, y, *columns())
    assert reads.found == 0
    stack = copy.copy(step.stack)  # on a device without numbers, where reading one, or one on the CPU, raises
    for name in ("weights", "momenta", "decay", "scaled"):
        setattr(stack, name, getattr(stack, name).to("meta"))
    stack.skeleton = ours[0].to("meta")
    given = [t.to("meta") for t in (x, y, *columns())]
    seen = StackedStep(stack, [rule(parts)], Classification().each, 0.9)(*given)
    assert seen.gap.device.type == "meta"


# -- whole runs --------------------------------------------------------------------------------------------------------


def configs(*variants, **more):
    return [train_config({**SMALL, **more, **variant}) for variant in variants]


def alone(config):
    return config.model_copy(update={"executor": "alone"})


def assert_same_bits(one, other):
    assert one.history().drop(columns="seconds").equals(other.history().drop(columns="seconds"))
    assert (one.correctness("presentation") == other.correctness("presentation")).all()
    assert one.checkpoints().keys() == other.checkpoints().keys()
    for step, folder in one.checkpoints().items():
        assert equal(read_weights(folder), read_weights(other.checkpoint(step)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fit_together(configs(*MIXED), out=tmp_path_factory.mktemp("whole"))


def test_runs_are_like_any_other_and_equal_those_by_themselves_to_rounding(tmp_path):
    some = configs(
        *MIXED, {"method": "sgd"}, {"method": "randsam"}, {"method": "sam", "gate": "random"}, precision="float64"
    )
    assert [len(part) for part in populations(some)] == [4, 1, 1]
    runs = {run.run_id: run for run in train_all(some, out=tmp_path, jobs=1)}
    for config in some:
        run, own = runs[config.run_id], fit(alone(config), out=tmp_path)
        assert run.run_id != own.run_id
        assert run.settings() == {**own.settings(), "executor": "population"}
        assert run.status()["status"] == "finished"
        assert run.checkpoints().keys() == own.checkpoints().keys()
        a, b = (r.history().drop(columns="seconds").to_numpy(float) for r in (run, own))
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
        for protocol in ("presentation", "sweep"):
            assert (run.correctness(protocol) == own.correctness(protocol)).all()
        for step, folder in run.checkpoints().items():
            theirs = read_weights(own.checkpoint(step))
            for name, t in read_weights(folder).items():
                torch.testing.assert_close(t, theirs[name], rtol=1e-9, atol=1e-11)


def test_stopped_in_the_middle_of_an_epoch_and_continued(whole, tmp_path, monkeypatch):
    take, some = Population.step, configs(*MIXED)

    def step(self):
        take(self)
        if self.trainings[0].step + len(self.taken) == STEPS + 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Population, "step", step)
    with pytest.raises(SystemExit) as ended:
        fit_together(some, out=tmp_path)
    assert ended.value.code == 143
    for config in some:
        status = Run(tmp_path / config.run_id).status()
        assert (status["status"], status["steps"]) == ("interrupted", STEPS + 2)
        assert "stopped by SIGTERM after step 6 of 12; the same command continues" in status["reason"]
    monkeypatch.undo()
    for one, other in zip(whole, fit_together(some, out=tmp_path, snapshot_seconds=0), strict=True):
        assert_same_bits(one, other)


def test_runs_at_different_steps_catch_up(whole, tmp_path):
    some = configs(*MIXED)
    fit_together(some[:1], out=tmp_path, stop=lambda epoch: epoch == 1)
    assert fit(some[2], out=tmp_path).status()["status"] == "finished"  # a population of one
    for one, other in zip(whole, fit_together(some, out=tmp_path), strict=True):
        assert_same_bits(one, other)


def test_a_run_that_diverges_fails_or_is_taken_disturbs_no_other(whole, tmp_path):
    some = configs(MIXED[0], {"method": "sam", "lr": 1e30}, *MIXED[1:], {"method": "sam", "seed": 3})
    with locked(tmp_path / some[-1].run_id):
        ended = {run.folder.name: run.status() for run in train_all(some, out=tmp_path, jobs=1)}
    diverged = ended.pop(some[1].run_id)
    assert diverged["status"] == "diverged"
    assert diverged["epochs"] == 1
    assert ended.pop(some[-1].run_id)["status"] == "interrupted"  # the other process's
    for run in whole:
        assert_same_bits(run, Run(tmp_path / run.run_id))


def test_early_stopping_lets_a_run_leave(tmp_path):
    some = configs({"lr": 1e-12, "early_stopping": 1}, {"lr": 0.1, "keep_best": True}, validation_size=40)
    first, second = fit_together(some, out=tmp_path)
    assert first.status()["epochs"] == 2
    assert second.status()["epochs"] == 3
    assert second.best() is not None


@pytest.mark.parametrize(("setting", "reason"), [
    ({"method": "sampa"}, "`method` 'sampa'"),
    ({"method": "sam", "m": 4}, "`m` 4"),
    ({"method": "sam", "method_options": {"p": 3.0}}, "`method` 'sam'"),
    ({"method": "wsam", "ascent": "obf"}, "`ascent` 'obf' with `method` 'wsam'"),
    ({"model": "vit", "model_options": {}}, "`model` 'vit'"),
    ({"model_options": {"dropout": 0.1}}, "`model_options`"),
    ({"method": "sam", "base": "adamw"}, "`base` 'adamw'"),
    ({"augment": ("flip",)}, "`augment`"),
    ({"precision": "bfloat16"}, "`precision` 'bfloat16'"),
    ({"average": "ema"}, "`average` 'ema'"),
    ({"gate": "adaptive", "method": "sam"}, "`gate` 'adaptive'"),
])  # fmt: skip
def test_runs_that_no_population_holds_are_those_by_themselves(setting, reason):
    config = train_config({**SMALL, **setting})
    assert reason in why_alone(config.resolved())
    assert config.run_id == alone(config).run_id
    assert len(populations([config, config.model_copy(update={"seed": 5})])) == 2


def test_what_cannot_be_together_is_said(tmp_path, caplog):
    with pytest.raises(ValueError, match="`configs` must be of one population"):
        fit_together(configs({"method": "sam"}, {"method": "sgd"}), out=tmp_path)
    with pytest.raises(ValueError, match="`log_steps` 1 is not for `executor` 'population'"):
        fit(configs({})[0], out=tmp_path, log_steps=1)
    with caplog.at_level(logging.WARNING):
        some = [
            alone(c)
            for c in configs({"method": "nsam", "epochs": 1, "checkpoints": []}, {"epochs": 1, "checkpoints": []})
        ]
        ran = list(train_all(some, out=tmp_path, jobs=1, executor="population"))
    assert "1 of 2 runs train one at a time, as no population holds `method` 'nsam'" in caplog.text
    assert [run.settings()["executor"] for run in ran] == ["alone", "population"]


# -- studies -----------------------------------------------------------------------------------------------------------

STUDY = {"name": "small", "base": {k: v for k, v in SMALL.items() if k != "executor"}, "methods": [{"method": "sam"}]}


def test_a_study_is_trained_in_populations_where_it_is_told_or_where_that_pays(tmp_path, monkeypatch):
    study = StudyConfig(**STUDY)
    assert [c.resolved().executor for c in study.in_populations().configs()] == ["population"]
    on_gpu = Runtime()
    assert not pays(study, on_gpu, tmp_path)  # never on a CPU
    monkeypatch.setattr(Runtime, "devices", property(lambda _: ("cuda:0", "cuda:1")))
    assert pays(study, on_gpu, tmp_path)
    assert not pays(StudyConfig(**{**STUDY, "methods": [{"method": "sampa"}]}), on_gpu, tmp_path)
    for made, answer in ((study, False), (study.in_populations(), True)):  # a folder goes on as it was
        write_json(tmp_path / "study.json", {"study": {}, "digest": made.digest})
        assert pays(study, on_gpu, tmp_path) is answer


def test_measures_take_one_model_at_a_time(tmp_path):
    with pytest.raises(ValueError, match="`executor` 'population' is for training"):
        measure(tmp_path, place=SpreadPlace(executor="population"))
