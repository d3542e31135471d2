"""Oracle problems with known answers, in float64."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from landscape import EmpiricalRisk

F64 = torch.float64


def o1() -> EmpiricalRisk:
    """Softmax regression (convex): 4 examples, W 3 x 2, with one weight exactly zero."""
    model = nn.Linear(2, 3, bias=False, dtype=F64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, -0.25], [0.0, 0.75], [-0.5, 0.25]], dtype=F64))
    x = torch.tensor([[1, 0], [0, 1], [1, 1], [-1, 2]], dtype=F64)
    return EmpiricalRisk.from_model(model, F.cross_entropy, (x, torch.tensor([0, 1, 2, 1])))


def o2(sizes: tuple[int, ...] = (5,)) -> EmpiricalRisk:
    """Tanh MLP 2-3-2 with an indefinite Hessian; `sizes` splits its five examples into batches."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).to(F64)
    values = torch.tensor([0.8 * math.sin(1.7 * (k + 1)) for k in range(17)], dtype=F64)
    with torch.no_grad():
        nn.utils.vector_to_parameters(values, model.parameters())
    x = torch.tensor([math.cos(0.9 * (i + 1)) for i in range(10)], dtype=F64).reshape(5, 2)
    y = torch.tensor([0, 1, 1, 0, 1])
    return EmpiricalRisk.from_model(model, F.cross_entropy, list(zip(x.split(sizes), y.split(sizes), strict=True)))


def o5() -> EmpiricalRisk:
    """L(w + e) = L(w) + g'e + e'He/2 at w = (2, -1); L(w) = 0.7."""
    H = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=F64)
    g = torch.tensor([0.4, -0.2], dtype=F64)
    w = torch.tensor([2.0, -1.0], dtype=F64)

    def predict(theta, x):
        e = theta["w"] - w
        return (0.7 + g @ e + e @ H @ e / 2).expand(len(x))

    def loss(out, _):
        return out.mean()

    return EmpiricalRisk(predict, loss, [(torch.zeros(1), torch.zeros(1))], {"w": w.clone()})
