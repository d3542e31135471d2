"""Regression and several labels: closed forms by hand, other libraries, dense matrices; what they refuse."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, r2_score
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.testing import assert_close

from analysis.forgetting.displacements import Displacements
from analysis.forgetting.divergences import divergence_forgetting
from analysis.measures.catalogue.values import of_set
from landscape import EmpiricalRisk, GaussNewton, Hessian, trace
from landscape.perturbation import AscentStep
from landscape.sharpness import ascent_sharpness
from trainers import Multilabel, Regression, check_task, fit, load_dataset
from trainers.config import train_config
from trainers.data.loading import noisy_targets
from trainers.tasks.multilabel import average_precision
from trainers.tasks.task import measured

TASKS = {
    "squared": Regression(), "absolute": Regression(loss_name="absolute"),
    "huber": Regression(loss_name="huber", delta=0.5),
    "gaussian": Regression(loss_name="gaussian"), "multilabel": Multilabel(),
}  # fmt: skip


def examples(task, n=9, k=2):
    g = torch.Generator().manual_seed(0)
    each = 2 if getattr(task, "loss_name", "") == "gaussian" else 1
    outputs = torch.randn(n, each * k, generator=g, dtype=torch.float64)
    y = torch.randn(n, k, generator=g, dtype=torch.float64)
    return outputs, (y > 0).double() if isinstance(task, Multilabel) else y


@pytest.mark.parametrize("name", TASKS)
def test_losses_are_torchs_own(name):
    task = TASKS[name]
    out, y = examples(task)
    wanted = {
        "squared": lambda: F.mse_loss(out, y),
        "absolute": lambda: F.l1_loss(out, y),
        "huber": lambda: F.huber_loss(out, y, delta=0.5),
        "gaussian": lambda: F.gaussian_nll_loss(out[:, :2], y, out[:, 2:].exp(), full=True),
        "multilabel": lambda: F.binary_cross_entropy_with_logits(out, y),
    }[name]()
    assert_close(task.loss(out, y), wanted)
    assert_close(task.each(out, y).mean(), wanted)
    assert check_task(task, out, y) == []
    if name != "multilabel":
        one = out[:, [0, 2]] if name == "gaussian" else out[:, :1]
        assert_close(task.loss(one, y[:, 0]), task.loss(one, y[:, :1]))  # never spread out to (n, n)


def test_all_point_losses_are_measured_by_the_squared_error():
    assert Regression(loss_name="huber", variance=2.0).plain == Regression(variance=2.0)
    assert TASKS["gaussian"].plain is TASKS["gaussian"]


def test_scores_and_numbers_of_a_set():
    out, y = examples(Regression())
    found = Regression().of_set(out, y)
    assert float(found["r2"]) == pytest.approx(r2_score(y, out), rel=1e-12)
    assert math.isnan(Regression().of_set(out, torch.ones_like(y))["r2"])
    assert_close(Regression().scores(out, y)["absolute_error"], (out - y).abs().mean(1))

    n = 4000
    g = torch.Generator().manual_seed(1)
    y = torch.randn(n, 1, generator=g, dtype=torch.float64)
    sure = torch.cat([torch.zeros(n, 1), torch.full((n, 1), math.log(0.25))], 1).double()  # σ = 1/2, and it is 1
    found = Regression(loss_name="gaussian").of_set(sure, y)
    assert float(found["variance_ratio"]) == pytest.approx(4, rel=0.1)
    assert float(found["coverage_error"]) == pytest.approx(0.95 - 0.673, abs=0.03)  # P(|z| < 0.98)


@pytest.mark.parametrize(("given", "weights"), [(3.0, [3.0, 3.0]), ("4, 0.5", [4.0, 0.5])])
def test_marks_may_weigh_more(given, weights):
    task = Multilabel(pos_weight=given)
    out, y = examples(task)
    expected = F.binary_cross_entropy_with_logits(out, y, pos_weight=torch.tensor(weights, dtype=torch.float64))
    assert_close(task.loss(out, y), expected)
    p = out.sigmoid()
    by_hand = -(torch.tensor(weights) * y * p.log() + (1 - y) * (1 - p).log()).mean(1)
    assert_close(task.each(out, y), by_hand)
    assert measured(task) == Multilabel()
    assert not check_task(task, out, y)
    risk = EmpiricalRisk(lambda theta, x: x + theta["b"], task.loss, [(out, y)], {"b": torch.zeros(2).double()})
    curved = (torch.where(y > 0, torch.tensor(weights).double(), 1.0) * p * (1 - p)).mean(0) / 2
    assert_close(Hessian(risk).dense(), torch.diag(curved))


def test_weights_of_marks_that_do_not_fit():
    for wrong in (0.0, float("nan"), "1, -2", "much"):
        with pytest.raises(ValueError, match="`pos_weight` must be a finite number above 0, or one a label as text"):
            Multilabel(pos_weight=wrong)
    with pytest.raises(ValueError, match="`pos_weight` '1, 2, 3' has 3 weights, and there are 2 labels"):
        Multilabel(pos_weight="1, 2, 3").check_targets(torch.ones(4, 2), "here")
    usual = {"task": "multilabel", "dataset": "digit_marks", "seed": 0}
    assert train_config(usual).resolved().run_id == "af835a1dcc36"  # from before there were weights
    weighted = train_config({**usual, "task_options": {"pos_weight": 2}}).resolved()
    assert weighted.run_id != "af835a1dcc36"
    with pytest.raises(ValueError, match="`pos_weight` must be"):
        train_config({"task": "multilabel", "dataset": "digit_marks", "task_options": {"pos_weight": -1}, "seed": 0})


def test_two_labels_by_hand():
    task, out = Multilabel(), torch.tensor([[2.0, -1.0], [0.5, 1.0], [-3.0, 0.2]])
    y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    scores = task.scores(out, y)
    assert scores["label_error"].tolist() == [0.0, 0.5, 0.5]
    assert scores["exact_match_error"].tolist() == [0.0, 1.0, 1.0]
    each = [math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)), math.log1p(math.exp(0.5)) + math.log1p(math.exp(-1)),
            math.log1p(math.exp(-3)) + math.log1p(math.exp(0.2))]  # fmt: skip
    assert_close(task.each(out, y), torch.tensor(each) / 2)


def test_average_precision_is_scikit_learns_with_ties():
    g = torch.Generator().manual_seed(2)
    scores, marks = (torch.randn(50, 3, generator=g) * 2).round(), (torch.rand(50, 3, generator=g) < 0.3).float()
    for j in range(3):
        assert float(average_precision(scores[:, j], marks[:, j])) == pytest.approx(
            average_precision_score(marks[:, j], scores[:, j]), rel=1e-12
        )
    whole = Multilabel().of_set(scores, marks)["average_precision"]
    assert float(whole) == pytest.approx(average_precision_score(marks, scores), rel=1e-12)
    assert math.isnan(Multilabel().of_set(scores, torch.zeros_like(marks))["average_precision"])


def test_the_error_of_a_number_of_a_set_is_that_of_a_mean_for_a_mean():
    class Mean:
        def of_set(self, outputs, _):
            return {"mean": outputs.mean()}

    x = torch.randn(40, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = of_set(Mean(), x, x)["mean"].estimate
    groups = x.reshape(2, 20).mean(0)  # every 20th example, with which the jackknife leaves out means of two
    assert found.stderr == pytest.approx(float(groups.std()) / math.sqrt(20), rel=1e-9)


def test_divergences_are_those_of_the_distributions():
    before, _ = examples(TASKS["gaussian"])
    after = before + 0.3 * before.flip(0)
    normal = lambda t: Normal(t[:, :2], torch.exp(0.5 * t[:, 2:]))  # noqa: E731
    assert_close(TASKS["gaussian"].divergence(before, after), kl_divergence(normal(before), normal(after)))
    fixed = Regression(variance=2.0)
    wanted = kl_divergence(Normal(before, math.sqrt(2)), Normal(after, math.sqrt(2)))
    assert_close(fixed.divergence(before, after), wanted)
    assert fixed.distribution == "gaussian, variance 2"
    wanted = kl_divergence(Bernoulli(logits=before), Bernoulli(logits=after))
    assert_close(Multilabel().divergence(before, after), wanted)


def linear(n=12, k=2):
    """A linear model in float64 with k outputs, its data, and what its squared error's Hessian is."""
    g = torch.Generator().manual_seed(4)
    x, y = (torch.randn(n, j, generator=g, dtype=torch.float64) for j in (3, k))
    model = torch.nn.Linear(3, k, bias=False).double()
    return model, x, y, torch.kron(torch.eye(k, dtype=torch.float64), 2 * x.T @ x / (n * k))


