"""Residual networks for images, with BatchNorm."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """relu(s(x) + bn(conv(relu(bn(conv(x)))))) with 3 x 3 convolutions; the first one strides.

    Where the size changes, the shortcut s takes every second pixel and adds channels of zeros, and has no parameters
    (option A of He et al. 2016).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k i j"]:
        """The block's output; h and w are divided by the stride, rounded up."""
        out = nn.functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride > 1 or self.added:
            x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return nn.functional.relu(out + x)


def three_stages(block: Callable[[int, int, int], nn.Module], inputs: int, width: int, blocks: int) -> list[nn.Module]:
    """The blocks of stages of widths w, 2w and 4w, of which the second and the third halve h and w.

    Args:
        block: Made from its channels and its stride.
        inputs: Channels before the first block.
        width: w.
        blocks: Of a stage.
    """
    widths = [width * 2**stage for stage in range(3) for _ in range(blocks)]
    strides = [2 if stage > 0 and first == 0 else 1 for stage in range(3) for first in range(blocks)]
    return [block(*sizes) for sizes in zip([inputs, *widths[:-1]], widths, strides, strict=True)]


def initialise(model: nn.Module, mode: Literal["fan_in", "fan_out"] = "fan_in") -> None:
    """Draw the weights of convolutions by He's rule."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")


class ResNet(nn.Module):
    """The CIFAR form of the residual network: three stages of widths w, 2w and 4w, then the mean over pixels.

    Attributes:
        stem: 3 x 3 convolution and BatchNorm.
        stages: The blocks, in order.
        head: Linear layer to the logits.
    """

    def __init__(self, channels: int, classes: int, width: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stages = nn.Sequential(*three_stages(ResidualBlock, width, width, blocks))
        self.head = nn.Linear(4 * width, classes)
        initialise(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits, one row an image."""
        out: Tensor = self.head(self.stages(self.stem(x)).mean((2, 3)))
        return out


def resnet20(
    shape: tuple[int, ...],
    classes: int,
    *,
    width: Annotated[int, Field(ge=1)] = 16,
    blocks: Annotated[int, Field(ge=1)] = 3,
) -> nn.Module:
    """Residual network with BatchNorm, of 6 · `blocks` + 2 layers: 20 by default, of 269,722 parameters on CIFAR-10.

    Args:
        shape: (c, h, w) of one image; any size, 8 x 8 and 32 x 32 among them.
        classes: Number of logits.
        width: Channels of the first stage; the later ones have two and four times as many.
        blocks: Residual blocks a stage.

    Raises:
        ValueError: If inputs are not images.

    Source:
        He et al. (2016), "Deep residual learning for image recognition", CVPR, sec. 4.2.
    """
    return ResNet(images(shape, "resnet20")[0], classes, width, blocks)


class BasicBlock(nn.Module):
    """relu(s(x) + bn(conv(relu(bn(conv(x)))))) with 3 x 3 convolutions; the first one strides.

    Where the size changes, the shortcut s is a 1 x 1 convolution with BatchNorm (option B of He et al. 2016). The parts
    have torchvision's names, so that weights from there fit.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k i j"]:
        """The block's output; h and w are divided by the stride, rounded up."""
        out = nn.functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return nn.functional.relu(out + (x if self.downsample is None else self.downsample(x)))


