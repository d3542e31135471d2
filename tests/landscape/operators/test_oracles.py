"""Curvature of the oracle problems, and of models whose curvature is known in closed form."""

import math

import pytest
import torch
from problems import F64, cosines, o1, o2, small
from torch import nn
from torch.nn.functional import cross_entropy, one_hot
from torch.testing import assert_close

from landscape import AbsWeight, EmpiricalFisher, Fisher, GaussNewton, Hessian, Rescaled, dense, flatten

# Exact arithmetic apart from rounding: float64 sums of a few dozen terms.
EXACT = {"rtol": 1e-10, "atol": 1e-12}
PATHS = ["kept", "afresh", "forward"]

# torch's own forward mode still compiles a rule by torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("operator", [Hessian, GaussNewton, Fisher])
def test_softmax_regression_has_the_closed_form_hessian(operator, path):
    risk = o1()
    x = risk.batches[0][0]
    p = (x @ risk.theta["weight"].T).softmax(-1)
    blocks = [torch.kron(torch.diag(q) - torch.outer(q, q), torch.outer(z, z)) for q, z in zip(p, x, strict=True)]
    assert_close(dense(operator(risk, path=path)), torch.stack(blocks).mean(0), **EXACT)


def test_softmax_regression_reproduces_the_reference_row_and_diagonal():
    H = dense(Hessian(o1()))
    row = [0.12725809746654787, 0.030082737469881396, -0.08499119166818861]
    row += [-0.02450348207536413, -0.04226690579835927, -0.005579255394517261]
    diag = [0.12725809746654787, 0.1373562535446078, 0.1760708851761046]
    diag += [0.36647796492240986, 0.13334659930627527, 0.3212804521731982]
    assert_close(H[0], torch.tensor(row, dtype=F64), **EXACT)
    assert_close(H.diag(), torch.tensor(diag, dtype=F64), **EXACT)


