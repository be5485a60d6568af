"""Channel and spatial attention together. (N, C, H, W) -> same."""

from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from lma_torch.attention.channel import profile_conv, squeezed, std
from lma_torch.layers import SPATIAL_AXES, fits_timm
from lma_torch.lma import kernel_size_for
from lma_torch.profiles import ProfileAttention

__all__ = ["BAM", "CA", "CBAM", "MCA", "SA", "SGE", "TA", "SimAM"]


def groups_for(channels: int, *, largest: int = 64, parts: int = 1) -> int:
    """The largest number of groups, up to `largest`, that divides the channels into equal groups of equal `parts`.

    Raises:
        ValueError: not even one group can be divided into `parts`.
    """
    if channels % parts:
        raise ValueError(f"{channels} channels cannot be divided into {parts} parts")
    return next(groups for groups in range(largest, 0, -1) if channels % (groups * parts) == 0)


@fits_timm
class CBAM(nn.Module):
    """Convolutional block attention (Woo et al., ECCV 2018): first over channels, then over pixels.

    x' = x * s(f(mean_HW(x)) + f(max_HW(x))), y = x' * s(BN(conv7x7([max_C(x'), mean_C(x')])))
    """

    def __init__(self, channels: int, **options: Any):
        super().__init__()
        self.fc1 = nn.Linear(channels, squeezed(channels), **options)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Linear(squeezed(channels), channels, **options)
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False, **options)
        self.bn = nn.BatchNorm2d(1, momentum=0.01, **options)

    def forward(self, x: Tensor) -> Tensor:
        mean, largest = self.bottleneck(x.mean(SPATIAL_AXES)), self.bottleneck(x.amax(SPATIAL_AXES))
        x = x * (mean + largest).sigmoid()[:, :, None, None]
        return x * self.bn(self.conv(pooled(x, 1))).sigmoid()

    def bottleneck(self, profile: Tensor) -> Tensor:
        """(N, C) -> (N, C)."""
        return self.fc2(self.relu(self.fc1(profile)))


def pooled(x: Tensor, dim: int) -> Tensor:
    """Maximum and mean over one axis of (N, C, H, W), as the two channels of an image of the other two."""
    return torch.stack([x.amax(dim), x.mean(dim)], 1)


@fits_timm
class BAM(nn.Module):
    """Bottleneck attention (Park et al., BMVC 2018): y = x * (1 + s(c * p)), c of the channels, p of the pixels.

    The published code multiplies c and p where the paper adds them; so does this.
    """

    def __init__(self, channels: int, **options: Any):
        super().__init__()
        width = squeezed(channels)
        self.relu = nn.ReLU(inplace=True)
        self.fc1 = nn.Linear(channels, width, **options)
        self.bn = nn.BatchNorm1d(width, **options)
        self.fc2 = nn.Linear(width, channels, **options)
        self.conv1 = nn.Conv2d(channels, width, 1, **options)
        self.bn1 = nn.BatchNorm2d(width, **options)
        self.conv2 = nn.Conv2d(width, width, 3, padding=4, dilation=4, **options)
        self.bn2 = nn.BatchNorm2d(width, **options)
        self.conv3 = nn.Conv2d(width, width, 3, padding=4, dilation=4, **options)
        self.bn3 = nn.BatchNorm2d(width, **options)
        self.conv4 = nn.Conv2d(width, 1, 1, **options)

    def forward(self, x: Tensor) -> Tensor:
        channels = self.fc2(self.relu(self.bn(self.fc1(x.mean(SPATIAL_AXES)))))[:, :, None, None]
        pixels = self.relu(self.bn1(self.conv1(x)))
        pixels = self.relu(self.bn2(self.conv2(pixels)))
        pixels = self.conv4(self.relu(self.bn3(self.conv3(pixels))))
        return x * (1 + (channels * pixels).sigmoid())


@fits_timm
class TA(nn.Module):
    """Triplet attention (Misra et al., WACV 2021): the mean of three gated maps, each gate seen along one axis.

    A gate is s(BN(conv KxK([max, mean]))) of the image that is left when H, W or C is pooled.

    Args:
        channels: C.
        kernel_size: K, odd.
    """

    def __init__(self, channels: int, *, kernel_size: int = 7, **options: Any):
        super().__init__()

        def conv() -> nn.Conv2d:
            return nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False, **options)

        self.conv_h, self.bn_h = conv(), nn.BatchNorm2d(1, momentum=0.01, **options)
        self.conv_w, self.bn_w = conv(), nn.BatchNorm2d(1, momentum=0.01, **options)
        self.conv_c, self.bn_c = conv(), nn.BatchNorm2d(1, momentum=0.01, **options)

    def forward(self, x: Tensor) -> Tensor:
        gate_h = self.bn_h(self.conv_h(pooled(x, 2))).sigmoid().permute(0, 2, 1, 3)  # image (C, W)
        gate_w = self.bn_w(self.conv_w(pooled(x, 3).mT)).sigmoid().permute(0, 3, 2, 1)  # image (H, C)
        gate_c = self.bn_c(self.conv_c(pooled(x, 1))).sigmoid()  # image (H, W)
        return x * ((gate_h + gate_w + gate_c) / 3)


