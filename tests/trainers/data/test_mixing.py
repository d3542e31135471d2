"""Mixup and cutmix: against torchvision's, and their soft targets in every loss of training."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drop_in import need

from landscape.objectives import obf_direction, obf_loss
from trainers.data.mixing import CutMix, Mixing, MixUp
from trainers.tasks.classification import Classification
from trainers.tasks.losses import each, make_loss

F64 = torch.float64


def batch(n=6, shape=(3, 11, 8)):
    draw = torch.Generator().manual_seed(0)
    return torch.rand(n, *shape, generator=draw, dtype=F64), torch.arange(n) % 4


@pytest.mark.parametrize("number", range(6))
def test_mixing_is_torchvisions_at_the_same_draws(number):
    need("torchvision")
    from torchvision.transforms import v2

    x, y = batch()
    mixed, soft = Mixing((MixUp(alpha=0.4),), 4, 7)(x, y, epoch=2, batch=number)
    share = float(soft[1].max()) if soft[1].argmax() == y[1] else 1 - float(soft[1].max())
    theirs = v2.MixUp(num_classes=4)
    theirs._dist = type("Fixed", (), {"sample": lambda *_: torch.tensor(share, dtype=F64)})()
    other, labels = theirs(x, y)
    torch.testing.assert_close(mixed, other, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(soft, labels.to(F64), rtol=1e-6, atol=1e-6)

    mixed, soft = Mixing((CutMix(),), 4, 7)(x, y, epoch=2, batch=number)
    draw = np.random.default_rng(_key(7, 2, number))
    lam, rows, columns = draw.beta(1, 1), int(draw.integers(11)), int(draw.integers(8))
    theirs = v2.CutMix(num_classes=4)
    theirs._dist = type("Fixed", (), {"sample": lambda *_: torch.tensor(lam)})()
    places = iter((columns, rows))  # it draws x before y
    randint, torch.randint = torch.randint, lambda *_, **__: torch.tensor([next(places)])
    try:
        other, labels = theirs(x, y)
    finally:
        torch.randint = randint
    assert torch.equal(mixed, other)
    torch.testing.assert_close(soft, labels.to(F64), rtol=1e-6, atol=1e-6)


def _key(seed, epoch, number):
    from trainers.randomness import derive

    return derive(seed, f"mixing {epoch} {number}")


def test_seed_epoch_and_number_decide_and_both_ways_come_half_of_the_time():
    x, y = batch(shape=(1, 12))
    mixing = Mixing((MixUp(), CutMix()), 4, 3)
    states = torch.get_rng_state()
    one = mixing(x, y, epoch=1, batch=2)
    assert all(torch.equal(a, b) for a, b in zip(one, mixing(x, y, epoch=1, batch=2), strict=True))
    assert torch.equal(torch.get_rng_state(), states)
    shares, cut = [], 0
    for number in range(400):
        mixed, soft = mixing(x, y, epoch=0, batch=number)
        assert torch.allclose(soft.sum(1), torch.ones(6, dtype=F64))  # noqa: TID251
        shares.append(float(soft[1, 1]))
        cut += int(((mixed == x) | (mixed == x.roll(1, 0))).all())
    assert abs(cut - 200) < 3 * math.sqrt(100) + 30  # mixup with a share of nearly 1 or 0 may look like it
    assert len(set(shares)) > 200
    assert not torch.equal(one[0], Mixing((MixUp(), CutMix()), 4, 4)(x, y, epoch=1, batch=2)[0])


def test_shares_of_mixup_are_beta_distributed():
    x, y = batch(2, (1,))
    found = [float(Mixing((MixUp(alpha=0.4),), 4, 0)(x, y, epoch=0, batch=i)[1][1, 1]) for i in range(3000)]
    assert np.mean(found) == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / 1.8 / 3000))
    assert np.var(found) == pytest.approx(0.25 / 1.8, rel=0.06)  # 1 / (4 (2 α + 1))


def logits_and_soft():
    draw = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(5, 4, generator=draw, dtype=F64)
    soft = torch.zeros(5, 4, dtype=F64)
    for i, (a, b, share) in enumerate([(0, 1, 0.3), (2, 2, 0.5), (3, 0, 1.0), (1, 2, 0.75), (0, 3, 0.05)]):
        soft[i, a] += share
        soft[i, b] += 1 - share
    return logits, soft


@pytest.mark.parametrize("name", ["cross_entropy", "bce"])
@pytest.mark.parametrize(("smoothing", "convention"), [(0.0, "uniform"), (0.1, "uniform"), (0.1, "others")])
def test_the_loss_of_soft_targets_is_the_mixture_of_the_labels_losses(name, smoothing, convention):
    logits, soft = logits_and_soft()
    loss = make_loss(name, smoothing=smoothing, convention=convention)
    single = Classification(name, smoothing, convention).each
    by_label = torch.stack([single(logits, torch.full((5,), c)) for c in range(4)], 1)
    expected = (soft * by_label).sum(1)
    close = {"rtol": 1e-6, "atol": 1e-6}  # targets that labels are smoothed to are float32
    torch.testing.assert_close(loss(logits, soft), expected.mean(), **close)
    values = each(loss)
    torch.testing.assert_close(values(logits.clone().requires_grad_(), soft).detach(), expected, **close)
    assert values.weights is None  # all count the same
    torch.testing.assert_close(values.chosen(logits[:2], soft[:2], torch.tensor([0, 1])), expected[:2], **close)
    onehot = F.one_hot(torch.arange(5) % 4, 4).to(F64)
    torch.testing.assert_close(loss(logits, onehot), loss(logits, torch.arange(5) % 4), **close)


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
@pytest.mark.parametrize("C", [None, -1.0, 3.0])
def test_the_obf_objective_of_soft_targets_is_the_mixture_of_the_labels_objectives(link, C):
    logits, soft = logits_and_soft()
    given = {"C": C, "gamma": 0.8, "link": link}
    parts = [obf_direction(logits, torch.full((5,), c), **given) for c in range(4)]
    q, alpha = obf_direction(logits, soft, **given)
    torch.testing.assert_close(q, sum(soft[:, c, None] * parts[c][0] for c in range(4)))
    torch.testing.assert_close(alpha, sum(soft[:, c] * parts[c][1] for c in range(4)))
    for value in ("surrogate", "objective"):
        single = [
            [obf_loss(logits[i : i + 1], torch.tensor([c]), value=value, **given) for c in range(4)] for i in range(5)
        ]
        expected = (soft * torch.tensor(single, dtype=F64)).sum(1).mean()
        torch.testing.assert_close(obf_loss(logits, soft, value=value, **given), expected)
    with pytest.raises(ValueError, match=r"hard labels.* or soft targets of the logits' shape"):
        obf_loss(logits[:, :, None], soft, **given)
