"""The block that makes models twice differentiable: what it catches, and that nothing is left behind."""

import threading

import pytest
import torch
import torch.nn.functional as F
from problems import drawn
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as imported_by_name
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from landscape import EmpiricalRisk, Hessian
from landscape.kernels import context, math_attention, second_derivatives

F64 = torch.float64
ORIGINAL = F.scaled_dot_product_attention


def settings():
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    flags = [getattr(cuda, f"{name}_sdp_enabled")() for name in ("flash", "mem_efficient", "cudnn", "math")]
    recurrent = {name for name in vars(torch._VF) if not name.startswith("_")}
    precisions = [cuda.matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision]
    return [F.scaled_dot_product_attention is ORIGINAL, *flags, recurrent, *precisions, cudnn.enabled]


@pytest.fixture(autouse=True)
def nothing_left_behind():
    before = settings()
    assert before[0]
    yield
    assert settings() == before


@pytest.fixture
def calls(monkeypatch):
    """The shapes of the queries that went through our attention."""
    seen = []

    def attention(*args, **kwargs):
        seen.append(tuple(args[0].shape) if args else tuple(kwargs["query"].shape))
        return context_attention(*args, **kwargs)

    context_attention = context.attention
    monkeypatch.setattr(context, "attention", attention)
    return seen


class Fused(nn.Module):
    """Asks for a kernel itself."""

    kernel = SDPBackend.FLASH_ATTENTION

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 24, dtype=F64)

    def forward(self, x):
        q, k, v = self.inner(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        with sdpa_kernel(self.kernel):
            return F.scaled_dot_product_attention(query=q, key=k, value=v)


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True, dtype=F64)

    def forward(self, x):
        return self.inner(x, x, x, need_weights=False)[0]


class Checkpointed(Fused):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


def encoder_layer(layer=nn.TransformerEncoderLayer):
    return layer(8, 2, 16, dropout=0.0, batch_first=True, dtype=F64).eval()


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = encoder_layer(nn.TransformerDecoderLayer)

    def forward(self, x):
        return self.inner(x, x[:, :3], tgt_is_causal=True, tgt_mask=nn.Transformer.generate_square_subsequent_mask(5))


MODELS = {
    "asks for flash": (Fused, 1),
    "MultiheadAttention": (SelfAttention, 1),
    "TransformerEncoderLayer": (encoder_layer, 1),
    "TransformerDecoderLayer": (Decoder, 2),
    "checkpoint": (Checkpointed, 1),
}


def build(name, generator):
    model = MODELS[name][0]()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=F64) / 2)
    return model


def hessian_product(model, x, generator, block):
    """Loss, gradient and one product; the forward pass, and what a checkpoint repeats of it, lies in the block."""
    parameters = list(model.parameters())
    with block:
        loss = model(x).square().mean()
        grads = torch.autograd.grad(loss, parameters, create_graph=True)
        v = [torch.randn(p.shape, generator=generator, dtype=F64) for p in parameters]
        return [loss.detach(), *grads, *torch.autograd.grad(grads, parameters, v, materialize_grads=True)]


@pytest.mark.parametrize("name", MODELS)
def test_models_are_caught_and_right(name, calls, generator, monkeypatch):
    model = build(name, generator)
    x = torch.randn(2, 5, 8, generator=generator, dtype=F64)
    ours = hessian_product(model, x, torch.Generator().manual_seed(1), second_derivatives())
    assert len(calls) >= MODELS[name][1]
    monkeypatch.setattr(Fused, "kernel", SDPBackend.MATH)
    plain = hessian_product(model, x, torch.Generator().manual_seed(1), math_attention())
    for a, b in zip(ours, plain, strict=True):
        assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_without_the_block_there_is_no_second_derivative(generator):
    q = torch.randn(1, 2, 5, 4, generator=generator).requires_grad_()
    (g,) = torch.autograd.grad(F.scaled_dot_product_attention(q, q, q).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="flash_attention_for_cpu_backward is not implemented"):
        torch.autograd.grad(g.sum(), q)


