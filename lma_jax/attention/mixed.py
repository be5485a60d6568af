"""Channel and spatial attention together. (N, H, W, C) -> same."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lma_jax.attention.channel import profile_conv, squeezed, std
from lma_jax.layers import SPATIAL_AXES, BatchNorm, conv2d, linear
from lma_jax.lma import kernel_size_for
from lma_jax.profiles import ProfileAttention

__all__ = ["BAM", "CA", "CBAM", "MCA", "SA", "SGE", "TA", "SimAM"]


def groups_for(channels: int, *, largest: int = 64, parts: int = 1) -> int:
    """The largest number of groups, up to `largest`, that divides the channels into equal groups of equal `parts`.

    Raises:
        ValueError: not even one group can be divided into `parts`.
    """
    if channels % parts:
        raise ValueError(f"{channels} channels cannot be divided into {parts} parts")
    return next(groups for groups in range(largest, 0, -1) if channels % (groups * parts) == 0)


class CBAM(nnx.Module):
    """Convolutional block attention (Woo et al., ECCV 2018): first over channels, then over pixels.

    x' = x * s(f(mean_HW(x)) + f(max_HW(x))), y = x' * s(BN(conv7x7([max_C(x'), mean_C(x')])))
    """

    def __init__(self, channels: int, **options: Any):
        self.fc1 = linear(channels, squeezed(channels), **options)
        self.fc2 = linear(squeezed(channels), channels, **options)
        self.conv = conv2d(2, 1, 7, padding=3, bias=False, **options)
        self.bn = BatchNorm(1, momentum=0.99, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        mean, largest = self.bottleneck(x.mean(SPATIAL_AXES)), self.bottleneck(x.max(SPATIAL_AXES))
        x = x * nnx.sigmoid(mean + largest)[:, None, None]
        return x * nnx.sigmoid(self.bn(self.conv(pooled(x, 3))))

    def bottleneck(self, profile: jax.Array) -> jax.Array:
        """(N, C) -> (N, C)."""
        return self.fc2(nnx.relu(self.fc1(profile)))


def pooled(x: jax.Array, axis: int) -> jax.Array:
    """Maximum and mean over one axis of (N, H, W, C), as the two channels of an image of the other two."""
    return jnp.stack([x.max(axis), x.mean(axis)], -1)


class BAM(nnx.Module):
    """Bottleneck attention (Park et al., BMVC 2018): y = x * (1 + s(c * p)), c of the channels, p of the pixels.

    The published code multiplies c and p where the paper adds them; so does this.
    """

    def __init__(self, channels: int, **options: Any):
        width = squeezed(channels)
        self.fc1 = linear(channels, width, **options)
        self.bn = BatchNorm(width, **options)
        self.fc2 = linear(width, channels, **options)
        self.conv1 = conv2d(channels, width, 1, **options)
        self.bn1 = BatchNorm(width, **options)
        self.conv2 = conv2d(width, width, 3, padding=4, dilation=4, **options)
        self.bn2 = BatchNorm(width, **options)
        self.conv3 = conv2d(width, width, 3, padding=4, dilation=4, **options)
        self.bn3 = BatchNorm(width, **options)
        self.conv4 = conv2d(width, 1, 1, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        channels = self.fc2(nnx.relu(self.bn(self.fc1(x.mean(SPATIAL_AXES)))))[:, None, None]
        pixels = nnx.relu(self.bn1(self.conv1(x)))
        pixels = nnx.relu(self.bn2(self.conv2(pixels)))
        pixels = self.conv4(nnx.relu(self.bn3(self.conv3(pixels))))
        return x * (1 + nnx.sigmoid(channels * pixels))


class TA(nnx.Module):
    """Triplet attention (Misra et al., WACV 2021): the mean of three gated maps, each gate seen along one axis.

    A gate is s(BN(conv KxK([max, mean]))) of the image that is left when H, W or C is pooled.

    Args:
        channels: C.
        kernel_size: K, odd.
    """

    def __init__(self, channels: int, *, kernel_size: int = 7, **options: Any):
        def conv() -> nnx.Conv:
            return conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False, **options)

        self.conv_h, self.bn_h = conv(), BatchNorm(1, momentum=0.99, **options)
        self.conv_w, self.bn_w = conv(), BatchNorm(1, momentum=0.99, **options)
        self.conv_c, self.bn_c = conv(), BatchNorm(1, momentum=0.99, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate_h = nnx.sigmoid(self.bn_h(self.conv_h(pooled(x, 1).swapaxes(1, 2)))).transpose(0, 3, 2, 1)  # image (C, W)
        gate_w = nnx.sigmoid(self.bn_w(self.conv_w(pooled(x, 2)))).transpose(0, 1, 3, 2)  # image (H, C)
        gate_c = nnx.sigmoid(self.bn_c(self.conv_c(pooled(x, 3))))  # image (H, W)
        return x * ((gate_h + gate_w + gate_c) / 3)


class SA(nnx.Module):
    """Shuffle attention (Zhang, Yang, ICASSP 2021): in each of G groups, half of the channels is gated by its mean and
    half by its normalised map; then the channels are shuffled.

    G is 64, or in narrow layers the largest number that divides the channels; w = 0 and b = 1 at first.
    """

    same_in_torch = ("weight_c", "bias_c", "weight_s", "bias_s")

    def __init__(self, channels: int, *, param_dtype: Any = jnp.float32, **options: Any):
        self.groups = groups_for(channels, parts=2)
        half = channels // (2 * self.groups)
        self.weight_c = nnx.Param(jnp.zeros(half, param_dtype))
        self.bias_c = nnx.Param(jnp.ones(half, param_dtype))
        self.weight_s = nnx.Param(jnp.zeros(half, param_dtype))
        self.bias_s = nnx.Param(jnp.ones(half, param_dtype))
        options |= dict(epsilon=1e-5, use_fast_variance=False, reduction_axes=(*SPATIAL_AXES, -1))
        self.norm = nnx.GroupNorm(half, num_groups=half, param_dtype=param_dtype, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        n, height, width, channels = x.shape
        a, b = jnp.split(x.reshape(n, height, width, self.groups, -1), 2, -1)
        a = a * nnx.sigmoid(affine(a.mean(SPATIAL_AXES, keepdims=True), self.weight_c, self.bias_c))
        b = b * nnx.sigmoid(affine(self.norm(b), self.weight_s, self.bias_s))
        y = jnp.concatenate([a, b], -1).reshape(n, height, width, 2, channels // 2)
        return y.mT.reshape(x.shape)


def affine(x: jax.Array, weight: nnx.Param, bias: nnx.Param) -> jax.Array:
    """Scales and shifts the channels, which lie last."""
    return x * weight[...].astype(x.dtype) + bias[...].astype(x.dtype)


class CA(ProfileAttention):
    """Coordinate attention (Hou, Zhou, Feng, CVPR 2021): y = x * g_w * g_h, both gates of one bottleneck over the
    profiles of the rows and of the columns.
    """

    profiles = ("W", "H")

    def __init__(self, channels: int, **options: Any):
        width = max(8, channels // 32)
        self.conv1 = conv2d(channels, width, 1, **options)
        self.bn1 = BatchNorm(width, **options)
        self.conv_h = conv2d(width, channels, 1, **options)
        self.conv_w = conv2d(width, channels, 1, **options)

    def gates_of(self, profile_h: jax.Array, profile_w: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The gates (N, H, 1, C) and (N, 1, W, C) from the means of the map along its width and along its height."""
        profiles = jnp.concatenate([profile_h, profile_w.swapaxes(1, 2)], 1)
        rows, columns = jnp.split(nnx.hard_swish(self.bn1(self.conv1(profiles))), [profile_h.shape[1]], 1)
        return nnx.sigmoid(self.conv_h(rows)), nnx.sigmoid(self.conv_w(columns)).swapaxes(1, 2)


