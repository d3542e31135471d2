"""The first evaluation of a risk: derivatives taken inside, shapes that torch broadcasts, what must not be written."""

import copy

import pytest
import torch
from problems import F64, drawn
from torch import nn
from torch.nn.functional import cross_entropy, gaussian_nll_loss, huber_loss, l1_loss, mse_loss, smooth_l1_loss
from torch.testing import assert_close

from landscape import (
    AscentStep,
    EmpiricalFisher,
    EmpiricalRisk,
    GaussNewton,
    Hessian,
    ascent_sharpness,
    average_sharpness,
    displaced,
    inner,
    scan,
    trace,
    worst_case_sharpness,
)
from landscape.surfaces import Axes, Grid, random_axes

GRID = torch.linspace(0, 1, 10, dtype=F64)[:, None]


def seeded():
    return torch.Generator().manual_seed(0)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Sequential(nn.Linear(1, 5, dtype=F64), nn.Tanh(), nn.Linear(5, 1, dtype=F64))
        drawn(self)

    def exact(self, x):
        """u, u' and u'' in closed form."""
        a, b, c = self.f[0].weight[:, 0], self.f[0].bias, self.f[2].weight[0]
        t = torch.tanh(x * a + b)
        slope = 1 - t**2
        return torch.stack([t @ c + self.f[2].bias, (slope * a) @ c, (-2 * t * slope * a**2) @ c], 1)


class Differentiates(Network):
    def forward(self, x):
        x = x.detach().requires_grad_()
        u = self.f(x)
        first = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        return torch.cat([u, first, torch.autograd.grad(first.sum(), x, create_graph=True)[0]], 1)


class Exposes(Network):
    def forward(self, x):
        x = x.detach().requires_grad_()
        return {"x": x, "u": self.f(x)}


class Exact(Network):
    def forward(self, x):
        return self.exact(x)


def of_exposed(out, y):
    first = torch.autograd.grad(out["u"].sum(), out["x"], create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), out["x"], create_graph=True)[0]
    return mse_loss(torch.cat([out["u"], first, second], 1), y)


@pytest.mark.parametrize(("model", "loss"), [(Differentiates, mse_loss), (Exposes, of_exposed)])
def test_losses_with_derivatives_by_the_input_are_those_of_the_closed_form(model, loss):
    data = (GRID, torch.cat([GRID.sin(), GRID.cos(), -GRID.sin()], 1))
    risk, want = EmpiricalRisk.from_model(model(), loss, data), EmpiricalRisk.from_model(Exact(), mse_loss, data)
    assert risk.value() == pytest.approx(want.value(), rel=1e-12)
    assert_close(Hessian(risk).dense(), Hessian(want).dense(), rtol=1e-9, atol=1e-11)
    for measure in (
        lambda r: ascent_sharpness(r, AscentStep(0.05), m=5).value,
        lambda r: average_sharpness(r, 0.1, draws=2, generator=seeded()).value,
        lambda r: worst_case_sharpness(r, 0.1, steps=2, generator=seeded()).value,
        lambda r: trace(Hessian(r), generator=seeded()).value,
        lambda r: float(
            scan(r, Axes(r.theta, random_axes(r.theta, seeded(), count=1)), Grid.around(0.1, 3, axes=1)).values["loss"][
                0
            ]
        ),
    ):
        assert measure(risk) == pytest.approx(measure(want), rel=1e-8)
    if model is Differentiates:
        assert not risk.outputs().requires_grad
        assert_close(GaussNewton(risk).dense(), GaussNewton(want).dense(), rtol=1e-9, atol=1e-11)
        E = EmpiricalFisher(risk).dense()
        assert_close(E, EmpiricalFisher(want).dense(), rtol=1e-9, atol=1e-11)
    else:
        with pytest.raises(ValueError, match="differentiates one output of the model by another"):
            GaussNewton(risk).dense()


