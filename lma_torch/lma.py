"""LMA: lightweight mixed-domain attention (Yu et al., Applied Intelligence 53(11), 2023).

A feature map is averaged along its width and along its height. Each of the two profiles is correlated along the
channels with a kernel of size K and passed through a sigmoid, and the two gates scale the map:

    y = x * gate_h * gate_w        2K parameters, K = 1, 3, 5 or 7
"""

import math
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from lma_torch.layers import fits_timm, is_whole, whole_number
from lma_torch.profiles import is_observed, is_recorded


def kernel_size_for(channels: int) -> int:
    """K = eta(C): the odd number at or below `round(|log2(C) - 1| / 1.5)`, and at least 1."""
    size = round(abs(math.log2(channels) - 1.0) / 1.5)
    return max(1, size if size % 2 else size - 1)


def odd(kernel_size: Any) -> int:
    """`kernel_size` as an int; a ValueError if it is not whole, odd and positive."""
    if not is_whole(kernel_size) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"LMA needs an odd, positive kernel_size, got {kernel_size!r}")
    return int(kernel_size)


def correlate_channels(x: Tensor, kernel: Tensor, *, channels: int, dim: int) -> Tensor:
    """Correlates `x` with `kernel` (K,) along its `channels`, which lie at `dim`, zero padded to the same shape.

    It is a sum of K shifted slices: the middle one is written and the others are added where they overlap. That needs
    no padding, no permutation and no one-channel convolution.
    """
    taps = kernel.unbind()
    half = len(taps) // 2
    y = x * taps[half]
    for k, tap in enumerate(taps):
        shift = k - half
        length = channels - abs(shift)
        if shift and length > 0:
            source = x.narrow(dim, max(shift, 0), length)
            y.narrow(dim, max(-shift, 0), length).add_(source * tap)
    return y


def mean_over_height(x: Tensor, dim: int) -> Tensor:
    """The mean of a map (N, C, H, W) or (N, H, W, C) over the height, at `dim`, which stays with size 1.

    Compiled for a CPU, a long sum reads down the columns of the map, 32 bytes at a time, and wastes most of each cache
    line. Sums of at most 7 terms are unrolled and use whole cache lines, so there the mean is taken in two stages.
    """
    if torch.compiler.is_dynamo_compiling() and x.device.type == "cpu":
        terms = next((n for n in (7, 4, 2) if x.size(dim) % n == 0), 1)
        x = x.unflatten(dim, (-1, terms)).mean(dim + 1)
    return x.mean(dim, keepdim=True)


def gate(x: Tensor, logits_h: Tensor, logits_w: Tensor) -> Tensor:
    """x * sigmoid(logits_h) * sigmoid(logits_w), for maps (N, C, H, W) and logits (N, C, H, 1) and (N, C, 1, W).

    The gates are multiplied first: theirs is the only product that broadcasts. Without gradients, that product's memory
    is reused for the output.
    """
    product = logits_h.sigmoid() * logits_w.sigmoid()
    # A trace is checked without gradients, and must not depend on them.
    return product * x if product.requires_grad or torch.jit.is_tracing() else product.mul_(x)


@torch.fx.wrap  # a symbolic trace keeps it whole: it asks for the shape and the memory format of its input
def attend(x: Tensor, kernel_h: Tensor, kernel_w: Tensor, *, channels: int) -> Tensor:
    """LMA of a map (N, C, H, W) by two kernels of K values. The output has the memory format of the input."""
    require_map(x, channels)
    # Reductions are fast only over the axes as they lie in memory.
    if x.stride(1) == 1:
        x = x.permute(0, 2, 3, 1)
        profiles = x.mean(2, keepdim=True), mean_over_height(x, 1)
        return gate(x, *logits(profiles, (kernel_h, kernel_w), channels=channels, dim=3)).permute(0, 3, 1, 2)
    profiles = x.mean(3, keepdim=True), mean_over_height(x, 2)
    return gate(x, *logits(profiles, (kernel_h, kernel_w), channels=channels, dim=1))


def logits(profiles: tuple[Tensor, Tensor], kernels: tuple[Tensor, Tensor], *, channels: int, dim: int) -> list[Tensor]:
    """What the gates are sigmoids of: each profile, correlated with its kernel."""
    return [
        correlate_channels(profile, kernel.flatten().to(profile.dtype), channels=channels, dim=dim)
        for profile, kernel in zip(profiles, kernels)
    ]


