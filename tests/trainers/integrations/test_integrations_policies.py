"""Policies: episodes against a loop over one world, the loss against REINFORCE by hand, noise by its definition."""

import math
import sys

import gymnasium
import pytest
import torch
from torch.testing import assert_close

import landscape
from trainers.integrations.policies import Episodes, noisy, play, policy_loss, train_policy, untrained


@pytest.mark.parametrize("pole", [0.5, 1.5])
def test_episodes_are_those_of_one_world_after_the_other(pole):
    """Replayed in gymnasium's world of one pole, each episode has the observations that were noted, and its length."""
    policy = untrained(3)
    played = play(policy, episodes=3, seed=5, pole=pole)
    lengths = [int(n) for n in played.returns]
    assert len(played.actions) == len(played.observations) == sum(lengths)
    side_by_side = []  # steps of all episodes, in order of time, then of the episode
    for t in range(max(lengths)):
        side_by_side += [(t, e) for e in range(3) if t < lengths[e]]
    for e, length in enumerate(lengths):
        mine = [k for k, (_, other) in enumerate(side_by_side) if other == e]
        world = gymnasium.make("CartPole-v1").unwrapped
        world.reset()
        world.length, world.polemass_length = pole, 0.1 * pole
        world.state = played.observations[mine[0]].double().numpy()
        for t, k in enumerate(mine):
            seen, _, fell, *_ = world.step(int(played.actions[k]))
            assert bool(fell) == (t == length - 1)
            if t + 1 < length:
                assert_close(torch.from_numpy(seen), played.observations[mine[t + 1]], rtol=1e-3, atol=1e-3)


def test_advantages_are_discounted_returns_standardised():
    played = play(untrained(0), episodes=1, seed=1)
    n = int(played.returns)
    ahead = torch.tensor([sum(0.99**k for k in range(n - t)) for t in range(n)])
    expected = (ahead - ahead.mean()) / ahead.std(correction=0)
    assert_close(played.advantages, expected, rtol=1e-4, atol=1e-5)


def test_the_loss_is_that_of_reinforce():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    actions, advantages = torch.tensor([0, 1, 1, 0, 1]), torch.randn(5, generator=generator, dtype=torch.float64)
    played = Episodes(torch.zeros(5, 4), actions, advantages, torch.tensor([5.0]))
    by_hand = -sum(a * math.log(p[k]) for a, p, k in zip(advantages, logits.softmax(1), actions, strict=True)) / 5
    assert float(policy_loss(logits, played.batch[1])) == pytest.approx(float(by_hand), rel=1e-12)


def test_its_curvature_is_the_dense_hessian():
    policy = untrained(1, width=3).double()
    x, targets = play(untrained(1), episodes=2, seed=0).batch
    risk = landscape.EmpiricalRisk.from_model(policy, policy_loss, (x.double(), targets.double()))
    dense = landscape.Hessian(risk).dense()
    ends = landscape.top_eigenpairs(landscape.Hessian(risk), which="both", tol=1e-8)
    exact = torch.linalg.eigvalsh(dense)
    assert_close(ends.values, torch.stack([exact[-1], exact[0]]), rtol=1e-6, atol=1e-9)


TRAINED = [{"method": "adamw"}, {"method": "asam", "rho": 0.1}, {"method": "sam", "rho": 0.05, "obf": True}]


@pytest.mark.parametrize("options", TRAINED, ids=["adam", "asam", "obf"])
def test_training_moves_the_policy_the_same_way_twice(options):
    short = {"seed": 2, "updates": 3, "episodes": 4, "width": 8, "base": "adamw", "lr": 0.01}
    (policy, returns), (again, _) = (train_policy(**options, **short) for _ in range(2))
    assert returns.shape == (3,)
    for one, other, first in zip(policy.parameters(), again.parameters(), untrained(2, 8).parameters(), strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, first)


def test_obf_ascends_another_objective():
    short = {"method": "sam", "seed": 2, "updates": 2, "episodes": 4, "width": 8, "base": "adamw", "lr": 0.01}
    plain, obf = (train_policy(rho=0.5, obf=on, **short)[0] for on in (False, True))
    assert any(not torch.equal(a, b) for a, b in zip(plain.parameters(), obf.parameters(), strict=True))
    plain, obf = (train_policy(rho=0.0, obf=on, **short)[0] for on in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), obf.parameters(), strict=True))


def test_noise_is_a_share_of_each_tensors_norm():
    policy = untrained(0, 400)
    other = noisy(policy, 0.5, torch.Generator().manual_seed(0))
    for a, b in zip(policy.parameters(), other.parameters(), strict=True):
        if a.numel() > 100:
            assert float((a - b).detach().norm() / a.detach().norm()) == pytest.approx(0.5, rel=0.15)


def test_refusals(monkeypatch):
    with pytest.raises(ValueError, match="`episodes` must be at least 1, got 0"):
        play(untrained(0), episodes=0, seed=0)
    with pytest.raises(ValueError, match="`pole` must be a length above 0, got -1"):
        play(untrained(0), episodes=1, seed=0, pole=-1)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    monkeypatch.delitem(sys.modules, "trainers.integrations.policies")
    with pytest.raises(ImportError, match=r"needs gymnasium: pip install 'landscape-lab\[rl\]'"):
        __import__("trainers.integrations.policies")
