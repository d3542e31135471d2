"""Convolutional networks of timm and torchvision, and the timm-style loop."""

import copy

import pytest
import torch
from drop_in import by_hand, need, run_block, take
from networks import flat as weights
from torch import nn

from trainers import make_optimizer, obf_loss
from trainers.randomness import seeded


def closure_of(model, x, y, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def test_the_documents_timm_loop():
    need("timm")
    names = run_block("timm")
    assert names["losses"][-1] < names["losses"][0]
    assert names["optimizer"].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-6)  # the scheduler drove it
    assert not torch.equal(weights(names["average"].module), weights(names["model"]))


def images():
    with seeded(2):
        return torch.randn(8, 3, 32, 32, dtype=torch.float64), torch.randint(3, (8,))


def network(library):
    need(library)
    with seeded(0):
        if library == "timm":
            import timm

            return timm.create_model("test_resnet", num_classes=3, in_chans=3).double()
        from torchvision.models.resnet import BasicBlock, ResNet

        return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3, width_per_group=64).double()


@pytest.mark.parametrize(
    ("method", "library"), [("sam", "timm"), ("gsam", "timm"), ("obf", "timm"), ("gsam", "torchvision")]
)
def test_a_resnet_trains_as_in_a_hand_written_loop(method, library):
    model = network(library)
    theirs = copy.deepcopy(model)
    # running statistics as after the clean passes alone
    statistics = copy.deepcopy(model)
    x, y = images()
    optimizer = make_optimizer(method, model, lr=0.02, momentum=0.9, rho=0.02)
    parameters = list(theirs.parameters())
    base = torch.optim.SGD(parameters, lr=0.02, momentum=0.9)
    losses, expected = [], []
    for _ in range(3):
        ascent = None
        if method == "obf":

            def ascent():
                optimizer.zero_grad()
                value = obf_loss(model(x), y)
                value.backward()
                return value

        optimizer.step(closure_of(model, x, y, optimizer), ascent=ascent)
        with torch.no_grad():
            for p, q in zip(statistics.parameters(), theirs.parameters(), strict=True):
                p.copy_(q)
            expected.append(float(nn.functional.cross_entropy(statistics(x), y)))
        ascents = [lambda: obf_loss(theirs(x), y)] if method == "obf" else None
        step = "gsam" if method == "gsam" else "sam"
        loss = [lambda: nn.functional.cross_entropy(theirs(x), y)]
        take(parameters, by_hand(parameters, loss, [1.0], rho=0.02, method=step, ascents=ascents)[0], base)
        losses.append(optimizer.last.clean_loss)
    torch.testing.assert_close(weights(model), weights(theirs), rtol=1e-9, atol=1e-11)
    for (name, mine), other in zip(model.named_buffers(), statistics.buffers(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11, msg=name)
    if method != "obf":
        assert losses == pytest.approx(expected)
    assert expected[-1] < expected[0]