def test_curvature_of_the_squared_error_of_a_linear_model():
    model, x, y, expected = linear()
    risk = EmpiricalRisk.from_model(model, Regression().loss, [(x[:7], y[:7]), (x[7:], y[7:])])
    for operator in (Hessian(risk), GaussNewton(risk)):
        assert_close(operator.dense(), expected, rtol=1e-10, atol=1e-12)
    assert trace(Hessian(risk), method="exact").value == pytest.approx(float(expected.trace()), rel=1e-10)
    gradient = torch.cat([t.reshape(-1) for t in risk.gradient().values()])
    step, rho = gradient / gradient.norm(), 0.1
    rise = rho * gradient.norm() + rho**2 / 2 * step @ expected @ step
    assert ascent_sharpness(risk, AscentStep(rho)).value == pytest.approx(float(rise), rel=1e-9)


def test_forgetting_of_a_linear_model_in_closed_form():
    model, x, y, _ = linear()
    task = Regression(variance=0.5)
    risk = EmpiricalRisk.from_model(model, task.loss, [(x[:8], y[:8])])
    asked = Displacements(
        providers=("sam", "zero"), radii=("iso-loss", "relative"), m=None, iso_loss=0.3, loss=task.loss
    )
    found = {
        (r.measure, r.split, r.options["provider"], r.options["radius"], r.options.get("entry")): r
        for r in divergence_forgetting(risk, (x[8:], y[8:]), asked, task)
    }
    length = found["eps_norm", "exposed", "sam", "iso-loss", None].value
    gradient = torch.cat([t.reshape(-1) for t in risk.gradient().values()])
    delta = (length * gradient / gradient.norm()).reshape(2, 3)
    assert found["dloss", "exposed", "sam", "iso-loss", None].value == pytest.approx(0.3, rel=2e-3)
    for split, part in (("exposed", x[:8]), ("held_out", x[8:])):
        moved = (part @ delta.T).square().mean(0) / (2 * 0.5)
        assert found["KL", split, "sam", "iso-loss", None].value == pytest.approx(float(moved.mean()), rel=1e-6)
        assert found["KL_entry", split, "sam", "iso-loss", 1].value == pytest.approx(float(moved[1]), rel=1e-6)
    weight = model.weight.detach()
    before, after = ((x[8:] @ w.T - y[8:]).square().mean() for w in (weight, weight + delta))
    held = float(after - before)
    assert found["dloss", "held_out", "sam", "iso-loss", None].value == pytest.approx(held, rel=1e-6)
    gap = found["M_gap_dloss", "exposed", "sam", "iso-loss", None]
    assert gap.value == pytest.approx(0.3 - held, rel=1e-2)
    assert gap.stderr == 0
    assert found["KL", "held_out", "zero", "relative", None].value == 0
    assert "lies outside the batch" in found["KL", "other_train", "sam", "iso-loss", None].warnings


