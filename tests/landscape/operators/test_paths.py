"""Which path is taken, what an operator holds, and what it leaves alone."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import F64, Recurrent, SelfAttention, Tied, case, cosines, o1, o2, small
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from landscape import EmpiricalFisher, EmpiricalRisk, Fisher, GaussNewton, Hessian, SymmetricOperator, dense
from landscape.operators.curvature import RiskOperator

EXACT = {"rtol": 1e-10, "atol": 1e-12}
OPERATORS = [Hessian, GaussNewton, Fisher, EmpiricalFisher]
EVERY_PATH = [(operator, path) for operator in OPERATORS for path in operator.paths]

# torch's own forward mode still compiles a rule by torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


@pytest.mark.parametrize(("operator", "path"), EVERY_PATH)
def test_columns_are_products(operator, path):
    A = operator(o2((3, 2)), path=path)
    V = cosines(17, 3)
    assert A.path == path
    assert_close(A @ V, torch.stack([A @ v for v in V.T], 1), **EXACT)
    assert (A @ V[:, :1]).shape == (17, 1)
    assert (A @ V).is_contiguous()


@pytest.mark.parametrize(("operator", "path"), EVERY_PATH)
def test_products_repeat_bit_for_bit(operator, path):
    """From the second on too: a kept graph is the same after any number of products."""
    A = operator(o2((3, 2)), path=path)
    v = cosines(17)
    first = A @ v
    for _ in range(3):
        A @ torch.ones(17, dtype=F64)
        assert torch.equal(A @ v, first)


@pytest.mark.parametrize(("operator", "path"), EVERY_PATH)
def test_products_are_linear_and_of_the_right_length(operator, path):
    A = operator(o2((3, 2)), path=path)
    v = cosines(17)
    loose = {"rtol": 1e-6, "atol": 1e-8} if path == "difference" else EXACT
    assert_close(A @ (1e3 * v), 1e3 * (A @ v), **loose)
    assert_close(A @ (1e-3 * v), 1e-3 * (A @ v), **loose)
    assert not (A @ torch.zeros(17, dtype=F64)).any()


def test_products_take_no_gradient_and_give_none():
    v = cosines(17).requires_grad_()
    for operator in OPERATORS:
        with torch.no_grad():
            product = operator(o2()) @ v
        assert not product.requires_grad
    assert v.grad is None


def test_a_block_of_no_vectors_has_no_products():
    for operator in OPERATORS:
        assert (operator(o2()) @ torch.zeros(17, 0, dtype=F64)).shape == (17, 0)


@settings(max_examples=4)
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


@pytest.mark.parametrize(("operator", "path"), EVERY_PATH)
def test_an_operator_stays_at_its_point_when_the_model_moves_on(operator, path):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    A = operator(small(model, sizes=(4, 2)), path=path)
    v = cosines(A.shape[0])
    before = A @ v
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    assert torch.equal(A @ v, before)


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_point_may_be_given(operator):
    risk = o2()
    theta = {name: 0.5 * t for name, t in risk.theta.items()}
    expected = operator(risk.at(theta)).dense()
    assert_close(operator(risk, theta).dense(), expected, **EXACT)
    assert_close(operator(risk, dict(reversed(theta.items()))).dense(), expected, **EXACT)
    assert (operator(risk).dense() - expected).abs().max() > 1e-3


class Probe(nn.Module):
    """One module of each kind whose state an operator might touch; fails on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 1)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.attention = SelfAttention()
        self.attention.qkv = nn.Linear(4, 12)
        self.net = Recurrent("lstm")
        self.net.net = nn.LSTM(4, 3, batch_first=True)
        self.fail_after = -1
        self.calls = [0]

    def forward(self, x):
        self.calls[0] += 1
        if 0 <= self.fail_after < self.calls[0]:
            raise RuntimeError("out of luck")
        h = self.drop(self.norm(self.conv(x.transpose(1, 2)))).transpose(1, 2)
        return self.attention(h)[:, :2] + self.net(h)


def everything(model):
    """All that could be changed behind the caller's back."""
    cuda = torch.backends.cuda
    return {
        "state": {k: t.clone() for k, t in model.state_dict().items()},
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "needs": [p.requires_grad for p in model.parameters()],
        "ids": [id(p) for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "random": torch.random.get_rng_state(),
        "flags": [cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()],
        "cudnn": [torch.backends.cudnn.enabled, torch.get_float32_matmul_precision()],
        "grad mode": torch.is_grad_enabled(),
        "function": nn.functional.scaled_dot_product_attention,
        "forwards": ["forward" in vars(m) for m in model.modules()],
    }


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key, before in a.items():
        if key in ("state", "grads", "random"):
            assert_close(b[key], before, rtol=0, atol=0) if key != "grads" else None
            if key == "grads":
                assert all(x is y is None or torch.equal(x, y) for x, y in zip(before, b[key], strict=True))
        else:
            assert b[key] == before, key


@pytest.mark.parametrize(("operator", "path"), EVERY_PATH)
def test_nothing_changes_behind_the_callers_back(operator, path):
    model = Probe().to(F64).train()
    model.norm.eval()
    model.conv.bias.requires_grad_(False)
    risk = small(model, shape=(4, 3, 3), sizes=(3, 1))
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    before = everything(model)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]), torch.no_grad():
        inside = everything(model)
        A = operator(risk, path=path)
        A @ cosines(A.shape[0])
        assert_same(inside, everything(model))
    assert_same(before, everything(model))
    assert "conv.bias" not in risk.names


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("calls", [0, 1, 3, 6])
def test_nothing_changes_when_the_model_raises(operator, calls):
    model = Probe().to(F64).train()
    risk = small(model, shape=(4, 3, 3), sizes=(3, 1))
    risk.predict.module.fail_after = calls
    before = everything(model)
    with pytest.raises(RuntimeError, match="out of luck"):  # noqa: PT012, in the trial or in the products
        A = operator(risk, path="afresh")
        for _ in range(6):
            A @ cosines(A.shape[0])
    assert_same(before, everything(model))


