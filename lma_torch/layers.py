"""What the backbones share: their two parts, convolution and initialisation."""

import functools
import numbers
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

Kind = TypeVar("Kind", bound=type[nn.Module])

# Height and width of a map (N, C, H, W).
SPATIAL_AXES = (2, 3)


class FeatureInfo(list[dict[str, Any]]):
    """Feature maps as timm describes them: {"num_chs": channels, "reduction": stride, "module": their last layer}."""

    def channels(self) -> list[int]:
        """The channels of each map."""
        return [info["num_chs"] for info in self]

    def reduction(self) -> list[int]:
        """The stride of each map: the image's size over its own."""
        return [info["reduction"] for info in self]

    def module_name(self) -> list[str]:
        """The path of each map's last layer."""
        return [info["module"] for info in self]


class Network(nn.Module):
    """An image classifier in two parts: `forward_head` after `forward_features`.

    Attributes:
        name, options: the name and the further options by which `create_model` built it; empty if its class did.
        num_classes: size of the output; 0 without a classifier, which gives the pooled features.
        num_features: channels of the last feature map.
        position: that of the attention module in its blocks, see `Placement`; empty in a plain network.
        maps: channels, stride and last layer of the maps C1 to C5.
        out_indices: which of them a call returns instead of logits; None for logits.
    """

    name: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    num_classes: int
    num_features: int
    position: str
    maps: tuple[tuple[int, int, str], ...]
    out_indices: tuple[int, ...] | None = None

    @property
    def feature_info(self) -> FeatureInfo:
        """The feature maps that `forward_intermediates`, or else a call, returns."""
        taken = taken_indices(self.out_indices)
        return FeatureInfo(dict(zip(("num_chs", "reduction", "module"), self.maps[index])) for index in taken)

    def stages(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """The functions that compute C1 to C5, and what follows them; each takes the map of the one before."""
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) -> the last feature map (N, C, h, w)."""
        for stage in self.stages():
            x = stage(x)
        return x

    def forward_head(self, x: Tensor) -> Tensor:
        """The last feature map (N, C, h, w) -> logits (N, num_classes), or its means (N, C) if there are no classes."""
        raise NotImplementedError

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        stop_early: bool = False,
        intermediates_only: bool = False,
    ) -> Any:
        """The last feature map, and the list of the maps C1 to C5, as timm's method of this name.

        Args:
            x: Images (N, in_chans, H, W).
            indices: which maps, from 0 or, below it, from the last; a number for so many of the last; all by default.
            stop_early: compute no more than these maps need; the last of them then stands for the last feature map.
            intermediates_only: return the list alone.

        Raises:
            ValueError: there is no such map.
        """
        taken = taken_indices(indices)
        stages = self.stages()[: taken[-1] + 1] if stop_early or intermediates_only else self.stages()
        maps = []
        for index, stage in enumerate(stages):
            x = stage(x)
            if index in taken:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def forward(self, x: Tensor) -> Any:
        """Images (N, in_chans, H, W) -> logits (N, num_classes), or the list of feature maps."""
        if self.out_indices is not None:
            return self.forward_intermediates(x, self.out_indices, intermediates_only=True)
        return self.forward_head(self.forward_features(x))

    def select_features(self, out_indices: int | Sequence[int] | None) -> None:
        """Makes a call return feature maps, chosen as in `forward_intermediates`; layers behind them are removed."""
        self.out_indices = taken_indices(out_indices)
        self.remove_after(self.out_indices[-1])
        self.reset_classifier(0)

    def remove_after(self, index: int) -> None:
        """Removes the layers behind the map C<index + 1>."""
        raise NotImplementedError

    def get_classifier(self) -> nn.Module:
        """The layer that computes the logits from the pooled features."""
        raise NotImplementedError

    def set_classifier(self, layer: nn.Module) -> None:
        """Replaces it."""
        raise NotImplementedError

    def reset_classifier(self, num_classes: int) -> None:
        """Gives the network a classifier with weights as at first, or none for 0 classes."""
        self.num_classes = num_classes
        parameter = next(self.parameters())
        layer = head(self.num_features, num_classes, device=parameter.device, dtype=parameter.dtype)
        init_weights(layer)
        self.set_classifier(layer)


def taken_indices(indices: int | Sequence[int] | None) -> tuple[int, ...]:
    """The sorted indices, 0 to 4, of the maps that `indices` names; see `Network.forward_intermediates`.

    Raises:
        ValueError: there is no such map.
    """
    chosen = range(-5 if indices is None else -indices, 0) if indices is None or isinstance(indices, int) else indices
    if not chosen or min(chosen) < -5 or max(chosen) > 4:
        raise ValueError(f"the feature maps C1 to C5 have the indices 0 to 4, or -5 to -1: {indices!r} names no map")
    return tuple(sorted({index % 5 for index in chosen}))


def dilated(strides: Sequence[int], *, start: int, output_stride: int) -> list[tuple[int, tuple[int, int]]]:
    """The strides of stages, with dilations in place of those that would exceed `output_stride`.

    Args:
        strides: stride of each stage, which its first block has.
        start: stride of the map before them.
        output_stride: 8, 16 or 32.

    Returns:
        For each stage its stride, and the dilations of the convolution that has it and of the later ones.

    Raises:
        ValueError: `output_stride` is another number.
    """
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride must be 8, 16 or 32, not {output_stride!r}")
    stages, reached, dilation = [], start, 1
    for stride in strides:
        before = dilation
        if reached * stride > output_stride:
            stride, dilation = 1, dilation * stride
        reached *= stride
        stages.append((stride, (before, dilation)))
    return stages


def drop_path_rates(last: float, blocks: int) -> list[float]:
    """The rates of stochastic depth, from 0 at the first block to `last` at the last one.

    Raises:
        ValueError: `last` is not from 0 to below 1.
    """
    last = fraction(last, name="drop_path")
    return [last * index / max(blocks - 1, 1) for index in range(blocks)]


def conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    **options: Any,
) -> nn.Conv2d:
    """A square convolution without bias, padded on every side by half of its extent."""
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=dilation * (kernel_size // 2),
        dilation=dilation,
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


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): sets maps of whole images to zero in training."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return x * F.dropout(x.new_ones(len(x), 1, 1, 1), self.rate, self.training)


def stochastic_depth(rate: float) -> DropPath | None:
    """A DropPath, or None at rate 0."""
    return DropPath(rate) if rate else None


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


def fits_timm(kind: Kind) -> Kind:
    """Makes a class of attention modules take `act_layer`, which timm's blocks pass to theirs; it is not used."""
    build: Any = kind.__init__

    @functools.wraps(build)
    def build_without(self: nn.Module, *args: Any, act_layer: Any = None, **options: Any) -> None:
        build(self, *args, **options)

    kind.__init__ = build_without  # type: ignore[method-assign]
    return kind


def whole_number(value: Any, *, name: str, least: int) -> int:
    """`value` as an int; a ValueError if it is not whole or below `least`."""
    if not is_whole(value) or value < least:
        raise ValueError(f"a whole number of at least {least} is needed, got {name}={value!r}")
    return int(value)


def fraction(value: Any, *, name: str) -> float:
    """`value` as a float; a ValueError if it is no number from 0 to below 1."""
    if not is_real(value) or not 0 <= value < 1:
        raise ValueError(f"{name} must be from 0 to below 1, not {value!r}")
    return float(value)


def is_real(value: Any) -> bool:
    """Whether a value is a number, of Python or of NumPy; True is none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Whether a value is an integer, of Python or of NumPy; True and 64.0 are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
