"""Relative flatness: the curvature of one linear layer against the products of its own rows."""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from landscape.calling import hooked
from landscape.checks.additivity import NotAdditiveError
from landscape.checks.repeatability import require_repeatable
from landscape.estimate import Estimate
from landscape.functional import PureModel
from landscape.operators import Hessian
from landscape.params import Params
from landscape.precision import in_own_precision
from landscape.randomness import source_of
from landscape.risk import EmpiricalRisk

EXACT_PRODUCTS = 256  # up to so many Hessian products, "auto" takes the exact sum
PRODUCTS_AT_ONCE = 32


@in_own_precision
def relative_flatness(
    risk: EmpiricalRisk,
    layer: str | None = None,
    *,
    kind: Literal["trace", "max"] = "trace",
    method: Literal["auto", "output", "exact", "probes"] = "auto",
    standardise: bool = True,
    draws: int = 32,
    theta: Params | None = None,
    generator: Generator | None = None,
) -> Estimate:
    """κ_Tr = Σ_{s,s'} ⟨w_s, w_s'⟩ tr(H_{s,s'}), or κ_max = Σ_s ‖w_s‖² λ_max(H_{s,s}), for one linear layer.

    w_s are the rows of its weight W (d_out × d_in), H_{s,s'} the block of second derivatives of the risk between two of
    them. With `standardise`, it is that of the same network whose layer reads activations of standard deviation 1,
    their scale moved into W: then a rescaling of single neurons that leaves the function alone changes nothing,
    and without it only one of the whole layer. An activation that is constant on the data is divided by its size, and
    one that is zero is left out.

    Methods: "output" for the layer that makes the logits, where H follows from the activations φ_i and the Hessian A_i
    of the loss in the logits: κ_Tr = mean_i ‖φ_i‖² tr(A_i W Wᵀ); one forward pass, exact. "exact" sums over the
    eigenvectors of W Wᵀ ("trace", rank × d_in Hessian products) or takes the blocks apart ("max", d_out × d_in
    products). "probes" (trace only) averages vec(V)ᵀ H vec(V), V = (Wη) zᵀ, over Rademacher vectors η and z of length
    d_in, at one product a draw. "auto" is "output" where it holds, else "exact" up to 256 products, else "probes".

    Args:
        risk: The risk L; a mean over examples.
        layer: Name of the weight, such as "4.weight", or of its module; None means the last linear layer.
        kind: "trace" or "max".
        method: How it is computed.
        standardise: See above; needs a model made by `EmpiricalRisk.from_model`.
        draws: Probes.
        theta: The point θ; None means the risk's own.
        generator: Source of the probes, which alone need it; None means a fresh one from seed 0.

    Returns:
        κ, in units of the loss; larger is sharper. Its standard error is 0 unless probes were used; `products` counts
        Hessian products.

    Raises:
        ValueError: If the layer is no linear layer of the model, or a method does not apply.

    Source:
        Petzka et al. (2021), NeurIPS, definition 3, and their experiments for the standardisation; rank-one probes and
        the closed form at the output are ours.
    """
    if kind not in ("trace", "max"):
        raise ValueError(f"`kind` must be 'trace' or 'max', got {kind!r}.")
    if method not in ("auto", "output", "exact", "probes"):
        raise ValueError(f"`method` must be 'auto', 'output', 'exact' or 'probes', got {method!r}.")
    generator = source_of(generator, risk.device)
    point = risk.theta if theta is None else theta
    require_repeatable(risk, point)
    name = _weight_name(risk, layer)
    W = point[name].detach()
    phi: Tensor | None = None
    is_last = False
    if standardise or method in ("auto", "output"):
        phi, is_last = _activations(risk, name, point)
    scale = torch.ones_like(W[0])
    if standardise:
        if phi is None:
            raise ValueError(f"`standardise` needs the inputs of layer {name!r}, which were not seen: pass False.")
        scale = _spreads(phi).to(W)
    unit = torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))
    if method == "output" and not is_last:
        raise ValueError(f"`method` = 'output' needs the layer that makes the outputs, which {name!r} is not.")
    if method == "output" and not _by_example(risk):
        raise ValueError(
            "`method` = 'output' needs a loss that is the mean of those of single examples, all of one weight: use "
            "method='exact' or 'probes'."
        )
    if method in ("auto", "output") and is_last and phi is not None and _by_example(risk):
        return _at_output(risk, point, W * scale, phi * unit, kind)
    cost = min(W.shape) * W.shape[1] if kind == "trace" else W.numel()
    if method == "exact" or (method == "auto" and (cost <= EXACT_PRODUCTS or kind == "max")):
        H = Hessian(risk, theta, parameters=name)
        return _exact_trace(H, W * scale, unit) if kind == "trace" else _exact_max(H, W * scale, unit)
    if kind == "max":
        raise ValueError("`method` = 'probes' is for `kind` = 'trace': take 'exact' for 'max'.")
    if draws < 2:
        raise ValueError(f"`draws` must be at least 2, for the standard error, got {draws!r}.")
    return _probed(Hessian(risk, theta, parameters=name), W * scale, unit, draws, generator)


