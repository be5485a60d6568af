"""Where a host holds an attention module."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flax import nnx

RESNETS_ONLY = "its paper and Table 1 have it in ResNets alone"

Attention = Callable[..., nnx.Module]


@dataclass(frozen=True)
class Placement:
    """An attention module and where a host holds it.

    Attributes:
        module: its constructor, called as `module(channels, dtype=, param_dtype=, rngs=)`; None for the plain host.
        position: in a ResNet "branch" (behind the last normalisation of a block's branch), "conv" (between its
            last 3x3 convolution and that one's normalisation) or "stage" (behind each stage but the last); in
            MobileNetV2 "hidden" (behind the depthwise convolution's activation, in the blocks that expand),
            "conv" (between the depthwise convolution and its normalisation) or "block" (behind a block's last
            normalisation).
        every_block: whether each block of a stage holds one, or its last block alone.
        last_stride: stride of a ResNet's last stage.
    """

    module: Attention | None = None
    position: str = ""
    every_block: bool = True
    last_stride: int = 2

    @classmethod
    def of(cls, attention: "Attention | Placement | None", position: str) -> "Placement":
        """A place as it is, or that of a constructor at `position`."""
        if isinstance(attention, Placement):
            return attention
        return cls() if attention is None else cls(attention, position)

    def at(self, position: str, channels: int, **dd: Any) -> list[nnx.Module]:
        """The module for `channels`, if `position` is its own, else nothing."""
        return [self.module(channels, **dd)] if self.module and position == self.position else []


# By family of hosts: the place of a module, or the reason why it has none.
Placements = dict[str, Placement | str]
