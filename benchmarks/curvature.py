"""Curvature against the peers: time and memory of products, eigenvalues, traces, and who is right.

Same model, data and accuracy for all, one process and one thread; a peer that is not installed has a row that says so.
"""

from collections.abc import Callable, Iterator, Sequence

import torch

from benchmarks import costs, errors, peers, probes, speed
from benchmarks.table import Row

GROUPS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "errors": errors.errors,
    "products": speed.products,
    "tops": speed.tops,
    "traces": costs.traces,
    "peaks": costs.peaks,
    "growth": costs.growth,
    "probes": probes.probes,
}


def run(*, quick: bool = False, groups: Sequence[str] = ()) -> Iterator[Row]:
    """All rows, or those of some groups; `quick` has small sizes and shows only that everything runs."""
    torch.set_num_threads(1)
    yield from missing()
    for name in groups or GROUPS:
        for row in GROUPS[name](quick):
            bare = quick and name != "errors"  # limits are for the full sizes; what is right is right at any
            yield {**row, "group": name} | ({"limit": None} if bare else {})


def missing() -> Iterator[Row]:
    """A row for each peer: its release, or why it is not compared."""
    reasons = peers.usable()[1]
    for peer in peers.PEERS:
        reason = reasons.get(peer.name)
        row = {"what": f"{peer.package} {'' if reason else peer.version()}".strip(), "value": None}
        yield (
            {**row, "unit": "missing, not compared", "note": reason}
            if reason
            else {**row, "unit": "present", "note": f"work-arounds: {peer.workaround}"}
        )
