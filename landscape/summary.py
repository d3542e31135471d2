"""The numbers that one wants first of a trained model: loss, both ends of the spectrum, trace, sharpness."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from landscape.checks.arguments import check_arguments
from landscape.estimate import Estimate
from landscape.functional import Mode
from landscape.operators import Hessian
from landscape.params import norm
from landscape.perturbation import AscentStep
from landscape.progress import Progress
from landscape.randomness import source_of
from landscape.risk import EmpiricalRisk
from landscape.sharpness import Sharpness, ascent_sharpness
from landscape.showing import html_table
from landscape.spectral import Eigenpairs, top_eigenpairs, trace

TOP = 0.01  # residual allowed, of the largest modulus
OWN = 0.1  # residual allowed, of each end's own modulus
TRACE = 0.05  # standard error allowed, of the trace
DRAWS = 50  # products of the trace, at most


@dataclass(frozen=True, eq=False, repr=False)
class Summary:
    """What `summary` found, each number with its error.

    Attributes:
        examples: Number of examples.
        parameters: Number of parameters that are differentiated by.
        loss: L(θ), the mean over all examples.
        gradient_norm: ‖∇L(θ)‖₂.
        ends: The largest and the smallest eigenvalue of the Hessian, with their residuals.
        trace: Of the Hessian, with its standard error.
        sharpness: L(θ + ρ ∇L/‖∇L‖) - L(θ).
        rho: ρ.
    """

    examples: int
    parameters: int
    loss: float
    gradient_norm: float
    ends: Eigenpairs
    trace: Estimate
    sharpness: Sharpness
    rho: float

    def rows(self) -> list[tuple[str, str, str]]:
        """For each number: what it is, its value, and what its error is."""
        ends = [
            (f"{value:.4g}", f"residual {residual:.1g}" + ("" if self.ends.converged else ", not converged"))
            for value, residual in zip(self.ends.values.tolist(), self.ends.residuals.tolist(), strict=True)
        ]
        spread = "exact" if self.trace.stderr == 0 else f"± {self.trace.stderr:.2g} ({self.trace.draws} draws)"
        return [
            ("loss", f"{self.loss:.4g}", "exact on these examples"),
            ("gradient norm", f"{self.gradient_norm:.4g}", "exact on these examples"),
            ("largest eigenvalue", *ends[0]),
            ("smallest eigenvalue", *ends[-1]),
            ("trace", f"{self.trace.value:.4g}", spread + ("" if self.trace.converged else ", not converged")),
            (f"ascent sharpness, ρ = {self.rho:g}", f"{self.sharpness.value:.4g}", "exact on these examples"),
        ]

    def __repr__(self) -> str:
        lines = [f"{name:<30}{value:>12}  {error}" for name, value, error in self.rows()]
        return "\n".join([f"{self.examples:,} examples, {self.parameters:,} parameters", *lines])

    def _repr_html_(self) -> str:
        """A table, for a notebook."""
        caption = f"{self.examples:,} examples, {self.parameters:,} parameters"
        return html_table(self.rows(), head=("", "value", "error"), caption=caption)


def summary(
    model: torch.nn.Module,
    loss: Callable[[Any, Any], Tensor],
    data: Any,
    *,
    rho: float = 0.05,
    parameters: str | Iterable[str] | None = None,
    mode: Mode = "eval",
    weight: Callable[[Any, Any], float] | None = None,
    progress: Progress = False,
    generator: Generator | None = None,
) -> Summary:
    """Loss, gradient, both ends of the Hessian's spectrum, its trace, and sharpness, of a model on data.

    Eigenvalues have a residual of at most a hundredth of the largest modulus and a tenth of their own, the trace a
    standard error of at most a twentieth of its value (or 50 draws are spent); for more digits use `top_eigenpairs` and
    `trace`. Errors are those of the computation: the data are taken as all there are. It takes some tens of Hessian
    products, each of about two gradients on all the data.

    Args:
        model: Any module; it stays as it was.
        loss: Mean loss of one batch, called as loss(outputs, targets).
        data: A pair (inputs, targets), a list of batches or a DataLoader; see `EmpiricalRisk.from_model`.
        rho: Length of the step up the gradient, in units of the parameters.
        parameters: What to differentiate by; None means all that require a gradient.
        mode: How normalisation and dropout layers behave.
        weight: Weight of a batch; None means its number of examples.
        progress: A function that is called with each `Status`, such as `analysis.shown()`.
        generator: Draws start vectors and probes; None means a fresh one from seed 0.

    Returns:
        The numbers; in a notebook a table. What did not converge says so, with a RuntimeWarning.

    Raises:
        ValueError: If an argument is out of range, or a number is not finite.
        MemoryError: If the products do not fit in what is free.
    """
    check_arguments(rho=rho)
    step = AscentStep(rho)
    risk = EmpiricalRisk.from_model(model, loss, data, parameters=parameters, mode=mode, weight=weight)
    risk = risk.settled()
    generator = source_of(generator, risk.device)
    value, gradient = risk.value_and_gradient()
    rise = ascent_sharpness(risk, step, known=(value, gradient), generator=generator)
    hessian = Hessian(risk)
    p = hessian.shape[0]
    ends = top_eigenpairs(
        hessian, which="both" if p > 1 else "largest", tol=TOP, own_tol=OWN, vectors=False, keep=True,
        progress=progress, generator=generator,
    )  # fmt: skip
    whole = trace(hessian, draws=DRAWS, tol=TRACE, known=ends.space, progress=progress, generator=generator)
    return Summary(risk.n, p, value, float(norm(gradient)), ends, whole, rise, rho)
