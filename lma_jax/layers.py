"""What the backbones share: their two parts, convolution and initialisation; and layers as PyTorch has them."""

import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lma_jax.convolution import convolve

# Height and width of a map (N, H, W, C).
SPATIAL_AXES = (1, 2)


class FeatureInfo(list[dict[str, Any]]):
    """Feature maps as timm describes them: {"num_chs": channels, "reduction": stride, "module": their last layer}."""

    def channels(self) -> list[int]:
        """The channels of each map."""
        return [info["num_chs"] for info in self]

    def reduction(self) -> list[int]:
        """The stride of each map: the image's size over its own."""
        return [info["reduction"] for info in self]

    def module_name(self) -> list[str]:
        """The path of each map's last layer."""
        return [info["module"] for info in self]


class Network(nnx.Module):
    """An image classifier in two parts: `forward_head` after `forward_features`.

    Attributes:
        name, options: the name and the further options by which `create_model` built it; empty if its class did.
        num_classes: size of the output; 0 without a classifier, which gives the pooled features.
        num_features: channels of the last feature map.
        position: that of the attention module in its blocks, see `Placement`; empty in a plain network.
        maps: channels, stride and last layer of the maps C1 to C5.
        out_indices: which of them a call returns instead of logits; None for logits.
        dtype: computation dtype, or None for that of the input and the parameters.
    """

    name: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    num_classes: int
    num_features: int
    position: str
    maps: tuple[tuple[int, int, str], ...]
    out_indices: tuple[int, ...] | None = None
    dtype: Any

    @property
    def feature_info(self) -> FeatureInfo:
        """The feature maps that `forward_intermediates`, or else a call, returns."""
        taken = taken_indices(self.out_indices)
        return FeatureInfo(dict(zip(("num_chs", "reduction", "module"), self.maps[index])) for index in taken)

    def stages(self) -> Sequence[Callable[[jax.Array], jax.Array]]:
        """The functions that compute C1 to C5, and what follows them; each takes the map of the one before."""
        raise NotImplementedError

    def forward_features(self, x: jax.Array) -> jax.Array:
        """Images (N, H, W, in_chans) -> the last feature map (N, h, w, C)."""
        for stage in self.stages():
            x = stage(x)
        return x

    def forward_head(self, x: jax.Array) -> jax.Array:
        """The last feature map (N, h, w, C) -> logits (N, num_classes), or its means (N, C) if there are no classes."""
        raise NotImplementedError

    def forward_intermediates(
        self,
        x: jax.Array,
        indices: int | Sequence[int] | None = None,
        *,
        stop_early: bool = False,
        intermediates_only: bool = False,
    ) -> Any:
        """The last feature map, and the list of the maps C1 to C5, as timm's method of this name.

        Args:
            x: Images (N, H, W, in_chans).
            indices: which maps, from 0 or, below it, from the last; a number for so many of the last; all by default.
            stop_early: compute no more than these maps need; the last of them then stands for the last feature map.
            intermediates_only: return the list alone.

        Raises:
            ValueError: there is no such map.
        """
        taken = taken_indices(indices)
        stages = self.stages()[: taken[-1] + 1] if stop_early or intermediates_only else self.stages()
        maps = []
        for index, stage in enumerate(stages):
            x = stage(x)
            if index in taken:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def __call__(self, x: jax.Array) -> Any:
        """Images (N, H, W, in_chans) -> logits (N, num_classes), or the list of feature maps."""
        if self.out_indices is not None:
            return self.forward_intermediates(x, self.out_indices, intermediates_only=True)
        return self.forward_head(self.forward_features(x))

    def select_features(self, out_indices: int | Sequence[int] | None) -> None:
        """Makes a call return feature maps, chosen as in `forward_intermediates`; layers behind them are removed."""
        self.out_indices = taken_indices(out_indices)
        self.remove_after(self.out_indices[-1])
        self.reset_classifier(0)

    def remove_after(self, index: int) -> None:
        """Removes the layers behind the map C<index + 1>."""
        raise NotImplementedError

    def get_classifier(self) -> nnx.Module:
        """The layer that computes the logits from the pooled features."""
        raise NotImplementedError

    def set_classifier(self, layer: nnx.Module) -> None:
        """Replaces it."""
        raise NotImplementedError

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs | None = None) -> None:
        """Gives the network a classifier with weights as at first, which needs `rngs`, or none for 0 classes."""
        self.num_classes = num_classes
        kernel = next(module.kernel for _, module in nnx.iter_modules(self) if isinstance(module, nnx.Conv))
        options: dict[str, Any] = dict(dtype=self.dtype, param_dtype=kernel.dtype, rngs=rngs)
        self.set_classifier(head(self.num_features, num_classes, **options))


