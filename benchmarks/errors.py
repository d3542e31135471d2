"""Who is right where the answer is known: eigenvalues, a trace, and attention's kernels."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from benchmarks.library import DoubleBackward, Landscape, Library, claims
from benchmarks.peers import HessianEigenthings30, compared
from benchmarks.problems import oracles, small_attention
from benchmarks.subjects import Subject, dense_hessian, small_tanh_network
from benchmarks.table import Row, span

TOL = 1e-3  # what each library is asked for, in its own sense
TRACE_TOL = 0.02


def errors(quick: bool) -> Iterator[Row]:
    """Where the answer is known: worst relative error over random starts, and what was returned then."""
    libraries = compared(variants=True)
    starts = 1 if quick else 10
    for subject, k in oracles():
        truth = list(subject.truth[:k])
        for library in libraries:
            rows = [library(subject).top_eigenvalue(TOL, seed=seed, k=k) for seed in range(starts)]
            off = [max(abs(a.value - t) / abs(t) for a, t in zip(row, truth, strict=True)) for row in rows]
            worst = rows[off.index(max(off))]
            at = max(range(k), key=lambda i: abs(worst[i].value - truth[i]))
            yield {
                "what": f"worst error of {'the largest eigenvalue' if k == 1 else f'the {k} largest'}, {subject.name}: "
                        f"{library.name}",
                "value": max(off), "unit": "relative", "limit": TOL if library is Landscape else None,
                "returned": worst[at].value, "truth": truth[at],
                "wrong": f"{sum(e > 0.01 for e in off)} of {starts} by more than 1 %",
                "claims": claims([row[0] for row in rows]),
            }  # fmt: skip
    yield from _trace_errors(small_tanh_network("tanh MLP 2-3-2, one batch of 5"), libraries, starts)
    yield from _kernels(libraries)


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
            "products": span([a.products for a in given if a.products is not None]),
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
