"""What the backbones share: their two parts, convolution and initialisation."""

import numbers
from typing import Any

from torch import Tensor, nn

# Height and width of a map (N, C, H, W).
SPATIAL_AXES = (2, 3)


class Network(nn.Module):
    """An image classifier in two parts: `forward_head` after `forward_features`.

    Attributes:
        num_features: C, the number of channels of the last feature map, and of the output if there are no classes.
    """

    num_features: int

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> the last feature map (N, C, h, w)."""
        raise NotImplementedError

    def forward_head(self, x: Tensor) -> Tensor:
        """The last feature map (N, C, h, w) -> logits (N, num_classes), or its means (N, C) if there are no classes."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, num_classes), or features (N, C) if there are no classes."""
        return self.forward_head(self.forward_features(x))


def conv(
    in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1, **options: Any
) -> nn.Conv2d:
    """A square convolution without bias, padded by kernel_size // 2 on every side."""
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        groups=groups,
        bias=False,
        **options,
    )


def head(features: int, num_classes: int, **options: Any) -> nn.Module:
    """The linear layer to `num_classes` logits; with 0 classes none: the features are the output, as in timm.

    Raises:
        ValueError: `num_classes` is no whole number from 0.
    """
    if whole_number(num_classes, name="num_classes", least=0) == 0:
        return nn.Identity()
    return nn.Linear(features, num_classes, **options)


def init_weights(model: nn.Module) -> None:
    """Initialises a backbone as the paper does, its attention modules included.

    Convolutions are Kaiming-normal (fan-out), linear layers normal with standard deviation 0.01, biases 0. What a
    module lists as `starts_at_zero` stays zero.
    """
    kept = {getattr(module, name) for module in model.modules() for name in getattr(module, "starts_at_zero", ())}
    for module in model.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear) or module in kept:
            continue
        if module.weight.is_meta:  # nothing to draw, and PyTorch would import its compiler for it
            continue
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        else:
            nn.init.normal_(module.weight, std=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def whole_number(value: Any, *, name: str, least: int) -> int:
    """`value` as an int; a ValueError if it is not whole or below `least`."""
    if not is_whole(value) or value < least:
        raise ValueError(f"a whole number of at least {least} is needed, got {name}={value!r}")
    return int(value)


def is_whole(value: Any) -> bool:
    """Whether a value is an integer, of Python or of NumPy; True and 64.0 are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
