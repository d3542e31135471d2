"""What a part may know of the step it takes part in, and what it may keep from step to step."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from landscape.params import Params, real


@dataclass
class Moment:
    """One optimizer step, as the parts see it.

    Attributes:
        t: Steps taken before this one.
        lr: Learning rate of the first parameter group.
        rho: Radius of this step; the largest, where parameter groups have their own.
        theta: The clean weights by name; not to be written to.
        parameters: The parameters by name, as keys into `base.state`.
        base: The base optimizer.
        shares: The radius of each parameter divided by `rho`, by name; empty where all are one.
    """

    t: int
    lr: float
    rho: float
    theta: Params
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    base: Optimizer | None = None
    shares: dict[str, float] = field(default_factory=dict)

    def rates(self) -> dict[str, float]:
        """The learning rate of each parameter's group, by name; 0.0 for what the base optimizer does not train."""
        assert self.base is not None
        rates = {p: float(group["lr"]) for group in self.base.param_groups for p in group["params"]}
        return {name: rates.get(p, 0.0) for name, p in self.parameters.items()}

    def kept(self, key: str) -> dict[str, Tensor]:
        """What the base optimizer keeps under `key` for each parameter that has it, by name."""
        assert self.base is not None
        state = self.base.state
        held = {name: state[p].get(key) for name, p in self.parameters.items() if p in state}
        return {name: real(value) for name, value in held.items() if value is not None}

    def by_group(self, delta: Params) -> Params:
        """A displacement with each parameter's share of the radius; one without a radius stays where it is."""
        if not self.shares:
            return delta
        return {name: t * share for name, t in delta.items() if (share := self.shares[name])}


def restore(generator: Generator, state: Tensor) -> None:
    """Set a generator to a state; one of another kind of device has another form, and the generator stays as it is."""
    kept = state.cpu()
    if kept.numel() == generator.get_state().numel():
        generator.set_state(kept)


class Part:
    """A part of a method that keeps nothing from step to step unless it says so.

    Attributes:
        keeps: Names of the attributes that must persist: generators, numbers, and tensors by name.
    """

    keeps: ClassVar[tuple[str, ...]] = ()

    def state_dict(self) -> dict[str, Any]:
        """What must persist: tensors, numbers, strings and containers of them."""
        held = {name: getattr(self, name) for name in self.keeps}
        return {name: v.get_state() if isinstance(v, Generator) else type(v)(v) for name, v in held.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for name in self.keeps:
            held = getattr(self, name)
            if isinstance(held, Generator):
                restore(held, state[name])
            else:
                setattr(self, name, type(held)(state[name]))

    def forget(self, moment: Moment) -> None:
        """Drop what a step has left behind that was skipped or broke off."""

    def shared(self, moment: Moment) -> list[Params]:
        """What was made in this step and must be averaged over ranks; the engine writes the averages into it.

        Every rank must give as many, also after a pass that overflowed; tensors that one lacks count as zero.
        """
        return []
