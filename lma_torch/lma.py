"""LMA: lightweight mixed-domain attention (Yu et al., Applied Intelligence 53(11), 2023).

A feature map is averaged along its width and along its height. Each of the two profiles is correlated along the
channels with a kernel of size K and passed through a sigmoid, and the two gates scale the map:

    y = x * gate_h * gate_w        2K parameters, K = 1, 3, 5 or 7
"""

import math
from typing import Any

import torch
from torch import Tensor, nn


def kernel_size_for(channels: int) -> int:
    """K = eta(C): the odd number at or below round(|log2(C) - 1| / 1.5), and at least 1."""
    size = round(abs(math.log2(channels) - 1.0) / 1.5)
    return max(1, size if size % 2 else size - 1)


def correlate_channels(x: Tensor, kernel: Tensor, *, dim: int) -> Tensor:
    """Correlates `x` with `kernel` (K,) along the channels at `dim`, zero padded to the same shape.

    It is a sum of K shifted slices: the middle one is written and the others are added where they overlap. That needs
    no padding, no permutation and no one-channel convolution.
    """
    half, channels = kernel.numel() // 2, x.size(dim)
    y = x * kernel[half]
    for k in range(kernel.numel()):
        shift = k - half
        length = channels - abs(shift)
        if shift and length > 0:
            source = x.narrow(dim, max(shift, 0), length)
            y.narrow(dim, max(-shift, 0), length).addcmul_(source, kernel[k])
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
    return product * x if product.requires_grad else product.mul_(x)


class LMA(nn.Module):
    """Lightweight mixed-domain attention for feature maps of shape (N, C, H, W), in either memory format.

    It is also what timm calls an attention layer: `block_args=dict(attn_layer=LMA)`.

    The kernels are drawn from U(-1/sqrt(K), 1/sqrt(K)), as PyTorch's convolutions are. A backbone initialises them
    anew with its own convolutions: Kaiming normal with fan-out, which has a standard deviation of sqrt(2/K).

    Args:
        channels: C, the size of the second axis.
        kernel_size: K, odd, the size of both kernels along the channels; `kernel_size_for(channels)` by default.
        device: device of the 2K parameters.
        dtype: dtype of the 2K parameters.

    Raises:
        ValueError: `channels` is below 1, `kernel_size` is not odd and positive, or the input at call time
            is not a floating-point (N, channels, H, W).

    >>> import torch
    >>> LMA(64)(torch.ones(8, 64, 56, 56)).shape
    torch.Size([8, 64, 56, 56])
    """

    # It looks at its input through these means only: see profiles.py.
    profiles = ("W", "H")

    def __init__(self, channels: int, *, kernel_size: int | None = None, device: Any = None, dtype: Any = None):
        super().__init__()
        if channels < 1:
            raise ValueError(f"LMA needs at least 1 channel, got channels={channels}")
        kernel_size = kernel_size_for(channels) if kernel_size is None else kernel_size
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"LMA needs an odd, positive kernel_size, got {kernel_size}")
        self.channels = channels
        self.kernel_size = kernel_size
        # Convolutions hold the kernels under their usual names; they are applied as shifted slices.
        options: dict[str, Any] = dict(bias=False, device=device, dtype=dtype)
        self.conv_h = nn.Conv2d(1, 1, (1, kernel_size), **options)
        self.conv_w = nn.Conv2d(1, 1, (1, kernel_size), **options)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to the same shape, dtype and memory format."""
        self._require(x)
        # Reductions are fast only over the axes as they lie in memory.
        if x.is_contiguous(memory_format=torch.channels_last):
            x = x.permute(0, 2, 3, 1)
            logits = self._logits(x.mean(2, keepdim=True), mean_over_height(x, 1), channel=3)
            return gate(x, *logits).permute(0, 3, 1, 2)
        return gate(x, *self._logits(x.mean(3, keepdim=True), mean_over_height(x, 2), channel=1))

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The gates (N, C, H, 1) and (N, C, 1, W) that scale `x`, each value between 0 and 1."""
        self._require(x)
        return self.gates_of(x.mean(3, keepdim=True), mean_over_height(x, 2))

    def gates_of(self, profile_h: Tensor, profile_w: Tensor) -> tuple[Tensor, Tensor]:
        """The same, from the means of the map along its width (N, C, H, 1) and along its height (N, C, 1, W)."""
        logits_h, logits_w = self._logits(profile_h, profile_w, channel=1)
        return logits_h.sigmoid(), logits_w.sigmoid()

    def _logits(self, profile_h: Tensor, profile_w: Tensor, *, channel: int) -> tuple[Tensor, Tensor]:
        kernel_h = self.conv_h.weight.flatten().to(profile_h.dtype)
        kernel_w = self.conv_w.weight.flatten().to(profile_w.dtype)
        logits_h = correlate_channels(profile_h, kernel_h, dim=channel)
        logits_w = correlate_channels(profile_w, kernel_w, dim=channel)
        return logits_h, logits_w

    def _require(self, x: Tensor) -> None:
        if x.ndim != 4 or x.size(1) != self.channels or not x.is_floating_point():
            raise ValueError(
                f"LMA({self.channels}) takes floating-point inputs of shape (N, {self.channels}, H, W), "
                f"channels second, got {x.dtype} of shape {tuple(x.shape)}"
            )
