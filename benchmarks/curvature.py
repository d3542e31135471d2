"""Curvature against the peers: time and memory of products, eigenvalues, traces, and who is right.

Same model, data and accuracy for all, one process and one thread; a peer that is not installed has a row that says so.
"""

import math
import statistics
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch


import landscape
from benchmarks import peak
from benchmarks.memory import resident
from benchmarks.pairing import mirrored, quartiles, ratio
from benchmarks.peers import (
    PEERS, Answer, DoubleBackward, HessianEigenthings, HessianEigenthings30, Landscape, Library, PyHessian, hutchinson,
    usable,
)  # fmt: skip
from benchmarks.problems import SUBJECTS, flat, oracles, small_attention
from benchmarks.subjects import Subject, dense_hessian, small_tanh_network

Row = dict[str, Any]
TOL = 1e-3  # relative residual of an eigenvalue
TRACE_TOL = 0.02  # relative standard error of a trace
GRADIENT = "one gradient"


def missing() -> Iterator[Row]:
    """A row for each peer: its release, or why it is not compared."""
    reasons = usable()[1]
    for peer in PEERS:
        reason = reasons.get(peer.name)
        row = {"what": f"{peer.package} {'' if reason else peer.version()}".strip(), "value": None}
        yield {**row, "unit": "missing, not compared", "note": reason} if reason else {
            **row, "unit": "present", "note": f"work-arounds: {peer.workaround}"
        }


def paths() -> list[str]:
    """The product paths that `landscape.Hessian` can be told to take."""
    return [p for p in typing.get_args(typing.get_type_hints(landscape.Hessian.__init__)["path"]) if p != "auto"]


def products(quick: bool) -> Iterator[Row]:
    """One Hessian product, from the second on, of every library and every path of ours, in units of one gradient."""
    peers = usable()[0]
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
                    yield _absent(f"product / {GRADIENT}, {subject.name}: landscape, path {path}", error)
        timed = [peer for peer in peers if not (large and peer is HessianEigenthings)]  # which is a double backward
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


def peaks(quick: bool) -> Iterator[Row]:
    """Peak memory of a product above what is resident before it, each in a fresh process."""
    for key in ("vit",) if quick else ("resnet-large", "vit"):
        name = SUBJECTS[key](quick, untrained=True).name
        found: dict[str, dict[str, float]] = {}
        for what in list(peak.MAKERS)[:3] if quick else peak.MAKERS:
            if what in peak.NEEDS and not peak.NEEDS[what].available():
                continue
            found[what] = peak.measured(key, what, quick=quick)
            yield {
                "what": f"peak memory of a product, {name}: {what}", "value": found[what]["peak"], "unit": "MiB",
                "held": found[what]["held"],
            }  # fmt: skip
        base = found["double backward afresh"]["peak"]
        ours = found["landscape, path afresh"]["peak"]
        yield {
            "what": f"peak memory of a product: landscape, path afresh / double backward afresh, {name}",
            "value": ours / base if base else math.nan, "unit": "ratio", "limit": 1.1,
        }  # fmt: skip
        yield {"what": f"memory held between products by path kept, {name}", "value": found["landscape, path kept"]["held"],
               "unit": "MiB"}  # fmt: skip


def tops(quick: bool) -> Iterator[Row]:
    """Time of the largest eigenvalue to tolerance 1e-3, models and graphs made anew, and what was returned."""
    plan = {"mlp": (4, 1), "resnet": (3, 1), "vit": (3, 1)}
    peers = usable()[0]
    libraries: list[type[Library]] = [Landscape, *peers]
    if HessianEigenthings in peers:
        libraries.append(HessianEigenthings30)
    limits = {"PyHessian": 0.6, "curvlinops + eigsh": 0.25}
    for key, (rounds, inner) in ({"mlp": (1, 1)} if quick else plan).items():
        subject = SUBJECTS[key](quick)
        answers: dict[str, list[Answer]] = {library.name: [] for library in libraries}
        steps = {library.name: _asking(library, subject, answers[library.name]) for library in libraries}
        seconds = mirrored(steps, rounds=rounds, inner=inner)
        judge = DoubleBackward(subject)
        for name, given in answers.items():
            residuals = [_residual(judge, a) for a in given]
            yield {
                "what": f"largest eigenvalue, {subject.name}: {name}", **quartiles(seconds[name]), "unit": "s",
                "returned": _span([a.value for a in given]), "residual": _span(residuals),
                "products": _span([a.products for a in given if a.products is not None]),
                "claims": f"{sum(a.claim is True for a in given)} of {len(given)}" if given[0].claim is not None else "none",
            }  # fmt: skip
        for name in answers:
            if name != "landscape":
                yield {
                    "what": f"largest eigenvalue: landscape / {name}, {subject.name}", **ratio(seconds, "landscape", name),
                    "unit": "ratio", "limit": limits.get(name),
                }  # fmt: skip


