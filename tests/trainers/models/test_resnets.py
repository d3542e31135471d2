"""resnet18 and wide_resnet: against torchvision, the counts of the papers, and a block written out."""

import pytest
import torch
from drop_in import need
from torch import nn
from torch.nn.functional import batch_norm, conv2d, relu
from torch.testing import assert_close

from trainers.models.building import build_model
from trainers.models.resnet import WideBlock


def make(name, shape=(3, 32, 32), classes=10, **options):
    return build_model(name, shape=shape, classes=classes, generator_seed=0, options=options)


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("resnet18", {}, 11_173_962),
        ("resnet18", {"stem": "imagenet"}, 11_173_962 + 3 * 64 * (49 - 9)),
        ("wide_resnet", {}, 36_479_194),
        ("wide_resnet", {"depth": 16, "widen_factor": 4}, 2_748_890),
    ],
)
def test_number_of_parameters(name, options, parameters):
    assert sum(p.numel() for p in make(name, **options).parameters()) == parameters


def test_resnet18_is_torchvisions_and_takes_its_weights(generator):
    need("torchvision")
    from torchvision.models.resnet import BasicBlock, ResNet

    theirs = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=7).double()
    ours = make("resnet18", (3, 33, 40), 7, stem="imagenet").double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 33, 40, generator=generator, dtype=torch.float64)
    assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-10)


def test_the_form_for_small_images_keeps_their_size(generator):
    model = make("resnet18", (1, 8, 8), 3, width=4)
    sizes = []
    model.layer1.register_forward_hook(lambda _m, _x, out: sizes.append(tuple(out.shape)))
    assert model(torch.randn(2, 1, 8, 8, generator=generator)).shape == (2, 3)
    assert sizes == [(2, 4, 8, 8)]


def test_a_wide_block_written_out(generator):
    block = WideBlock(3, 4, 2, 0.0).double()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, generator=generator)
            nn.init.normal_(module.bias, generator=generator)
    x = torch.randn(5, 3, 6, 6, generator=generator, dtype=torch.float64)

    def norm(bn, x):
        return batch_norm(x, None, None, bn.weight, bn.bias, training=True)

    active = relu(norm(block.bn1, x))
    inner = conv2d(active, block.conv1.weight, stride=2, padding=1)
    expected = conv2d(relu(norm(block.bn2, inner)), block.conv2.weight, padding=1)
    expected = expected + conv2d(active, block.shortcut.weight, stride=2)
    assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


def test_dropout_of_a_wide_block_is_off_in_evaluation(generator):
    model = make("wide_resnet", (1, 8, 8), 3, depth=10, widen_factor=1, dropout=0.5).eval()
    x = torch.randn(2, 1, 8, 8, generator=generator)
    assert torch.equal(model(x), model(x))
    assert not torch.equal(model.train()(x), model(x))


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"`depth` must be 6 n \+ 4, such as 16, 22, 28 or 40, got 17"):
        make("wide_resnet", depth=17)
    with pytest.raises(ValueError, match=r"images, \(c, h, w\), for model 'resnet18', got \(7,\); try 'cnn'"):
        make("resnet18", (7,))
    with pytest.raises(ValueError, match="option `stem` of model 'resnet18' got 'small'"):
        make("resnet18", stem="small")