class FourStageResNet(nn.Module):
    """The ImageNet form of the residual network, of widths w, 2w, 4w and 8w, with torchvision's names of the parts.

    Attributes:
        stem: "cifar": a 3 x 3 convolution; "imagenet": a 7 x 7 convolution of stride 2, then max-pooling of stride 2.
    """

    def __init__(self, channels: int, classes: int, width: int, blocks: int, stem: str) -> None:
        super().__init__()
        self.stem = stem
        kernel, stride, padding = (3, 1, 1) if stem == "cifar" else (7, 2, 3)
        self.conv1 = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage in range(4):
            outputs = width * 2**stage
            first = BasicBlock(inputs, outputs, 1 if stage == 0 else 2)
            rest = [BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(first, *rest))
            inputs = outputs
        self.fc = nn.Linear(inputs, classes)
        initialise(self, "fan_out")

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits, one row an image."""
        x = nn.functional.relu(self.bn1(self.conv1(x)))
        if self.stem == "imagenet":
            x = nn.functional.max_pool2d(x, 3, 2, 1)
        for stage in range(4):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


def resnet18(
    shape: tuple[int, ...],
    classes: int,
    *,
    stem: Literal["cifar", "imagenet"] = "cifar",
    width: Annotated[int, Field(ge=1)] = 64,
) -> nn.Module:
    """Residual network of 18 layers: 11,173,962 parameters on CIFAR-10 in the form for small images.

    Args:
        shape: (c, h, w) of one image.
        classes: Number of logits.
        stem: How an image begins: cifar keeps its size (3 x 3 convolution, no pooling); imagenet divides it by four.
        width: Channels of the first stage.

    Raises:
        ValueError: If inputs are not images.

    Source:
        He et al. (2016), "Deep residual learning for image recognition", CVPR, table 1; names and initialisation as in
        torchvision. The form for small images is the one that SAM's papers train on CIFAR.
    """
    return FourStageResNet(images(shape, "resnet18")[0], classes, width, 2, stem)


class WideBlock(nn.Module):
    """s(x) + conv(drop(relu(bn(conv(relu(bn(x))))))) with 3 x 3 convolutions: the pre-activation form.

    Where the size changes, the shortcut is a 1 x 1 convolution of relu(bn(x)).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.dropout = dropout
        self.shortcut: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k i j"]:
        """The block's output; h and w are divided by the stride, rounded up."""
        active = nn.functional.relu(self.bn1(x))
        out = nn.functional.relu(self.bn2(self.conv1(active)))
        if self.dropout > 0:
            out = nn.functional.dropout(out, self.dropout, self.training)
        out = self.conv2(out)
        sum_: Tensor = out + (x if self.shortcut is None else self.shortcut(active))
        return sum_


class WideResNet(nn.Module):
    """Three stages of pre-activation blocks of widths 16k, 32k and 64k, BatchNorm, ReLU, the mean over pixels.

    Attributes:
        stem: 3 x 3 convolution to 16 channels.
        stages: The blocks, in order.
        norm: BatchNorm after the last block.
        head: Linear layer to the logits.
    """

    def __init__(self, channels: int, classes: int, blocks: int, widen_factor: int, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        wide = 16 * widen_factor
        self.stages = nn.Sequential(*three_stages(partial(WideBlock, dropout=dropout), 16, wide, blocks))
        self.norm = nn.BatchNorm2d(4 * wide)
        self.head = nn.Linear(4 * wide, classes)
        initialise(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits, one row an image."""
        out: Tensor = self.head(nn.functional.relu(self.norm(self.stages(self.stem(x)))).mean((2, 3)))
        return out


def wide_resnet(
    shape: tuple[int, ...],
    classes: int,
    *,
    depth: Annotated[int, Field(ge=10)] = 28,
    widen_factor: Annotated[int, Field(ge=1)] = 10,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> nn.Module:
    """Wide residual network: WRN-28-10 by default, of 36,479,194 parameters on CIFAR-10.

    Args:
        shape: (c, h, w) of one image.
        classes: Number of logits.
        depth: Layers: 6n + 4 for n blocks a stage.
        widen_factor: Multiplier of the widths 16, 32 and 64.
        dropout: Probability of dropping an entry between the convolutions of a block.

    Raises:
        ValueError: If inputs are not images, or no whole number of blocks has this depth.

    Source:
        Zagoruyko and Komodakis (2016), "Wide residual networks", BMVC.
    """
    channels = images(shape, "wide_resnet")[0]
    blocks, rest = divmod(depth - 4, 6)
    if rest:
        raise ValueError(f"`depth` must be 6 n + 4, such as 16, 22, 28 or 40, got {depth}.")
    return WideResNet(channels, classes, blocks, widen_factor, dropout)


def images(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The shape of an input, (c, h, w).

    Raises:
        ValueError: If inputs are not images.
    """
    if len(shape) != 3:
        raise ValueError(f"`shape` must be that of images, (c, h, w), for model {name!r}, got {shape}; try 'cnn'.")
    return shape
