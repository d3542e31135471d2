"""Time of Hessian products and of the largest eigenvalue, against the peers."""

import statistics
from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks import peers
from benchmarks.library import Answer, DoubleBackward, Landscape, Library, claims, paths
from benchmarks.pairing import mirrored, quartiles, ratio
from benchmarks.peers import HessianEigenthings, PyHessian, compared
from benchmarks.problems import SUBJECTS
from benchmarks.subjects import Subject
from benchmarks.table import Row, absent, span

Make = Callable[[Subject], Library]

TOL = 1e-3  # relative residual of an eigenvalue
TIGHTER = (1e-4, 1e-5, 1e-6, 1e-7)  # tolerances on the change of a value, until the residual is as asked
GRADIENT = "one gradient"


def products(quick: bool) -> Iterator[Row]:
    """One Hessian product, from the second on, of every library and every path of ours, in units of one gradient."""
    present = peers.usable()[0]
    plan = {"mlp": (5, 7), "resnet": (1, 7), "resnet-batches": (1, 3), "vit": (1, 5), "resnet-large": (1, 3)}
    for key, (inner, rounds) in ({"mlp": (2, 2), "vit": (1, 2)} if quick else plan).items():
        subject = SUBJECTS[key](quick)
        v = subject.vector()
        baseline, ours = DoubleBackward(subject), Landscape(subject)
        named = {"landscape": ours.stepper(v), GRADIENT: baseline.gradient, baseline.name: baseline.stepper(v)}
        large = key == "resnet-large"  # a product takes seconds: only what could be the fastest
        for path in ["kept"] if large else paths():
            if path != getattr(ours.hessian, "path", None):
                try:
                    named[f"landscape, path {path}"] = Landscape(subject, path=path).stepper(v)
                except (ValueError, RuntimeError, NotImplementedError) as error:
                    yield absent(f"product / {GRADIENT}, {subject.name}: landscape, path {path}", error)
        timed = [peer for peer in present if not (large and peer is HessianEigenthings)]  # which is a double backward
        named |= {peer.name.removesuffix(" + eigsh"): peer(subject).stepper(v) for peer in timed}
        seconds = mirrored(named, rounds=rounds, inner=inner)
        for name in named:
            if name == GRADIENT:
                yield {"what": f"{GRADIENT}, {subject.name}", **_in_ms(quartiles(seconds[name])), "unit": "ms"}
                continue
            label = f"{name}, chose path {getattr(ours.hessian, 'path', '?')}" if name == "landscape" else name
            yield {
                "what": f"product / {GRADIENT}, {subject.name}: {label}", **ratio(seconds, name, GRADIENT),
                "unit": "gradients",
            }  # fmt: skip
        yield {
            "what": f"product: landscape / {baseline.name}, {subject.name}",
            **ratio(seconds, "landscape", baseline.name), "unit": "ratio", "limit": 0.65,
        }  # fmt: skip
        rivals = [peer.name.removesuffix(" + eigsh") for peer in timed]
        if rivals:
            fastest = min(rivals, key=lambda name: statistics.median(seconds[name]))
            yield {
                "what": f"product: landscape / fastest peer ({fastest}), {subject.name}",
                **ratio(seconds, "landscape", fastest), "unit": "ratio", "limit": 1.0,
            }  # fmt: skip


def tops(quick: bool) -> Iterator[Row]:
    """Time of the largest eigenvalue to tolerance 1e-3, models and graphs made anew, and what was returned."""
    plan = {"mlp": 5, "resnet": 2, "vit-small": 2}
    limits = {"PyHessian": 0.6, "curvlinops + eigsh": 0.25}
    for key, rounds in ({"mlp": 1} if quick else plan).items():
        subject = SUBJECTS[key](quick)
        judge = DoubleBackward(subject)
        makers: dict[str, Make] = {library.name: library for library in compared(variants=key == "mlp")}
        if PyHessian in makers.values():
            tight = next(
                (t for t in TIGHTER if _residual(judge, _tight(subject, t).top_eigenvalue(TOL, seed=0)[0]) <= TOL),
                TIGHTER[-1],
            )
            makers[f"PyHessian, tol {tight:g} for a residual of {TOL:g}"] = partial(_tight, tol=tight)
        answers: dict[str, list[Answer]] = {name: [] for name in makers}
        steps = {name: _asking(make, subject, answers[name]) for name, make in makers.items()}
        seconds = mirrored(steps, rounds=rounds, warm_up=0)
        for name, given in answers.items():
            residuals = [_residual(judge, a) for a in given]
            yield {
                "what": f"largest eigenvalue, {subject.name}: {name}", **quartiles(seconds[name]), "unit": "s",
                "returned": span([a.value for a in given]), "residual": span(residuals),
                "products": span([a.products for a in given if a.products is not None]),
                "claims": claims(given),
            }  # fmt: skip
        for name in answers:
            if name != "landscape":
                yield {
                    "what": f"largest eigenvalue: landscape / {name}, {subject.name}",
                    **ratio(seconds, "landscape", name), "unit": "ratio", "limit": limits.get(name),
                }  # fmt: skip


def _tight(subject: Subject, tol: float) -> PyHessian:
    """PyHessian with a tolerance of its own, whatever it is asked for, and as many iterations as that takes."""
    return PyHessian(subject, fixed_tol=tol, iterations=1000)


def _asking(make: Make, subject: Subject, answers: list[Answer]) -> Callable[[], None]:
    """A function that makes the library anew and asks for the largest eigenvalue, from another start each time."""

    def ask() -> None:
        answers.extend(make(subject).top_eigenvalue(TOL, seed=len(answers)))

    return ask


def _residual(judge: DoubleBackward, answer: Answer) -> float:
    """‖H v - λ v‖ / |λ| of what was returned, by an independent product."""
    assert answer.vector is not None
    v = answer.vector / torch.linalg.vector_norm(answer.vector)
    gap = judge.product(v) - answer.value * v
    return float(torch.linalg.vector_norm(gap)) / abs(answer.value)


def _in_ms(row: dict[str, float]) -> dict[str, float]:
    return {key: 1e3 * value for key, value in row.items()}
