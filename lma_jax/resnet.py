"""ResNet-18/34/50/101/152 (He et al., CVPR 2016) with an attention module in every block.

The v1.5 form: a bottleneck's stride sits in its 3x3 convolution. Attribute names are torchvision's.
"""

import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lma_jax.attention import Attention, Placement
from lma_jax.layers import (
    SPATIAL_AXES,
    BatchNorm,
    Network,
    Sequential,
    conv,
    dilated,
    drop_path_rates,
    head,
    init_weights,
    relu,
    stochastic_depth,
    undrawn,
    whole_number,
)
from lma_jax.profiles import gated_sum, pays


class Block(nnx.Module):
    """A residual block with an attention module at one of its positions.

    Args:
        in_channels: channels of its input.
        planes: channels of its 3x3 convolutions.
        stride: stride of the first of them.
        dilations: dilation of the first of them, and of a second one.
        drop_path: rate of stochastic depth.
        attention: as in `ResNet`.
    """

    last_norm: str
    drop_path: nnx.Dropout | None

    def build_attention(
        self, attention: Attention | Placement | None, *, planes: int, channels: int, **options: Any
    ) -> None:
        """Builds the attention module: for `planes` channels at the position "conv", for `channels` at "branch"."""
        placement = Placement.of(attention, "branch")
        modules = placement.at("conv", planes, **options) + placement.at("branch", channels, **options)
        self.attention = modules[0] if modules else None
        self.position = placement.position

    def apply_attention(self, x: jax.Array, position: str) -> jax.Array:
        """Applies the attention module if `position` is its own; returns `x` unchanged otherwise."""
        return self.attention(x) if self.attention is not None and position == self.position else x

    def drop_branch(self, x: jax.Array) -> jax.Array:
        """Applies stochastic depth."""
        return x if self.drop_path is None else self.drop_path(x)

    def gates_first(self, conv: nnx.Conv, norm: BatchNorm, x: jax.Array) -> bool:
        """Whether the gates of norm(conv(x)) are computed before it, from profiles of `x`: see profiles.py."""
        return self.position == "branch" and self.drop_path is None and pays(self.attention, conv, norm, x)


