"""Graphs that tests name as module:function."""

from types import SimpleNamespace as Data  # as torch_geometric's, which takes seconds to import

import torch

EDGES = torch.tensor([[0, 1, 1, 2, 2, 3, 4, 3, 5, 4], [1, 0, 2, 1, 3, 2, 3, 4, 4, 5]])


def drawn(nodes=6, features=3, seed=0):
    return torch.randn(nodes, features, generator=torch.Generator().manual_seed(seed))


def masked():
    """Of torch_geometric's kind: node 5 is in no part."""
    masks = [torch.tensor([i in part for i in range(6)]) for part in ({0, 3, 4}, {1}, {2})]
    y = torch.tensor([0, 1, 0, 1, 0, -1])
    return Data(x=drawn(), edge_index=EDGES, y=y, train_mask=masks[0], val_mask=masks[1], test_mask=masks[2])


def lost_edge():
    return drawn(), torch.tensor([[0, 6], [1, 0]]), torch.zeros(6, dtype=torch.int64)


def no_edges():
    return drawn(), torch.zeros(2, 0, dtype=torch.int64), torch.zeros(6, dtype=torch.int64)


def gaps():
    return drawn() * torch.nan, EDGES, torch.zeros(6, dtype=torch.int64)


def numbers():
    return drawn(), EDGES, torch.zeros(6)


def overlapping():
    return drawn(), EDGES, torch.zeros(6, dtype=torch.int64), dict.fromkeys(("train", "test"), torch.ones(6) > 0)


def empty_mask():
    masks = {"train": torch.ones(6) > 0, "test": torch.zeros(6) > 0}
    return drawn(), EDGES, torch.zeros(6, dtype=torch.int64), masks


def seeded(seed):
    return masked()


def rings_and_paths():
    """60 graphs of 4 to 9 nodes: whether the ends are linked."""
    made = []
    for i in range(60):
        n = 4 + i % 6
        path = torch.stack([torch.arange(n - 1), torch.arange(1, n)])
        if i % 2:
            path = torch.cat([path, torch.tensor([[n - 1], [0]])], dim=1)
        made.append(Data(x=torch.ones(n, 1), edge_index=torch.cat([path, path.flip(0)], 1), y=torch.tensor([i % 2])))
    return made


def own_model(graph, classes):
    """Reads the features of the nodes alone."""

    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("x", graph.x, persistent=False)
            self.layer = torch.nn.Linear(graph.x.shape[1], classes)

        def forward(self, nodes):
            return self.layer(self.x[nodes[:, 0]])

    return Own()