def test_diabetes_is_standardised_on_the_training_part_and_its_noise_keeps_the_targets():
    data = load_dataset("diabetes", labels=False, numbers=True)
    assert (len(data.train), len(data.validation), len(data.test)) == (266, 88, 88)
    for values in (data.train.x, data.train.y):
        assert_close(values.mean(0), torch.zeros(values.shape[1]), atol=1e-5, rtol=0)
        assert_close(values.std(0, correction=0), torch.ones(values.shape[1]), atol=1e-5, rtol=0)
    assert abs(float(data.test.x.mean(0).abs().max())) > 1e-3
    said = data.described()["standardised_targets"]
    raw = data.test.y.double() * said["deviation"][0] + said["mean"][0]
    assert_close(raw, raw.round(), atol=1e-3, rtol=0)  # what was measured are whole numbers

    noisy = load_dataset("diabetes", labels=False, numbers=True, label_noise=0.3)
    assert torch.equal(noisy.train.clean, data.train.y)
    assert torch.equal(noisy.test.y, data.test.y)
    assert 0.2 < float(noisy.train.noisy.double().mean()) < 0.4
    targets = torch.arange(2000.0)[:, None]
    less, more = (noisy_targets(targets, rate, generator=torch.Generator().manual_seed(0)) for rate in (0.2, 0.6))
    hit = (less != targets)[:, 0]
    assert float(hit.double().mean()) == pytest.approx(0.2, abs=0.03)
    assert torch.equal(less[hit], more[hit])


