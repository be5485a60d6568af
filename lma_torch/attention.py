"""The attention modules by name. Each is a constructor called as `attention(channels, device=, dtype=)`."""

from collections.abc import Callable

from torch import nn

from lma_torch.lma import LMA

Attention = Callable[..., nn.Module]

ATTENTIONS: dict[str, Attention] = {"lma": LMA}