def errors(quick: bool) -> Iterator[Row]:
    """Where the answer is known: worst relative error over random starts, and what was returned then."""
    peers = usable()[0]
    libraries: list[type[Library]] = [Landscape, *peers]
    if HessianEigenthings in peers:
        libraries.append(HessianEigenthings30)
    starts = 1 if quick else 10
    for subject, k in oracles():
        truth = list(subject.truth[:k])
        for library in libraries:
            rows = [library(subject).top_eigenvalue(TOL, seed=seed, k=k) for seed in range(starts)]
            off = [max(abs(a.value - t) / abs(t) for a, t in zip(row, truth, strict=True)) for row in rows]
            worst = rows[off.index(max(off))]
            at = max(range(k), key=lambda i: abs(worst[i].value - truth[i]))
            told = [row[0].claim for row in rows]
            yield {
                "what": f"worst error of {'the largest eigenvalue' if k == 1 else f'the {k} largest'}, {subject.name}: "
                        f"{library.name}",
                "value": max(off), "unit": "relative", "limit": TOL if library is Landscape else None,
                "returned": worst[at].value, "truth": truth[at],
                "wrong": f"{sum(e > 0.01 for e in off)} of {starts} by more than 1 %",
                "claims": "none" if told[0] is None else f"{sum(c is True for c in told)} of {starts} converged",
            }  # fmt: skip
    yield from _trace_errors(small_tanh_network("tanh MLP 2-3-2, one batch of 5"), libraries, starts)
    yield from _kernels(libraries)


def traces(quick: bool) -> Iterator[Row]:
    """Products until the trace has a standard error of 2 %: ours over Hutchinson's, means over seeds."""
    seeds = range(1 if quick else 5)
    plan: Sequence[tuple[Subject, float]] = [
        (flat(), 1.1),
        *((SUBJECTS[key](quick), 0.5) for key in (("mlp",) if quick else ("mlp", "resnet-narrow"))),
    ]
    for subject, limit in plan:
        ours = [Landscape(subject).trace(TRACE_TOL, seed=seed) for seed in seeds]
        plain = [hutchinson(subject, TRACE_TOL, seed=seed) for seed in seeds]
        truth = math.fsum(subject.truth) if subject.truth else None
        for name, given in (("landscape", ours), ("Hutchinson", plain)):
            yield {
                "what": f"products to 2 % of the trace, {subject.name}: {name}",
                **quartiles([float(a.products or 0) for a in given]), "unit": "products",
                "returned": _span([a.value for a in given]), "stderr": _span([a.stderr for a in given if a.stderr is not None]),
                "truth": truth, "claims": f"{sum(a.claim is True for a in given)} of {len(given)} converged",
            }  # fmt: skip
        spent = [math.fsum(float(a.products or 0) for a in given) for given in (ours, plain)]
        yield {
            "what": f"products to 2 % of the trace: landscape / Hutchinson, {subject.name}", "value": spent[0] / spent[1],
            "unit": "ratio", "limit": limit,
        }  # fmt: skip
        mean = math.fsum(a.value for a in plain) / len(plain) if truth is None else truth
        error = math.sqrt(statistics.fmean((a.value / mean - 1) ** 2 for a in ours))
        against = "the truth" if truth is not None else "Hutchinson's mean, itself known to 2 % / root of the seeds"
        yield {"what": f"root mean square error of our trace, {subject.name}", "value": error, "unit": "relative",
               "note": f"against {against}"}  # fmt: skip