def test_a_table_of_numbers(tmp_path):
    file = tmp_path / "table.csv"
    draw = np.random.default_rng(0).normal(size=(40, 3)).round(4)
    file.write_text("a; b;c\n" + "\n".join("; ".join(map(str, row)) for row in draw) + "\n")
    data = load_dataset(f"csv:{file}", labels=False, numbers=True, validation_size=8, columns=("a", "c"))
    assert (data.classes, data.shape, data.train.y.shape, len(data.test)) == (2, (1,), (24, 2), 8)
    said = data.described()
    assert said["targets"] == ["a", "c"]
    raw = (
        data.test.y.double().numpy() * said["standardised_targets"]["deviation"] + said["standardised_targets"]["mean"]
    )
    assert raw == pytest.approx(draw[data.test.index][:, [0, 2]], abs=1e-5)
    last = load_dataset(f"csv:{file}", labels=False, numbers=True, validation_size=8)
    assert last.described()["targets"] == ["c"]

    for text, message in (
        ("a,b\n1,red\n2,blue\n", r"column 'b' of .* holds text such as 'red' in 2 of 2 rows, the first of them row 1"),
        ("a,b\n1,2\n2,\n3,4\n", r"column 'b' of .* holds empty cells, in 1 of 3 rows, the first of them row 2"),
        ("a,b\n1,2\n2,nan\n", r"holds 'nan', no finite number, in 1 of 2 rows"),
        ("a,b\n1,2\n2,3,4\n", r"is no table .*: give as many cells in every line"),
        ("a\n1\n2\n", r"must be different columns that leave some of the 1 as inputs"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_dataset(f"csv:{file}", labels=False, numbers=True, validation_size=0)
    file.write_text("1,2\n3,4.5\n")
    with pytest.raises(ValueError, match=r"names 'b', and .* has the columns 1, 2"):
        load_dataset(f"csv:{file}", labels=False, validation_size=0, columns=("b",))
    with pytest.raises(ValueError, match=r"the column '2' has numbers such as 4.5, and labels are whole numbers"):
        load_dataset(f"csv:{file}", validation_size=0)
    with pytest.raises(ValueError, match="`target_columns` for csv:FILE, got `dataset` 'digits'"):
        load_dataset("digits", columns=("b",))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": "regression", "dataset": "digits"}, r"targets are whole numbers .* take `task` 'classification'"),
        (
            {"task": "multilabel", "dataset": "diabetes"},
            r"the target of example 0, label 0, is .* take `task` 'regression'",
        ),
        ({"task": "multilabel", "dataset": "digits"}, r"learns one 0 or 1 for each example and label"),
        ({"dataset": "diabetes"}, r"labels must be whole numbers from 0, .*numbers are for `task` 'regression'"),
        (
            {"task": "regression", "dataset": "diabetes", "model": "numbers_task:to_three"},
            r"`model` 'numbers_task:to_three' gives 3 numbers, and the task needs 1 an example: make it 1",
        ),
        ({"task": "regression", "dataset": "numbers_task:missing"}, r"1 of \d+ targets hold NaN or infinite numbers"),
    ],
)
def test_what_does_not_fit_a_task_is_refused(given, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fit({**given, "validation_size": 20, "epochs": 1}, out=tmp_path, trust=True)


def test_options_of_tasks():
    short = {"task": "regression", "dataset": "diabetes"}
    assert train_config(short).resolved().task_options == {"loss_name": "squared", "delta": 1.0, "variance": 1.0}
    spelled = train_config({**short, "task_options": {"loss_name": "squared"}})
    assert train_config(short).run_id == spelled.run_id
    assert train_config({**short, "task_options": {"loss_name": "huber"}}).run_id != spelled.run_id
    with pytest.raises(ValueError, match="task 'regression' has no option `loss`"):
        train_config({**short, "task_options": {"loss": "huber"}})
    with pytest.raises(ValueError, match="task 'classification' has no option `delta`"):
        train_config({"task_options": {"delta": 1}})
    with pytest.raises(ValueError, match="`model` must give the task 'regression' 4 outputs an example"):
        TASKS["gaussian"].loss(torch.zeros(3, 2), torch.zeros(3, 2))
