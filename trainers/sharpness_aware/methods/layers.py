"""Methods that treat layers or entries differently: SAM-ON, sparse SAM, muP²."""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import nn

from landscape.params import select
from landscape.perturbation import AscentStep, Constant
from trainers.sharpness_aware.composition import Composition
from trainers.sharpness_aware.masks import Chosen, DynamicMask, FisherMask, normalisation_parameters
from trainers.sharpness_aware.methods.registry import Adaptive, Scope, Setting, method, scaler
from trainers.sharpness_aware.radii import Times

Score = Literal["gradient", "weight", "random"]


@method("sam_on", "SAM that perturbs normalisation layers only", "2F+2B", "Mueller et al. (2023)", rho=0.5)
def sam_on(
    setting: Setting,
    *,
    layers: str = "",
    complement: bool = False,
    p: float = 2.0,
    adaptive: Adaptive = "none",
    eta: float = 0.0,
    scope: Scope = "all",
) -> Composition:
    """SAM-ON: eps is nonzero for the parameters of normalisation layers alone; the norm runs over those alone.

    Args:
        setting: The run.
        layers: A glob of parameter names, or a module, instead of the normalisation layers.
        complement: Perturb all other parameters instead (`no_norm` of the official code).
        p: Exponent of the ball's norm.
        adaptive: As for `sam`.
        eta: η of T = |w| + η.
        scope: Parameters that T scales.
    """
    trained = list(setting.trained.parameters) if setting.trained is not None else []
    names = [*trained, *(n for n, _ in setting.model.named_parameters() if n not in trained)]
    chosen = frozenset(select(names, layers, argument="layers")) if layers else normalisation_parameters(setting.model)
    mask = Chosen(chosen, complement).check(trained or names)
    return Composition(setting.radius, mask=mask, scaler=scaler(p, adaptive, eta, scope))


@method(
    "ssam_f", "SAM on the entries of largest Fisher information", "2F+2B, and the Fisher passes", "Mi et al. (2022)"
)
def ssam_f(setting: Setting, *, sparsity: float = 0.5, update_epochs: float = 5.0) -> Composition:
    """SSAM-F: see `FisherMask`. The reference data are `num_samples` training examples.

    Args:
        setting: The run.
        sparsity: Share of entries that are not perturbed, in [0, 1); 0 is SAM.
        update_epochs: Epochs between two updates of the mask.
    """
    return Composition(
        setting.radius, mask=FisherMask(sparsity, setting.steps(update_epochs, "update_epochs")) if sparsity else None
    )


@method("ssam_d", "SAM on a sparse set of entries that is dropped and regrown", "2F+2B", "Mi et al. (2022)")
def ssam_d(
    setting: Setting,
    *,
    sparsity: float = 0.5,
    update_epochs: float = 5.0,
    drop_rate: float = 0.5,
    drop: Score = "gradient",
    grow: Score = "random",
) -> Composition:
    """SSAM-D: see `DynamicMask`.

    Args:
        setting: The run.
        sparsity: Share of entries that are not perturbed, in [0, 1); 0 is SAM.
        update_epochs: Epochs between two updates of the mask.
        drop_rate: r of the drop rate.
        drop: Score that keeps a live entry.
        grow: Score that revives a dead one.
    """
    if not sparsity:
        return Composition(setting.radius)
    if setting.total_steps is None:
        raise ValueError("method 'ssam_d' drops less towards the end: pass `total_steps=`.")
    mask = DynamicMask(
        sparsity,
        setting.steps(update_epochs, "update_epochs"),
        setting.shared_generator(),
        drop_rate,
        drop,
        grow,
        setting.total_steps,
    )
    return Composition(setting.radius, mask=mask)