def called(conv: nn.Conv2d, profile: Tensor) -> Tensor:
    """The same for one profile, by a call of the convolution that holds the kernel."""
    rows, half = profile.flatten(2).mT, conv.kernel_size[1] // 2
    return conv(F.pad(rows[:, None], (half, half)))[:, 0].mT.reshape(profile.shape)


def require_map(x: Tensor, channels: int) -> None:
    """Raises a ValueError if `x` is no floating-point map (N, channels, H, W); a trace of PyTorch's has no checks."""
    if torch.jit.is_tracing():
        return
    if x.ndim != 4 or x.size(1) != channels or not x.is_floating_point():
        raise ValueError(
            f"LMA({channels}) takes floating-point inputs of shape (N, {channels}, H, W), "
            f"channels second, got {x.dtype} of shape {tuple(x.shape)}"
        )


@fits_timm
class LMA(nn.Module):
    """Lightweight mixed-domain attention for feature maps of shape (N, C, H, W), in either memory format.

    It is also what timm calls an attention layer: `block_args=dict(attn_layer=LMA)` of ResNets, `se_layer=LMA` of
    EfficientNets.

    The kernels are drawn from U(-1/sqrt(K), 1/sqrt(K)), as PyTorch's convolutions are. A backbone initialises them
    anew with its own convolutions: Kaiming normal with fan-out, which has a standard deviation of sqrt(2/K).

    Args:
        channels: C, the size of the second axis.
        kernel_size: K, odd, the size of both kernels along the channels; `kernel_size_for(channels)` by default.
        device: device of the 2K parameters.
        dtype: dtype of the 2K parameters.

    Raises:
        ValueError: `channels` is no whole number from 1, `kernel_size` is not odd and positive, or the input at call
            time is not a floating-point (N, channels, H, W).

    >>> import torch
    >>> LMA(64)(torch.ones(8, 64, 56, 56)).shape
    torch.Size([8, 64, 56, 56])
    """

    # It looks at its input through these means only: see profiles.py.
    profiles = ("W", "H")

    def __init__(self, channels: int, *, kernel_size: int | None = None, device: Any = None, dtype: Any = None):
        super().__init__()
        self.channels = whole_number(channels, name="channels", least=1)
        self.kernel_size = kernel_size_for(self.channels) if kernel_size is None else odd(kernel_size)
        # Convolutions hold the kernels under their usual names; they are applied as shifted slices. They and the pools
        # are called only where a hook on them, or a counter of operations, is to see it.
        self.pool_h = nn.AdaptiveAvgPool2d((None, 1))
        self.pool_w = nn.AdaptiveAvgPool2d((1, None))
        options: dict[str, Any] = dict(bias=False, device=device, dtype=dtype)
        self.conv_h = nn.Conv2d(1, 1, (1, self.kernel_size), **options)
        self.conv_w = nn.Conv2d(1, 1, (1, self.kernel_size), **options)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to the same shape, dtype and memory format."""
        if self.is_watched():
            require_map(x, self.channels)
            gate_h, gate_w = self.gates_of(self.pool_h(x), self.pool_w(x))
            return x * gate_h * gate_w
        return attend(x, self.conv_h.weight, self.conv_w.weight, channels=self.channels)

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The gates (N, C, H, 1) and (N, C, 1, W) that scale `x`, each value between 0 and 1."""
        require_map(x, self.channels)
        return self.gates_of(x.mean(3, keepdim=True), mean_over_height(x, 2))

    def gates_of(self, profile_h: Tensor, profile_w: Tensor) -> tuple[Tensor, Tensor]:
        """The same, from the means of the map along its width (N, C, H, 1) and along its height (N, C, 1, W)."""
        if self.is_watched():
            return called(self.conv_h, profile_h).sigmoid(), called(self.conv_w, profile_w).sigmoid()
        kernels = self.conv_h.weight, self.conv_w.weight
        logits_h, logits_w = logits((profile_h, profile_w), kernels, channels=self.channels, dim=1)
        return logits_h.sigmoid(), logits_w.sigmoid()

    def is_watched(self) -> bool:
        """Whether a hook, or a counter of operations, is to see the calls of the layers within."""
        return is_recorded() or any(map(is_observed, self.children()))