class BasicBlock(Block):
    """Two 3x3 convolutions, attention, and the shortcut. (N, H, W, in_channels) -> (N, H/stride, W/stride, planes)."""

    expansion = 1
    last_norm = "bn2"

    def __init__(
        self,
        in_channels: int,
        planes: int,
        *,
        stride: int = 1,
        dilations: tuple[int, int] = (1, 1),
        drop_path: float = 0.0,
        attention: Attention | Placement | None = None,
        **options: Any,
    ):
        channels = planes * self.expansion
        self.conv1 = conv(in_channels, planes, 3, stride=stride, dilation=dilations[0], **options)
        self.bn1 = BatchNorm(planes, **options)
        self.conv2 = conv(planes, channels, 3, dilation=dilations[1], **options)
        self.bn2 = BatchNorm(channels, **options)
        self.build_attention(attention, planes=planes, channels=channels, **options)
        self.drop_path = stochastic_depth(drop_path, **options)
        self.downsample = shortcut(in_channels, channels, stride, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        identity = x if self.downsample is None else self.downsample(x)
        x = nnx.relu(self.bn1(self.conv1(x)))
        if self.gates_first(self.conv2, self.bn2, x):
            return relu(gated_sum(self.attention, self.conv2, self.bn2, x, identity))
        x = self.apply_attention(self.conv2(x), "conv")
        x = self.drop_branch(self.apply_attention(self.bn2(x), "branch"))
        return relu(x + identity)


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions, attention, and the shortcut. Its output has 4 * planes channels."""

    expansion = 4
    last_norm = "bn3"

    def __init__(
        self,
        in_channels: int,
        planes: int,
        *,
        stride: int = 1,
        dilations: tuple[int, int] = (1, 1),
        drop_path: float = 0.0,
        attention: Attention | Placement | None = None,
        **options: Any,
    ):
        channels = planes * self.expansion
        self.conv1 = conv(in_channels, planes, 1, **options)
        self.bn1 = BatchNorm(planes, **options)
        self.conv2 = conv(planes, planes, 3, stride=stride, dilation=dilations[0], **options)
        self.bn2 = BatchNorm(planes, **options)
        self.conv3 = conv(planes, channels, 1, **options)
        self.bn3 = BatchNorm(channels, **options)
        self.build_attention(attention, planes=planes, channels=channels, **options)
        self.drop_path = stochastic_depth(drop_path, **options)
        self.downsample = shortcut(in_channels, channels, stride, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        identity = x if self.downsample is None else self.downsample(x)
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = self.apply_attention(self.conv2(x), "conv")
        x = nnx.relu(self.bn2(x))
        if self.gates_first(self.conv3, self.bn3, x):
            return relu(gated_sum(self.attention, self.conv3, self.bn3, x, identity))
        x = self.drop_branch(self.apply_attention(self.bn3(self.conv3(x)), "branch"))
        return relu(x + identity)


def shortcut(in_channels: int, channels: int, stride: int, **options: Any) -> Sequential | None:
    """The projection of a block's input if its shape changes; None otherwise."""
    if stride == 1 and in_channels == channels:
        return None
    return Sequential([conv(in_channels, channels, 1, stride=stride, **options), BatchNorm(channels, **options)])


class ResNet(Network):
    """ResNet for images of shape (N, H, W, 3).

    Args:
        block: BasicBlock or Bottleneck.
        depths: number of blocks in each of the four stages.
        num_classes: size of the output; with 0 there is no head, and the pooled features come out.
        width: channels of the first stage, before the block's expansion; stages 2 to 4 have 2, 4 and 8 times as many.
        in_chans: channels of the images.
        stem: "imagenet" (7x7 of stride 2, and max pooling), or "small" for small images (3x3 of stride 1).
        output_stride: stride of the last map: 32, or 16 or 8 by dilated convolutions; with the small stem it is 8.
        drop_path: rate of stochastic depth in the last block, from 0 in the first.
        zero_init_residual: start the last normalisation of every branch from 0 (Goyal et al. 2017).
        attention: constructor called with a channel count (and dtype, param_dtype, rngs), its Placement,
            or None for the plain backbone.
        dtype: computation dtype; by default that of the input and the parameters.
        param_dtype: dtype of the parameters.
        rngs: the stream `params` initialises the weights.
    """

    @undrawn()
    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        *,
        num_classes: int = 1000,
        width: int = 64,
        in_chans: int = 3,
        stem: str = "imagenet",
        output_stride: int = 32,
        drop_path: float = 0.0,
        zero_init_residual: bool = False,
        attention: Attention | Placement | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        if not isinstance(stem, str) or stem not in STEMS:
            raise ValueError(f"stem must be one of {', '.join(STEMS)}, not {stem!r}")
        width, in_chans = whole_number(width, name="width", least=1), whole_number(in_chans, name="in_chans", least=1)
        kernel_size, stride, pooling = STEMS[stem]
        self.conv1 = conv(in_chans, width, kernel_size, stride=stride, **options)
        self.pooling = pooling
        self.bn1 = BatchNorm(width, **options)
        placement = Placement.of(attention, "branch")

        rates = iter(drop_path_rates(drop_path, sum(depths)))

        def stage(in_channels: int, planes: int, depth: int, stride: int, dilations: tuple[int, int]) -> Sequential:
            channels = [in_channels] + [planes * block.expansion] * (depth - 1)
            strides = [stride] + [1] * (depth - 1)
            pairs = [dilations] + [(dilations[1], dilations[1])] * (depth - 1)
            attentions = [placement if placement.every_block else None] * (depth - 1) + [placement]
            blocks = [
                block(c, planes, stride=s, dilations=d, drop_path=next(rates), attention=a, **options)
                for c, s, d, a in zip(channels, strides, pairs, attentions)
            ]
            last = planes == 8 * width
            after = [] if last else placement.at("stage", planes * block.expansion, **options)
            return Sequential(blocks + after)

        start, strides = stride * pooling, (1, 2, 2, placement.last_stride)
        stages = dilated(strides, start=start, output_stride=output_stride)
        self.layer1 = stage(width, width, depths[0], *stages[0])
        self.layer2 = stage(width * block.expansion, 2 * width, depths[1], *stages[1])
        self.layer3 = stage(2 * width * block.expansion, 4 * width, depths[2], *stages[2])
        self.layer4 = stage(4 * width * block.expansion, 8 * width, depths[3], *stages[3])
        channels = [width, *(width * block.expansion * 2**index for index in range(4))]
        reductions = itertools.accumulate([stride, pooling, *(stage[0] for stage in stages[1:])], operator.mul)
        self.maps = tuple(zip(channels, reductions, ("bn1", "layer1", "layer2", "layer3", "layer4")))
        self.num_features = channels[-1]
        self.position = placement.position
        self.num_classes = num_classes
        self.dtype = dtype
        self.fc = head(self.num_features, num_classes, **options)
        init_weights(self, rngs)
        for _, module in nnx.iter_modules(self):
            if zero_init_residual and isinstance(module, Block):
                norm = getattr(module, module.last_norm)
                norm.scale.set_value(jnp.zeros_like(norm.scale[...]))

    def stages(self) -> Sequence[Callable[[jax.Array], jax.Array]]:
        """C1 to C5; see Network."""
        return self._stem, self._stage1, self.layer2, self.layer3, self.layer4

    def _stem(self, x: jax.Array) -> jax.Array:
        return nnx.relu(self.bn1(self.conv1(x)))

    def _stage1(self, x: jax.Array) -> jax.Array:
        if self.pooling > 1:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return self.layer1(x)

    def forward_head(self, x: jax.Array) -> jax.Array:
        """The last feature map (N, h, w, C) -> logits (N, num_classes), or its means (N, C) if there are no classes."""
        return self.fc(x.mean(SPATIAL_AXES))

    def remove_after(self, index: int) -> None:
        """Removes the layers behind a map; see Network."""
        for number in range(index + 1, 5):
            setattr(self, f"layer{number}", Sequential([]))

    def get_classifier(self) -> nnx.Module:
        """The layer `fc`."""
        return self.fc

    def set_classifier(self, layer: nnx.Module) -> None:
        """Replaces it."""
        self.fc = layer


# kernel size and stride of the first convolution, and stride of the max pooling after it
STEMS = {"imagenet": (7, 2, 2), "small": (3, 1, 1)}
DEPTHS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