X = torch.randn(12, 3, generator=seeded(), dtype=F64)
T = X[:, 0].clone()
LINES = {k: nn.Linear(3, k, dtype=F64) for k in (1, 2, 12)}
FLAT = nn.Sequential(LINES[1], nn.Flatten(0))
BROADCAST = [
    mse_loss,
    l1_loss,
    huber_loss,
    smooth_l1_loss,
    nn.MSELoss(),
    lambda o, y: mse_loss(o, y),
    lambda o, y: ((o - y) ** 2).mean(),
    lambda o, y: (o - y).abs().mean(),
    lambda o, y: gaussian_nll_loss(o, y, torch.ones_like(o)),
]


@pytest.mark.parametrize("loss", BROADCAST, ids=range(len(BROADCAST)))
@pytest.mark.parametrize(
    ("model", "targets"),
    [(LINES[1], T), (FLAT, T[:, None]), (LINES[2], T[:2]), (LINES[12], T)],
    ids=["column", "row", "shared", "square"],
)
def test_shapes_that_torch_would_broadcast_are_refused(loss, model, targets):
    risk = EmpiricalRisk.from_model(model, loss, (X, targets))
    for ask in (risk.value, risk.gradient, lambda: Hessian(risk)):
        with pytest.raises(
            ValueError, match=r"targets of shape .* for outputs of shape .*, which torch would broadcast"
        ):
            ask()


def test_broadcasting_is_named_where_data_come_in_batches():
    risk = EmpiricalRisk.from_model(LINES[1], lambda o, y: ((o - y) ** 2).mean(), [(X[:5], T[:5]), (X[5:], T[5:])])
    with pytest.raises(ValueError, match="targets of shape"):
        risk.value()


def quantiles(o, y):
    q = torch.tensor([0.1, 0.5], dtype=F64)
    return torch.maximum(q * (y - o), (q - 1) * (y - o)).mean()


@pytest.mark.parametrize(
    ("width", "loss", "targets"),
    [
        (1, lambda o, y: ((o.squeeze(-1) - y) ** 2).mean(), T),
        (1, lambda o, y: ((o[:, 0] - y) ** 2).mean(), T),
        (1, lambda o, y: ((o - y[:, None]) ** 2).mean(), T),
        (1, lambda o, y: mse_loss(o, y.view(-1, 1)), T),
        (1, lambda o, y: 1 - torch.corrcoef(torch.stack([o.squeeze(1), y]))[0, 1], T),
        (2, quantiles, T[:, None]),
        (2, lambda o, y: gaussian_nll_loss(o[:, 0], y, o[:, 1].exp()), T),
        (12, cross_entropy, torch.arange(12)),
        (2, lambda o, y: (cross_entropy(o, y[0], reduction="none") * y[1]).mean(), ((T > 0).long(), T.abs())),
    ],
)
def test_losses_that_align_shapes_themselves_are_taken(width, loss, targets):
    risk = EmpiricalRisk.from_model(LINES[width], loss, [(X, targets)])
    assert risk.value() == pytest.approx(loss(LINES[width](X), targets).item(), rel=1e-13)


