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
        position: in a ResNet "branch" (after the last normalisation of a block's branch), "conv" (between the last
            3x3 convolution of the branch and its normalisation) or "stage" (after each stage except the last); in
            MobileNetV2 "hidden" (after the activation of the depthwise convolution, in blocks that expand), "conv"
            (between the depthwise convolution and its normalisation) or "block" (after the last normalisation of a
            block).
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
    """The reason why a backbone does not take an attention module."""

    reason: str


@dataclass(frozen=True)
class Placements:
    """The placement of an attention module in each kind of backbone.

    Attributes:
        resnet, mobilenetv2: it, or the reason why there is none.
        registered_by: the module of a user that registered it, by its name, or by its file if it is not to be imported
            by a name; empty for those of this project.
    """

    resnet: Placement | Unavailable
    mobilenetv2: Placement | Unavailable
    registered_by: str = ""
