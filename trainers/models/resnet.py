"""Residual networks for small images, with BatchNorm."""

from typing import Annotated

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
        stages: list[nn.Module] = []
        inputs = width
        for stage in range(3):
            outputs = width * 2**stage
            for block in range(blocks):
                stages.append(ResidualBlock(inputs, outputs, 2 if stage > 0 and block == 0 else 1))
                inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

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
    if len(shape) != 3:
        raise ValueError(f"`shape` must be that of images, (c, h, w), for model 'resnet20', got {shape}; try 'cnn'.")
    return ResNet(shape[0], classes, width, blocks)
