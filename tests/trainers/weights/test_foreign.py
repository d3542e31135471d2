"""Weights from elsewhere, in the formats that libraries write: read as they are, or refused with the way out."""

import argparse
import collections
import datetime
import json
import pathlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from trainers import read_foreign, save_checkpoint
from trainers.files.tree import equal
from trainers.randomness import seeded
from trainers.runs.checkpoint import model_state
from trainers.weights.foreign import place
from trainers.weights.places import ending, files_of, weights_digest


class Net(nn.Module):
    """A convolution, BatchNorm and a classifier, so that there are buffers and dots in names."""

    def __init__(self, classes=3, width=4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width))
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))


def net(seed=0, **sizes):
    with seeded(seed):
        made = Net(**sizes)
        made.body[1].running_mean.normal_()
    return made


def renamed(state, prefix):
    return {prefix + name: t for name, t in state.items()}


def moved(model, by=1.0):
    return {name: t + by if t.is_floating_point() else t for name, t in model.state_dict().items()}


def fits(path, state, *, ema=False, model=None):
    """Read a file into a fresh model, and compare every number with what was written."""
    model = net(seed=9) if model is None else model
    weights = read_foreign(path, ema=ema, model=model)
    place(model, weights.tensors)
    assert equal(dict(model.state_dict()), {name: state[name] for name in model.state_dict()})
    return weights


# -- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [
    "", "module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "model._orig_mod.", "student.encoder.",
    "_fsdp_wrapped_module.", "module.module.",
])  # fmt: skip
@pytest.mark.parametrize("nest", [
    lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 3, "best_acc1": torch.tensor(0.7)},
    lambda s: {"checkpoint": {"net": s}, "optimizer": {"state": {}, "param_groups": []}},
], ids=["plain", "state_dict", "model", "deep"])  # fmt: skip
def test_prefixes_and_nesting_are_found(prefix, nest, tmp_path):
    state = net(5).state_dict()
    torch.save(nest(renamed(state, prefix)), tmp_path / "w.pt")
    fits(tmp_path / "w.pt", state)


def test_torch_compile_and_data_parallel_write_names_that_are_read(tmp_path):
    model = net(5)
    wrapped = nn.Module()
    wrapped._orig_mod = net(5)  # as torch.compile makes it, whose import takes seconds
    compiled = nn.DataParallel(wrapped)
    torch.save(compiled.state_dict(), tmp_path / "w.pth")
    assert not set(compiled.state_dict()) & set(model.state_dict())
    assert fits(tmp_path / "w.pth", model.state_dict()).notes == ()
    torch.save(model.state_dict(), tmp_path / "v.pth")
    weights = read_foreign(tmp_path / "v.pth", model=compiled)  # and the other way round
    place(compiled, weights.tensors)
    assert equal(dict(compiled.state_dict()), renamed(model.state_dict(), "module._orig_mod."))


def test_a_name_and_its_compiled_one_must_have_the_same_weights(tmp_path):
    state = net(5).state_dict()
    torch.save(state | {"_orig_mod.fc.weight": state["fc.weight"].clone()}, tmp_path / "w.pt")
    assert fits(tmp_path / "w.pt", state).notes == ()
    for names in (("fc.weight", "_orig_mod.fc.weight"), ("_orig_mod.fc.weight", "fc.weight")):
        both = dict(zip(names, (state["fc.weight"], state["fc.weight"] + 1), strict=True))
        torch.save({"state_dict": {k: t for k, t in state.items() if k != "fc.weight"} | both}, tmp_path / "v.pt")
        with pytest.raises(ValueError, match=rf"v.pt has different weights for `{names[0]}` and `{names[1]}`"):
            read_foreign(tmp_path / "v.pt", model=net())