@pytest.mark.parametrize("sizes", [(5,), (3, 2), (1, 1, 3)], ids=["one", "ragged", "three"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("operator", "form"),
    [(Hessian, -1.8356934458826493), (GaussNewton, 0.23065261871822682), (EmpiricalFisher, 0.3183678407926498)],
)
def test_tanh_network_quadratic_forms_whatever_the_batches(operator, form, path, sizes):
    A = operator(o2(sizes), path=path)
    v = cosines(17)
    assert A.path == path
    assert_close(v @ (A @ v), torch.tensor(form, dtype=F64), **EXACT)
    if operator is Hessian:
        assert_close(torch.linalg.vector_norm(A @ v), torch.tensor(1.3127690426227716, dtype=F64), **EXACT)


@pytest.mark.parametrize(("make", "curvature"), [(o1, 0.3905535011793198), (o2, 0.48800538688768463)])
def test_curvature_along_the_gradient(make, curvature):
    risk = make()
    g = flatten(risk.gradient(), risk.names)
    assert_close(g @ (Hessian(risk) @ g) / (g @ g), torch.tensor(curvature, dtype=F64), **EXACT)


@pytest.mark.parametrize(
    ("operator", "make", "eigenvalues", "trace"),
    [
        (Hessian, o1, [0.1459177797, 0.1695053923, 0.2719723937, 0.6743946869], 1.2617902525891436),
        (EmpiricalFisher, o1, [0.0124348280, 0.0918425871, 0.3204826695, 0.6401428731], 1.064902957663957),
        (GaussNewton, o2, [0.0022512014, 0.0371350459, 0.1066575848, 0.4111735590], 0.5576123939166329),
        (Fisher, o1, [0.1459177797, 0.1695053923, 0.2719723937, 0.6743946869], 1.2617902525891436),
        (Fisher, o2, [0.0022512014, 0.0371350459, 0.1066575848, 0.4111735590], 0.5576123939166329),
        (EmpiricalFisher, o2, [0.2334610659, 2.1788421535], 2.4979745435886653),
        (Hessian, o2, [0.2255463917, 0.3270771873, 0.4599952686, 0.7566917132], -0.5419815311078794),
    ],
)
def test_spectra_of_the_oracle_problems(operator, make, eigenvalues, trace):
    A = dense(operator(make()))
    assert_close(A, A.T, **EXACT)
    top = torch.linalg.eigvalsh(A)[-len(eigenvalues) :]
    assert_close(top, torch.tensor(eigenvalues, dtype=F64), rtol=0, atol=1e-9)
    assert_close(A.trace(), torch.tensor(trace, dtype=F64), **EXACT)


def test_adaptive_hessian_has_the_reference_top_eigenvalue_and_trace():
    risk = o1()
    scale = flatten(AbsWeight()(risk.theta))
    A = Rescaled(Hessian(risk), scale)
    S = torch.diag(scale)
    assert_close(dense(A), S @ dense(Hessian(risk)) @ S, **EXACT)
    assert_close(torch.linalg.eigvalsh(dense(A))[-1], torch.tensor(0.22671238047649173, dtype=F64), **EXACT)
    assert_close(dense(A).trace(), torch.tensor(0.2999598235694242, dtype=F64), **EXACT)
    assert (A.shape, A.dtype, A.device) == (torch.Size((6, 6)), F64, torch.device("cpu"))


@pytest.mark.parametrize(
    "loss",
    [
        lambda out, y: cross_entropy(out, y),
        lambda out, y: cross_entropy(out, y, label_smoothing=0.2),
        lambda out, y: cross_entropy(out, one_hot(y, 2).to(out.dtype)),
    ],
    ids=["wrapped", "smoothed", "soft"],
)
def test_output_curvature_by_autograd_is_the_closed_form(loss):
    closed, open_ = o2((3, 2)), o2((3, 2))
    object.__setattr__(open_, "loss", loss)
    assert_close(dense(GaussNewton(open_)), dense(GaussNewton(closed)), **EXACT)


def test_least_squares_curvature_is_twice_the_second_moment():
    model = nn.Linear(3, 1)
    risk = small(model, sizes=(4, 2), loss=lambda out, _: (out**2).sum(-1).mean())
    x = torch.cat([x for x, _ in risk.batches])
    x = torch.cat([x, torch.ones(6, 1, dtype=F64)], 1)
    for A in (Hessian(risk), GaussNewton(risk)):
        assert_close(dense(A), 2 * x.T @ x / 6, **EXACT)


def test_ignored_targets_do_not_count():
    risk = small(nn.Linear(3, 2))
    x, y = risk.batches[0]
    some = risk.on((x, torch.where(torch.arange(6) < 2, -100, y)))
    assert_close(dense(GaussNewton(some)), dense(Hessian(risk.on((x[2:], y[2:])))), **EXACT)


def test_a_linear_loss_has_zero_curvature():
    risk = small(nn.Linear(3, 2), loss=lambda out, _: out.mean())
    for A in (Hessian(risk), GaussNewton(risk)):
        assert not (A @ torch.ones(8, dtype=F64)).any()


def test_zero_weight_survives_the_adaptive_metric():
    risk = o1()
    A = Rescaled(Hessian(risk), flatten(AbsWeight()(risk.theta)))
    out = A @ torch.ones(6, dtype=F64)
    assert float(out[2]) == 0.0
    assert math.isfinite(float(out.sum()))


def test_zero_eigenvalues_of_softmax_regression_are_the_shifts_of_all_logits():
    """Adding one vector to all class rows changes no prediction, so every matrix has these two directions at zero."""
    shifts = torch.eye(2, dtype=F64).repeat(3, 1)  # (6, 2): the same vector in each of three rows
    for operator in (Hessian, GaussNewton, Fisher, EmpiricalFisher):
        assert_close(operator(o1()) @ shifts, torch.zeros(6, 2, dtype=F64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("sizes", [(5,), (3, 2), (1, 1, 3)])
def test_top_eigenvalue_of_ragged_batches_is_that_of_one(sizes):
    """An average over batches that is not weighted by size gives 0.7223 on 3 + 2."""
    top = torch.linalg.eigvalsh(Hessian(o2(sizes)).dense())[-1]
    assert_close(top, torch.tensor(0.7566917132, dtype=F64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.functional.mse_loss], ids=["module", "function"])
def test_squared_error_in_closed_form(loss):
    """torch's mean over all entries has the curvature 2/C on each output."""
    risk = small(nn.Linear(3, 2), sizes=(4, 2), loss=lambda out, _: loss(out, torch.zeros_like(out)))
    x = torch.cat([x for x, _ in risk.batches])
    x = torch.cat([x, torch.ones(6, 1, dtype=F64)], 1)
    inner = (x.T @ x / 6)[:3, :3]
    for A in (Hessian(risk, parameters="weight"), GaussNewton(risk, parameters="weight")):
        assert_close(A.dense(), torch.kron(torch.eye(2, dtype=F64), inner), **EXACT)


def test_binary_cross_entropy_in_closed_form():
    def loss(out, y):
        return nn.functional.binary_cross_entropy_with_logits(out[:, 0], y.double())

    risk = small(nn.Linear(3, 1, bias=False), sizes=(4, 2), loss=loss)
    x = torch.cat([x for x, _ in risk.batches])
    s = (x @ risk.theta["weight"][0]).sigmoid()
    for A in (Hessian(risk), GaussNewton(risk), Fisher(risk, likelihood="bernoulli")):
        assert_close(A.dense(), (x.T * s * (1 - s)) @ x / 6, **EXACT)


def test_class_weights_go_through_autograd():
    """With class weights cross-entropy divides by their sum, so the closed form of the plain loss would be wrong."""
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0], dtype=F64))
    risk = small(nn.Linear(3, 2, bias=False), loss=weighted)
    x, y = risk.batches[0]
    p = (x @ risk.theta["weight"].T).softmax(-1)
    w = weighted.weight[y] / weighted.weight[y].sum()
    parts = [torch.kron(torch.diag(q) - torch.outer(q, q), torch.outer(z, z)) for q, z in zip(p, x, strict=True)]
    expected = sum(a * part for a, part in zip(w, parts, strict=True))
    for A in (Hessian(risk, probe=False), GaussNewton(risk, probe=False)):
        assert_close(A.dense(), expected, **EXACT)
