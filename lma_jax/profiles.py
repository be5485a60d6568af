"""Profiles, the means of a map over its height, its width or both, and attention that looks at nothing else.

Such a module says so, and a block then need not read a map again to gate it:

    profiles            names of the means that it looks at: "H" (over the height), "W" (over the width), "HW" (both)
    gates_of(*profiles)  the gates, whose product scales the map, from these means

Behind a convolution and a normalisation, z = scale * (conv(u) - centre) + shift is affine in u, and a mean of z is the
same function of a mean of u, which is known before z is. For a 1x1 convolution this is plain:

    mean_W(z) = scale * (conv(mean_W(u)) - centre) + shift

A k x k convolution of stride 1, zero padded by p = k // 2 to the same size, sums for its output at (h, w) the products
of u at (h + i, w + j) with the kernel at (i, j), |i| <= p, |j| <= p. Over all w, column j of the kernel thus meets each
column of u but those that it shifts out of the map: the last |j| for j < 0, the first j for j > 0. With S the sum over
all columns, these are for k = 3

    (S - last, S, S - first) / W

a map of k columns, on which the same kernel, without padding along W, gives mean_W(conv(u)) exactly. Along H, and along
both, likewise. The normalisation's statistics are those of the full map, in training too.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from lma_jax.layers import Affine, BatchNorm, Identity, widened

AXES = {"H": (-3,), "W": (-2,), "HW": (-3, -2)}


def profile(x: jax.Array, name: str) -> jax.Array:
    """The mean of a map (..., H, W, C) over the axes in `name`, which stay with size 1."""
    return x.mean(AXES[name], keepdims=True)


class ProfileAttention(nnx.Module):
    """An attention module that looks at its input through profiles only. (N, H, W, C) -> same.

    Attributes:
        profiles: the names of the profiles, see above.
        gates_of: a method that takes them and returns the gates, each of the map's shape with size 1 along some axes;
            the map is multiplied by all of them.
    """

    profiles: ClassVar[tuple[str, ...]]
    gates_of: Callable[..., tuple[jax.Array, ...]]

    def __call__(self, x: jax.Array) -> jax.Array:
        return math.prod(self.gates_of(*(profile(x, name) for name in self.profiles)), start=x)


def gated_sum(attention: Any, conv: nnx.Conv, norm: Any, u: jax.Array, identity: jax.Array) -> jax.Array:
    """attention(norm(conv(u))) + identity for maps u (N, H, W, C), with the gates from profiles of u, see above.

    Args:
        attention, conv, norm: modules for which `pays` holds.
        u: the input of `conv`.
        identity: the other summand, (N, H, W, C').
    """
    # The barrier keeps the derivatives of conv and of the profiles apart: cuDNN would read their sum as a map.
    z = conv(jax.lax.optimization_barrier(u))
    wide = widened(z)  # once, so that the gradient is rounded once
    affine = norm.affine(wide)
    profiles = [profile_of_conv(conv, affine, u, name) for name in attention.profiles]
    first, *others = map(widened, attention.gates_of(*profiles))
    y = gated(wide - affine.centre, affine.scale, affine.shift, first, math.prod(others, start=jnp.ones(())))
    return y.astype(z.dtype) + identity


@jax.custom_jvp
def gated(x: jax.Array, scale: Any, shift: Any, gate: jax.Array, other: jax.Array) -> jax.Array:
    """(x * scale + shift) * gate * other for a map x.

    Its derivative is that of (x * (scale * gate) + shift * gate) * other. So the backward pass reduces one pair of maps
    over the axis that `gate` lacks, and takes the gradients of scale, shift and gate from it; only `other` needs a
    second reduction.
    """
    return (x * scale + shift) * gate * other


@gated.defjvp
def _gated_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    (x, scale, shift, gate, other), (dx, dscale, dshift, dgate, dother) = primals, tangents
    from_small = x * (scale * dgate + gate * dscale) + (shift * dgate + gate * dshift)
    dy = (dx * (scale * gate) + from_small) * other + (x * scale + shift) * gate * dother
    return gated(*primals), dy


def pays(attention: Any, conv: Any, norm: Any, u: jax.Array) -> bool:
    """Whether `gated_sum` may stand for attention(norm(conv(u))), and moves less.

    `conv` and `norm` are of exactly the classes named here, since others, such as those of `intercept`, may do more;
    and no subclass of `attention` has changed its call alone. Convolutions of profiles cost (H + W) / HW of the map's:
    that pays up to a seventh (14 x 14), and up to a sixteenth (32 x 32) for a kernel larger than 1x1, which follows a
    map no narrower than its own.
    """
    if type(conv) is not nnx.Conv or type(norm) not in (BatchNorm, Identity):
        return False
    size, (height, width) = conv.kernel_size[0], u.shape[1:3]
    keeps_size = conv.kernel_size == (size, size) and size % 2 == 1 and conv.padding == ((size // 2, size // 2),) * 2
    numbers = (conv.strides, conv.kernel_dilation, conv.input_dilation, conv.feature_group_count)
    options = (conv.mask, conv.precision, conv.preferred_element_type)
    plain = numbers == (1, 1, 1, 1) and options == (None, None, None)
    is_large = (7 if size == 1 else 16) * (height + width) <= height * width
    return keeps_size and plain and is_large and _call_follows_gates(type(attention))


def _call_follows_gates(kind: type) -> bool:
    """Whether a class declares profiles, and no subclass overrides its call without its gates."""

    def owner(name: str) -> type | None:
        return next((base for base in kind.__mro__ if name in vars(base)), None)

    gates, call = owner("gates_of"), owner("__call__")
    return gates is not None and call is not None and issubclass(gates, call)


def profile_of_conv(conv: nnx.Conv, affine: Affine, u: jax.Array, name: str) -> jax.Array:
    """profile(affine(conv(u)), name) for maps u (N, H, W, C), from profiles of u; see above."""
    reach = conv.kernel_size[0] // 2
    padding = [(reach, reach)] * 2
    u, kernel = conv.promote_dtype((u, conv.kernel[...] * affine.scale), dtype=conv.dtype)
    for axis in AXES[name]:
        u = shifted_means(u, axis, reach)
        padding[axis + 3] = (0, 0)
    if reach == 0:
        y = u @ kernel[0, 0]
    else:
        y = jax.lax.conv_general_dilated(u, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    bias = 0 if conv.bias is None else conv.bias[...]
    return y + jnp.asarray((bias - affine.centre) * affine.scale + affine.shift, y.dtype)


def shifted_means(u: jax.Array, axis: int, reach: int) -> jax.Array:
    """The means of u along an axis, shifted by -reach to reach and zero padded: 2 * reach + 1 values there."""
    length = u.shape[axis]
    total = widened(u).sum(axis, keepdims=True)
    if reach == 0:
        return (total / length).astype(u.dtype)
    total = jax.lax.optimization_barrier(total)

    def without(start: int, stop: int) -> jax.Array:
        return total - widened(jax.lax.slice_in_dim(u, start, stop, axis=axis)).sum(axis, keepdims=True)

    edges = [min(shift, length) for shift in range(reach, 0, -1)]
    left = [without(length - edge, length) for edge in edges]
    right = [without(0, edge) for edge in reversed(edges)]
    return (jnp.concatenate([*left, total, *right], axis) / length).astype(u.dtype)