# The standard deviation of a classifier's first weights.
HEAD_STD = 0.01


def taken_indices(indices: int | Sequence[int] | None) -> tuple[int, ...]:
    """The sorted indices, 0 to 4, of the maps that `indices` names; see `Network.forward_intermediates`.

    Raises:
        ValueError: there is no such map.
    """
    chosen = range(-5 if indices is None else -indices, 0) if indices is None or isinstance(indices, int) else indices
    if not chosen or min(chosen) < -5 or max(chosen) > 4:
        raise ValueError(f"the feature maps C1 to C5 have the indices 0 to 4, or -5 to -1: {indices!r} names no map")
    return tuple(sorted({index % 5 for index in chosen}))


def dilated(strides: Sequence[int], *, start: int, output_stride: int) -> list[tuple[int, tuple[int, int]]]:
    """The strides of stages, with dilations in place of those that would exceed `output_stride`.

    Args:
        strides: stride of each stage, which its first block has.
        start: stride of the map before them.
        output_stride: 8, 16 or 32.

    Returns:
        For each stage its stride, and the dilations of the convolution that has it and of the later ones.

    Raises:
        ValueError: `output_stride` is another number.
    """
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride must be 8, 16 or 32, not {output_stride!r}")
    stages, reached, dilation = [], start, 1
    for stride in strides:
        before = dilation
        if reached * stride > output_stride:
            stride, dilation = 1, dilation * stride
        reached *= stride
        stages.append((stride, (before, dilation)))
    return stages


def drop_path_rates(last: float, blocks: int) -> list[float]:
    """The rates of stochastic depth, from 0 at the first block to `last` at the last one.

    Raises:
        ValueError: `last` is not from 0 to below 1.
    """
    last = fraction(last, name="drop_path")
    return [last * index / max(blocks - 1, 1) for index in range(blocks)]


def conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    **options: Any,
) -> nnx.Conv:
    """A square convolution without bias, padded on every side by half of its extent (SAME would shift at stride 2)."""
    return conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=dilation * (kernel_size // 2),
        dilation=dilation,
        groups=groups,
        bias=False,
        conv_general_dilated=convolve,
        **options,
    )


def head(features: int, num_classes: int, **options: Any) -> Any:
    """The linear layer to `num_classes` logits; with 0 classes none: the features are the output, as in timm.

    Raises:
        ValueError: `num_classes` is no whole number from 0.
    """
    if whole_number(num_classes, name="num_classes", least=0) == 0:
        return Identity()
    initial = unless_undrawn(nnx.initializers.normal(HEAD_STD))
    return nnx.Linear(features, num_classes, kernel_init=initial, **options)


