"""Channel attention: one weight a channel, from statistics of its whole map. (N, H, W, C) -> same."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lma_jax.layers import SPATIAL_AXES, BatchNorm, conv2d, linear
from lma_jax.profiles import ProfileAttention

__all__ = ["ECA", "GC", "SE", "SRM", "GSoP"]


def squeezed(channels: int, reduction: int = 16) -> int:
    """The width of a bottleneck, at least 1."""
    return max(1, channels // reduction)


def correction(x: jax.Array, axes: tuple[int, ...]) -> int:
    """What an unbiased variance over `axes` subtracts from their size; 0 for a single value, whose variance is 0."""
    return min(1, math.prod(x.shape[axis] for axis in axes) - 1)


def variance(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The unbiased variance over `axes`, which are kept; 0 for a single value."""
    return x.var(axes, ddof=correction(x, axes), keepdims=True)


def std(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The unbiased standard deviation over `axes`, which are kept; 0, with gradient 0, where all values are equal."""
    squared = variance(x, axes)
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)


def profile_conv(kernel_size: int, **options: Any) -> nnx.Conv:
    """A correlation of profiles (N, 1, length, 1) with a kernel of odd size."""
    return conv2d(1, 1, (1, kernel_size), padding=(0, kernel_size // 2), bias=False, **options)


class SE(ProfileAttention):
    """Squeeze-and-excitation (Hu, Shen, Sun, CVPR 2018): y = x * s(W2 relu(W1 mean(x) + b1) + b2)."""

    profiles = ("HW",)

    def __init__(self, channels: int, **options: Any):
        self.fc1 = linear(channels, squeezed(channels), **options)
        self.fc2 = linear(squeezed(channels), channels, **options)

    def gates_of(self, profile: jax.Array) -> tuple[jax.Array]:
        """The gate (N, 1, 1, C) from the mean of the map."""
        return (nnx.sigmoid(self.fc2(nnx.relu(self.fc1(profile)))),)


class ECA(ProfileAttention):
    """Efficient channel attention (Wang et al., CVPR 2020): y = x * s(mean(x) correlated along the channels).

    Args:
        channels: C.
        kernel_size: odd; by default the odd number at or above (log2(C) + 1) / 2, truncated.
    """

    profiles = ("HW",)

    def __init__(self, channels: int, *, kernel_size: int | None = None, **options: Any):
        if kernel_size is None:
            kernel_size = int((math.log2(channels) + 1) / 2) // 2 * 2 + 1
        self.conv = profile_conv(kernel_size, **options)

    def gates_of(self, profile: jax.Array) -> tuple[jax.Array]:
        """The gate (N, 1, 1, C) from the mean of the map."""
        return (nnx.sigmoid(self.conv(profile.mT).mT),)


class SRM(nnx.Module):
    """Style-based recalibration (Lee, Kim, Nam, ICCV 2019): y = x * s(BN(w1 mean(x) + w2 std(x))), w = 0 at first."""

    same_in_torch = ("weight",)

    def __init__(self, channels: int, *, param_dtype: Any = jnp.float32, **options: Any):
        self.weight = nnx.Param(jnp.zeros((channels, 2), param_dtype))
        self.bn = BatchNorm(channels, param_dtype=param_dtype, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        deviation = jnp.sqrt(variance(x, SPATIAL_AXES) + 1e-5)
        style = jnp.stack([x.mean(SPATIAL_AXES), deviation.reshape(len(x), -1)], 2)
        weights = nnx.sigmoid(self.bn((style * self.weight[...].astype(x.dtype)).sum(2)))
        return x * weights[:, None, None]


class GC(nnx.Module):
    """Global context (Cao et al., ICCV workshops 2019): y = x + W2 relu(LN(W1 sum(a x) + b1)) + b2, W2 = 0 at first.

    The pixels are weighed by a = softmax(w x + b), the channels are transformed in a bottleneck.
    """

    starts_at_zero = ("fc2",)

    def __init__(self, channels: int, **options: Any):
        self.mask = conv2d(channels, 1, 1, **options)
        self.fc1 = linear(channels, squeezed(channels), **options)
        self.norm = nnx.LayerNorm(squeezed(channels), epsilon=1e-5, use_fast_variance=False, **options)
        zeros = nnx.initializers.zeros
        self.fc2 = nnx.Linear(squeezed(channels), channels, kernel_init=zeros, bias_init=zeros, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        n, height, width, channels = x.shape
        attention = nnx.softmax(self.mask(x).reshape(n, 1, height * width))
        context = (attention @ x.reshape(n, height * width, channels)).reshape(n, channels)
        return x + self.fc2(nnx.relu(self.norm(self.fc1(context))))[:, None, None]


class GSoP(nnx.Module):
    """Global second-order pooling (Gao et al., CVPR 2019): a weight a channel from the covariance of the channels.

    relu(x) is reduced to D = 128 channels (with stride 2 on maps of 256 channels, the largest in a ResNet-50), and each
    row of their covariance over the pixels is weighed by a convolution of its own.
    """

    def __init__(self, channels: int, **options: Any):
        width = 128
        self.reduce = conv2d(channels, width, 1, stride=2 if channels == 256 else 1, **options)
        self.bn = BatchNorm(width, **options)
        self.row_bn = BatchNorm(width, **options)
        self.row_conv = conv2d(width, 4 * width, (width, 1), groups=width, **options)
        self.expand = conv2d(4 * width, channels, 1, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        reduced = nnx.relu(self.bn(self.reduce(nnx.relu(x))))
        reduced = reduced.reshape(len(x), -1, reduced.shape[-1])
        centred = reduced - reduced.mean(1, keepdims=True)
        covariance = centred.mT @ centred / centred.shape[1]  # symmetric: its rows may lie last
        weights = nnx.sigmoid(self.expand(self.row_conv(self.row_bn(covariance[:, :, None]))))
        return x * weights


def mobile_eca(channels: int, **options: Any) -> ECA:
    """ECA as its authors use it in MobileNetV2."""
    return ECA(channels, kernel_size=1 if channels < 96 else 3, **options)
