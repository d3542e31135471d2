"""Attention and its derivatives against torch's plain kernel, whole and cut into blocks."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from landscape.kernels import attention, fused, math_attention, score_blocks
from landscape.kernels.attention import supports

F64 = torch.float64
EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64: a few hundred roundings of numbers of order 1
BLOCKS = {"one block": 2**30, "heads": 4 * 8 * 7 * 5, "rows": 2 * 8 * 7}  # bytes; a row of scores has 7 entries


def draw(generator, *shape, dtype=F64):
    return torch.randn(*shape, generator=generator, dtype=F64).to(dtype)


def inputs(generator, leading=(2, 3), n=5, m=7, d=4, e=6, dtype=F64):
    shapes = [(*leading, n, d), (*leading, m, d), (*leading, m, e)]
    return [draw(generator, *shape, dtype=dtype).requires_grad_() for shape in shapes]


def hide(generator, *shape):
    """A boolean mask that hides about a third of the keys, and no query's last one."""
    mask = torch.rand(*shape, generator=generator) > 0.3
    mask[..., -1] = True
    return mask


CASES = {
    "plain": lambda _: {},
    "scale": lambda _: {"scale": 0.3},
    "negative scale": lambda _: {"scale": -0.7},
    "causal": lambda _: {"is_causal": True},
    "added mask": lambda g: {"attn_mask": draw(g, 2, 3, 5, 7)},
    "mask of pairs": lambda g: {"attn_mask": draw(g, 5, 7)},
    "boolean mask": lambda g: {"attn_mask": hide(g, 2, 3, 5, 7)},
    "padding": lambda g: {"attn_mask": hide(g, 2, 1, 1, 7)},
    "infinite mask": lambda g: {"attn_mask": torch.zeros(5, 7, dtype=F64).masked_fill(~hide(g, 5, 7), -math.inf)},
}


def derivatives(function, tensors, generator, rounded=F64, **options):
    """Value, gradient, and the derivative of the gradient in all inputs and in the cotangent."""
    with math_attention():
        out = function(*tensors, **options)
    seed = draw(generator, *out.shape, dtype=rounded).to(out.dtype).requires_grad_()
    first = torch.autograd.grad(out, tensors, seed, create_graph=True)
    moves = [draw(generator, *t.shape, dtype=rounded).to(t.dtype) for t in first]
    second = torch.autograd.grad(first, [*tensors, seed], moves)
    return [out, *first, *second]


def compare(tensors, options, tolerance=EXACT):
    ours, plain = (
        derivatives(f, tensors, torch.Generator().manual_seed(1), **options)
        for f in (attention, scaled_dot_product_attention)
    )
    for a, b in zip(ours, plain, strict=True):
        assert_close(a, b, **tolerance)


@pytest.fixture(params=BLOCKS)
def blocks(request, monkeypatch):
    monkeypatch.setattr(score_blocks, "CPU_BLOCK_BYTES", BLOCKS[request.param])
    monkeypatch.setattr(score_blocks, "CAUSAL_ROWS", 2)


@pytest.mark.parametrize("case", CASES)
def test_derivatives_are_those_of_the_plain_kernel(case, blocks, generator):
    compare(inputs(generator), CASES[case](generator))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("leading", [(3,), ()], ids=["3d", "2d"])
def test_fewer_axes(case, leading, generator):
    tensors, options = inputs(generator, leading), CASES[case](generator)
    if "attn_mask" in options:
        options["attn_mask"] = options["attn_mask"].expand(2, 3, 5, 7)[(0,) * (2 - len(leading))]
    compare(tensors, options)


def test_more_queries_than_keys_under_a_causal_mask(blocks, generator):
    compare(inputs(generator, n=7, m=4), {"is_causal": True})


@pytest.mark.parametrize("value", [False, -math.inf], ids=["boolean", "infinite"])
def test_a_query_that_sees_nothing_has_output_and_derivatives_zero(value, blocks, generator):
    mask = torch.ones(5, 7, dtype=torch.bool) if value is False else torch.zeros(5, 7, dtype=F64)
    mask[2] = value
    tensors = inputs(generator)
    compare(tensors, {"attn_mask": mask})
    assert attention(*tensors, attn_mask=mask)[..., 2, :].eq(0).all()


