"""Every public function that draws has a default: without a generator it draws as from seed 0."""

import inspect
import pkgutil
from dataclasses import is_dataclass
from importlib import import_module

import jaxtyping
import numpy as np
import pytest
import torch
from forgetting_problems import classifier
from problems import F64, o2
from torch import nn

import analysis
import landscape as ls
from analysis.forgetting.displacements import Displacements
from analysis.forgetting.providers import raw_direction
from analysis.statistics.ceiling import across_seeds, noise_ceiling
from analysis.statistics.families import best_of_k
from landscape.complexity import fold, layer_norms, padded_spectral_norm, spectral_norm
from landscape.paths import ModelState, PermutationGroups, weight_matching
from trainers.data.corruptions import corrupt
from trainers.data.loading import noisy_labels
from trainers.data.spurious import patch_codes
from trainers.runs.connectivity import fit_curve


def public():
    """What takes a generator among the functions, classes and methods behind the public names, by name."""
    things = {}
    for top in ("landscape", "trainers", "analysis"):
        modules = [m.name for m in pkgutil.walk_packages(import_module(top).__path__, f"{top}.")]
        for name in [top, *(m for m in modules if "integrations" not in m and "__main__" not in m)]:
            module = import_module(name)
            for key in getattr(module, "__all__", []):
                thing = things[f"{name}.{key}"] = getattr(module, key)
                if inspect.isclass(thing):
                    methods = {n: f for n, f in vars(thing).items() if inspect.isfunction(f) and n[0] != "_"}
                    things |= {f"{name}.{key}.{n}": f for n, f in methods.items()}
    found = {}
    for name, thing in things.items():
        # the fields of a dataclass are what it is made of
        if inspect.isfunction(thing) or (inspect.isclass(thing) and not is_dataclass(thing)):
            made = inspect.signature(thing.__init__ if inspect.isclass(thing) else thing).parameters
            if "generator" in made:
                found[name] = thing, made["generator"]
    return found


def test_a_generator_may_always_be_left_out_and_the_docstring_says_what_that_means():
    found = public()
    assert {"landscape.trace", "landscape.EmpiricalRisk.chunks", "analysis.perturbed_forgetting"} <= found.keys()
    assert not [name for name, (_, p) in found.items() if p.default is not None]
    refers = {"interpolate_aligned", "align"}  # to `weight_matching`
    silent = [
        name
        for name, (function, _) in found.items()
        if "seed 0" not in " ".join(function.__doc__.split())
        and "None keeps the order" not in function.__doc__
        and name.rpartition(".")[2] not in refers
    ]
    assert not silent


RISK, HELD_OUT = classifier()
OTHER, _ = classifier(seed=1)
ASKED = Displacements(providers=["sam", "random"], radii=["relative"], m=30, batches=2)
BIG = torch.diag(torch.linspace(-1, 5, 300, dtype=F64)) + 0.1 * torch.ones(300, 300, dtype=F64)
WIDE = torch.linspace(-1, 1, 520 * 521, dtype=F64).sin().reshape(520, 521)
LABELS, IMAGES = torch.arange(60) % 3, torch.linspace(0, 1, 128).reshape(2, 1, 8, 8)
X, Y = (np.sin(a * np.arange(24.0)) for a in (1.0, 1.2))
GRID = {"a": [i % 3 for i in range(24)], "b": [i % 4 for i in range(24)]}
NETWORKS = [nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double() for _ in range(2)]
for shift, network in enumerate(NETWORKS):
    for p in network.parameters():
        p.data = torch.arange(p.numel(), dtype=F64).mul(1.7 + shift).sin().reshape(p.shape)
STATES = [ModelState.of(network).parameters for network in NETWORKS]
GROUPS = PermutationGroups.of_model(NETWORKS[0], torch.zeros(2, 3, dtype=F64))
POINTS = (torch.linspace(-1, 1, 30, dtype=F64).reshape(10, 3), torch.arange(10) % 2)
SPURIOUS = analysis.SpuriousData(*HELD_OUT, HELD_OUT[1].flip(0))


def rows(found):
    return [r.value for r in found]


def curve(g):
    loss = nn.functional.cross_entropy
    return fit_curve(NETWORKS[0], loss, *NETWORKS, POINTS, epochs=1, batch_size=4, generator=g).points[1].parameters


