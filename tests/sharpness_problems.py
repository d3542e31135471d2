"""Risks that are known functions of a weight vector, and networks with equivalent weights."""

import copy
import math

import torch
from problems import F64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from landscape import EmpiricalRisk


def quadratic(H: Tensor, g: Tensor, w: Tensor, base: float = 0.0) -> EmpiricalRisk:
    """L(w + e) = base + gᵀe + eᵀHe/2."""

    def predict(theta, x):
        e = theta["w"] - w
        return (base + g @ e + e @ H @ e / 2).expand(len(x))

    return EmpiricalRisk(predict, lambda out, _: out.mean(), [(torch.zeros(2), torch.zeros(2))], {"w": w.clone()})


def linear_losses() -> EmpiricalRisk:
    """Four examples whose losses are linear, with gradients (1, 0), (0, 1), (-1, 0), (0, 3)."""
    x = torch.tensor([[1, 0], [0, 1], [-1, 0], [0, 3]], dtype=F64)
    theta = {"w": torch.tensor([0.3, -0.7], dtype=F64)}
    return EmpiricalRisk(lambda t, x: x @ t["w"], lambda out, _: out.mean(), [(x, torch.zeros(4))], theta)


def perceptron(act: type[nn.Module] = nn.ReLU, *, bias: bool = True, dtype=F64, seed: int = 3) -> nn.Sequential:
    g = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6, bias=bias), act(), nn.Linear(6, 5, bias=bias), act(), nn.Linear(5, 3, bias))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=F64) * 0.6)
    return model.to(dtype)


def examples(n: int = 24, dtype=F64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(8)
    return torch.randn(n, 4, generator=g, dtype=F64).to(dtype), torch.randint(0, 3, (n,), generator=g)


def risk_of(model: nn.Module, n: int = 24, dtype=F64) -> EmpiricalRisk:
    return EmpiricalRisk.from_model(model, cross_entropy, examples(n, dtype))


def fitted(model: nn.Module, n: int = 40) -> EmpiricalRisk:
    """The risk on labels that are the model's own choices: no mistakes at its weights."""
    x, _ = examples(n)
    with torch.no_grad():
        return EmpiricalRisk.from_model(model, cross_entropy, (x, model(x).argmax(1)))


@torch.no_grad()
def transformed(model: nn.Sequential, which: str) -> nn.Sequential:
    """The model after one of the transformations T1, T1n, T3, T4, T5 that leave the function or its decisions."""
    other = copy.deepcopy(model)
    first, middle, last = other[0], other[2], other[4]
    if which == "T1":  # layer by layer; biases of deeper layers grow with all factors before them
        for layer, weight, bias in ((first, 2.0, 2.0), (middle, 0.4, 0.8), (last, 1.25, 1.0)):
            layer.weight.mul_(weight)
            if layer.bias is not None:
                layer.bias.mul_(bias)
    elif which == "T1n":  # neuron by neuron, before and after the second layer's units
        a = torch.linspace(0.3, 3, 5, dtype=F64)
        middle.weight.mul_(a[:, None])
        if middle.bias is not None:
            middle.bias.mul_(a)
        last.weight.div_(a)
    elif which == "T3":
        last.weight.add_(torch.linspace(-1, 2, 5, dtype=F64))
        if last.bias is not None:
            last.bias.add_(0.7)
    elif which == "T4":
        last.weight.mul_(3)
        if last.bias is not None:
            last.bias.mul_(3)
    elif which == "T5":
        order = torch.tensor([3, 0, 4, 1, 2])
        middle.weight.copy_(middle.weight[order].clone())
        if middle.bias is not None:
            middle.bias.copy_(middle.bias[order].clone())
        last.weight.copy_(last.weight[:, order].clone())
    return other


class Normalised(nn.Module):
    """A layer without bias in front of a normalisation whose eps is next to nothing."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6, bias=False), nn.LayerNorm(6, eps=1e-12), nn.Linear(6, 3)
        g = torch.Generator().manual_seed(1)
        self.to(F64)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=g, dtype=F64))
            self.first.weight.mul_(factor)

    def forward(self, x):
        return self.last(torch.tanh(self.norm(self.first(x))))


PHI_ROOT = 0.7803041461  # 1 / Φ⁻¹(0.9)


def sign_classifier(w: float = 1.0) -> EmpiricalRisk:
    """sign(w x) for x = 1 with label 1, as two scores; its loss is cross-entropy."""
    one = torch.ones(1, dtype=F64)
    return EmpiricalRisk(
        lambda t, x: torch.stack([-t["w"] * x, t["w"] * x], -1),
        cross_entropy,
        [(one, torch.ones(1, dtype=torch.int64))],
        {"w": torch.tensor(w, dtype=F64)},
    )


assert math.isclose(PHI_ROOT, 1 / math.sqrt(2) / float(torch.erfinv(torch.tensor(0.8, dtype=F64))), rel_tol=1e-9)
