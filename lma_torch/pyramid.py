"""The feature pyramid of detectors (FPN; Lin et al., CVPR 2017). Attribute names are torchvision's.

backbone = create_model("resnet50_lma", features_only=True, out_indices=(1, 2, 3, 4))
pyramid = FeaturePyramid(backbone.feature_info.channels(), extra_blocks=LastLevelMaxPool())
maps = pyramid(backbone(images))  # strides 4, 8, 16, 32 and 64, 256 channels each
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def conv(in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, **options: Any) -> nn.Conv2d:
    """A square convolution with bias, padded by half of its extent. Kernels are Kaiming-uniform (gain 1), biases 0."""
    layer = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, **options)
    nn.init.kaiming_uniform_(layer.weight, a=1)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def upsample(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """The map (N, C, h, w) as (N, C, *size): pixel i of n is pixel floor(i * h / n), PyTorch's mode "nearest"."""
    return F.interpolate(x, size, mode="nearest")


class LastLevelMaxPool(nn.Module):
    """Every second pixel of the last map as one more map, as in Faster R-CNN."""

    def forward(self, pyramid: Sequence[Tensor], maps: Sequence[Tensor]) -> list[Tensor]:
        """The pyramid's maps (N, C, H, W) and the backbone's -> one map (N, C, ceil(H/2), ceil(W/2))."""
        return [pyramid[-1][:, :, ::2, ::2]]


class LastLevelP6P7(nn.Module):
    """Two more maps by convolutions of stride 2, as in RetinaNet (Lin et al., ICCV 2017).

    Args:
        in_channels: channels of the backbone's last map, or `out_channels` to start from the pyramid's last one.
        out_channels: channels of the pyramid.
        device: device of the parameters.
        dtype: dtype of the parameters.
    """

    def __init__(self, in_channels: int, out_channels: int, *, device: Any = None, dtype: Any = None):
        super().__init__()
        options: dict[str, Any] = dict(device=device, dtype=dtype)
        self.p6 = conv(in_channels, out_channels, 3, stride=2, **options)
        self.p7 = conv(out_channels, out_channels, 3, stride=2, **options)
        self.use_pyramid = in_channels == out_channels

    def forward(self, pyramid: Sequence[Tensor], maps: Sequence[Tensor]) -> list[Tensor]:
        """The pyramid's maps and the backbone's -> two maps (N, out_channels, h, w) of twice and 4 times the stride."""
        p6 = self.p6((pyramid if self.use_pyramid else maps)[-1])
        return [p6, self.p7(F.relu(p6))]


class FeaturePyramid(nn.Module):
    """Maps of all strides with the same channels, each of which knows the coarser ones.

    A 1x1 convolution takes each map to `out_channels`; the sum of the coarser ones is added, upsampled to its size; a
    3x3 convolution follows.

    Args:
        in_channels: channels of each map of the backbone, the finest first (`feature_info.channels()`).
        out_channels: channels of each map of the pyramid.
        extra_blocks: called with the pyramid's maps and the backbone's, returns the list of further, coarser maps:
            LastLevelMaxPool, LastLevelP6P7, or None for none.
        device: device of the parameters.
        dtype: dtype of the parameters.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        *,
        extra_blocks: Callable[..., list[Tensor]] | None = None,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        options: dict[str, Any] = dict(device=device, dtype=dtype)
        inner = [conv(channels, out_channels, 1, **options) for channels in in_channels]
        layers = [conv(out_channels, out_channels, 3, **options) for _ in in_channels]
        # As in torchvision, where a normalisation may follow the convolution.
        self.inner_blocks = nn.ModuleList([nn.Sequential(layer) for layer in inner])
        self.layer_blocks = nn.ModuleList([nn.Sequential(layer) for layer in layers])
        self.extra_blocks = extra_blocks

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's maps (N, C, H, W), the finest first -> as many (N, out_channels, H, W), and the extra ones.

        Raises:
            ValueError: there are more or fewer maps than `in_channels`.
        """
        if len(maps) != len(self.inner_blocks):
            raise ValueError(f"the pyramid was built for {len(self.inner_blocks)} maps, got {len(maps)}")
        sums = [block(x) for block, x in zip(self.inner_blocks, maps)]
        for index in reversed(range(len(sums) - 1)):
            sums[index] = sums[index] + upsample(sums[index + 1], sums[index].shape[2:])
        pyramid = [block(x) for block, x in zip(self.layer_blocks, sums)]
        return pyramid if self.extra_blocks is None else [*pyramid, *self.extra_blocks(pyramid, maps)]
