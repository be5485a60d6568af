"""LMA: lightweight mixed-domain attention (Yu et al., Applied Intelligence 53(11), 2023).

A feature map is averaged along its width and along its height. Each of the two profiles is correlated along the
channels with a kernel of size K and passed through a sigmoid, and the two gates scale the map:

    y = x * gate_h * gate_w        2K parameters, K = 1, 3, 5 or 7
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lma_jax.layers import is_whole, whole_number


def kernel_size_for(channels: int) -> int:
    """K = eta(C): the odd number at or below `round(|log2(C) - 1| / 1.5)`, and at least 1."""
    size = round(abs(math.log2(channels) - 1.0) / 1.5)
    return max(1, size if size % 2 else size - 1)


def odd(kernel_size: Any) -> int:
    """`kernel_size` as an int; a ValueError if it is not whole, odd and positive."""
    if not is_whole(kernel_size) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"LMA needs an odd, positive kernel_size, got {kernel_size!r}")
    return int(kernel_size)


def correlate_channels(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Correlates `x` (..., C) with `kernel` (K,) along the channels, zero padded to the same shape.

    It is a sum of K shifted slices: XLA fuses it into one loop, which is faster than any one-channel convolution.
    """
    half, channels = kernel.size // 2, x.shape[-1]
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(half, half)])
    shifted = [padded[..., k : k + channels] for k in range(kernel.size)]
    return jnp.asarray(sum(kernel[k] * shifted[k] for k in range(kernel.size)))


@jax.custom_jvp
def gate(x: jax.Array, logits_h: jax.Array, logits_w: jax.Array) -> jax.Array:
    """x * sigmoid(logits_h) * sigmoid(logits_w), for maps (..., H, W, C) and logits (..., H, 1, C) and (..., 1, W, C).

    The gates are multiplied first: theirs is the only product that broadcasts. The custom derivative uses
    (log sigmoid)' = 1 - sigmoid, so that the backward pass reduces a single map along both axes. By the product rule,
    XLA would write a broadcast map of each gate.
    """
    return jax.nn.sigmoid(logits_h) * jax.nn.sigmoid(logits_w) * x


@gate.defjvp
def _gate_jvp(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    (x, *logits), (dx, *dlogits) = primals, tangents
    gate_h, gate_w = map(jax.nn.sigmoid, logits)
    y = gate_h * gate_w * x
    return y, gate_h * gate_w * dx + y * ((1 - gate_h) * dlogits[0] + (1 - gate_w) * dlogits[1])


class LMA(nnx.Module):
    """Lightweight mixed-domain attention for feature maps of shape (..., H, W, C).

    The kernels are drawn from U(-1/sqrt(K), 1/sqrt(K)), as PyTorch's convolutions are. A backbone initialises them
    anew with its own convolutions: Kaiming normal with fan-out, which has a standard deviation of sqrt(2/K).

    Args:
        channels: C, the size of the last axis.
        kernel_size: K, odd, the size of both kernels along the channels; `kernel_size_for(channels)` by default.
        dtype: computation and output dtype; by default that of the input.
        param_dtype: dtype of the 2K parameters.
        rngs: the stream `params` draws the kernels.

    Raises:
        ValueError: `channels` is no whole number from 1, `kernel_size` is not odd and positive, or the input at call
            time is not a floating-point (..., H, W, channels).

    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> LMA(64, rngs=nnx.Rngs(0))(jnp.ones((8, 56, 56, 64))).shape
    (8, 56, 56, 64)
    """

    # It looks at its input through these means only: see profiles.py.
    profiles = ("W", "H")

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.channels = whole_number(channels, name="channels", least=1)
        self.kernel_size = kernel_size_for(self.channels) if kernel_size is None else odd(kernel_size)
        self.dtype = dtype
        # Convolutions hold the kernels under their usual names; they are applied as shifted slices.
        uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        options: dict[str, Any] = dict(use_bias=False, kernel_init=uniform, param_dtype=param_dtype, rngs=rngs)
        self.conv_h = nnx.Conv(1, 1, (1, self.kernel_size), **options)
        self.conv_w = nnx.Conv(1, 1, (1, self.kernel_size), **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., H, W, C) to the same shape."""
        logits_h, logits_w = self._logits(*self._profiles(x))
        return gate(x.astype(logits_h.dtype), logits_h, logits_w)

    def gates(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The gates (..., H, 1, C) and (..., 1, W, C) that scale `x`, each value between 0 and 1."""
        return self.gates_of(*self._profiles(x))

    def gates_of(self, profile_h: jax.Array, profile_w: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The same, from the means of the map along its width (..., H, 1, C) and along its height (..., 1, W, C)."""
        logits_h, logits_w = self._logits(profile_h, profile_w)
        return jax.nn.sigmoid(logits_h), jax.nn.sigmoid(logits_w)

    def _profiles(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        self._require(x)
        x = x if self.dtype is None else x.astype(self.dtype)
        return x.mean(-2, keepdims=True), x.mean(-3, keepdims=True)

    def _logits(self, profile_h: jax.Array, profile_w: jax.Array) -> tuple[jax.Array, jax.Array]:
        kernel_h = self.conv_h.kernel[...].reshape(-1).astype(profile_h.dtype)
        kernel_w = self.conv_w.kernel[...].reshape(-1).astype(profile_w.dtype)
        return correlate_channels(profile_h, kernel_h), correlate_channels(profile_w, kernel_w)

    def _require(self, x: jax.Array) -> None:
        if x.ndim < 3 or x.shape[-1] != self.channels or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"LMA({self.channels}) takes floating-point inputs of shape (..., H, W, {self.channels}), "
                f"channels last, got {x.dtype} of shape {x.shape}"
            )
