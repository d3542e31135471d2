"""Networks of every kind for the tests of complexity measures, with BatchNorm statistics as after training."""

import itertools

import torch
from torch import nn

F64 = torch.float64


def settled(model, generator):
    """Random weights and statistics, none of them 0 or 1."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / max(p[0].numel(), 1) ** 0.5)
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(torch.randn(b.shape, generator=generator))
            if name.endswith("running_var"):
                b.copy_(torch.rand(b.shape, generator=generator) + 0.2)
    return model


def mlp(sizes=(4, 6, 5, 3), *, bias=True, norm=False, activation=nn.ReLU):
    layers = []
    for a, b in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(a, b, bias=bias), *([nn.BatchNorm1d(b)] if norm else []), activation()]
    return nn.Sequential(*layers, nn.Linear(*sizes[-2:], bias=bias))


class Branches(nn.Module):
    """relu(bn(conv(x)) + shortcut(x)), a transposed convolution in groups, and the mean over pixels."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4, affine=False)  # defined before, used after, its layer
        self.conv = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.shortcut = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Dropout(0.5), nn.BatchNorm2d(4))
        self.up = nn.ConvTranspose2d(4, 6, 2, 2, groups=2)
        self.up_norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        h = torch.relu(self.norm(self.conv(x)) + self.shortcut(x))
        return self.head(torch.relu(self.up_norm(self.up(h))).mean((2, 3)))


class Reordered(nn.Module):
    """BatchNorm layers of one width applied to each other's neighbours: pairing by order of definition is wrong."""

    def __init__(self):
        super().__init__()
        self.a, self.norm_of_b = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.b, self.norm_of_a = nn.Linear(3, 3), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm_of_b(self.b(torch.relu(self.norm_of_a(self.a(x)))))


class Between(nn.Module):
    """One linear layer and BatchNorm with something in between, or beside."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.inner, self.norm = kind, nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.spare = nn.BatchNorm1d(3)

    def forward(self, x):
        if self.kind == "before":
            return self.inner(self.spare(self.norm(x)))
        z = self.inner(x)
        if self.kind == "in place":
            z = self.spare(self.norm(z.relu_()))
        elif self.kind == "activation":
            z = self.spare(self.norm(torch.relu(z)))
        elif self.kind == "skip":
            z = z + self.norm(z)
        elif self.kind == "twice":
            z = self.norm(z) + self.norm(x)
        elif self.kind == "two norms":
            z = self.norm(z) + self.spare(z)
        elif self.kind == "unused":
            z = self.norm(z)
        return z
