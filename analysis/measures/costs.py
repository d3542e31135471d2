"""What each measure takes: passes of a few kinds, in examples, as its options say.

Iterations stop when they are good enough, and searches when they have found; the numbers of their passes are those seen
on networks like the default study's and on a ResNet-20. Sums are within a factor of two.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from analysis.measures.catalogue.curvature import FEWEST_PROBES
from analysis.measures.catalogue.forgetting import OTHERS
from analysis.measures.measure import Measure
from analysis.measures.subject import Subject

Kind = Literal["reading", "forward", "gradient", "product", "gauss-newton", "single", "blocks"]
Options = Mapping[str, Any]

EIGENPAIR, BOTH_ENDS, ADAPTIVE = 20, 32, 60  # products until an end of the spectrum, both ends, are known
LEVELS = 12  # noise levels that a bisection tries
RADII = 15  # boxes that a search of the worst case tries
TRIED = 7  # lengths until a batch's loss has risen by the amount asked for
SLOPES = 3  # gradients of a batch that providers share


@dataclass(frozen=True)
class Sizes:
    """Numbers of examples.

    Attributes:
        sample: Training examples that the measure goes through.
        train: All training examples.
        held_out: Validation examples.
        test: Test examples.
        shifted: Of all shifted sets together.
        drawn: Whether the sample is a draw.
        own: Whether the run has a perturbation of its own.
    """

    sample: int
    train: int
    held_out: int
    test: int
    shifted: int
    drawn: bool = False
    own: bool = False

    @classmethod
    def of(cls, subject: Subject) -> "Sizes":
        """Those of a checkpoint's data; shifted sets are taken to be as large as the test set."""
        data, own = subject.data, subject.own is not None
        drawn = subject.drawn
        test = len(data.test)
        return cls(
            drawn or subject.n, subject.n, len(data.validation), test, test * len(data.ood), drawn is not None, own
        )


@dataclass(frozen=True)
class Work:
    """Passes of one kind.

    Attributes:
        kind: "reading" is what is made of outputs that are there, "forward" a pass without gradient, "single" takes the
            gradients of single examples, "blocks" each block's gradient and its loss after a step of its own.
        examples: How many go through.
        once: Names what several measures share, of which the first pays; empty for what is a measure's own.
    """

    kind: Kind
    examples: float
    once: str = ""


Cost = Callable[[Sizes, Options], Iterator[Work]]


def work_of(key: str, entry: Measure, sizes: Sizes, options: Options) -> list[Work]:
    """The passes of a measure; of one that is not in the catalogue, the gradients that its entry tells."""
    if key in COSTS:
        return list(COSTS[key](sizes, options))
    return [Work("gradient", entry.gradients * sizes.sample)]


def _nothing(_: Sizes, __: Options) -> Iterator[Work]:
    return iter(())


def _outputs(sizes: Sizes, _: Options) -> Iterator[Work]:
    yield Work("forward", sizes.train, "training outputs")


def _targets(sizes: Sizes, options: Options) -> Iterator[Work]:
    yield from _baselines(sizes, options)
    yield Work("forward", sizes.test + sizes.shifted)
    yield Work("reading", sizes.train + sizes.test + sizes.shifted)


def _baselines(sizes: Sizes, options: Options) -> Iterator[Work]:
    yield from _outputs(sizes, options)
    yield from _held_out(sizes, options)


def _held_out(sizes: Sizes, _: Options) -> Iterator[Work]:
    yield Work("forward", sizes.held_out, "outputs on validation")


def _test(sizes: Sizes, _: Options) -> Iterator[Work]:
    yield Work("forward", sizes.test)


def _gradient(sizes: Sizes, _: Options) -> Iterator[Work]:
    yield Work("gradient", sizes.sample, "gradient")


def _singles(sizes: Sizes, _: Options) -> Iterator[Work]:
    yield Work("single", sizes.sample, "gradients of single examples")


def _steps(sizes: Sizes, options: Options) -> Iterator[Work]:
    yield from _gradient(sizes, options)
    yield Work("forward", sizes.sample * len(options["rho"]))


def _own_steps(sizes: Sizes, options: Options) -> Iterator[Work]:
    for kind in ("gradient", "forward"):
        yield Work(kind, sizes.sample * len(options["rho"]))


