"""Second derivatives that a model has wrong are found at the start, by differences, and only these."""

import warnings

import pytest
import torch
from problems import F64, small
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from landscape import (
    AscentStep,
    EmpiricalFisher,
    EmpiricalRisk,
    Fisher,
    GaussNewton,
    Hessian,
    ascent_sharpness,
    flatten,
)

LOOSE = {"rtol": 1e-5, "atol": 1e-7}  # central differences


class Saved(torch.autograd.Function):
    """SiLU that saves its sigmoid, by which its second derivative loses a part."""

    @staticmethod
    def forward(ctx, x):
        s = torch.sigmoid(x)
        ctx.save_for_backward(x, s)
        return x * s

    @staticmethod
    def backward(ctx, g):
        x, s = ctx.saved_tensors
        return g * (s + x * s * (1 - s))


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return x.view_as(x)

    @staticmethod
    def backward(_, g):
        return -g


class Does(nn.Module):
    def __init__(self, f) -> None:
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)


def net(activation, *, norm=False):
    first = nn.Linear(3, 4)
    if norm:
        first = nn.utils.parametrizations.weight_norm(first)
    return nn.Sequential(first, Does(activation), nn.Linear(4, 2))


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    "model",
    [
        lambda: net(torch.tanh, norm=True),
        lambda: net(torch.relu, norm=True),
        lambda: net(Saved.apply),
        lambda: nn.Sequential(net(torch.relu), nn.Linear(2, 3), Does(Saved.apply), nn.Linear(3, 2)),
    ],
    ids=["weight norm", "weight norm, relu", "function", "function, relu"],
)
def test_wrong_second_derivatives_are_found(model, dtype):
    risk = small(model().to(dtype), dtype=dtype)
    with pytest.warns(RuntimeWarning, match=r"Hessian: a second derivative of this model is wrong, by [\d.]+ .*differ"):
        H = Hessian(risk)
    assert H.path == "difference"
    assert H.note.startswith("finite differences, because a second derivative is wrong, by ")
    with pytest.raises(ValueError, match=r"`path` = 'afresh' needs second derivatives, and those of this model are wr"):
        Hessian(risk, path="afresh")
    assert Hessian(risk, probe=False).path == "kept"
    if dtype == F64:
        assert_close(H.dense(), H.dense().T, rtol=1e-4, atol=1e-6)


