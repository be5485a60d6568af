"""Convolutions, each in the form that XLA runs fastest."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def convolve(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Any, *, feature_group_count: int, **options: Any
) -> jax.Array:
    """jax.lax.conv_general_dilated of (N, H, W, C), in the form that XLA runs fastest.

    The kernel (k, k, C / groups, C') has an odd k, and a padding of half of its extent.

    On maps of one pixel, which the last stages have for small images, only the centre of the kernel contributes. XLA
    would multiply the padding too, at 9 times the cost for a 3x3 kernel. On CPUs, XLA's convolution takes twice as
    long as a matrix product for a 1x1 kernel, and over 10 times as long as a sum of shifted maps for a depthwise one.
    """
    if x.shape[1:3] == (1, 1):
        middle = kernel.shape[0] // 2
        kernel, padding = kernel[middle : middle + 1, middle : middle + 1], "VALID"

    is_dilated = options.get("rhs_dilation", (1, 1)) != (1, 1)

    def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
        groups = feature_group_count
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, feature_group_count=groups, **options)

    if kernel.shape[:2] == (1, 1) and feature_group_count == 1:
        on_cpu = partial(convolve_pointwise, strides=strides)
    elif 1 < feature_group_count == x.shape[-1] == kernel.shape[-1] and not is_dilated:
        on_cpu = partial(convolve_depthwise, strides=strides)
    else:
        return convolution(x, kernel)
    # Rematerialised, so that the backward pass saves only input and kernel, as that of a convolution does.
    return jax.lax.platform_dependent(x, kernel, cpu=jax.checkpoint(on_cpu), default=convolution)


def convolve_pointwise(x: jax.Array, kernel: jax.Array, *, strides: tuple[int, int]) -> jax.Array:
    """The convolution of (N, H, W, C) with (1, 1, C, C'), as a matrix product."""
    return x[:, :: strides[0], :: strides[1]] @ kernel[0, 0]


def convolve_depthwise(x: jax.Array, kernel: jax.Array, *, strides: tuple[int, int]) -> jax.Array:
    """The depthwise convolution of (N, H, W, C) with (k, k, 1, C), padded by k // 2, as a sum of k * k shifted maps."""
    size, channels = kernel.shape[0], x.shape[-1]
    pad = size // 2
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = (padded.shape[axis] - size + 1 for axis in (1, 2))
    total = jnp.zeros((), jnp.promote_types(x.dtype, jnp.float32))
    for i, j in np.ndindex(size, size):
        end = (x.shape[0], i + rows, j + columns, channels)
        total += kernel[i, j, 0] * jax.lax.slice(padded, (0, i, j, 0), end, (1, *strides, 1)).astype(total.dtype)
    return total.astype(x.dtype)