def init_weights(model: nnx.Module, rngs: nnx.Rngs) -> None:
    """Initialises a backbone as the paper does, its attention modules included.

    Convolutions are Kaiming-normal (fan-out), linear layers normal with standard deviation 0.01, biases 0. What a
    module lists as `starts_at_zero` stays zero.

    All weights are slices of one draw: compiling a draw for each layer would take most of the start-up time.
    """
    modules = [module for _, module in nnx.iter_modules(model)]
    kept = [getattr(module, name) for module in modules for name in getattr(module, "starts_at_zero", ())]
    weights: list[tuple[nnx.Param, float]] = []
    for module in modules:
        if not isinstance(module, nnx.Conv | nnx.Linear) or any(module is other for other in kept):
            continue
        *window, _, out_channels = module.kernel.shape
        std = math.sqrt(2 / (math.prod(window) * out_channels)) if isinstance(module, nnx.Conv) else HEAD_STD
        weights.append((module.kernel, std))
        if module.bias is not None:
            module.bias.set_value(jnp.zeros_like(module.bias[...]))
    ends = np.cumsum([kernel.size for kernel, _ in weights])
    noise = jnp.split(jax.random.normal(rngs.params(), (ends[-1],)), ends[:-1])
    for (kernel, std), values in zip(weights, noise):
        kernel.set_value((std * values).reshape(kernel.shape).astype(kernel.dtype))


def whole_number(value: Any, *, name: str, least: int) -> int:
    """`value` as an int; a ValueError if it is not whole or below `least`."""
    if not is_whole(value) or value < least:
        raise ValueError(f"a whole number of at least {least} is needed, got {name}={value!r}")
    return int(value)


def fraction(value: Any, *, name: str) -> float:
    """`value` as a float; a ValueError if it is no number from 0 to below 1."""
    if not is_real(value) or not 0 <= value < 1:
        raise ValueError(f"{name} must be from 0 to below 1, not {value!r}")
    return float(value)


def is_real(value: Any) -> bool:
    """Whether a value is a number, of Python or of NumPy; True is none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Whether a value is an integer, of Python or of NumPy; True and 64.0 are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


# Layers with the semantics and the initial distributions of PyTorch's.


def conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    *,
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = True,
    **options: Any,
) -> nnx.Conv:
    """torch.nn.Conv2d: kernel and bias start from U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    kernel_size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    padding = (padding, padding) if isinstance(padding, int) else padding
    initial = uniform(math.prod(kernel_size) * in_channels // groups)
    return nnx.Conv(
        in_channels,
        out_channels,
        kernel_size,
        strides=stride,
        padding=tuple((pad, pad) for pad in padding),
        kernel_dilation=dilation,
        feature_group_count=groups,
        use_bias=bias,
        kernel_init=initial,
        bias_init=initial,
        **options,
    )


def linear(in_features: int, out_features: int, **options: Any) -> nnx.Linear:
    """torch.nn.Linear: kernel and bias start from U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    initial = uniform(in_features)
    return nnx.Linear(in_features, out_features, kernel_init=initial, bias_init=initial, **options)


def uniform(fan_in: int) -> Any:
    """Initialiser U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)
    return unless_undrawn(lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound))


def unless_undrawn(initial: Callable[..., jax.Array]) -> Any:
    """An initialiser that gives zeros in the context `undrawn`."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, **_: Any) -> jax.Array:
        return initial(key, shape, dtype) if _draws.get() else jnp.zeros(shape, dtype)

    return init


_draws = ContextVar("_draws", default=True)


@contextmanager
def undrawn() -> Iterator[None]:
    """Convolutions and linear layers built in this context start from zeros, for `init_weights` to fill."""
    token = _draws.set(False)
    try:
        yield
    finally:
        _draws.reset(token)


class Sequential(nnx.List):
    """A list of modules applied in order; its members are named 0, 1, 2, ... as in PyTorch."""

    def __call__(self, x: jax.Array) -> jax.Array:
        for module in self:
            x = module(x)
        return x


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0), with gradient 0 at 0, from the output: where that is kept anyway, `x` need not be."""
    return jnp.maximum(x, 0)


@relu.defjvp
def _relu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    y = jax.lax.optimization_barrier(relu(*primals))  # or the compiler would take the sign of x
    return y, jnp.where(y > 0, tangents[0], 0)


