"""Sharpness-aware training in Lightning's automatic optimisation.

Lightning itself is not imported, so that both of its packages (`lightning`, `pytorch_lightning`) will do.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor

from trainers.sharpness_aware.engine import SharpnessAware

Closure = Callable[[], Tensor | None]

if TYPE_CHECKING:  # the mixin's neighbour in the order of classes is a LightningModule

    class _Module:
        trainer: Any

        def optimizer_step(self, *args: Any, **kwargs: Any) -> None: ...

        def log(self, *args: Any, **kwargs: Any) -> None: ...
else:
    _Module = object


class SharpnessAwareModule(_Module):
    """Mix-in for a LightningModule whose `configure_optimizers` returns an optimizer of the SAM family.

        class Net(SharpnessAwareModule, lightning.LightningModule): ...

    Name it first. The hook `on_before_optimizer_step` and the clipping of `gradient_clip_val` then act once, on the
    step's final gradient, and `self.log` takes a name only in the first pass that logs it, so that a logged loss is
    the clean one. With precision "16-mixed" give the optimizer Lightning's scaler,
    `grad_scaler=self.trainer.precision_plugin.scaler`. Under DDP gradients are averaged over processes by the
    optimizer, once a step.

    For another ascent objective (OBF), `training_step` returns that objective while `self.ascending` is true; what it
    logs before is the clean loss.

    Attributes:
        ascending: Whether `training_step` is to return the objective that the perturbation ascends.
    """

    ascending: bool = False
    _pass: int = 0  # of the present step, from 1; 0 outside

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None, **kwargs: Any
    ) -> None:
        """All passes of a step, then hooks and clipping, then the update.

        Raises:
            ValueError: With `accumulate_grad_batches`, or another gradient scaler than Lightning's.
        """
        engine = getattr(optimizer, "optimizer", optimizer)
        if not isinstance(engine, SharpnessAware):
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure, **kwargs)
            return
        plugin = self.trainer.precision_plugin
        self._check(engine, plugin)
        descent = _Pass(self, optimizer_closure, ascending=False)
        ascent = _Pass(self, optimizer_closure, ascending=True) if engine.parts.ascent != "loss" else None
        self._pass = 0
        self._logged: dict[str, int] = {}  # the pass in which each name was logged
        try:
            with getattr(self.trainer.strategy, "block_backward_sync", nullcontext)():
                engine.evaluate(descent, ascent=ascent)
        finally:
            self._pass = 0
        optimizer_closure._result = descent.result  # what `training_step` returned at the first pass
        plugin._after_closure(self, optimizer)
        engine.step()

    def log(self, name: str, *args: Any, **kwargs: Any) -> None:
        """As Lightning's, but each name in one pass of a step alone, the first that logs it."""
        if not self._pass or self._logged.setdefault(name, self._pass) == self._pass:
            super().log(name, *args, **kwargs)

    def _check(self, engine: SharpnessAware, plugin: Any) -> None:
        batches = self.trainer.accumulate_grad_batches
        if batches != 1:
            raise ValueError(
                f"`accumulate_grad_batches` is {batches}: Lightning then hands over the last batch alone. Leave it at "
                f"1, and call `optimizer.step([closures], sizes=...)` in manual optimisation, or take larger batches."
            )
        if getattr(plugin, "scaler", None) is not engine.grad_scaler:
            raise ValueError(
                "`grad_scaler` must be Lightning's own: pass `grad_scaler=getattr(self.trainer.precision_plugin, "
                "'scaler', None)` to `make_optimizer` in `configure_optimizers`."
            )
        if self.trainer.world_size > 1 and self.trainer.gradient_clip_val:
            raise ValueError(
                "`gradient_clip_val` would clip each process's gradient before the average: pass `grad_clip=` to "
                "`make_optimizer` instead."
            )


class _Pass:
    """Lightning's closure as one pass of the engine.

    Attributes:
        result: What the first call has returned, as Lightning's closure keeps it.
    """

    def __init__(self, module: SharpnessAwareModule, closure: Any, *, ascending: bool) -> None:
        self.module, self.closure, self.ascending = module, closure, ascending
        self.result: Any = None

    def __call__(self) -> Tensor:
        module = self.module
        module.ascending = self.ascending
        module._pass += 1
        try:
            loss: Tensor | None = self.closure()
        finally:
            module.ascending = False
        if loss is None:
            raise ValueError("`training_step` returned None: a sharpness-aware step needs a loss in every pass.")
        if self.result is None:
            self.result = self.closure._result
        return loss
