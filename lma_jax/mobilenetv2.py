"""MobileNetV2 (Sandler et al., CVPR 2018) with an attention module in its blocks.

Attribute names are torchvision's; the attention is one more element of a block's `conv`, where it is computed.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lma_jax.attention import Attention, Placement
from lma_jax.layers import BatchNorm, ReLU6, Sequential, conv, init_weights

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


def make_divisible(channels: float, divisor: int) -> int:
    """The multiple of `divisor` nearest to `channels`, never more than 10 % below it."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def conv_bn_relu(
    in_channels: int, channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1, norm_layer: Any, **dd: Any
):
    """Convolution, batch normalisation, ReLU6."""
    convolution = conv(in_channels, channels, kernel_size, stride=stride, groups=groups, **dd)
    return Sequential([convolution, norm_layer(channels, **dd), ReLU6()])


class InvertedResidual(nnx.Module):
    """Expansion, depthwise convolution, attention, linear projection. (N, H, W, in) -> (N, H/stride, W/stride, out)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        expand_ratio: int,
        attention: Attention | Placement | None = None,
        norm_layer: Any = BatchNorm,
        **dd: Any,
    ):
        hidden = in_channels * expand_ratio
        place = Placement.of(attention, "hidden")
        layers: list[nnx.Module] = []
        if expand_ratio != 1:
            layers += [conv_bn_relu(in_channels, hidden, 1, norm_layer=norm_layer, **dd)]
        depthwise = conv_bn_relu(hidden, hidden, 3, stride=stride, groups=hidden, norm_layer=norm_layer, **dd)
        for module in place.at("conv", hidden, **dd):
            depthwise.insert(1, module)
        layers += [depthwise]
        if expand_ratio != 1:
            layers += place.at("hidden", hidden, **dd)
        layers += [conv(hidden, out_channels, 1, **dd), norm_layer(out_channels, **dd)]
        layers += place.at("block", out_channels, **dd)
        self.conv = Sequential(layers)
        self.use_residual = stride == 1 and in_channels == out_channels

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.conv(x) if self.use_residual else self.conv(x)


class MobileNetV2(nnx.Module):
    """MobileNetV2 for images of shape (N, H, W, 3).

    Args:
        num_classes: size of the output.
        width_mult: factor on the channel counts, which are rounded to multiples of 8 (of 4 at 0.1).
        dropout: rate before the classifier; its noise comes from the stream `dropout`.
        attention: constructor called with a channel count (and dtype, param_dtype, rngs), its Placement,
            or None for the plain host.
        norm_layer: constructor of the normalisation layers.
        dtype: computation dtype; by default that of the input and the parameters.
        param_dtype: dtype of the parameters.
        rngs: the stream `params` initialises the weights.
    """

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        dropout: float = 0.2,
        attention: Attention | Placement | None = None,
        norm_layer: Any = BatchNorm,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        dd: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        divisor = 4 if width_mult == 0.1 else 8
        channels = make_divisible(32 * width_mult, divisor)
        features: list[nnx.Module] = [conv_bn_relu(3, channels, 3, stride=2, norm_layer=norm_layer, **dd)]
        for expand_ratio, width, depth, first_stride in ROWS:
            for stride in [first_stride] + [1] * (depth - 1):
                block: dict[str, Any] = dict(attention=attention, norm_layer=norm_layer, **dd)
                out_channels = make_divisible(width * width_mult, divisor)
                features += [
                    InvertedResidual(channels, out_channels, stride=stride, expand_ratio=expand_ratio, **block)
                ]
                channels = out_channels
        last_channels = make_divisible(1280 * max(1.0, width_mult), divisor)
        features += [conv_bn_relu(channels, last_channels, 1, norm_layer=norm_layer, **dd)]
        self.features = Sequential(features)
        self.classifier = Sequential([nnx.Dropout(dropout, rngs=rngs), nnx.Linear(last_channels, num_classes, **dd)])
        init_weights(self, rngs)

    def forward_features(self, x: jax.Array) -> jax.Array:
        """(N, H, W, 3) -> the last feature map (N, H/32, W/32, C)."""
        return self.features(x)

    def forward_head(self, x: jax.Array) -> jax.Array:
        """The last feature map (N, h, w, C) -> logits (N, num_classes)."""
        return self.classifier(x.mean((1, 2)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, 3) -> logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))
