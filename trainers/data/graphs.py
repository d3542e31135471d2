"""Graphs: one whose nodes are the examples, or many that are an example each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from trainers.data.sources.source import Source, bounds
from trainers.runs.digests import digest_of

MASKS = ("train", "validation", "test")
THEIRS = {"train": "train_mask", "validation": "val_mask", "test": "test_mask"}  # of torch_geometric


@dataclass(frozen=True, eq=False)
class Graph:
    """One graph of N nodes, in which information goes from the source of an edge to its target.

    Attributes:
        x: Features of the nodes, (N, d), floating point.
        edges: Source and target of each of E edges, (2, E), int64; an undirected edge is there both ways.
        y: What is to be told: of each node, (N,), or of the whole graph.
        weight: Of the edges, (E,), above 0; None is 1 each.
        masks: Which nodes are in "train", "validation" and "test", (N,) each; empty where a seed is to split them.

    Raises:
        ValueError: If shapes or types do not fit, an edge names no node, or masks overlap or are empty.
    """

    x: Float[Tensor, "N d"]
    edges: Int[Tensor, "2 E"]
    y: Tensor
    weight: Float[Tensor, " E"] | None = None
    masks: Mapping[str, Bool[Tensor, " N"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.x) if self.x.ndim == 2 else 0
        if not n or not self.x.is_floating_point() or not bool(torch.isfinite(self.x).all()):
            raise ValueError(
                f"`x` must be finite floating-point features, (nodes, features), got {_said(self.x)}"
                + (": some are NaN or infinite." if n and self.x.is_floating_point() else ".")
            )
        if self.edges.ndim != 2 or len(self.edges) != 2 or self.edges.dtype != torch.int64:
            raise ValueError(f"`edge_index` must be of int64 and shape (2, edges), got {_said(self.edges)}.")
        if not self.edges.numel():
            raise ValueError("`edge_index` has no edge: without one take a model that needs no graph, such as 'mlp'.")
        lost = ((self.edges < 0) | (self.edges >= n)).any(0).nonzero()[:, 0].tolist()
        if lost:
            edge = self.edges[:, lost[0]].tolist()
            raise ValueError(
                f"`edge_index`: {len(lost)} edges name nodes that are not there, such as edge {lost[0]}, {edge}, where "
                f"nodes go from 0 to {n - 1}: leave them out, or number the nodes from 0."
            )
        if self.weight is not None and not (
            self.weight.shape == self.edges.shape[1:] and bool((self.weight > 0).all() & self.weight.isfinite().all())
        ):
            raise ValueError(f"`edge_weight` must be one finite number above 0 an edge, got {_said(self.weight)}.")
        seen = torch.zeros(n, dtype=torch.int64)
        for part, mask in self.masks.items():
            if part not in MASKS or mask.dtype != torch.bool or mask.shape != (n,):
                raise ValueError(
                    f"`masks` must be one bool a node under {', '.join(MASKS)}, got {part!r} with {_said(mask)}: of "
                    f"several splits choose one column."
                )
            if not bool(mask.any()):
                raise ValueError(f"`masks`: that of {part!r} is empty: leave it out, or choose some nodes.")
            seen += mask
        if self.masks and "train" not in self.masks:
            raise ValueError(f"`masks` must name the nodes to train on, 'train', got {sorted(self.masks)}.")
        if int(seen.max()) > 1:
            raise ValueError(f"`masks` overlap, such as at node {int(seen.argmax())}: each node goes in one part.")

    def described(self) -> dict[str, Any]:
        """Its sizes and a digest of its content, in types that JSON knows."""
        parts = [self.x, self.edges, *([] if self.weight is None else [self.weight])]
        return {"nodes": len(self.x), "edges": self.edges.shape[1], "digest": digest_of(parts)}


def as_graph(value: Any, where: str) -> Graph | None:
    """A graph in what a user's function returned; None where it is something else.

    Args:
        value: A `Graph`; an object with `x` and `edge_index`, as torch_geometric's `Data`, and with `y` and perhaps
            `edge_weight`, `train_mask`, `val_mask` and `test_mask`; or a tuple of tensors (x, edge_index, y), with a
            dict of masks as a fourth.
        where: What it is called, for messages.

    Raises:
        ValueError: If it is a graph that does not fit.
    """
    if isinstance(value, Graph):
        return value
    masks: Mapping[str, Any] = {}
    weight = None
    if hasattr(value, "edge_index") and hasattr(value, "x"):
        x, edges, y, weight = value.x, value.edge_index, getattr(value, "y", None), getattr(value, "edge_weight", None)
        masks = {part: mask for part, key in THEIRS.items() if (mask := getattr(value, key, None)) is not None}
    elif isinstance(value, tuple | list) and len(value) in (3, 4) and all(_is_tensor(part) for part in value[:3]):
        x, edges, y = value[:3]
        masks = value[3] if len(value) == 4 else {}
        if not isinstance(masks, Mapping):
            raise ValueError(f"{where}: the fourth of a graph must be a dict of masks, got {type(masks).__name__}.")
    else:
        return None
    tensors = {"x": x, "edge_index": edges, "y": y}
    missing = [key for key, part in tensors.items() if not _is_tensor(part)]
    if missing:
        raise ValueError(f"{where}: the graph's `{missing[0]}` must be a tensor, got {type(tensors[missing[0]])}.")
    x, edges, y = (torch.as_tensor(part) for part in tensors.values())
    try:
        return Graph(
            x,
            edges if edges.is_floating_point() else edges.long(),
            y,
            None if weight is None else torch.as_tensor(weight).to(x.dtype).reshape(-1),
            {part: torch.as_tensor(mask) for part, mask in masks.items()},
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def of_nodes(graph: Graph, where: str, **more: Any) -> Source:
    """The nodes of a graph as examples: an input is the number of a node, int64 (1,), and the graph goes to the model.

    Args:
        graph: With labels (N,) or (N, 1).
        where: What it is called, for messages.
        more: Further fields of the source.

    Raises:
        ValueError: If it has no label for each node that is an example.
    """
    y = graph.y.squeeze(1) if graph.y.ndim == 2 and graph.y.shape[1] == 1 else graph.y
    if y.is_floating_point() or y.ndim != 1 or len(y) != len(graph.x):
        raise ValueError(
            f"{where}: `y` must be a label, a whole number from 0, for each of {len(graph.x)} nodes, got {_said(y)}."
        )
    parts = {part: graph.masks[part].nonzero()[:, 0] for part in MASKS if part in graph.masks}
    chosen = torch.cat([*parts.values()]) if parts else torch.arange(len(y))
    labels = y[chosen].long()
    if int(labels.min()) < 0:
        raise ValueError(
            f"{where}: node {int(chosen[labels.argmin()])} has label {int(labels.min())}, and labels go from 0: leave "
            f"nodes without one out of the masks."
        )
    sizes = {part: len(index) for part, index in parts.items()} or {"train": len(labels)}
    known = {"classes": int(labels.max()) + 1, **bounds(sizes), "origin": {"graph": graph.described()}}
    return Source(inputs=chosen[:, None], y=labels, images=False, graph=graph, **{**known, **more})


def packed(graphs: Sequence[Graph], where: str) -> Source:
    """Graphs as examples, in tensors of one shape: batches of them are dense, as suits graphs of tens of nodes.

    An input is (M, d + M + 1) for the largest number M of nodes: features, then the matrix A with A[i, j] the weight of
    the edges from j to i, then 1 where there is a node; 0 elsewhere.

    Args:
        graphs: With one target each.
        where: What they are called, for messages.

    Raises:
        ValueError: If numbers of features or shapes of targets differ.
    """
    most, d = max(len(g.x) for g in graphs), graphs[0].x.shape[1]
    targets = [g.y.reshape(-1) for g in graphs]
    for i, (graph, y) in enumerate(zip(graphs, targets, strict=True)):
        if graph.x.shape[1] != d or len(y) != len(targets[0]) or graph.masks:
            raise ValueError(
                f"{where}: graph {i} has {graph.x.shape[1]} features a node, {len(y)} targets and {len(graph.masks)} "
                f"masks, and the first {d} and {len(targets[0])}: let all have as many, and no masks."
            )
    x = torch.zeros(len(graphs), most, d + most + 1)
    for row, graph in zip(x, graphs, strict=True):
        n, (sources, ends) = len(graph.x), graph.edges
        row[:n, :d], row[:n, -1] = graph.x, 1
        weight = torch.ones(len(ends)) if graph.weight is None else graph.weight.float()
        row[:, d : d + most].index_put_((ends, sources), weight, accumulate=True)
    y = torch.stack(targets)
    labels = not y.is_floating_point() and y.shape[1] == 1
    y = y[:, 0].long() if labels else y
    said = {"graphs": len(graphs), "most_nodes": most, "features": d}
    classes = max(1, int(y.max()) + 1) if labels else y.shape[1]
    return Source(
        inputs=x, y=y, classes=classes, **bounds({"train": len(y)}), images=False, shared=False, origin={"graphs": said}
    )


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (hasattr(value, "__array__") and hasattr(value, "shape"))


def _said(t: Tensor) -> str:
    return f"{t.dtype} of shape {tuple(t.shape)}"
