"""Graphs that are built in: Zachary's karate club, and one that is generated."""

import functools

import torch

from trainers.data.graphs import Graph, of_nodes
from trainers.data.sources.source import Source


@functools.cache
def karate() -> Source:
    """34 members of a karate club and 78 friendships; which of two sides each took when it split. Comes with networkx.

    Features are the unit vectors, as the club says nothing else of its members; edges are not weighted.

    Raises:
        ImportError: If networkx is not installed.

    Source:
        Zachary (1977), "An information flow model for conflict and fission in small groups".
    """
    try:
        import networkx
    except ImportError as error:
        raise ImportError("the data set 'karate' needs networkx: pip install 'landscape-lab[graphs]'.") from error
    club = networkx.karate_club_graph()
    pairs = torch.tensor(sorted(club.edges()), dtype=torch.int64).T
    y = torch.tensor([int(club.nodes[i]["club"] == "Officer") for i in range(len(club))])
    graph = Graph(torch.eye(len(club)), torch.cat([pairs, pairs.flip(0)], dim=1), y)
    return of_nodes(graph, "'karate'", names=("Mr. Hi", "Officer"))


@functools.cache
def csbm() -> Source:
    """The graph of `contextual_blocks` by its default arguments."""
    return of_nodes(contextual_blocks(), "'csbm'")


def contextual_blocks(
    nodes: int = 1000,
    classes: int = 4,
    features: int = 32,
    *,
    degree: float = 10.0,
    within: float = 0.6,
    signal: float = 1.0,
    seed: int = 0,
) -> Graph:
    """A contextual stochastic block model: classes show in who is linked to whom, and in the features, both with noise.

    Node i has class i mod K. Two nodes are linked independently, with probability p within a class and q between, where
    a node has `degree` links on average, a share `within` of them in its own class. Features are N(μ_y, I), with means
    μ_k drawn once from N(0, signal² I / d).

    Args:
        nodes: N, at least 2 K.
        classes: K.
        features: d.
        degree: Mean degree.
        within: Share of links inside a class, in [0, 1]; 1 / K tells nothing.
        signal: Expected length of a class's mean, in units of the deviation of the features.
        seed: Of all draws.

    Raises:
        ValueError: If there are too few nodes, or probabilities would be above 1.

    Source:
        Deshpande, Montanari, Mossel and Sen (2018), "Contextual stochastic block models", for two classes.
    """
    if nodes < 2 * classes or classes < 2:
        raise ValueError(f"`nodes` must be at least two a class, and `classes` at least 2, got {nodes} and {classes}.")
    own = nodes / classes
    p, q = degree * within / (own - 1), degree * (1 - within) / (nodes - own)
    if not (0 <= p <= 1 and 0 <= q <= 1):
        raise ValueError(f"`degree` {degree} and `within` {within} give probabilities {p:.3g} and {q:.3g}: lower them.")
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(nodes) % classes
    means = torch.randn(classes, features, generator=generator, dtype=torch.float64) * signal / features**0.5
    x = means[y] + torch.randn(nodes, features, generator=generator, dtype=torch.float64)
    i, j = torch.triu_indices(nodes, nodes, offset=1)
    linked = torch.rand(len(i), generator=generator, dtype=torch.float64) < torch.where(y[i] == y[j], p, q)
    pairs = torch.stack([i[linked], j[linked]])
    return Graph(x.float(), torch.cat([pairs, pairs.flip(0)], dim=1), y)
