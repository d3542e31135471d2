"""The nodes of one graph: a label of each, from its own features and from those of its neighbours."""

from dataclasses import dataclass

from trainers.tasks.classification import Classification


@dataclass(frozen=True)
class Nodes(Classification):
    """Learns a label of each node by cross-entropy, over the nodes of a batch; the model sees the whole graph.

    Everything is as for `Classification`: an example is a node, and its input the node's number.
    """
