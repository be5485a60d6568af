"""MobileNetV2 (Sandler et al., CVPR 2018) with an attention module in its blocks.

Attribute names are torchvision's; the attention module is one more element of a block's `conv`, at its position.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from lma_torch.attention import Attention, Placement
from lma_torch.layers import (
    Network,
    conv,
    dilated,
    drop_path_rates,
    fraction,
    head,
    init_weights,
    is_real,
    stochastic_depth,
    whole_number,
)

# expansion ratio t, channels c, number of blocks n, stride of the first s
ROWS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# The numbers of layers up to the maps C1 to C5: those before a stride, and the last one.
MAP_ENDS = (2, 4, 7, 14, 18)


def make_divisible(channels: float, divisor: int) -> int:
    """The multiple of `divisor` nearest to `channels`, never more than 10 % below it."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def conv_bn_relu(
    in_channels: int,
    channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    **options: Any,
):
    """Convolution, batch normalisation, ReLU6."""
    shape: dict[str, Any] = dict(stride=stride, dilation=dilation, groups=groups)
    convolution = conv(in_channels, channels, kernel_size, **shape, **options)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels, **options), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, attention, linear projection. (N, in, H, W) -> (N, out, H/stride, W/stride)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        expand_ratio: int,
        dilation: int = 1,
        drop_path: float = 0.0,
        attention: Attention | Placement | None = None,
        **options: Any,
    ):
        super().__init__()
        hidden = in_channels * expand_ratio
        placement = Placement.of(attention, "hidden")
        layers: list[nn.Module] = []
        if expand_ratio != 1:
            layers += [conv_bn_relu(in_channels, hidden, 1, **options)]
        shape: dict[str, Any] = dict(stride=stride, dilation=dilation, groups=hidden)
        depthwise = conv_bn_relu(hidden, hidden, 3, **shape, **options)
        for module in placement.at("conv", hidden, **options):
            depthwise.insert(1, module)
        layers += [depthwise]
        if expand_ratio != 1:
            layers += placement.at("hidden", hidden, **options)
        layers += [conv(hidden, out_channels, 1, **options), nn.BatchNorm2d(out_channels, **options)]
        layers += placement.at("block", out_channels, **options)
        self.conv = nn.Sequential(*layers)
        self.use_residual = stride == 1 and in_channels == out_channels
        self.drop_path = stochastic_depth(drop_path) if self.use_residual else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.drop_path is not None:
            y = self.drop_path(y)
        return x + y if self.use_residual else y


class MobileNetV2(Network):
    """MobileNetV2 for images of shape (N, 3, H, W).

    Args:
        num_classes: size of the output; with 0 there is no head, and the pooled features come out.
        width_mult: factor on the channel counts, which are rounded to multiples of 8 (of 4 at 0.1).
        dropout: rate before the classifier.
        in_chans: channels of the images.
        output_stride: stride of the last map: 32, or 16 or 8 by dilated convolutions.
        drop_path: rate of stochastic depth in the last block, from 0 in the first.
        attention: constructor called with a channel count (and device, dtype), its Placement,
            or None for the plain backbone.
        device: device of the parameters.
        dtype: dtype of the parameters.
    """

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        dropout: float = 0.2,
        in_chans: int = 3,
        output_stride: int = 32,
        drop_path: float = 0.0,
        attention: Attention | Placement | None = None,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        options: dict[str, Any] = dict(device=device, dtype=dtype)
        block: dict[str, Any] = dict(attention=attention, **options)
        if not is_real(width_mult) or not 0 < width_mult < math.inf:
            raise ValueError(f"width_mult must be a number above 0, not {width_mult!r}")
        in_chans, dropout = whole_number(in_chans, name="in_chans", least=1), fraction(dropout, name="dropout")
        width_mult = float(width_mult)  # a NumPy float32 of 0.1 is another number
        divisor = 4 if width_mult == 0.1 else 8
        channels = make_divisible(32 * width_mult, divisor)
        features: list[nn.Module] = [conv_bn_relu(in_chans, channels, 3, stride=2, **options)]
        stages = dilated([stride for *_, stride in ROWS], start=2, output_stride=output_stride)
        rates = iter(drop_path_rates(drop_path, sum(depth for _, _, depth, _ in ROWS)))
        maps, reduction = [], 2
        for (expand_ratio, width, depth, _), (first_stride, (first, later)) in zip(ROWS, stages):
            for stride, dilation in [(first_stride, first)] + [(1, later)] * (depth - 1):
                out_channels = make_divisible(width * width_mult, divisor)
                shape: dict[str, Any] = dict(stride=stride, dilation=dilation, drop_path=next(rates))
                features += [InvertedResidual(channels, out_channels, expand_ratio=expand_ratio, **shape, **block)]
                channels = out_channels
            reduction *= first_stride
            if len(features) in MAP_ENDS:
                maps += [(channels, reduction, f"features.{len(features) - 1}")]
        self.maps = tuple(maps)
        self.num_features = make_divisible(1280 * max(1.0, width_mult), divisor)
        self.position = Placement.of(attention, "hidden").position
        features += [conv_bn_relu(channels, self.num_features, 1, **options)]
        self.num_classes = num_classes
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), head(self.num_features, num_classes, **options))
        init_weights(self)

    def stages(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """C1 to C5, and the last convolution; see Network."""
        ends = (0, *MAP_ENDS, 19)
        return [self.features[start:end] for start, end in itertools.pairwise(ends)]

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> the last feature map (N, C, H/32, W/32)."""
        return self.features(x)

    def forward_head(self, x: Tensor) -> Tensor:
        """The last feature map (N, C, h, w) -> logits (N, num_classes), or its means (N, C) if there are no classes."""
        return self.classifier(self.avgpool(x).flatten(1))

    def remove_after(self, index: int) -> None:
        """Removes the layers behind a map; see Network."""
        del self.features[MAP_ENDS[index] :]

    def get_classifier(self) -> nn.Module:
        """The last layer of `classifier`."""
        return self.classifier[1]

    def set_classifier(self, layer: nn.Module) -> None:
        """Replaces it."""
        self.classifier[1] = layer
