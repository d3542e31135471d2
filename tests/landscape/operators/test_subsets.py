"""Operators of some of the parameters are principal submatrices; layers and blocks say where they lie."""

import pytest
import torch
from problems import F64, case, cosines, o2, small
from torch import nn
from torch.testing import assert_close

from landscape import EmpiricalFisher, EmpiricalRisk, Fisher, GaussNewton, Hessian

EXACT = {"rtol": 1e-10, "atol": 1e-12}
OPERATORS = [Hessian, GaussNewton, Fisher, EmpiricalFisher]

# Traces and largest eigenvalues of the blocks of the tanh network's Hessian.
BLOCKS = {
    "0.weight": (-0.4853672955928339, 0.01625811953710249),
    "0.bias": (-0.4508814405405391, -0.031150740726341015),
    "2.weight": (0.16482159383217931, 0.10714116168463275),
    "2.bias": (0.22944561119331458, 0.2294456111933146),
}


@pytest.mark.parametrize("path", ["kept", "difference"])
@pytest.mark.parametrize("name", BLOCKS)
def test_traces_and_top_eigenvalues_of_blocks(name, path):
    block = Hessian(o2((3, 2)), parameters=[name], path=path).dense()
    trace, top = BLOCKS[name]
    tight = {"rtol": 1e-6, "atol": 1e-7} if path == "difference" else EXACT
    assert_close(block.trace(), torch.tensor(trace, dtype=F64), **tight)
    assert_close(torch.linalg.eigvalsh((block + block.T) / 2)[-1], torch.tensor(top, dtype=F64), **tight)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("0.weight", ["0.weight"]),
        ("*.weight", ["0.weight", "2.weight"]),
        ("0", ["0.weight", "0.bias"]),
        (["2", "0.bias"], ["0.bias", "2.weight", "2.bias"]),
        (["2.bias", "2.bias", "*bias"], ["0.bias", "2.bias"]),
        (None, ["0.weight", "0.bias", "2.weight", "2.bias"]),
    ],
    ids=["name", "glob", "module", "mixed", "twice", "all"],
)
def test_names_globs_and_modules_choose_principal_submatrices(operator, wanted, names):
    risk = o2((3, 2))
    whole = operator(risk)
    part = operator(risk, parameters=wanted)
    rows = torch.cat([torch.arange(17)[whole.blocks[name]] for name in names])
    assert list(part.blocks) == names
    assert_close(part.dense(), whole.dense()[rows][:, rows], **EXACT)


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_subset_may_be_chosen_for_the_risk_instead(operator):
    c = case("tied")
    by_risk = operator(c.risk(parameters="first"))
    by_operator = operator(c.risk(), parameters="first")
    assert_close(by_risk.dense(), by_operator.dense(), **EXACT)


def test_frozen_parameters_may_be_named():
    """What is trainable is a default, not a rule."""
    c = case("tied")
    risk = c.risk(parameters="offset")
    A = Hessian(risk)
    assert A.shape == (3, 3)
    expected = torch.autograd.functional.hessian(
        lambda b: sum(
            len(x) / 5 * nn.functional.cross_entropy(c.model.second(torch.tanh(c.model.first(x))) + b, y)
            for x, y in c.batches
        ),
        risk.theta["offset"],
    )
    assert_close(A.dense(), expected, **EXACT)
    assert not c.model.offset.requires_grad


@pytest.mark.parametrize("operator", OPERATORS)
def test_by_layer_gives_the_diagonal_blocks(operator):
    risk = o2((3, 2))
    whole = operator(risk)
    layers = operator.by_layer(risk)
    assert list(layers) == ["0", "2"]
    assert whole.layers == {"0": slice(0, 9), "2": slice(9, 17)}
    for name, block in layers.items():
        place = whole.layers[name]
        assert_close(block.dense(), whole.dense()[place, place], **EXACT)
    theta = {name: 0.5 * t for name, t in risk.theta.items()}
    moved = operator.by_layer(risk, theta, path="afresh")
    assert all(A.path == "afresh" for A in moved.values())
    assert_close(moved["2"].dense(), operator(risk, theta).dense()[9:, 9:], **EXACT)


def test_traces_of_layers_add_up_and_layers_are_those_of_the_spec():
    layers = Hessian.by_layer(o2())
    assert float(layers["0"].dense().trace()) == pytest.approx(-0.4853672955928339 - 0.4508814405405391, rel=1e-9)
    total = sum(float(A.dense().trace()) for A in layers.values())
    assert total == pytest.approx(-0.5419815311078794, rel=1e-9)


@pytest.mark.parametrize("sizes", [(5,), (3, 2)])
def test_eigenvalues_of_blocks_interlace(sizes):
    """Cauchy: λ_i of the whole ≥ λ_i of a principal submatrix ≥ λ_{i + p - q} of the whole, sorted from the top."""
    risk = o2(sizes)
    whole = torch.linalg.eigvalsh(Hessian(risk).dense()).flip(0)
    for name in risk.names:
        part = torch.linalg.eigvalsh(Hessian(risk, parameters=name).dense()).flip(0)
        gap = len(whole) - len(part)
        for i, value in enumerate(part):
            assert whole[i + gap] - 1e-12 <= value <= whole[i] + 1e-12


def test_layers_of_interleaved_parameters_are_numbered():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))
            self.line = nn.Linear(3, 2)

        def forward(self, x):
            return self.line(x) * self.scale

    risk = small(Mixed())
    A = Hessian(risk)
    assert A.layers == {"scale": slice(0, 2), "line": slice(2, 10)}
    assert A.blocks == {"scale": slice(0, 2), "line.weight": slice(2, 8), "line.bias": slice(8, 10)}
    assert list(Hessian.by_layer(risk)) == ["scale", "line"]


def test_a_block_costs_less_than_the_whole():
    """Parameters that are held need no graph: their gradients are never made."""
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(6)], nn.Linear(8, 2))
    risk = small(model, shape=(6, 8))
    last, whole = Hessian(risk, parameters="6"), Hessian(risk)
    assert last._kept_bytes() < whole._kept_bytes() / 2
    assert not any(t.requires_grad for t in last.point.fixed.values())


def test_products_of_a_subset_have_its_length():
    A = Hessian(o2(), parameters="2")
    assert (A @ cosines(8)).shape == (8,)
    with pytest.raises(ValueError, match=r"`v` must have shape \(8,\) or \(8, k\)"):
        A @ cosines(17)


def test_a_risk_without_a_trainable_parameter_is_refused():
    frozen = nn.Linear(3, 2, dtype=F64).requires_grad_(False)
    x, y = torch.zeros(2, 3, dtype=F64), torch.zeros(2).long()
    with pytest.raises(ValueError, match="no trainable parameter: set `requires_grad` or name some in `parameters`"):
        EmpiricalRisk.from_model(frozen, nn.functional.cross_entropy, (x, y))
    assert EmpiricalRisk.from_model(frozen, nn.functional.cross_entropy, (x, y), parameters="*").names == [
        "weight",
        "bias",
    ]
