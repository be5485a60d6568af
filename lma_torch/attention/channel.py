"""Channel attention: one weight a channel, from statistics of its whole map. (N, C, H, W) -> same."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from lma_torch.attention.placement import RESNETS_ONLY, Placement, Placements

__all__ = ["ECA", "GC", "SE", "SRM", "GSoP"]


def squeezed(channels: int, reduction: int = 16) -> int:
    """The width of a bottleneck, at least 1."""
    return max(1, channels // reduction)


def unbiased(x: Tensor, dims: tuple[int, ...]) -> int:
    """The correction that makes a variance over `dims` unbiased; none for a single value, whose variance is 0."""
    return min(1, math.prod(x.size(dim) for dim in dims) - 1)


def profile_conv(taps: int, **dd: Any) -> nn.Conv2d:
    """A correlation with an odd number of taps along profiles (N, 1, 1, length)."""
    return nn.Conv2d(1, 1, (1, taps), padding=(0, taps // 2), bias=False, **dd)


class SE(nn.Module):
    """Squeeze-and-excitation (Hu, Shen, Sun, CVPR 2018): y = x * s(W2 relu(W1 mean(x) + b1) + b2)."""

    def __init__(self, channels: int, **dd: Any):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Linear(channels, squeezed(channels), **dd)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Linear(squeezed(channels), channels, **dd)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.fc2(self.relu(self.fc1(self.pool(x).flatten(1)))).sigmoid()
        return x * weights[:, :, None, None]


class ECA(nn.Module):
    """Efficient channel attention (Wang et al., CVPR 2020): y = x * s(K-tap correlation of mean(x) along channels).

    Args:
        channels: C.
        kernel_size: K, odd; by default the odd number at or above (log2(C) + 1) / 2, truncated.
    """

    def __init__(self, channels: int, *, kernel_size: int | None = None, **dd: Any):
        super().__init__()
        taps = int((math.log2(channels) + 1) / 2) // 2 * 2 + 1 if kernel_size is None else kernel_size
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.conv = profile_conv(taps, **dd)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.conv(self.pool(x).flatten(1)[:, None, None]).sigmoid()
        return x * weights[:, 0, 0, :, None, None]


class SRM(nn.Module):
    """Style-based recalibration (Lee, Kim, Nam, ICCV 2019): y = x * s(BN(w1 mean(x) + w2 std(x))), w = 0 at first."""

    def __init__(self, channels: int, **dd: Any):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 2, **dd))
        self.bn = nn.BatchNorm1d(channels, **dd)

    def forward(self, x: Tensor) -> Tensor:
        variance = x.var((2, 3), correction=unbiased(x, (2, 3)))
        style = torch.stack([x.mean((2, 3)), (variance + 1e-5).sqrt()], 2)
        weights = self.bn((style * self.weight).sum(2)).sigmoid()
        return x * weights[:, :, None, None]


class GC(nn.Module):
    """Global context (Cao et al., ICCV workshops 2019): y = x + W2 relu(LN(W1 sum(a x) + b1)) + b2, W2 = 0 at first.

    The positions are weighed by a = softmax(w x + b), the channels are transformed in a bottleneck.
    """

    starts_at_zero = ("fc2",)

    def __init__(self, channels: int, **dd: Any):
        super().__init__()
        self.mask = nn.Conv2d(channels, 1, 1, **dd)
        self.fc1 = nn.Linear(channels, squeezed(channels), **dd)
        self.norm = nn.LayerNorm(squeezed(channels), **dd)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Linear(squeezed(channels), channels, **dd)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        attention = self.mask(x).flatten(2).softmax(2)
        context = (x.flatten(2) @ attention.mT).flatten(1)
        return x + self.fc2(self.relu(self.norm(self.fc1(context))))[:, :, None, None]


class GSoP(nn.Module):
    """Global second-order pooling (Gao et al., CVPR 2019): a weight a channel from the covariance of the channels.

    relu(x) is reduced to D = 128 channels (with stride 2 on the widest maps, those of 256 channels), and each row of
    their covariance over the positions is weighed by a convolution of its own.
    """

    def __init__(self, channels: int, **dd: Any):
        super().__init__()
        width = 128
        self.relu = nn.ReLU()
        self.reduce = nn.Conv2d(channels, width, 1, stride=2 if channels == 256 else 1, **dd)
        self.bn = nn.BatchNorm2d(width, **dd)
        self.row_bn = nn.BatchNorm2d(width, **dd)
        self.row_conv = nn.Conv2d(width, 4 * width, (width, 1), groups=width, **dd)
        self.expand = nn.Conv2d(4 * width, channels, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.relu(self.bn(self.reduce(self.relu(x)))).flatten(2)
        centred = reduced - reduced.mean(2, keepdim=True)
        covariance = centred @ centred.mT / centred.size(2)
        weights = self.expand(self.row_conv(self.row_bn(covariance[..., None]))).sigmoid()
        return x * weights


def mobile_eca(channels: int, **dd: Any) -> ECA:
    """ECA as its authors have it in MobileNetV2."""
    return ECA(channels, kernel_size=1 if channels < 96 else 3, **dd)


PLACEMENTS: dict[str, Placements] = {
    "se": {"resnet": Placement(SE, "branch"), "mobilenetv2": Placement(SE, "block")},
    "eca": {"resnet": Placement(ECA, "branch"), "mobilenetv2": Placement(mobile_eca, "block")},
    "srm": {"resnet": Placement(SRM, "branch"), "mobilenetv2": Placement(SRM, "block")},
    "gc": {"resnet": Placement(GC, "branch"), "mobilenetv2": RESNETS_ONLY},
    "gsop": {
        "resnet": Placement(GSoP, "branch", every_block=False, last_stride=1),
        "mobilenetv2": "it sits in the last block of a ResNet's stages",
    },
}
