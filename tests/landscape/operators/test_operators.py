"""Curvature products against closed forms, dense autograd matrices and the oracle problems."""

import copy
import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import F64, o1, o2
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, one_hot, scaled_dot_product_attention
from torch.testing import assert_close

import landscape.per_example
from landscape import AbsWeight, EmpiricalRisk, flatten, unflatten
from landscape.operators import EmpiricalFisher, GaussNewton, Hessian, Rescaled, SymmetricOperator, dense

# Exact arithmetic apart from rounding: float64 sums of a few dozen terms.
EXACT = {"rtol": 1e-10, "atol": 1e-12}
OPERATORS = [Hessian, GaussNewton, EmpiricalFisher]


def dense_hessian(risk: EmpiricalRisk) -> torch.Tensor:
    """The Hessian by torch's own dense routine, one example at a time."""

    def total(vector):
        theta = unflatten(vector, risk.theta)
        parts = []
        for (x, y), size in zip(risk.batches, risk.sizes, strict=True):
            parts += [risk.loss(risk.predict(theta, x[i : i + 1]), y[i : i + 1]) for i in range(size)]
        return torch.stack(parts).mean()

    return torch.autograd.functional.hessian(total, flatten(risk.theta))


def example_gradients(risk: EmpiricalRisk) -> torch.Tensor:
    rows = []
    for x, y in risk.batches:
        rows += [flatten(risk.on((x[i : i + 1], y[i : i + 1])).gradient(), risk.names) for i in range(len(x))]
    return torch.stack(rows)


def cosines(p: int) -> torch.Tensor:
    return torch.cos(torch.arange(p, dtype=F64))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        h = self.embed(x)
        return self.head(scaled_dot_product_attention(h, h, h).mean(1))


class MultiHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Tied(nn.Module):
    """One matrix used twice, and one never."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class DataDependent(nn.Module):
    """A branch on a value, which vmap refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(3, 3)

    def forward(self, x):
        out = self.line(x)
        return out * 2 if float(x.sum()) > 0 else out


def small(model: nn.Module, shape=(6, 3), classes=2, sizes=(6,), loss=cross_entropy, dtype=F64) -> EmpiricalRisk:
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
    x = torch.randn(shape, generator=g, dtype=F64).to(dtype)
    y = torch.randint(0, classes, (shape[0],), generator=g)
    return EmpiricalRisk.from_model(model.to(dtype), loss, list(zip(x.split(sizes), y.split(sizes), strict=True)))


@pytest.mark.parametrize("path", ["kept", "afresh"])
@pytest.mark.parametrize("operator", [Hessian, GaussNewton])
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


@pytest.mark.parametrize("sizes", [(5,), (3, 2), (1, 4)], ids=["one", "ragged", "uneven"])
@pytest.mark.parametrize("path", ["kept", "afresh"])
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


@pytest.mark.parametrize(
    ("name", "trace", "top"),
    [
        ("0.weight", -0.4853672955928339, 0.01625811953710249),
        ("0.bias", -0.4508814405405391, -0.031150740726341015),
        ("2.weight", 0.16482159383217931, 0.10714116168463275),
        ("2.bias", 0.22944561119331458, 0.2294456111933146),
    ],
)
def test_blocks_are_principal_submatrices(name, trace, top):
    risk = o2((3, 2))
    block = dense(Hessian(risk, parameters=[name]))
    start = 0
    for other in risk.names[: risk.names.index(name)]:
        start += risk.theta[other].numel()
    whole = dense(Hessian(risk))
    part = slice(start, start + risk.theta[name].numel())
    assert_close(block, whole[part, part], **EXACT)
    assert_close(block.trace(), torch.tensor(trace, dtype=F64), **EXACT)
    assert_close(torch.linalg.eigvalsh(block)[-1], torch.tensor(top, dtype=F64), **EXACT)
    assert torch.linalg.eigvalsh(block)[-1] <= torch.linalg.eigvalsh(whole)[-1]  # Cauchy interlacing


