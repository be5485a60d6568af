"""LMA: lightweight mixed-domain attention (Yu et al., Applied Intelligence 53(11), 2023).

A feature map is pooled along its width and along its height. Each of the two profiles passes one K-tap
correlation along the channels and a sigmoid, and the two gates scale the map:

    y = x * gate_h * gate_w        2K parameters, K = 1, 3, 5 or 7
"""

import math
from typing import Any

import torch
from torch import Tensor, nn


def kernel_size_for(channels: int) -> int:
    """K = eta(C): the odd number at or below round(|log2(C) - 1| / 1.5), and at least 1."""
    taps = round(abs(math.log2(channels) - 1.0) / 1.5)
    return max(1, taps if taps % 2 else taps - 1)


def correlate_channels(x: Tensor, taps: Tensor, *, dim: int) -> Tensor:
    """Correlates `x` with `taps` (K,) along the channels at `dim`, zero padded to the same shape.

    A sum of K shifted slices, the middle one written and the others added where they overlap: no padding,
    no permutation and no one-channel convolution.
    """
    half, channels = taps.numel() // 2, x.size(dim)
    y = x * taps[half]
    for k in range(taps.numel()):
        shift = k - half
        length = channels - abs(shift)
        if shift and length > 0:
            source = x.narrow(dim, max(shift, 0), length)
            y.narrow(dim, max(-shift, 0), length).addcmul_(source, taps[k])
    return y


def mean_over_height(x: Tensor, dim: int) -> Tensor:
    """The mean of a map (N, C, H, W) or (N, H, W, C) over the height, at `dim`, which stays with size 1.

    Compiled for a CPU, a long sum walks down columns of the map, 32 bytes at a time, and loses most of each cache
    line. Sums of at most 7 terms are unrolled, which keeps the lines: there the mean is taken in two stages.
    """
    if torch.compiler.is_dynamo_compiling() and x.device.type == "cpu":
        terms = next((n for n in (7, 4, 2) if x.size(dim) % n == 0), 1)
        x = x.unflatten(dim, (-1, terms)).mean(dim + 1)
    return x.mean(dim, keepdim=True)


class LMA(nn.Module):
    """Lightweight mixed-domain attention for feature maps of shape (N, C, H, W), in either memory format.

    It is also what timm calls an attention layer: `block_args=dict(attn_layer=LMA)`.

    Args:
        channels: C, the size of the second axis.
        kernel_size: K, the odd number of taps along the channels; `kernel_size_for(channels)` by default.
        device: device of the 2K parameters.
        dtype: dtype of the 2K parameters. They are drawn from U(-1/sqrt(K), 1/sqrt(K)).

    Raises:
        ValueError: `channels` is below 1, `kernel_size` is not odd and positive, or the input at call time
            is not a floating-point (N, channels, H, W).

    >>> import torch
    >>> LMA(64)(torch.ones(8, 64, 56, 56)).shape
    torch.Size([8, 64, 56, 56])
    """

    def __init__(self, channels: int, *, kernel_size: int | None = None, device: Any = None, dtype: Any = None):
        super().__init__()
        if channels < 1:
            raise ValueError(f"LMA needs at least 1 channel, got channels={channels}")
        kernel_size = kernel_size_for(channels) if kernel_size is None else kernel_size
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"LMA needs an odd, positive kernel_size, got {kernel_size}")
        self.channels = channels
        self.kernel_size = kernel_size
        # The convolutions hold the taps under their usual names; they are applied as shifted slices.
        self.conv_h = nn.Conv2d(1, 1, (1, kernel_size), bias=False, device=device, dtype=dtype)
        self.conv_w = nn.Conv2d(1, 1, (1, kernel_size), bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to the same shape, dtype and memory format."""
        self._require(x)
        # Reductions are fast only over the axes as they lie in memory.
        if x.is_contiguous(memory_format=torch.channels_last):
            return self._attend(x.permute(0, 2, 3, 1), height=1, width=2, channel=3).permute(0, 3, 1, 2)
        return self._attend(x, height=2, width=3, channel=1)

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The gates (N, C, H, 1) and (N, C, 1, W) that scale `x`, each value between 0 and 1."""
        self._require(x)
        return self._gates(x, height=2, width=3, channel=1)

    def _attend(self, x: Tensor, *, height: int, width: int, channel: int) -> Tensor:
        gate_h, gate_w = self._gates(x, height=height, width=width, channel=channel)
        # The only product that broadcasts is that of the gates; without gradients its map becomes the output.
        gate = gate_h * gate_w
        return gate * x if gate.requires_grad else gate.mul_(x)

    def _gates(self, x: Tensor, *, height: int, width: int, channel: int) -> tuple[Tensor, Tensor]:
        taps_h = self.conv_h.weight.flatten().to(x.dtype)
        taps_w = self.conv_w.weight.flatten().to(x.dtype)
        profile_h = x.mean(width, keepdim=True)
        profile_w = mean_over_height(x, height)
        gate_h = correlate_channels(profile_h, taps_h, dim=channel).sigmoid()
        gate_w = correlate_channels(profile_w, taps_w, dim=channel).sigmoid()
        return gate_h, gate_w

    def _require(self, x: Tensor) -> None:
        if x.ndim != 4 or x.size(1) != self.channels or not x.is_floating_point():
            raise ValueError(
                f"LMA({self.channels}) takes floating-point inputs of shape (N, {self.channels}, H, W), "
                f"channels second, got {x.dtype} of shape {tuple(x.shape)}"
            )
