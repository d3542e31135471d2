"""Random directions in the scale of the weights that they move: per filter, per layer, or per weight."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvTransposeNd

from landscape.complexity.layers import LAYERS
from landscape.functional import PureModel
from landscape.modules import unwrapped
from landscape.params import Params

How = Literal["filter", "layer", "weight", "dfilter", "dlayer", "none"]
OneDimensional = Literal["zero", "own norm", "as drawn"]

TINY = 1e-10  # added to ‖d_j‖, as in the code of Li et al.
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
UNITS: dict[str, str] = {
    "filter": "filter norms",
    "layer": "layer norms",
    "weight": "own sizes of the weights",
    "dfilter": "unit filters",
    "dlayer": "unit layers",
    "none": "as drawn",
}


@dataclass(frozen=True)
class Filters:
    """How the weights of a layer divide into filters, one an output.

    Attributes:
        outputs: The axis of outputs.
        groups: Parts that the first axis is cut into, each with filters of its own: a transposed convolution's groups,
            whose weights are (in, out / groups, *kernel).
    """

    outputs: int = 0
    groups: int = 1

    def norms(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The l2 norm of each filter, and the same in a shape that broadcasts against the weights."""
        cut = t if self.groups == 1 else t.unflatten(0, (self.groups, -1))
        kept = {self.outputs} if self.groups == 1 else {0, self.outputs + 1}
        sizes = torch.linalg.vector_norm(cut, dim=[i for i in range(cut.ndim) if i not in kept], keepdim=True)
        if self.groups == 1:
            return sizes, sizes
        return sizes, sizes.expand(-1, cut.shape[1], *[-1] * (cut.ndim - 2)).flatten(0, 1)


@dataclass(frozen=True, eq=False)
class Normalised:
    """A direction in the scale of the weights.

    Attributes:
        direction: Tensors by name; those that stand still by rule are left out.
        still: By name, how many filters (for "layer", tensors; for "weight", entries) stand still because their
            weights are zero.
        recipe: What was done, in JSON.
    """

    direction: Params
    still: Mapping[str, int]
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def warning(self) -> str:
        """What stands still against expectation, in words; empty if nothing does."""
        if not self.still:
            return ""
        what = {"weight": "weights that are zero", "layer": "layers of zero norm"}
        named = ", ".join(f"{count} in `{name}`" for name, count in list(self.still.items())[:5])
        more = f" and {len(self.still) - 5} more tensors" if len(self.still) > 5 else ""
        return (
            f"{what.get(self.recipe['normalise'], 'filters of zero norm')} stand still along the direction: {named}"
            f"{more}. The picture does not show the loss along them; normalise='none' or 'dfilter' moves them."
        )


def filters_of(model: nn.Module | PureModel) -> dict[str, Filters | None]:
    """How the parameters of a model divide into filters, by the modules that own them.

    Without it, every tensor of two or more axes has its outputs on the first. That is right for linear, convolution
    (grouped and depthwise ones too: a filter is what makes one output channel), bilinear, recurrent and attention
    layers (`in_proj_weight`), and for embeddings, where a "filter" is the vector of one token. The model adds what
    shapes do not tell:

    - transposed convolutions, and the `Conv1D` of the transformers library, have their outputs on the second axis;
    - parameters of normalisation layers, whatever their shape, count as one-dimensional, and so do scales of shape
      (n, 1, ...) in modules of unknown kind, such as the magnitudes of weight normalisation: their filters would be
      single numbers, and a filter-normalised direction would be ± the weight itself.

    Args:
        model: Any module; wrappers by torch.compile and DataParallel are looked through.

    Returns:
        By `named_parameters()` name, the filters, or None for what counts as one-dimensional.

    Source:
        Our definition; Li et al. (2018) take the first axis always.
    """
    module = model.module if isinstance(model, PureModel) else unwrapped(model)
    names = {id(p): name for name, p in module.named_parameters()}
    found: dict[str, Filters | None] = {}
    for owner in module.modules():
        for _, p in owner.named_parameters(recurse=False):
            found.setdefault(names[id(p)], _layout(owner, p))
    return found