def test_timm_keeps_model_and_average(tmp_path):
    from timm.utils import CheckpointSaver, ModelEmaV3

    model = net(5)
    average = ModelEmaV3(model, decay=0.5)
    place(average.module, moved(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    args = argparse.Namespace(model="net", lr=0.1, data=pathlib.Path("/data"), betas=(0.9, 0.99))
    saver = CheckpointSaver(
        model, optimizer, args=args, model_ema=average, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path)
    )
    saver.save_checkpoint(0, metric=0.5)
    path = tmp_path / "last.pth.tar"
    own = fits(path, model.state_dict())
    assert own.taken == "`state_dict`"
    assert "the file also holds an average of weights (`state_dict_ema`), which `--ema` takes" in own.notes
    other = fits(path, average.module.state_dict(), ema=True)
    assert (other.taken, other.average) == ("`state_dict_ema`", True)
    assert other.notes[0] == "an average of weights, `state_dict_ema`"
    assert not equal(own.tensors, other.tensors)


def test_torchvisions_references_keep_an_averaged_model(tmp_path):
    model = net(5)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    place(model, moved(model))
    average.update_parameters(model)
    whole = {
        "model": model.state_dict(), "model_ema": average.state_dict(), "args": argparse.Namespace(lr=0.1),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9).state_dict(), "epoch": 1,
    }  # fmt: skip
    torch.save(whole, tmp_path / "checkpoint.pth")
    assert fits(tmp_path / "checkpoint.pth", model.state_dict()).taken == "`model`"
    assert fits(tmp_path / "checkpoint.pth", average.module.state_dict(), ema=True).average
    torch.save(average.state_dict(), tmp_path / "swa.pt")  # alone, with n_averaged
    alone = fits(tmp_path / "swa.pt", average.module.state_dict())
    assert (alone.average, alone.notes[-1]) == (True, "the file holds no others")
    torch.save(model.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"holds no average of weights \(EMA, SWA\): leave out `--ema`"):
        read_foreign(tmp_path / "w.pt", ema=True, model=net())


@pytest.mark.filterwarnings("ignore")  # Lightning's own
def test_lightning_checkpoints_are_read_and_an_average_in_them_is_told_apart(tmp_path):
    from pytorch_lightning import LightningModule, Trainer
    from pytorch_lightning.callbacks import WeightAveraging

    class Module(LightningModule):
        def __init__(self, lr, data):
            super().__init__()
            self.save_hyperparameters()
            self.net = net(5)
            self.register_buffer("seen", torch.ones(2))

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    with seeded(0):
        data = DataLoader(TensorDataset(torch.randn(8, 1, 4, 4), torch.randint(3, (8,))), 4)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    for name, callbacks in (("plain", []), ("averaged", [WeightAveraging()])):
        module = Module(0.1, pathlib.Path("/data"))
        trainer = Trainer(
            max_epochs=1, accelerator="cpu", devices=1, logger=False, callbacks=callbacks,
            default_root_dir=tmp_path, **quiet,
        )  # fmt: skip

        trainer.callbacks.append(Saving(tmp_path / f"{name}.ckpt"))
        trainer.fit(module, data)
        raw = torch.load(tmp_path / f"{name}.ckpt", weights_only=False)  # noqa: TID251 - made here
        wanted = raw.get("current_model_state", raw["state_dict"])
        weights = fits(tmp_path / f"{name}.ckpt", {k.removeprefix("net."): t for k, t in wanted.items()})
        assert "names that begin with `net.`" in weights.taken
        assert "`seen` lie beside the model in the file and were left out" in weights.notes
        if callbacks:  # Lightning puts the average where the weights were
            assert weights.taken.startswith("`current_model_state`")
            mean = fits(
                tmp_path / f"{name}.ckpt", {k.removeprefix("net."): t for k, t in raw["state_dict"].items()}, ema=True
            )
            assert mean.taken.startswith("`state_dict`")
            assert not equal(mean.tensors, weights.tensors)


def Saving(path):  # noqa: N802 - a class that needs Lightning
    from pytorch_lightning import Callback

    class SaveInTraining(Callback):
        def on_train_epoch_end(self, trainer, _):
            trainer.save_checkpoint(path)

    return SaveInTraining()


def test_folders_of_hugging_face_whole_and_in_shards(tmp_path):
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3
    )
    with seeded(0):
        model, other = ResNetForImageClassification(config), ResNetForImageClassification(config)
    model.save_pretrained(tmp_path / "whole")
    fits(tmp_path / "whole", model.state_dict(), model=other)
    model.save_pretrained(tmp_path / "shards", max_shard_size="2KB")
    assert len(files_of(tmp_path / "shards")) > 1
    with seeded(1):
        other = ResNetForImageClassification(config)
    fits(tmp_path / "shards", model.state_dict(), model=other)
    torch.save(model.resnet.state_dict(), tmp_path / "base.bin")  # all but the head
    weights = read_foreign(tmp_path / "base.bin", model=other, without=["classifier"])
    assert set(weights.tensors) == {name for name in model.state_dict() if name.startswith("resnet.")}
    first = files_of(tmp_path / "shards")[0]
    first.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{first.name} is missing, which .*index.json names"):
        files_of(tmp_path / "shards")
    index = tmp_path / "shards" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(ValueError, match="which is not in its folder"):
        files_of(tmp_path / "shards")


