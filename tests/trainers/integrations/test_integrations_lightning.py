import copy
import math

import pytest
import torch
from drop_in import by_hand, need, run_block, take
from networks import flat as weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trainers import make_optimizer, obf_loss
from trainers.integrations.lightning import SharpnessAwareModule
from trainers.randomness import seeded

need("pytorch_lightning")

import pytorch_lightning as pl  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:.*LeafSpec.*"
)


class Plain(pl.LightningModule):
    """A module that returns our optimizer, without the mix-in."""

    def __init__(self, method="sam", *, dropout=0.0, schedule=True, **options):
        super().__init__()
        with seeded(0):
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3))
        self.method, self.options, self.schedule = method, options, schedule
        self.seen, self.hooks = [], []

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        loss = nn.functional.cross_entropy(logits, y)
        self.log("loss", loss, on_step=True, on_epoch=True)
        if getattr(self, "ascending", False):
            return obf_loss(logits, y)
        return {"loss": loss}

    def configure_optimizers(self):
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        optimizer = make_optimizer(
            self.method,
            self,
            lr=0.1,
            momentum=0.9,
            weight_decay=0.01,
            grad_scaler=scaler,
            **{"rho": 0.1, **self.options},
        )
        if not self.schedule:
            return optimizer
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def on_before_optimizer_step(self, optimizer):
        self.hooks.append(float(sum((p.grad**2).sum() for p in self.parameters()).sqrt()))

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.seen.append(float(outputs["loss"]))


class Net(SharpnessAwareModule, Plain):
    pass


def data(n=12):
    with seeded(1):
        return torch.randn(n, 4, dtype=torch.float64), torch.randint(3, (n,))


def fit(module, folder, *, epochs=2, batch=4, checkpoint=None, **settings):
    given = {"precision": "64-true", "enable_checkpointing": False, **settings}
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, default_root_dir=str(folder), logger=False,
        enable_progress_bar=False, enable_model_summary=False, **given,
    )  # fmt: skip
    x, y = data()
    x = x if given["precision"] == "64-true" else x.float()
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=batch), ckpt_path=checkpoint)
    return trainer


