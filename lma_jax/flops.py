"""Multiply-accumulates of a network or of each of its layers, counted in the operations that it calls."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr

from lma_jax.intercept import intercept
from lma_jax.lma import LMA


def count_macs(model: nnx.Module, *inputs: Any) -> int:
    """The sum of `macs_by_layer`: the multiply-accumulates of a call in evaluation mode."""
    return sum(macs_by_layer(model, *inputs).values())


def macs_by_layer(model: nnx.Module, *inputs: Any) -> dict[str, int]:
    """Multiply-accumulates of every layer in a call in evaluation mode, by its dotted path ("" is the network itself).

    Convolutions, padding included, and matrix products count, in functional form too, and biases do not. Each belongs
    to the innermost layer whose call contains it; a layer without any is left out. LMA counts as published: its
    correlations are convolutions. A scan counts as often as it runs, a cond as its most expensive branch, and a while
    loop, whose length is unknown, once. `lma_torch.flops.macs_by_layer` gives the same.

    Args:
        model: any network, with values or with shapes (nnx.eval_shape) in its variables; it is left as it is.
        inputs: arrays or their shapes (jax.ShapeDtypeStruct). Nothing is computed.
    """
    graphdef, state = nnx.split(model)

    def forward(state: nnx.State, *inputs: Any) -> Any:
        model = nnx.merge(graphdef, state)
        model.eval()
        return intercept(model, _call_in_scope)(*inputs)

    macs: Counter[str] = Counter()
    for scopes, number in _walk(jax.make_jaxpr(forward)(state, *inputs).jaxpr):
        macs[next((scope[1:] for scope in reversed(scopes) if scope.startswith(SCOPE)), "")] += number
    return {layer: number for layer, number in macs.items() if number}


# Marks the name scopes of layers among those of the user.
SCOPE = "@"


def _call_in_scope(path: str, module: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls a layer, as published, in a name scope by which the jaxpr tells the layer of an equation."""
    with jax.named_scope(SCOPE + path):
        if isinstance(module, LMA):
            return lma_as_published(module, *args)
        if isinstance(module, nnx.Conv):
            module.conv_general_dilated = jax.lax.conv_general_dilated  # not the cheaper forms of convolution.py
        return call(*args, **kwargs)


def lma_as_published(layer: Any, x: jax.Array) -> jax.Array:
    """LMA's function by calls of its two convolutions; slower than `layer(x)`."""
    gate_h = jax.nn.sigmoid(layer.conv_h(x.mean(-2)[..., None])[..., 0])
    gate_w = jax.nn.sigmoid(layer.conv_w(x.mean(-3)[..., None])[..., 0])
    return x * gate_w[..., None, :, :] * gate_h[..., :, None, :]


def _walk(jaxpr: Jaxpr, outer: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """The multiply-accumulates of every equation, with the name scopes around it."""
    for equation in jaxpr.eqns:
        scopes = (*outer, *str(equation.source_info.name_stack).split("/"))
        yield scopes, _own_macs(equation)
        repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in _inner_jaxprs(equation):
            for inner_scopes, macs in _walk(inner, scopes):
                yield inner_scopes, repeats * macs


def _inner_jaxprs(equation: Any) -> list[Jaxpr]:
    inner = [value for value in equation.params.values() if isinstance(value, ClosedJaxpr | Jaxpr)]
    if equation.primitive.name == "cond":
        branches = (branch.jaxpr for branch in equation.params["branches"])
        inner = [max(branches, key=lambda branch: sum(macs for _, macs in _walk(branch)))]
    return [value.jaxpr if isinstance(value, ClosedJaxpr) else value for value in inner]


def _own_macs(equation: Any) -> int:
    output = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out_channels = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return output * math.prod(kernel) // out_channels
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return output * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return 0