@fits_timm
class SA(nn.Module):
    """Shuffle attention (Zhang, Yang, ICASSP 2021): in each of G groups, half of the channels is gated by its mean and
    half by its normalised map; then the channels are shuffled.

    G is 64, or in narrow layers the largest number that divides the channels; w = 0 and b = 1 at first.
    """

    def __init__(self, channels: int, **options: Any):
        super().__init__()
        self.groups = groups_for(channels, parts=2)
        half = channels // (2 * self.groups)
        self.weight_c = nn.Parameter(torch.zeros(half, **options))
        self.bias_c = nn.Parameter(torch.ones(half, **options))
        self.weight_s = nn.Parameter(torch.zeros(half, **options))
        self.bias_s = nn.Parameter(torch.ones(half, **options))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.norm = nn.GroupNorm(half, half, **options)

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        a, b = x.reshape(n * self.groups, -1, height, width).chunk(2, 1)
        a = a * affine(self.pool(a), self.weight_c, self.bias_c).sigmoid()
        b = b * affine(self.norm(b), self.weight_s, self.bias_s).sigmoid()
        y = torch.cat([a, b], 1).reshape(n, 2, channels // 2, height, width)
        return y.transpose(1, 2).reshape(x.shape)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Scales and shifts the channels of (N, C, H, W)."""
    return x * weight[:, None, None] + bias[:, None, None]


@fits_timm
class CA(ProfileAttention):
    """Coordinate attention (Hou, Zhou, Feng, CVPR 2021): y = x * g_w * g_h, both gates of one bottleneck over the
    profiles of the rows and of the columns.
    """

    profiles = ("W", "H")

    def __init__(self, channels: int, **options: Any):
        super().__init__()
        width = max(8, channels // 32)
        self.conv1 = nn.Conv2d(channels, width, 1, **options)
        self.bn1 = nn.BatchNorm2d(width, **options)
        self.activation = nn.Hardswish()
        self.conv_h = nn.Conv2d(width, channels, 1, **options)
        self.conv_w = nn.Conv2d(width, channels, 1, **options)

    def gates_of(self, profile_h: Tensor, profile_w: Tensor) -> tuple[Tensor, Tensor]:
        """The gates (N, C, H, 1) and (N, C, 1, W) from the means of the map along its width and along its height."""
        profiles = torch.cat([profile_h, profile_w.mT], 2)
        sizes = [profile_h.size(2), profile_w.size(3)]
        rows, columns = self.activation(self.bn1(self.conv1(profiles))).split(sizes, 2)
        return self.conv_h(rows).sigmoid(), self.conv_w(columns).sigmoid().mT


@fits_timm
class SGE(nn.Module):
    """Spatial group-wise enhance (Li, Hu, Yang, 2019): in each of G groups, the pixels are gated by their likeness to
    the group's mean, normalised over the map.

    G is 64, or in narrow layers the largest number that divides the channels; w = 0 and b = 1 at first.
    """

    def __init__(self, channels: int, **options: Any):
        super().__init__()
        self.groups = groups_for(channels)
        self.weight = nn.Parameter(torch.zeros(self.groups, **options))
        self.bias = nn.Parameter(torch.ones(self.groups, **options))

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.unflatten(1, (self.groups, -1))
        likeness = (grouped * grouped.mean((3, 4), keepdim=True)).sum(2)
        centred = likeness - likeness.mean(SPATIAL_AXES, keepdim=True)
        normalised = centred / (std(likeness, SPATIAL_AXES) + 1e-5)
        return (grouped * affine(normalised, self.weight, self.bias).sigmoid()[:, :, None]).reshape(x.shape)


@fits_timm
class MCA(nn.Module):
    """Multidimensional collaborative attention (Yu et al., 2023): the mean of three gated maps, one for each of the
    axes C, H and W, whose profiles weigh mean and standard deviation over the other two.
    """

    def __init__(self, channels: int, **options: Any):
        super().__init__()
        weight_c, weight_h, weight_w = torch.rand(3, 2, **options)
        self.weight_c, self.conv_c = nn.Parameter(weight_c), profile_conv(kernel_size_for(channels), **options)
        self.weight_h, self.conv_h = nn.Parameter(weight_h), profile_conv(3, **options)
        self.weight_w, self.conv_w = nn.Parameter(weight_w), profile_conv(3, **options)

    def forward(self, x: Tensor) -> Tensor:
        gate_c = self.gate(x, (2, 3), self.weight_c, self.conv_c)
        gate_h = self.gate(x, (1, 3), self.weight_h, self.conv_h)
        gate_w = self.gate(x, (1, 2), self.weight_w, self.conv_w)
        return x * ((gate_c + gate_h + gate_w) / 3)

    def gate(self, x: Tensor, dims: tuple[int, int], weight: Tensor, conv: nn.Conv2d) -> Tensor:
        """The gate along the axis that is not among `dims`, which have size 1 in it."""
        scale_mean, scale_std = (0.5 + weight.sigmoid()).unbind()
        profile = scale_mean * x.mean(dims, keepdim=True) + scale_std * std(x, dims)
        return conv(profile.flatten(1)[:, None, None]).sigmoid().reshape(profile.shape)


@fits_timm
class SimAM(nn.Module):
    """SimAM (Yang et al., ICML 2021): y = x * s(d / (4 (v + 1e-4)) + 1/2), d = (x - mean)^2, v its sum / (HW - 1).

    No parameters; `channels` is not used.
    """

    def __init__(self, channels: int, **options: Any):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        distance = (x - x.mean(SPATIAL_AXES, keepdim=True)).square()
        variance = distance.sum(SPATIAL_AXES, keepdim=True) / degrees_of_freedom(x)
        return x * (distance / (4 * (variance + 1e-4)) + 0.5).sigmoid()


@torch.fx.wrap  # a symbolic trace keeps it whole
def degrees_of_freedom(x: Tensor) -> int:
    """What divides a sum of squares over a map (N, C, H, W) to an unbiased variance; 1 for a single pixel."""
    return max(1, x.size(2) * x.size(3) - 1)


def mobile_ta(channels: int, **options: Any) -> TA:
    """Triplet attention as its authors use it in MobileNetV2."""
    return TA(channels, kernel_size=3, **options)
