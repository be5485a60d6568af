"""Channel attention: one weight a channel, from statistics of its whole map. (N, C, H, W) -> same."""

import math
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from lma_torch.layers import SPATIAL_AXES, fits_timm
from lma_torch.profiles import ProfileAttention

__all__ = ["ECA", "GC", "SE", "SRM", "GSoP"]


def squeezed(channels: int, reduction: int = 16) -> int:
    """The width of a bottleneck, at least 1."""
    return max(1, channels // reduction)


@torch.fx.wrap  # a symbolic trace keeps it whole
def correction(x: Tensor, dims: tuple[int, ...]) -> int:
    """What an unbiased variance over `dims` subtracts from their size; 0 for a single value, whose variance is 0."""
    return min(1, math.prod(x.size(dim) for dim in dims) - 1)


def variance(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The unbiased variance over `dims`, which are kept; 0 for a single value."""
    return x.var(dims, correction=correction(x, dims), keepdim=True)


def std(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The unbiased standard deviation over `dims`, which are kept; 0, with gradient 0, where all values are equal."""
    return x.std(dims, correction=correction(x, dims), keepdim=True)


def profile_conv(kernel_size: int, **options: Any) -> nn.Conv2d:
    """A correlation of profiles (N, 1, 1, length) with a kernel of odd size."""
    return nn.Conv2d(1, 1, (1, kernel_size), padding=(0, kernel_size // 2), bias=False, **options)


@fits_timm
class SE(ProfileAttention):
    """Squeeze-and-excitation (Hu, Shen, Sun, CVPR 2018): y = x * s(W2 relu(W1 mean(x) + b1) + b2)."""

    profiles = ("HW",)

    def __init__(self, channels: int, **options: Any):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Linear(channels, squeezed(channels), **options)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Linear(squeezed(channels), channels, **options)

    def gates_of(self, profile: Tensor) -> tuple[Tensor]:
        """The gate (N, C, 1, 1) from the mean of the map."""
        return (self.fc2(self.relu(self.fc1(profile.flatten(1)))).sigmoid()[:, :, None, None],)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gates_of(self.pool(x))[0]


@fits_timm
class ECA(ProfileAttention):
    """Efficient channel attention (Wang et al., CVPR 2020): y = x * s(mean(x) correlated along the channels).

    Args:
        channels: C.
        kernel_size: odd; by default the odd number at or above (log2(C) + 1) / 2, truncated.
    """

    profiles = ("HW",)

    def __init__(self, channels: int, *, kernel_size: int | None = None, **options: Any):
        super().__init__()
        if kernel_size is None:
            kernel_size = int((math.log2(channels) + 1) / 2) // 2 * 2 + 1
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.conv = profile_conv(kernel_size, **options)

    def gates_of(self, profile: Tensor) -> tuple[Tensor]:
        """The gate (N, C, 1, 1) from the mean of the map."""
        return (self.conv(profile.flatten(1)[:, None, None]).sigmoid()[:, 0, 0, :, None, None],)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gates_of(self.pool(x))[0]


@fits_timm
class SRM(nn.Module):
    """Style-based recalibration (Lee, Kim, Nam, ICCV 2019): y = x * s(BN(w1 mean(x) + w2 std(x))), w = 0 at first."""

    def __init__(self, channels: int, **options: Any):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 2, **options))
        self.bn = nn.BatchNorm1d(channels, **options)

    def forward(self, x: Tensor) -> Tensor:
        deviation = (variance(x, SPATIAL_AXES) + 1e-5).sqrt()
        style = torch.stack([x.mean(SPATIAL_AXES), deviation.flatten(1)], 2)
        weights = self.bn((style * self.weight).sum(2)).sigmoid()
        return x * weights[:, :, None, None]


@fits_timm
class GC(nn.Module):
    """Global context (Cao et al., ICCV workshops 2019): y = x + W2 relu(LN(W1 sum(a x) + b1)) + b2, W2 = 0 at first.

    The pixels are weighed by a = softmax(w x + b), the channels are transformed in a bottleneck.
    """

    starts_at_zero = ("fc2",)

    def __init__(self, channels: int, **options: Any):
        super().__init__()
        self.mask = nn.Conv2d(channels, 1, 1, **options)
        self.fc1 = nn.Linear(channels, squeezed(channels), **options)
        self.norm = nn.LayerNorm(squeezed(channels), **options)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Linear(squeezed(channels), channels, **options)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        attention = self.mask(x).flatten(2).softmax(2)
        context = (x.flatten(2) @ attention.mT).flatten(1)
        return x + self.fc2(self.relu(self.norm(self.fc1(context))))[:, :, None, None]


@fits_timm
class GSoP(nn.Module):
    """Global second-order pooling (Gao et al., CVPR 2019): a weight a channel from the covariance of the channels.

    relu(x) is reduced to D = 128 channels (with stride 2 on maps of 256 channels, the largest in a ResNet-50), and each
    row of their covariance over the pixels is weighed by a convolution of its own.
    """

    def __init__(self, channels: int, **options: Any):
        super().__init__()
        width = 128
        self.relu = nn.ReLU()
        self.reduce = nn.Conv2d(channels, width, 1, stride=2 if channels == 256 else 1, **options)
        self.bn = nn.BatchNorm2d(width, **options)
        self.row_bn = nn.BatchNorm2d(width, **options)
        self.row_conv = nn.Conv2d(width, 4 * width, (width, 1), groups=width, **options)
        self.expand = nn.Conv2d(4 * width, channels, 1, **options)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.relu(self.bn(self.reduce(self.relu(x))))
        reduced = reduced.flatten(2)
        centred = reduced - reduced.mean(2, keepdim=True)
        covariance = centred @ centred.mT / centred.size(2)
        weights = self.expand(self.row_conv(self.row_bn(covariance[..., None]))).sigmoid()
        return x * weights


def mobile_eca(channels: int, **options: Any) -> ECA:
    """ECA as its authors use it in MobileNetV2."""
    return ECA(channels, kernel_size=1 if channels < 96 else 3, **options)
