"""What the tests of docs/drop_in.md share: its code blocks, torchvision without its operators, and SAM by hand."""

import importlib
import importlib.util
import re
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

DOCUMENT = Path(__file__).parents[2] / "docs" / "drop_in.md"


def run_block(title, **given):
    """Run the block of the document that begins with the comment `title`; returns its names."""
    blocks = re.findall(r"```python\n# ([^\n]*)\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    code = dict(blocks)[title]
    names = {"__name__": "drop_in", **given}
    exec(compile(code, f"drop_in.md, {title}", "exec"), names)
    return names


@contextmanager
def torchvision_without_operators():
    """Inside the block torchvision can be imported where its compiled operators do not load.

    Its wheels are built against torch with CUDA, and their operators need not load beside a CPU build of torch; then
    the registration of their shapes fails, and with it the import, also that of transformers, timm and Lightning,
    which import it where it is installed.
    """
    register = torch.library.register_fake

    def tolerant(op, *args, **kwargs):
        if isinstance(op, str) and op.startswith("torchvision::"):
            return lambda function: function
        return register(op, *args, **kwargs)

    torch.library.register_fake = tolerant
    try:
        yield
    finally:
        torch.library.register_fake = register


def need(*modules):
    """Import libraries, which may import torchvision; skip where one is not installed."""
    with torchvision_without_operators():
        for module in modules:
            pytest.importorskip(module, reason=f"{module} is not installed", exc_type=ModuleNotFoundError)
        if importlib.util.find_spec("torchvision") is not None:
            importlib.import_module("torchvision")


def gradients(parameters, loss):
    """The gradients of a loss; zero for parameters that it does not touch."""
    return list(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))


def length(tensors):
    return torch.sqrt(sum((t * t).sum() for t in tensors))


def by_hand(parameters, losses, weights, *, rho, method="sam", alpha=0.4, ascents=None):
    """The gradient of one step, chunk by chunk, from the equations: SAM, GSAM, or SAM with another ascent objective.

    `losses` and `ascents` are functions without arguments; `weights` sum to one.
    """
    total = [torch.zeros_like(p) for p in parameters]
    clean = 0.0
    for i, (loss, weight) in enumerate(zip(losses, weights, strict=True)):
        value = loss()
        clean = clean + weight * value.detach()
        a = gradients(parameters, value if ascents is None else ascents[i]())
        size = length(a)
        kept = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p, g in zip(parameters, a, strict=True):
                p += rho * g / size
        u = gradients(parameters, loss())
        with torch.no_grad():
            for p, old in zip(parameters, kept, strict=True):
                p.copy_(old)
        if method == "gsam":
            share = sum((x * y).sum() for x, y in zip(a, u, strict=True)) / length(u) ** 2
            u = [y - alpha * (x - share * y) for x, y in zip(a, u, strict=True)]
        total = [t + weight * y for t, y in zip(total, u, strict=True)]
    return total, clean


def take(parameters, grads, base, *, clip=None):
    """Clip, and let the base optimizer take its step."""
    for p, g in zip(parameters, grads, strict=True):
        p.grad = g
    if clip is not None:
        size = length(grads)
        for p in parameters:
            p.grad = p.grad * min(1.0, clip / (float(size) + 1e-6))  # as torch's
    base.step()
