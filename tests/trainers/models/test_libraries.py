"""Models of timm, torchvision and Hugging Face by name: those of the library itself, sized by the data."""

import json
import sys

import pytest
import torch
from drop_in import need

from trainers import fit, load_checkpoint
from trainers.models.building import build_model
from trainers.models.starting import start_from
from trainers.randomness import seeded
from trainers.reference import is_reference

VIT = {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
HF_VIT = {"patch_size": 4, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def make(name, shape=(3, 8, 8), classes=5, **options):
    return build_model(name, shape=shape, classes=classes, generator_seed=3, options=options)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_known_library_wins_over_a_module_of_that_name():
    assert [is_reference(n) for n in ("timm:x", "hf:./folder", "torchvision:x", "mine:x", "resnet18")] == [
        False, False, False, True, False,
    ]  # fmt: skip


def test_timm_is_asked_for_the_models_classes_channels_and_size():
    need("timm")
    import timm

    with seeded(3):
        theirs = timm.create_model("vit_tiny_patch16_224", num_classes=5, in_chans=1, img_size=(8, 12), **VIT)
    assert same(make("timm:vit_tiny_patch16_224", (1, 8, 12), **VIT), theirs)
    with seeded(3):
        theirs = timm.create_model("test_resnet", num_classes=5, in_chans=1)
    assert same(make("timm:test_resnet.r160_in1k", (1, 8, 8)), theirs)


def test_torchvision_is_asked_for_the_models_classes():
    need("torchvision")
    import torchvision

    with seeded(3):
        theirs = torchvision.models.get_model("squeezenet1_1", num_classes=5)
    assert same(make("torchvision:squeezenet1_1", (3, 32, 32)), theirs)
    with pytest.raises(
        ValueError, match=r"'torchvision:squeezenet1_1' has no option `dropuot`. Did you mean 'dropout'"
    ):
        make("torchvision:squeezenet1_1", (3, 32, 32), dropuot=0.1)


def test_a_hugging_face_classifier_of_a_type_or_a_folder(tmp_path, generator):
    need("transformers")
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"num_labels": 5, "num_channels": 3, "image_size": 8}
    with seeded(3):
        theirs = ViTForImageClassification(ViTConfig(**sizes, **HF_VIT)).eval()
    x = torch.randn(2, 3, 8, 8, generator=generator)
    ours = make("hf:vit", **HF_VIT).eval()
    assert same(ours, theirs)  # under the names of Hugging Face's files
    assert torch.equal(ours(x), theirs(x).logits)
    assert make("hf:vit", (3, 8, 12), **HF_VIT)(torch.zeros(1, 3, 8, 12)).shape == (1, 5)
    other = ViTConfig(num_labels=1000, id2label={str(i): f"{i}" for i in range(1000)}, dtype="float16", **HF_VIT)
    other.save_pretrained(tmp_path)
    assert same(make(f"hf:{tmp_path}").eval(), theirs)


@pytest.mark.parametrize("kind", ["deit", "levit"])
def test_types_of_hugging_face_that_read_which_architectures_there_are(kind):
    need("transformers")
    assert make(f"hf:{kind}", (3, 64, 64)).training


def test_weights_of_a_folder_of_hugging_face_fit_the_model_of_that_folder(tmp_path):
    need("transformers")
    from transformers import ViTConfig, ViTForImageClassification

    with seeded(0):
        theirs = ViTForImageClassification(ViTConfig(num_labels=5, image_size=8, **HF_VIT))
    theirs.save_pretrained(tmp_path)
    ours = make(f"hf:{tmp_path}")
    start_from(ours, tmp_path)
    assert same(ours, theirs)


def test_code_in_a_folder_of_hugging_face_is_not_run(tmp_path):
    need("transformers")
    (tmp_path / "mine.py").write_text("raise SystemExit('run')")
    config = {"model_type": "vit", "auto_map": {"AutoModelForImageClassification": "mine.Model"}, **HF_VIT}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert make(f"hf:{tmp_path}")(torch.zeros(1, 3, 8, 8)).shape == (1, 5)


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("timm:vit_tiny_patch61_224", (3, 8, 8), {}, "unknown to timm.* Did you mean 'vit_tiny_patch16_224'"),
        ("timm:hf-hub:some/model", (3, 8, 8), {}, "'timm:hf-hub:some/model' is unknown to timm"),
        ("timm:test_resnet", (3, 8, 8), {"bas_width": 3}, r"no option `bas_width`. Did you mean 'base_width'\?$"),
        ("timm:test_resnet", (3, 8), {}, r"images, \(c, h, w\), for model 'timm:test_resnet'"),
        ("timm:test_vit", (1, 28, 30), {}, "patches of 16 x 16, which do not divide .*`model_options` .*`input_size`"),
        ("timm:test_resnet", (3, 8, 8), {"num_classes": 0}, r"must give logits of shape \(1, 5\) for one image, got"),
        ("torchvision:resnet81", (3, 8, 8), {}, "unknown to torchvision.*Did you mean 'resnet18'"),
        ("torchvision:resnet18", (1, 8, 8), {}, r"3 channels, and those of the data have 1: take .*timm:resnet18"),
        ("torchvision:alexnet", (3, 8, 8), {}, r"does not take images of shape \(3, 8, 8\): RuntimeError.*input_size"),
        ("hf:vitt", (3, 8, 8), {}, "no image classifier of Hugging Face. Did you mean 'vit'"),
        ("hf:vit", (3, 8, 8), {"hiden_size": 8}, "has no option `hiden_size`. Did you mean 'hidden_size'"),
        ("hf:vit", (1, 28, 28), HF_VIT | {"patch_size": 16}, "patches of 16 x 16"),
        ("hf:vit", (3, 8, 8), HF_VIT | {"hidden_size": "wide"}, "'hf:vit' could not be built with options"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(name, shape, options, message):
    need({"hf": "transformers"}.get(name.partition(":")[0], name.partition(":")[0]))
    with pytest.raises(ValueError, match=message):
        make(name, shape, **options)


def test_folders_that_are_none_are_refused_and_nothing_is_downloaded(tmp_path):
    need("transformers")
    with pytest.raises(FileNotFoundError, match=r"'hf:google/vit' is no folder here, and nothing is downloaded"):
        make("hf:google/vit")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        make(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("timm:x", "timm", "vision"), ("torchvision:x", "torchvision.models", "vision"), ("hf:x", "transformers", "text")],
)
def test_a_library_that_is_not_installed_is_named_with_its_extra(name, module, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'landscape-lab\[{extra}\]'"):
        make(name)


def test_a_run_names_a_library_and_its_checkpoint_is_read_without_trust(tmp_path):
    need("timm")
    small = {"train_size": 40, "validation_size": 20, "test_size": 20, "epochs": 1}
    run = fit({**small, "model": "timm:vit_tiny_patch16_224", "model_options": VIT, "method": "sam"}, out=tmp_path)
    model, meta = load_checkpoint(run.checkpoint(2))
    assert type(model).__name__ == "VisionTransformer"
    assert meta["config"]["model"] == "timm:vit_tiny_patch16_224"
    assert run.history()["test_error"].between(0, 1).all()
