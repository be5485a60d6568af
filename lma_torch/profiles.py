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

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

AXES = {"H": (2,), "W": (3,), "HW": (2, 3)}


def profile(x: Tensor, name: str) -> Tensor:
    """The mean of a map (N, C, H, W) over the axes in `name`, which stay with size 1."""
    return x.mean(AXES[name], keepdim=True)


class ProfileAttention(nn.Module):
    """An attention module that looks at its input through profiles only. (N, C, H, W) -> same.

    Attributes:
        profiles: the names of the profiles, see above.
        gates_of: a method that takes them and returns the gates, each of the map's shape with size 1 along some axes;
            the map is multiplied by all of them.
    """

    profiles: ClassVar[tuple[str, ...]]
    gates_of: Callable[..., tuple[Tensor, ...]]

    def forward(self, x: Tensor) -> Tensor:
        return math.prod(self.gates_of(*(profile(x, name) for name in self.profiles)), start=x)


def gated_sum(attention: Any, conv: nn.Conv2d, norm: Any, u: Tensor, identity: Tensor) -> Tensor:
    """attention(norm(conv(u))) + identity for maps u (N, C, H, W), with the gates from profiles of u, see above.

    Args:
        attention, conv, norm: modules for which `pays` holds.
        u: the input of `conv`.
        identity: the other summand, (N, C', H, W).
    """
    *others, last = attention.gates_of(*(norm(profile_of_conv(conv, u, name)) for name in attention.profiles))
    return torch.addcmul(identity, math.prod(others, start=norm(conv(u))), last)


def pays(attention: Any, conv: Any, norm: Any, u: Any) -> bool:
    """Whether `gated_sum` may stand for attention(norm(conv(u))), and moves less: in evaluation mode.

    `conv` and `norm` are of exactly the classes named here, and without hooks, since others may do more; and no
    subclass of `attention` has changed its call alone. Convolutions of profiles cost (H + W) / HW of the map's: that
    pays up to a seventh (14 x 14), and up to a sixteenth (32 x 32) for a kernel larger than 1x1, which follows a map no
    narrower than its own. A trace of torch.jit or torch.fx is to hold for every size, and a counter of operations to
    see those of the published network, and so they take the other way.
    """
    if torch.jit.is_tracing() or isinstance(u, torch.fx.Proxy) or is_recorded():
        return False
    if type(conv) is not nn.Conv2d or type(norm) not in (nn.BatchNorm2d, nn.Identity) or norm.training:
        return False
    if any(map(is_observed, (attention, conv, norm))):
        return False
    size = conv.kernel_size[0]
    keeps_size = conv.padding == (size // 2,) * 2 and conv.kernel_size[1] == size and size % 2 == 1
    plain = (conv.stride, conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
    if not (keeps_size and plain and _call_follows_gates(type(attention))):
        return False
    height, width = u.shape[2:]
    return (7 if size == 1 else 16) * (height + width) <= height * width


def is_observed(module: nn.Module) -> bool:
    """Whether a call of the module does more than its forward method: by hooks, its own or global, or a replacement."""
    return _has_any_global_hook() or "forward" in vars(module) or any(getattr(module, kind) for kind in HOOKS)


def is_recorded() -> bool:
    """Whether something watches the operations that are called, as counters of them do; a compiler is none."""
    return not torch.compiler.is_compiling() and is_in_torch_dispatch_mode(include_infra_modes=False)


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _call_follows_gates(kind: type) -> bool:
    """Whether a class declares profiles, and no subclass overrides its call without its gates."""

    def owner(name: str) -> type | None:
        return next((base for base in kind.__mro__ if name in vars(base)), None)

    gates, call = owner("gates_of"), owner("forward")
    return gates is not None and call is not None and issubclass(gates, call)


def profile_of_conv(conv: nn.Conv2d, u: Tensor, name: str) -> Tensor:
    """profile(conv(u), name) for maps u (N, C, H, W), from profiles of u; see above."""
    reach = conv.kernel_size[0] // 2
    padding = [reach, reach]
    for axis in AXES[name]:
        u = shifted_means(u, axis, reach)
        padding[axis - 2] = 0
    return F.conv2d(u, conv.weight, conv.bias, padding=padding)


def shifted_means(u: Tensor, axis: int, reach: int) -> Tensor:
    """The means of u along an axis, shifted by -reach to reach and zero padded: 2 * reach + 1 values there."""
    if reach == 0:
        return u.mean(axis, keepdim=True)
    length = u.size(axis)
    total = u.sum(axis, keepdim=True)

    def without(start: int, edge: int) -> Tensor:
        return total - u.narrow(axis, start, edge).sum(axis, keepdim=True)

    edges = [min(shift, length) for shift in range(reach, 0, -1)]
    left = [without(length - edge, edge) for edge in edges]
    right = [without(0, edge) for edge in reversed(edges)]
    return torch.cat([*left, total, *right], axis) / length
