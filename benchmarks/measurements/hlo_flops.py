"""The floating-point operations of convolutions and matrix products in a program compiled by XLA."""

import math
import re
from collections.abc import Sequence

_SIZES = re.compile(r"\w+\[([\d,]*)\]")
# cuDNN's gradients keep the attributes of the forward convolution: which of (input, kernel, output) the two operands
# (0 and 1) and the result (2) are.
_ROLES = {"convBackwardInput": (2, 1, 0), "convBackwardFilter": (0, 2, 1)}


def flops_of(opcode: str, text: str, operands: Sequence[str], result: str) -> int:
    """Two for each multiply-accumulate of an instruction, as XLA counts: products with padding do not count.

    Args:
        opcode: its operation; only convolutions and matrix products have any.
        text: its attributes.
        operands: the shapes of its operands.
        result: the shape of its result; the first one of a tuple counts.
    """
    if opcode == "convolution" or (opcode == "custom-call" and '"__cudnn$conv' in text):
        return _convolution(text, [*operands[:2], result])
    if opcode == "dot" or (opcode == "custom-call" and '"__cublas$' in text):
        contracted = re.search(r"lhs_contracting_dim(?:ension)?s\"?[=:][\[{]([\d,\"]*)", text)
        axes = re.findall(r"\d+", contracted[1]) if contracted else []
        lhs = _sizes(operands[0])
        return 2 * math.prod(_sizes(result)) * math.prod(lhs[int(axis)] for axis in axes)
    return 0


def _convolution(text: str, shapes: Sequence[str]) -> int:
    """An output value takes a product for each input channel of its group and each tap of the kernel on the input."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", text)
    assert labels, f"a convolution without dim_labels: {text}"
    roles = next((roles for name, roles in _ROLES.items() if f"${name}" in text), (0, 1, 2))
    x, kernel, y = (dict(zip(names, _sizes(shapes[role]))) for names, role in zip(labels.groups(), roles))
    window = re.search(r"window=\{([^}]*)\}", text)
    taps = 1
    for number, axis in enumerate(sorted(name for name in y if name.isdigit())):
        taps *= _taps(x[axis], kernel[axis], y[axis], _along(window[1] if window else "", number))
    return 2 * y["b"] * y["f"] * kernel["i"] * taps


def _along(window: str, axis: int) -> dict[str, int]:
    """Stride, low padding and dilations of a window along one axis."""
    found = {name: values.split("x")[axis] for name, values in re.findall(r"(\w+)=(\S+)", window)}
    return {name: int(value.split("_")[0]) for name, value in found.items()}


def _taps(x: int, kernel: int, y: int, window: dict[str, int]) -> int:
    """The pairs of an output value and a tap of the kernel that lies on an input value, along one axis."""
    stride, pad = window.get("stride", 1), window.get("pad", 0)
    spread, step = window.get("lhs_dilate", 1), window.get("rhs_dilate", 1)
    places = (value * stride + tap * step - pad for value in range(y) for tap in range(kernel))
    return sum(0 <= place < x * spread and place % spread == 0 for place in places)


def _sizes(shape: str) -> list[int]:
    found = _SIZES.search(shape)
    return [int(size) for size in found[1].split(",") if size] if found else []
