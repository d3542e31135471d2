"""Policies for CartPole: episodes of gymnasium, the loss of REINFORCE, and training by the SAM family."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from landscape.objectives import obf_loss
from trainers.randomness import seeded, stream
from trainers.sharpness_aware.optimizers import make_optimizer

try:
    import gymnasium
except ImportError as error:
    raise ImportError("`trainers.integrations.policies` needs gymnasium: pip install 'landscape-lab[rl]'") from error

POLE = 0.5  # half the length of CartPole's pole, in metres
DISCOUNT = 0.99


@dataclass(frozen=True)
class Episodes:
    """What was played, step after step of all episodes.

    Attributes:
        observations: Of each step.
        actions: What was done then, 0 or 1.
        advantages: Discounted rewards from there to the end of its episode, less their mean over all steps, in units of
            their deviation; zeros where all are equal.
        returns: Steps that each episode lasted, at most 500.
    """

    observations: Float[Tensor, "n 4"]
    actions: Int[Tensor, " n"]
    advantages: Float[Tensor, " n"]
    returns: Float[Tensor, " episodes"]

    @property
    def batch(self) -> tuple[Float[Tensor, "n 4"], Float[Tensor, "n 2"]]:
        """Inputs, and targets of `policy_loss`: actions and advantages side by side. What a risk is made of."""
        return self.observations, torch.stack([self.actions.to(self.advantages.dtype), self.advantages], 1)


def policy_loss(logits: Float[Tensor, "n 2"], targets: Float[Tensor, "n 2"]) -> Float[Tensor, ""]:
    """Mean over steps of -A log π(a|s), whose gradient is that of REINFORCE; of fixed steps, it may have either sign.

    Args:
        logits: Of the two actions.
        targets: As `Episodes.batch`: what was done, and its advantage A.

    Source:
        Williams (1992), Machine Learning 8, with a baseline and a scale common to all steps.
    """
    actions, advantages = targets[:, 0].long(), targets[:, 1]
    return (advantages * F.cross_entropy(logits, actions, reduction="none")).mean()


def untrained(seed: int, width: int = 32) -> nn.Sequential:
    """A policy with one hidden layer of tanh units and two logits."""
    with seeded(seed):
        return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2))


@torch.no_grad()
def play(policy: nn.Module, *, episodes: int, seed: int, greedy: bool = False, pole: float = POLE) -> Episodes:
    """Play episodes of CartPole side by side, each from its start to its end.

    Args:
        policy: Maps observations to logits of the two actions.
        episodes: How many; at least 1.
        seed: Decides where they start and what is drawn.
        greedy: Take the action with the larger logit instead of drawing one.
        pole: Half the pole's length, in metres; the usual one is 0.5.

    Raises:
        ValueError: If `episodes` or `pole` is out of range.
    """
    if episodes < 1:
        raise ValueError(f"`episodes` must be at least 1, got {episodes!r}.")
    if not 0 < pole < float("inf"):
        raise ValueError(f"`pole` must be a length above 0, got {pole!r}.")
    world: Any = gymnasium.make_vec("CartPole-v1", episodes, vectorization_mode="vector_entry_point").unwrapped
    world.length, world.polemass_length = pole, world.masspole * pole
    generator, alive = stream(seed, "actions"), np.ones(episodes, dtype=bool)
    seen, done, running = [], [], []
    observations, _ = world.reset(seed=seed)
    while alive.any():
        now = torch.from_numpy(observations)
        logits = policy(now)
        drawn = torch.rand(episodes, generator=generator) < logits.softmax(1)[:, 1]
        actions = logits.argmax(1) if greedy else drawn.long()
        seen.append(now)
        done.append(actions)
        running.append(torch.from_numpy(alive))
        observations, _, fell, timed_out, _ = world.step(actions.numpy())
        alive = alive & ~(fell | timed_out)
    world.close()
    lasting = torch.stack(running)  # (steps, episodes)
    ahead = _discounted(lasting.float())[lasting]
    centred = ahead - ahead.mean()
    spread = centred.square().mean().sqrt()
    advantages = centred / spread if spread > 0 else torch.zeros_like(ahead)
    return Episodes(torch.stack(seen)[lasting], torch.stack(done)[lasting], advantages, lasting.sum(0).float())


def _discounted(rewards: Float[Tensor, "t e"]) -> Float[Tensor, "t e"]:
    """Σ_k discount^k r_{t+k} along the first axis."""
    ahead = torch.zeros_like(rewards)
    after = torch.zeros_like(rewards[0])
    for t in range(len(rewards) - 1, -1, -1):
        after = ahead[t] = rewards[t] + DISCOUNT * after
    return ahead


def train_policy(
    method: str,
    *,
    seed: int,
    updates: int = 100,
    episodes: int = 16,
    width: int = 32,
    obf: bool = False,
    **options: Any,
) -> tuple[nn.Sequential, Float[Tensor, " updates"]]:
    """Train a policy by REINFORCE: each update plays episodes and takes one step on all of them.

    All passes of a step see the same episodes, those of the unperturbed policy.

    Args:
        method: A method of the SAM family.
        seed: Decides weights, starts and actions.
        updates: Steps of the optimizer.
        episodes: Played for each.
        width: Hidden units.
        obf: The perturbation ascends OBF's objective, with the actions that were taken as labels. This is a likeness:
            Vani et al. (2024) define it for labels.
        **options: Of `trainers.make_optimizer`, such as base, lr, rho.

    Returns:
        The policy, and the mean return of the episodes before each update.
    """
    policy = untrained(seed, width)
    optimizer = make_optimizer(method, policy, **options)
    returns = []
    for update in range(updates):
        played = play(policy, episodes=episodes, seed=1000 * seed + update)
        x, targets = played.batch
        returns.append(played.returns.mean())

        def loss(x: Tensor = x, targets: Tensor = targets) -> Tensor:
            optimizer.zero_grad()
            found = policy_loss(policy(x), targets)
            found.backward()
            return found

        def forgetting(x: Tensor = x, actions: Tensor = played.actions) -> Tensor:
            optimizer.zero_grad()
            found = obf_loss(policy(x), actions)
            found.backward()
            return found

        optimizer.step(loss, ascent=forgetting) if obf else optimizer.step(loss)
    return policy, torch.stack(returns)


@torch.no_grad()
def noisy(policy: nn.Module, scale: float, generator: Generator) -> nn.Module:
    """A copy whose weights have Gaussian noise of this share of the norm of each tensor, in expectation of squares."""
    copy = deepcopy(policy)
    for w in copy.parameters():
        drawn = torch.randn(w.shape, generator=generator, dtype=w.dtype)
        w.add_(drawn * (scale * w.norm() / w.numel() ** 0.5))
    return copy


__all__ = ["POLE", "Episodes", "noisy", "play", "policy_loss", "train_policy", "untrained"]