def test_a_folder_of_hugging_face_may_hold_the_names_of_an_older_version(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    config = ViTConfig(num_channels=1, image_size=8, patch_size=4, num_labels=3, **sizes)
    with seeded(0):
        model, other = ViTForImageClassification(config), ViTForImageClassification(config)
    model.save_pretrained(tmp_path / "vit")
    written = read_foreign(tmp_path / "vit").tensors
    assert set(written) != set(model.state_dict())  # or there is nothing to be renamed
    assert fits(tmp_path / "vit", model.state_dict(), model=other).notes == ()
    for prefix in ("", "module."):
        for names in (model.state_dict(), written):
            with seeded(1):
                other = ViTForImageClassification(config)
            torch.save({"model": renamed(names, prefix)}, tmp_path / "w.pt")
            assert fits(tmp_path / "w.pt", model.state_dict(), model=other).notes == ("`model`",)


def test_a_folder_that_has_to_be_joined_first_says_how(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder without weights \(it is empty\): looked for model.safetensors"):
        files_of(tmp_path)
    (tmp_path / ".metadata").write_bytes(b"")
    with pytest.raises(ValueError, match="dcp_to_torch_save"):
        files_of(tmp_path)
    (tmp_path / ".metadata").rename(tmp_path / "adapter_config.json")
    with pytest.raises(ValueError, match="merge_and_unload"):
        files_of(tmp_path)


def test_runs_and_checkpoints_of_ours_are_weights_too(tmp_path):
    folder = tmp_path / "run" / "checkpoints" / "7"
    save_checkpoint(folder, net(5), {})
    save_checkpoint(folder.parent / "3", net(6), {})
    for path in (tmp_path / "run", folder, folder / "params.safetensors"):
        assert fits(path, net(5).state_dict()).notes == ()
        assert weights_digest(path) == weights_digest(folder)
    with pytest.raises(ValueError, match="holds no average of weights"):
        read_foreign(folder, ema=True)
    (folder / "params.safetensors").write_bytes((folder.parent / "3" / "params.safetensors").read_bytes())
    with pytest.raises(ValueError, match="checksum"):
        read_foreign(folder)


# -- nothing of a file is run ----------------------------------------------------------------------------------------


def test_what_scripts_keep_beside_weights_is_read_as_a_blank(tmp_path):
    options = collections.defaultdict(list, a=[1])
    beside = {
        "args": argparse.Namespace(lr=0.1, out=pathlib.Path("/x"), made=datetime.datetime(2026, 1, 1)),
        "best": np.float64(0.3), "curve": np.zeros(3), "kind": np.dtype("float32"), "options": options,
        "last": collections.deque([1, 2], maxlen=5), "when": datetime.timedelta(1), "flag": np.bool_(True),
        "path": pathlib.PureWindowsPath("c:/x"),
    }  # fmt: skip
    model = net(5)
    torch.save({"state_dict": model.state_dict(), **beside}, tmp_path / "w.pt")
    before = set(torch.serialization.get_safe_globals())
    fits(tmp_path / "w.pt", model.state_dict())
    torch.save({"model": model.state_dict(), **beside}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    fits(tmp_path / "old.pt", model.state_dict())
    assert set(torch.serialization.get_safe_globals()) == before  # what was allowed is so for our reading alone


def test_what_other_libraries_allow_does_not_get_in_the_way(tmp_path):
    """accelerate and others let torch read NumPy's own types, under names that are read as blanks here."""
    model = net(5)
    torch.save({"state_dict": model.state_dict(), "curve": np.zeros(3), "best": np.float64(0.3)}, tmp_path / "w.pt")
    theirs = [(type(f"Theirs{i}", (), {}), "numpy.dtype") for i in range(40)]  # one of which would win, but for luck
    with torch.serialization.safe_globals(theirs):
        before = set(torch.serialization.get_safe_globals())
        fits(tmp_path / "w.pt", model.state_dict())
        assert set(torch.serialization.get_safe_globals()) == before


class Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


@pytest.mark.parametrize("made", [
    lambda path: torch.save({"state_dict": net().state_dict(), "args": argparse.Namespace(x=Evil())}, path),
    lambda path: torch.save({"state_dict": net().state_dict(), "hook": Evil()}, path),
    lambda path: torch.save(net(), path),
    lambda path: torch.jit.save(torch.jit.trace(net().eval(), torch.zeros(1, 1, 4, 4)), path),
], ids=["within", "beside", "model", "script"])  # fmt: skip
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_would_run_code_is_refused_with_a_way_to_convert_it(made, tmp_path, capsys):
    path = tmp_path / "w.pt"
    made(path)
    with pytest.raises(ValueError, match=r"cannot be read without running its code \(it .*If you trust the file") as e:
        read_foreign(path, model=net())
    assert "never" not in capsys.readouterr().out
    assert "\n" not in str(e.value)


def test_the_way_out_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Sequential(collections.OrderedDict(body=net(5).body, fc=net(5).fc)), "w.pt")
    with pytest.raises(ValueError, match="Sequential") as error:
        read_foreign("w.pt")
    code = str(error.value).partition("imported: ")[2].partition(", with its own key")[0]
    exec(code, {"torch": torch})
    fits("weights.pt", net(5).state_dict())


def test_damaged_files_and_others_are_named(tmp_path):
    torch.save(net().state_dict(), tmp_path / "w.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:-400])
    with pytest.raises(ValueError, match=r"cut.pth cannot be read \(.*\): it is truncated"):
        read_foreign(tmp_path / "cut.pth")
    (tmp_path / "w.npz").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"weights are read from .*\.pth\.tar.*, not '.npz'"):
        read_foreign(tmp_path / "w.npz")
    torch.save({"epoch": 3}, tmp_path / "no.ckpt")
    with pytest.raises(ValueError, match="holds no `state_dict`, that is names with tensors"):
        read_foreign(tmp_path / "no.ckpt")
    with pytest.raises(FileNotFoundError, match="does not exist: give a file of weights"):
        read_foreign(tmp_path / "gone.pt")
    assert [ending(n) for n in ("a.pth.tar", "a.b.ckpt", "a.tar", "a.npz")] == [".pth.tar", ".ckpt", ".tar", ""]


# -- fitting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_taken_over_and_said(dtype, tmp_path):
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in net(5).state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    weights = fits(tmp_path / "w.safetensors", {name: t.float() for name, t in state.items()} | {
        "body.1.num_batches_tracked": state["body.1.num_batches_tracked"]})  # fmt: skip
    verb = "rounded to" if dtype == torch.float64 else "taken into"
    assert weights.notes == (f"8 tensors are stored in {str(dtype)[6:]} and {verb} float32",)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.complex64])