def test_forward_mode_says_so_where_torch_lacks_it():
    """torch 2.13 has no forward derivative of soft_margin_loss's gradient."""
    risk = small(nn.Linear(3, 2), loss=lambda out, _: nn.functional.soft_margin_loss(out, torch.ones_like(out)))
    with pytest.raises(ValueError, match=r"`path` = 'forward' meets an operation without .* use path='kept' or 'afr"):
        Hessian(risk, path="forward") @ cosines(8)
    assert float(cosines(8) @ (Hessian(risk) @ cosines(8))) > 0


@pytest.mark.parametrize(
    "name", ["mse_loss", "huber_loss", "smooth_l1_loss", "l1_loss", "binary_cross_entropy_with_logits"]
)
def test_forward_mode_of_elementwise_losses(name):
    """Some of whose gradients have a forward derivative in torch only by way of vmap."""
    loss = getattr(nn.functional, name)
    risk = small(
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)),
        loss=lambda out, _: loss(out, torch.full_like(out, 0.3)),
    )
    v = cosines(26)
    assert_close(Hessian(risk, path="forward") @ v, Hessian(risk, path="afresh") @ v, rtol=1e-9, atol=1e-11)


def test_auto_keeps_what_fits_the_budget():
    for operator in OPERATORS:
        assert operator(o2()).path == "kept"
        assert operator(o2(), budget=100).path == "afresh"
        assert operator(o2(), budget=100, path="kept").path == "kept"


def test_operators_and_dense_tensors_share_a_protocol():
    risk = o1()
    for A in [*(operator(risk) for operator in OPERATORS), torch.eye(3)]:
        assert isinstance(A, SymmetricOperator)
    assert not isinstance(3.0, SymmetricOperator)
    matrix = torch.eye(3)
    assert dense(matrix) is matrix


@pytest.mark.parametrize("operator", OPERATORS)
def test_what_an_operator_says_of_itself(operator):
    A = operator(o2())
    assert (A.shape, A.dtype, A.device) == (torch.Size((17, 17)), F64, torch.device("cpu"))
    assert repr(A) == f"{operator.__name__}(17 x 17, float64, path='kept')"


@pytest.mark.parametrize("operator", OPERATORS)
def test_refused_arguments(operator):
    risk = o2()
    with pytest.raises(ValueError, match=r"`parameters` has '9.weight', which is no name, glob or module"):
        operator(risk, parameters=["9.weight"])
    with pytest.raises(ValueError, match=r"`parameters` must choose some of .* got none"):
        operator(risk, parameters=[])
    with pytest.raises(ValueError, match=r"`theta` lacks the parameters \['0.weight'"):
        operator(risk, {"2.bias": risk.theta["2.bias"]})
    make = inspect.unwrap(RiskOperator.__init__)  # past the tests' type checks
    with pytest.raises(ValueError, match=r"`path` must be 'auto' or one of \['kept', 'afresh', .*\], got 'fast'"):
        make(operator.__new__(operator), risk, path="fast")
    with pytest.raises(ValueError, match="`budget` must be a number of bytes >= 0, or None, got -1"):
        operator(risk, budget=-1)
    with pytest.raises(ValueError, match="`micro_batch` must be at least 1 example, got 0"):
        operator(risk, micro_batch=0)
    A = operator(risk)
    for bad in (torch.ones(16, dtype=F64), torch.ones(17, 2, 2, dtype=F64), torch.ones(2, 17, dtype=F64)):
        with pytest.raises(ValueError, match=r"`v` must have shape \(17,\) or \(17, k\)"):
            A @ bad
    with pytest.raises(ValueError, match=r"dtype torch\.float64, got \(17,\) and torch\.float32"):
        A @ torch.ones(17)
    mixed = {**risk.theta, "2.bias": risk.theta["2.bias"].float()}
    with pytest.raises(ValueError, match="`risk` has parameters of several dtypes"):
        operator(risk, mixed)
    with pytest.raises(ValueError, match="`A` has p = 17 rows, more than `limit` = 5"):
        A.dense(limit=5)


@pytest.mark.parametrize("operator", OPERATORS)
def test_weights_that_are_not_finite_are_named(operator):
    risk = o2()
    for value in (float("nan"), float("inf")):
        theta = {**risk.theta, "2.bias": torch.tensor([0.0, value], dtype=F64)}
        with pytest.raises(ValueError, match=r"`theta` is not finite: parameter '2\.bias' has NaN or infinite"):
            operator(risk, theta)


@pytest.mark.parametrize("path", ["kept", "afresh"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_unused_parameters_have_rows_and_columns_of_zeros(operator, path):
    risk = small(Tied(), classes=3, sizes=(4, 2))
    assert risk.names == ["first.weight", "first.bias", "unused.weight", "unused.bias"]
    A = operator(risk, path=path).dense()
    assert not A[-6:].any()
    assert not A[:, -6:].any()
    alone = operator(risk, parameters=["unused.weight"], path=path)
    assert not (alone @ torch.ones(4, dtype=F64)).any()


def test_the_same_batches_may_be_used_by_operators_of_other_modes():
    matrices = [Hessian(case(f"conv:{mode}").risk()) @ cosines(126) for mode in ("eval", "batch", "recalibrate")]
    again = [Hessian(case(f"conv:{mode}").risk()) @ cosines(126) for mode in ("eval", "batch", "recalibrate")]
    assert all(torch.equal(a, b) for a, b in zip(matrices, again, strict=True))