def growth(quick: bool) -> Iterator[Row]:
    """Growth of resident memory over 200 products, after 20 to warm up."""
    subject = SUBJECTS["mlp"](quick, untrained=True)
    v = subject.vector()
    many = 20 if quick else 200
    makers: dict[str, Callable[[], Library]] = {
        f"landscape, path {path}": lambda path=path: Landscape(subject, path=path)  # type: ignore[misc]
        for path in paths()
    }
    makers |= {peer.name.removesuffix(" + eigsh"): lambda peer=peer: peer(subject) for peer in usable()[0]}  # type: ignore[misc]
    for name, make in makers.items():
        try:
            step = make().stepper(v)
        except (ValueError, RuntimeError, NotImplementedError) as error:
            yield _absent(f"growth of memory, {name}", error)
            continue
        for _ in range(20):
            step()
        before = resident()
        for _ in range(many):
            step()
        yield {
            "what": f"resident memory after {many} products less that before, {subject.name}: {name}",
            "value": resident() - before, "unit": "MiB", "limit": 4.0 if name.startswith("landscape") else None,
        }  # fmt: skip


GROUPS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "errors": errors, "products": products, "tops": tops, "traces": traces, "peaks": peaks, "growth": growth,
}  # fmt: skip


def run(*, quick: bool = False, groups: Sequence[str] = ()) -> Iterator[Row]:
    """All rows, or those of some groups; `quick` has small sizes and shows only that everything runs."""
    torch.set_num_threads(1)
    yield from missing()
    for name in groups or GROUPS:
        for row in GROUPS[name](quick):
            bare = quick and name != "errors"  # limits are for the full sizes; what is right is right at any
            yield {**row, "group": name} | ({"limit": None} if bare else {})


def _asking(library: type[Library], subject: Subject, answers: list[Answer]) -> Callable[[], None]:
    """A function that makes the library anew and asks for the largest eigenvalue, from another start each time."""

    def ask() -> None:
        answers.extend(library(subject).top_eigenvalue(TOL, seed=len(answers)))

    return ask


def _residual(judge: DoubleBackward, answer: Answer) -> float:
    """‖H v - λ v‖ / |λ| of what was returned, by an independent product."""
    assert answer.vector is not None
    v = answer.vector / torch.linalg.vector_norm(answer.vector)
    gap = judge.product(v) - answer.value * v
    return float(torch.linalg.vector_norm(gap)) / abs(answer.value)


def _trace_errors(subject: Subject, libraries: Sequence[type[Library]], starts: int) -> Iterator[Row]:
    """The trace of an indefinite Hessian, whose value is near zero against its spread."""
    truth = float(dense_hessian(subject).trace())
    for library in libraries:
        if library is HessianEigenthings30:
            continue
        given = [library(subject).trace(TRACE_TOL, seed=seed) for seed in range(starts)]
        worst = max(given, key=lambda a: abs(a.value - truth))
        yield {
            "what": f"worst error of the trace, {subject.name}: {library.name.removesuffix(' + eigsh')}",
            "value": abs(worst.value - truth) / abs(truth), "unit": "relative", "returned": worst.value, "truth": truth,
            "products": _span([a.products for a in given if a.products is not None]),
            "limit": 4 * TRACE_TOL if library is Landscape else None,
        }  # fmt: skip


def _kernels(libraries: Sequence[type[Library]]) -> Iterator[Row]:
    """Whether a product through attention works without help in the choice of its kernel."""
    helped = small_attention()
    alone = replace(helped, attention=False)
    v, expected = helped.vector(), DoubleBackward(helped).product(helped.vector())
    for library in libraries:
        if library is HessianEigenthings30:
            continue
        row: Row = {
            "what": f"fails on attention with torch's own choice of kernel: {library.name.removesuffix(' + eigsh')}",
            "value": 0, "unit": "yes is 1", "limit": 0 if library is Landscape else None,
        }  # fmt: skip
        try:
            torch.testing.assert_close(library(alone).product(v), expected, rtol=1e-3, atol=1e-5)
        except (RuntimeError, NotImplementedError, AssertionError) as error:
            row |= {"value": 1, "note": f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"}
        yield row


def _absent(what: str, error: Exception) -> Row:
    return {"what": what, "value": None, "unit": "not measured", "note": f"{type(error).__name__}: {error}"}


def _in_ms(row: dict[str, float]) -> dict[str, float]:
    return {key: 1e3 * value for key, value in row.items()}


def _span(values: Sequence[float | int]) -> str:
    """The smallest and the largest, in five digits."""
    if not values:
        return "not told"
    low, high = f"{min(values):.5g}", f"{max(values):.5g}"
    return low if low == high else f"{low} to {high}"
