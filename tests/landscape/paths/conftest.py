"""Models for the paths' tests, in float64, with every tensor away from its symmetric initial value."""

import copy

import pytest
import torch
from torch import nn

from trainers.models.building import build_model

F64 = torch.float64


class Attending(nn.Module):
    """Torch's own attention with a residual sum."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x)
        return self.head(self.attention(x, x, x)[0] + x).mean(1)


class Chunked(nn.Module):
    """Queries, keys and values cut from one projection, and a gate joined to its input."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.qkv = nn.Linear(6, 12)
        self.last = nn.Linear(10, 3)

    def forward(self, x):
        h = torch.relu(self.first(x))
        q, k, v = self.qkv(h).chunk(3, -1)
        mixed = torch.softmax(q @ k.transpose(-2, -1), -1) @ v
        return self.last(torch.cat([mixed, h], -1)).amax(1)


class Recurring(nn.Module):
    """The same layer again and again, with a residual sum: a group on both axes of one matrix."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.again = nn.Linear(6, 6)
        self.last = nn.Linear(6, 2)

    def forward(self, x):
        h = self.first(x)
        for _ in range(3):
            h = h + torch.tanh(self.again(h))
        return self.last(h)


class InPlace(nn.Module):
    """Units written into a tensor of zeros, and added up in place."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 4)
        self.wide = nn.Linear(6, 7)
        self.last = nn.Linear(7, 2)

    def forward(self, x):
        room = x.new_zeros(len(x), 6)
        room[:, :4] = self.first(x)
        h = self.wide(room).relu_()
        h *= 2
        return self.last(h)


class Remembering(nn.Module):
    """Attention to learned keys and values, which may be exchanged pair by pair."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.keys = nn.Parameter(torch.zeros(7, 8))
        self.values = nn.Parameter(torch.zeros(7, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        q, k, v = self.first(x)[:, None], self.keys.expand(len(x), 1, 7, 8), self.values.expand(len(x), 1, 7, 8)
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v)[:, 0]).mean(1)


class Unknown(nn.Module):
    """An operation without a rule between layers that could be permuted otherwise."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.second = nn.Linear(6, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        h = torch.take_along_dim(h, torch.tensor([[1, 0, 2, 3, 5, 4]]).expand(len(h), 6), 1)
        return self.last(torch.tanh(self.second(h)))


def _sequential(*layers):
    return nn.Sequential(*layers)


MAKERS = {
    "mlp": (lambda: build_model("mlp", shape=(1, 4, 4), classes=3, generator_seed=0, options={"width": 12}), (1, 4, 4)),
    "cnn": (lambda: build_model("cnn", shape=(1, 8, 8), classes=3, generator_seed=0, options={"width": 4}), (1, 8, 8)),
    "signals": (lambda: build_model("cnn", shape=(1, 12), classes=3, generator_seed=0, options={"width": 4}), (1, 12)),
    "resnet20": (
        lambda: build_model("resnet20", shape=(3, 8, 8), classes=3, generator_seed=0, options={"width": 8}),
        (3, 8, 8),
    ),
    "vit": (
        lambda: build_model("vit", shape=(1, 8, 8), classes=3, generator_seed=0, options={"dim": 16, "depth": 2}),
        (1, 8, 8),
    ),
    "batchnorm": (
        lambda: _sequential(
            nn.Conv2d(2, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.SiLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 5, 3, bias=False),
            nn.BatchNorm2d(5, affine=False),
            nn.LeakyReLU(),
            nn.Flatten(),
            nn.Linear(20, 7),
            nn.BatchNorm1d(7),
            nn.GELU(),
            nn.Dropout(0.5),
            nn.Linear(7, 3),
        ),
        (2, 8, 8),
    ),
    "grouped": (
        lambda: _sequential(
            nn.Conv2d(3, 8, 3),
            nn.GroupNorm(2, 8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=8),
            nn.Conv2d(8, 12, 1, groups=4),
            nn.ConvTranspose2d(12, 5, 2),
            nn.InstanceNorm2d(5),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(20, 2),
        ),
        (3, 8, 8),
    ),
    "attending": (Attending, (6, 5)),
    "encoder": (
        lambda: _sequential(
            nn.Linear(5, 8), nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), nn.Flatten(), nn.Linear(48, 2)
        ),
        (6, 5),
    ),
    "chunked": (Chunked, (6, 5)),
    "recurring": (Recurring, (5,)),
    "in place": (InPlace, (5,)),
    "remembering": (Remembering, (6, 5)),
    "unknown": (Unknown, (5,)),
}


def make(name, *, seed=0, examples=6):
    """A model of a kind, in evaluation mode, and inputs for it; random statistics, biases and scales."""
    maker, shape = MAKERS[name]
    g = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        model = maker().to(F64).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=g, dtype=F64) * 0.1)
        for b in model.buffers():
            if b.is_floating_point():
                b.add_(torch.rand(b.shape, generator=g, dtype=F64))
    return model, torch.randn(examples, *shape, generator=g, dtype=F64)


def loaded(model, state):
    """A copy of the model in that state, by torch's own means."""
    clone = copy.deepcopy(model)
    clone.load_state_dict({**clone.state_dict(), **state.parameters, **state.buffers})
    return clone


@pytest.fixture
def build():
    return make


@pytest.fixture
def load():
    return loaded
