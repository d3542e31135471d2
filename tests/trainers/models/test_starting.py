"""Initial weights, new classifiers and frozen parameters, on models of timm, torchvision and Hugging Face."""

import pytest
import torch
from torch import nn

from trainers import build_model, make_optimizer
from trainers.models.starting import freeze, head_of, start_from
from trainers.randomness import seeded


def named(name, classes=7):
    with seeded(0):
        if name.startswith("timm:"):
            import timm

            return timm.create_model(name[5:], num_classes=classes)
        if name.startswith("torchvision:"):
            import torchvision

            return torchvision.models.get_model(name[12:], num_classes=classes)
        if name.startswith("hf:"):
            import transformers

            config = transformers.ResNetConfig(
                num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], num_labels=classes
            )
            return transformers.ResNetForImageClassification(config)
        return build_model(name, shape=(1, 8, 8), classes=classes, generator_seed=0)


@pytest.mark.parametrize(("name", "head"), [
    ("timm:test_resnet", ["fc"]), ("timm:test_vit", ["head"]), ("timm:deit_tiny_distilled_patch16_224",
    ["head", "head_dist"]), ("torchvision:mobilenet_v3_small", ["classifier.3"]), ("torchvision:squeezenet1_1",
    ["classifier.1"]), ("hf:resnet", ["classifier.1"]), ("mlp", ["5"]), ("cnn", ["7"]), ("resnet20", None),
    ("vit", None),
])  # fmt: skip
def test_the_classifier_is_found(name, head):
    model = named(name)
    found = head_of(model, classes=7)
    assert found == head or (head is None and len(found) == 1)
    others = {n: tuple(p.shape) for n, p in named(name, classes=8).named_parameters()}
    differ = {n.rpartition(".")[0] for n, p in model.named_parameters() if tuple(p.shape) != others[n]}
    assert set(found) == differ  # what depends on the number of classes, and nothing else


class Odd(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.logits, self.embed = nn.Linear(4, classes), nn.Linear(2, 4)

    def forward(self, x):
        return self.logits(self.embed(x))


def test_a_classifier_that_is_not_found_is_named_by_the_user(tmp_path):
    with pytest.raises(ValueError, match=r"found 'embed' with 4 outputs where a classifier of 3 .* name its module"):
        head_of(Odd(), classes=3)
    assert head_of(Odd(), classes=3, name="logits") == ["logits"]
    with pytest.raises(ValueError, match=r"`head` 'logit' is no module of the model. Did you mean 'logits'"):
        head_of(Odd(), name="logit")
    with pytest.raises(ValueError, match=r"has no parameters: name the layer"):
        head_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), name="1")
    torch.save(Odd(classes=9).state_dict(), tmp_path / "w.pt")
    model = Odd()
    before = model.logits.weight.detach().clone()
    start_from(model, tmp_path / "w.pt", reset_head=True, head="logits", classes=3)
    assert torch.equal(model.logits.weight, before)
    model.embed.weight = nn.Parameter(model.logits.weight.detach())
    model.logits.weight = model.embed.weight
    with pytest.raises(ValueError, match=r"would also renew `embed.weight`, whose weights the classifier `logits` sha"):
        start_from(model, tmp_path / "w.pt", reset_head=True, head="logits")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    for bad in (float("nan"), float("inf")):
        model = Odd()
        with torch.no_grad():
            model.embed.weight[1, 1] = bad
        torch.save(model.state_dict(), tmp_path / "w.pt")
        with pytest.raises(ValueError, match=r"`init` .*w.pt has numbers that are not finite in `embed.weight`"):
            start_from(Odd(), tmp_path / "w.pt")


def test_the_head_of_another_library_is_left_out_and_said(tmp_path):
    model = build_model("mlp", shape=(4,), classes=3, generator_seed=0, options={"width": 4, "depth": 1})
    state = {k: t + 1 for k, t in model.state_dict().items() if k.startswith("1.")} | {"fc.weight": torch.zeros(9, 4)}
    torch.save(state, tmp_path / "w.pt")
    weights = start_from(model, tmp_path / "w.pt", reset_head=True, classes=3)
    assert weights.notes == ("`fc.weight` of the file are not in the model and were left out",)
    assert torch.equal(model.state_dict()["1.weight"], state["1.weight"])
    with pytest.raises(ValueError, match=r"hold `fc.weight`, which the model lacks"):
        start_from(model, tmp_path / "w.pt")


@pytest.mark.parametrize(("pattern", "frozen"), [
    ("1.*", ["1.weight", "1.bias"]), ("1", ["1.weight", "1.bias"]), ("*.bias", ["1.bias", "3.bias"]),
    ("3.weight", ["3.weight"]),
])  # fmt: skip
def test_names_modules_and_globs_are_frozen(pattern, frozen):
    model = build_model("mlp", shape=(4,), classes=3, generator_seed=0, options={"width": 4, "depth": 1})
    assert freeze(model, [pattern]) == frozen
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == frozen


def test_what_freezes_nothing_or_everything_is_refused():
    model = named("resnet20")
    with pytest.raises(ValueError, match=r"`freeze` has 'trunk.\*', which means no parameter; they begin with \["):
        freeze(model, ["trunk.*"])
    name = next(iter(dict(model.named_parameters()))).replace("weight", "wieght")
    with pytest.raises(ValueError, match="Did you mean"):
        freeze(model, [name])
    with pytest.raises(ValueError, match=r"`freeze` \['\*'\] means every parameter: leave some to be trained"):
        freeze(model, ["*"])


@pytest.mark.parametrize("method", ["sgd", "sam", "asam"])
def test_frozen_parameters_are_neither_moved_nor_perturbed_nor_decayed(method):
    model = build_model("mlp", shape=(4,), classes=3, generator_seed=0, options={"width": 4, "depth": 1})
    freeze(model, ["1"])
    seen = []
    optimizer = make_optimizer(method, model, lr=0.1, weight_decay=0.1, **({} if method == "sgd" else {"rho": 0.5}))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    x, y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])

    def closure():
        seen.append({n: p.detach().clone() for n, p in model.named_parameters()})
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    for n, p in model.named_parameters():
        assert torch.equal(p, before[n]) == n.startswith("1.")
        assert all(torch.equal(one[n], before[n]) for one in seen) == (n.startswith("1.") or method == "sgd")
    if method == "sam":  # the length of the perturbation is that of the trained parameters alone
        moved = torch.cat([(seen[1][n] - before[n]).flatten() for n in before])
        assert float(moved.norm()) == pytest.approx(0.5, rel=1e-5)
