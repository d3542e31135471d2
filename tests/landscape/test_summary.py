"""The numbers one wants first, against a dense Hessian in float64; and how values show themselves."""

import math
import re
from html.parser import HTMLParser

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import analysis
import landscape
import trainers
from landscape.showing import curve


class Columns(nn.BatchNorm1d):
    """A layer whose mode and statistics must stay."""


def problem(generator):
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), Columns(6), nn.Tanh(), nn.Linear(6, 3)).double().train()
    x = torch.randn(30, 4, dtype=torch.float64, generator=generator)
    y = torch.randint(3, (30,), generator=generator)
    return model, [(x[:20], y[:20]), (x[20:], y[20:])]


def test_numbers_are_those_of_the_dense_hessian(generator):
    model, data = problem(generator)
    kept = {name: t.clone() for name, t in model.state_dict().items()}
    found = landscape.summary(model, cross_entropy, data, generator=generator)
    assert model.training
    assert all(torch.equal(t, kept[name]) for name, t in model.state_dict().items())

    x, y = torch.cat([d[0] for d in data]), torch.cat([d[1] for d in data])
    model.eval()
    theta = {name: p.detach() for name, p in model.named_parameters()}
    flat = torch.cat([t.flatten() for t in theta.values()])

    def loss(v):
        parts = dict(zip(theta, v.split([t.numel() for t in theta.values()]), strict=True))
        at = {name: part.reshape(theta[name].shape) for name, part in parts.items()}
        return cross_entropy(torch.func.functional_call(model, at, (x,)), y)

    H = torch.autograd.functional.hessian(loss, flat)
    (g,) = torch.autograd.grad(loss(v := flat.clone().requires_grad_()), v)
    eigenvalues = torch.linalg.eigvalsh(H)
    assert (found.examples, found.parameters) == (30, len(flat))
    assert found.loss == pytest.approx(float(loss(flat)), rel=1e-12)
    assert found.gradient_norm == pytest.approx(float(g.norm()), rel=1e-12)
    for i, true in enumerate((eigenvalues[-1], eigenvalues[0])):
        value, residual = found.ends.values[i], found.ends.residuals[i]
        assert abs(float(value - true)) <= float(residual) + 1e-12
        assert float(residual) <= min(0.01 * float(eigenvalues.abs().max()), 0.11 * abs(float(true)))
    assert abs(found.trace.value - float(H.trace())) <= 4 * found.trace.stderr + 1e-10
    assert found.trace.stderr <= 0.06 * abs(found.trace.value)
    rise = float(loss(flat + 0.05 * g / g.norm()) - loss(flat))
    assert found.sharpness.value == pytest.approx(rise, rel=1e-10)


def test_one_parameter_and_a_radius_of_ones_own():
    model = nn.Linear(1, 1, bias=False).double()
    x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    found = landscape.summary(model, nn.functional.mse_loss, (x, 0 * x), rho=0.3)
    w = model.weight.item()  # L = 2.5 w², so L' = 5 w and L'' = 5
    assert found.ends.values.tolist() == pytest.approx([5.0])
    assert found.trace.value == pytest.approx(5.0)
    assert found.sharpness.value == pytest.approx(2.5 * ((abs(w) + 0.3) ** 2 - w**2))
    assert "ρ = 0.3" in repr(found)
    with pytest.raises(ValueError, match="`rho`"):
        landscape.summary(model, nn.functional.mse_loss, (x, 0 * x), rho=-1.0)


class Cells(HTMLParser):
    """The text of each cell, and whether all tags were closed in order."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in ("polyline", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("polyline", "path"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.cells.append(data)


def test_values_show_themselves_in_a_line_and_in_a_table(generator):
    model, data = problem(generator)
    found = landscape.summary(model, cross_entropy, data, generator=generator)
    for name, value, error in found.rows():
        assert re.search(rf"{re.escape(name)} +{re.escape(value)}  {re.escape(error)}", repr(found))
    assert {cell for row in found.rows() for cell in row} <= set(Cells(found._repr_html_()).cells)

    risk = landscape.EmpiricalRisk.from_model(model, cross_entropy, data)
    assert repr(risk) == (
        "EmpiricalRisk(model Sequential; loss cross_entropy; examples 30 in 2 batches; "
        "parameters 63 in 6 tensors on cpu; mode eval)"
    )
    assert "30 in 2 batches" in Cells(risk._repr_html_()).cells
    assert repr(landscape.Estimate(2.0, 0.5, 4)) == "Estimate(2 ± 0.5 (4 draws))"
    halves = landscape.Estimate(2.0, 0.5, 4, parts={"<b>": landscape.Estimate(1.0, math.nan, 1)})
    assert {"0.4088 to 3.591", "<b>", "1 ±? (1 draw)"} <= set(Cells(halves._repr_html_()).cells)
    assert {f"{v:.6g}" for v in found.ends.values.tolist()} <= set(Cells(found.ends._repr_html_()).cells)


def test_a_density_shows_its_curve():
    A = torch.diag(torch.tensor([1.0, 1.0, 3.0], dtype=torch.float64))
    density = landscape.spectral_density(A)
    assert repr(density) == "SpectralDensity(p = 3 between 1 and 3; exact)"
    shown = density._repr_html_()
    assert {"1", "3"} <= set(Cells(shown).cells)
    (points,) = re.findall(r'points="([^"]+)"', shown)
    heights = [85 - float(point.split(",")[1]) for point in points.split()]
    assert heights[0] == pytest.approx(80)  # two of three eigenvalues are there
    assert min(heights) < 1 < heights[-1] < 80
    assert "<svg" not in landscape.spectral_density(torch.eye(3))._repr_html_()
    assert "400.0,85.0" in curve([1.0, 0.0], ends=("a", "b"), title="")


@pytest.mark.parametrize(
    ("package", "wrong", "meant"),
    [
        (landscape, "top_eigenpair", "top_eigenpairs"),
        (trainers, "TrainConf", "TrainConfig"),
        (analysis, "corelate", "correlate"),
    ],
)
def test_names_that_are_not_there_are_answered_with_the_nearest(package, wrong, meant):
    with pytest.raises(AttributeError, match=f"has no attribute '{wrong}'. Did you mean '{meant}'?"):
        getattr(package, wrong)
    with pytest.raises(AttributeError, match=r"has no attribute 'qqqq'\.$"):
        package.qqqq  # noqa: B018
    assert set(dir(package)) - {"__version__"} == set(package.__all__)


def test_the_version_is_that_of_the_distribution():
    from analysis.version import version

    assert landscape.__version__ in (version(), "unknown")
    assert "__version__" in dir(landscape)
