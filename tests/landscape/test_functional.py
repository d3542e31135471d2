"""A module as a pure function: every parameter is replaced wherever it is kept, and BatchNorm is the same function."""

import copy
import inspect
import warnings

import pytest
import torch
from problems import F64, ConvNorm, Encoder, Padded, Recurrent, SelfAttention, Tied, case, o2
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrizations
from torch.testing import assert_close

from landscape import AscentStep, EmpiricalRisk, Hessian, ascent_sharpness, flatten, worst_case_sharpness
from landscape.functional import PureModel

EXACT = {"rtol": 1e-12, "atol": 1e-13}


class Listed(nn.Module):
    """Keeps its weight in a list and under another name besides, as some libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3))
        self.cache = [self.weight]
        self.line = nn.Linear(3, 2)
        self.__dict__["alias"] = self.line.bias

    def forward(self, x):
        return x @ self.cache[0].T + self.line(x) + self.alias


class Direct(nn.Module):
    """Has parameters in containers of torch, and one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.many = nn.ParameterList([nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))])
        self.named = nn.ParameterDict({"a": nn.Parameter(torch.ones(3))})
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return x * self.many[0] * self.named["a"] + self.scale * self.many[1]


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (5, 3)),
    "conv": (ConvNorm, (5, 2, 4, 4)),
    "attention": (SelfAttention, (5, 4, 3)),
    "encoder": (Encoder, (5, 3, 4)),
    "lstm": (lambda: Recurrent("lstm"), (5, 3, 2)),
    "gru": (lambda: Recurrent("gru"), (5, 3, 2)),
    "projected lstm": (lambda: nn.LSTM(3, 4, proj_size=2, batch_first=True), (5, 3, 3)),
    "cell": (lambda: nn.LSTMCell(3, 4), (5, 3)),
    "tied": (Tied, (5, 3)),
    "listed": (Listed, (5, 3)),
    "containers": (Direct, (5, 3)),
}


def drawn(params, generator):
    return {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in params.items()}


def first(out):
    return out if isinstance(out, torch.Tensor) else first(out[0])


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_a_copy_with_other_weights(name, generator):
    make, shape = MODELS[name]
    model = make().to(F64).train()
    x = torch.randn(shape, generator=generator, dtype=F64)
    pure = PureModel(model)
    theta = drawn(pure.parameters, generator)
    other = copy.deepcopy(model).eval()
    if name == "listed":  # deepcopy keeps the list and the alias tied
        assert other.cache[0] is other.weight
    with torch.no_grad():
        for key, p in other.named_parameters():
            p.copy_(theta[key])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert_close(first(pure(theta, x)), first(other(x)), **EXACT)
    assert_close(first(pure({}, x)), first(copy.deepcopy(model).eval()(x)), **EXACT)  # and its own are back
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert list(pure.parameters) == [key for key, _ in model.named_parameters()]


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_gets_its_gradient(name, generator):
    make, shape = MODELS[name]
    model = make().to(F64)
    x = torch.randn(shape, generator=generator, dtype=F64)
    pure = PureModel(model)
    theta = {k: t.requires_grad_() for k, t in drawn(pure.parameters, generator).items()}
    got = torch.autograd.grad(first(pure(theta, x)).square().sum(), list(theta.values()), allow_unused=True)
    other = copy.deepcopy(model).eval().requires_grad_()
    with torch.no_grad():
        for key, p in other.named_parameters():
            p.copy_(theta[key])
    expected = torch.autograd.grad(first(other(x)).square().sum(), list(other.parameters()), allow_unused=True)
    for key, g, e in zip(theta, got, expected, strict=True):
        assert (g is None) == (e is None), key
        if g is not None:
            assert_close(g, e, **EXACT)


