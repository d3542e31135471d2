import copy
import math

import pytest
import torch
from drop_in import by_hand, need, run_block, take
from networks import flat as weights

from trainers import obf_loss
from trainers.randomness import seeded

need("transformers", "accelerate")

from transformers import (  # noqa: E402
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    TrainingArguments,
    get_scheduler,
)

from trainers.integrations.hugging_face import SharpnessAwareTrainer, token_obf  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def double_loss(outputs, labels, num_items_in_batch=None):
    """The models' own loss, which they take in float32, in float64."""
    logits = outputs["logits"][:, :-1].reshape(-1, 23)
    total = torch.nn.functional.cross_entropy(logits, labels[:, 1:].reshape(-1), ignore_index=-100, reduction="sum")
    return total / num_items_in_batch


class InOrder(SharpnessAwareTrainer):
    """Batches in the order of the data, losses in float64, and the losses that `training_step` returned."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"compute_loss_func": double_loss, **kwargs})

    def _get_train_sampler(self, *args, **kwargs):
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.returned = [*getattr(self, "returned", []), float(loss)]
        return loss


def language_model(kind="gpt2", dropout=0.0):
    with seeded(0):
        if kind == "gpt2":
            config = GPT2Config(
                vocab_size=23, n_positions=12, n_embd=8, n_layer=1, n_head=2,
                resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
            )  # fmt: skip
            return GPT2LMHeadModel(config).double()
        config = LlamaConfig(
            vocab_size=23, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=12,
        )  # fmt: skip
        return LlamaForCausalLM(config).double()


def rows(n=12):
    """Token rows; some labels do not count, so that micro-batches count different numbers of tokens.

    The first label never counts: it is no prediction's target, but some versions of `Trainer` count it for some models.
    """
    with seeded(1):
        tokens = torch.randint(23, (n, 9))
        labels = tokens.clone()
        for i in range(n):
            labels[i, : 1 + i % 5] = -100
    return [{"input_ids": t, "labels": label} for t, label in zip(tokens, labels, strict=True)]


def arguments(folder, **more):
    settings = {
        "output_dir": str(folder), "per_device_train_batch_size": 2, "learning_rate": 1e-2, "report_to": "none",
        "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1, "num_train_epochs": 2,
        "dataloader_pin_memory": False, "weight_decay": 0.1, "adam_epsilon": 1e-4,
    }  # fmt: skip
    return TrainingArguments(**{**settings, **more})


def batches(data, size):
    return [
        {k: torch.stack([row[k] for row in data[i : i + size]]) for k in data[0]} for i in range(0, len(data), size)
    ]


def decay_groups(model, decay):
    named = list(model.named_parameters())
    small = [n for n, p in named if "bias" in n or "ln_" in n or "norm" in n.lower()]
    return [
        {"params": [p for n, p in named if n not in small], "weight_decay": decay},
        {"params": [p for n, p in named if n in small], "weight_decay": 0.0},
    ]


def token_count(batch):
    return int((batch["labels"][:, 1:] != -100).sum())


def loss_of(model, batch):
    """Mean cross-entropy over the tokens that count, by hand."""
    logits = model(batch["input_ids"]).logits[:, :-1].reshape(-1, 23)
    return torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:].reshape(-1), ignore_index=-100)


def obf_of(model, batch):
    logits, labels = model(batch["input_ids"]).logits[:, :-1].reshape(-1, 23), batch["labels"][:, 1:].reshape(-1)
    counted = [i for i, label in enumerate(labels.tolist()) if label != -100]
    return obf_loss(logits[counted], labels[counted])


def hand_written(model, data, *, method, rho, accumulate, epochs, clip, lr=1e-2, batch=2, together=False):
    """A loop without Trainer: returns the losses of the steps."""
    parameters = list(model.parameters())
    base = torch.optim.AdamW(decay_groups(model, 0.1), lr=lr, eps=1e-4)
    micro = batches(data, batch)
    per_epoch = math.ceil(len(micro) / accumulate)
    scheduler = get_scheduler("linear", base, 0, per_epoch * epochs)
    losses = []
    for _ in range(epochs):
        for start in range(0, len(micro), accumulate):
            chunk = micro[start : start + accumulate]
            counts = [token_count(b) for b in chunk]
            shares = [c / sum(counts) for c in counts]
            functions = [lambda b=b: loss_of(model, b) for b in chunk]
            if together:
                functions = [lambda fs=functions, s=shares: sum(w * f() for w, f in zip(s, fs, strict=True))]
                shares = [1.0]
            ascents = [lambda b=b: obf_of(model, b) for b in chunk] if method == "obf" else None
            grads, loss = by_hand(
                parameters, functions, shares, rho=rho, method="gsam" if method == "gsam" else "sam", ascents=ascents
            )
            take(parameters, grads, base, clip=clip)
            scheduler.step()
            losses.append(float(loss))
    return losses


@pytest.mark.parametrize(
    ("method", "accumulate", "kind"),
    [
        ("sam", 1, "gpt2"),
        ("sam", 2, "llama"),
        ("gsam", 4, "gpt2"),  # the last step of an epoch has two micro-batches
        ("gsam", 1, "llama"),
        ("obf", 2, "gpt2"),
        ("obf", 1, "llama"),
    ],
)
def test_a_causal_language_model_trains_as_in_a_hand_written_loop(method, accumulate, kind, tmp_path):
    model = language_model(kind)
    theirs = copy.deepcopy(model)
    data = rows()
    trainer = InOrder(
        model,
        arguments(tmp_path, gradient_accumulation_steps=accumulate, max_grad_norm=0.5),
        train_dataset=data,
        method=method,
        method_options={"rho": 0.05},
    )
    trainer.train()
    losses = hand_written(theirs, data, method=method, rho=0.05, accumulate=accumulate, epochs=2, clip=0.5)
    torch.testing.assert_close(weights(model), weights(theirs), rtol=1e-10, atol=1e-11)
    per_step = [sum(trainer.returned[i : i + k]) for i, k in _steps(len(data) // 2, accumulate, 2)]
    torch.testing.assert_close(torch.tensor(per_step), torch.tensor(losses), rtol=1e-10, atol=0)
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    torch.testing.assert_close(torch.tensor(logged), torch.tensor(losses), rtol=0, atol=1e-4)
    assert losses[-1] < losses[0]


def _steps(micro, accumulate, epochs):
    """(first micro-batch, number of micro-batches) of every step; the last of an epoch may be short."""
    out = []
    for epoch in range(epochs):
        out += [(epoch * micro + i, min(accumulate, micro - i)) for i in range(0, micro, accumulate)]
    return out


def test_one_perturbation_for_all_micro_batches(tmp_path):
    model = language_model()
    theirs = copy.deepcopy(model)
    trainer = InOrder(
        model,
        arguments(tmp_path, gradient_accumulation_steps=3, max_grad_norm=0.5),
        train_dataset=rows(),
        method="gsam",
        method_options={"rho": 0.05, "sharing": "batch"},
    )
    trainer.train()
    losses = hand_written(theirs, rows(), method="gsam", rho=0.05, accumulate=3, epochs=2, clip=0.5, together=True)
    torch.testing.assert_close(weights(model), weights(theirs), rtol=1e-10, atol=1e-11)
    assert sum(trainer.returned[:3]) == pytest.approx(losses[0])
    assert trainer.sharpness_aware.last.m == sum(token_count(b) for b in batches(rows()[-6:], 2))


def test_an_unnormalised_method_does_not_depend_on_the_number_of_micro_batches(tmp_path):
    # equal token counts and one perturbation: k micro-batches are one batch; a loss divided by k would shrink it
    models = [language_model(), language_model()]
    for model, (batch, accumulate) in zip(models, [(6, 1), (2, 3)], strict=True):
        options = {"rho": 0.5, "sharing": "batch"}
        settings = arguments(tmp_path, gradient_accumulation_steps=accumulate, per_device_train_batch_size=batch)
        InOrder(model, settings, train_dataset=rows(), method="usam", method_options=options).train()
    torch.testing.assert_close(weights(models[0]), weights(models[1]), rtol=1e-10, atol=1e-12)


class Classifier(torch.nn.Module):
    """A model whose loss the Trainer divides by the number of micro-batches itself."""

    def __init__(self):
        super().__init__()
        with seeded(0):
            self.linear = torch.nn.Linear(4, 3).double()

    def forward(self, x, labels):
        logits = self.linear(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_micro_batch_is_perturbed_by_its_own_mean_loss(tmp_path):
    # USAM: with the loss divided by the two micro-batches, the perturbation would be half as long
    with seeded(1):
        data = [{"x": torch.randn(4, dtype=torch.float64), "labels": torch.randint(3, ())} for _ in range(8)]
    model, theirs = Classifier(), Classifier()
    trainer = InOrder(
        model,
        arguments(
            tmp_path,
            gradient_accumulation_steps=2,
            optim="sgd",
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            weight_decay=0.0,
        ),
        train_dataset=data,
        method="usam",
        method_options={"rho": 0.5},
        compute_loss_func=None,
    )
    trainer.train()
    parameters, losses = list(theirs.parameters()), []
    for pair in [batches(data, 2)[i : i + 2] for i in (0, 2)] * 2:
        total = [torch.zeros_like(p) for p in parameters]
        losses.append(0.0)
        for b in pair:
            loss = theirs(**b)["loss"]
            losses[-1] += float(loss) / 2
            kept = [p.detach().clone() for p in parameters]
            slopes = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for p, g in zip(parameters, slopes, strict=True):
                    p += 0.5 * g
            for t, g in zip(total, torch.autograd.grad(theirs(**b)["loss"], parameters), strict=True):
                t += g / 2
            with torch.no_grad():
                for p, old in zip(parameters, kept, strict=True):
                    p.copy_(old)
        with torch.no_grad():
            for p, g in zip(parameters, total, strict=True):
                p -= 1e-2 * g
    torch.testing.assert_close(weights(model), weights(theirs), rtol=1e-12, atol=1e-14)
    per_step = [sum(trainer.returned[i : i + 2]) for i in range(0, 8, 2)]
    assert per_step == pytest.approx(losses)


@pytest.mark.parametrize("method", ["fsam", "looksam", "obf", "aesam"])
def test_a_resumed_run_continues_identically(method, tmp_path):
    # shuffled data, dropout, AdamW moments, the schedule, the method's own state and generators
    def trainer(model, **more):
        settings = arguments(
            tmp_path, save_strategy="steps", save_steps=3, gradient_accumulation_steps=2, num_train_epochs=3, seed=5
        )
        options = {"rho": 0.05, **({"total_steps": 9} if method == "aesam" else {})}
        return SharpnessAwareTrainer(
            model, settings, train_dataset=rows(), method=method, method_options=options, **more
        )

    whole, resumed = language_model(dropout=0.1), language_model(dropout=0.1)
    with seeded(3):
        first = trainer(whole)
        first.train()
    with seeded(4):
        second = trainer(resumed)
        second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert torch.equal(weights(whole), weights(resumed))
    assert second.sharpness_aware.steps_taken == first.sharpness_aware.steps_taken == 9
    a, b = ({r["step"]: r["loss"] for r in t.state.log_history if "loss" in r} for t in (first, second))
    assert a == b


def test_sampa_trains_but_cannot_be_resumed(tmp_path):
    def trainer():
        settings = arguments(tmp_path, save_strategy="steps", save_steps=3, optim="sgd", max_grad_norm=0.0)
        return InOrder(language_model(), settings, train_dataset=rows(), method="sampa", method_options={"rho": 0.05})

    first = trainer()
    first.train()
    assert first.returned[-1] < first.returned[0]
    with pytest.raises(ValueError, match="previous batch again"):
        trainer().train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_the_models_own_loss_in_bfloat16(tmp_path):
    model = language_model().float()
    theirs = copy.deepcopy(model)
    settings = arguments(tmp_path, bf16=True, max_grad_norm=0.0, optim="sgd", lr_scheduler_type="constant")
    options = {"rho": 0.05}
    trainer = InOrder(
        model, settings, train_dataset=rows(), method="gsam", method_options=options, compute_loss_func=None
    )
    trainer.train()
    parameters = list(theirs.parameters())
    base = torch.optim.SGD(decay_groups(theirs, 0.1), lr=1e-2)
    for b in batches(rows(), 2) * 2:

        def loss(b=b):
            with torch.autocast("cpu", torch.bfloat16):
                logits = theirs(b["input_ids"]).logits
            logits = logits.float()[:, :-1].reshape(-1, 23)
            return torch.nn.functional.cross_entropy(logits, b["labels"][:, 1:].reshape(-1), ignore_index=-100)

        grads, _ = by_hand(parameters, [loss], [1.0], rho=0.05, method="gsam")
        take(parameters, grads, base)
    # twelve steps of size 0.01 |g|: the passes differ where a float32 sum rounds to another bfloat16
    torch.testing.assert_close(weights(model), weights(theirs), rtol=0, atol=1e-3)
    assert (weights(model) - weights(language_model().float())).abs().max() > 1e-2
    assert all(math.isfinite(v) for v in trainer.returned)


def test_a_loss_scale_changes_nothing_but_skipped_steps(tmp_path):
    # accelerate refuses fp16 on a CPU; its scaler alone takes the same way through the Trainer
    def trained(scaler, overflow_at=None):
        model = language_model()
        trainer = InOrder(
            model,
            arguments(tmp_path, gradient_accumulation_steps=2, max_grad_norm=0.5),
            train_dataset=rows(),
            method="gsam",
            method_options={"rho": 0.05},
        )
        trainer.accelerator.scaler = scaler
        rates, calls = [], [0]
        backward = trainer.accelerator.backward

        def counted(loss, **kwargs):
            calls[0] += 1
            backward(loss * math.inf if calls[0] == overflow_at else loss, **kwargs)

        trainer.accelerator.backward = counted

        class Rates(trainer_callback()):
            def on_step_end(self, args, state, control, **kwargs):
                rates.append((trainer.lr_scheduler.get_last_lr()[0], trainer.sharpness_aware.last.overflow))

        trainer.add_callback(Rates())
        trainer.train()
        return weights(model), rates

    plain, rates = trained(None)
    scaled, same = trained(torch.amp.GradScaler("cpu", init_scale=2.0**13))
    torch.testing.assert_close(scaled, plain, rtol=1e-12, atol=1e-14)
    assert [r for r, _ in same] == [r for r, _ in rates]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**13)
    _, skipped = trained(scaler, overflow_at=6)  # 4 passes a step: the second step's first chunk, second pass
    assert [o for _, o in skipped] == ["", "second pass", "", "", "", ""]
    assert scaler.get_scale() == 2.0**12
    assert skipped[1][0] == skipped[0][0] != skipped[2][0]  # the schedule waits for a skipped step


def trainer_callback():
    from transformers import TrainerCallback

    return TrainerCallback


def test_another_ascent_objective(tmp_path):
    # ascending the training loss itself is SAM
    models = [language_model(), language_model()]
    for model, ascent in zip(models, [None, lambda outputs, _: outputs["loss"]], strict=True):
        settings = arguments(tmp_path, optim="sgd")
        InOrder(model, settings, train_dataset=rows(), ascent=ascent, compute_loss_func=None).train()
    torch.testing.assert_close(weights(models[0]), weights(models[1]), rtol=1e-6, atol=1e-8)  # the loss is in float32


def test_token_obf_on_a_classifier_and_on_tokens():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.1, 0.0]], dtype=torch.float64)
    labels = torch.tensor([0, 2])
    assert torch.equal(token_obf({"logits": logits}, {"labels": labels}), obf_loss(logits, labels))
    tokens = torch.stack([torch.cat([logits, logits[:1]])])  # one row of three positions
    shifted = token_obf({"logits": tokens}, {"labels": torch.tensor([[1, 0, 2]])})
    assert torch.equal(shifted, obf_loss(logits, labels))
    masked = token_obf((None, tokens), {"labels": torch.tensor([[1, -100, 2]])}, gamma=0.5)
    assert torch.equal(masked, obf_loss(logits[1:], labels[1:], gamma=0.5))
    with pytest.raises(ValueError, match=r"`token_obf` needs `labels`"):
        token_obf({"logits": logits}, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grad_clip": 1.0}, "`max_grad_norm` decides"),
        ({"lr": 1.0}, "`learning_rate` decides"),
        ({"base": "adamw"}, "`optim` decides"),
    ],
)
def test_what_the_trainer_decides_is_not_an_option(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        InOrder(language_model(), arguments(tmp_path), train_dataset=rows(), method_options=options)


def test_methods_that_need_each_example_say_so(tmp_path):
    trainer = InOrder(language_model(), arguments(tmp_path), train_dataset=rows(), method="esam")
    with pytest.raises(ValueError, match="selects examples by their loss"):
        trainer.train()


def test_micro_batches_without_a_label_count_nothing(tmp_path):
    data = rows(4)
    for row in data[:2]:
        row["labels"] = torch.full_like(row["labels"], -100)
    empty_first, without = language_model(), language_model()
    settings = arguments(tmp_path, gradient_accumulation_steps=2, num_train_epochs=1)
    InOrder(empty_first, settings, train_dataset=data).train()
    InOrder(without, arguments(tmp_path, num_train_epochs=1), train_dataset=data[2:]).train()
    torch.testing.assert_close(weights(empty_first), weights(without), rtol=1e-12, atol=1e-14)


def test_the_document(tmp_path):
    names = run_block("hugging face", folder=str(tmp_path))
    assert len(names["losses"]) == 6
    assert names["losses"][-1] < names["losses"][0]
    assert names["trainer"].sharpness_aware.parts.ascent == "obf"