def test_what_is_not_supported_goes_to_the_plain_kernel(calls, generator):
    q = torch.randn(1, 2, 5, 4, generator=generator).requires_grad_()
    mask = torch.randn(5, 5, generator=generator).requires_grad_()
    with second_derivatives(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = F.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    (g,) = torch.autograd.grad(out.square().sum(), mask, create_graph=True)
    assert torch.autograd.grad(g.square().sum(), mask)[0].abs().max() > 0
    assert not calls


def test_a_function_imported_by_name_goes_to_the_plain_kernel(calls, generator):
    q = torch.randn(1, 2, 5, 4, generator=generator).requires_grad_()
    with second_derivatives():
        out = imported_by_name(q, q, q)
    (g,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    assert torch.autograd.grad(g.square().sum(), q)[0].abs().max() > 0
    assert not calls


def test_blocks_may_be_nested_and_raise():
    def fail():
        with second_derivatives(), second_derivatives(cudnn=True):
            assert F.scaled_dot_product_attention is not ORIGINAL
            raise KeyError("inside")

    with second_derivatives():
        with pytest.raises(KeyError, match="inside"):
            fail()
        assert F.scaled_dot_product_attention is not ORIGINAL
        assert not torch.backends.cuda.flash_sdp_enabled()


def test_a_block_may_be_used_by_generators_out_of_order():
    first, second = second_derivatives(), second_derivatives(cudnn=True)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert F.scaled_dot_product_attention is not ORIGINAL
    second.__exit__(None, None, None)
    assert F.scaled_dot_product_attention is ORIGINAL


def test_threads_that_overlap_leave_nothing(generator):
    inside, leave = threading.Event(), threading.Event()

    def other():
        with second_derivatives():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with second_derivatives():
        thread.start()
        inside.wait(10)
    assert F.scaled_dot_product_attention is not ORIGINAL  # the other one is still inside
    leave.set()
    thread.join()


@pytest.fixture
def recurrent(monkeypatch):
    """A torch that was built for CUDA, whose recurrent functions record whether cuDNN is on."""
    seen = []

    def fake(*args):
        seen.append(torch.backends.cudnn.enabled)
        if not args:
            raise KeyError("no argument")
        return args

    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        monkeypatch.setattr(torch._VF, name, fake, raising=False)
    return seen


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_recurrent_layers_run_without_cudnn(name, recurrent):
    with second_derivatives():
        assert getattr(torch._VF, name)(1, 2) == (1, 2)
        assert torch.backends.cudnn.enabled  # convolutions keep it
        with pytest.raises(KeyError, match="no argument"):
            getattr(torch._VF, name)()
        assert torch.backends.cudnn.enabled
    assert recurrent == [False, False]


def test_recurrent_layers_may_keep_cudnn(recurrent):
    with second_derivatives(cudnn=True):
        torch._VF.lstm(1)
        with second_derivatives():
            torch._VF.lstm(1)
        torch._VF.lstm(1)
    torch._VF.lstm(1)
    assert recurrent == [True, False, True, True]


@pytest.fixture
def tf32(request):
    """TF32 switched on, in the older or the newer way; afterwards the defaults, by both."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    before = cuda.matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision
    if request.param == "older":
        cuda.matmul.allow_tf32 = cudnn.allow_tf32 = True
    else:
        cuda.matmul.fp32_precision = "tf32"
    yield request.param
    if request.param == "older":
        cuda.matmul.allow_tf32 = False
    cuda.matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = before


@pytest.mark.parametrize("tf32", ["older", "newer"], indirect=True)
def test_tf32_is_off(tf32, recurrent):
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn

    def precisions():
        return cuda.matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision

    before = precisions()
    assert before == ("tf32", "tf32", "tf32")
    with second_derivatives():
        assert "tf32" not in precisions()
        if tf32 == "older":
            assert not cuda.matmul.allow_tf32
            with cudnn.flags(enabled=False):  # as a model might, which reads the older settings
                pass
    assert precisions() == before
    if tf32 == "older":
        assert cuda.matmul.allow_tf32
        assert cudnn.allow_tf32


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_on_a_cpu(layer, generator):
    model = layer(3, 4, batch_first=True, dtype=F64).eval()
    x = torch.randn(2, 5, 3, generator=generator, dtype=F64)
    parameters = list(model.parameters())
    v = [torch.randn(p.shape, generator=generator, dtype=F64) for p in parameters]

    def gradient(step):
        moved = {k: (p + step * d).detach().requires_grad_() for (k, p), d in zip(named, v, strict=True)}
        out = torch.func.functional_call(model, moved, (x,))[0]
        return torch.autograd.grad(out.square().sum(), list(moved.values()), create_graph=step == 0), moved

    named = list(model.named_parameters())
    with second_derivatives():
        (grads, leaves) = gradient(0)
    product = torch.autograd.grad(grads, list(leaves.values()), v)
    h = 1e-5  # central differences are off by h² ‖∇⁴‖ and 1e-16 / h
    for a, plus, minus in zip(product, gradient(h)[0], gradient(-h)[0], strict=True):
        assert_close(a, (plus - minus) / (2 * h), rtol=1e-6, atol=1e-7)


class Normed(nn.Module):
    """A normalisation with any of its weights, between two layers."""

    def __init__(self, kind, weight, bias):
        super().__init__()
        self.kind, self.first, self.last = kind, nn.Linear(3, 4), nn.Linear(4, 2)
        self.weight = nn.Parameter(torch.ones(4)) if weight else None
        self.bias = nn.Parameter(torch.zeros(4)) if bias else None
        drawn(self.double())

    def forward(self, x):
        h, w, b = self.first(x), self.weight, self.bias
        if self.kind == "layer":
            h = F.layer_norm(h, (4,), w, b, 0.1)
        elif self.kind == "group":
            h = F.group_norm(h, 2, w, b)
        elif self.kind == "instance":
            h = F.instance_norm(h[:, :, None] * torch.arange(1.0, 4.0), None, None, w, b).tanh().sum(-1)
        elif self.kind == "batch":
            h = F.batch_norm(h, None, None, w, b, training=True)
        else:
            h = F.rms_norm(h, (4,), w)
        return self.last(torch.tanh(h))


@pytest.mark.parametrize("kind", ["layer", "group", "instance", "batch", "rms"])
@pytest.mark.parametrize(("weight", "bias"), [(False, False), (True, False), (False, True), (True, True)])
def test_normalisations_take_any_of_their_weights(kind, weight, bias):
    """Against the same with ones for the weight: its rows of the Hessian left out."""
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([0, 1, 1, 0, 1, 0])
    model = Normed(kind, weight, bias)
    full = Normed(kind, True, True)
    with torch.no_grad():
        full.weight.fill_(1.0)
        full.bias.fill_(0.0)
    full.load_state_dict({**full.state_dict(), **model.state_dict()})
    ours = EmpiricalRisk.from_model(model, F.cross_entropy, (x, y))
    theirs = EmpiricalRisk.from_model(full, F.cross_entropy, (x, y), parameters=ours.names)
    want = Hessian(theirs, parameters=ours.names)
    assert_close(Hessian(ours).dense(), want.dense(), rtol=1e-8, atol=1e-10)
