"""What the hosts share: convolution, and the initialisation."""

from typing import Any

from torch import nn


def conv(in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1, **dd: Any):
    """A square convolution without bias, padded by kernel_size // 2 on every side."""
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        groups=groups,
        bias=False,
        **dd,
    )


def init_weights(model: nn.Module) -> None:
    """Initialises a host as the paper does: convolutions Kaiming-normal (fan-out), linear N(0, 0.01), biases 0.

    What a module lists as `starts_at_zero` stays zero.
    """
    kept = {getattr(module, name) for module in model.modules() for name in getattr(module, "starts_at_zero", ())}
    for module in model.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear) or module in kept:
            continue
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        else:
            nn.init.normal_(module.weight, std=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
