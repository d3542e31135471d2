"""What is measured: trained networks on digits, and small risks whose spectrum is known."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape import EmpiricalRisk
from trainers import build_model, load_dataset, make_optimizer
from trainers.sharpness_aware.objective import Objective

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model at a point, its mean loss, and batches of data: what every library is given alike.

    Attributes:
        name: What the rows of the table call it.
        model: In eval mode; whoever measures it works on a copy.
        loss: A module with `reduction = "mean"`.
        batches: Pairs (inputs, targets).
        attention: Whether the model calls scaled_dot_product_attention.
        truth: Eigenvalues, descending, where they are known.
    """

    name: str
    model: nn.Module
    loss: nn.Module
    batches: Sequence[Pair]
    attention: bool = False
    truth: Sequence[float] = ()

    @property
    def p(self) -> int:
        """Number of parameters."""
        return sum(t.numel() for t in self.model.parameters())

    @property
    def n(self) -> int:
        """Number of examples."""
        return sum(len(x) for x, _ in self.batches)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return next(self.model.parameters()).dtype

    def copied_model(self) -> nn.Module:
        """A model that shares nothing with this one."""
        return copy.deepcopy(self.model)

    def risk(self) -> EmpiricalRisk:
        """The same as landscape's risk."""
        loss = F.cross_entropy if isinstance(self.loss, nn.CrossEntropyLoss) else self.loss
        return EmpiricalRisk.from_model(self.model, loss, list(self.batches))

    def vector(self, seed: int = 0) -> Tensor:
        """A standard normal vector of length p."""
        draw = torch.Generator().manual_seed(seed)
        return torch.randn(self.p, generator=draw, dtype=self.dtype)


def network(
    name: str, model: str, *, side: int = 8, channels: int = 1, sizes: Sequence[int] = (128,), steps: int = 0,
    batch: int = 64, lr: float = 0.05, **options: Any,
) -> Subject:  # fmt: skip
    """A network on digits, enlarged to side x side by interpolation, after some steps of SGD with momentum.

    Args:
        name: Name of the subject.
        model: Name of a model of `trainers`.
        side: Side of the images.
        channels: Copies of the image.
        sizes: Sizes of the batches that curvature is measured on, taken from the training data.
        steps: Training steps; 0 leaves the initialisation.
        batch: Batch size of training.
        lr: Learning rate; momentum is 0.9, weight decay 5e-4.
        **options: Options of the model.
    """
    data = load_dataset("digits", train_size=1000, validation_size=100, seed=0)
    x = data.train.x
    if side != x.shape[-1]:
        x = F.interpolate(x, size=(side, side), mode="bilinear")
    x, y = x.expand(-1, channels, -1, -1).contiguous(), data.train.y
    built = build_model(model, shape=tuple(x.shape[1:]), classes=10, generator_seed=0, options=options).train()
    optimizer = make_optimizer("sgd", built, lr=lr, momentum=0.9, weight_decay=5e-4)
    parameters = list(built.parameters())
    draw = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(len(y), (batch,), generator=draw)
        optimizer.step(Objective(built, F.cross_entropy, x[chosen], y[chosen], parameters=parameters))
    for parameter in parameters:
        parameter.grad = None
    total = sum(sizes)
    batches = list(zip(x[:total].split(list(sizes)), y[:total].split(list(sizes)), strict=True))
    return Subject(name, built.eval(), nn.CrossEntropyLoss(), batches, attention=model == "vit")


class SignedSquare(nn.Module):
    """Mean over a batch of s_i f_i² / 2, for outputs f of shape (n, 1) and signs s: its Hessian may be indefinite."""

    reduction = "mean"

    def forward(self, outputs: Tensor, signs: Tensor) -> Tensor:
        return (signs * outputs[:, 0].square()).mean() / 2


def prescribed(name: str, spectrum: Sequence[float], *, dtype: torch.dtype = torch.float64) -> Subject:
    """A linear model whose risk has the Hessian Q diag(spectrum) Q', with Q the Householder reflection of (1, ..., 1).

    Example i is x_i = sqrt(p |λ_i|) q_i with sign s_i of λ_i: (1/p) Σ s_i x_i x_i' is that matrix.
    """
    values = torch.tensor(list(spectrum), dtype=torch.float64)
    p = len(values)
    reflection = torch.eye(p, dtype=torch.float64) - 2 / p
    x = (p * values.abs()).sqrt()[:, None] * reflection
    signs = torch.where(values < 0, -1.0, 1.0).to(torch.float64)
    model = nn.Linear(p, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.linspace(-1, 1, p, dtype=torch.float64)[None])
    return _in_dtype(Subject(name, model.eval(), SignedSquare(), [(x, signs)], truth=_descending(spectrum)), dtype)


def small_tanh_network(name: str, sizes: Sequence[int] = (5,), *, dtype: torch.dtype = torch.float64) -> Subject:
    """Tanh MLP 2-3-2 on five examples: its eigenvalue of largest modulus is negative, and the positive one is close.

    Its 17 parameters are w_k = 0.8 sin(1.7 (k + 1)), its inputs cos(0.9 (i + 1)).
    """
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).to(torch.float64)
    values = torch.tensor([0.8 * math.sin(1.7 * (k + 1)) for k in range(17)], dtype=torch.float64)
    with torch.no_grad():
        nn.utils.vector_to_parameters(values, model.parameters())
    x = torch.tensor([math.cos(0.9 * (i + 1)) for i in range(10)], dtype=torch.float64).reshape(5, 2)
    y = torch.tensor([0, 1, 1, 0, 1])
    batches = list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))
    whole = Subject(name, model.eval(), nn.CrossEntropyLoss(), [(x, y)])
    truth = torch.linalg.eigvalsh(dense_hessian(whole)).tolist()[::-1]
    return _in_dtype(replace(whole, batches=batches, truth=truth), dtype)


def path_graph(name: str, p: int = 100) -> Subject:
    """The spectrum of the path graph's Laplacian, 2 - 2 cos(kπ/(p+1)): many eigenvalues near the largest."""
    return prescribed(name, [2 - 2 * math.cos(k * math.pi / (p + 1)) for k in range(p, 0, -1)])


def dense_hessian(subject: Subject) -> Tensor:
    """The Hessian as a matrix in float64, column by column from torch.func, independent of every library compared."""
    model = subject.copied_model().double()
    theta = {name: t.detach() for name, t in model.named_parameters()}

    def risk(flat: Tensor) -> Tensor:
        parts = flat.split([t.numel() for t in theta.values()])
        point = {name: part.view_as(t) for (name, t), part in zip(theta.items(), parts, strict=True)}
        losses = [
            len(x) * subject.loss(torch.func.functional_call(model, point, (x.double(),)), y)
            for x, y in subject.batches
        ]
        return torch.stack(losses).sum() / subject.n

    flat = torch.cat([t.reshape(-1) for t in theta.values()])
    matrix = torch.func.jacrev(torch.func.jacrev(risk))(flat)
    assert isinstance(matrix, Tensor)
    return matrix


def _descending(values: Sequence[float]) -> list[float]:
    return sorted(values, reverse=True)


def _in_dtype(subject: Subject, dtype: torch.dtype) -> Subject:
    batches = [(x.to(dtype), y.to(dtype) if y.is_floating_point() else y) for x, y in subject.batches]
    return replace(subject, model=subject.model.to(dtype), batches=batches)
