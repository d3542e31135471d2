"""Measures of curvature against dense matrices in float64, and what they do when a kernel, a run or a user says no."""

import io
import itertools
import json
import math
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.autograd.function import once_differentiable

from analysis import progress
from analysis.cli import main
from analysis.measures.catalogue import curvature
from analysis.measures.catalogue.curvature import Stability
from analysis.measures.collect import measure_run
from analysis.measures.plan import plan
from analysis.measures.registry import MEASURES
from analysis.measures.subject import Subject
from analysis.measures.taking import measure_subject
from landscape import Estimate
from landscape.progress import Status
from trainers import Run, build_model, fit, load_dataset
from trainers.config import train_config

ALL = 10**6  # draws beyond p: exact traces
RUN = {
    "train_size": 40, "validation_size": 20, "test_size": 20, "epochs": 4, "batch_size": 40, "checkpoints": (2,),
    "model_options": {"width": 4}, "lr": 0.1, "lr_schedule": "constant", "momentum": 0.0, "weight_decay": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits", train_size=40, validation_size=30, test_size=30)


def small_model(shape=(1, 8, 8)):
    return build_model("mlp", shape=shape, classes=10, generator_seed=0, options={"width": 5, "depth": 2}).eval()


@pytest.fixture(scope="module")
def subject(data):
    return Subject(small_model(), data, "x")


class Dense:
    """The matrices of a subject, by torch.func in float64."""

    def __init__(self, subject):
        double = small_model().double()
        double.load_state_dict({k: v.double() for k, v in subject.model.state_dict().items()})
        theta = {k: v.detach() for k, v in double.named_parameters()}
        self.sizes = {k: v.numel() for k, v in theta.items()}
        x, y = subject.data.train.x.double(), subject.data.train.y

        def unflat(v):
            parts = v.split(list(self.sizes.values()))
            return {k: part.view_as(theta[k]) for k, part in zip(theta, parts, strict=True)}

        def logits(v):
            return torch.func.functional_call(double, unflat(v), (x,))

        def loss(v):
            return nn.functional.cross_entropy(logits(v), y)

        self.w = torch.cat([t.reshape(-1) for t in theta.values()])
        self.n = len(x)
        self.H = torch.autograd.functional.hessian(loss, self.w)
        J = torch.func.jacrev(logits)(self.w)
        p = logits(self.w).softmax(-1)
        A = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        self.G = torch.einsum("ncp,ncd,ndq->pq", J, A, J) / self.n
        slopes = p - nn.functional.one_hot(y, 10)
        self.squares = torch.einsum("ncp,nc->np", J, slopes).square().sum(1)

    @property
    def blocks(self):
        ends = np.cumsum([0, *self.sizes.values()])
        return [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]


@pytest.fixture(scope="module")
def exact(subject):
    return Dense(subject)


def values_of(rows):
    return {r.measure: r for r in rows}


def test_both_ends_and_their_ratio(subject, exact):
    rows = values_of(curvature.hessian_eigenvalues(subject, tol=1e-4))
    eigenvalues = torch.linalg.eigvalsh(exact.H)
    low, high = float(eigenvalues[0]), float(eigenvalues[-1])
    for name, truth in (("top_eigenvalue", high), ("bottom_eigenvalue", low), ("lambda_ratio", -low / high)):
        assert rows[name].value == pytest.approx(truth, abs=rows[name].stderr + 1e-5 * high)
        assert 0 < rows[name].stderr < 2e-4 * high
    assert all(r.converged and not r.warnings for r in rows.values())
    about = {"loss": "cross_entropy", "mode": "eval", "n": 40, "tol": 1e-4, "own_tol": 5e-2}
    assert rows["top_eigenvalue"].options == about
    assert "stability_ratio" not in rows  # no run, so no learning rate


def test_the_smaller_end_is_known_beside_itself_and_not_only_beside_the_larger(subject, exact):
    low = float(torch.linalg.eigvalsh(exact.H)[0])
    errors = []
    for own_tol in (1e6, 1e-2):
        row = values_of(curvature.hessian_eigenvalues(subject, tol=0.03, own_tol=own_tol))["bottom_eigenvalue"]
        assert row.converged
        errors.append(row.stderr / abs(row.value))
        assert abs(row.value - low) <= row.stderr
    assert errors[1] <= 1.01e-2 < errors[0]


def test_no_ratio_to_a_largest_eigenvalue_below_zero(subject, monkeypatch):
    monkeypatch.setattr(Subject, "hessian", property(lambda _: Concave()))
    row = values_of(curvature.hessian_eigenvalues(subject))["lambda_ratio"]
    assert math.isnan(row.value)
    assert "the largest eigenvalue is -1" in row.warnings


class Concave:
    shape, dtype, device, note = torch.Size((6, 6)), torch.float32, torch.device("cpu"), ""

    def __matmul__(self, v):
        return -torch.arange(1.0, 7.0).view(-1, *[1] * (v.ndim - 1)) * v


def test_traces_exactly(subject, exact):
    rows = values_of(curvature.hessian_trace(subject, draws=ALL))
    blocks = exact.blocks
    layerwise = sum(float(exact.H[b, b].trace() * exact.w[b].square().sum()) for b in blocks)
    assert rows["hessian_trace"].value == pytest.approx(float(exact.H.trace()), rel=1e-4)
    assert rows["layerwise_trace"].value == pytest.approx(layerwise, rel=1e-4)
    assert rows["layerwise_trace"].stderr == rows["hessian_trace"].stderr == 0


def test_layerwise_trace_adds_its_parts_errors_in_their_units(subject, exact, monkeypatch):
    parts = {name: Estimate(2.0, 0.5, 10) for name in exact.sizes}
    monkeypatch.setattr(curvature, "trace", lambda *_, **__: Estimate(12.0, 1.0, 10, parts=parts))
    row = values_of(curvature.hessian_trace(subject))["layerwise_trace"]
    squared = float(exact.w.square().sum())
    assert (row.value, row.stderr) == (pytest.approx(2 * squared), pytest.approx(0.5 * squared))


def test_errors_of_traces_are_honest(subject, exact):
    inside = []
    layerwise = sum(float(exact.H[b, b].trace() * exact.w[b].square().sum()) for b in exact.blocks)
    for seed in range(12):
        rows = values_of(curvature.hessian_trace(replace(subject, seed=seed)))
        assert rows["hessian_trace"].options["method"] != "exact"
        for name, truth in (("hessian_trace", float(exact.H.trace())), ("layerwise_trace", layerwise)):
            inside.append(abs(rows[name].value - truth) <= 3 * rows[name].stderr)
    assert sum(inside) >= len(inside) - 2


def test_adaptive_curvature(subject, exact):
    rows = values_of(curvature.adaptive_curvature(subject, tol=1e-4, draws=ALL))
    scaled = exact.w.abs()[:, None] * exact.H * exact.w.abs()[None, :]
    top = float(torch.linalg.eigvalsh(scaled)[-1])
    assert rows["adaptive_eigenvalue"].value == pytest.approx(top, rel=1e-3)
    assert rows["adaptive_trace"].value == pytest.approx(float(scaled.trace()), rel=1e-4)


def test_gauss_newton_and_empirical_fisher(subject, exact):
    rows = values_of(curvature.gauss_newton(subject, tol=1e-4, draws=ALL))
    assert rows["gauss_newton_eigenvalue"].value == pytest.approx(float(torch.linalg.eigvalsh(exact.G)[-1]), rel=1e-3)
    assert rows["gauss_newton_trace"].value == pytest.approx(float(exact.G.trace()), rel=1e-4)
    (moment,) = curvature.gradient_moment(subject)
    assert moment.value == pytest.approx(float(exact.squares.mean()), rel=1e-4)
    assert moment.stderr == 0


@pytest.mark.parametrize("z", [None, 0.1])
def test_effective_dimension(subject, exact, z):
    (row,) = curvature.model_dimension(subject, z=z, runs=8)
    eigenvalues = torch.linalg.eigvalsh(exact.G).clamp_min(0)
    shift = 1 / exact.n if z is None else z
    truth = float((eigenvalues / (eigenvalues + shift)).sum())
    assert row.value == pytest.approx(truth, abs=4 * row.stderr + 1e-3 * truth)
    assert row.stderr < 0.2 * truth
    assert row.options["z"] == ("1/n" if z is None else 0.1)


def test_spectrum(subject, exact):
    rows = values_of(curvature.spectrum(subject, runs=8))
    eigenvalues = torch.linalg.eigvalsh(exact.H)
    negative = float((eigenvalues < -1e-3 * eigenvalues.abs().max()).double().mean())
    q = eigenvalues.abs() / eigenvalues.abs().sum()
    entropy = float(-(q * q.clamp_min(1e-300).log()).sum())
    assert 0.1 < negative < 0.2
    assert rows["negative_mass"].value == pytest.approx(negative, abs=3 * rows["negative_mass"].stderr + 0.01)
    assert rows["negative_mass"].stderr < 0.02
    assert rows["spectral_entropy"].value == pytest.approx(entropy, abs=4 * rows["spectral_entropy"].stderr + 0.05)
    assert rows["bulk_width"].value > 0
    assert all(r.draws == 8 and r.stderr > 0 for r in rows.values())


def test_relative_measures_do_not_see_a_rescaling_of_relu_layers(subject, data):
    model = small_model()
    weights = [p for p in model.parameters() if p.ndim == 2]
    biases = [p for p in model.parameters() if p.ndim == 1]
    with torch.no_grad():
        weights[0] *= 10
        biases[0] *= 10
        weights[1] /= 10
    other = Subject(model, data, "y")
    chosen = plan({"hessian_trace": {"draws": ALL}, "adaptive_curvature": {"draws": ALL, "tol": 1e-5}})
    before, after = (
        values_of(r for rows in measure_subject(s, chosen).values() for r in rows) for s in (subject, other)
    )
    for name in ("layerwise_trace", "adaptive_trace", "adaptive_eigenvalue"):
        assert after[name].value == pytest.approx(before[name].value, rel=2e-3), name
    assert abs(after["hessian_trace"].value / before["hessian_trace"].value - 1) > 0.1


# -- the edge of stability -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(RUN, out=tmp_path_factory.mktemp("runs"))


def at(run, step):
    config = run.config()
    data = load_dataset("digits", train_size=40, validation_size=20, test_size=20)
    assert config.train_size == 40
    return Subject.of_checkpoint(run, step, data)


@pytest.mark.parametrize(
    ("change", "threshold"),
    [
        ({}, 2 / 0.1),
        ({"momentum": 0.9}, 2 * 1.9 / 0.1),
        ({"momentum": 0.9, "nesterov": True}, 2 * 1.9 / (0.1 * 2.8)),
        ({"batch_size": 20}, 2 / 0.1),
    ],
)
def test_thresholds_of_sgd(run, change, threshold):
    given = replace(at(run, 4), config=train_config({**RUN, **change}))
    found = Stability.of(given)
    assert found.threshold == pytest.approx(threshold)
    assert found.full_batch == (change.get("batch_size", 40) == 40)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "sam"}, {"method": "adamw"}, {"loss": "bce"}, {"label_smoothing": 0.1}, {"grad_clip": 1.0},
        {"shrink_perturb": 0.1},
    ],
)  # fmt: skip
def test_no_threshold_where_none_is_known(run, change):
    assert Stability.of(replace(at(run, 4), config=train_config({**RUN, **change}))) is None