class SGE(nnx.Module):
    """Spatial group-wise enhance (Li, Hu, Yang, 2019): in each of G groups, the pixels are gated by their likeness to
    the group's mean, normalised over the map.

    G is 64, or in narrow layers the largest number that divides the channels; w = 0 and b = 1 at first.
    """

    same_in_torch = ("weight", "bias")

    def __init__(self, channels: int, *, param_dtype: Any = jnp.float32, **options: Any):
        self.groups = groups_for(channels)
        self.weight = nnx.Param(jnp.zeros(self.groups, param_dtype))
        self.bias = nnx.Param(jnp.ones(self.groups, param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        grouped = x.reshape(*x.shape[:-1], self.groups, -1)
        likeness = (grouped * grouped.mean(SPATIAL_AXES, keepdims=True)).sum(-1)
        centred = likeness - likeness.mean(SPATIAL_AXES, keepdims=True)
        normalised = centred / (std(likeness, SPATIAL_AXES) + 1e-5)
        return (grouped * nnx.sigmoid(affine(normalised, self.weight, self.bias))[..., None]).reshape(x.shape)


class MCA(nnx.Module):
    """Multidimensional collaborative attention (Yu et al., 2023): the mean of three gated maps, one for each of the
    axes C, H and W, whose profiles weigh mean and standard deviation over the other two.
    """

    same_in_torch = ("weight_c", "weight_h", "weight_w")

    def __init__(self, channels: int, *, param_dtype: Any = jnp.float32, rngs: nnx.Rngs, **options: Any):
        options |= dict(param_dtype=param_dtype, rngs=rngs)
        weight_c, weight_h, weight_w = jax.random.uniform(rngs.params(), (3, 2), param_dtype)
        self.weight_c, self.conv_c = nnx.Param(weight_c), profile_conv(kernel_size_for(channels), **options)
        self.weight_h, self.conv_h = nnx.Param(weight_h), profile_conv(3, **options)
        self.weight_w, self.conv_w = nnx.Param(weight_w), profile_conv(3, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate_c = self.gate(x, (1, 2), self.weight_c, self.conv_c)
        gate_h = self.gate(x, (2, 3), self.weight_h, self.conv_h)
        gate_w = self.gate(x, (1, 3), self.weight_w, self.conv_w)
        return x * ((gate_c + gate_h + gate_w) / 3)

    def gate(self, x: jax.Array, axes: tuple[int, int], weight: nnx.Param, conv: nnx.Conv) -> jax.Array:
        """The gate along the axis that is not among `axes`, which have size 1 in it."""
        scale_mean, scale_std = 0.5 + nnx.sigmoid(weight[...].astype(x.dtype))
        profile = scale_mean * x.mean(axes, keepdims=True) + scale_std * std(x, axes)
        return nnx.sigmoid(conv(profile.reshape(len(x), 1, -1, 1))).reshape(profile.shape)


class SimAM(nnx.Module):
    """SimAM (Yang et al., ICML 2021): y = x * s(d / (4 (v + 1e-4)) + 1/2), d = (x - mean)^2, v its sum / (HW - 1).

    No parameters; `channels` is not used.
    """

    def __init__(self, channels: int, **options: Any):
        pass

    def __call__(self, x: jax.Array) -> jax.Array:
        distance = jnp.square(x - x.mean(SPATIAL_AXES, keepdims=True))
        variance = distance.sum(SPATIAL_AXES, keepdims=True) / max(1, x.shape[1] * x.shape[2] - 1)
        return x * nnx.sigmoid(distance / (4 * (variance + 1e-4)) + 0.5)


def mobile_ta(channels: int, **options: Any) -> TA:
    """Triplet attention as its authors use it in MobileNetV2."""
    return TA(channels, kernel_size=3, **options)
