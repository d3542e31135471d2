"""A task of one's own: the page's example trains, and what breaks the contract is said in one line each."""

import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from numbers_task import Regression as Squared

from analysis.cli import main
from trainers import check_task

PAGE = Path(__file__).parents[3] / "docs" / "your_task.md"


@pytest.fixture
def siamese(tmp_path, monkeypatch):
    """The page's example in a module of its own."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(code.split("class ")[1].splitlines()) <= 30
    (tmp_path / "siamese_task.py").write_text(code + DATA)
    monkeypatch.syspath_prepend(tmp_path)
    yield "siamese_task"
    sys.modules.pop("siamese_task", None)


DATA = """

def pairs():
    from torch.utils.data import TensorDataset

    g = torch.Generator().manual_seed(1)
    kind = torch.randint(2, (120, 2), generator=g)
    x = torch.randn(120, 2, 4, generator=g) + 3 * kind[:, :, None]
    same = (kind[:, 0] == kind[:, 1]).float()
    return TensorDataset(x[:90], same[:90]), TensorDataset(x[90:], same[90:])


def embedding(shape):
    return torch.nn.Linear(shape[-1], 3)
"""


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(part) for part in arguments])
    return ended.value.code


def test_the_example_of_the_page_is_a_task_and_learns(siamese, tmp_path, capsys):
    assert run("check-task", f"{siamese}:Siamese") == 0
    given = ["--dataset", f"{siamese}:pairs", "--model", f"{siamese}:embedding"]
    assert run("check-task", f"{siamese}:Siamese", *given) == 0
    assert capsys.readouterr().out.count("all is as a task must be") == 2
    training = ["--validation-size", 20, "--epochs", 15, "--lr", 0.02, "--method", "sam", "--out", tmp_path / "runs"]
    assert run("train", "--task", f"{siamese}:Siamese", *given, *training) == 0
    assert float(re.search(r"test error (\d\.\d+)", capsys.readouterr().out)[1]) < 0.2


class Broken(Squared):
    """Breaks one promise."""

    def __init__(self, **parts):
        for name, part in parts.items():
            setattr(self, name, part)


def squares(out, y):
    return (out - y).square().mean(1)


def changed(out, y):
    loss = F.mse_loss(out, y)
    y.add_(0.001)
    return loss


CASES = {
    "each is a mean": ({"each": lambda out, y: squares(out, y).mean()}, r"`each` must give a real number an example"),
    "each knows the batch": (
        {"each": lambda out, y: squares(out, y) - squares(out, y).mean()}, "`each` of an example depends on the other",
    ),
    "loss is a sum": ({"loss": lambda out, y: squares(out, y).sum()}, r"`loss` is .* mean of `each` .* not additive"),
    "loss is no scalar": ({"loss": squares}, r"`loss` must give one number, .* got torch.float32 of shape \(9,\)"),
    "weight is no sum": ({"weight": lambda y: float(y.shape[0]) ** 2}, "`weight` of all 9 examples is 81, and 35 "),
    "detached": ({"loss": lambda out, y: squares(out.detach(), y).mean()}, "`loss` has no derivative with respect to"),
    "half detached": (
        {"loss": lambda out, y: ((out - y) * (out - y).detach()).mean()}, "the derivative of `loss` along a random",
    ),
    "random": ({"loss": lambda out, y: squares(out, y).mean() + 0.01 * torch.rand(())}, "draw nothing at random in it"),
    "changes": ({"loss": changed}, "`loss` changes its arguments: copy them first"),
    "no scores": ({"scores": lambda _, __: {}}, "`scores` must give at least one score by name, got {}"),
    "scores of parts": ({"scores": lambda out, _: {"far": out}}, "`scores, 'far',` must give a real number"),
    "probabilities": ({"probabilities": lambda out: out.double()}, "`probabilities` must be at least 0 and sum to 1"),
    "divergence": (
        {"divergence": lambda a, b: a - b, "distribution": "none"}, "`divergence` must be 0 between outputs and",
    ),
    "of_set": ({"of_set": lambda out, _: {"r2": out}}, "`of_set` must give one number by name"),
    "raises": ({"each": lambda out, y: out @ y}, r"`each` failed: RuntimeError: "),
    "no weight": ({"weight": 3}, "`weight` must be a function, got 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_broken_promise_is_one_line(name):
    parts, message = CASES[name]
    g = torch.Generator().manual_seed(0)
    out, y = torch.randn(9, 2, generator=g), torch.randn(9, 2, generator=g)
    assert check_task(Squared(), out, y) == []
    found = check_task(Broken(**parts), out, y, name="mine")
    assert any(re.search(message, line) for line in found), found
    assert all(line.startswith("`task` 'mine'") and "\n" not in line for line in found)


def test_what_cannot_be_tried_is_refused(siamese, capsys):
    with pytest.raises(ValueError, match="must be of the same 3 examples or more, got 2 and 2"):
        check_task(Squared(), torch.zeros(2, 1), torch.zeros(2, 1))
    assert run("check-task", "numbers_task:Regression") == 2
    assert "has no `example()` that returns outputs and targets" in capsys.readouterr().err
    assert run("check-task", "numbers_task:Summed", "--dataset", "numbers_task:line") == 1
    assert "1 failures" in capsys.readouterr().out
