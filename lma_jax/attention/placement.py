"""Where a backbone has an attention module."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flax import nnx

Attention = Callable[..., nnx.Module]


@dataclass(frozen=True)
class Placement:
    """An attention module and its position in a backbone.

    Attributes:
        module: its constructor, called as `module(channels, dtype=, param_dtype=, rngs=)`; None for the plain backbone.
        position: in a ResNet "branch" (behind the last normalisation of a block's branch), "conv" (between its
            last 3x3 convolution and that one's normalisation) or "stage" (behind each stage but the last); in
            MobileNetV2 "hidden" (behind the depthwise convolution's activation, in the blocks that expand),
            "conv" (between the depthwise convolution and its normalisation) or "block" (behind a block's last
            normalisation).
        every_block: whether each block of a stage has one, or only its last block.
        last_stride: stride of a ResNet's last stage.
    """

    module: Attention | None = None
    position: str = ""
    every_block: bool = True
    last_stride: int = 2

    @classmethod
    def of(cls, attention: "Attention | Placement | None", position: str) -> "Placement":
        """A Placement as it is, or that of a constructor at `position`."""
        if isinstance(attention, Placement):
            return attention
        return cls() if attention is None else cls(attention, position)

    def at(self, position: str, channels: int, **options: Any) -> list[nnx.Module]:
        """A list of the module for `channels` if `position` is its own; an empty list otherwise."""
        return [self.module(channels, **options)] if self.module and position == self.position else []


@dataclass(frozen=True)
class Unavailable:
    """The reason why a backbone has no place for an attention module."""

    reason: str


@dataclass(frozen=True)
class Placements:
    """The placement of an attention module in each kind of backbone."""

    resnet: Placement | Unavailable
    mobilenetv2: Placement | Unavailable