class ReLU6(nnx.Module):
    """min(max(x, 0), 6), with zero gradient at both corners as in PyTorch."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu6(x)


def stochastic_depth(rate: float, *, rngs: nnx.Rngs, **_: Any) -> nnx.Dropout | None:
    """Stochastic depth (Huang et al., ECCV 2016): sets maps of whole images to zero in training; None at rate 0."""
    return nnx.Dropout(rate, broadcast_dims=(1, 2, 3), rngs=rngs) if rate else None


class Affine(NamedTuple):
    """y = (x - centre) * scale + shift for maps (..., C), with values (C,) of which `centre` is a constant."""

    centre: jax.Array | float = 0.0
    scale: jax.Array | float = 1.0
    shift: jax.Array | float = 0.0

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., C) to the same shape, in float32 or wider."""
        return (widened(x) - self.centre) * self.scale + self.shift


def widened(x: jax.Array) -> jax.Array:
    """x in float32 or wider, as statistics, losses and metrics are computed."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class Identity(nnx.Module):
    """Returns its input: it stands where a BatchNorm was folded into a convolution."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x

    def affine(self, x: jax.Array) -> Affine:
        """As BatchNorm's."""
        return Affine()


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last, equal to torch.nn.BatchNorm2d.

    Unlike flax.nnx.BatchNorm, it keeps the unbiased variance as running statistic and keeps statistics in float32 (or
    wider) under bfloat16, as PyTorch does.

    Training reads its input once for both moments. They are taken about c, the mean of a sample of pixels, one of 16:

        mean = c + E[x - c]        var = E[(x - c)^2] - E[x - c]^2

    Neither depends on c, which is a constant for derivatives. A sample of a share p of all values lies at most
    1 / sqrt(p) = 4 standard deviations beside their mean, so that the subtraction costs little more than one digit,
    however far from zero the values are. (That is why c is not the running mean, which at first is 0.) On TPUs, where a
    convolution can add up its output while it computes it, c is the mean of all.

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
        ValueError: in training mode, each channel has a single value and so no variance.
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
        wide = widened(x)  # once, so that the gradient is rounded once
        return self.affine(wide)(wide).astype(self.dtype or x.dtype)

    def affine(self, x: jax.Array) -> Affine:
        """What it applies to the map x (..., C); in training mode it also updates the running statistics."""
        if self.use_running_average:
            return Affine(self.mean[...], jax.lax.rsqrt(self.var[...] + self.epsilon) * self.scale[...], self.bias[...])
        centre, offset, var = self._batch_statistics(widened(x))
        scale = jax.lax.rsqrt(var + self.epsilon) * self.scale[...]
        return Affine(centre, scale, self.bias[...] - offset * scale)

    def _batch_statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """A constant, what the mean is beside it, and the variance."""
        devices = 1 if self.axis_name is None else jax.lax.axis_size(self.axis_name)
        count = math.prod(x.shape[:-1]) * devices
        if count < 2:
            raise ValueError(f"BatchNorm in training mode needs more than 1 value per channel, got shape {x.shape}")
        axes = range(x.ndim - 1)
        sample = (slice(None), *[slice(None, None, 4)] * (x.ndim - 2))
        centre = jax.lax.platform_dependent(
            jax.lax.stop_gradient(x), tpu=lambda x: x.mean(axes), default=lambda x: x[sample].mean(axes)
        )
        offset = (x - centre).mean(axes)
        var = jnp.square(x - centre).mean(axes) - jnp.square(offset)
        if self.axis_name is not None:
            own = centre + offset
            mean = jax.lax.pmean(own, self.axis_name)
            offset, var = mean - centre, jax.lax.pmean(var + jnp.square(own - mean), self.axis_name)
        keep = self.momentum
        mean, unbiased = jax.lax.stop_gradient((centre + offset, jnp.maximum(var, 0) * (count / (count - 1))))
        # set_value, because tracing `mean[...] = ` takes time quadratic in the depth of the network.
        self.mean.set_value(keep * self.mean[...] + (1 - keep) * mean)
        self.var.set_value(keep * self.var[...] + (1 - keep) * unbiased)
        return centre, offset, var
