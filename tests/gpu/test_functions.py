"""Every operator and measure of `landscape` gives the CPU's numbers on the device, in float64."""

import dataclasses
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from on_device import DEVICE, close, moved
from torch import nn

import landscape
from landscape import AbsWeight, AscentStep, EmpiricalRisk, Grid
from landscape.complexity.bounds import norm_measures
from landscape.complexity.margins import margins
from landscape.paths.states import ModelState
from trainers import build_model
from trainers.randomness import seeded

pytestmark = pytest.mark.gpu

F64 = torch.float64
SHAPE, CLASSES, SIZES = (1, 8, 8), 4, (8, 8, 5)


def convolutional():
    """Convolutions, BatchNorm, smooth activations: second derivatives without kinks."""
    layers = [nn.Conv2d(1, 3, 3, stride=2), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(27, CLASSES)]
    return nn.Sequential(*layers)


MODELS = {
    "convolutions": convolutional,
    "mlp": partial(build_model, "mlp", shape=SHAPE, classes=CLASSES, generator_seed=1, options={"width": 6}),
    "resnet20": partial(build_model, "resnet20", shape=SHAPE, classes=CLASSES, generator_seed=1, options={"width": 2}),
    "vit": partial(
        build_model, "vit", shape=SHAPE, classes=CLASSES, generator_seed=1,
        options={"patch": 4, "dim": 8, "depth": 1, "heads": 2},
    ),
}  # fmt: skip


def data():
    g = torch.Generator().manual_seed(0)
    sizes = [(n, *SHAPE) for n in SIZES]
    return [(torch.randn(s, generator=g, dtype=F64), torch.randint(CLASSES, s[:1], generator=g)) for s in sizes]


def network(name="convolutions", seed=2):
    """In eval mode, with running statistics that say something."""
    with seeded(seed):
        model = MODELS[name]().to(F64).train()
        for x, _ in data():
            model(x)
    return model.eval()


def risk_on(device, name="convolutions"):
    return EmpiricalRisk.from_model(network(name).to(device), F.cross_entropy, moved(data(), device))


def vectors(p, k=3):
    return torch.randn(p, k, generator=torch.Generator().manual_seed(4), dtype=F64)


def drawn():
    return torch.Generator().manual_seed(5)


def numbers(result):
    """The numbers of a result, whatever it is made of: fields, entries, tensors."""
    if dataclasses.is_dataclass(result):
        return {f.name: numbers(getattr(result, f.name)) for f in dataclasses.fields(result)}
    if isinstance(result, dict) or hasattr(result, "items"):
        return {str(k): numbers(v) for k, v in result.items()}
    if isinstance(result, list | tuple):
        return [numbers(v) for v in result]
    return result if isinstance(result, torch.Tensor | float) else 0.0


# -- operators ---------------------------------------------------------------------------------------------------------

OPERATORS = {
    "Hessian": landscape.Hessian, "GaussNewton": landscape.GaussNewton, "Fisher": landscape.Fisher,
    "EmpiricalFisher": landscape.EmpiricalFisher,
}  # fmt: skip
PATHS = [(kind, path) for kind, operator in OPERATORS.items() for path in operator.paths]


@pytest.mark.parametrize("model", sorted(MODELS))
@pytest.mark.parametrize("kind", sorted(OPERATORS))
def test_products(kind, model):
    found = []
    for device in (DEVICE, "cpu"):
        operator = OPERATORS[kind](risk_on(device, model))
        found.append([operator @ vectors(operator.shape[0]).to(device)])
    close(*found)


@pytest.mark.parametrize(("kind", "path"), PATHS)
def test_products_by_each_path(kind, path):
    rtol = 1e-6 if path == "difference" else 1e-9  # its error is about 1e-10 of the largest entry
    found = []
    for device in (DEVICE, "cpu"):
        operator = OPERATORS[kind](risk_on(device), path=path)
        found.append(operator @ vectors(operator.shape[0]).to(device))
    close(*found, rtol=rtol, atol=1e-7 if path == "difference" else 1e-11)


# -- what is estimated from products -----------------------------------------------------------------------------------


