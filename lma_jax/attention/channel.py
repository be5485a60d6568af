"""Channel attention: one weight a channel, from statistics of its whole map. (N, H, W, C) -> same."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lma_jax.attention.placement import RESNETS_ONLY, Placement, Placements
from lma_jax.layers import BatchNorm, uniform_conv, uniform_linear

__all__ = ["ECA", "GC", "SE", "SRM", "GSoP"]

POSITIONS = (1, 2)


def squeezed(channels: int, reduction: int = 16) -> int:
    """The width of a bottleneck, at least 1."""
    return max(1, channels // reduction)


def variance(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The unbiased variance over `axes`, which are kept; 0 for a single value."""
    count = math.prod(x.shape[axis] for axis in axes)
    return x.var(axes, ddof=min(1, count - 1), keepdims=True)


def std(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The unbiased standard deviation over `axes`, which are kept; 0, with gradient 0, where all values are equal."""
    squared = variance(x, axes)
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)


def profile_conv(taps: int, **dd: Any) -> nnx.Conv:
    """A correlation with an odd number of taps along profiles (N, 1, length, 1)."""
    return uniform_conv(1, 1, (1, taps), padding=(0, taps // 2), use_bias=False, **dd)


class SE(nnx.Module):
    """Squeeze-and-excitation (Hu, Shen, Sun, CVPR 2018): y = x * s(W2 relu(W1 mean(x) + b1) + b2)."""

    def __init__(self, channels: int, **dd: Any):
        self.fc1 = uniform_linear(channels, squeezed(channels), **dd)
        self.fc2 = uniform_linear(squeezed(channels), channels, **dd)

    def __call__(self, x: jax.Array) -> jax.Array:
        weights = nnx.sigmoid(self.fc2(nnx.relu(self.fc1(x.mean(POSITIONS)))))
        return x * weights[:, None, None]


class ECA(nnx.Module):
    """Efficient channel attention (Wang et al., CVPR 2020): y = x * s(K-tap correlation of mean(x) along channels).

    Args:
        channels: C.
        kernel_size: K, odd; by default the odd number at or above (log2(C) + 1) / 2, truncated.
    """

    def __init__(self, channels: int, *, kernel_size: int | None = None, **dd: Any):
        taps = int((math.log2(channels) + 1) / 2) // 2 * 2 + 1 if kernel_size is None else kernel_size
        self.conv = profile_conv(taps, **dd)

    def __call__(self, x: jax.Array) -> jax.Array:
        weights = nnx.sigmoid(self.conv(x.mean(POSITIONS)[:, None, :, None]))
        return x * weights.reshape(len(x), 1, 1, -1)


class SRM(nnx.Module):
    """Style-based recalibration (Lee, Kim, Nam, ICCV 2019): y = x * s(BN(w1 mean(x) + w2 std(x))), w = 0 at first."""

    same_in_torch = ("weight",)

    def __init__(self, channels: int, *, param_dtype: Any = jnp.float32, **dd: Any):
        self.weight = nnx.Param(jnp.zeros((channels, 2), param_dtype))
        self.bn = BatchNorm(channels, param_dtype=param_dtype, **dd)

    def __call__(self, x: jax.Array) -> jax.Array:
        deviation = jnp.sqrt(variance(x, POSITIONS) + 1e-5)
        style = jnp.stack([x.mean(POSITIONS), deviation.reshape(len(x), -1)], 2)
        weights = nnx.sigmoid(self.bn((style * self.weight[...].astype(x.dtype)).sum(2)))
        return x * weights[:, None, None]


class GC(nnx.Module):
    """Global context (Cao et al., ICCV workshops 2019): y = x + W2 relu(LN(W1 sum(a x) + b1)) + b2, W2 = 0 at first.

    The positions are weighed by a = softmax(w x + b), the channels are transformed in a bottleneck.
    """

    starts_at_zero = ("fc2",)

    def __init__(self, channels: int, **dd: Any):
        self.mask = uniform_conv(channels, 1, **dd)
        self.fc1 = uniform_linear(channels, squeezed(channels), **dd)
        self.norm = nnx.LayerNorm(squeezed(channels), epsilon=1e-5, use_fast_variance=False, **dd)
        zeros = nnx.initializers.zeros
        self.fc2 = nnx.Linear(squeezed(channels), channels, kernel_init=zeros, bias_init=zeros, **dd)

    def __call__(self, x: jax.Array) -> jax.Array:
        n, height, width, channels = x.shape
        attention = nnx.softmax(self.mask(x).reshape(n, 1, height * width))
        context = (attention @ x.reshape(n, height * width, channels)).reshape(n, channels)
        return x + self.fc2(nnx.relu(self.norm(self.fc1(context))))[:, None, None]


class GSoP(nnx.Module):
    """Global second-order pooling (Gao et al., CVPR 2019): a weight a channel from the covariance of the channels.

    relu(x) is reduced to D = 128 channels (with stride 2 on the widest maps, those of 256 channels), and each row of
    their covariance over the positions is weighed by a convolution of its own.
    """

    def __init__(self, channels: int, **dd: Any):
        width = 128
        self.reduce = uniform_conv(channels, width, stride=2 if channels == 256 else 1, **dd)
        self.bn = BatchNorm(width, **dd)
        self.row_bn = BatchNorm(width, **dd)
        self.row_conv = uniform_conv(width, 4 * width, (width, 1), groups=width, **dd)
        self.expand = uniform_conv(4 * width, channels, **dd)

    def __call__(self, x: jax.Array) -> jax.Array:
        reduced = nnx.relu(self.bn(self.reduce(nnx.relu(x))))
        reduced = reduced.reshape(len(x), -1, reduced.shape[-1])
        centred = reduced - reduced.mean(1, keepdims=True)
        covariance = centred.mT @ centred / centred.shape[1]  # symmetric: its rows may lie last
        weights = nnx.sigmoid(self.expand(self.row_conv(self.row_bn(covariance[:, :, None]))))
        return x * weights


def mobile_eca(channels: int, **dd: Any) -> ECA:
    """ECA as its authors have it in MobileNetV2."""
    return ECA(channels, kernel_size=1 if channels < 96 else 3, **dd)


PLACEMENTS: dict[str, Placements] = {
    "se": {"resnet": Placement(SE, "branch"), "mobilenetv2": Placement(SE, "block")},
    "eca": {"resnet": Placement(ECA, "branch"), "mobilenetv2": Placement(mobile_eca, "block")},
    "srm": {"resnet": Placement(SRM, "branch"), "mobilenetv2": Placement(SRM, "block")},
    "gc": {"resnet": Placement(GC, "branch"), "mobilenetv2": RESNETS_ONLY},
    "gsop": {
        "resnet": Placement(GSoP, "branch", every_block=False, last_stride=1),
        "mobilenetv2": "it sits in the last block of a ResNet's stages",
    },
}
