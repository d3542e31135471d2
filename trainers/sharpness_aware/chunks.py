"""The data of one step as closures: chunks, and the units of chunks that share one perturbation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from trainers.sharpness_aware.arguments import closures_from, counts_from
from trainers.sharpness_aware.snapshot import RandomState

Closure = Callable[[], Tensor]


@dataclass
class Unit:
    """Closures that share one perturbation.

    Attributes:
        descents: Closures of the training loss.
        ascents: Closures of the ascent objective; None ascends the training loss.
        shares: Each closure's share of the unit's examples.
        weight: The unit's share of the batch.
        examples: Number of examples, as far as sizes were given.
        states: Random state before each closure's first pass.
        tracked: Whether a pass over this data has updated running statistics.
        losses: Per-example training losses at the clean weights, where a method asked for them.
    """

    descents: list[Closure]
    ascents: list[Closure | None]
    shares: list[float]
    weight: float = 1.0
    examples: float = 0
    states: list[RandomState | None] = field(default_factory=list)
    tracked: bool = False
    losses: list[Tensor | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.states = [None] * len(self.descents)
        self.losses = [None] * len(self.descents)


def units_of(
    closure: Closure | Sequence[Closure],
    sizes: Sequence[float] | None,
    ascent: Closure | Sequence[Closure] | None,
    *,
    objective: str,
    together: bool,
) -> list[Unit]:
    """Check the arguments of a step, and group its closures.

    Args:
        closure: One closure, or one a chunk.
        sizes: Examples in each chunk; None counts them as equal.
        ascent: Closures of the ascent objective.
        objective: Name of the objective that the method ascends.
        together: Whether all chunks share one perturbation.

    Raises:
        ValueError: If the lists differ in length, sizes are not positive, or the method needs `ascent`.
    """
    descents = closures_from(closure, "closure")
    for descent in descents:
        _refuse_half_a_lightning_step(descent)
    if not descents:
        raise ValueError("`closure` is an empty list: give one closure for each chunk.")
    objectives: list[Closure | None]
    if ascent is None:
        if objective != "loss":
            raise ValueError(
                f"this method ascends {objective!r}, not the loss: pass `ascent=`, a closure that clears "
                f"the gradients and runs backward on that objective (for OBF, `trainers.obf_loss(model(x), y)`)."
            )
        objectives = [None] * len(descents)
    else:
        objectives = closures_from(ascent, "ascent")
    counts = counts_from(sizes, len(descents))
    if not len(descents) == len(objectives) == len(counts):
        raise ValueError(
            f"`closure`, `sizes` and `ascent` must have one entry a chunk, got {len(descents)}, {len(counts)} and "
            f"{len(objectives)}."
        )
    total = sum(counts)
    known = sizes is not None
    if together or len(descents) == 1:
        return [Unit(descents, objectives, [c / total for c in counts], examples=total if known else 0)]
    rows = zip(descents, objectives, counts, strict=True)
    return [Unit([d], [o], [1.0], c / total, c if known else 0) for d, o, c in rows]


def _refuse_half_a_lightning_step(closure: Closure) -> None:
    """Raise for closures of Lightning's automatic optimisation that clip in every pass, or see part of the batch."""
    method = getattr(closure, "func", None)
    if getattr(method, "__name__", "") != "_wrap_closure" or not closure.args:  # type: ignore[attr-defined]
        return
    trainer = closure.args[0].trainer  # type: ignore[attr-defined]
    if trainer.accumulate_grad_batches != 1 or trainer.gradient_clip_val:
        raise ValueError(
            "Lightning's `gradient_clip_val` acts inside every pass of the closure, `accumulate_grad_batches` hands "
            "over the last batch alone: let the module inherit from "
            "`trainers.integrations.lightning.SharpnessAwareModule`, which clips once and says what to do instead."
        )
