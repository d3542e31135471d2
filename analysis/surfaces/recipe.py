"""What decides a surface beside the weights: axes, grid, metrics, examples, treatment of normalisation layers."""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from landscape.surfaces.axes import MOST_AXES
from trainers.config import Count, NonNegative, Positive, Seed, Strict

VERSION = 1  # raise it when the same recipe comes to mean other numbers

AxisKind = Literal["random", "top", "bottom", "gradient", "sam", "asam", "obf", "own", "pca"]
Between = Literal["line", "bezier", "polygon", "plane"]
POINTS = {1: 101, 2: 51, 3: 17}
PERTURBATIONS = ("sam", "asam", "obf", "own")


class Recipe(Strict):
    """Everything that decides the values of a surface but the models; its hash names the file."""

    axes: tuple[AxisKind, ...] = ("random", "random")
    """One to three of: random, top and bottom (Hessian eigenvectors), gradient, sam, asam, obf, own (the perturbation
    that the run was trained with), pca (principal directions of the run's checkpoints). A name given twice takes the
    next one of its kind."""
    normalise: Literal["filter", "layer", "none"] = "filter"
    """Random directions: scaled filter by filter, layer by layer, or not at all."""
    radius: tuple[Positive, ...] | None = None
    """Reach along each axis, in the axis' own unit; None is 1, twice a perturbation, or what the checkpoints need."""
    points: tuple[Annotated[int, Field(ge=2)], ...] | None = None
    """Points along each axis; None is 101 on a line, 51 in a plane, 17 in a volume."""
    between: Between | None = None
    """Instead of axes: the line, a curve, or the plane through the given models."""
    align: bool = False
    """Permute the units of the other models to fit the first, before going between them."""
    metrics: tuple[str, ...] = ("loss", "error")
    """What is evaluated at each point: loss, error, error by class, or module:function of (outputs, targets) that gives
    a number for each example. Left out, it is the loss alone where a run's task is not classification."""
    splits: tuple[Literal["train", "validation", "test"], ...] = ("train", "test")
    """On what."""
    examples: Count | None = 512
    """Examples of each split, chosen at random once; None takes all."""
    batch_size: Count = 512
    """Examples of one forward pass; it matters for mode batch and recalibrate."""
    mode: Literal["eval", "batch", "recalibrate"] = "eval"
    """Normalisation layers: their running statistics, each batch's own, or statistics estimated anew at each point."""
    refine: Positive | None = None
    """Evaluate only where the surface bends by more than this share of its range; None evaluates every point."""
    precision: Literal["float32", "float64"] | None = None
    """Of the evaluation; None is the run's own."""
    seed: Seed = 0
    """Of random directions, of the choice of examples, and of eigenvectors' start."""
    batch: Count | None = None
    """Examples that gradient and perturbation axes are made of; None takes those of the first split."""
    rho: NonNegative | None = None
    """Radius of the perturbation axes; None is the run's own, or the method's default."""
    centred: bool = False
    """For pca: through the mean of the checkpoints, instead of through the last."""
    numbers: bool = True
    """Compute eigenvalues, trace and sharpness at the centre, to stand beside the picture."""

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        if not 1 <= len(self.axes) <= MOST_AXES:
            raise ValueError(f"`axes` must be one to {MOST_AXES} names, got {len(self.axes)}.")
        for kind in ("gradient", *PERTURBATIONS):
            if self.axes.count(kind) > 1:
                raise ValueError(
                    f"`axes` has {kind!r} twice: there is one such direction; take another for the second."
                )
        for name in ("radius", "points"):
            given = getattr(self, name)
            if given is not None and len(given) not in (1, self.dimensions):
                raise ValueError(f"`{name}` must be one number, or {self.dimensions}, one an axis, got {len(given)}.")
        if not self.metrics or not self.splits:
            raise ValueError("`metrics` and `splits` must name at least one each.")
        return self

    @property
    def dimensions(self) -> int:
        """Coordinates of a point."""
        return len(self.axes) if self.between is None else 2 if self.between == "plane" else 1

    @property
    def counts(self) -> tuple[int, ...]:
        """Points along each axis."""
        given = self.points or (POINTS[self.dimensions],)
        return given if len(given) == self.dimensions else given * self.dimensions

    def reach(self, defaults: tuple[float, ...]) -> tuple[float, ...]:
        """The radius along each axis, or the axis' default."""
        if self.radius is None:
            return defaults
        return self.radius if len(self.radius) == self.dimensions else self.radius * self.dimensions

    @property
    def title(self) -> str:
        """A few words for file names: what the axes are."""
        return f"between-{self.between}" if self.between else "-".join(self.axes)

    def key(self, *about: Any) -> str:
        """A hash of the recipe, of this version, and of what else decides the values."""
        text = json.dumps([VERSION, self.model_dump(mode="json"), *about], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def recipe(**options: Any) -> Recipe:
    """A recipe from keywords, with numbers where tuples of one are meant.

    Raises:
        ValueError: Naming what is wrong.
    """
    given = {k: v for k, v in options.items() if v is not None or k in ("examples", "refine")}
    for name in ("radius", "points"):
        if isinstance(given.get(name), int | float):
            given[name] = (given[name],)
    for name in ("axes", "metrics", "splits"):
        if isinstance(given.get(name), str):
            given[name] = (given[name],)
    made = Recipe.parse(given, where="the surface")
    assert isinstance(made, Recipe)
    return made
