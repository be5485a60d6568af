"""ResNet-18/34/50/101/152 (He et al., CVPR 2016) with an attention module in every block.

The v1.5 form: a bottleneck's stride sits in its 3x3 convolution. Attribute names are torchvision's.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lma_jax.attention import Attention, Placement
from lma_jax.layers import BatchNorm, Sequential, conv, init_weights


class Block(nnx.Module):
    """A residual block that holds an attention module at one of its positions."""

    def hold(self, attention: Attention | Placement | None, *, conv: int, branch: int, **dd: Any) -> None:
        """Builds the attention module for the number of channels at its position, "conv" or "branch"."""
        place = Placement.of(attention, "branch")
        modules = place.at("conv", conv, **dd) + place.at("branch", branch, **dd)
        self.attention = modules[0] if modules else None
        self.position = place.position

    def attend(self, x: jax.Array, position: str) -> jax.Array:
        """Applies the attention module at its position; elsewhere `x` is returned."""
        return self.attention(x) if self.attention is not None and position == self.position else x


class BasicBlock(Block):
    """Two 3x3 convolutions, attention, and the shortcut. (N, H, W, in_channels) -> (N, H/stride, W/stride, planes)."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        planes: int,
        *,
        stride: int = 1,
        attention: Attention | Placement | None = None,
        norm_layer: Any = BatchNorm,
        **dd: Any,
    ):
        channels = planes * self.expansion
        self.conv1 = conv(in_channels, planes, 3, stride=stride, **dd)
        self.bn1 = norm_layer(planes, **dd)
        self.conv2 = conv(planes, channels, 3, **dd)
        self.bn2 = norm_layer(channels, **dd)
        self.hold(attention, conv=planes, branch=channels, **dd)
        self.downsample = shortcut(in_channels, channels, stride, norm_layer, **dd)

    def __call__(self, x: jax.Array) -> jax.Array:
        identity = x if self.downsample is None else self.downsample(x)
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = self.attend(self.conv2(x), "conv")
        x = self.attend(self.bn2(x), "branch")
        return nnx.relu(x + identity)


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
        norm_layer: Any = BatchNorm,
        **dd: Any,
    ):
        channels = planes * self.expansion
        self.conv1 = conv(in_channels, planes, 1, **dd)
        self.bn1 = norm_layer(planes, **dd)
        self.conv2 = conv(planes, planes, 3, stride=stride, **dd)
        self.bn2 = norm_layer(planes, **dd)
        self.conv3 = conv(planes, channels, 1, **dd)
        self.bn3 = norm_layer(channels, **dd)
        self.hold(attention, conv=planes, branch=channels, **dd)
        self.downsample = shortcut(in_channels, channels, stride, norm_layer, **dd)

    def __call__(self, x: jax.Array) -> jax.Array:
        identity = x if self.downsample is None else self.downsample(x)
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = self.attend(self.conv2(x), "conv")
        x = nnx.relu(self.bn2(x))
        x = self.attend(self.bn3(self.conv3(x)), "branch")
        return nnx.relu(x + identity)


def shortcut(in_channels: int, channels: int, stride: int, norm_layer: Any, **dd: Any) -> Sequential | None:
    """The projection of a block's input where its shape changes, else None."""
    if stride == 1 and in_channels == channels:
        return None
    return Sequential([conv(in_channels, channels, 1, stride=stride, **dd), norm_layer(channels, **dd)])


class ResNet(nnx.Module):
    """ResNet for images of shape (N, H, W, 3).

    Args:
        block: BasicBlock or Bottleneck.
        depths: number of blocks in each of the four stages.
        num_classes: size of the output.
        attention: constructor called with a channel count (and dtype, param_dtype, rngs), its Placement,
            or None for the plain host.
        norm_layer: constructor of the normalisation layers.
        dtype: computation dtype; by default that of the input and the parameters.
        param_dtype: dtype of the parameters.
        rngs: the stream `params` initialises the weights.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        *,
        num_classes: int = 1000,
        attention: Attention | Placement | None = None,
        norm_layer: Any = BatchNorm,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        dd: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.conv1 = conv(3, 64, 7, stride=2, **dd)
        self.bn1 = norm_layer(64, **dd)
        place = Placement.of(attention, "branch")

        def stage(in_channels: int, planes: int, depth: int, stride: int) -> Sequential:
            channels = [in_channels] + [planes * block.expansion] * (depth - 1)
            strides = [stride] + [1] * (depth - 1)
            places = [place if place.every_block else None] * (depth - 1) + [place]
            options: dict[str, Any] = dict(norm_layer=norm_layer, **dd)
            blocks = [block(c, planes, stride=s, attention=a, **options) for c, s, a in zip(channels, strides, places)]
            behind = place.at("stage", planes * block.expansion, **dd) if planes < 512 else []
            return Sequential(blocks + behind)

        self.layer1 = stage(64, 64, depths[0], stride=1)
        self.layer2 = stage(64 * block.expansion, 128, depths[1], stride=2)
        self.layer3 = stage(128 * block.expansion, 256, depths[2], stride=2)
        self.layer4 = stage(256 * block.expansion, 512, depths[3], stride=place.last_stride)
        self.fc = nnx.Linear(512 * block.expansion, num_classes, **dd)
        init_weights(self, rngs)

    def forward_features(self, x: jax.Array) -> jax.Array:
        """(N, H, W, 3) -> the last feature map (N, H/32, W/32, C), or H/16, W/16 (GSoP)."""
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward_head(self, x: jax.Array) -> jax.Array:
        """The last feature map (N, h, w, C) -> logits (N, num_classes)."""
        return self.fc(x.mean((1, 2)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, 3) -> logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


DEPTHS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
