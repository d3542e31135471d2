"""The path norm of a piecewise linear network, in a range of numbers that deep networks do not leave."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from landscape.complexity.layers import Network
from landscape.precision import in_own_precision

# Operations that no sum over paths describes: those that saturate, curve, normalise or let activations gate each other.
CURVED = (
    "softmax", "layer_norm", "group_norm", "instance_norm", "rms_norm", "attention", "tanh", "sigmoid", "gelu", "silu",
    "elu", "celu", "mish", "softplus", "hardswish", "hardsigmoid", "hardtanh", "relu6", "lstm",
    "gru", "rnn", "exp", "log", "sin", "cos", "pow",
)  # fmt: skip
HOMOGENEITY = 1e-9  # relative; rounding leaves about 1e-14
FAR = 1e280  # by how much inputs and biases are scaled where squares leave the range of float64


@in_own_precision
def log_path_norm(network: Network, shape: Sequence[int]) -> float:
    """The logarithm of PN, where PN is the sum of the outputs on an input of ones with every parameter squared.

    For a network of linear layers and ReLU, PN = Σ_paths Π w², over all paths from an input (or a bias) to an output
    along weights w: on non-negative weights and inputs ReLU does nothing, and sums over paths are what a network
    computes. Skip connections are paths too. Mean pooling counts with its own weights, not squared, and max pooling
    takes the largest, as in the published code. It does not change under rescaling of a unit's incoming against its
    outgoing weights (T1), which is what it is for.

    Everything is in float64. Where the outputs leave its range, inputs and biases are scaled by one number c, which
    scales the outputs of such a network by c: so ln PN = ln f(c) - ln c.

    Args:
        network: With BatchNorm folded, see `fold`.
        shape: Of one input, without the batch axis.

    Returns:
        ln PN, natural logarithm; -inf if no path reaches an output.

    Raises:
        ValueError: If the network is not piecewise linear, so that PN is not a sum over paths: attention, LayerNorm,
            tanh, GELU and the like; if inputs are no floating-point numbers; if an entry is not finite.

    Source:
        Neyshabur, Tomioka and Srebro (2015), COLT; with squares and an input of ones: Jiang et al. (2020), eq. 44 of
        the numbering in Dziugaite et al. (2020).
    """
    squared = copy.deepcopy(network.model)
    with torch.no_grad():
        for p in squared.parameters():
            p.square_()
        curved = _Operations()
        try:
            with curved:
                first = _outputs(squared, shape, 1.0)
        except (RuntimeError, TypeError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"the path norm needs a network of one floating-point input; it says: {reason}") from error
        if curved.found:
            raise ValueError(
                "the path norm is defined for piecewise linear networks (ReLU); this one uses "
                f"{', '.join(curved.found)}."
            )
        if not all(bool(p.isfinite().all()) for p in squared.parameters()):
            raise ValueError("the path norm needs finite weights, whose squares are in the range of float64.")
        _check_homogeneity(squared, shape)
        if first > 0 and math.isfinite(first):
            return math.log(first)
        c = FAR if first == 0 else 1 / FAR
        with _scaled_biases(squared, c):
            second = _outputs(squared, shape, c)
        if second == 0 and not _any_path(network, shape):
            return -math.inf
    if not 0 < second < math.inf:
        raise ValueError("the path norm is not between 1e-580 and 1e580: are the weights finite and trained?")
    return math.log(second) - math.log(c)


def _outputs(model: nn.Module, shape: Sequence[int], level: float) -> float:
    out = model(torch.full((1, *shape), level, dtype=torch.float64))
    if not isinstance(out, Tensor):
        raise TypeError("its output is not a tensor")
    return float(out.sum())


def _any_path(network: Network, shape: Sequence[int]) -> bool:
    """Whether an output can be reached along weights that are not zero."""
    open_paths = copy.deepcopy(network.model)
    for p in open_paths.parameters():
        p.copy_(p != 0)
    return _outputs(open_paths, shape, 1.0) != 0


def _check_homogeneity(model: nn.Module, shape: Sequence[int]) -> None:
    """Without biases the outputs must be in proportion to the inputs, near zero and far from it."""
    with _scaled_biases(model, 0.0):
        small, one, large = (_outputs(model, shape, level) for level in (1e-6, 1.0, 1e6))
    if not math.isfinite(large):
        return  # already beyond the range; nothing is left to compare
    if max(abs(small * 1e6 - one), abs(large * 1e-6 - one)) > HOMOGENEITY * abs(one):
        raise ValueError(
            "the path norm is defined for piecewise linear networks (ReLU); the outputs of this one are not in "
            "proportion to its inputs when its biases are zero."
        )


class _scaled_biases:  # noqa: N801 - a context manager
    """Biases of linear and convolution layers times c inside a `with` block."""

    def __init__(self, model: nn.Module, c: float) -> None:
        layers = (nn.Linear, nn.modules.conv._ConvNd)
        found = [m.bias for m in model.modules() if isinstance(m, layers) and m.bias is not None]
        self.biases: list[Tensor] = list({id(b): b for b in found}.values())
        self.c = c

    def __enter__(self) -> None:
        self.before = [b.clone() for b in self.biases]
        for b in self.biases:
            b.mul_(self.c)

    def __exit__(self, *_: object) -> None:
        for b, kept in zip(self.biases, self.before, strict=True):
            b.copy_(kept)


class _Operations(TorchFunctionMode):
    """Notes the operations that are not piecewise linear."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The call as it is, and its name among those found."""
        name = str(getattr(func, "__name__", "")).strip("_")
        if name not in self.found and any(f"_{part}_" in f"_{name}_" for part in CURVED):
            self.found.append(name)
        return func(*args, **(kwargs or {}))