def test_quantised_and_complex_weights_are_refused(dtype, tmp_path):
    state = net(5).state_dict() | {"fc.weight": net(5).fc.weight.detach().to(dtype)}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"`fc.weight` is \w+ in .* and float32 in the model: quantised or complex"):
        read_foreign(tmp_path / "w.pt", model=net())


def test_counters_may_be_missing_and_leftovers_are_listed_but_no_number_that_matters(tmp_path):
    state = dict(net(5).state_dict())
    del state["body.1.num_batches_tracked"]
    torch.save(state | {"body.0.total_ops": torch.zeros(1), "position_ids": torch.arange(3)}, tmp_path / "w.pt")
    model = net(9)
    weights = read_foreign(tmp_path / "w.pt", model=model)
    assert weights.notes == (
        "`body.1.num_batches_tracked` are not in the file and stay as the model has them",
        "`body.0.total_ops`, `position_ids` of the file are not in the model and were left out",
    )
    for name in ("body.1.running_mean", "fc.bias"):
        torch.save({k: t for k, t in net(5).state_dict().items() if k != name}, tmp_path / "v.pt")
        with pytest.raises(ValueError, match=rf"the weights lack `{name}`, which the model has"):
            read_foreign(tmp_path / "v.pt", model=model)
    torch.save(dict(net(5).named_parameters()), tmp_path / "v.pt")
    with pytest.raises(
        ValueError, match=r"running_mean`, `body.1.running_var`, .* are running statistics .*state_dict"
    ):
        read_foreign(tmp_path / "v.pt", model=model)