def _blocks(sizes: Sizes, options: Options) -> Iterator[Work]:
    for m in options["m"]:
        whole = m is None or m >= sizes.sample
        if whole:
            yield Work("gradient", sizes.sample, "gradient")
            yield Work("forward", sizes.sample)
            continue
        k = min(sizes.sample // m, options.get("blocks") or sizes.sample) * m
        yield Work("blocks", k)
        for kind in ("gradient", "forward") if "blocks" in options else ():  # of the same examples together
            yield Work(kind, k)


def _worst(sizes: Sizes, options: Options) -> Iterator[Work]:
    size = min(options["examples"] or sizes.sample, sizes.sample)
    yield Work("gradient", size * len(options["rho"]) * (1 + options["steps"]) * (1 + options["restarts"]))


def _box(sizes: Sizes, options: Options) -> Iterator[Work]:
    draws = options["draws"] if options["dimension"] else 1
    yield Work("gradient", sizes.sample * len(options["eps"]) * (1 + options["steps"]) * draws)


def _noise(sizes: Sizes, options: Options) -> Iterator[Work]:
    yield Work("forward", sizes.sample * len(options["rho"]) * (1 + 2 * options["draws"]))


def _radius(sizes: Sizes, options: Options) -> Iterator[Work]:
    yield Work("forward", 2 * sizes.sample * LEVELS * options["draws"], "noise radius")


def _worst_radius(sizes: Sizes, options: Options) -> Iterator[Work]:
    yield Work("gradient", 2 * sizes.sample * RADII * options["steps"])


def _products(count: Callable[[Options], float], kind: Kind = "product") -> Cost:
    def cost(sizes: Sizes, options: Options) -> Iterator[Work]:
        yield Work(kind, sizes.sample * count(options))

    return cost


def _ends(sizes: Sizes, _: Options) -> Iterator[Work]:
    yield Work("product", sizes.sample * BOTH_ENDS, "both ends")


def _trace(sizes: Sizes, options: Options) -> Iterator[Work]:
    draws = options["draws"]
    if sizes.drawn:
        yield from _ends(sizes, options)
        draws = min(draws, max(FEWEST_PROBES, draws - BOTH_ENDS))
    yield Work("product", sizes.sample * draws)


def _flatness(sizes: Sizes, _: Options) -> Iterator[Work]:
    yield Work("forward", 2 * sizes.sample)


def _twice(kind: Kind) -> Cost:
    return lambda sizes, _: iter([Work(kind, 2 * sizes.sample)])


def _gradient_noise(sizes: Sizes, options: Options) -> Iterator[Work]:
    yield from _singles(sizes, options)
    yield Work("single", sizes.sample)


def _perturbed(seen: Callable[[Sizes], float]) -> Cost:
    """Every batch with each perturbation, evaluated on what is seen of it."""

    def cost(sizes: Sizes, options: Options) -> Iterator[Work]:
        for size in options["m"] if isinstance(options["m"], tuple) else (options["m"],):
            m = sizes.sample if size is None else min(size, sizes.sample)
            batches = options["batches"] or (20 if m > 16 else 50)
            moving = [p for p in options["providers"] if p != "zero"]
            cells = len(moving) * sum(radius != "own" or sizes.own for radius in options["radii"])
            for kind in ("forward", "reading"):
                yield Work(kind, batches * cells * (seen(sizes) + (m if sizes.drawn else 0)))
            if "iso-loss" in options["radii"]:
                yield Work("forward", batches * len(moving) * TRIED * m)
            yield Work("gradient", batches * SLOPES * m)

    return cost


def _all(sizes: Sizes) -> float:
    return sizes.sample + sizes.held_out


def _some(sizes: Sizes) -> float:
    return (OTHERS if sizes.drawn else sizes.sample) + sizes.held_out


COSTS: dict[str, Cost] = {
    "targets": _targets,
    "reliability": _test,
    "baselines": _baselines,
    "hessian_eigenvalues": _ends,
    "hessian_trace": _trace,
    "adaptive_curvature": _products(lambda o: ADAPTIVE + o["draws"]),
    "gauss_newton": _products(lambda o: EIGENPAIR + o["draws"], "gauss-newton"),
    "empirical_fisher": _singles,
    "effective_dimension": _products(lambda o: o["runs"] * o["steps"], "gauss-newton"),
    "spectrum": _products(lambda o: o["runs"] * o["steps"]),
    "ascent_sharpness": _steps,
    "linf_ascent_sharpness": _steps,
    "adaptive_ascent_sharpness": _steps,
    "adaptive_linf_ascent_sharpness": _steps,
    "surrogate_gap": _own_steps,
    "m_sharpness": _blocks,
    "first_order_sharpness": _blocks,
    "worst_case_sharpness": _worst,
    "linf_worst_case_sharpness": _worst,
    "adaptive_worst_case_sharpness": _worst,
    "adaptive_linf_worst_case_sharpness": _worst,
    "normalised_worst_case_sharpness": _worst,
    "keskar": _box,
    "keskar_subspace": _box,
    "average_sharpness": _noise,
    "uniform_average_sharpness": _noise,
    "adaptive_average_sharpness": _noise,
    "noise_radius": _radius,
    "worst_case_radius": _worst_radius,
    "relative_flatness": _flatness,
    "relative_flatness_max": _flatness,
    "gradient_covariance": _singles,
    "gradient_quantiles": _singles,
    "gradient_signal": lambda sizes, _: iter([Work("single", sizes.sample)]),
    "fisher_rao": _singles,
    "true_fisher_rao": _twice("gradient"),
    "norms": _gradient,
    "weight_norms": _outputs,
    "spectral_norms_fft": _outputs,
    "path_norm": _outputs,
    "train_outputs": _outputs,
    "pacbayes": _radius,
    "worst_case_bounds": _worst_radius,
    "training_speed": _nothing,
    "gradient_noise": _gradient_noise,
    "example_forgetting": _nothing,
    "forgetting_counts": _nothing,
    "perturbed_forgetting": _perturbed(_some),
    "forgetting_distances": _perturbed(_some),
    "forgetting_of_bias": _perturbed(_some),
    "membership": _perturbed(_all),
    "feature_forgetting": _perturbed(lambda sizes: 2 * _all(sizes)),
    "spurious_forgetting": _perturbed(lambda sizes: sizes.sample + 3 * sizes.test),
    "output_bias": _held_out,
}