@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"is_causal": True}], ids=["plain", "scale", "causal"])
@pytest.mark.parametrize("taken", [True, False], ids=["fused", "blocks"])
def test_the_fused_kernel_where_it_fits(options, taken, generator, monkeypatch):
    answers = []

    def fits(*args):
        answers.append(fused_fits(*args))
        return taken

    fused_fits = fused.fits
    monkeypatch.setattr(fused, "fits", fits)
    tensors = inputs(generator, n=7, m=7, d=4, e=4)
    compare(tensors, options)
    assert answers == [True, True]  # value, gradient
    results = [  # the sum's cotangent has strides of zero
        torch.autograd.grad(f(*tensors, **options).sum(), tensors) for f in (attention, scaled_dot_product_attention)
    ]
    for a, b in zip(*results, strict=True):
        assert_close(a, b, **EXACT)


@pytest.mark.parametrize("case", ["mask", "negative scale", "wide values", "causal with more keys", "half", "strides"])
def test_the_blocks_serve_where_the_fused_kernel_does_not(case, generator):
    q, k, v = (t.detach() for t in inputs(generator, n=7, m=7, d=4, e=4))
    rule = score_blocks.Rule(None, False, 0.5)
    assert fused.fits(q, k, v, rule)
    changed = {
        "mask": (q, k, v, rule._replace(mask=draw(generator, 2, 3, 7, 7))),
        "negative scale": (q, k, v, rule._replace(scale=-0.5)),
        "wide values": (q, k, torch.cat([v, v], -1), rule),
        "causal with more keys": (q[:, :, :5], k, v, rule._replace(causal=True)),
        "half": (q.half(), k.half(), v.half(), rule),
        "strides": (q.mT.contiguous().mT, k, v, rule),
    }
    assert not fused.fits(*changed[case])


def test_inputs_cut_out_of_one_projection(generator):
    joint = draw(generator, 2, 5, 3, 4, 8).requires_grad_()  # (b, n, 3, h, d), as in a vision transformer

    def function(x):
        return attention(*x.permute(2, 0, 3, 1, 4).unbind(0))

    def plain(x):
        return scaled_dot_product_attention(*x.permute(2, 0, 3, 1, 4).unbind(0))

    ours, expected = (derivatives(f, [joint], torch.Generator().manual_seed(1)) for f in (function, plain))
    for a, b in zip(ours, expected, strict=True):
        assert_close(a, b, **EXACT)


@pytest.mark.parametrize("live", [(0,), (1,), (2,), (0, 2)], ids=str)
def test_inputs_without_gradient(live, generator):
    tensors = [t.detach() for t in inputs(generator)]
    for i in live:
        tensors[i].requires_grad_()
    used = [tensors[i] for i in live]
    results = []
    for function in (attention, scaled_dot_product_attention):
        with math_attention():
            out = function(*tensors)
        first = torch.autograd.grad(out.square().sum(), used, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), used))
    for a, b in zip(*results, strict=True):
        assert_close(a, b, **EXACT)


def test_groups_of_heads_share_keys(generator):
    q, k, v = draw(generator, 2, 6, 5, 4), draw(generator, 2, 3, 7, 4), draw(generator, 2, 3, 7, 6)
    compare([t.requires_grad_() for t in (q, k, v)], {"enable_gqa": True})


# the arithmetic is in float32; inputs are the same, outputs and then results are rounded, to 11 and 8 binary digits
@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 2**-21), (torch.float16, 2**-11), (torch.bfloat16, 2**-8)], ids=str
)
def test_shorter_dtypes(dtype, error, generator):
    short = inputs(generator, dtype=dtype)
    long = [t.detach().double().requires_grad_() for t in short]
    ours = derivatives(attention, short, torch.Generator().manual_seed(1), rounded=dtype)
    exact = derivatives(scaled_dot_product_attention, long, torch.Generator().manual_seed(1), rounded=dtype)
    for a, b in zip(ours, exact, strict=True):
        assert a.dtype == dtype
        assert (a.double() - b).norm() < error * b.norm()


def test_finite_differences_agree(generator):
    tensors = inputs(generator, (1, 2), n=3, m=4, d=2, e=3)
    assert gradcheck(attention, tensors)
    assert gradgradcheck(attention, tensors)


def test_large_scores_do_not_overflow(generator):
    q, k, v = (t.detach() * 60 for t in inputs(generator, dtype=torch.float32))
    assert attention(q, k, v).isfinite().all()
    tensors = [t.requires_grad_() for t in (q, k, v)]
    ours = derivatives(attention, tensors, torch.Generator().manual_seed(1))
    long = [t.detach().double().requires_grad_() for t in tensors]
    exact = derivatives(scaled_dot_product_attention, long, torch.Generator().manual_seed(1))
    for a, b in zip(ours, exact, strict=True):  # scores of 1e4 have errors of 1e-3, whoever computes them
        assert (a - b).norm() < 1e-2 * b.norm()