def _by_example(risk: EmpiricalRisk) -> bool:
    if risk.weight is not None:
        return False
    try:
        risk.require_examples("`method` = 'output'")
    except NotAdditiveError:
        return False
    return True


def _spreads(phi: Tensor) -> Tensor:
    """Standard deviations of activations; the size of one that is constant, zero for one that is zero."""
    x = phi.double()
    spread, size = x.std(0, correction=0), x.square().mean(0).sqrt()
    return torch.where(spread > torch.finfo(phi.dtype).eps ** 0.5 * size, spread, size)


def _weight_name(risk: EmpiricalRisk, layer: str | None) -> str:
    modules = dict(risk.predict.module.named_modules()) if isinstance(risk.predict, PureModel) else {}
    matrices = [
        name
        for name, t in risk.theta.items()
        if t.ndim == 2 and (not modules or isinstance(modules.get(name.rpartition(".")[0]), nn.Linear))
    ]
    if layer is None:
        if not matrices:
            raise ValueError("`layer` is missing: the model has no linear layer with a trainable weight.")
        return matrices[-1]
    found = [name for name in matrices if layer in (name, name.rpartition(".")[0])]
    if not found:
        raise ValueError(f"`layer` must be one of the linear layers {matrices}, got {layer!r}.")
    return found[0]


def _activations(risk: EmpiricalRisk, name: str, theta: Params) -> tuple[Tensor | None, bool]:
    """Inputs of a linear layer as rows, and whether the model's outputs are what it makes of them."""
    if not isinstance(risk.predict, PureModel):
        return None, False
    settled = risk.settled(theta)
    assert isinstance(settled.predict, PureModel)
    module = settled.predict.module.get_submodule(name.rpartition(".")[0])
    seen: list[Tensor] = []
    made: list[Tensor] = []
    last = True

    def note(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        seen.append(args[0].detach())
        made.append(out.detach())

    with torch.no_grad(), hooked([module], note):  # of our own copy of the model
        for x, _ in settled.batches:
            out = settled.predict(theta, x)
            last = last and len(made) == 1 and isinstance(out, Tensor) and out.ndim == 2 and torch.equal(out, made[-1])
            made.clear()
    if not seen:
        return None, False
    return torch.cat([t.reshape(-1, t.shape[-1]) for t in seen]), last


def _at_output(risk: EmpiricalRisk, theta: Params, W: Tensor, phi: Tensor, kind: str) -> Estimate:
    """Closed form: H_{s,s'} = mean_i A_i[s, s'] φ_i φ_iᵀ, with A_i the loss's Hessian in example i's logits."""
    settled = risk.settled(theta)
    trace, blocks, at = 0.0, [torch.zeros(len(phi[0]), len(phi[0]), dtype=W.dtype, device=W.device) for _ in W], 0
    for (x, y), share in zip(settled.batches, settled.shares, strict=True):
        with torch.no_grad():
            z = settled.predict(theta, x)
        inputs = phi[at : at + len(z)].to(W)
        at += len(z)
        A = _output_hessians(settled, z, y) * (share / len(z))
        if kind == "trace":
            each = torch.einsum("nst,st->n", A, W @ W.T)
            trace += float((each.double() * inputs.double().square().sum(1)).sum())
        else:
            for s, block in enumerate(blocks):
                block += (inputs * A[:, s, s].unsqueeze(1)).T @ inputs
    if kind == "max":
        tops = [float(torch.linalg.eigvalsh(block)[-1]) for block in blocks]
        trace = math.fsum(top * float(row @ row) for top, row in zip(tops, W, strict=True))
    return Estimate(trace, 0.0, 1, method="output")


def _output_hessians(risk: EmpiricalRisk, z: Tensor, y: Any) -> Tensor:
    """∂²ℓ_i/∂z² for each example, (n, k, k), of its own loss; softmax cross-entropy in closed form."""
    if risk.loss is torch.nn.functional.cross_entropy and not y.is_floating_point():
        p = z.softmax(-1)
        return torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)

    def one(z: Tensor, y: Tensor) -> Tensor:
        return risk.loss(z.unsqueeze(0), y.unsqueeze(0))

    found: Tensor = torch.func.vmap(torch.func.jacrev(torch.func.grad(one)))(z, y)
    return found