def test_parameters_come_in_the_risks_order_whatever_the_order_of_naming():
    risk = o2()
    assert_close(
        dense(Hessian(risk, parameters=["2.bias", "0.bias"])), dense(Hessian(risk, parameters=["0.bias", "2.bias"]))
    )


def test_adaptive_hessian_has_the_reference_top_eigenvalue_and_trace():
    risk = o1()
    scale = flatten(AbsWeight()(risk.theta))
    A = Rescaled(Hessian(risk), scale)
    S = torch.diag(scale)
    assert_close(dense(A), S @ dense(Hessian(risk)) @ S, **EXACT)
    assert_close(torch.linalg.eigvalsh(dense(A))[-1], torch.tensor(0.22671238047649173, dtype=F64), **EXACT)
    assert_close(dense(A).trace(), torch.tensor(0.2999598235694242, dtype=F64), **EXACT)
    assert (A.shape, A.dtype, A.device) == (torch.Size((6, 6)), F64, torch.device("cpu"))


@pytest.mark.parametrize("path", ["kept", "afresh"])
def test_tied_and_unused_parameters(path):
    risk = small(Tied(), classes=3, sizes=(4, 2))
    assert risk.names == ["first.weight", "first.bias", "unused.weight", "unused.bias"]
    assert_close(dense(Hessian(risk, path=path)), dense_hessian(risk), **EXACT)
    G = dense(GaussNewton(risk, path=path))
    assert not G[-6:].any()
    assert torch.linalg.eigvalsh(G)[0] > -1e-12


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_subset_that_the_loss_does_not_use_has_zero_curvature(operator):
    risk = small(Tied(), classes=3)
    A = operator(risk, parameters=["unused.weight"])
    assert not (A @ torch.ones(4, dtype=F64)).any()


def test_a_linear_loss_has_zero_curvature():
    risk = small(nn.Linear(3, 2), loss=lambda out, _: out.mean())
    for A in (Hessian(risk), GaussNewton(risk)):
        assert not (A @ torch.ones(8, dtype=F64)).any()


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


@pytest.mark.parametrize("path", ["kept", "afresh"])
@pytest.mark.parametrize("model", [nn.Linear(3, 2), DataDependent(), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))])
def test_empirical_fisher_is_the_second_moment_of_example_gradients(model, path, monkeypatch):
    monkeypatch.setattr(landscape.per_example, "CHUNK_BYTES", 3 * 8 * 20)  # several chunks a batch
    risk = small(model, sizes=(5, 1))
    G = example_gradients(risk)
    assert_close(dense(EmpiricalFisher(risk, path=path)), G.T @ G / 6, **EXACT)


