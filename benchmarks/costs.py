"""Products that a trace costs, and memory: the peak of a product, and growth over many."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from benchmarks import peak, peers
from benchmarks.library import Landscape, Library, claims, hutchinson, paths
from benchmarks.memory import resident
from benchmarks.pairing import quartiles
from benchmarks.problems import SUBJECTS, flat
from benchmarks.subjects import Subject
from benchmarks.table import Row, absent, span

TRACE_TOL = 0.02  # relative standard error of a trace


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
                "returned": span([a.value for a in given]),
                "stderr": span([a.stderr for a in given if a.stderr is not None]),
                "truth": truth, "claims": claims(given),
            }  # fmt: skip
        spent = [math.fsum(float(a.products or 0) for a in given) for given in (ours, plain)]
        yield {
            "what": f"products to 2 % of the trace: landscape / Hutchinson, {subject.name}",
            "value": spent[0] / spent[1], "unit": "ratio", "limit": limit,
        }  # fmt: skip
        mean = math.fsum(a.value for a in plain) / len(plain) if truth is None else truth
        error = math.sqrt(statistics.fmean((a.value / mean - 1) ** 2 for a in ours))
        against = "the truth" if truth is not None else "Hutchinson's mean, itself known to 2 % / root of the seeds"
        yield {
            "what": f"root mean square error of our trace, {subject.name}", "value": error, "unit": "relative",
            "note": f"against {against}",
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
            "value": ours / base if base else None, "unit": "ratio", "limit": 1.1,
        }  # fmt: skip
        yield {
            "what": f"memory held between products by path kept, {name}", "unit": "MiB",
            "value": found["landscape, path kept"]["held"],
        }  # fmt: skip


def growth(quick: bool) -> Iterator[Row]:
    """Growth of resident memory over 200 products, after 20 to warm up."""
    subject = SUBJECTS["mlp"](quick, untrained=True)
    v = subject.vector()
    many = 20 if quick else 200
    makers: dict[str, Callable[[], Library]] = {
        f"landscape, path {path}": partial(Landscape, subject, path=path) for path in paths()
    }
    makers |= {peer.name.removesuffix(" + eigsh"): partial(peer, subject) for peer in peers.usable()[0]}
    for name, make in makers.items():
        try:
            step = make().stepper(v)
        except (ValueError, RuntimeError, NotImplementedError) as error:
            yield absent(f"growth of memory, {name}", error)
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
