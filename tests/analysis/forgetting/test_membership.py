import math

import numpy as np
import pytest
import torch
from forgetting_problems import SAM, classifier, rng
from sklearn.metrics import roc_auc_score

from analysis.forgetting.displacements import Displacements
from analysis.forgetting.membership import membership_auc, membership_forgetting
from landscape import displaced


def test_auc_by_hand_with_ties():
    found = membership_auc(np.array([1.0, 2.0, 2.0]), np.array([2.0, 3.0]))
    assert found.value == pytest.approx((2 + 1.5 + 1.5) / 6)
    members, others = np.array([1.0, 0.75, 0.75]), np.array([2 / 3, 1.0])
    assert found.stderr == pytest.approx(math.sqrt(members.var(ddof=1) / 3 + others.var(ddof=1) / 2))
    assert found.draws == 5


def test_auc_agrees_with_another_library():
    g = np.random.default_rng(0)
    members, others = g.normal(0, 1, 70).round(1), g.normal(0.7, 1, 50).round(1)  # rounded: with ties
    labels = np.repeat([0, 1], [70, 50])
    assert membership_auc(members, others).value == pytest.approx(
        roc_auc_score(labels, np.concatenate([members, others])), abs=1e-14
    )
    assert membership_auc(members, members).value == 0.5


def test_delongs_error_is_that_of_repeated_draws():
    g = np.random.default_rng(1)
    found = [membership_auc(g.normal(0, 1, 60), g.normal(1, 1, 40)) for _ in range(2000)]
    values, errors = np.array([f.value for f in found]), np.array([f.stderr for f in found])
    assert errors.mean() == pytest.approx(values.std(), rel=0.06)  # sd of a sd from 2000 draws: 1.6 %


def test_f_mem_against_one_batch_at_a_time():
    risk, held_out = classifier()
    asked = Displacements(providers=["sam", "zero"], radii=["own"], own=SAM, m=20, batches=4)
    rows = membership_forgetting(risk, held_out, asked, generator=rng())
    found = {(r.measure, r.options.get("provider"), r.split): r for r in rows}
    x, y = torch.cat([b[0] for b in risk.batches]), risk.targets()

    def losses(theta):
        ends = [
            torch.nn.functional.cross_entropy(risk.predict(theta, a), b, reduction="none")
            for a, b in ((x, y), held_out)
        ]
        return [e.numpy() for e in ends]

    train, held = losses(risk.theta)
    assert found["membership_auc", None, "train"].value == pytest.approx(membership_auc(train, held).value, abs=1e-14)
    g, each = rng(), {"train": [], "exposed": [], "other_train": []}
    for _ in range(4):
        chosen = torch.randperm(120, generator=g)[:20].sort().values
        delta = SAM.step(risk.theta, risk.on((x[chosen], y[chosen])).gradient())
        train_after, held_after = losses(displaced(risk.theta, delta))
        outside = np.setdiff1d(np.arange(120), chosen)
        for split, index in (("train", np.arange(120)), ("exposed", chosen.numpy()), ("other_train", outside)):
            drop = membership_auc(train[index], held).value - membership_auc(train_after[index], held_after).value
            each[split].append(drop)
    for split, values in each.items():
        row = found["F_mem", "sam", split]
        assert row.value == pytest.approx(np.mean(values), abs=1e-12)
        assert row.draws == 4
        assert row.stderr > np.std(values, ddof=1) / 2
        assert found["F_mem", "zero", split].value == 0.0
    assert found["F_mem", "sam", "exposed"].value > found["F_mem", "sam", "other_train"].value


def test_what_cannot_be_had_is_said():
    risk, held_out = classifier()
    asked = Displacements(providers=["sam", "shrink"], radii=["own", "iso-loss"], m=None)
    rows = membership_forgetting(risk, held_out, asked, generator=rng())
    found = {(r.options["provider"], r.options["radius"], r.split): r for r in rows[1:]}
    assert found["sam", "own", "train"].warnings == "the run has no perturbation of its own"
    assert found["shrink", "iso-loss", "train"].warnings == "the initial weights are not known"
    assert found["sam", "iso-loss", "other_train"].warnings == "no training example lies outside the batch"
    assert math.isfinite(found["sam", "iso-loss", "train"].value)
    broken = risk.at({k: t * math.nan for k, t in risk.theta.items()})
    rows = membership_forgetting(broken, held_out, asked, generator=rng())
    assert all(math.isnan(r.value) and "not finite" in r.warnings for r in rows)


def test_bad_losses_are_named():
    assert math.isnan(membership_auc(np.array([np.nan]), np.array([1.0])).value)
    with pytest.raises(ValueError, match=r"`others` must be one loss an example.*\(0,\)"):
        membership_auc(np.array([1.0]), np.array([]))
