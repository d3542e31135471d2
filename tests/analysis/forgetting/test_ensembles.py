import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from forgetting_problems import SAM, classifier, rng
from scipy.stats import entropy

from analysis.forgetting.displacements import Displacements
from analysis.forgetting.ensembles import data_forgetting, data_information
from landscape import displaced

ASKED = Displacements(providers=["sam", "zero"], radii=["own"], own=SAM, m=20, batches=3)


def models():
    """Three networks on three training sets, and inputs that none of them saw."""
    risks, held = zip(*(classifier(seed=s) for s in range(3)), strict=True)
    return list(risks), held[0][0]


def test_models_that_agree_hold_nothing_and_certain_ones_that_differ_hold_ln_k():
    p = np.random.default_rng(0).dirichlet(np.ones(3), 5)
    np.testing.assert_allclose(data_information(np.stack([p, p, p])), 0, atol=1e-15)
    np.testing.assert_allclose(data_information(np.eye(3)[:, None, :].repeat(4, 1)), math.log(3), rtol=1e-15)


def test_f_data_against_one_batch_at_a_time():
    risks, x = models()
    rows = data_forgetting(risks, x, [ASKED] * 3, generator=rng())
    found = {(r.measure, r.options.get("provider")): r for r in rows}

    def spread(thetas):
        p = [r.predict(t, x).softmax(1).numpy() for r, t in zip(risks, thetas, strict=True)]
        return entropy(np.mean(p, 0), axis=1) - np.mean([entropy(q, axis=1) for q in p], 0)

    base = spread([r.theta for r in risks])
    g = torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=rng())))
    drops = []
    for _ in range(3):
        chosen = torch.randperm(120, generator=g)[:20].sort().values
        moved = []
        for r in risks:
            a, b = torch.cat([z for z, _ in r.batches]), r.targets()
            moved.append(displaced(r.theta, SAM.step(r.theta, r.on((a[chosen], b[chosen])).gradient())))
        drops.append(base - spread(moved))
    row = found["F_data", "sam"]
    assert found["data_information", None].value == pytest.approx(base.mean(), abs=1e-13)
    assert row.value == pytest.approx(np.mean(drops), abs=1e-13)
    each, examples = np.mean(drops, 1), np.mean(drops, 0)
    error = math.hypot(each.std(ddof=1) / math.sqrt(3), examples.std(ddof=1) / math.sqrt(len(x)))
    assert row.stderr == pytest.approx(error, rel=1e-9)
    assert (found["F_data", "zero"].value, found["F_data", "zero"].stderr) == (0.0, 0.0)
    assert row.options["models"] == 3


def test_the_whole_training_set_is_used_once():
    risks, x = models()
    asked = replace(ASKED, providers=["sam", "random"], radii=["own", "iso-loss"], m=None)
    rows = data_forgetting(risks, x, [asked] * 3, generator=rng())
    draws = {(r.options.get("provider"), r.options.get("radius")): r.draws for r in rows[1:]}
    assert draws == {("sam", "own"): 1, ("sam", "iso-loss"): 1, ("random", "own"): 3, ("random", "iso-loss"): 3}


def test_what_cannot_be_had_is_said():
    risks, x = models()
    plain = replace(ASKED, providers=["sam"], own=None)
    rows = data_forgetting(risks, x, [replace(ASKED, providers=["sam"]), plain, plain], generator=rng())
    assert math.isnan(rows[1].value)
    assert rows[1].warnings == "the run has no perturbation of its own"
    far = replace(plain, radii=["iso-loss"], iso_loss=1e6)
    rows = data_forgetting(risks, x, [far] * 3, generator=rng())
    assert rows[1].warnings == "no radius raised the loss by 1e+06 nats on 3 of 3 batches"
    assert not rows[1].converged


def test_bad_arguments_are_named():
    risks, x = models()
    with pytest.raises(ValueError, match=r"`risks` must be at least 2 models, .* got 1 and 1"):
        data_forgetting(risks[:1], x, [ASKED], generator=rng())
    with pytest.raises(ValueError, match="`asked` must agree in providers"):
        data_forgetting(risks, x, [ASKED, ASKED, replace(ASKED, m=10)], generator=rng())
    with pytest.raises(ValueError, match=r"`probs` must have shape \(k, n, c\)"):
        data_information(np.ones((1, 2, 2)) / 2)