def normalised(
    direction: Params,
    theta: Params,
    *,
    how: How = "filter",
    one_dimensional: OneDimensional = "zero",
    filters: Mapping[str, Filters | None] | None = None,
) -> Normalised:
    """Bring a direction d into the scale of the weights w that it moves.

    Tensors of two or more axes, with filters w_j, one an output:

    - "filter": d_j ‖w_j‖ / (‖d_j‖ + 1e-10);   "layer": the same over whole tensors;
    - "weight": d · w, entry by entry;
    - "dfilter": d_j / (‖d_j‖ + 1e-10);   "dlayer": the same over whole tensors;
    - "none": d as it is.

    Filter and layer norms make pictures of a ReLU network independent of rescaling its layers against each other. A
    filter of zero norm stands still under "filter", "layer" and "weight"; it is counted, not hidden.

    Args:
        direction: d, tensors by name; it may lack some of the parameters.
        theta: w, the parameters by name.
        how: See above.
        one_dimensional: What becomes of biases and of the weights of normalisation layers. "zero": they stand still,
            and are left out of the result. "own norm": d ‖w‖ / (‖d‖ + 1e-10) over the tensor; a bias that is still
            zero, as after initialisation, stands still and is counted. "as drawn": d as it is.
        filters: Where the outputs lie, see `filters_of`; None, or a name it lacks, means the first axis.

    Returns:
        The direction, what stands still, and the recipe. Norms are taken in at least single precision.

    Raises:
        ValueError: If `how` or `one_dimensional` is unknown, d has a parameter or shape that w has not, or nothing
            that moves is left.

    Source:
        Li et al. (2018), NeurIPS, section 4 and their code. Theirs replaces one-dimensional directions, where these
        are not ignored, by the weights themselves; we do not.
    """
    if how not in UNITS:
        raise ValueError(f"`how` must be one of {list(UNITS)}, got {how!r}.")
    if one_dimensional not in ("zero", "own norm", "as drawn"):
        raise ValueError(f"`one_dimensional` must be 'zero', 'own norm' or 'as drawn', got {one_dimensional!r}.")
    made: Params = {}
    still: dict[str, int] = {}
    held = 0
    for name, d in direction.items():
        w = theta.get(name)
        if w is None or w.shape != d.shape:
            own = "no such parameter" if w is None else tuple(w.shape)
            raise ValueError(f"`direction` has `{name}` of shape {tuple(d.shape)}, `theta` has {own}.")
        layout = (filters or {}).get(name, Filters()) if d.ndim > 1 else None
        if layout is None and one_dimensional == "zero":
            held += 1
            continue
        rule = how if layout is not None else "layer" if one_dimensional == "own norm" else "none"
        made[name], zeros = _scaled(d, w, rule, layout or Filters())
        if zeros:
            still[name] = zeros
    if not any(bool(t.any()) for t in made.values()):
        raise ValueError(
            f"nothing moves along the direction with `how` = {how!r} and `one_dimensional` = {one_dimensional!r}: all "
            "weights are zero, or only biases and normalisation layers are left. Choose other parameters, or 'none' "
            "and 'as drawn'."
        )
    recipe = {"normalise": how, "one_dimensional": one_dimensional, "held_tensors": held, "still": dict(still)}
    return Normalised(made, still, recipe)


def _scaled(d: Tensor, w: Tensor, how: How, layout: Filters) -> tuple[Tensor, int]:
    """The direction of one tensor, and how many of its filters, or entries, stand still."""
    if how == "none":
        return d, 0
    wide = torch.promote_types(d.dtype, torch.float32)
    d_wide, w_wide = d.to(wide), w.detach().to(d.device, wide)
    if how == "weight":
        return (d_wide * w_wide).to(d.dtype), int((w == 0).sum())
    if how in ("layer", "dlayer"):
        sizes = broad = torch.linalg.vector_norm(w_wide)
        lengths = torch.linalg.vector_norm(d_wide)
    else:
        sizes, broad = layout.norms(w_wide)
        lengths = layout.norms(d_wide)[1]
    if how in ("dfilter", "dlayer"):
        return (d_wide / (lengths + TINY)).to(d.dtype), 0
    return (d_wide * (broad / (lengths + TINY))).to(d.dtype), int((sizes == 0).sum())


def _layout(owner: nn.Module, p: Tensor) -> Filters | None:
    if p.ndim < 2 or isinstance(owner, NORMS):
        return None
    if isinstance(owner, _ConvTransposeNd):
        return Filters(1, owner.groups)
    if type(owner).__name__ == "Conv1D" and getattr(owner, "nf", None) == p.shape[1]:  # of transformers
        return Filters(1)
    known = isinstance(owner, (*LAYERS, nn.RNNCellBase))
    return None if not known and p.numel() == p.shape[0] else Filters()