def test_no_threshold_without_a_run_or_a_step(run, subject):
    assert Stability.of(subject) is None
    assert Stability.of(at(run, 0)) is None


def test_stability_ratio_is_taken_at_the_step_s_own_learning_rate(run, tmp_path):
    folder = fit({**RUN, "lr_schedule": "step", "lr_milestones": (0.7,), "weight_decay": 0.01}, out=tmp_path).folder
    chosen = plan(["hessian_eigenvalues"])
    table = measure_run(folder, chosen, along=chosen)
    wide = table.pivot_table(index="step", columns="measure", values="value")
    rates = {2: 0.1, 4: 0.01}
    for step, lr in rates.items():
        expected = (wide.loc[step, "top_eigenvalue"] + 0.01) * lr / 2
        assert wide.loc[step, "stability_ratio"] == pytest.approx(expected)
    options = [json.loads(o) for o in table.loc[table["measure"] == "stability_ratio", "options"]]
    assert [o["lr"] for o in options] == [pytest.approx(0.1), pytest.approx(0.01)]
    assert all(o["full_batch"] for o in options)


# -- operators that say something, and memory ------------------------------------------------------------------------


class Halve(torch.autograd.Function):
    """x/2 with a first derivative alone."""

    @staticmethod
    def forward(_, x):
        return x / 2

    @staticmethod
    @once_differentiable
    def backward(_, grad):
        return grad / 2


