"""Language: scores and forgetting by hand, dense float64 matrices of a tiny transformer, and what is refused."""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call
from torch.testing import assert_close

from analysis.forgetting.displacements import Displacements
from analysis.forgetting.perturbed import measure_displacements
from analysis.forgetting.tokens import TokenEvaluation
from analysis.measures.collect import measure_run
from analysis.measures.plan import plan
from landscape import EmpiricalRisk, GaussNewton, Hessian, top_eigenpairs, trace
from landscape.params import flatten, norm
from landscape.perturbation import AscentStep
from landscape.sharpness import ascent_sharpness
from trainers import fit, load_dataset
from trainers.config import train_config
from trainers.data.sources.text import TextReading, sequences
from trainers.models.gpt import gpt
from trainers.tasks.check import check_task
from trainers.tasks.language import Language

TASK = Language()
TINY = {
    "task": "language", "model": "gpt", "model_options": {"width": 8, "depth": 1, "heads": 2}, "batch_size": 8,
    "task_options": {"context": 16}, "train_size": 24, "validation_size": 16, "test_size": 8, "epochs": 1, "lr": 0.01,
}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "some.txt"
    path.write_text("".join(f"line {i % 7} says {'ab' * (i % 5)}\n" for i in range(100)))
    return path


def problem(tied=True, ignored=True):
    """A tiny transformer in float64, with sequences some places of which do not count."""
    g = torch.Generator().manual_seed(0)
    model = gpt((3,), 5, width=4, depth=1, heads=2, tied=tied).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    x, y = (torch.randint(5, (4, 3), generator=g) for _ in range(2))
    if ignored:
        y[0, 1:] = y[2, 0] = -100
    batches = [(x[:3], y[:3]), (x[3:], y[3:])]
    risk = EmpiricalRisk.from_model(model, TASK.loss, batches, weight=lambda _, t: TASK.weight(t))

    def loss(theta):
        parts = dict(zip(risk.names, theta.split([risk.theta[n].numel() for n in risk.names]), strict=True))
        parts = {n: t.view(risk.theta[n].shape) for n, t in parts.items()}
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            logits = functional_call(model, parts, (x,)).transpose(1, 2).flatten(0, 1)
        keep = (y != -100).flatten()
        logs = logits[keep] - logits[keep].logsumexp(1, keepdim=True)
        return -logs.gather(1, y.flatten()[keep][:, None]).mean()

    return risk, loss, flatten(risk.theta, risk.names)


@pytest.mark.parametrize("tied", [True, False])
def test_curvature_is_that_of_the_dense_matrix(tied):
    risk, loss, theta = problem(tied)
    dense = torch.autograd.functional.hessian(loss, theta)
    H = Hessian(risk)
    v = torch.randn(len(theta), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert_close(H @ v, dense @ v, rtol=1e-9, atol=1e-10)
    assert risk.value() == pytest.approx(float(loss(theta)), rel=1e-12)
    assert trace(H, method="exact").value == pytest.approx(float(dense.trace()), rel=1e-8)
    top = top_eigenpairs(H, tol=1e-8)
    assert float(top.values[0]) == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-6)
    g = torch.func.grad(loss)(theta)
    rise = float(loss(theta + 0.1 * g / g.norm()) - loss(theta))
    assert float(ascent_sharpness(risk, AscentStep(0.1)).value) == pytest.approx(rise, rel=1e-8)