class Writes(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.l, self.how = nn.Linear(3, 2, dtype=F64), how
        self.register_buffer("seen", torch.zeros((), dtype=F64))
        self.register_buffer("code", torch.randn(2, dtype=F64))
        drawn(self)

    def forward(self, x):
        if self.how == "relu":
            x = x.relu_()
        elif self.how == "counter":
            self.seen += 1
        elif self.how == "assigned":
            self.seen = self.seen + 1
        elif self.how == "weights":
            self.l.weight.data.clamp_(-0.1, 0.1)
        elif self.how == "grown" and not hasattr(self, "last"):
            self.last = nn.Linear(2, 2, dtype=F64)
        out = self.l(x) * (1 + self.seen) + self.code
        if self.how == "code":
            with torch.no_grad():
                self.code.mul_(0.9).add_(out.detach().mean(0), alpha=0.1)
        return out


@pytest.mark.parametrize("how", ["relu", "counter", "assigned", "code"])
def test_what_a_model_writes_on_is_as_before_at_every_call(how):
    model, x, y = Writes(how), X.clone(), (T > 0).long()
    before = copy.deepcopy(model.state_dict())
    want = cross_entropy(copy.deepcopy(model)(X.clone()), y).item()
    risk = EmpiricalRisk.from_model(model, cross_entropy, (x, y))
    assert [risk.value() for _ in range(3)] == [pytest.approx(want, rel=1e-13)] * 3
    assert_close(Hessian(risk).dense(), Hessian(risk, path="difference").dense(), rtol=1e-6, atol=1e-8)
    assert torch.equal(x, X)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_what_cannot_be_undone_is_refused_before_anything_is_written():
    y = (T > 0).long()
    model = Writes("weights")
    before = model.l.weight.detach().clone()
    with pytest.raises(ValueError, match=r"writes on its parameters \['l.weight'\]"):
        EmpiricalRisk.from_model(model, cross_entropy, (X, y)).value()
    assert torch.equal(model.l.weight, before)
    with pytest.raises(ValueError, match=r"makes its parameters \['last.weight', 'last.bias'\] at its first call"):
        EmpiricalRisk.from_model(Writes("grown"), cross_entropy, (X, y)).value()
    with pytest.raises(ValueError, match=r"parameters without a shape yet, \['weight', 'bias'\]"):
        EmpiricalRisk.from_model(nn.LazyLinear(2), cross_entropy, (X, y))

    def relabels(out, labels):
        labels[labels == 1] = 0
        return cross_entropy(out, labels)

    with pytest.raises(ValueError, match="`loss` writes on the targets"):
        EmpiricalRisk.from_model(LINES[2], relabels, (X, y)).value()
    assert torch.equal(y, (T > 0).long())


WORDS = torch.randint(5, (6, 2), generator=seeded())
CLASSES = torch.tensor([0, 1, 1, 0, 1, 0])


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [nn.Embedding(5, 4, max_norm=0.5), nn.Flatten(), nn.Linear(8, 2)],
        lambda: [
            nn.Embedding(5, 4, max_norm=0.5, norm_type=1.0, scale_grad_by_freq=True),
            nn.Flatten(),
            nn.Linear(8, 2),
        ],
        lambda: [nn.EmbeddingBag(5, 4, max_norm=0.5, mode="sum", sparse=True), nn.Linear(4, 2)],
    ],
    ids=["embedding", "other norm", "bag"],
)
def test_a_largest_norm_is_part_of_the_function_and_weights_stay(layers):
    model = drawn(nn.Sequential(*layers()).double())
    before = model[0].weight.detach().clone()
    risk = EmpiricalRisk.from_model(model, cross_entropy, (WORDS, CLASSES))
    want = cross_entropy(copy.deepcopy(model)(WORDS), CLASSES).item()
    assert risk.value() == pytest.approx(want, rel=1e-12)
    along = {n: torch.randn(t.shape, generator=seeded(), dtype=F64) for n, t in risk.theta.items()}
    ahead, behind = (risk.value(displaced(risk.theta, along, h)) for h in (1e-6, -1e-6))
    assert float(inner(risk.gradient(), along)) == pytest.approx((ahead - behind) / 2e-6, rel=1e-6)
    scan(risk, Axes(risk.theta, random_axes(risk.theta, seeded(), count=1)), Grid.around(0.1, 3, axes=1))
    assert torch.equal(model[0].weight, before)
    if isinstance(model[0], nn.Embedding):
        assert_close(Hessian(risk).dense(), Hessian(risk, path="difference").dense(), rtol=1e-6, atol=1e-8)
    else:
        assert model[0].sparse


def test_a_largest_norm_on_shared_weights_is_refused():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.o = nn.Embedding(5, 4, max_norm=1.0), nn.Linear(4, 5, bias=False)
            self.o.weight = self.e.weight

        def forward(self, x):
            return self.o(self.e(x)).sum(1)

    with pytest.raises(ValueError, match="an embedding with max_norm whose weights another layer uses too"):
        EmpiricalRisk.from_model(Tied(), cross_entropy, (WORDS, CLASSES))