class Once(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return Halve.apply(2 * self.inner(x))


def test_what_an_operator_says_stands_in_each_row_once(data):
    smooth = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 10)).eval()
    odd = Subject(Once(smooth), data, "odd")
    rows = values_of(
        r for found in measure_subject(odd, plan(["hessian_eigenvalues", "hessian_trace"])).values() for r in found
    )
    assert all(r.warnings.count("finite differences") == 1 for r in rows.values())
    plain = values_of(curvature.hessian_eigenvalues(Subject(smooth, data, "plain")))
    assert rows["top_eigenvalue"].value == pytest.approx(plain["top_eigenvalue"].value, rel=5e-3)


def test_no_graph_is_kept_where_memory_is_short(data, monkeypatch):
    monkeypatch.setattr("analysis.measures.subject.free_bytes", lambda _: 1000)
    assert Subject(small_model(), data, "x").hessian.path == "afresh"


@pytest.mark.parametrize(
    ("model", "options"),
    [("cnn", {}), ("resnet20", {"width": 2}), ("vit", {"dim": 8, "depth": 1, "heads": 2})],
)
def test_every_model_of_ours_can_be_measured(model, options, data):
    built = build_model(model, shape=data.shape, classes=10, generator_seed=0, options=options)
    given = {
        "hessian_eigenvalues": {"max_products": 6}, "hessian_trace": {"draws": 4}, "empirical_fisher": None,
        "gauss_newton": {"max_products": 4, "draws": 4}, "spectrum": {"runs": 2, "steps": 3},
    }  # fmt: skip
    found = measure_subject(Subject(built.eval(), data, model), plan(given))
    rows = [r for part in found.values() for r in part if r.measure != "stability_ratio"]
    assert all(math.isfinite(r.value) for r in rows), [r for r in rows if not math.isfinite(r.value)]
    assert not any("finite differences" in r.warnings for r in rows)


