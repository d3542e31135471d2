"""Sharpness-aware training in Hugging Face's `Trainer`."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.objectives import obf_loss
from trainers.sharpness_aware.engine import SharpnessAware
from trainers.sharpness_aware.optimizers import make_optimizer

try:
    from transformers import Trainer
except ImportError as error:
    raise ImportError(
        "`trainers.integrations.hugging_face` needs transformers: pip install 'landscape-lab[text]'"
    ) from error

Objective = Callable[[Any, Mapping[str, Any]], Tensor]


class SharpnessAwareTrainer(Trainer):
    """A `Trainer` that trains with a method of the SAM family; everything else is as in `Trainer`.

    The optimizer that the arguments ask for becomes the base optimizer. Each micro-batch of an accumulated step has its
    own perturbation, made from its own mean loss, and counts by its number of label tokens (equally, for models whose
    loss does not count them); methods that must see the whole batch, and `sharing="batch"`, see all of it. Clipping by
    `max_grad_norm` acts once, on the step's final gradient, after unscaling and the average over processes. The logged
    loss is that of `SharpnessAware.step`: at the clean weights wherever a pass is made there.

    Perturbation and average over processes are the optimizer's, so a processes's gradients are not synchronised in the
    passes; tokens are averaged over processes by the optimizer too.

    Args:
        *args: As for `Trainer`.
        method: A name of `METHODS`.
        method_options: Further options of `make_optimizer`, such as {"rho": 0.05, "alpha": 0.4}.
        ascent: ascent(outputs, inputs), the objective that the perturbation ascends; None takes `token_obf` where the
            method ascends OBF.
        **kwargs: As for `Trainer`.

    Raises:
        ValueError: With DeepSpeed or FSDP, or where `method_options` has what the Trainer decides itself.
    """

    def __init__(
        self,
        *args: Any,
        method: str = "sam",
        method_options: Mapping[str, Any] | None = None,
        ascent: Objective | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.method, self.method_options, self.ascent = method, dict(method_options or {}), ascent
        theirs = {"grad_clip": "max_grad_norm", "grad_scaler": "fp16", "lr": "learning_rate", "base": "optim"}
        for name in theirs.keys() & self.method_options.keys():
            raise ValueError(f"`method_options` has {name!r}: the Trainer's argument `{theirs[name]}` decides that.")
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError(
                "SharpnessAwareTrainer moves whole weights, which DeepSpeed and FSDP keep in shards: train with DDP."
            )
        if self.args.world_size > 1:
            self.args.average_tokens_across_devices = False
        self._micro_batches: list[Any] = []
        self._position = 0
        self._told = 0  # the wrapper that hears of skipped steps

    # -- the optimizer -----------------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Make the base optimizer as `Trainer` does, and the method around it."""
        base = super().create_optimizer() if model is None else super().create_optimizer(model)
        if _engine(base) is None and base is not None and self.model is not None:
            options = dict(self.method_options)
            if self.args.max_steps > 0:
                options.setdefault("total_steps", self.args.max_steps)
            scaler = getattr(self.accelerator, "scaler", None)
            self.optimizer = make_optimizer(self.method, self.model, base, grad_scaler=scaler, **options)
        optimizer: Any = self.optimizer
        return optimizer  # type: ignore[no-any-return]

    @property
    def sharpness_aware(self) -> SharpnessAware:
        """The optimizer itself, inside what accelerate wraps around it."""
        engine = _engine(self.optimizer)
        if engine is None:
            raise ValueError("the optimizer has not been created yet, or is not sharpness-aware.")
        return engine

    def _take_over_scaling(self, engine: SharpnessAware) -> None:
        """The engine unscales and skips by itself; accelerate only hears whether a step was skipped."""
        wrapped: Any = self.optimizer
        if getattr(wrapped, "scaler", None) is None and (not engine.skip_nonfinite or id(wrapped) == self._told):
            return
        wrapped.scaler, self._told = None, id(wrapped)

        def note(*_: Any) -> None:
            wrapped._is_overflow = bool(engine.last.overflow)

        engine.register_step_post_hook(note)

    # -- a step ------------------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """As in `Trainer`; keeps the micro-batches of the step that follows."""
        samples, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._micro_batches, self._position = list(samples), 0
        return samples, count

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """All passes of one micro-batch; leaves the step's gradient so far in `.grad`, as `Trainer` does."""
        engine = self.sharpness_aware
        if engine.needs_previous and engine.previous_is_lost:
            raise ValueError(
                f"method {self.method!r} evaluates the previous batch again, which the Trainer cannot give back after "
                f"a resume: train without `resume_from_checkpoint`, or with another method."
            )
        self._take_over_scaling(engine)
        if self._position == 0:
            self._sizes = self._count(num_items_in_batch)
        i, self._position = self._position, self._position + 1
        share = self._sizes[i] / sum(self._sizes)
        if engine.needs_batch:
            return self._whole_step(model, engine) if i == 0 else torch.zeros((), device=self.args.device)
        if self._sizes[i] == 0:
            return torch.zeros((), device=self.args.device)  # no label counts in this micro-batch
        descent, ascent = self._closures(model, inputs, num_items_in_batch, self._sizes[i])
        return share * engine.accumulate(descent, size=self._sizes[i], ascent=ascent).to(self.args.device)

    def _whole_step(self, model: nn.Module, engine: SharpnessAware) -> Tensor:
        """Evaluate all micro-batches of the step at once."""
        chosen = [(batch, n) for batch, n in zip(self._micro_batches, self._sizes, strict=True) if n]
        pairs = [self._closures(model, batch, self._counted, n) for batch, n in chosen]
        ascents = [a for _, a in pairs if a is not None]
        loss = engine.evaluate([d for d, _ in pairs], sizes=[n for _, n in chosen], ascent=ascents or None)
        return loss.to(self.args.device)

    def _count(self, items: Tensor | int | None) -> list[int]:
        """What each micro-batch of the step counts: its label tokens, or 1 where the Trainer does not count them."""
        self._counted = items
        batches = self._micro_batches or [None]
        if items is None:
            return [1] * len(batches)
        if len(batches) == 1:
            return [max(1, int(torch.as_tensor(items).sum()))]
        counts = [
            super(SharpnessAwareTrainer, self).get_batch_samples(iter([b]), 1, self.args.device)[1] for b in batches
        ]
        sizes = [int(torch.as_tensor(count).sum()) for count in counts]
        return sizes if sum(sizes) else [1] * len(sizes)

    def _closures(
        self, model: nn.Module, inputs: dict[str, Any], items: Any, size: int
    ) -> tuple["_Descent", "_Ascent | None"]:
        count = None if items is None else size
        descent = _Descent(self, model, inputs, count)
        if self.sharpness_aware.parts.ascent == "loss" and self.ascent is None:
            return descent, None
        return descent, _Ascent(self, model, inputs, count, self.ascent or token_obf)

    def _plain_step(self, model: nn.Module, inputs: dict[str, Any], count: int | None) -> Tensor:
        """`Trainer`'s own forward and backward pass, on the mean loss of one micro-batch."""
        steps, self.current_gradient_accumulation_steps = self.current_gradient_accumulation_steps, 1
        try:
            with self._quiet(model):
                loss: Tensor = super().training_step(model, inputs, count)
        finally:
            self.current_gradient_accumulation_steps = steps
        return loss

    def _quiet(self, model: nn.Module) -> AbstractContextManager[Any]:
        """A block without synchronisation of gradients: the engine averages them, once a step."""
        several = self.args.world_size > 1
        return self.accelerator.no_sync(model) if several else nullcontext()

    # -- clipping ----------------------------------------------------------------------------------------------------

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        self.sharpness_aware.grad_clip = self.args.max_grad_norm
        return self._get_grad_norm(model)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor:  # noqa: ARG002 - as `Trainer` calls it
        if grad_norm is not None:
            return grad_norm
        trained = (p for group in self.sharpness_aware.param_groups for p in group["params"])
        grads = [p.grad for p in trained if p.grad is not None]
        return nn.utils.get_total_norm(grads) if grads else torch.zeros(())