def hand_written(net, *, method, clip=None, epochs=2, batch=4, rho=0.1):
    parameters = list(net.parameters())
    decayed = [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.01}]
    decayed.append({"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0})
    base = torch.optim.SGD(decayed, lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(base, 2, 0.5)
    x, y = data()
    losses = []
    for _ in range(epochs):
        for i in range(0, len(x), batch):
            cut = slice(i, i + batch)
            loss = [lambda c=cut: nn.functional.cross_entropy(net(x[c]), y[c])]
            ascents = [lambda c=cut: obf_loss(net(x[c]), y[c])] if method == "obf" else None
            grads, clean = by_hand(parameters, loss, [1.0], rho=rho, method=method, ascents=ascents)
            take(parameters, grads, base, clip=clip)
            scheduler.step()
            losses.append(float(clean))
    return losses


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("method", ["sam", "gsam", "obf"])
def test_a_module_trains_as_in_a_hand_written_loop(method, clip, tmp_path):
    module = Net(method)
    net = copy.deepcopy(module.net).double()
    trainer = fit(module, tmp_path, gradient_clip_val=clip)
    losses = hand_written(net, method=method, clip=clip)
    torch.testing.assert_close(weights(module), weights(net), rtol=1e-12, atol=1e-13)
    assert len(module.hooks) == len(losses)  # once a step, not once a pass
    assert trainer.global_step == len(losses)
    if method != "obf":
        torch.testing.assert_close(torch.tensor(module.seen), torch.tensor(losses))
    logged = trainer.callback_metrics
    assert float(logged["loss_step"]) == pytest.approx(losses[-1])  # the clean loss
    assert float(logged["loss_epoch"]) == pytest.approx(sum(losses[3:]) / 3)
    assert losses[-1] < losses[0]


def test_without_clipping_a_module_needs_no_mix_in(tmp_path):
    module = Plain("gsam")
    net = copy.deepcopy(module.net).double()
    fit(module, tmp_path)
    hand_written(net, method="gsam")
    torch.testing.assert_close(weights(module), weights(net), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("setting", [{"gradient_clip_val": 0.3}, {"accumulate_grad_batches": 3}])
def test_what_would_be_wrong_without_the_mix_in_is_refused(setting, tmp_path):
    with pytest.raises(ValueError, match="SharpnessAwareModule"):
        fit(Plain("gsam"), tmp_path, **setting)


def test_accumulation_is_refused_with_the_mix_in(tmp_path):
    with pytest.raises(ValueError, match="`accumulate_grad_batches` is 3"):
        fit(Net("sam"), tmp_path, accumulate_grad_batches=3)


def test_an_ordinary_optimizer_goes_lightnings_way(tmp_path):
    class Ordinary(Net):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Ordinary()
    before = weights(module)
    fit(module, tmp_path, accumulate_grad_batches=3)
    assert not torch.equal(before.double(), weights(module))


@pytest.mark.parametrize("method", ["sam", "gsam", "usam"])
def test_float16_with_lightnings_scaler(method, tmp_path):
    # unclipped: a scale of 2^8 is exact, and the steps are those of autocast without a scaler
    plugin = pl.plugins.precision.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**8))
    module = Net(method, schedule=False)
    net = copy.deepcopy(module.net)
    trainer = fit(module, tmp_path, precision=None, plugins=[plugin], gradient_clip_val=0.3)
    optimizer = make_optimizer(method, net, lr=0.1, momentum=0.9, weight_decay=0.01, rho=0.1, grad_clip=0.3)
    x, y = data()
    for _ in range(2):
        for i in range(0, 12, 4):

            def closure(cut=slice(i, i + 4)):
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.float16, cache_enabled=False):
                    loss = nn.functional.cross_entropy(net(x[cut].float()), y[cut])
                loss.backward()
                return loss

            optimizer.step(closure)
    # gradients in float16 between the layers: subnormal numbers differ between scales
    torch.testing.assert_close(weights(module), weights(net), rtol=1e-3, atol=1e-4)
    engine = trainer.optimizers[0]
    assert engine.last.overflow == ""
    assert engine.steps_taken == 6


def test_an_overflow_under_lightning_skips_one_step(tmp_path):
    class Overflowing(Net):
        def training_step(self, batch, batch_idx):
            out = super().training_step(batch, batch_idx)
            self.calls = getattr(self, "calls", 0) + 1
            return {"loss": out["loss"] * (math.inf if self.calls == 4 else 1)}

        def on_train_batch_end(self, *args):
            self.seen.append((self.trainer.optimizers[0].last.overflow, weights(self)))

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    plugin = pl.plugins.precision.MixedPrecision("16-mixed", "cpu", scaler)
    module = Overflowing("gsam")
    fit(module, tmp_path, precision=None, plugins=[plugin])
    assert [o for o, _ in module.seen] == ["", "second pass", "", "", "", ""]
    assert torch.equal(module.seen[0][1], module.seen[1][1])
    assert scaler.get_scale() == 2.0**7


def test_the_scaler_must_be_lightnings(tmp_path):
    class Without(Net):
        def configure_optimizers(self):
            return make_optimizer("sam", self, lr=0.1, rho=0.1)

    plugin = pl.plugins.precision.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(ValueError, match="`grad_scaler` must be Lightning's"):
        fit(Without(), tmp_path, precision=None, plugins=[plugin])


def test_bfloat16(tmp_path):
    module = Net("gsam")
    net = copy.deepcopy(module.net)
    fit(module, tmp_path, precision="bf16-mixed")
    hand_written(net.double(), method="gsam")
    torch.testing.assert_close(weights(module).double(), weights(net), rtol=0, atol=2e-2)
    assert all(math.isfinite(v) for v in module.seen)


@pytest.mark.parametrize("method", ["fsam", "looksam", "randsam"])
def test_a_resumed_fit_continues_identically(method, tmp_path):
    # after one epoch of two (Lightning itself does not find the place in an epoch again without a stateful loader);
    # dropout, momentum, the schedule, the method's own state; float32, to which Lightning rounds a float64 checkpoint
    def module():
        return Net(method, dropout=0.2)

    class Seeded(pl.Callback):  # Lightning does not keep the random state of the CPU
        def on_train_batch_start(self, trainer, *args):
            torch.default_generator.manual_seed(trainer.global_step)

    save = pl.callbacks.ModelCheckpoint(str(tmp_path), "{step}", save_top_k=-1, save_on_train_epoch_end=True)
    whole = module()
    with seeded(0):
        fit(whole, tmp_path, callbacks=[save, Seeded()], enable_checkpointing=True, precision="32-true")
    resumed = module()
    with seeded(0):
        file = str(tmp_path / "step=3.ckpt")
        trainer = fit(resumed, tmp_path, callbacks=[Seeded()], checkpoint=file, precision="32-true")
    assert trainer.optimizers[0].steps_taken == 6
    assert torch.equal(weights(whole), weights(resumed))


def test_several_optimizers_in_manual_optimisation(tmp_path):
    class Manual(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            with seeded(0):
                self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

        def configure_optimizers(self):
            return [make_optimizer("sam", part, lr=0.1, rho=0.1) for part in (self.a, self.b)]

        def training_step(self, batch, batch_idx):
            x, y = batch
            for part, wrapped in zip((self.a, self.b), self.optimizers(), strict=True):
                optimizer = wrapped.optimizer
                halves = [(x[:1], y[:1]), (x[1:], y[1:])]

                def closure(x, y, part=part, optimizer=optimizer):
                    optimizer.zero_grad()
                    loss = nn.functional.cross_entropy(part(x), y)
                    self.manual_backward(loss)
                    return loss

                optimizer.step([lambda h=h, c=closure: c(*h) for h in halves], sizes=[len(h[0]) for h in halves])

    module = Manual()
    net = copy.deepcopy(module.a).double()
    fit(module, tmp_path, epochs=1)
    x, y = data()
    parameters, base = list(net.parameters()), torch.optim.SGD(net.parameters(), lr=0.1)
    for i in range(0, 12, 4):
        cuts = [slice(i, i + 1), slice(i + 1, i + 4)]
        losses = [lambda c=c: nn.functional.cross_entropy(net(x[c]), y[c]) for c in cuts]
        take(parameters, by_hand(parameters, losses, [0.25, 0.75], rho=0.1)[0], base)
    torch.testing.assert_close(weights(module.a), weights(net), rtol=1e-12, atol=1e-13)


def test_the_document(tmp_path):
    names = run_block("lightning", folder=str(tmp_path))
    assert names["trainer"].global_step == 20
    assert float(names["trainer"].callback_metrics["loss"]) < 1.0
    assert names["trainer"].optimizers[0].last.perturbed