def _exact_trace(H: Hessian, W: Tensor, unit: Tensor) -> Estimate:
    values, vectors = torch.linalg.eigh((W @ W.T).double())
    kept = values > values[-1] * len(W) * torch.finfo(W.dtype).eps
    total, products = 0.0, 0
    for mu, a in zip(values[kept].tolist(), vectors[:, kept].T.to(W), strict=True):
        for start in range(0, len(unit), PRODUCTS_AT_ONCE):
            part = torch.arange(start, min(start + PRODUCTS_AT_ONCE, len(unit)), device=W.device)
            V = torch.zeros(len(part), len(a), len(unit), dtype=W.dtype, device=W.device)
            V[torch.arange(len(part)), :, part] = a * unit[part].unsqueeze(1)
            rows = V.flatten(1)
            total += mu * float((rows * (H @ rows.T).T).double().sum())
            products += len(part)
    return Estimate(total, 0.0, 1, products=products, method="exact")


def _exact_max(H: Hessian, W: Tensor, unit: Tensor) -> Estimate:
    total, d = 0.0, len(unit)
    for s, row in enumerate(W):
        block = torch.zeros(d, d, dtype=W.dtype, device=W.device)
        for start in range(0, d, PRODUCTS_AT_ONCE):
            part = torch.arange(start, min(start + PRODUCTS_AT_ONCE, d), device=W.device)
            V = torch.zeros(W.numel(), len(part), dtype=W.dtype, device=W.device)
            V[s * d + part, torch.arange(len(part))] = unit[part]
            block[:, part] = (H @ V)[s * d : (s + 1) * d] * unit.unsqueeze(1)
        top = torch.linalg.eigvalsh((block + block.T) / 2)[-1]
        total += float(top) * float(row @ row)
    return Estimate(total, 0.0, 1, products=W.numel(), method="exact")


def _probed(H: Hessian, W: Tensor, unit: Tensor, draws: int, generator: Generator) -> Estimate:
    values: list[Float[Tensor, " k"]] = []
    for start in range(0, draws, PRODUCTS_AT_ONCE):
        count = min(PRODUCTS_AT_ONCE, draws - start)
        eta, z = (_signs((count, len(unit)), W, generator) for _ in range(2))
        V = ((eta @ W.T).unsqueeze(2) * (z * unit).unsqueeze(1)).flatten(1)
        values.append((V * (H @ V.T).T).double().sum(1))
    found = torch.cat(values)
    stderr = float(found.std()) / math.sqrt(draws)
    return Estimate(float(found.mean()), stderr, draws, products=draws, method="probes")


def _signs(shape: tuple[int, int], like: Tensor, generator: Generator) -> Tensor:
    bits = torch.randint(2, shape, generator=generator, device=generator.device)
    return (2 * bits - 1).to(like)