class _Descent:
    """The closure of a micro-batch's training loss."""

    def __init__(
        self, trainer: SharpnessAwareTrainer, model: nn.Module, inputs: dict[str, Any], count: int | None
    ) -> None:
        self.trainer, self.model, self.inputs, self.count = trainer, model, inputs, count

    def __call__(self) -> Tensor:
        return self.trainer._plain_step(self.model, self.inputs, self.count)

    def forward(self) -> Tensor:
        """The loss alone."""
        return self.with_outputs()[0].detach()

    def with_outputs(self) -> tuple[Tensor, Any, dict[str, Any]]:
        """The training loss with its graph, the model's outputs, and the inputs on their device."""
        trainer = self.trainer
        self.model.train()
        inputs = trainer._prepare_inputs(self.inputs)
        with trainer.compute_loss_context_manager():
            count = None if self.count is None else torch.as_tensor(self.count, device=trainer.args.device)
            loss, outputs = trainer.compute_loss(
                self.model, dict(inputs), return_outputs=True, num_items_in_batch=count
            )
        return loss.mean(), outputs, inputs


class _Ascent(_Descent):
    """The closure of a micro-batch's ascent objective."""

    def __init__(self, *args: Any) -> None:
        *args, self.objective = args  # type: ignore[assignment]
        super().__init__(*args)
        self.clean_loss: Tensor | None = None

    def __call__(self) -> Tensor:
        with self.trainer._quiet(self.model):
            loss, outputs, inputs = self.with_outputs()
            with self.trainer.compute_loss_context_manager():
                value: Tensor = self.objective(outputs, inputs)
            self.clean_loss = loss.detach()
            self.trainer.accelerator.backward(value)
        return value.detach()


def token_obf(outputs: Any, inputs: Mapping[str, Any], *, C: float | None = None, gamma: float = 1.0) -> Tensor:
    """The OBF objective on a Hugging Face model's logits, a mean over label tokens, or over examples.

    Logits of shape (batch, tokens, vocabulary) are taken for a causal language model's: position t predicts token
    t + 1, and labels of -100 do not count. Logits of shape (batch, classes) are a classifier's.

    Args:
        outputs: With `logits`, or a tuple (loss, logits, ...).
        inputs: With `labels`.
        C: As for `obf_loss`; for a language model the default, the vocabulary's size, puts chance level near zero.
        gamma: As for `obf_loss`.

    Raises:
        ValueError: If there are no labels, or logits of another shape.
    """
    logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs[1]
    labels = inputs.get("labels")
    if labels is None or logits.ndim not in (2, 3):
        raise ValueError(
            f"`token_obf` needs `labels`, and logits of 2 or 3 dimensions, got {tuple(logits.shape)}: pass `ascent=` "
            f"for another objective."
        )
    if logits.ndim == 3:
        logits, labels = logits[:, :-1], labels[:, 1:]
        counted = labels != -100
        logits, labels = logits[counted], labels[counted]
    return obf_loss(logits, labels, C=C, gamma=gamma)


def _engine(optimizer: Any) -> SharpnessAware | None:
    """The sharpness-aware optimizer inside accelerate's wrappers, or None."""
    while optimizer is not None and not isinstance(optimizer, SharpnessAware):
        optimizer = getattr(optimizer, "optimizer", None)
    return optimizer