def test_flat_weights_of_recurrent_layers_are_replaced_and_put_back():
    model = nn.LSTM(3, 4)
    pure = PureModel(model)
    own = [id(p) for p in model._flat_weights]
    pure({name: torch.zeros_like(p) for name, p in pure.parameters.items()}, torch.ones(2, 1, 3))
    assert [id(p) for p in model._flat_weights] == own
    zero = pure({name: torch.zeros_like(p) for name, p in pure.parameters.items()}, torch.ones(2, 1, 3))[0]
    assert not zero.any()


@pytest.mark.parametrize(
    "wrap",
    [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal],
    ids=["weight norm", "spectral norm", "orthogonal"],
)
def test_parametrised_layers(wrap, generator):
    model = nn.Sequential(wrap(nn.Linear(3, 3)), nn.Linear(3, 2)).to(F64)
    x = torch.randn(5, 3, generator=generator, dtype=F64)
    pure = PureModel(model)
    theta = {k: p.detach() + 0.1 * torch.randn(p.shape, generator=generator) for k, p in model.named_parameters()}
    with torch.no_grad():
        expected = functional_call(copy.deepcopy(model).eval(), theta, (x,))
        assert_close(pure(theta, x), expected, **EXACT)
        assert (pure(theta, x) - pure({}, x)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
def test_layers_with_the_older_hooks(kind, generator):
    """torch's older norms compute the weight before each call, and leave a tensor with a graph on the module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = getattr(nn.utils, kind)(nn.Linear(3, 3, dtype=F64))
    x = torch.randn(5, 3, generator=generator, dtype=F64)
    wrapped(x)
    model = nn.Sequential(wrapped, nn.Linear(3, 2, dtype=F64)).eval()
    own = model(x).detach()
    pure = PureModel(model)
    names = {"weight_norm": ["0.bias", "0.weight_g", "0.weight_v"], "spectral_norm": ["0.bias", "0.weight_orig"]}[kind]
    assert list(pure.parameters) == [*names, "1.weight", "1.bias"]
    theta = {k: p.detach() + 0.1 * torch.randn(p.shape, generator=generator) for k, p in pure.parameters.items()}
    if kind == "weight_norm":
        v = theta["0.weight_v"]
        weight = theta["0.weight_g"] * v / v.norm(dim=1, keepdim=True)
    else:
        u, v = model[0].weight_u, model[0].weight_v
        weight = theta["0.weight_orig"] / (u @ theta["0.weight_orig"] @ v)
    hidden = x @ weight.T + theta["0.bias"]
    assert_close(pure(theta, x), hidden @ theta["1.weight"].T + theta["1.bias"], **EXACT)
    assert_close(pure({}, x), own, **EXACT)
    assert_close(model(x), own, **EXACT)


NORMS = {
    "1d": (lambda: nn.BatchNorm1d(3), (5, 3)),
    "1d with length": (lambda: nn.BatchNorm1d(3), (5, 3, 4)),
    "2d": (lambda: nn.BatchNorm2d(3), (4, 3, 2, 2)),
    "3d": (lambda: nn.BatchNorm3d(3), (4, 3, 2, 1, 2)),
    "not affine": (lambda: nn.BatchNorm2d(3, affine=False), (4, 3, 2, 2)),
    "no statistics": (lambda: nn.BatchNorm1d(3, track_running_stats=False), (5, 3)),
    "large eps": (lambda: nn.BatchNorm1d(3, eps=0.5), (5, 3)),
}


def trained(name, generator, dtype=F64):
    make, shape = NORMS[name]
    model = nn.Sequential(make(), nn.Tanh()).to(dtype)
    with torch.no_grad():
        for t in model[0].state_dict().values():
            if t.is_floating_point():
                t.copy_(torch.rand(t.shape, generator=generator) + 0.5)
    return model, torch.randn(shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("name", NORMS)
def test_batchnorm_has_the_layers_value_and_derivatives(name, generator):
    """Value, gradient and second derivatives in the input and the parameters."""
    model, x = trained(name, generator)
    layer, pure = copy.deepcopy(model).eval(), PureModel(model)
    names = list(pure.parameters)

    def ours(x, *theta):
        return pure(dict(zip(names, theta, strict=True)), x).square().sum()

    def theirs(x, *theta):
        return functional_call(layer, dict(zip(names, theta, strict=True)), (x,)).square().sum()

    at = (x, *[p.detach() for p in pure.parameters.values()])
    assert_close(ours(*at), theirs(*at), **EXACT)
    for a, b in zip(*(torch.autograd.functional.jacobian(f, at) for f in (ours, theirs)), strict=True):
        assert_close(a, b, **EXACT)
    for row, other in zip(*(torch.autograd.functional.hessian(f, at) for f in (ours, theirs)), strict=True):
        for a, b in zip(row, other, strict=True):
            assert_close(a, b, **EXACT)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 3e-2)])
def test_batchnorm_in_other_precisions(dtype, tolerance, generator):
    model, x = trained("2d", generator, dtype)
    expected = copy.deepcopy(model).eval()(x)
    out = PureModel(model)({}, x)
    assert out.dtype == dtype
    assert_close(out.double(), expected.double(), rtol=tolerance, atol=tolerance)


def test_mixed_precision_goes_to_the_layer_itself(generator):
    """Statistics and weights of float32 on bfloat16 images, as mixed-precision models have them."""
    model, x = trained("2d", generator, torch.float32)
    expected = copy.deepcopy(model).eval()(x.bfloat16())
    assert torch.equal(PureModel(model)({}, x.bfloat16()), expected)


@pytest.mark.parametrize("mode", ["batch", "train"])
def test_batch_statistics_do_not_move_the_running_ones(mode, generator):
    model, x = trained("2d", generator)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pure = PureModel(model, mode=mode)
    expected = nn.functional.batch_norm(x, None, None, model[0].weight, model[0].bias, training=True).tanh()
    assert_close(pure({}, x), expected, **EXACT)
    for state in (model.state_dict(), pure.module.state_dict()):
        assert all(torch.equal(v, before[k]) for k, v in state.items())


def test_modes_of_dropout_and_normalisation():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    for mode, norm, drop in (
        ("eval", False, False),
        ("batch", True, False),
        ("recalibrate", False, False),
        ("train", True, True),
    ):
        pure = PureModel(model, mode=mode)
        assert (pure.module[1].training, pure.module[2].training) == (norm, drop)
        assert pure.random_layers == (["2"] if drop else [])
        assert pure.normalised
    assert not PureModel(nn.Linear(2, 2)).normalised


def test_recalibrated_copies_leave_model_and_original_alone(generator):
    c = case("conv:recalibrate")
    pure = PureModel(c.model, mode="recalibrate")
    before = {k: v.clone() for k, v in c.model.state_dict().items()}
    theta = {k: 2 * p.detach() for k, p in pure.parameters.items()}
    x = c.batches[0][0]
    old = pure(theta, x)
    settled = pure.recalibrated(theta, c.batches)
    assert settled.mode == "eval"
    assert (settled(theta, x) - old).abs().max() > 0.01
    assert torch.equal(pure(theta, x), old)
    for state in (c.model.state_dict(), pure.module.state_dict()):
        assert all(torch.equal(v, before[k]) for k, v in state.items())
    images = torch.cat([x for x, _ in c.batches])
    h = nn.functional.conv2d(images, theta["conv.weight"], theta["conv.bias"], padding=1)
    assert_close(settled.module.norm.running_mean, h.mean((0, 2, 3)).detach(), **EXACT)
    with pytest.raises(RuntimeError):
        pure.recalibrated(theta, [(x[:, :1], None)])
    assert torch.equal(pure(theta, x), old)  # the parameters are back after an error


def test_parameters_are_back_after_an_error(generator):
    model = nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 2))
    pure = PureModel(model)
    x = torch.randn(5, 3, generator=generator)
    own = first(pure({}, x))
    with pytest.raises(RuntimeError):
        pure(drawn(pure.parameters, generator), x[:, :2])
    assert torch.equal(first(pure({}, x)), own)


def test_inputs_may_be_tuples_and_dicts(generator):
    c = case("padded")
    (x, padded), _ = c.batches[0]
    pure = PureModel(c.model)
    assert isinstance(pure.module, Padded)
    assert torch.equal(pure({}, (x, padded)), pure({}, {"padded": padded, "x": x}))


def test_hooks_of_the_users_own_are_kept(generator):
    seen = []
    model = nn.Linear(3, 2)
    model.register_forward_hook(lambda *args: seen.append(args[2].shape) or 2 * args[2])
    x = torch.randn(5, 3, generator=generator)
    assert torch.equal(PureModel(model)({}, x), model(x))
    assert seen == [(5, 2), (5, 2)]


def test_buffers_that_a_forward_pass_changes_are_the_copys(generator):
    class Counts(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    model = Counts()
    pure = PureModel(model)
    pure({}, torch.randn(5, 3, generator=generator))
    assert model.calls == 0


def test_what_prefers_channels_last():
    dense, grouped = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=2)
    assert PureModel(dense).prefers_channels_last
    assert not PureModel(nn.Sequential(dense, grouped)).prefers_channels_last
    assert not PureModel(nn.Linear(2, 2)).prefers_channels_last


def test_refused_arguments():
    class Locked(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("not me")

    with pytest.raises(ValueError, match=r"`model` cannot be copied \(TypeError: not me\): give `EmpiricalRisk` a fun"):
        PureModel(Locked(2, 2))
    make = inspect.unwrap(PureModel.__init__)  # past the tests' type checks
    with pytest.raises(ValueError, match="`mode` must be 'eval', 'batch', 'recalibrate' or 'train', got 'test'"):
        make(PureModel.__new__(PureModel), nn.Linear(2, 2), mode="test")


def test_unknown_names_are_refused():
    """A θ from another model, say."""
    risk = o2()
    with pytest.raises((KeyError, ValueError), match=r"3\.weight"):
        risk.predict({"3.weight": torch.zeros(2, 2, dtype=F64)}, risk.batches[0][0])


class Waves(nn.Module):
    """A complex layer; with `real`, the same on its real and imaginary parts."""

    def __init__(self, real):
        super().__init__()
        w = torch.randn(2, 3, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
        self.w, self.b = (
            nn.Parameter(torch.view_as_real(w).clone() if real else w),
            nn.Parameter(torch.zeros(2).double()),
        )

    def forward(self, x):
        w = self.w if self.w.is_complex() else torch.view_as_complex(self.w)
        return (x.to(w.dtype) @ w.T).abs() + self.b


def test_complex_parameters_are_their_real_and_imaginary_parts():
    source = torch.Generator().manual_seed(1)
    data = torch.randn(6, 3, generator=source, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1, 0])
    ours, want = (EmpiricalRisk.from_model(Waves(real), cross_entropy, data) for real in (False, True))
    assert ours.value() == pytest.approx(want.value(), rel=1e-14)
    assert_close(flatten(ours.gradient()), flatten(want.gradient()), rtol=1e-12, atol=1e-14)
    assert_close(Hessian(ours).dense(), Hessian(want).dense(), rtol=1e-10, atol=1e-12)
    for measure in (
        lambda r: ascent_sharpness(r, AscentStep(0.1), m=3),
        lambda r: worst_case_sharpness(r, 0.1, steps=3),
    ):
        assert measure(ours).value == pytest.approx(measure(want).value, rel=1e-10)
    own = {name: p.detach() for name, p in Waves(real=False).named_parameters()}
    assert ours.value(own) == ours.value()
    assert_close(Hessian(ours, own).dense(), Hessian(want).dense(), rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match=r"complex parameters \['w'\].*view_as_real"):
        EmpiricalRisk(lambda _, x: x, cross_entropy, [data], own)
