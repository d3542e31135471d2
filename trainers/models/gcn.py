"""Graph convolutional networks: of the nodes of one graph, and of whole graphs."""

import itertools
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from trainers.data.graphs import Graph


def gcn(
    shape: tuple[int, ...],
    classes: int,
    graph: Graph | None,
    *,
    width: Annotated[int, Field(ge=1)] = 64,
    depth: Annotated[int, Field(ge=1)] = 2,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> nn.Module:
    """Graph convolutions with ReLU between them; of whole graphs the mean over nodes and a linear layer follow.

    A layer maps H to D^-1/2 (A + I) D^-1/2 H W + b, with D the degrees of A + I. It is that of torch_geometric's
    `GCNConv`: existing loops stay as they are, one a node, and degrees are those of incoming edges.

    Args:
        shape: (1,), the number of a node, where there is a graph; else (M, d + M + 1), see `trainers.data.graphs`.
        classes: Number of logits.
        graph: Of the nodes; None for examples that are graphs.
        width: Units of a hidden layer.
        depth: Number of graph convolutions; of nodes the last gives the logits.
        dropout: Probability of dropping a hidden unit, after ReLU.

    Raises:
        ValueError: If inputs are no graphs.

    Source:
        Kipf and Welling (2017), "Semi-supervised classification with graph convolutional networks", ICLR, eq. 2.
    """
    if graph is not None:
        return NodeGCN(graph, [graph.x.shape[1], *[width] * (depth - 1), classes], dropout)
    features = shape[1] - shape[0] - 1 if len(shape) == 2 else 0
    if features < 1:
        raise ValueError(
            f"`model` 'gcn' takes nodes of a graph, or graphs, and an input of these data has shape {tuple(shape)}: "
            f"take `dataset` karate or csbm, or a function that returns graphs (docs/graphs.md), or another model."
        )
    return GraphGCN(features, [features, *[width] * depth], classes, dropout)


class NodeGCN(nn.Module):
    """Logits of nodes by their numbers (n, 1), from a graph that is not part of the weights."""

    x: Tensor
    sources: Tensor
    targets: Tensor
    weight: Tensor

    def __init__(self, graph: Graph, sizes: list[int], dropout: float) -> None:
        super().__init__()
        edges, weight = with_loops(graph)
        total = torch.zeros(len(graph.x), dtype=weight.dtype).index_add(0, edges[1], weight)
        root = total.rsqrt()
        for name, value in {
            "x": graph.x.to(torch.get_default_dtype()),
            "sources": edges[0],
            "targets": edges[1],
            "weight": (root[edges[0]] * weight * root[edges[1]]).to(torch.get_default_dtype()),
        }.items():
            self.register_buffer(name, value, persistent=False)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.dropout = nn.Dropout(dropout)

    def forward(self, nodes: Int[Tensor, "n 1"]) -> Float[Tensor, "n k"]:
        """Logits of these nodes; all are computed."""
        h = self.x
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            sent = nn.functional.linear(h, layer.weight)
            h = torch.zeros_like(sent).index_add(0, self.targets, sent[self.sources] * self.weight[:, None])
            h = h + layer.bias
            if i + 1 < len(self.layers):
                h = self.dropout(torch.relu(h))
        return h[nodes[:, 0]]


class GraphGCN(nn.Module):
    """Logits of graphs (n, M, d + M + 1), see `trainers.data.graphs.packed`."""

    def __init__(self, features: int, sizes: list[int], classes: int, dropout: float) -> None:
        super().__init__()
        self.features = features
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(sizes[-1], classes)

    def forward(self, graphs: Float[Tensor, "n M c"]) -> Float[Tensor, "n k"]:
        """Logits of these graphs."""
        h, edges, present = graphs.split([self.features, graphs.shape[1], 1], dim=-1)
        loops = torch.diag_embed(present[..., 0] * (edges.diagonal(dim1=-2, dim2=-1) == 0))
        edges = edges + loops
        root = torch.where(present > 0, edges.sum(-1, keepdim=True), 1.0).rsqrt()
        edges = root * edges * root.transpose(-1, -2)
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            h = self.dropout(torch.relu(edges @ nn.functional.linear(h, layer.weight) + layer.bias)) * present
        logits: Tensor = self.head(h.sum(1) / present.sum(1).clamp(min=1))
        return logits


def with_loops(graph: Graph) -> tuple[Int[Tensor, "2 e"], Float[Tensor, " e"]]:
    """Edges and their weights in float64, with one loop at each node: its own, or else one of weight 1."""
    weight = torch.ones(graph.edges.shape[1]) if graph.weight is None else graph.weight
    loops, of_loops = torch.arange(len(graph.x)), torch.ones(len(graph.x), dtype=torch.float64)
    own = graph.edges[0] == graph.edges[1]
    of_loops[graph.edges[0, own]] = weight[own].double()
    edges = torch.cat([graph.edges[:, ~own], loops.expand(2, -1)], dim=1)
    return edges, torch.cat([weight[~own].double(), of_loops])
