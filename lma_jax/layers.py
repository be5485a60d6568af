"""What the hosts share: convolution and batch normalisation with PyTorch's semantics, and their initialisation."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lma_jax.convolution import convolve

kaiming_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class Sequential(nnx.List):
    """A list of modules applied in order; its members are named 0, 1, 2, ... as in PyTorch."""

    def __call__(self, x: jax.Array) -> jax.Array:
        for module in self:
            x = module(x)
        return x


class ReLU6(nnx.Module):
    """min(max(x, 0), 6), with zero gradient at both corners as in PyTorch."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu6(x)


def conv(in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1, **dd: Any):
    """A square convolution without bias, padded by kernel_size // 2 on every side (SAME would shift at stride 2)."""
    pad = kernel_size // 2
    return nnx.Conv(
        in_channels,
        out_channels,
        (kernel_size, kernel_size),
        strides=stride,
        padding=((pad, pad), (pad, pad)),
        feature_group_count=groups,
        use_bias=False,
        kernel_init=kaiming_normal,
        conv_general_dilated=convolve,
        **dd,
    )


def uniform_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: tuple[int, int] = (1, 1),
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    dilation: int = 1,
    groups: int = 1,
    use_bias: bool = True,
    **dd: Any,
) -> nnx.Conv:
    """A convolution that starts as PyTorch's: kernel and bias U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    return nnx.Conv(
        in_channels,
        out_channels,
        kernel_size,
        strides=stride,
        padding=tuple((pad, pad) for pad in padding),
        kernel_dilation=dilation,
        feature_group_count=groups,
        use_bias=use_bias,
        kernel_init=uniform(math.prod(kernel_size) * in_channels // groups),
        bias_init=uniform(math.prod(kernel_size) * in_channels // groups),
        **dd,
    )


def uniform_linear(in_features: int, out_features: int, **dd: Any) -> nnx.Linear:
    """A linear layer that starts as PyTorch's: kernel and bias U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    return nnx.Linear(in_features, out_features, kernel_init=uniform(in_features), bias_init=uniform(in_features), **dd)


def uniform(fan_in: int) -> Any:
    """Initialiser U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, **_: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def init_weights(model: nnx.Module, rngs: nnx.Rngs) -> None:
    """Initialises a host as the paper does: convolutions Kaiming-normal (fan-out), linear N(0, 0.01), biases 0.

    What a module lists as `starts_at_zero` stays zero.
    All weights come from one draw: a draw a layer would take most of the time to compile.
    """
    modules = [module for _, module in nnx.iter_modules(model)]
    kept = [getattr(module, name) for module in modules for name in getattr(module, "starts_at_zero", ())]
    weights: list[tuple[nnx.Param, float]] = []
    for module in modules:
        if not isinstance(module, nnx.Conv | nnx.Linear) or any(module is other for other in kept):
            continue
        *window, _, out_channels = module.kernel.shape
        std = math.sqrt(2 / (math.prod(window) * out_channels)) if isinstance(module, nnx.Conv) else 0.01
        weights.append((module.kernel, std))
        if module.bias is not None:
            module.bias.set_value(jnp.zeros_like(module.bias[...]))
    ends = np.cumsum([kernel.size for kernel, _ in weights])
    noise = jnp.split(jax.random.normal(rngs.params(), (ends[-1],)), ends[:-1])
    for (kernel, std), values in zip(weights, noise):
        kernel.set_value((std * values).reshape(kernel.shape).astype(kernel.dtype))


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last, equal to torch.nn.BatchNorm2d.

    It differs from flax.nnx.BatchNorm where that differs from PyTorch: the running variance is the unbiased
    one, the variance is computed in two passes, and statistics stay in float32 (or wider) under bfloat16.

    Args:
        num_features: size of the last axis.
        momentum: weight of the old running statistics (PyTorch's is 1 - this).
        epsilon: added to the variance.
        axis_name: mesh axis over which the batch statistics are shared (synchronised batch normalisation);
            by default each device has its own.
        dtype: output dtype; by default that of the input. The arithmetic is in float32 or wider.
        param_dtype: dtype of scale and bias; the statistics are in float32 or wider.
        rngs: unused; every layer takes it.

    Raises:
        ValueError: training mode with a single value a channel, which has no variance.
    """

    def __init__(
        self,
        num_features: int,
        *,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        axis_name: str | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        self.momentum = momentum
        self.epsilon = epsilon
        self.axis_name = axis_name
        self.dtype = dtype
        self.use_running_average = False
        stats_dtype = jnp.promote_types(param_dtype, jnp.float32)
        self.scale = nnx.Param(jnp.ones(num_features, param_dtype))
        self.bias = nnx.Param(jnp.zeros(num_features, param_dtype))
        self.mean = nnx.BatchStat(jnp.zeros(num_features, stats_dtype))
        self.var = nnx.BatchStat(jnp.ones(num_features, stats_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., C) to the same shape; in training mode it also updates the running statistics."""
        dtype = self.dtype or x.dtype
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean, var = (self.mean[...], self.var[...]) if self.use_running_average else self._batch_statistics(x)
        y = (x - mean) * (jax.lax.rsqrt(var + self.epsilon) * self.scale[...]) + self.bias[...]
        return y.astype(dtype)

    def _batch_statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        def average(values: jax.Array) -> jax.Array:
            local = values.mean(range(values.ndim - 1))
            return local if self.axis_name is None else jax.lax.pmean(local, self.axis_name)

        devices = 1 if self.axis_name is None else jax.lax.axis_size(self.axis_name)
        count = math.prod(x.shape[:-1]) * devices
        if count < 2:
            raise ValueError(f"BatchNorm in training mode needs more than 1 value a channel, got shape {x.shape}")
        mean = average(x)
        var = average(jnp.square(x - mean))
        keep = self.momentum
        unbiased = var * (count / (count - 1))
        # set_value, since tracing `mean[...] = ` takes a time quadratic in the depth of the network.
        self.mean.set_value(keep * self.mean[...] + (1 - keep) * jax.lax.stop_gradient(mean))
        self.var.set_value(keep * self.var[...] + (1 - keep) * jax.lax.stop_gradient(unbiased))
        return mean, var