TORCH = {
    "average": lambda g: ls.average_sharpness(o2(), 0.1, draws=2, generator=g).value,
    "noise radius": lambda g: ls.noise_radius(RISK, draws=2, generator=g).value,
    "keskar": lambda g: ls.keskar_sharpness(o2(), dimension=2, steps=2, generator=g).value,
    "restarts": lambda g: ls.worst_case_sharpness(o2(), 2.0, restarts=1, steps=1, generator=g).value,
    "flatness": lambda g: ls.relative_flatness(o2(), "0", method="probes", draws=4, generator=g).value,
    "Fisher": lambda g: ls.Fisher(o2(), samples=1, generator=g).dense(),
    "eigenpairs": lambda g: ls.top_eigenpairs(BIG, generator=g).vectors,
    "trace": lambda g: ls.trace(BIG, method="hutchinson", draws=4, generator=g).value,
    "diagonal": lambda g: ls.diagonal(BIG, draws=4, generator=g).value,
    "frobenius": lambda g: ls.frobenius_squared(BIG, draws=4, generator=g).value,
    "density": lambda g: ls.spectral_density(BIG, runs=1, steps=5, generator=g).nodes,
    "log det": lambda g: ls.log_determinant(BIG, 3.0, runs=2, steps=5, generator=g).value,
    "dimension": lambda g: ls.effective_dimension(BIG, 1.0, runs=2, steps=5, generator=g).value,
    "hessian axes": lambda g: ls.hessian_axes(ls.Hessian(o2()), count=1, tol=1e-2, generator=g)[0].direction,
    "random axes": lambda g: ls.random_axes(o2().theta, g, count=1)[0].direction,
    "direction": lambda g: ls.random_direction(o2().theta, g),
    "spectral norm": lambda g: spectral_norm(WIDE, tol=1e-2, generator=g).error,
    "padded norm": lambda g: padded_spectral_norm(IMAGES.double(), (6, 6), padding=1, tol=1e-1, generator=g).error,
    "layer norms": lambda g: layer_norms(fold(NETWORKS[0], POINTS[0]), generator=g).spec,
    "permutations": lambda g: GROUPS.random(g),
    "restarts of matching": lambda g: weight_matching(GROUPS, *STATES, restarts=3, passes=1, generator=g).distance,
    "curve": curve,
    "label noise": lambda g: noisy_labels(LABELS, 0.5, classes=3, generator=g),
    "patch": lambda g: patch_codes(LABELS, 0.5, classes=3, generator=g),
    "corruption": lambda g: corrupt(IMAGES, "noise", 1, generator=g),
    "raw direction": lambda g: raw_direction("random", RISK, generator=g),
    "batches": lambda g: [d.seed for d in ASKED.draw(120, g)],
    "forgetting": lambda g: rows(
        analysis.perturbed_forgetting(RISK, HELD_OUT, m=30, batches=2, providers=["sam"], resamples=9, generator=g)
    ),
    "features": lambda g: rows(analysis.feature_forgetting(RISK, HELD_OUT, ASKED, generator=g)),
    "membership": lambda g: rows(analysis.membership_forgetting(RISK, HELD_OUT, ASKED, generator=g)),
    "spurious": lambda g: rows(analysis.spurious_forgetting(RISK, SPURIOUS, ASKED, generator=g)),
    "data": lambda g: rows(analysis.data_forgetting([RISK, OTHER], HELD_OUT[0], [ASKED, ASKED], generator=g)),
}
NUMPY = {
    "difference": lambda g: analysis.paired_difference(X, X**2, Y, draws=20, generator=g),
    "granulated": lambda g: analysis.granulated_kendall(X, Y, GRID, permutations=9, generator=g),
    "information": lambda g: analysis.conditional_information(X, Y, GRID, shuffles=4, generator=g),
    "partial": lambda g: analysis.partial_correlation(X, Y, X[None] ** 2, permutations=30, generator=g),
    "prediction": lambda g: analysis.leave_one_group_out(X[:, None], Y, GRID["a"], draws=20, generator=g),
    "selection": lambda g: analysis.split_selection(np.stack([X, X**2]), Y, splits=5, generator=g),
    "slopes": lambda g: analysis.fixed_effects(X, Y, GRID["a"], draws=30, generator=g),
    "ceiling": lambda g: noise_ceiling(np.stack([X, X + Y, Y], 1), splits=5, generator=g),
    "across seeds": lambda g: across_seeds(
        np.stack([X, X + Y, Y], 1), np.stack([Y, X, X + Y], 1), splits=5, generator=g
    ),
    "best of k": lambda g: best_of_k(np.stack([X, X**2]), Y, permutations=99, generator=g),
}
ALIKE = {"layer norms", "restarts", "restarts of matching"}  # small layers need no draws; climbs may end in one place


def plain(thing):
    """Numbers as text, every digit."""
    return repr(
        {k: t.tolist() for k, t in thing.items()}
        if isinstance(thing, dict)
        else getattr(thing, "tolist", lambda: thing)()
    )


@pytest.mark.parametrize("what", [*TORCH, *NUMPY])
def test_no_generator_draws_as_from_seed_0(what):
    call = {**TORCH, **NUMPY}[what]
    seeded = np.random.default_rng if what in NUMPY else torch.Generator().manual_seed
    without = plain(call(None))
    assert without == plain(call(seeded(0)))
    assert what in ALIKE or without != plain(call(seeded(1)))


@pytest.mark.parametrize("what", [*TORCH, *NUMPY])
def test_a_seed_and_the_other_librarys_generator_are_refused_in_words(what):
    call = {**TORCH, **NUMPY}[what]
    name, way, other = "torch", r"torch.Generator\(\).manual_seed\(3\)", np.random.default_rng(0)
    if what in NUMPY:
        name, way, other = "numpy.random", r"numpy.random.default_rng\(3\)", torch.Generator()
    jaxtyping.config.update("jaxtyping_disable", True)  # as users have it
    try:
        with pytest.raises(ValueError, match=f"`generator` must be a {name}.Generator, got 3: use {way}"):
            call(3)
        with pytest.raises(ValueError, match=f"`generator` must be a {name}.Generator, got a .* Generator: use"):
            call(other)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
