"""Perturbed forgetting: perturb the weights as a training batch would have it, and see what the classifier forgets.

The family of measures is our own definition, after the idea of Vani et al. (2024), ICML, whose formula was not
available. In every number, positive means forgotten.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from analysis.forgetting.information import Correction
from analysis.forgetting.metrics import INFORMATION, METRICS, Leaveout, Outputs, averaged, forgetting_metrics, pooled
from analysis.forgetting.providers import PROVIDERS, Mover, OwnPerturbation, Radius, check_provider, provider_options
from analysis.table import Row
from landscape import EmpiricalRisk, Params, displaced
from landscape.objectives import Link

Array = np.ndarray

SPLITS = ("exposed", "other_train", "held_out")
GAPS = ("F_cmi", "F_mi", "dCE", "cw")  # also reported as M_gap_*
FEW = 50  # examples of a class, below which information carries a warning
CHUNK = 4096  # examples a forward pass


def perturbed_forgetting(
    risk: EmpiricalRisk,
    held_out: tuple[Tensor, Tensor],
    *,
    providers: Sequence[str] = ("sam", "asam", "obf", "random", "zero"),
    radii: Sequence[Radius] = ("own", "iso-loss"),
    own: OwnPerturbation | None = None,
    m: int | None = 64,
    batches: int = 20,
    iso_loss: float = 0.1,
    C: float | None = None,
    gamma: float = 1.0,
    link: Link = "softmax",
    eta: float = 0.0,
    correction: Correction = "first-order",
    generator: Generator,
) -> list[Row]:
    """Measure what perturbations made from training batches B make a classifier forget.

    For each batch B and provider, θ moves to θ + ε, and the outputs before and after are compared on three sets: B
    itself ("exposed"), the training examples outside B ("other_train"), and "held_out". The metrics are those of
    `forgetting_metrics`: F_cmi, F_mi, F_use, selectivity, dH, KL, dCE, cw, wc, F_bias; and M_gap_F_cmi, M_gap_F_mi,
    M_gap_dCE, M_gap_cw, the value on "exposed" minus that on "held_out". How far θ moves:

        "own"       every provider moves θ by the l2 length of the run's own ε on the same batch (our definition); the
                    run's own provider applies exactly the run's own step.
        "iso-loss"  ‖ε‖ is such that the mean cross-entropy on B rises by `iso_loss`, within 0.1 % of it, searched for
                    between 1e-6 and 10 times ‖θ‖. A batch without such a radius is left out and counted in `warnings`;
                    the row has `converged=False` if more than one in five are.

    A small batch alone has too few examples a class, so that "exposed" pools the pairs of outputs before and after over
    all batches; its standard error is the delete-one-batch jackknife. "other_train" and "held_out", and all three if
    `m` is None, are means over batches, with the standard error of a mean; selectivity is formed from the mean F_cmi
    and F_use. Errors are over batches, for fixed evaluation sets. Pooled pairs count as independent examples: where
    batches overlap much, the correction for few examples is too small.

    Args:
        risk: Training risk of a classifier at θ; its batches are pairs of inputs and integer labels.
        held_out: Inputs and labels that were not trained on.
        providers: Names in `PROVIDERS`. "zero" is the control: exactly zero at "own", and no row at "iso-loss".
        radii: "own", "iso-loss", or both.
        own: The run's own perturbation; None gives NaN at "own", with the reason in `warnings`.
        m: Examples in a batch B. None makes B the whole training set: deterministic providers then use it once, with
            standard error 0; random ones draw `batches` directions; and "other_train" is empty.
        batches: Number of batches, each a random subset without replacement.
        iso_loss: Rise of the cross-entropy in nats, above 0.
        C: Option of OBF, see `landscape.obf_loss`; so are `gamma` and `link`.
        gamma: Option of OBF.
        link: Option of OBF. Outputs are read through a softmax whatever the link.
        eta: η of the adaptive providers.
        correction: For the bias of the information, see `output_information`; the same before and after.
        generator: Source of batches and noise, on the CPU. Its draws depend neither on the model nor on the providers
            and radii asked for: equal seeds give every model the same batches, and the same noise if of equal shape.

    Returns:
        Rows whose `draws` are the batches used. Two of each cell say how far θ moved: `eps_norm`, the mean l2 length of
        ε, and `eps_rho`, the mean ρ in the provider's own units.

    Raises:
        ValueError: If a name is unknown, a number out of range, or the data are not tensors with integer labels.
    """
    providers, radii = list(dict.fromkeys(providers)), list(dict.fromkeys(radii))
    _check_options(providers, radii, batches, correction)
    x, y = _training_pairs(risk)
    if m is not None and not 1 <= m <= len(x):
        raise ValueError(f"`m` must be between 1 and the number of training examples {len(x)}, got {m!r}.")
    inputs = torch.cat([x, _labelled(held_out, "held_out")[0].to(x.device)])
    labels = torch.cat([y, held_out[1].to(y.device)]).cpu().numpy()
    index = [
        torch.arange(len(x)) if m is None else torch.randperm(len(x), generator=generator)[:m].sort().values
        for _ in range(batches)
    ]
    seeds = [int(s) for s in torch.randint(2**62, (batches,), generator=generator)]

    base = Outputs.from_logits(_logits(risk, risk.theta, inputs, labels), labels)
    mover = Mover(risk, providers, radii, own, iso_loss, C, gamma, link, eta)
    cells = {cell: _Tally() for cell in mover.cells}
    for number, (chosen, seed) in enumerate(zip(index, seeds, strict=True)):
        repeated = m is None and number > 0  # the same batch once more: only random directions differ
        if not repeated:
            mover.load(x[chosen.to(x.device)], y[chosen.to(y.device)], float(base.losses[chosen.numpy()].mean()))
        still: list[_Tally] = []
        moved: list[_Tally] = []
        logits: list[Tensor] = []
        for cell, move in mover.moves(seed, random_only=repeated):
            tally = cells[cell]
            if move is None:
                tally.missed += 1
                continue
            tally.rhos.append(move.rho)
            tally.lengths.append(move.length)
            if move.length == 0:
                still.append(tally)
            else:
                moved.append(tally)
                logits.append(_logits(risk, displaced(risk.theta, move.delta), inputs, labels))
        sets = _evaluation_sets(chosen.numpy(), len(x), len(labels))
        if moved:
            after = Outputs.from_logits(torch.stack(logits), labels)
            _record(moved, base, after, labels, sets, correction, pool=m is not None)
        if still:  # θ has not moved: the outputs are those before, bit for bit
            _record(still, base, base, labels, sets, correction, pool=m is not None)

    rows: list[Row] = []
    for (provider, radius), tally in cells.items():
        options: dict[str, Any] = {"provider": provider, "radius": radius, "m": m, "correction": correction}
        options |= {"batches": batches if m is not None or PROVIDERS[provider].objective == "random" else 1}
        options |= provider_options(provider, C=C, gamma=gamma, link=link, eta=eta)
        if radius == "iso-loss":
            options["iso_loss"] = iso_loss
        elif own is not None:
            options["own"] = f"{own.provider}: {own.step!r}"
        exact = m is None and PROVIDERS[provider].objective != "random"
        rows += _summarise(tally, options, base, labels, len(x), correction, exact=exact)
    return rows


@dataclass
class _Tally:
    """What one cell did, batch by batch."""

    rhos: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    chosen: list[Int[Array, " m"]] = field(default_factory=list)
    exposed: list[Outputs] = field(default_factory=list)  # outputs on each B after, where they are to be pooled
    means: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    missed: int = 0


def _evaluation_sets(chosen: Int[Array, " m"], n_train: int, n: int) -> dict[str, Int[Array, " k"]]:
    outside = np.ones(n_train, dtype=bool)
    outside[chosen] = False
    return {"exposed": chosen, "other_train": np.flatnonzero(outside), "held_out": np.arange(n_train, n)}


def _record(
    tallies: list[_Tally],
    base: Outputs,
    after: Outputs,
    labels: Int[Array, " n"],
    sets: dict[str, Int[Array, " k"]],
    correction: Correction,
    *,
    pool: bool,
) -> None:
    """Enter one batch; `after` has one model for each tally on its leading axis, or is `base` if none has moved."""
    for split, examples in sets.items():
        if not len(examples) or (split == "exposed" and pool):
            continue
        before = base.at(examples)
        then = before if after is base else after.at(examples)
        metrics = forgetting_metrics(before, then, labels[examples], correction=correction)
        for i, tally in enumerate(tallies):
            values = {name: float(v if v.ndim == 0 else v[i]) for name, v in metrics.items()}
            tally.means.setdefault(split, []).append(values)
    exposed = after.at(sets["exposed"])
    for i, tally in enumerate(tallies):
        tally.chosen.append(sets["exposed"])
        if pool:
            tally.exposed.append(exposed if after is base else exposed.of(i))


def _summarise(
    tally: _Tally,
    options: dict[str, Any],
    base: Outputs,
    labels: Int[Array, " n"],
    n_train: int,
    correction: Correction,
    *,
    exact: bool,
) -> list[Row]:
    """The rows of one cell."""
    used, tried = len(tally.chosen), len(tally.chosen) + tally.missed
    notes, results = [], {split: averaged(values) for split, values in tally.means.items()}
    if tried == 0:
        notes.append("the run has no perturbation of its own")
    if tally.missed:
        notes.append(f"no radius raised the loss by {options['iso_loss']:g} nats on {tally.missed} of {tried} batches")
    if tally.exposed:
        examples = np.concatenate(tally.chosen)
        before = base.at(examples)
        then = before if all(length == 0 for length in tally.lengths) else Outputs.pool(tally.exposed)
        results["exposed"] = pooled(before, then, labels[examples], used, correction=correction)
    fewest = _fewest_of_a_class(tally.chosen, labels, n_train) if used else {}

    def row(measure: str, split: str, given: Leaveout | None, extra: list[str]) -> Row:
        value = math.nan if given is None else given.value
        if given is not None and math.isnan(value):
            extra = [*extra, "nothing was forgotten" if measure == "selectivity" else "the outputs are not finite"]
        stderr = math.nan if given is None or math.isnan(value) else 0.0 if exact else given.stderr
        return Row(
            measure,
            value,
            stderr=stderr,
            draws=used,
            split=split,
            options=options,
            converged=tally.missed <= tried / 5,
            warnings="; ".join([*notes, *extra]),
        )

    def few(*splits: str) -> list[str]:
        least = min(fewest[split] for split in splits) if used else FEW
        return [f"only {least} examples of a class"] if least < FEW else []

    rows = []
    for split in SPLITS:
        given = results.get(split)
        for name in METRICS:
            extra = ["no training example lies outside the batch"] if given is None and used else []
            if given is not None and name in INFORMATION:
                extra = few(split)
            rows.append(row(name, split, None if given is None else given[name], extra))
    for name in GAPS:
        gap = results["exposed"][name] - results["held_out"][name] if used else None
        extra = few("exposed", "held_out") if name in INFORMATION else []
        rows.append(row(f"M_gap_{name}", "exposed", gap, extra))
    finite = bool(np.isfinite(base.losses).all())
    for name, values in (("eps_norm", tally.lengths), ("eps_rho", tally.rhos)):
        known = used > 0 and finite
        value = float(np.mean(values)) if known else math.nan
        spread = float(np.std(values, ddof=1)) / math.sqrt(used) if known and used > 1 else math.nan
        extra = ["the outputs are not finite"] if used and not finite else []
        note = "; ".join([*notes, *extra])
        rows.append(Row(name, value, 0.0 if exact and known else spread, used, "exposed", options, True, note))
    return rows


def _fewest_of_a_class(chosen: list[Int[Array, " m"]], labels: Int[Array, " n"], n_train: int) -> dict[str, int]:
    """The number of distinct examples of the rarest class that each set has at all."""
    classes = int(labels.max()) + 1

    def count(examples: Int[Array, " k"]) -> Int[Array, " c"]:
        return np.bincount(labels[examples], minlength=classes)

    train = count(np.arange(n_train))
    outside = [train - count(c) for c in chosen]
    counts = {
        "exposed": count(np.unique(np.concatenate(chosen))),
        "other_train": np.min(outside, axis=0),
        "held_out": count(np.arange(n_train, len(labels))),
    }
    return {split: int(c[c > 0].min()) if c.any() else 0 for split, c in counts.items()}


def _logits(risk: EmpiricalRisk, theta: Params, inputs: Tensor, labels: Int[Array, " n"]) -> Float[Tensor, "n c"]:
    with torch.no_grad():
        logits = torch.cat([risk.predict(theta, part) for part in inputs.split(CHUNK)])
    if logits.ndim != 2 or logits.shape[1] <= labels.max() or labels.min() < 0:
        raise ValueError(
            f"`risk` must predict logits of shape (n, c), one column a class, for labels from 0 to c - 1; got "
            f"{tuple(logits.shape)} for labels from {labels.min()} to {labels.max()}."
        )
    return logits


def _training_pairs(risk: EmpiricalRisk) -> tuple[Tensor, Tensor]:
    pairs = [_labelled(batch, "risk") for batch in risk.batches]
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def _labelled(batch: Any, name: str) -> tuple[Tensor, Tensor]:
    x, y = batch
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        raise ValueError(f"`{name}` must hold pairs of tensors (inputs, labels), got {type(x).__name__}.")
    if y.ndim != 1 or y.is_floating_point() or len(x) != len(y) or len(y) == 0:
        raise ValueError(
            f"`{name}` must have one integer label for each of its inputs, and at least one, got {y.dtype} labels of "
            f"shape {tuple(y.shape)} for {len(x)} inputs."
        )
    return x, y


def _check_options(providers: Sequence[str], radii: Sequence[str], batches: int, correction: str) -> None:
    for name in providers:
        check_provider(name)
    if not providers:
        raise ValueError(f"`providers` is empty; choose from {', '.join(PROVIDERS)}.")
    if not radii or not set(radii) <= set(get_args(Radius)):
        raise ValueError(f"`radii` must be some of {get_args(Radius)}, got {list(radii)}.")
    if batches < 1:
        raise ValueError(f"`batches` must be at least 1, and 2 or more for a standard error, got {batches!r}.")
    if correction not in get_args(Correction):
        raise ValueError(f"`correction` must be one of {get_args(Correction)}, got {correction!r}.")