@pytest.mark.parametrize("ignored", [True, False])
@pytest.mark.parametrize("path", ["kept", "afresh", "forward"])
def test_gauss_newton_of_tokens_is_the_dense_one(ignored, path):
    risk, _, theta = problem(ignored=ignored)
    x, y = (torch.cat([b[i] for b in risk.batches]) for i in (0, 1))
    keep = (y != -100).flatten()

    def logits(flat):
        parts = dict(zip(risk.names, flat.split([risk.theta[n].numel() for n in risk.names]), strict=True))
        parts = {n: t.view(risk.theta[n].shape) for n, t in parts.items()}
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return risk.predict(parts, x).transpose(1, 2).flatten(0, 1)[keep]

    J = torch.autograd.functional.jacobian(logits, theta)
    p = logits(theta).softmax(1).detach()
    A = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    dense = torch.einsum("icp,icd,idq->pq", J, A, J) / len(p)
    v = torch.randn(len(theta), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert_close(GaussNewton(risk, path=path) @ v, dense @ v, rtol=1e-9, atol=1e-12)


def test_a_loss_by_hand_says_perplexity_and_bits():
    # of two tokens, with probabilities 1/2 and 1/8: ln 4 a token, 2 bits, and half of them a byte of two-byte tokens
    logits = torch.tensor([[[0.5, 0.125], [0.5, 0.875]]]).log()
    y = torch.tensor([[0, 0]])
    loss = float(TASK.loss(logits, y))
    assert TASK.of_loss(loss, 2.0) == pytest.approx({"perplexity": 4.0, "bits_per_byte": 1.0})
    assert float(TASK.scores(logits, y)["token_error"][0]) == 0.5
    y = torch.tensor([[0, -100]])
    assert float(TASK.each(logits, y)[0]) == pytest.approx(math.log(2))
    assert TASK.weight(y) == 1
    g = torch.Generator().manual_seed(0)
    y = torch.randint(4, (5, 3), generator=g)
    y[0, 1] = y[3, 0] = -100
    assert check_task(TASK, torch.randn(5, 4, 3, generator=g), y) == []


def test_each_token_is_a_target_once():
    documents = [np.arange(11), np.arange(11, 14)]
    x, y = sequences("d", documents, TextReading(4), 256)
    assert_close(x, torch.arange(12).view(3, 4))
    assert_close(y, torch.arange(1, 13).view(3, 4))
    x, y = sequences("d", documents, TextReading(12, packing="padded"), 256)
    assert_close(y[1], torch.tensor([12, 13, *[-100] * 10]))
    x, y = sequences("d", documents, TextReading(7, objective="masked"), 256)
    assert bool(((x == 256) == (y != -100)).all())
    assert bool((y != -100).any(1).all())
    assert_close(torch.where(y == -100, x, y), torch.arange(14).view(2, 7))


class Table(torch.nn.Module):
    """Logits of the next token by a table with a row a token."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.tensor([[1.0, 0.0, -2.0], [0.5, 1.0, -1.0], [0.0, 0.0, 0.0]]).double())

    def forward(self, x):
        return self.table[x].transpose(1, 2)


def test_forgetting_of_two_tokens_is_that_by_hand():
    g = torch.Generator().manual_seed(0)
    x = torch.randint(2, (40, 8), generator=g)
    y = torch.randint(2, (40, 8), generator=g)
    y[0, 0] = 2  # a rare token
    model = Table()
    risk = EmpiricalRisk.from_model(model, TASK.loss, [(x[:24], y[:24])], weight=lambda _, t: TASK.weight(t))
    asked = Displacements(providers=("sam",), radii=("relative",), m=None, batches=1, relative=0.3)
    rows = measure_displacements(
        risk, (x[24:], y[24:]), asked, metrics=("KL", "dCE", "cw", "F_mi"), gaps=(), correction="plug-in", task=TASK
    )
    found = {(r.measure, r.split): r for r in rows}
    gradient = risk.gradient()["table"]
    moved = model.table.detach() + gradient * (0.3 * model.table.detach().norm() / gradient.norm())
    p, q = (t.detach().softmax(1)[x[24:].flatten()] for t in (model.table, moved))
    label = y[24:].flatten()
    i = torch.arange(len(label))

    def information(t):
        mean = t.mean(0)
        return float((t * (t / mean).log()).sum(1).mean())

    expected = {
        "KL": float((p * (p / q).log()).sum(1).mean()),
        "dCE": float((p[i, label] / q[i, label]).log().mean()),
        "cw": float(((p.argmax(1) == label) & (q.argmax(1) != label)).double().mean()),
        "F_mi": information(p) - information(q),
    }
    for name, value in expected.items():
        assert found[name, "held_out"].value == pytest.approx(value, rel=1e-9, abs=1e-12), name
    assert found["KL", "held_out"].options["classes"] == 3
    assert 0 < found["KL", "held_out"].options["pooled"] < 0.01


def test_rare_tokens_are_one_class():
    y = torch.zeros(50, 4, dtype=torch.int64)
    y[:, 1], y[:, 2], y[:25, 3] = 1, torch.arange(50) % 25 + 2, -100
    model, batch = gpt((4,), 30, width=4, depth=1, heads=1), (y.clamp(min=0)[:25], y[:25])
    risk = EmpiricalRisk.from_model(model, TASK.loss, [batch], weight=lambda _, t: TASK.weight(t))
    asked = Displacements(providers=("sam",), radii=("relative",), m=4, batches=2)
    read = TokenEvaluation(risk, (y[25:].clamp(min=0), y[25:]), asked, TASK)
    assert read.classes.tolist() == [0, 1]
    out = read.logits(risk.theta, np.array([3, 5]))
    assert_close(out.exp().sum(1), torch.ones(len(out), dtype=torch.float64))
    sets = read.sets(np.array([3, 5]))
    assert [len(sets[k]) for k in ("exposed", "other_train", "held_out")] == [6, 69, 75]


def test_a_run_goes_the_whole_way(text, tmp_path):
    data = {"dataset": f"text:{text}", "method": "obf", "rho": 0.05, "base": "adamw"}
    run = fit({**TINY, **data}, out=tmp_path)
    forgetting = {"m": 8, "batches": 2, "providers": ["sam", "asam", "obf", "random"]}
    names = {"targets": None, "perturbed_forgetting": forgetting, "hessian_eigenvalues": None, "output_bias": None}
    table = measure_run(run.folder, plan(names))
    last = table[table.step == table.step.max()]
    value = last[last.value.notna()].drop_duplicates("measure").set_index("measure").value
    assert value["test_bits_per_byte"] == pytest.approx(value["test_loss"] / math.log(2))
    assert value["test_perplexity"] == pytest.approx(math.exp(value["test_loss"]))
    assert value["gap_loss"] == pytest.approx(value["test_loss"] - value["train_loss"])
    assert run.history()["test_loss"].iloc[-1] == pytest.approx(value["test_loss"], rel=1e-5)
    assert {"F_cmi", "KL", "top_eigenvalue"} <= set(value.index)
    assert last[last.measure == "b_marg"].warnings.str.contains("needs probabilities of classes").all()


def test_pydoc_holds_out_a_register_and_is_named_by_its_text():
    data = load_dataset("pydoc", train_size=8, validation_size=8, test_size=8, labels=False, text=TextReading(64))
    assert data.shape == (64,)
    assert data.classes == 256
    assert list(data.ood) == ["library"]
    config = train_config({**TINY, "dataset": "pydoc"}).resolved()
    assert re.fullmatch("[0-9a-f]{16}", config.dataset_digest)


@pytest.mark.parametrize(("changes", "message"), [
    ({"task_options": {"context": 10**6}}, "less than one sequence of `context` 1000000"),
    ({"task_options": {"context": 8, "packing": "padded"}}, "raise it by --task-options context"),
    ({"model_options": {"causal": False}}, "sees what follows a place"),
    ({"task_options": {"context": 16, "objective": "masked"}}, "sees nothing that follows"),
    ({"task_options": {"tokenizer": "/nowhere"}}, "`tokenizer` '/nowhere' is not on this machine"),
    ({"model": "mlp", "model_options": {}}, "`model` 'mlp' takes floating-point inputs"),
    ({"task": "classification", "task_options": {}}, "is text, for `task` language"),
    ({"dataset": "digits"}, "learns tokens, whole numbers of shape"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(text, tmp_path, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fit({**TINY, "dataset": f"text:{text}", **changes}, out=tmp_path)


def test_tokens_and_masks_that_do_not_fit_are_refused():
    y = torch.tensor([[1, 2], [-100, -100]])
    with pytest.raises(ValueError, match="1 of 2 sequences have no target, such as number 1"):
        TASK.check_targets(y, "'d'")
    with pytest.raises(ValueError, match="a target is -3"):
        TASK.check_targets(torch.tensor([[1, -3]]), "'d'")
    with pytest.raises(ValueError, match="has the token 9, outside of the vocabulary 0 to 4"):
        TASK.check_model(gpt((2,), 5, width=4, heads=1), torch.tensor([[1, 9]]), vocabulary=5, name="m")
    with pytest.raises(ValueError, match="a vocabulary of 3 tokens, and the text 5"):
        TASK.check_model(Table(), torch.tensor([[1, 0]]), vocabulary=5, name="m")
    with pytest.raises(MemoryError, match="lower `micro_batch` or `context`"):
        TASK.check_memory(torch.zeros(1, 4096, dtype=torch.int64), vocabulary=50257, chunk=4096)


def test_the_norm_of_a_tied_embedding_counts_once():
    assert (
        len(list(gpt((4,), 9, width=4, heads=1, depth=1).parameters()))
        == len(list(gpt((4,), 9, width=4, heads=1, depth=1, tied=False).parameters())) - 1
    )
    assert float(norm({"a": torch.ones(4)})) == 2
    assert F.cross_entropy is TASK.loss