# -- which measures are taken, and what is kept when it ends early ---------------------------------------------------


def test_expensive_measures_are_taken_only_if_named():
    usual = plan(None)
    assert {"hessian_eigenvalues", "hessian_trace", "norms"} <= set(usual)
    assert not {"spectrum", "effective_dimension", "adaptive_curvature"} & set(usual)
    assert set(plan(["all"])) == set(MEASURES)
    chosen = plan({"all": None, "hessian_trace": {"draws": 5}})
    assert set(chosen) == set(MEASURES)
    assert chosen["hessian_trace"] == {"draws": 5}


def stop_in(work):
    def tell(status):
        if status.work == work and status.products >= 3:
            raise KeyboardInterrupt

    return tell


def test_ctrl_c_keeps_what_is_finished_and_nothing_half(tmp_path):
    folder = fit(RUN, out=tmp_path).folder
    chosen = plan(["norms", "hessian_eigenvalues", "hessian_trace"])
    begun = []
    with pytest.raises(KeyboardInterrupt):
        measure_run(folder, chosen, begin=begun.append, progress=stop_in("trace"))
    assert begun == ["norms", "hessian_eigenvalues", "hessian_trace"]
    last = max(Run(folder).checkpoints())
    kept = pd.read_parquet(folder / "measures" / f"{last}.parquet")
    assert set(kept["measure"]) >= {"gradient_norm", "top_eigenvalue"}
    assert "hessian_trace" not in set(kept["measure"])
    begun.clear()
    table = measure_run(folder, chosen, begin=begun.append)
    assert begun == ["hessian_trace"]
    assert table["converged"].all()
    assert not table["warnings"].str.contains("interrupted").any()


def test_ctrl_c_at_a_file_of_weights_keeps_what_is_finished(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    torch.save(small_model().state_dict(), tmp_path / "theirs.pt")
    arguments = ["measure", str(tmp_path / "theirs.pt"), "--model", "mlp", "--model-options", "width", "5"]
    arguments += ["--train-size", "40", "--measures", "norms", "hessian_trace"]
    with monkeypatch.context() as patch:
        patch.setitem(MEASURES, "hessian_trace", replace(MEASURES["hessian_trace"], function=stop))
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
    assert stopped.value.code == 130
    assert not (tmp_path / "theirs.measures.parquet").exists()
    monkeypatch.setitem(MEASURES, "norms", replace(MEASURES["norms"], function=stop))  # it need not be taken again
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    kept = pd.read_parquet(tmp_path / "theirs.measures.parquet").set_index("measure")
    assert math.isfinite(kept.loc["gradient_norm", "value"])
    assert math.isfinite(kept.loc["hessian_trace", "value"])


# -- progress --------------------------------------------------------------------------------------------------------


def test_progress_of_long_work_is_a_plain_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.steps("measuring", 2) as (begin, tell):
        begin("norms")
        begin("hessian_trace")
        tell(Status("trace", 7, 20, 0.25))
    assert capsys.readouterr().err.splitlines() == [
        "measuring 1 of 2: norms",
        "measuring 2 of 2: hessian_trace",
        "measuring 2 of 2: trace: 7 of at most 20 products, residual 2.5e-01",
    ]


def test_short_work_says_nothing(capsys):
    with progress.steps("measuring", 1) as (begin, tell):
        begin("norms")
        tell(Status("trace", 7, 20, 0.25))
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_is_one_bar(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=screen, force_terminal=True, width=120))
    with progress.steps("measuring", 2) as (begin, tell):
        begin("norms")
        begin("hessian_trace")
        tell(Status("trace", 7, 20, 0.25))
        assert "1/2" in frame(screen)
        assert "trace: 7 of at most 20 products" in frame(screen)
    assert "2/2" in screen.getvalue()


def frame(screen):
    deadline = time.monotonic() + 5  # the bar draws itself ten times a second
    while "7 of at most" not in screen.getvalue() and time.monotonic() < deadline:
        time.sleep(0.02)
    return screen.getvalue()
