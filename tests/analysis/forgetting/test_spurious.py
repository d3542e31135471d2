import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from forgetting_problems import rng
from problems import F64
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from analysis.forgetting.displacements import Displacements
from analysis.forgetting.providers import OwnPerturbation
from analysis.forgetting.spurious import DROPS, VALUES, SpuriousData, spurious_forgetting
from landscape import AscentStep, EmpiricalRisk

Y, S = (t.flatten() for t in torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij"))
Y, S = Y.repeat(20), S.repeat(20)  # every pair equally often


def inputs(y, s):
    """The class in the first three coordinates, the shortcut in the last three; -1 for none."""
    halves = [one_hot(t.clamp_min(0), 3) * (t >= 0)[:, None] for t in (y, s)]
    return torch.cat(halves, 1).to(F64)


def linear(real, spurious):
    """Logits real · e_y + spurious · e_s."""
    weight = torch.cat([real * torch.eye(3, dtype=F64), spurious * torch.eye(3, dtype=F64)], 1)
    model = nn.Linear(6, 3, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(weight)
    return EmpiricalRisk.from_model(model, cross_entropy, (inputs(Y, S), Y)), {"weight": weight}


def exact(weight):
    """I(S;Ŷ), I(Y;Ŷ), and mean probabilities where S ≠ Y, by summing over the table of all pairs."""
    joint = np.zeros((3, 3, 3))
    for y in range(3):
        for s in range(3):
            z = (weight["weight"] @ inputs(torch.tensor([y]), torch.tensor([s]))[0]).numpy()
            joint[y, s] = np.exp(z) / np.exp(z).sum() / 9

    def information(table):
        outer = table.sum(1, keepdims=True) * table.sum(0, keepdims=True)
        return (table * np.log(table / outer)).sum()

    pairs = [(y, s) for y in range(3) for s in range(3) if y != s]
    shortcut = np.mean([joint[y, s, s] * 9 for y, s in pairs])
    truth = np.mean([joint[y, s, y] * 9 for y, s in pairs])
    return dict(zip(VALUES, (information(joint.sum(0)), information(joint.sum(1)), shortcut, truth), strict=True))


DATA = SpuriousData(inputs(Y, S), Y, S, kept=inputs(Y, Y), removed=inputs(Y, torch.full_like(S, -1)))


@pytest.mark.parametrize(
    ("start", "end"), [((2.0, 1.5), (2.0, 0.0)), ((2.0, 1.5), (-0.5, 1.5)), ((1.0, 3.0), (2.0, 1.0))], ids=str
)
def test_a_planted_shortcut_taken_away_is_what_is_forgotten(start, end):
    risk, before = linear(*start)
    _, after = linear(*end)
    length = float((after["weight"] - before["weight"]).norm())
    asked = Displacements(
        providers=["shrink"], radii=["own"], own=OwnPerturbation("sam", AscentStep(length)), m=None, initial=after
    )
    rows = spurious_forgetting(risk, DATA, asked, correction="plug-in", generator=rng())
    found = {r.measure: r for r in rows}
    first, last = exact(before), exact(after)
    for name, drop in zip(VALUES, DROPS[:4], strict=True):
        assert found[name].value == pytest.approx(first[name], abs=1e-12)
        assert found[drop].value == pytest.approx(first[name] - last[name], abs=1e-9), drop
    spurious, real = (first[n] - last[n] for n in VALUES[:2])
    share = spurious / (abs(spurious) + abs(real))
    assert found["spurious_selectivity"].value == pytest.approx(share, abs=1e-8)
    # decisions: with a > b the class decides, with b > a the shortcut, so that accuracy on shuffled inputs is 1 or 1/3
    reliance = [0.0 if a > b else 2 / 3 for a, b in (start, end)]
    assert found["F_reliance"].value == pytest.approx(reliance[0] - reliance[1], abs=1e-12)
    without = [float(a > 0) for a, _ in (start, end)]
    assert found["F_without"].value == pytest.approx(without[0] - without[1], abs=1e-12)
    assert all(r.draws == 1 and r.split == "ood" for r in rows if r.options)


def test_the_shortcut_alone_forgotten_is_selectivity_near_one_and_the_class_alone_negative():
    shares = []
    for end in ((2.0, 0.0), (0.0, 1.5)):
        risk, before = linear(2.0, 1.5)
        _, after = linear(*end)
        own = OwnPerturbation("sam", AscentStep(float((after["weight"] - before["weight"]).norm())))
        asked = Displacements(providers=["shrink"], radii=["own"], own=own, m=None, initial=after)
        rows = {r.measure: r.value for r in spurious_forgetting(risk, DATA, asked, generator=rng())}
        shares.append((rows["F_spurious"] > 0, rows["F_real"] > 0))
    # taking one feature away leaves more room for the other
    assert shares == [(True, False), (False, True)]


def test_the_control_forgets_nothing_and_gaps_are_said():
    risk, _ = linear(2.0, 1.5)
    own = OwnPerturbation("sam", AscentStep(0.2))
    asked = Displacements(providers=["zero", "sam"], radii=["own"], own=own, m=30, batches=4)
    bare = replace(DATA, kept=None, removed=None)
    rows = {(r.options.get("provider"), r.measure): r for r in spurious_forgetting(risk, bare, asked, generator=rng())}
    for name in DROPS[:4]:
        assert (rows["zero", name].value, rows["zero", name].stderr) == (0.0, 0.0)
        assert rows["sam", name].stderr > 0
        assert rows["sam", name].draws == 4
    assert rows["zero", "spurious_selectivity"].warnings == "nothing was forgotten"
    assert rows["sam", "F_reliance"].warnings == "needs inputs with the spurious feature kept"
    assert math.isnan(rows["sam", "F_without"].value)
    broken = risk.at({"weight": risk.theta["weight"] * math.nan})
    found = spurious_forgetting(broken, DATA, asked, generator=rng())
    assert all(r.warnings for r in found)


def test_the_error_over_examples_is_that_of_repeated_draws():
    risk, before = linear(2.0, 1.5)
    _, after = linear(2.0, 0.0)
    own = OwnPerturbation("sam", AscentStep(float((after["weight"] - before["weight"]).norm())))
    asked = Displacements(providers=["shrink"], radii=["own"], own=own, m=None, initial=after)
    found = []
    for seed in range(60):
        g = rng(seed)
        y, s = (torch.randint(3, (120,), generator=g) for _ in range(2))
        noisy = inputs(y, s) + 0.5 * torch.randn(120, 6, generator=g, dtype=F64)
        rows = spurious_forgetting(risk, SpuriousData(noisy, y, s), asked, generator=rng())
        found.append(next(r for r in rows if r.measure == "F_spurious"))
    spread, errors = np.std([r.value for r in found], ddof=1), np.mean([r.stderr for r in found])
    assert 0.7 < errors / spread < 1.5  # an sd of 60 draws is known to 9 %, a jackknife of 20 groups to 16 %


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"s": S[:5]}, "`s` must have one entry for each of 180 inputs, got 5"),
        ({"kept": inputs(Y, Y)[:7]}, "`kept` must have one entry for each of 180 inputs, got 7"),
        ({"s": Y}, "`s` never differs from `y`"),
        ({"s": S + 3}, "`y` and `s` must be classes from 0 to 2"),
    ],
)
def test_bad_arguments_are_named(change, message):
    risk, _ = linear(1.0, 1.0)
    asked = Displacements(providers=["zero"], radii=["own"], m=9)
    with pytest.raises(ValueError, match=message):
        spurious_forgetting(risk, replace(DATA, **change), asked, generator=rng())
