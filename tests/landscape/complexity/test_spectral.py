"""Spectral norms against the explicit matrices of small convolutions."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from landscape.complexity import (
    circular_singular_values,
    circular_spectral_norm,
    padded_spectral_norm,
    spectral,
    spectral_norm,
)

F64 = torch.float64
ONES = torch.ones(1, 1, 3, 3, dtype=F64)
COUNTING = torch.arange(1, 37, dtype=F64).reshape(2, 2, 3, 3) / 10


def explicit(function, shape):
    """The matrix of a linear map, column by column."""
    p = math.prod(shape)
    return function(torch.eye(p, dtype=F64).reshape(p, *shape)).reshape(p, -1).T


def circular(kernel, size, stride=1, dilation=1, groups=1):
    """A convolution that wraps around as often as the kernel is long, one tap at a time."""
    g_in = kernel.shape[1]
    axes = tuple(range(2, 2 + len(size)))
    stride = (stride,) * len(size) if isinstance(stride, int) else stride

    def apply(x):
        out = torch.zeros(len(x), kernel.shape[0], *size, dtype=F64)
        for taps in itertools.product(*(range(k) for k in kernel.shape[2:])):
            moved = torch.roll(x, [-t * dilation for t in taps], axes)
            for g, rows in enumerate(torch.arange(kernel.shape[0]).chunk(groups)):
                part = moved[:, g * g_in : (g + 1) * g_in]
                out[:, rows] += torch.einsum("oi,ni...->no...", kernel[(rows, slice(None), *taps)], part)
        for axis, s in zip(axes, stride, strict=True):
            out = out.index_select(axis, torch.arange(0, out.shape[axis], s))
        return out

    return explicit(apply, (g_in * groups, *size))


def test_norms_of_two_kernels(generator):
    assert spectral_norm(ONES.flatten(1), generator=generator).value == pytest.approx(3, abs=1e-12)
    assert circular_spectral_norm(ONES, (8, 8)) == pytest.approx(9, abs=1e-12)
    assert spectral_norm(COUNTING.flatten(1), generator=generator).value == pytest.approx(12.6608559176, abs=1e-9)
    assert circular_spectral_norm(COUNTING, (8, 8)) == pytest.approx(37.7472579713, abs=1e-9)
    found = padded_spectral_norm(COUNTING, (8, 8), padding=1, tol=1e-12, generator=generator)
    assert found.value == pytest.approx(34.7921530039, abs=1e-9)
    assert found.converged


CASES = [
    ((2, 2, 3, 3), (8, 8), {}),
    ((3, 2, 3, 3), (5, 4), {}),
    ((4, 3, 3, 3), (6, 4), {"stride": 2}),
    ((2, 3, 3, 3), (4, 6), {"stride": (1, 2)}),
    ((2, 1, 3), (7,), {"dilation": 2}),
    ((4, 2, 3, 3), (4, 4), {"groups": 2}),
    ((6, 2, 5), (6,), {"groups": 3, "stride": 3, "dilation": 2}),
    ((2, 2, 3, 3), (2, 2), {}),  # longer than the input: it wraps around
    ((2, 1, 2, 2, 2), (3, 2, 4), {}),
    ((3, 2, 1, 1), (4, 4), {}),
    ((2, 3, 3, 3), (1, 1), {}),
]


@pytest.mark.parametrize(("shape", "size", "options"), CASES)
def test_circular_spectrum_is_that_of_the_explicit_operator(shape, size, options, generator):
    kernel = torch.randn(shape, dtype=F64, generator=generator)
    dense = torch.linalg.svdvals(circular(kernel, size, **options))
    torch.testing.assert_close(circular_singular_values(kernel, size, **options), dense, rtol=1e-10, atol=1e-12)
    assert circular_spectral_norm(kernel, size, **options) == pytest.approx(float(dense[0]), rel=1e-12)


def test_frequencies_may_be_taken_in_small_parts(generator, monkeypatch):
    kernel = torch.randn(3, 2, 3, 3, dtype=F64, generator=generator)
    whole = circular_spectral_norm(kernel, (9, 9))
    monkeypatch.setattr(spectral, "CHUNK_BYTES", 500)
    assert circular_spectral_norm(kernel, (9, 9)) == pytest.approx(whole, rel=1e-14)
    assert circular_spectral_norm(0 * kernel, (9, 9)) == 0.0
    assert math.isnan(circular_spectral_norm(math.nan * kernel, (9, 9)))
    assert circular_spectral_norm(kernel.float(), (9, 9)) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize(
    ("shape", "size", "options"),
    [
        ((3, 2, 3, 3), (5, 6), {"padding": 1}),
        ((3, 2, 3, 3), (6, 5), {"padding": 1, "stride": 2}),
        ((2, 2, 3), (9,), {"padding": 2, "dilation": 2, "stride": 3}),
        ((4, 1, 2, 2), (3, 3), {"groups": 2}),
        ((2, 1, 2, 2, 2), (3, 3, 2), {"padding": (1, 0, 0)}),
    ],
)
def test_padded_norm_is_that_of_the_explicit_operator(shape, size, options, generator):
    kernel = torch.randn(shape, dtype=F64, generator=generator)
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(size)]
    dense = explicit(lambda x: function(x, kernel, **options), (shape[1] * options.get("groups", 1), *size))
    found = padded_spectral_norm(kernel, size, tol=1e-12, generator=generator, **options)
    assert found.value == pytest.approx(float(torch.linalg.matrix_norm(dense, 2)), rel=1e-10)


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (20, 20), (1, 5), (5, 1)])
@pytest.mark.parametrize("dense", [True, False])
def test_norm_of_a_matrix(shape, dense, generator, monkeypatch):
    if not dense:
        monkeypatch.setattr(spectral, "DENSE", 0)
    W = torch.randn(shape, dtype=F64, generator=generator)
    found = spectral_norm(W, generator=generator)
    exact = float(torch.linalg.svdvals(W)[0])
    assert found.converged
    assert found.value == pytest.approx(exact, rel=1e-8)
    assert abs(found.value - exact) <= found.error + 1e-14 * exact


def test_norms_of_matrices_at_the_edge_of_the_range(generator):
    W = torch.tensor([[3.0, 0.0], [4.0, 0.0]], dtype=F64)
    assert spectral_norm(1e200 * W, generator=generator).value == pytest.approx(5e200, rel=1e-14)
    assert spectral_norm(1e-200 * W, generator=generator).value == pytest.approx(5e-200, rel=1e-14)
    assert spectral_norm(0 * W, generator=generator).value == 0.0
    broken = spectral_norm(W * math.nan, generator=generator)
    assert math.isnan(broken.value)
    assert not broken.converged


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda _: circular_spectral_norm(ONES, (8,)), r"`size` must have one length >= 1 for each axis .* got \(8,\)"),
        (lambda _: circular_spectral_norm(ONES, (8, 9), stride=2), r"`stride` must divide the sizes \(8, 9\)"),
        (lambda _: circular_spectral_norm(ONES, (8, 8), groups=2), "`groups` must divide the 1 outputs .* got 2"),
        (lambda g: padded_spectral_norm(ONES, (2, 8), generator=g), r"`size` \(2, 8\) is smaller than the kernel"),
        (lambda g: padded_spectral_norm(torch.ones(1, 1, 1, 1, 1, 1), (2,) * 4, generator=g), "1 to 3 axes"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(call, message, generator):
    with pytest.raises(ValueError, match=message):
        call(generator)