def test_tied_weights_may_be_there_once_under_either_name(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

    with seeded(0):
        model, other = Tied(), Tied()
    for name in ("embed.weight", "head.weight"):
        save_file({name: model.embed.weight.detach()}, tmp_path / "w.safetensors")
        weights = read_foreign(tmp_path / "w.safetensors", model=other)
        place(other, weights.tensors)
        assert torch.equal(other.head.weight, model.embed.weight)
    torch.save({"embed.weight": torch.zeros(5, 3), "head.weight": torch.ones(5, 3)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"different weights for `embed.weight`, `head.weight`, which are one tensor"):
        read_foreign(tmp_path / "w.pt", model=other)


def test_of_several_that_fit_the_usual_is_taken_or_none(tmp_path):
    one, two = net(5).state_dict(), net(6).state_dict()
    torch.save({"state_dict": one, "initial": two}, tmp_path / "w.pt")
    assert fits(tmp_path / "w.pt", one).notes == ("`state_dict`", "the file also holds other weights (`initial`)")
    torch.save({"state_dict": renamed(one, "model.") | renamed(two, "teacher.")}, tmp_path / "w.pt")
    fits(tmp_path / "w.pt", one)
    torch.save({"state_dict": renamed(one, "model.") | renamed(two, "model_ema.module.")}, tmp_path / "w.pt")
    fits(tmp_path / "w.pt", one)
    fits(tmp_path / "w.pt", two, ema=True)
    torch.save(renamed(one, "student.") | renamed(two, "teacher."), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"several weights that fit the model: .*`student.`; and .*`teacher.`"):
        read_foreign(tmp_path / "w.pt", model=net())
    torch.save(renamed(one, "student.") | renamed(one, "teacher."), tmp_path / "w.pt")  # the same, then
    fits(tmp_path / "w.pt", one)


def test_weights_of_another_model_are_told_with_counts_and_the_nearest_names(tmp_path):
    torch.save(net(5).state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"nothing in .* fits the model: it holds `body.0.weight`.* another arch"):
        read_foreign(tmp_path / "w.pt", model=nn.Sequential(nn.Linear(4, 3)))
    with pytest.raises(ValueError, match=r"9 of its 9 names are among the model's 9, 2 of them with its shape"):
        read_foreign(tmp_path / "w.pt", model=net(width=5))
    other = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)))
    with pytest.raises(ValueError, match=r"only \d of the names in .* fit the model: it holds `body.0.weight`"):
        read_foreign(tmp_path / "w.pt", model=other)
    state = dict(net(5).state_dict())
    state["body.0.wieght"] = state.pop("body.0.weight")
    torch.save(state, tmp_path / "v.pt")
    with pytest.raises(ValueError, match=r"hold `body.0.wieght`, which the model lacks. Did you mean 'body.0.weight'"):
        read_foreign(tmp_path / "v.pt", model=net())


@pytest.mark.parametrize(
    ("tokens", "patch", "said"),
    [(197, 16, "`--input-size 224`"), (4, 4, "`--input-size 8`"), (198, 16, "`--input-size 224`"),
     (8, 16, "their size by `--input-size`"), (5, None, "their size by `--input-size`")],
)  # fmt: skip
def test_weights_for_another_image_size_name_it(tokens, patch, said, tmp_path):
    class Patches(nn.Module):
        def __init__(self, tokens):
            super().__init__()
            self.pos_embed = nn.Parameter(torch.zeros(1, tokens, 8))
            self.patch_embed = nn.Conv2d(3, 8, patch) if patch else nn.Linear(48, 8)
            self.head = nn.Linear(8, 3)

    torch.save(Patches(tokens).state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"`pos_embed` has shape .*weights are for another image size: {said}\.$"):
        read_foreign(tmp_path / "w.pt", model=Patches(10))


def test_another_number_of_classes_names_the_way_out_and_a_new_head_needs_no_weights(tmp_path):
    torch.save(net(5, classes=7).state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"All else fits: `fc` has another number of classes.*`--reset-head`"):
        read_foreign(tmp_path / "w.pt", model=net())
    model = net(9)
    before = model.fc.weight.detach().clone()
    weights = read_foreign(tmp_path / "w.pt", model=model, without=["fc"])
    place(model, weights.tensors)
    assert torch.equal(model.fc.weight, before)
    assert weights.notes == ()  # all that the file holds lies in one place
    assert torch.equal(model.body[0].weight, net(5).body[0].weight)
    assert equal(model_state(model)["body.1.running_mean"], net(5, classes=7).body[1].running_mean)