def test_a_right_hessian_of_weight_norm():
    """Against the same function written out."""
    model = net(torch.tanh, norm=True)
    risk = small(model)

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, p in risk.theta.items():
                self.register_parameter(name.replace(".", "_"), nn.Parameter(p))

        def forward(self, x):
            g, v = (getattr(self, f"0_parametrizations_weight_original{i}") for i in (0, 1))
            h = torch.tanh(x @ (g * v / v.square().sum(1, keepdim=True).sqrt()).T + getattr(self, "0_bias"))
            return h @ getattr(self, "2_weight").T + getattr(self, "2_bias")

    plain = EmpiricalRisk.from_model(Plain(), cross_entropy, risk.batches)
    assert [n.replace(".", "_") for n in risk.names] == plain.names
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_close(Hessian(risk).dense(), Hessian(plain).dense(), **LOOSE)
    for operator in (GaussNewton, Fisher, EmpiricalFisher):  # which take first derivatives of the model
        assert_close(operator(risk).dense(), operator(plain).dense(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "activation",
    [
        lambda x: x + (torch.round(4 * x) / 4 - x).detach(),
        lambda x: torch.tanh(x) + (torch.sign(x) - torch.tanh(x)).detach(),
        lambda x: x * torch.sigmoid(x).detach(),
        Reversed.apply,
    ],
    ids=["rounding", "sign", "detached", "reversed"],
)
def test_gradients_that_are_no_derivatives_are_refused(activation):
    risk = small(net(activation))
    for operator in (Hessian, GaussNewton):
        with pytest.raises(ValueError, match=r"`risk` has a loss whose gradient is not its derivative .* probe=False"):
            operator(risk)
        assert operator(risk, probe=False).path == "kept"
    assert EmpiricalFisher(risk).by_rows  # the gradients as they are
    assert Hessian(risk, parameters="2").path == "kept"


def test_a_loss_with_a_detached_part_has_no_gauss_newton_matrix():
    def focal(out, y):
        p = out.softmax(-1).gather(1, y[:, None])[:, 0].detach()
        return ((1 - p) ** 2 * cross_entropy(out, y, reduction="none")).mean()

    risk = small(net(torch.tanh), loss=focal)
    with pytest.raises(ValueError, match="`risk` has a loss whose gradient is not its derivative"):
        Hessian(risk)
    with pytest.raises(ValueError, match="`loss` has second derivatives in the model's outputs that are wrong"):
        GaussNewton(risk)
    assert Fisher(risk, likelihood="categorical").path == "kept"


class Inside(nn.Module):
    """Computes in another type than its weights'."""

    def __init__(self, dtype) -> None:
        super().__init__()
        self.first, self.last, self.dtype = nn.Linear(3, 4), nn.Linear(4, 2), dtype

    def forward(self, x):
        h = torch.tanh(self.first(x)).to(self.dtype)
        return (h @ self.last.weight.to(self.dtype).T).to(x.dtype) + self.last.bias


def zeroed():
    model = net(torch.relu)
    for p in model.parameters():
        p.detach().zero_()
    return model


def l1(out, y):
    return cross_entropy(out, y) + 0.1 * out.abs().mean()


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("operator", [Hessian, GaussNewton])
@pytest.mark.parametrize(
    "make",
    {
        "relu": lambda: net(torch.relu),
        "wide": lambda: nn.Sequential(nn.Linear(3, 99), nn.ReLU(), nn.Linear(99, 99), nn.ReLU(), nn.Linear(99, 2)),
        "rounded": lambda: net(lambda x: x + torch.round(x)),
        "max": lambda: net(lambda x: x.amax(1, keepdim=True) * x),
        "float32 inside": lambda: Inside(torch.float32),
        "bfloat16 inside": lambda: Inside(torch.bfloat16),
    }.items(),
    ids=lambda item: item[0],
)
def test_kinks_and_rounding_are_no_reason(operator, make, dtype):
    name, model = make
    losses = [cross_entropy, lambda out, y: cross_entropy(out.float(), y)]
    losses += [] if name.endswith("inside") else [l1]
    for loss in losses:
        risk = small(model().to(dtype), shape=(9, 3), sizes=(9,), loss=loss, dtype=dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert operator(risk).path == "kept"


def test_a_loss_of_zero_is_no_reason():
    """All examples saturated: the loss is 0 exactly, its gradient too small to be seen in it."""
    risk = small(nn.Sequential(*[nn.Linear(8, 8) for _ in range(6)], nn.Linear(8, 2)), shape=(6, 8))
    with torch.no_grad():
        few = risk.on([(x[:3], risk.predict(risk.theta, x[:3]).argmax(1)) for x, _ in risk.batches])
    assert few.value() == 0
    for operator in (Hessian, GaussNewton):
        assert operator(few).path == "kept"


@pytest.mark.parametrize("scale", [0.0, 1.0, 40.0])
def test_kinks_at_the_point_and_saturated_losses_are_no_reason(scale):
    risk = small(net(torch.relu))
    theta = {name: scale * t for name, t in risk.theta.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Hessian(risk, theta).path == "kept"
        assert GaussNewton(risk, theta).path == "kept"


class Checkpointed(nn.Module):
    def __init__(self, kind) -> None:
        super().__init__()
        self.first, self.mid, self.last, self.kind = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2), kind

    def block(self, h):
        return torch.tanh(self.mid(h))

    def nested(self, h):
        return checkpoint(self.block, h, use_reentrant=False)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        if self.kind == "sequential":
            h = checkpoint_sequential([self.mid, nn.Tanh()], 2, h, use_reentrant=False)
        elif self.kind == "none":
            h = self.block(h)
        else:
            function = self.nested if self.kind == "nested" else self.block
            h = checkpoint(function, h, use_reentrant=self.kind == "reentrant")
        return self.last(h)


@pytest.mark.parametrize("kind", ["plain", "nested", "sequential"])
def test_activations_computed_again_are_those_of_the_point(kind):
    on, off = small(Checkpointed(kind)), small(Checkpointed("none"))
    theta, there = ({n: t + s for n, t in off.theta.items()} for s in (0.5, -0.5))
    assert_close(flatten(on.gradient(theta)), flatten(off.gradient(theta)), rtol=1e-12, atol=1e-14)
    for operator in (Hessian, GaussNewton, EmpiricalFisher):
        kept, other = operator(on, theta), operator(on, there)  # two graphs at once
        assert_close(other.dense(), operator(off, there).dense(), rtol=1e-10, atol=1e-12)
        assert_close(kept.dense(), operator(off, theta).dense(), rtol=1e-10, atol=1e-12)
        assert_close(operator(on, theta, path="afresh").dense(), kept.dense(), rtol=1e-10, atol=1e-12)
    for m in (None, 2):
        values = [ascent_sharpness(r, AscentStep(0.5), m=m, theta=theta).value for r in (on, off)]
        assert values[0] == pytest.approx(values[1], rel=1e-10)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checkpoints_of_the_old_kind_are_refused():
    risk = small(Checkpointed("reentrant"))
    assert risk.value() > 0
    for ask in (EmpiricalRisk.gradient, Hessian, EmpiricalFisher):
        with pytest.raises(ValueError, match=r"`model` checkpoints .* use_reentrant=True, .* use use_reentrant=False"):
            ask(risk)


def test_autocast_around_a_call_is_off_inside():
    risk = small(net(torch.tanh).float(), dtype=torch.float32)
    v = torch.ones(len(flatten(risk.theta)))

    def numbers():
        H = Hessian(risk, path="afresh")
        sharp = ascent_sharpness(risk, AscentStep(0.1), m=2).value
        return [
            risk.value(),
            sharp,
            *(H @ v).tolist(),
            *flatten(risk.gradient()).tolist(),
            *(EmpiricalFisher(risk) @ v).tolist(),
        ]

    expected = numbers()
    with torch.autocast("cpu", torch.bfloat16):
        assert numbers() == expected
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")
