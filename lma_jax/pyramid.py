"""The feature pyramid of detectors (FPN; Lin et al., CVPR 2017). Attribute names are torchvision's.

backbone = create_model("resnet50_lma", features_only=True, out_indices=(1, 2, 3, 4), rngs=rngs)
pyramid = FeaturePyramid(backbone.feature_info.channels(), extra_blocks=LastLevelMaxPool(), rngs=rngs)
maps = pyramid(backbone(images))  # strides 4, 8, 16, 32 and 64, 256 channels each
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lma_jax.convolution import convolve
from lma_jax.layers import SPATIAL_AXES, Sequential


def conv(in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, **options: Any) -> nnx.Conv:
    """A square convolution with bias, padded by half of its extent. Kernels are Kaiming-uniform (gain 1), biases 0."""
    return nnx.Conv(
        in_channels,
        out_channels,
        (kernel_size, kernel_size),
        strides=stride,
        padding=((kernel_size // 2, kernel_size // 2),) * 2,
        kernel_init=nnx.initializers.variance_scaling(1, "fan_in", "uniform"),
        conv_general_dilated=convolve,
        **options,
    )


def upsample(x: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """The map (N, h, w, C) as (N, *size, C): pixel i of n is pixel floor(i * h / n), PyTorch's mode "nearest".

    jax.image.resize has another "nearest", which samples at the centres of pixels.
    """
    for axis, length in zip(SPATIAL_AXES, size):
        x = jnp.take(x, np.arange(length) * x.shape[axis] // length, axis)
    return x


class LastLevelMaxPool:
    """Every second pixel of the last map as one more map, as in Faster R-CNN."""

    def __call__(self, pyramid: Sequence[jax.Array], maps: Sequence[jax.Array]) -> list[jax.Array]:
        """The pyramid's maps (N, H, W, C) and the backbone's -> one map (N, ceil(H/2), ceil(W/2), C)."""
        return [pyramid[-1][:, ::2, ::2]]


class LastLevelP6P7(nnx.Module):
    """Two more maps by convolutions of stride 2, as in RetinaNet (Lin et al., ICCV 2017).

    Args:
        in_channels: channels of the backbone's last map, or `out_channels` to start from the pyramid's last one.
        out_channels: channels of the pyramid.
        dtype: computation dtype; by default that of the input and the parameters.
        param_dtype: dtype of the parameters.
        rngs: the stream `params` initialises the weights.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs
    ):
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.p6 = conv(in_channels, out_channels, 3, stride=2, **options)
        self.p7 = conv(out_channels, out_channels, 3, stride=2, **options)
        self.use_pyramid = in_channels == out_channels

    def __call__(self, pyramid: Sequence[jax.Array], maps: Sequence[jax.Array]) -> list[jax.Array]:
        """The pyramid's maps and the backbone's -> two maps (N, h, w, out_channels) of twice and 4 times the stride."""
        p6 = self.p6((pyramid if self.use_pyramid else maps)[-1])
        return [p6, self.p7(nnx.relu(p6))]


class FeaturePyramid(nnx.Module):
    """Maps of all strides with the same channels, each of which knows the coarser ones.

    A 1x1 convolution takes each map to `out_channels`; the sum of the coarser ones is added, upsampled to its size; a
    3x3 convolution follows.

    Args:
        in_channels: channels of each map of the backbone, the finest first (`feature_info.channels()`).
        out_channels: channels of each map of the pyramid.
        extra_blocks: called with the pyramid's maps and the backbone's, returns the list of further, coarser maps:
            LastLevelMaxPool, LastLevelP6P7, or None for none.
        dtype: computation dtype; by default that of the input and the parameters.
        param_dtype: dtype of the parameters.
        rngs: the stream `params` initialises the weights.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        *,
        extra_blocks: Callable[..., list[jax.Array]] | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        inner = [conv(channels, out_channels, 1, **options) for channels in in_channels]
        layers = [conv(out_channels, out_channels, 3, **options) for _ in in_channels]
        # As in torchvision, where a normalisation may follow the convolution.
        self.inner_blocks = nnx.List([Sequential([layer]) for layer in inner])
        self.layer_blocks = nnx.List([Sequential([layer]) for layer in layers])
        self.extra_blocks = extra_blocks

    def __call__(self, maps: Sequence[jax.Array]) -> list[jax.Array]:
        """The backbone's maps (N, H, W, C), the finest first -> as many (N, H, W, out_channels), and the extra ones.

        Raises:
            ValueError: there are more or fewer maps than `in_channels`.
        """
        if len(maps) != len(self.inner_blocks):
            raise ValueError(f"the pyramid was built for {len(self.inner_blocks)} maps, got {len(maps)}")
        sums = [block(x) for block, x in zip(self.inner_blocks, maps)]
        for index in reversed(range(len(sums) - 1)):
            sums[index] = sums[index] + upsample(sums[index + 1], sums[index].shape[1:3])
        pyramid = [block(x) for block, x in zip(self.layer_blocks, sums)]
        return pyramid if self.extra_blocks is None else [*pyramid, *self.extra_blocks(pyramid, maps)]