def pairs(H, which):
    found = landscape.top_eigenpairs(H, 3, which=which, tol=1e-9, generator=drawn())
    return [found.values, (found.vectors * found.vectors[0].sign()) if which != "both" else found.values]


def density(H):
    found = landscape.spectral_density(H, runs=3, steps=12, generator=drawn())
    return [found.average(torch.exp).value, found.density(torch.linspace(-1, 4, 9, dtype=F64), sigma=0.1)]


ESTIMATES = {
    "largest": lambda H: pairs(H, "largest"),
    "smallest": lambda H: pairs(H, "smallest"),
    "magnitude": lambda H: pairs(H, "magnitude"),
    "both": lambda H: pairs(H, "both"),
    "density": density,
    "diagonal": lambda H: landscape.diagonal(H, draws=8, generator=drawn()).value,
    "frobenius": lambda H: landscape.frobenius_squared(H, draws=12, generator=drawn()).value,
    "log determinant": lambda H: landscape.log_determinant(H, 30.0, runs=3, steps=12, generator=drawn()).value,
    "effective dimension": lambda H: landscape.effective_dimension(H, 0.1, runs=3, generator=drawn()).value,
    "trace, xnystrace": lambda H: (
        landscape.trace(landscape.GaussNewton(H.point.risk), method="xnystrace", draws=12, generator=drawn()).value
    ),
    "dense": landscape.dense,
    "shifted": lambda H: (2.0 * H + 0.5 * H).shifted(1.0) @ H.guess(),
    **{
        f"trace, {method}": lambda H, method=method: [
            getattr(landscape.trace(H, method=method, draws=12, generator=drawn()), key) for key in ("value", "stderr")
        ]
        for method in ("auto", "hutchinson", "hutch++", "xtrace", "exact")
    },
}


@pytest.mark.parametrize("name", sorted(ESTIMATES))
def test_estimates_from_products(name):
    found = [ESTIMATES[name](landscape.Hessian(risk_on(device))) for device in (DEVICE, "cpu")]
    close(*found, rtol=1e-6, atol=1e-8)  # iterations stop at a residual of 1e-9, and rounding grows in them


# -- measures of a risk ------------------------------------------------------------------------------------------------


def ascended(risk, **settings):
    return landscape.worst_case_sharpness(risk, 0.1, steps=8, generator=drawn(), **settings).value


def axes_of(risk):
    return landscape.Axes(risk.theta, landscape.random_axes(risk.theta, drawn()))


def gone_through(risk):
    found = landscape.scan(risk, axes_of(risk), Grid.around(0.5, 3, axes=2))
    return [found.values["loss"], found.stderr["loss"], found.values["error"]]


def joined(risk):
    state, other = ModelState.of(risk.predict.module), ModelState.of(moved_model(risk))
    line = landscape.interpolate(
        risk.predict.module, F.cross_entropy, state, other, {"train": risk.batches}, coordinates=[0.0, 0.5, 1.0]
    )
    return numbers(line.examples)


def moved_model(risk):
    return network(seed=3).to(next(iter(risk.theta.values())).device)


def permuted(risk):
    model = network("mlp", 2).to(next(iter(risk.theta.values())).device)
    other = network("mlp", 3).to(next(iter(risk.theta.values())).device)
    return numbers(landscape.align(model, model, other, risk.batches, generator=drawn()).state.parameters)


def complexity(risk, name="resnet20"):
    device = next(iter(risk.theta.values())).device
    x = risk.batches[0][0]
    now, before = (landscape.fold(network(name, seed).to(device), x) for seed in (2, 3))
    norms = landscape.layer_norms(now, before, generator=drawn())
    circular = landscape.layer_norms(now, spectrum="circular", generator=drawn())
    taken = norm_measures(norms, m=100, margin=0.5)
    return [
        norms.fro,
        norms.spec,
        norms.fro_moved,
        norms.spec_moved,
        circular.spec,
        [float(c.raw) for c in taken.values()],
    ]


def path_norm(risk):
    device = next(iter(risk.theta.values())).device
    return landscape.log_path_norm(landscape.fold(network("mlp").to(device), risk.batches[0][0]), SHAPE)


