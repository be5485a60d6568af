"""Multiply-accumulates of a function, counted in its jaxpr."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def count_macs(function: Callable[..., Any], *arguments: Any) -> int:
    """Multiply-accumulates of all convolutions and matrix products in a call, padding taps included.

    Args:
        function: a function of arrays; nothing is computed.
        arguments: arrays or their shapes (jax.ShapeDtypeStruct).
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> int:
    output = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out_channels = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return output * math.prod(kernel) // out_channels
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return output * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    inner = [value for value in equation.params.values() if isinstance(value, ClosedJaxpr | Jaxpr)]
    repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
    return repeats * sum(_count(value.jaxpr if isinstance(value, ClosedJaxpr) else value) for value in inner)
