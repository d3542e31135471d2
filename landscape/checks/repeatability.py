"""Whether a risk is a function of its parameters: the same examples must give the same loss when asked again."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import compress
from typing import TYPE_CHECKING

import torch

from landscape.batches import Batch, batch_size, can_be_cut, slice_batch
from landscape.functional import PureModel
from landscape.params import Params

if TYPE_CHECKING:
    from landscape.risk import EmpiricalRisk

EXAMPLES = 8  # that are asked again
REPEATS = {torch.float64: 1e-12}  # relative difference of two evaluations that passes; of the others:
REPEAT = 1e-6
MORE = 8  # evaluations of a loss that draws random numbers but gave the same twice


def require_repeatable(risk: "EmpiricalRisk", theta: Params | None = None) -> None:
    """Check, once for a model and its loss, that a few examples have the same loss when asked twice.

    The generators that draw belong to the caller, and are as they were.

    Raises:
        ValueError: If they have not, with the cause where it is known.
    """
    model = risk.predict.parameters if isinstance(risk.predict, PureModel) else risk.predict
    point = risk.theta if theta is None else theta

    def check() -> None:
        settled = risk.settled(point)
        batch = next(compress(risk.batches, risk.sizes))
        few = slice_batch(batch, 0, EXAMPLES) if batch_size(batch) > EXAMPLES and can_be_cut(batch) else batch

        def value(examples: Batch) -> float:
            x, y = examples
            return settled.findings.without_graph(lambda: float(settled.loss_on(settled.predict(point, x), y)))

        with undrawn():
            try:
                value(few)
            except Exception:  # a model for batches of one size only
                few = batch
        require_same(lambda: value(few), next(iter(point.values())).dtype, cause(risk, probe=False))

    risk.trust.once(("repeatable", model, risk.loss, risk.mode), check)


def require_same(value: Callable[[], float], dtype: torch.dtype, why: str) -> None:
    """Check that a value is the same when asked twice; more often, if random numbers are drawn for it.

    Raises:
        ValueError: If it is not.
    """
    with undrawn():
        before = torch.get_rng_state()
        first, second = value(), value()
        drawn = not torch.equal(before, torch.get_rng_state())
        for _ in range(MORE if drawn and not differ(first, second, dtype) else 0):
            second = value()
            if differ(first, second, dtype):
                break
    if differ(first, second, dtype):
        raise ValueError(
            f"`risk` is not a function of its parameters: the same examples gave {first:.9g} and then {second:.9g}; "
            f"{why}."
        )


def differ(a: float, b: float, dtype: torch.dtype) -> bool:
    """Whether two losses differ by more than rounding; two that are no numbers do not."""
    return abs(a - b) > REPEATS.get(dtype, REPEAT) * max(abs(a), abs(b))


def cause(risk: "EmpiricalRisk", *, probe: bool) -> str:
    """What makes it random, as far as that is known, and the way out.

    Args:
        risk: The risk.
        probe: Whether the caller has an argument `probe`.
    """
    predict = risk.predict
    if isinstance(predict, PureModel) and predict.random_layers:
        return f"the dropout layers {predict.random_layers} are on, because mode={predict.mode!r}: use mode='eval'"
    return (
        "something in the model or the loss draws random numbers, or its kernels are not deterministic: switch it off, "
        "draw from a generator that is seeded anew in each pass, or see torch.use_deterministic_algorithms"
        + (", or pass probe=False" if probe else "")
    )


def undrawn() -> AbstractContextManager[None]:
    """A block after which torch's generators are where they were before."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    block: AbstractContextManager[None] = torch.random.fork_rng(devices)
    return block
