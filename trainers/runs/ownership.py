"""What of a run's state is whose, where several processes train it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from landscape.ranks import Ranks
from trainers.randomness import stream
from trainers.runs.checkpoint import model_state
from trainers.runs.records import Tally


def owned(state: Mapping[str, Any], ranks: Ranks, seed: int) -> Mapping[str, Any]:
    """The part of a snapshot that a process goes on from.

    Of a snapshot of another number of processes the leader takes over all sums; those that are new draw from a stream
    of their own.

    Args:
        state: What the leader wrote, with the parts of the others under "others".
        ranks: The processes.
        seed: Of the run.
    """
    owners: list[Mapping[str, Any]] = [state, *state.get("others", [])]
    own = owners[ranks.rank] if ranks.rank < len(owners) else owners[0]
    if len(owners) == ranks.count:
        return own
    tally = Tally()
    tally.load_state_dict(state["tally"])
    changed: dict[str, Any] = {"losses": None, "hits": None, "places": []}
    if ranks.leads:
        tally.join(owner["tally"] for owner in owners[1:])
        for key in ("losses", "hits"):
            parts = [owner[key] for owner in owners if owner[key] is not None]
            changed[key] = torch.cat(parts) if parts else None
        changed["places"] = [place for owner in owners for place in places_of(owner)]
    else:
        tally.empty()
    if ranks.rank >= len(owners):
        changed["random"] = stream(seed, f"training of process {ranks.rank} from step {state['step']}").get_state()
    return {**own, **changed, "tally": tally.state_dict()}


def places_of(own: Mapping[str, Any]) -> list[list[int]]:
    """Which stretches of the epoch's order the hits of a snapshot are of; an earlier version had the first."""
    hits = own["hits"]
    return [list(place) for place in own.get("places", [] if hits is None else [[0, len(hits)]])]


def buffer_state(model: nn.Module) -> dict[str, Tensor]:
    """The persistent buffers by name."""
    parameters = {name for name, _ in model.named_parameters()}
    return {name: t for name, t in model_state(model).items() if name not in parameters}