def margin(risk):
    with torch.no_grad():
        return [margins(risk.predict.module(x), y) for x, y in risk.batches]


def right(risk):
    """The same on labels that the model gets right, so that there is accuracy to lose."""
    with torch.no_grad():
        return risk.on([(x, risk.predict.module(x).argmax(1)) for x, _ in risk.batches])


def examined(risk):
    found = landscape.evaluate(risk, losses=True)
    return [found.loss, found.error, found.examples["loss"]]


MEASURES = {
    "value and gradient": lambda r: list(r.value_and_gradient()),
    "evaluate": examined,
    "in parts": lambda r: r.in_parts(3).value(),
    "ascent, SAM": lambda r: landscape.ascent_sharpness(r, AscentStep(0.1), second_order=True).value,
    "ascent, ASAM": lambda r: landscape.ascent_sharpness(r, AscentStep(0.1, metric=AbsWeight(0.01))).value,
    "ascent, m = 5": lambda r: landscape.ascent_sharpness(r, AscentStep(0.1), 5, generator=drawn()).value,
    "ascent, box": lambda r: landscape.ascent_sharpness(r, AscentStep(0.01, p=math.inf)).value,
    "average": lambda r: landscape.average_sharpness(r, 0.05, draws=4, generator=drawn()).value,
    "average, uniform": lambda r: (
        landscape.average_sharpness(r, 0.05, draws=4, noise="uniform", generator=drawn()).value
    ),
    "worst case": ascended,
    "worst case, restarts": lambda r: ascended(r, restarts=2),
    "worst case, box": lambda r: ascended(r, norm="linf"),
    "worst case, m = 7": lambda r: landscape.worst_case_sharpness(r, 0.1, 7, steps=5, generator=drawn()).value,
    "worst case radius": lambda r: landscape.worst_case_radius(right(r), steps=5, generator=drawn()).value,
    "noise radius": lambda r: landscape.noise_radius(right(r), draws=4, generator=drawn()).value,
    "keskar": lambda r: landscape.keskar_sharpness(r, 1e-2, steps=5, generator=drawn()).value,
    "keskar, subspace": lambda r: landscape.keskar_sharpness(r, 1e-2, dimension=9, steps=5, generator=drawn()).value,
    "first order": lambda r: landscape.first_order_sharpness(r, 0.1, 7, generator=drawn()).value,
    "surrogate gap": lambda r: numbers(landscape.surrogate_gap(r, 0.1)),
    "fisher rao": lambda r: numbers(landscape.fisher_rao_norm(r)),
    "gradient moments": lambda r: numbers(landscape.gradient_moments(r, elementwise=True)),
    "relative flatness": lambda r: landscape.relative_flatness(r, generator=drawn()).value,
    "relative flatness, max": lambda r: landscape.relative_flatness(r, kind="max", generator=drawn()).value,
    "logit normalised": lambda r: landscape.logit_normalised(r).value(),
    "scan": gone_through,
    "second order": lambda r: numbers(landscape.second_order(r, axes_of(r))),
    "hessian axes": lambda r: landscape.hessian_axes(landscape.Hessian(r), generator=drawn(), tol=1e-9)[0].length,
    "gradient axis": lambda r: landscape.gradient_axis(r).direction,
    "perturbation axis": lambda r: landscape.perturbation_axis(r, AscentStep(0.1)).direction,
    "ascent path": lambda r: numbers(
        landscape.ascent_path(r, AscentStep(0.1), coordinates=[0.0, 0.5, 1.0]).profile.examples
    ),
    "interpolate": joined,
    "align": permuted,
    "norms": complexity,
    "path norm": path_norm,
    "margins": margin,
}


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_measures_of_a_risk(name):
    found = [MEASURES[name](risk_on(device)) for device in (DEVICE, "cpu")]
    close(*found, rtol=1e-6, atol=1e-9)


def test_points_at_once_are_those_of_one_at_a_time():
    risk = risk_on(DEVICE, "mlp")
    axes = axes_of(risk)
    grid = Grid.around(0.5, 5, axes=2)
    several, one = (landscape.scan(risk, axes, grid, batch_points=k).values["loss"] for k in (8, 1))
    close(several, one)
