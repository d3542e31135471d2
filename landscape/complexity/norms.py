"""Norms of a network's layers, now and as they moved from their start."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Generator, Tensor

from landscape.complexity.layers import Layer, Network
from landscape.complexity.spectral import SpectralNorm, circular_spectral_norm, spectral_norm
from landscape.precision import in_own_precision
from landscape.randomness import source_of

Spectrum = Literal["reshaped", "circular"]


@dataclass(frozen=True)
class LayerNorms:
    """Squared norms of the weight matrices W_1 ... W_d, and of W_l - W_l⁰ where the start is known.

    Attributes:
        fro: F_l = ‖W_l‖_F².
        spec: S_l = ‖W_l‖₂².
        fro_moved: DF_l, of W_l - W_l⁰; None where the start is not known.
        spec_moved: DS_l, likewise.
        weights: ω, the number of weights; biases and BatchNorm excluded.
        error: The largest relative error of an S_l or DS_l, from residuals; 0 where they are exact.
        converged: Whether all iterations met their tolerance.
    """

    fro: tuple[float, ...]
    spec: tuple[float, ...]
    fro_moved: tuple[float, ...] | None
    spec_moved: tuple[float, ...] | None
    weights: int
    error: float = 0.0
    converged: bool = True

    @property
    def depth(self) -> int:
        """d, the number of layers."""
        return len(self.fro)


@in_own_precision
def layer_norms(
    network: Network,
    initial: Network | None = None,
    *,
    spectrum: Spectrum = "reshaped",
    generator: Generator | None = None,
) -> LayerNorms:
    """Squared Frobenius and spectral norms of every layer.

    Args:
        network: With BatchNorm folded, see `fold`.
        initial: The same network at its start, folded too.
        spectrum: What ‖W_l‖₂ is of a convolution: "reshaped" takes the kernel as a matrix (out, rest); "circular" takes
            the convolution as a linear map of its inputs with circular boundary, before its stride.
        generator: Source of the random starts of iterations, which large matrices need; None means a fresh one from
            seed 0.

    Raises:
        ValueError: If the two networks do not have the same layers.
    """
    generator = source_of(generator)
    moved: list[Tensor] | None = None
    if initial is not None:
        if [(a.name, a.weight.shape) for a in network.layers] != [(b.name, b.weight.shape) for b in initial.layers]:
            raise ValueError("`initial` must have the layers of `network`: is it another model?")
        moved = [a.weight - b.weight for a, b in zip(network.layers, initial.layers, strict=True)]

    def exact(layer: Layer, weight: Tensor) -> float:
        module: Any = layer.convolution
        return max(
            circular_spectral_norm(weight, size, dilation=module.dilation, groups=module.groups) for size in layer.sizes
        )

    def measured(layer: Layer, weight: Tensor) -> SpectralNorm:
        if spectrum == "reshaped" or layer.convolution is None:
            return spectral_norm(weight.reshape(len(weight), -1), generator=generator)
        if not layer.sizes:
            raise ValueError(f"`network` was folded on inputs that never reach the convolution {layer.name!r}.")
        return SpectralNorm(exact(layer, weight))

    spec = [measured(layer, layer.weight) for layer in network.layers]
    spec_moved = None
    if moved is not None:
        spec_moved = [measured(layer, weight) for layer, weight in zip(network.layers, moved, strict=True)]
    found = [*spec, *(spec_moved or [])]
    return LayerNorms(
        _each(lambda w: float(w.square().sum()), [layer.weight for layer in network.layers]),
        tuple(s.value**2 for s in spec),
        None if moved is None else _each(lambda w: float(w.square().sum()), moved),
        None if spec_moved is None else tuple(s.value**2 for s in spec_moved),
        sum(layer.weight.numel() for layer in network.layers),
        max((2 * s.error / s.value for s in found if s.value > 0), default=0.0),
        all(s.converged for s in found),
    )


def _each(function: Callable[[Tensor], float], weights: list[Tensor]) -> tuple[float, ...]:
    return tuple(function(w) for w in weights)
