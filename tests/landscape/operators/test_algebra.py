"""Sums, multiples, shifts and rescalings against dense arithmetic; SciPy's solvers on our operators."""

import numpy as np
import pytest
import torch
from problems import F64, cosines, o1, o2
from scipy.sparse.linalg import cg, eigsh
from torch.testing import assert_close

from landscape import GaussNewton, Hessian, Rescaled, Shifted, Sum, SymmetricOperator, dense, to_scipy

EXACT = {"rtol": 1e-12, "atol": 1e-13}
RISK = o2((3, 2))
H, G = Hessian(RISK), GaussNewton(RISK)
h, g = H.dense(), G.dense()
T = torch.diag(torch.arange(1.0, 18.0, dtype=F64))
S = torch.linspace(-1, 2, 17, dtype=F64)

EXPRESSIONS = {
    "sum": (lambda: H + G, h + g),
    "difference": (lambda: H - G, h - g),
    "tensor on the right": (lambda: H + T, h + T),
    "tensor on the left": (lambda: T + H, T + h),
    "minus a tensor": (lambda: H - T, h - T),
    "tensor minus": (lambda: T - H, T - h),
    "double": (lambda: 2 * H, 2 * h),
    "on the right": (lambda: H * 0.5, 0.5 * h),
    "half": (lambda: H / 2, h / 2),
    "negative": (lambda: -H, -h),
    "numpy's number": (lambda: np.float64(3) * H, 3 * h),
    "shifted": (lambda: H.shifted(0.1), h + 0.1 * torch.eye(17, dtype=F64)),
    "rescaled": (lambda: H.rescaled(S), S[:, None] * h * S),
    "nested": (lambda: 2 * (H - G / 3).shifted(-1) + T, 2 * (h - g / 3 - torch.eye(17, dtype=F64)) + T),
    "again": (lambda: (-(H + G).rescaled(S)) * 4 + G.shifted(2), -4 * S[:, None] * (h + g) * S + g + 2 * torch.eye(17)),
    "of tensors alone": (lambda: Sum(((2.0, T), (-1.0, h))), 2 * T - h),
    "shift of a tensor": (lambda: Shifted(T, 3.0), T + 3 * torch.eye(17, dtype=F64)),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expressions_are_dense_arithmetic(name):
    make, expected = EXPRESSIONS[name]
    A = make()
    V = cosines(17, 3)
    assert isinstance(A, SymmetricOperator)
    assert (A.shape, A.dtype, A.device) == (torch.Size((17, 17)), F64, torch.device("cpu"))
    assert_close(A @ V, expected @ V, **EXACT)
    assert_close(A @ V[:, 0], expected @ V[:, 0], **EXACT)
    assert_close(A.dense(), expected, **EXACT)
    assert_close(H.dense(), h, rtol=0, atol=0)  # nothing in place


def test_products_do_not_change_the_vector():
    v = cosines(17)
    before = v.clone()
    for make, _ in EXPRESSIONS.values():
        make() @ v
        assert torch.equal(v, before)


def test_dense_fills_more_than_one_block():
    scale = torch.arange(1.0, 101.0, dtype=F64)
    assert_close(dense(Rescaled(torch.eye(100, dtype=F64), scale)), torch.diag(scale**2))


def test_scipy_finds_the_known_eigenvalues():
    """Both ends of the tanh network's spectrum: -0.8163976735 is the larger in modulus."""
    A = to_scipy(H)
    start = np.ones(17)
    top = eigsh(A, k=3, which="LA", v0=start, return_eigenvectors=False, tol=1e-12)
    bottom = eigsh(A, k=3, which="SA", v0=start, return_eigenvectors=False, tol=1e-12)
    np.testing.assert_allclose(np.sort(top), [0.3270771873, 0.4599952686, 0.7566917132], atol=1e-9)
    np.testing.assert_allclose(np.sort(bottom), [-0.8163976735, -0.6848364056, -0.6524094676], atol=1e-9)


def test_scipy_solves_with_a_shifted_operator():
    A = H.shifted(1.0)
    b = np.cos(np.arange(17))
    x, info = cg(A.to_scipy(), b, rtol=1e-12)
    assert info == 0
    np.testing.assert_allclose((h + torch.eye(17, dtype=F64)).numpy() @ x, b, atol=1e-10)


def test_scipys_form_has_all_products():
    A = to_scipy(H)
    assert A.shape == (17, 17)
    assert A.dtype == np.float64
    V = cosines(17, 3).numpy()
    expected = h.numpy() @ V
    np.testing.assert_allclose(A @ V, expected, atol=1e-12)
    np.testing.assert_allclose(A @ V[:, 0], expected[:, 0], atol=1e-12)
    np.testing.assert_allclose(A @ V[:, :1], expected[:, :1], atol=1e-12)
    np.testing.assert_allclose(A.T @ V, expected, atol=1e-12)
    np.testing.assert_allclose(A.H @ V[:, 0], expected[:, 0], atol=1e-12)
    np.testing.assert_allclose(A @ V.astype(np.float32), expected, atol=1e-6)  # given in another precision
    frozen = V[:, 0].copy()
    frozen.flags.writeable = False  # as ARPACK hands some
    np.testing.assert_allclose(A @ frozen, expected[:, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "kind"), [(torch.float32, np.float32), (torch.bfloat16, np.float32), (torch.float64, np.float64)]
)
def test_scipys_form_of_other_precisions(dtype, kind):
    A = to_scipy(T.to(dtype))
    assert A.dtype == kind
    product = A @ np.ones(17, dtype=kind)
    assert product.dtype == kind
    np.testing.assert_allclose(product, np.arange(1, 18), rtol=1e-2 if dtype == torch.bfloat16 else 1e-6)


def test_refused_arguments():
    with pytest.raises(ValueError, match=r"`terms` must be operators of one shape, .* got .*\(17, 17\).*\(6, 6\)"):
        H + Hessian(o1())
    with pytest.raises(ValueError, match="`terms` must be operators of one shape, dtype and device"):
        H + T.float()
    with pytest.raises(ValueError, match=r"`terms` must be operators .* got \[\]"):
        Sum(())
    with pytest.raises(ValueError, match=r"`scale` must have shape \(17,\), one factor per parameter, got \(5,\)"):
        H.rescaled(torch.ones(5, dtype=F64))
    with pytest.raises(ValueError, match="`A` has p = 17 rows, more than `limit` = 16"):
        H.shifted(1).dense(limit=16)
