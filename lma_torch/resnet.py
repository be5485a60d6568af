"""ResNet-18/34/50/101/152 (He et al., CVPR 2016) with an attention module in every block.

The v1.5 form: a bottleneck's stride sits in its 3x3 convolution. Attribute names are torchvision's.
"""

from typing import Any

from torch import Tensor, nn

from lma_torch.attention import Attention, Placement
from lma_torch.layers import Network, conv, head, init_weights
from lma_torch.profiles import gated_sum, pays


class Block(nn.Module):
    """A residual block with an attention module at one of its positions."""

    def build_attention(
        self, attention: Attention | Placement | None, *, planes: int, channels: int, **options: Any
    ) -> None:
        """Builds the attention module: for `planes` channels at the position "conv", for `channels` at "branch"."""
        placement = Placement.of(attention, "branch")
        modules = placement.at("conv", planes, **options) + placement.at("branch", channels, **options)
        self.attention = modules[0] if modules else None
        self.position = placement.position

    def apply_attention(self, x: Tensor, position: str) -> Tensor:
        """Applies the attention module if `position` is its own; returns `x` unchanged otherwise."""
        return self.attention(x) if self.attention is not None and position == self.position else x

    def gates_first(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> bool:
        """Whether the gates of norm(conv(x)) are computed before it, from profiles of `x`: see profiles.py."""
        return self.position == "branch" and pays(self.attention, conv, norm, x)


class BasicBlock(Block):
    """Two 3x3 convolutions, attention, and the shortcut. (N, in_channels, H, W) -> (N, planes, H/stride, W/stride)."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        planes: int,
        *,
        stride: int = 1,
        attention: Attention | Placement | None = None,
        **options: Any,
    ):
        super().__init__()
        channels = planes * self.expansion
        self.conv1 = conv(in_channels, planes, 3, stride=stride, **options)
        self.bn1 = nn.BatchNorm2d(planes, **options)
        self.conv2 = conv(planes, channels, 3, **options)
        self.bn2 = nn.BatchNorm2d(channels, **options)
        self.build_attention(attention, planes=planes, channels=channels, **options)
        self.downsample = shortcut(in_channels, channels, stride, **options)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        if self.gates_first(self.conv2, self.bn2, x):
            return self.relu(gated_sum(self.attention, self.conv2, self.bn2, x, identity))
        x = self.apply_attention(self.conv2(x), "conv")
        x = self.apply_attention(self.bn2(x), "branch")
        return self.relu(x + identity)


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions, attention, and the shortcut. Its output has 4 * planes channels."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        planes: int,
        *,
        stride: int = 1,
        attention: Attention | Placement | None = None,
        **options: Any,
    ):
        super().__init__()
        channels = planes * self.expansion
        self.conv1 = conv(in_channels, planes, 1, **options)
        self.bn1 = nn.BatchNorm2d(planes, **options)
        self.conv2 = conv(planes, planes, 3, stride=stride, **options)
        self.bn2 = nn.BatchNorm2d(planes, **options)
        self.conv3 = conv(planes, channels, 1, **options)
        self.bn3 = nn.BatchNorm2d(channels, **options)
        self.build_attention(attention, planes=planes, channels=channels, **options)
        self.downsample = shortcut(in_channels, channels, stride, **options)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.apply_attention(self.conv2(x), "conv")
        x = self.relu(self.bn2(x))
        if self.gates_first(self.conv3, self.bn3, x):
            return self.relu(gated_sum(self.attention, self.conv3, self.bn3, x, identity))
        x = self.apply_attention(self.bn3(self.conv3(x)), "branch")
        return self.relu(x + identity)


def shortcut(in_channels: int, channels: int, stride: int, **options: Any) -> nn.Sequential | None:
    """The projection of a block's input if its shape changes; None otherwise."""
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(conv(in_channels, channels, 1, stride=stride, **options), nn.BatchNorm2d(channels, **options))


class ResNet(Network):
    """ResNet for images of shape (N, 3, H, W).

    Args:
        block: BasicBlock or Bottleneck.
        depths: number of blocks in each of the four stages.
        num_classes: size of the output; with 0 there is no head, and the pooled features come out.
        width: channels of the first stage, before the block's expansion; stages 2 to 4 have 2, 4 and 8 times as many.
        attention: constructor called with a channel count (and device, dtype), its Placement,
            or None for the plain backbone.
        device: device of the parameters.
        dtype: dtype of the parameters.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        *,
        num_classes: int = 1000,
        width: int = 64,
        attention: Attention | Placement | None = None,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        options: dict[str, Any] = dict(device=device, dtype=dtype)
        self.conv1 = conv(3, width, 7, stride=2, **options)
        self.bn1 = nn.BatchNorm2d(width, **options)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

        placement = Placement.of(attention, "branch")

        def stage(in_channels: int, planes: int, depth: int, stride: int) -> nn.Sequential:
            channels = [in_channels] + [planes * block.expansion] * (depth - 1)
            strides = [stride] + [1] * (depth - 1)
            attentions = [placement if placement.every_block else None] * (depth - 1) + [placement]
            blocks = [
                block(c, planes, stride=s, attention=a, **options) for c, s, a in zip(channels, strides, attentions)
            ]
            last = planes == 8 * width
            after = [] if last else placement.at("stage", planes * block.expansion, **options)
            return nn.Sequential(*blocks, *after)

        self.layer1 = stage(width, width, depths[0], stride=1)
        self.layer2 = stage(width * block.expansion, 2 * width, depths[1], stride=2)
        self.layer3 = stage(2 * width * block.expansion, 4 * width, depths[2], stride=2)
        self.layer4 = stage(4 * width * block.expansion, 8 * width, depths[3], stride=placement.last_stride)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.num_features = 8 * width * block.expansion
        self.fc = head(self.num_features, num_classes, **options)
        init_weights(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> the last feature map (N, C, H/32, W/32), or H/16, W/16 (GSoP)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.maxpool(x)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward_head(self, x: Tensor) -> Tensor:
        """The last feature map (N, C, h, w) -> logits (N, num_classes), or its means (N, C) if there are no classes."""
        return self.fc(self.avgpool(x).flatten(1))


DEPTHS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
