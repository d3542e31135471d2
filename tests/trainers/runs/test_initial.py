"""Runs that start from given weights: what names them, what they keep, and how they go on without the file."""

import pytest
import torch

from trainers import build_model, fit, load_checkpoint, read_weights, train_all
from trainers.config import train_config
from trainers.files.tree import equal
from trainers.runs.checkpoint import model_state, read_meta
from trainers.runs.folder import Run

SMALL = {
    "model": "mlp", "model_options": {"width": 4, "depth": 1}, "epochs": 2, "train_size": 64, "validation_size": 20,
    "test_size": 20, "batch_size": 32, "lr": 0.1,
}  # fmt: skip


def small(seed=7, classes=10):
    return build_model("mlp", shape=(1, 8, 8), classes=classes, generator_seed=seed, options={"width": 4, "depth": 1})


@pytest.fixture
def weights(tmp_path):
    torch.save({"state_dict": {f"module.{k}": t for k, t in small().state_dict().items()}}, tmp_path / "w.pth.tar")
    return tmp_path / "w.pth.tar"


def last(run):
    return read_weights(run.checkpoint(max(run.checkpoints())) / "params.safetensors")


def test_the_content_names_the_run_and_not_the_place(weights, tmp_path, monkeypatch):
    one = train_config({**SMALL, "init": str(weights)})
    other = weights.with_name("renamed.pth.tar")
    other.write_bytes(weights.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert one.run_id == train_config({**SMALL, "init": "renamed.pth.tar"}).run_id
    assert one.resolved().resolved() == one.resolved()
    average = train_config({**SMALL, "init": str(weights), "init_ema": True})
    assert len({one.run_id, average.run_id, train_config(SMALL).run_id}) == 3
    torch.save(small(8).state_dict(), other)
    assert one.run_id != train_config({**SMALL, "init": "renamed.pth.tar"}).run_id


def test_training_starts_from_the_weights_and_says_which(weights, tmp_path):
    run = fit({**SMALL, "init": str(weights)}, out=tmp_path / "runs")
    first = load_checkpoint(run.checkpoint(0))[0]
    assert equal(model_state(first), model_state(small()))
    told = read_meta(run.checkpoint(0))["init"]
    assert (told["file"], told["taken"]) == (str(weights), "`state_dict`")
    assert told["sha256"] == run.settings()["init_digest"]
    assert Run(run.folder).run_id == run.run_id  # config.json is still the one of that hash
    again = fit({**SMALL, "init": str(run.folder / "checkpoints" / "0")}, out=tmp_path / "again")
    assert equal(last(again), last(run))  # a checkpoint of ours is weights too


def test_a_run_goes_on_bit_for_bit_when_the_file_is_gone(weights, tmp_path):
    config = {**SMALL, "method": "sam", "shrink_perturb": 0.1, "init": str(weights)}
    whole = fit(config, out=tmp_path / "whole")
    fit(config, out=tmp_path / "runs", stop=lambda epoch: epoch == 1)
    weights.unlink()
    run = fit(config, out=tmp_path / "runs")
    assert run.status()["status"] == "finished"
    assert run.run_id == whole.run_id
    assert equal(last(run), last(whole))
    assert [r.run_id for r in train_all([train_config(config)], out=tmp_path / "runs", jobs=1)] == [run.run_id]
    digest = run.settings()["init_digest"]
    gone = tmp_path / "elsewhere.pt"
    assert fit({**config, "init": str(gone), "init_digest": digest}, out=tmp_path / "runs").run_id == run.run_id
    with pytest.raises(FileNotFoundError, match=r"`init` .*elsewhere.pt does not exist: give a .*`init_digest` in"):
        fit({**config, "init": str(gone)}, out=tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"elsewhere.pt does not exist"):
        fit({**config, "init": str(gone), "init_digest": digest}, out=tmp_path / "empty")


def test_a_run_that_was_killed_before_its_first_snapshot_starts_from_its_first_checkpoint(weights, tmp_path):
    config = {**SMALL, "init": str(weights)}
    whole = fit(config, out=tmp_path / "whole")
    run = fit(config, out=tmp_path / "runs", stop=lambda epoch: epoch == 1)
    for path in (run.folder / "resume").iterdir():
        path.unlink()
    weights.unlink()
    assert equal(last(fit(config, out=tmp_path / "runs")), last(whole))


def test_other_weights_than_the_digest_says_are_refused(weights, tmp_path):
    config = train_config({**SMALL, "init": str(weights)}).resolved()
    torch.save(small(8).state_dict(), weights)
    with pytest.raises(ValueError, match=r"holds other weights \(SHA-256 \w+...\) than `init_digest` says"):
        fit(config, out=tmp_path / "runs")


def test_a_new_head_comes_from_the_seed_and_frozen_parameters_stay(tmp_path):
    torch.save(small(classes=5).state_dict(), tmp_path / "w.pt")
    config = {**SMALL, "init": str(tmp_path / "w.pt"), "seed": 3}
    with pytest.raises(ValueError, match=r"has another number of classes.*`--reset-head`"):
        fit(config, out=tmp_path / "runs")
    run = fit({**config, "reset_head": True, "freeze": ["1.*"], "weight_decay": 0.1}, out=tmp_path / "runs")
    first, fresh, old = read_weights(run.checkpoint(0) / "params.safetensors"), small(3), small(classes=5)
    assert torch.equal(first["3.weight"], fresh[3].weight)
    assert torch.equal(first["1.weight"], old[1].weight)
    after = last(run)
    assert torch.equal(after["1.weight"], old[1].weight)
    assert not torch.equal(after["3.weight"], first["3.weight"])
    model, _ = load_checkpoint(run.checkpoint(max(run.checkpoints())))
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["1.weight", "1.bias"]


def test_a_model_that_its_own_code_freezes_is_refused(tmp_path, monkeypatch):
    made = "nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False)"
    code = f"from torch import nn\n\ndef frozen():\n    return {made}\n"
    (tmp_path / "frozen_of_mine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    config = {**SMALL, "model": "frozen_of_mine:frozen", "model_options": {}}
    with pytest.raises(ValueError, match=r"`model` 'frozen_of_mine:frozen' has no parameters to train: .* all of them"):
        fit(config, out=tmp_path / "runs", trust=True)


def test_running_statistics_of_frozen_layers_follow_the_data(tmp_path):
    config = {**SMALL, "model": "resnet20", "model_options": {"width": 4, "blocks": 1}, "epochs": 1}
    names = [n for n, _ in fit(config, out=tmp_path / "a").checkpoints().items()]
    run = Run(next((tmp_path / "a").iterdir()))
    before, after = (read_weights(run.checkpoint(s) / "params.safetensors") for s in (names[0], names[-1]))
    norm = next(n for n in before if n.endswith("running_mean")).removesuffix(".running_mean")
    frozen = fit({**config, "freeze": [norm]}, out=tmp_path / "b")
    stayed = last(frozen)
    assert torch.equal(stayed[f"{norm}.weight"], before[f"{norm}.weight"])
    assert not torch.equal(after[f"{norm}.weight"], before[f"{norm}.weight"])
    assert not torch.equal(stayed[f"{norm}.running_mean"], before[f"{norm}.running_mean"])


@pytest.mark.parametrize(("values", "message"), [
    ({"init": ""}, "`init` is empty"),
    ({"reset_head": True}, "`reset_head` goes with `init`"),
    ({"init_ema": True}, "`init_ema` goes with `init`"),
    ({"init_digest": "0" * 64}, "`init_digest` goes with `init`"),
    ({"init": "w.pt", "init_digest": "abc"}, "`init_digest` got 'abc'"),
    ({"init": "w.pt", "head": "fc"}, "`head` 'fc' goes with `reset_head`"),
])  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        train_config(values)