@method(
    "mup2",
    "SAM with a radius per layer that transfers across widths",
    "2F+2B",
    "Haas et al. (2024), working rules ours",
    "ours",
)
def mup2(
    setting: Setting,
    *,
    base_width: int = 64,  # noqa: ARG001 - read by the trainer, which makes `base_shapes` from it
    form: Literal["decoupled", "joint", "layerwise"] = "decoupled",
) -> Composition:
    """muP²: eps = ρ S g/‖S^(1/2) g‖, S = diag(s_l), s_l = (fan_out_l/fan_out_l°)/(fan_in_l/fan_in_l°).

    With r the ratio of the widths, s_l is r for input-like tensors (embeddings, first layers, biases, normalisation), 1
    for hidden and 1/r for output-like ones. It is ASAM's formula with T_l = √s_l. It means something only where
    initialisation and learning rates follow muP; the shapes of the base model (°) are `base_shapes` of
    `make_optimizer`.

    Args:
        setting: The run.
        base_width: Option `width` of the base model, where the trainer builds it.
        form: "decoupled" as above; "joint" ρ √r S g/‖S g‖; "layerwise" ρ √s_l g_l/‖g_l‖ for each tensor.
    """
    if setting.base_shapes is None:
        raise ValueError(
            "method 'mup2' compares shapes with a narrow model's: pass `base_shapes={name: shape}`, such as "
            "`{n: p.shape for n, p in base_model.named_parameters()}`; a configuration names that model's options "
            "instead, such as `base_model_options: {width: 64}`."
        )
    ratios = width_ratios(setting.model, setting.base_shapes)
    foreign = [n for n in (setting.trained.parameters if setting.trained is not None else ()) if n not in ratios]
    if foreign:
        raise ValueError(f"`base_shapes` must have a shape for {foreign[0]!r}, which the base optimizer trains.")
    if form == "joint":
        root = _width_ratio(setting.model, setting.base_shapes) ** 0.5
        return Composition(
            Times(setting.radius, root),
            scaler=AscentStep(1.0, metric=Constant(ratios), where="before"),
        )
    metric = Constant({name: s**0.5 for name, s in ratios.items()})
    step = AscentStep(1.0, metric=metric)
    if form == "layerwise":
        step = AscentStep(1.0, metric=metric, where="after", over="tensor")
    return Composition(setting.radius, scaler=step)


def width_ratios(model: nn.Module, base_shapes: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """s_l of every trainable parameter: how much faster its outputs grow with the width than its inputs.

    Fan-in and fan-out are read off the shape as torch's layers store it: (out, in, ...), the other way round for an
    embedding, and (out,) with fan-in 1 for vectors.

    Raises:
        ValueError: If `base_shapes` lacks a parameter, or has another number of dimensions.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    ratios = {}
    for name, p in model.named_parameters():
        if not p.requires_grad and name not in base_shapes:
            continue
        base = tuple(base_shapes.get(name, ()))
        if len(base) != p.ndim:
            raise ValueError(f"`base_shapes` must have a shape of {p.ndim} dimensions for {name!r}, got {base}.")
        fans = [_fans(shape, id(p) in embeddings) for shape in (tuple(p.shape), base)]
        (fan_out, fan_in), (base_out, base_in) = fans
        ratios[name] = (fan_out / base_out) / (fan_in / base_in)
    return ratios


def _width_ratio(model: nn.Module, base_shapes: Mapping[str, Sequence[int]]) -> float:
    """The ratio of the widths, r: how much the longest side of any tensor has changed, up or down."""
    ratios = [
        size / base
        for name, p in model.named_parameters()
        if p.requires_grad
        for size, base in zip(p.shape, base_shapes[name], strict=True)
    ]
    return max(ratios, key=lambda r: max(r, 1 / r), default=1.0)


def _fans(shape: tuple[int, ...], embedding: bool) -> tuple[float, float]:
    if len(shape) < 2:
        return float(shape[0]) if shape else 1.0, 1.0
    rest = 1
    for size in shape[2:]:
        rest *= size
    return (float(shape[1]), float(shape[0])) if embedding else (float(shape[0]), float(shape[1] * rest))
