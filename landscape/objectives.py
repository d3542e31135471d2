"""Objectives that a perturbation may ascend instead of the training loss."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Link = Literal["softmax", "sigmoid"]


def obf_direction(
    logits: Float[Tensor, "n k"],
    targets: Int[Tensor, " n"] | Float[Tensor, "n k"],
    *,
    C: float | None = None,
    gamma: float = 1.0,
    link: Link = "softmax",
) -> tuple[Float[Tensor, "n k"], Float[Tensor, " n"]]:
    """The OBF objective's exact gradient with respect to the logits, per example, and its mixing weights α.

    J_i = (1 - α_i) ℓ(x_i, e_y) - ℓ(x_i, 1/K) is to be maximised, with α_i held constant:

        q_i = 1/K - α_i p_i - (1 - α_i) e_y,    α_i = γ max(0, (1 - λ/p_y) / (1 - λ)),   λ = 1/C

    Of soft targets t_i, as mixup makes them, J_i is the sum over classes of t_ic times the objective with label c, just
    as the loss is: q_i = 1/K - α_i p_i - Σ_c t_ic (1 - α_ic) e_c, with α_ic from p_ic, and α_i = Σ_c t_ic α_ic.

    Args:
        logits: Outputs, one row an example.
        targets: Hard labels, or soft targets that sum to one.
        C: Number of classes that sets chance level λ = 1/C; None means K. C < 0 means λ = 0, so that α = γ.
        gamma: γ in [0, 1]. γ = 0 pushes the true logit down and all others up evenly.
        link: "softmax" with cross-entropy, or "sigmoid" with the sum over classes of binary cross-entropy.

    Returns:
        q of shape (n, k) and α of shape (n,), both without gradient.

    Raises:
        ValueError: If C lies in [0, 1] or γ outside [0, 1].

    Source:
        Vani et al. (2024), ICML, as in their released code (there always with the sigmoid link); soft targets are ours.
    """
    k = logits.shape[-1]
    c = float(k if C is None else C)
    if not math.isfinite(c) or 0 <= c <= 1:
        raise ValueError(f"`C` must be above 1 (chance level 1/C), or negative for chance level 0, got {C!r}.")
    if not 0 <= gamma <= 1:
        raise ValueError(f"`gamma` must be in [0, 1], got {gamma!r}.")
    if link not in ("softmax", "sigmoid"):
        raise ValueError(f"`link` must be 'softmax' or 'sigmoid', got {link!r}.")
    with torch.no_grad():
        p = logits.softmax(-1) if link == "softmax" else logits.sigmoid()
        chance = 0.0 if c < 0 else 1 / c
        if targets.is_floating_point():
            soft = targets.to(p.dtype)
            alphas = gamma * (1 - chance / p.clamp_min(max(chance, torch.finfo(p.dtype).tiny))) / (1 - chance)
            alpha = (soft * alphas).sum(-1)
            return 1 / k - alpha[:, None] * p - soft * (1 - alphas), alpha
        onehot = torch.zeros_like(p).scatter_(-1, targets[:, None], 1.0)
        p_true = p.gather(-1, targets[:, None]).squeeze(-1).clamp_min(max(chance, torch.finfo(p.dtype).tiny))
        alpha = gamma * (1 - chance / p_true) / (1 - chance)
        a = alpha[:, None]
        return 1 / k - a * p - (1 - a) * onehot, alpha


def obf_loss(
    logits: Float[Tensor, "n k ..."],
    targets: Int[Tensor, "n ..."] | Float[Tensor, "n k"],
    *,
    C: float | None = None,
    gamma: float = 1.0,
    link: Link = "softmax",
    value: Literal["surrogate", "objective"] = "surrogate",
    ignore_index: int = -100,
    weight: Float[Tensor, " k"] | None = None,
) -> Float[Tensor, ""]:
    """The surrogate that the output-bias-forgetting (OBF) perturbation ascends: mean_i ⟨stopgrad(q_i), x_i⟩.

    Its gradient is that of the objective J of `obf_direction`; its value S is not J unless α = 0. They differ by
    J_i = S_i - α_i H(p_i), H the softmax entropy, or the sum of binary entropies for the sigmoid link.

    Args:
        logits: Outputs, one row an example; of tokens or pixels (n, k, ...), as for torch's cross-entropy.
        targets: Hard labels, or soft targets (n, k) of mixed examples; label smoothing of the training loss does not
            apply here.
        C: See `obf_direction`.
        gamma: See `obf_direction`.
        link: See `obf_direction`.
        value: "surrogate" returns S; "objective" returns J. The gradient is the same.
        ignore_index: Label of what does not count, as for torch's cross-entropy.
        weight: What each class counts for, as for torch's cross-entropy: Σ w_y S_i / Σ w_y; None for all the same. Not
            with soft targets, of which no one class is the example's.

    Returns:
        A scalar to be maximised, the mean over what counts.

    Raises:
        ValueError: As `obf_direction`, or for targets that are not one label for each row, token or pixel.

    Source:
        Vani et al. (2024), ICML; the relation of the values is our derivation.
    """
    soft = targets.is_floating_point() and targets.shape == logits.shape and logits.ndim == 2
    if not soft and (targets.is_floating_point() or targets.shape != logits.shape[:1] + logits.shape[2:]):
        raise ValueError(
            f"`targets` of the OBF objective must be hard labels, one for each row of logits, got shape "
            f"{tuple(targets.shape)} and {targets.dtype} for logits {tuple(logits.shape)}: put the classes on the "
            f"second axis, and give labels, or soft targets of the logits' shape (n, k)."
        )
    if soft and not (bool((targets >= 0).all()) and bool(((targets.sum(-1) - 1).abs() < 1e-3).all())):
        raise ValueError(
            "`targets` of the OBF objective must be labels, or shares of classes: not negative, with the sum 1."
        )
    if soft and weight is not None:
        raise ValueError("`weight` of the OBF objective needs hard labels, got soft targets: leave one of them out.")
    if logits.ndim > 2:
        logits, targets = logits.movedim(1, -1).flatten(0, -2), targets.flatten()
    if not soft and not bool((counted := targets != ignore_index).all()):
        logits, targets = logits[counted], targets[counted]
    q, alpha = obf_direction(logits, targets, C=C, gamma=gamma, link=link)
    counts = None if weight is None else weight.to(logits.device)[targets]
    surrogate = _mean((q * logits).sum(-1), counts)
    if value == "surrogate":
        return surrogate
    with torch.no_grad():
        if link == "softmax":
            entropy = torch.special.entr(logits.softmax(-1)).sum(-1)
        else:
            p = logits.sigmoid()
            entropy = (torch.special.entr(p) + torch.special.entr(1 - p)).sum(-1)
        shift = _mean(alpha * entropy, counts)
    return torch.sub(surrogate, shift)


def _mean(values: Float[Tensor, " n"], counts: Float[Tensor, " n"] | None) -> Float[Tensor, ""]:
    mean: Tensor = values.mean() if counts is None else (counts.to(values.dtype) * values).sum() / counts.sum()
    return mean