@pytest.mark.parametrize("model", [Attention(), MultiHead()], ids=["sdpa", "multihead"])
@pytest.mark.parametrize("path", ["kept", "afresh"])
def test_attention_has_second_derivatives_on_the_cpu(model, path):
    width = 3 if isinstance(model, Attention) else 4
    risk = small(model, shape=(6, 5, width), sizes=(4, 2))
    before = torch.backends.cuda.flash_sdp_enabled()
    H, G, E = (operator(risk, path=path) for operator in OPERATORS)
    v = cosines(H.shape[0])
    h = 1e-5  # a central difference errs by h² of the third derivatives, and by rounding / h
    ends = [flatten(risk.gradient(unflatten(flatten(risk.theta) + s * h * v, risk.theta))) for s in (1, -1)]
    assert_close(H @ v, (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-7)
    g = example_gradients(risk)
    assert_close(E @ v, g.T @ (g @ v) / 6, **EXACT)
    assert v @ (G @ v) > 0
    assert torch.backends.cuda.flash_sdp_enabled() == before


def test_the_callers_choice_of_attention_kernel_is_back_afterwards():
    risk = small(Attention(), shape=(6, 5, 3))
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        Hessian(risk, path="afresh") @ torch.ones(risk.theta["embed.weight"].numel() + 4 + 8 + 2, dtype=F64)
        assert torch.backends.cuda.flash_sdp_enabled()
        assert not torch.backends.cuda.math_sdp_enabled()


@pytest.mark.parametrize("path", ["kept", "afresh"])
def test_nothing_changes_behind_the_callers_back(path):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    risk = small(model)
    model.train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    state, random = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    for operator in OPERATORS:
        A = operator(risk, path=path)
        A @ torch.ones(A.shape[0], dtype=F64)
    for name, t in model.state_dict().items():
        assert torch.equal(t, state[name])
    assert model.training
    assert model[2].training
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[3].weight.grad is None
    assert not model[0].bias.requires_grad
    assert model[0].weight.requires_grad
    assert torch.equal(torch.random.get_rng_state(), random)
    assert "0.bias" not in risk.names


@pytest.mark.parametrize("path", ["kept", "afresh"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_stays_at_its_point_when_the_model_moves_on(operator, path):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    A = operator(small(model), path=path)
    v = cosines(A.shape[0])
    before = A @ v
    with torch.no_grad():
        model[0].weight.mul_(3)
    assert_close(A @ v, before, rtol=0, atol=0)


def test_the_point_may_be_given():
    risk = o2()
    theta = {name: 0.5 * t for name, t in risk.theta.items()}
    for operator in OPERATORS:
        assert_close(dense(operator(risk, theta)), dense(operator(risk.at(theta))), **EXACT)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("path", ["kept", "afresh"])
def test_columns_are_products(operator, path):
    A = operator(o2((3, 2)), path=path)
    V = torch.stack([cosines(17), cosines(17) ** 2, torch.ones(17, dtype=F64)], 1)
    assert_close(A @ V, torch.stack([A @ v for v in V.T], 1), **EXACT)
    assert (A @ V[:, :1]).shape == (17, 1)


@settings(max_examples=8)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(0, 2**31))
def test_products_are_symmetric_and_do_not_depend_on_the_batches(sizes, seed):
    g = torch.Generator().manual_seed(seed)
    n = sum(sizes)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).to(F64)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
    x, y = torch.randn(n, 2, generator=g, dtype=F64), torch.randint(0, 2, (n,), generator=g)
    u, v = torch.randn(2, 17, generator=g, dtype=F64)
    whole = EmpiricalRisk.from_model(model, cross_entropy, (x, y))
    split = whole.on(list(zip(x.split(sizes), y.split(sizes), strict=True)))
    for operator in OPERATORS:
        A, B = operator(whole), operator(split)
        assert_close(A @ v, B @ v, rtol=1e-9, atol=1e-11)
        assert_close(u @ (A @ v), v @ (A @ u), rtol=1e-9, atol=1e-11)


def test_float32_products_are_the_float64_ones_to_single_precision():
    make = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    wide = small(copy.deepcopy(make))
    narrow = small(make, dtype=torch.float32)
    for operator in OPERATORS:
        A = operator(narrow)
        assert A.dtype == torch.float32
        assert_close((A @ cosines(26).float()).double(), operator(wide) @ cosines(26), rtol=1e-4, atol=1e-5)


def test_dict_batches():
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(3, 2)

        def forward(self, inputs, labels):
            return self.line(inputs)

    plain = small(nn.Linear(3, 2))
    x, y = plain.batches[0]
    batches = [{"inputs": x[:4], "labels": y[:4]}, {"inputs": x[4:], "labels": y[4:]}]
    model = Keyword().to(F64)
    with torch.no_grad():
        model.line.weight.copy_(plain.theta["weight"])
        model.line.bias.copy_(plain.theta["bias"])
    risk = EmpiricalRisk.from_model(model, lambda out, batch: cross_entropy(out, batch["labels"]), batches)
    for operator in OPERATORS:
        assert_close(dense(operator(risk)), dense(operator(plain)), **EXACT)


@pytest.mark.parametrize("operator", OPERATORS)
def test_auto_keeps_what_fits_the_budget(operator):
    assert operator(o2()).path == "kept"
    assert operator(o2(), budget=100).path == "afresh"
    assert operator(o2(), budget=100, path="kept").path == "kept"


def test_auto_counts_what_all_batches_would_keep():
    x, y = torch.randn(200, 2, dtype=F64, generator=torch.Generator().manual_seed(0)), torch.zeros(200).long()
    few = o2().on((x[:2], y[:2]))
    assert Hessian(few, budget=20_000).path == "kept"
    assert Hessian(few.on(list(zip(x.split(2), y.split(2), strict=True))), budget=20_000).path == "afresh"


def test_auto_does_not_count_the_weights_as_activations():
    # two vectors of 16 kB and the input of 16 kB, saved once; with the weights it would be more than 60 kB
    wide = small(nn.Linear(2000, 1), shape=(1, 2000), sizes=(1,), loss=lambda out, _: (out**2).mean())
    assert Hessian(wide, budget=60_000).path == "kept"
    assert Hessian(wide, budget=45_000).path == "afresh"


def test_operators_and_dense_tensors_share_a_protocol():
    risk = o1()
    everything = [*(operator(risk) for operator in OPERATORS), torch.eye(3)]
    everything.append(Rescaled(torch.eye(3), torch.ones(3)))
    assert all(isinstance(A, SymmetricOperator) for A in everything)
    assert not isinstance(3.0, SymmetricOperator)
    matrix = torch.eye(3)
    assert dense(matrix) is matrix


def test_dense_fills_more_than_one_block():
    scale = torch.arange(1.0, 101.0, dtype=F64)
    assert_close(dense(Rescaled(torch.eye(100, dtype=F64), scale)), torch.diag(scale**2))


@pytest.mark.parametrize("operator", OPERATORS)
def test_refused_arguments(operator):
    risk = o2()
    with pytest.raises(ValueError, match=r"`parameters` has '9.weight', which is no name, glob or module"):
        operator(risk, parameters=["9.weight"])
    with pytest.raises(ValueError, match=r"`parameters` must choose some of .* got none"):
        operator(risk, parameters=[])
    with pytest.raises(ValueError, match=r"`theta` lacks the parameters \['0.weight'"):
        operator(risk, {"2.bias": risk.theta["2.bias"]})
    with pytest.raises(ValueError, match="`path` must be 'auto' or one of .*, got 'fast'"):
        inspect.unwrap(operator.__init__)(operator.__new__(operator), risk, path="fast")  # past the tests' type checks
    A = operator(risk)
    with pytest.raises(ValueError, match=r"`v` must have shape \(17,\) or \(17, k\)"):
        A @ torch.ones(16, dtype=F64)
    with pytest.raises(ValueError, match=r"and torch\.float32"):
        A @ torch.ones(17)
    mixed = {**risk.theta, "2.bias": risk.theta["2.bias"].float()}
    with pytest.raises(ValueError, match="`risk` has parameters of several dtypes"):
        operator(risk, mixed)


def test_refusals_of_single_operators():
    risk = o1()
    with pytest.raises(ValueError, match=r"`scale` must have shape \(6,\), one factor per parameter, got \(5,\)"):
        Rescaled(Hessian(risk), torch.ones(5, dtype=F64))
    with pytest.raises(ValueError, match="`A` has p = 6 rows, more than `limit` = 5"):
        dense(Hessian(risk), limit=5)
    wrapped = EmpiricalRisk(
        lambda theta, x: {"logits": risk.predict(theta, x)},
        lambda out, y: cross_entropy(out["logits"], y),
        risk.batches,
        risk.theta,
    )
    assert_close(dense(Hessian(wrapped)), dense(Hessian(risk)), **EXACT)
    assert_close(dense(GaussNewton(wrapped)), dense(GaussNewton(risk)), **EXACT)


def test_zero_weight_survives_the_adaptive_metric():
    risk = o1()
    A = Rescaled(Hessian(risk), flatten(AbsWeight()(risk.theta)))
    out = A @ torch.ones(6, dtype=F64)
    assert float(out[2]) == 0.0
    assert math.isfinite(float(out.sum()))