def test_hessian_over_parameters_is_symmetric(generator):
    x = draw(generator, 2, 2, 5, 4)

    def f(w):
        q, k, v = (x @ part for part in w)
        return attention(q, k, v).square().sum()

    H = torch.autograd.functional.hessian(f, draw(generator, 3, 4, 4)).reshape(48, 48)
    assert H.norm() > 1
    assert_close(H, H.T, rtol=1e-10, atol=1e-10 * float(H.norm()))


def test_a_kept_graph_gives_the_same_product_again(generator):
    tensors = inputs(generator)
    first = torch.autograd.grad(attention(*tensors).square().sum(), tensors, create_graph=True)
    moves = [draw(generator, *t.shape) for t in first]
    products = [torch.autograd.grad(first, tensors, moves, retain_graph=True) for _ in range(2)]
    for a, b in zip(*products, strict=True):
        assert_close(a, b, rtol=0, atol=0)


def test_many_products_at_once(generator):
    tensors = inputs(generator)
    first = torch.autograd.grad(attention(*tensors).square().sum(), tensors, create_graph=True)
    moves = [draw(generator, 3, *t.shape) for t in first]
    together = torch.func.vmap(lambda *v: torch.autograd.grad(first, tensors, v, retain_graph=True))(*moves)
    for i in range(3):
        alone = torch.autograd.grad(first, tensors, [m[i] for m in moves], retain_graph=True)
        for a, b in zip(together, alone, strict=True):
            assert_close(a[i], b, **EXACT)


@pytest.mark.parametrize("mask", [None, "padding"])
def test_gradients_of_examples_by_vmap(mask, generator):
    weights = draw(generator, 3, 4, 4)
    x = draw(generator, 6, 2, 5, 4)
    options = {} if mask is None else {"attn_mask": hide(generator, 1, 5)}

    def loss(w, one, function):
        return function(*(one @ part for part in w), **options).square().sum()

    results = []
    for function in (attention, scaled_dot_product_attention):
        with math_attention():
            gradient = torch.func.grad(lambda w, one, f=function: loss(w, one, f))
            results.append(torch.func.vmap(gradient, (None, 0))(weights, x))
    assert_close(*results, **EXACT)


def test_no_score_matrix_is_kept(generator):
    q, k, v = (draw(generator, 1, 1, 512, 4).requires_grad_() for _ in range(3))
    largest = 0

    def weigh(t):
        nonlocal largest
        largest = max(largest, t.untyped_storage().nbytes())
        return t

    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda t: t):
        out = attention(q, k, v)
        torch.autograd.grad(out.square().sum(), (q, k, v), create_graph=True)
    assert largest == 512 * 4 * 8


def test_a_third_derivative_is_refused(generator):
    tensors = inputs(generator)
    first = torch.autograd.grad(attention(*tensors).square().sum(), tensors, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), tensors, create_graph=True)
    with pytest.raises(NotImplementedError, match="attention has no third derivative here: use `math_attention`"):
        torch.autograd.grad(second[0].sum(), tensors)


def refused():
    q = torch.zeros(2, 3, 5, 4)
    mask = torch.zeros(5, 5)
    return {
        "dropout": ((q, q, q), {"dropout_p": 0.1}),
        "mask with a gradient": ((q, q, q), {"attn_mask": mask.clone().requires_grad_()}),
        "mask and causal": ((q, q, q), {"attn_mask": mask, "is_causal": True}),
        "mask of another dtype": ((q, q, q), {"attn_mask": mask.double()}),
        "mask of another shape": ((q, q, q), {"attn_mask": mask[:3]}),
        "other dtypes": ((q, q.double(), q), {}),
        "integers": ((q.long(), q.long(), q.long()), {}),
        "five axes": ((q[None], q[None], q[None]), {}),
        "broadcast keys": ((q, q[:1], q[:1]), {}),
        "no key": ((q, q[..., :0, :], q[..., :0, :]), {}),
        "no number": (("q", q, q), {}),
        "odd heads": ((q, q[:, :2], q[:, :2]), {"enable_gqa": True}),
    }


@pytest.mark.parametrize("case", refused())
def test_what_is_not_supported(case):
    args, options = refused()[case]
    assert not supports(*args, **options)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_autocast_and_forward_mode_are_not_supported():
    q = torch.zeros(2, 3, 5, 4)
    answers = [supports(q, q, q)]
    with torch.autocast("cpu"):
        answers.append(supports(q, q, q))
    with torch.autograd.forward_ad.dual_level():
        answers.append(supports(q, q, q))

    def ask(t):
        answers.append(supports(t, t, t))
        return t.sum()

    torch.func.jvp(ask, (q,), (q,))
    torch.func.vmap(torch.func.grad(ask))(q[None])
    assert answers == [True, False, False, False, True]
