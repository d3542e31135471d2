"""A method and the base optimizer under it as one frozen value, checked when it is made."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import NoneType
from typing import Any, Literal, get_args

from torch.amp import GradScaler
from torch.optim import Optimizer

from landscape.naming import nearest
from trainers.options import Frozen, validated
from trainers.sharpness_aware.arguments import (
    check_base,
    check_counts,
    check_flags,
    check_given_base,
    check_numbers,
)
from trainers.sharpness_aware.gates import AdaptiveNorm, Bernoulli, EveryK, Gate, Window
from trainers.sharpness_aware.methods import Method
from trainers.sharpness_aware.methods.own import method_named, options_of
from trainers.sharpness_aware.radii import (
    ConstantRadius,
    CosineRadius,
    LinearRamp,
    LrMultiple,
    ProportionalRadius,
    Radius,
    StartJump,
)
from trainers.sharpness_aware.ranks import Sharing

Base = Literal["sgd", "adamw", "bsam"]
RadiusSchedule = Literal["constant", "lr", "lr_multiple", "linear", "start_jump", "cosine"]
GateName = Literal["periodic", "random", "adaptive"]
OF_BASE = ("lr", "momentum", "nesterov", "betas", "weight_decay")
EXAMPLES = {"options": {"alpha": 0.1}, "gate_options": {"k": 5}, "base_shapes": {"0.weight": (64, 10)}}
GATES: dict[str, type[Gate]] = {"periodic": EveryK, "random": Bernoulli, "adaptive": AdaptiveNorm}


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """What `make_optimizer` is told: its keywords are these fields, and the method's knobs are `options`.

    Weight decay belongs to the base optimizer and acts at the restored weights, so a perturbation depends on the data's
    loss alone. Clipping acts on the final gradient, after unscaling and the average over ranks.

    Attributes:
        method: A name of `METHODS` (`landscape list methods`).
        base: "sgd", "adamw", or a torch optimizer over the model's parameters, or some of them: those are perturbed,
            clipped and cleared, and no others. Its groups may have `maximize`, and a `rho` of their own. Some methods
            fix it.
        lr: Learning rate of the base optimizer; its maximum, where a schedule follows.
        momentum: Of SGD.
        nesterov: Of SGD.
        betas: Of AdamW and bSAM.
        weight_decay: Of the base optimizer; biases and other tensors of one dimension get none.
        decay_all: Decay every parameter.
        rho: Radius; None takes the method's default. A parameter group's own `rho` goes before it.
        rho_schedule: "constant"; "lr" between `rho_min` at `lr_min` and `rho` at `lr`; "lr_multiple", rho times the
            learning rate; "linear" from `rho_min` to `rho` over `rho_steps` steps; "start_jump", zero for `rho_steps`
            steps; "cosine" from `rho` to `rho_min` over `total_steps`.
        rho_min: Smallest radius of a schedule.
        rho_steps: Steps of "linear" and "start_jump".
        lr_min: Smallest learning rate of the schedule, for "lr".
        ascent: "obf" makes the perturbation ascend the OBF objective; `step` then needs ascent closures.
        gate: Perturb only some steps: "periodic" (every `k`), "random" (probability `p`), "adaptive" (AE-SAM's rule),
            or a gate of your own; it acts besides the method's own gate.
        gate_options: Knobs of the gate, such as {"k": 5}.
        window: Perturb only steps from the first up to, not including, the second (late-phase SAM).
        sharing: Who shares a perturbation: each "chunk" (closure) its own, all chunks of this rank's "batch", a
            "group" of ranks, or all ("global").
        group: Process group of all ranks; None is the default.
        group_size: Ranks that share, for "group".
        same_rng: All passes of a step draw the same random numbers.
        shrink_perturb: f of `ShrinkPerturb`.
        grad_clip: Largest norm of the final gradient.
        grad_scaler: torch's scaler, for float16; closures multiply the loss by its scale.
        skip_nonfinite: Skip a step in which a loss or gradient of any pass is NaN or infinite; nothing moves, and
            `last.overflow` says where it was.
        total_steps: Length of the run, for schedules that need it.
        steps_per_epoch: Steps of an epoch, for methods that count epochs.
        base_shapes: Shapes of the base model's parameters, for muP².
        examples: Number of training examples, for bSAM.
        prior_precision: Of bSAM.
        damping: Of bSAM.
        parallel_gradients: Take SAMPa's two gradients on two processes that get the same batches (see
            `parallel_gradients.Pair`), instead of splitting batches over processes.
        diagnose: Also record the cosine of clean and perturbed gradient, and the final gradient's norm.
        seed: Of the method's own randomness.
        options: The method's knobs; those left out have their defaults, and follow the method where
            `dataclasses.replace` changes it.

    Raises:
        ValueError: For an unknown method or option (with the nearest name), or a value out of range.
    """

    method: str
    base: Base | Optimizer = "sgd"
    lr: float | None = None
    momentum: float = 0.0
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    decay_all: bool = False
    rho: float | None = None
    rho_schedule: RadiusSchedule = "constant"
    rho_min: float = 0.0
    rho_steps: int = 0
    lr_min: float = 0.0
    ascent: Literal["loss", "obf"] | None = None
    gate: GateName | Gate | None = None
    gate_options: Mapping[str, Any] | None = field(default=None, hash=False)
    window: tuple[int, int | None] | None = None
    sharing: Sharing = "chunk"
    group: Any = None
    group_size: int | None = None
    same_rng: bool = True
    shrink_perturb: float = 0.0
    grad_clip: float | None = None
    grad_scaler: GradScaler | None = None
    skip_nonfinite: bool = False
    total_steps: int | None = None
    steps_per_epoch: int | None = None
    base_shapes: Mapping[str, Sequence[int]] | None = field(default=None, hash=False)
    examples: int | None = None
    prior_precision: float = 40.0
    damping: float = 0.1
    diagnose: bool = False
    parallel_gradients: bool = False
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def of(cls, method: str, base: Base | Optimizer, settings: Mapping[str, Any]) -> "MethodSpec":
        """One from keywords, of which those that are no field are the method's knobs."""
        names = {f.name for f in fields(cls)} - {"options"}
        mine = {name: value for name, value in settings.items() if name in names}
        knobs = {name: value for name, value in settings.items() if name not in names}
        return cls(method=method, base=base, options=knobs, **mine)

    @property
    def entry(self) -> Method:
        """What the registry says of the method."""
        return method_named(self.method)

    def __post_init__(self) -> None:
        if not isinstance(self.method, str):
            raise ValueError(
                f"`method` must be a name, such as 'sam', got a {type(self.method).__name__}; the order is "
                f"`make_optimizer(method, model, base)`."
            )
        entry = method_named(self.method)
        self._check_types()
        others = [f.name for f in fields(self)]
        given = self.options.given if isinstance(self.options, Frozen) else self.options
        knobs = options_of(entry, given, owner=f"method {self.method!r}", text=False, others=others)
        self._freeze(options=Frozen(knobs, given))
        self._check_names(entry)
        self._check_base(entry)
        if entry.rho is None and self.rho:
            raise ValueError(f"`rho` has no meaning for method {self.method!r}, got {self.rho!r}; leave it out.")
        if self.grad_clip is not None and not self.grad_clip > 0:
            raise ValueError(f"`grad_clip` must be above 0, got {self.grad_clip!r}; None does not clip.")
        if self.gate_options and not isinstance(self.gate, str):
            raise ValueError(
                f"`gate_options` belong to a gate by name, got {dict(self.gate_options)!r} with gate {self.gate!r}."
            )
        if isinstance(self.gate, str):
            self._named_gate(self.gate)

    def _freeze(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _check_types(self) -> None:
        for f in fields(self):
            kinds, value = {f.type, *get_args(f.type)}, getattr(self, f.name)
            if value is None and kinds & {int, float} and NoneType not in kinds:
                raise ValueError(f"`{f.name}` must be a number, got None; leave it out for {f.default!r}.")
            if bool in kinds:
                check_flags(**{f.name: value})
            elif float in kinds:
                check_numbers(**{f.name: value})
            elif int in kinds or f.name == "window":
                check_counts(**{f.name: value})
        if not (isinstance(self.betas, tuple | list) and len(self.betas) == 2):
            raise ValueError(f"`betas` must be two numbers, got {self.betas!r}.")
        window = self.window
        if window is not None and not (isinstance(window, tuple | list) and len(window) == 2 and window[0] is not None):
            raise ValueError(f"`window` must be (first step, step after the last or None), got {window!r}.")
        if self.grad_scaler is not None and not hasattr(self.grad_scaler, "is_enabled"):
            raise ValueError(f"`grad_scaler` must be a torch.amp.GradScaler, got {self.grad_scaler!r}.")
        for name in ("options", "gate_options", "base_shapes"):
            mapping = getattr(self, name)
            if mapping is not None and not isinstance(mapping, Mapping):
                raise ValueError(f"`{name}` must be a mapping by name, such as {EXAMPLES[name]}, got {mapping!r}.")
            if mapping is not None and not isinstance(mapping, Frozen):
                self._freeze(**{name: Frozen(mapping)})
        self._freeze(betas=tuple(self.betas), window=window if window is None else tuple(window))

    def _check_names(self, entry: Method) -> None:
        if self.ascent not in (None, "loss", "obf"):
            raise ValueError(
                f"`ascent` must be 'loss' or 'obf', got {self.ascent!r}.{nearest(str(self.ascent), ('loss', 'obf'))}"
            )
        if self.ascent == "obf" and not entry.other_ascent:
            raise ValueError(
                f"`ascent` 'obf' has no meaning for method {self.method!r}: it does not ascend an objective's gradient."
            )
        for name, values in (("base", Base), ("sharing", Sharing), ("rho_schedule", RadiusSchedule)):
            value, known = getattr(self, name), get_args(values)
            if value not in known and not (name == "base" and not isinstance(value, str)):
                raise ValueError(f"`{name}` must be one of {known}, got {value!r}.{nearest(str(value), known)}")

    def _check_base(self, entry: Method) -> None:
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"`weight_decay` must be finite and >= 0, got {self.weight_decay!r}.")
        if not isinstance(self.base, str):
            check_base(self.base)
            mine = {f.name: (getattr(self, f.name), f.default) for f in fields(self) if f.name in OF_BASE}
            check_given_base(self.base, {name: value for name, (value, usual) in mine.items() if value != usual})
            return
        if entry.base is not None and self.base not in ("sgd", entry.base):  # the first is what is said of none
            alone = f", or take method {self.base!r} for that optimizer alone" if entry.rho is None else ""
            raise ValueError(
                f"`base` {self.base!r} is not what method {self.method!r} steps with, which is {entry.base!r}: leave "
                f"`base` out{alone}."
            )
        if self.base == "bsam" and entry.base != "bsam":
            raise ValueError(f"`base` 'bsam' belongs to method 'bsam', got method {self.method!r}; take sgd or adamw.")
        if self.lr is None:
            raise ValueError(f"`lr` is needed to make the base optimizer {self.base!r}.")
        if not (math.isfinite(self.lr) and self.lr >= 0):
            raise ValueError(f"`lr` must be finite and >= 0, got {self.lr!r}.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"`momentum` must be in [0, 1), got {self.momentum!r}.")

    def radius(self, lr: float) -> Radius:
        """The radius as a function of the learning rate, of which `lr` is the largest, and the step.

        Raises:
            ValueError: If it is out of range, or its schedule needs a length that is not known.
        """
        if self.entry.rho is None:
            return ConstantRadius(0.0)
        rho = self.entry.rho if self.rho is None else self.rho
        if self.rho_schedule in ("linear", "start_jump") and self.rho_steps < 1:
            raise ValueError(
                f"`rho_schedule` {self.rho_schedule!r} needs the steps that it takes: pass `rho_steps=`, got "
                f"{self.rho_steps!r}."
            )
        if self.rho_schedule == "cosine":
            if self.total_steps is None:
                raise ValueError("`rho_schedule` 'cosine' needs the length of the run: pass `total_steps=`.")
            return CosineRadius(rho, self.rho_min, self.total_steps)
        makers: dict[str, Radius] = {
            "constant": ConstantRadius(rho),
            "lr": ProportionalRadius(rho, self.rho_min, lr, self.lr_min),
            "lr_multiple": LrMultiple(rho),
            "linear": LinearRamp(rho, self.rho_min, self.rho_steps),
            "start_jump": StartJump(rho, self.rho_steps),
        }
        return makers[self.rho_schedule]

    def gates(self) -> list[Gate]:
        """The gates that act besides the method's own."""
        gates: list[Gate] = [] if self.window is None else [Window(*self.window)]
        if self.gate is not None:
            gates.append(self.gate if isinstance(self.gate, Gate) else self._named_gate(self.gate))
        return gates

    def _named_gate(self, name: str) -> Gate:
        if name not in GATES:
            raise ValueError(f"`gate` must be one of {sorted(GATES)}, got {name!r}.{nearest(str(name), GATES)}")
        kind = GATES[name]
        given = {"total": self.total_steps, "seed": self.seed, "offset": self.window[0] if self.window else 0}
        types = {f.name: f.type for f in fields(kind) if f.init and f.name not in (*given, "otherwise")}  # type: ignore[arg-type]
        options = dict(self.gate_options or {})
        for option, value in options.items():
            if option not in types:
                raise ValueError(
                    f"gate {name!r} has no option `{option}`; it has {list(types)}.{nearest(option, types)}"
                )
            if types[option] in (int, float):
                options[option] = validated(value, types[option], f"option `{option}` of gate {name!r}", text=False)
        accepted = inspect.signature(kind).parameters
        return kind(**options, **{k: v for k, v in given.items() if k in accepted})
