"""Operations without a second derivative: named from torch's real errors, and found where torch says nothing."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from landscape.kernels import lacks_second_derivative, severed_by


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, seed):
        return 2 * ctx.saved_tensors[0] * seed


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, seed):
        return 2 * ctx.saved_tensors[0] * seed


class Backless(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return 2 * x


class BacklessInside(Twice):
    @staticmethod
    def backward(ctx, seed):
        return Backless.apply(ctx.saved_tensors[0] * seed)


def ctc(x):
    return F.ctc_loss(x.log_softmax(-1), torch.tensor([[1, 2], [2, 1]]), torch.tensor([4, 4]), torch.tensor([2, 2]))


def fused(x):
    return F.scaled_dot_product_attention(x, x, x)


OPERATIONS = {
    "_scaled_dot_product_flash_attention_for_cpu_backward": ((1, 2, 5, 4), fused),
    "_ctc_loss_backward": ((4, 2, 3), ctc),
    "_cdist_backward": ((4, 3), lambda x: torch.cdist(x, x + 1)),
    "_embedding_bag_backward": ((4, 3), lambda x: F.embedding_bag(torch.tensor([[0, 1], [2, 1]]), x)),
    "multi_margin_loss_backward": ((1, 3), lambda x: F.multi_margin_loss(x, torch.tensor([1]))),
    "custom autograd.Function": ((3,), BacklessInside.apply),
    "torch.compile": ((3,), lambda x: torch.compile(lambda y: y.sin().tanh(), backend="aot_eager")(x)),
}


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("name", OPERATIONS)
def test_real_errors_are_read(name, generator):
    shape, operation = OPERATIONS[name]
    x = torch.randn(shape, generator=generator).requires_grad_()
    (g,) = torch.autograd.grad(operation(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError) as caught:
        torch.autograd.grad(g.square().sum(), x)
    assert lacks_second_derivative(caught.value) == name


def test_an_error_of_once_differentiable_is_read(generator):
    x = torch.randn(3, generator=generator).requires_grad_()
    (g,) = torch.autograd.grad(Once.apply(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError) as caught:
        g.sum().backward()
    assert lacks_second_derivative(caught.value) == "@once_differentiable"


# what torch says on a GPU
@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cudnn RNN backward can only be called in training mode", "cudnn RNN"),
        (
            "the derivative for '_cudnn_rnn_backward' is not implemented. Double backwards is not supported for CuDNN "
            "RNNs due to limitations in the CuDNN API.",
            "_cudnn_rnn_backward",
        ),
        (
            "derivative for aten::_scaled_dot_product_efficient_attention_backward is not implemented",
            "_scaled_dot_product_efficient_attention_backward",
        ),
        ("Autograd not implemented for flex_attention_backward", "flex_attention_backward"),
        ("grid_sampler_3d double backward not implemented for interpolation_mode=bicubic", "grid_sampler_3d"),
        ("scatter_reduce(): Double backward is unsupported for src when >1 zeros in src", "scatter_reduce"),
    ],
)
def test_errors_of_a_gpu_are_read(text, name):
    assert lacks_second_derivative(RuntimeError(text)) == name
    assert lacks_second_derivative(NotImplementedError(text)) == name


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Trying to backward through the graph a second time"),
        RuntimeError("CUDA out of memory"),
        ValueError("derivative for aten::x is not implemented"),
        KeyError("x"),
    ],
    ids=str,
)
def test_other_errors_are_not(error):
    assert lacks_second_derivative(error) is None


def graph(function, generator):
    w = torch.randn(3, generator=generator).requires_grad_()
    loss = function(w * 2).square().sum() + w.pow(3).sum()
    (g,) = torch.autograd.grad(loss, w, create_graph=True)
    return w, loss, g


def test_a_function_that_drops_out_of_the_product_in_silence_is_found(generator):
    w, loss, g = graph(Once.apply, generator)
    (product,) = torch.autograd.grad(g.sum(), w, retain_graph=True)
    assert_close(product, 6 * w.detach())  # w³ alone: this is what the function is for
    assert severed_by([loss, g]) == severed_by([loss]) == "Once"
    assert severed_by([g]) == "@once_differentiable"


def test_a_gradient_that_has_no_graph_at_all_is_found(generator):
    w = torch.randn(3, generator=generator).requires_grad_()
    loss = Once.apply(w).sum()
    (g,) = torch.autograd.grad(loss, w, create_graph=True)
    assert not g.requires_grad
    assert severed_by([loss, g]) == "Once"


def test_other_graphs_are_whole(generator):
    _, loss, g = graph(Twice.apply, generator)
    assert severed_by([loss, g]) is None
    assert severed_by([torch.zeros(3)]) is None
    assert severed_by([]) is None
