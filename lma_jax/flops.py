"""Multiply-accumulates of a function, or of every layer of a network, counted in the jaxpr."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import jax
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr

from lma_jax.lma import LMA


def count_macs(function: Callable[..., Any], *arguments: Any) -> int:
    """Multiply-accumulates of all convolutions and matrix products in a call, padding taps included.

    A scan counts as often as it runs, a cond as its dearest branch, and a while loop, whose length is unknown, once.

    Args:
        function: a function of arrays; nothing is computed.
        arguments: arrays or their shapes (jax.ShapeDtypeStruct).
    """
    return sum(macs for _, macs in _walk(jax.make_jaxpr(function)(*arguments).jaxpr))


def macs_by_layer(model: nnx.Module, *inputs: Any) -> dict[str, int]:
    """Multiply-accumulates of every layer in a call in evaluation mode, by its dotted path ("" is the network itself).

    Counted as in `count_macs`, hence without biases, and for the innermost layer in whose call they stand; layers
    without any are left out. LMA counts as published, its correlations being convolutions, and hosts' convolutions
    count their whole kernel on a map of one pixel too: so `lma_torch.flops.macs_by_layer` gives the same.

    Args:
        model: any network, with values or with shapes (nnx.eval_shape) in its variables; it is left as it is.
        inputs: arrays or their shapes (jax.ShapeDtypeStruct).
    """
    graphdef, state = nnx.split(model)

    def forward(state: nnx.State, *inputs: Any) -> Any:
        model = nnx.merge(graphdef, state)
        model.eval()
        for path, module in list(nnx.iter_modules(model)):
            if callable(module):
                vars(module)["_scope"] = SCOPE + ".".join(map(str, path))
                module.__class__ = _scoped(type(module))
        return model(*inputs)

    macs: Counter[str] = Counter()
    for scopes, number in _walk(jax.make_jaxpr(forward)(state, *inputs).jaxpr):
        macs[next((scope[1:] for scope in reversed(scopes) if scope.startswith(SCOPE)), "")] += number
    return {layer: number for layer, number in macs.items() if number}


# Marks the name scopes of layers among those of the user.
SCOPE = "@"


def _lma_as_published(layer: LMA, x: jax.Array) -> jax.Array:
    """LMA's function, with the correlations of its profiles as the convolutions that hold their taps."""
    gate_h = jax.nn.sigmoid(layer.conv_h(x.mean(-2)[..., None])[..., 0])
    gate_w = jax.nn.sigmoid(layer.conv_w(x.mean(-3)[..., None])[..., 0])
    return x * gate_w[..., None, :, :] * gate_h[..., :, None, :]


def _conv_as_published(layer: nnx.Conv, x: jax.Array) -> jax.Array:
    """The whole convolution, also where a host computes it in a shorter form."""
    layer.conv_general_dilated = jax.lax.conv_general_dilated
    return nnx.Conv.__call__(layer, x)


# What is traced in place of a layer's own call.
COUNTED_AS: dict[type, Callable[..., Any]] = {LMA: _lma_as_published, nnx.Conv: _conv_as_published}


@cache
def _scoped(kind: Any) -> type:
    """`kind` with a name scope around its calls, by which the jaxpr tells the layer of an equation."""
    call = COUNTED_AS.get(kind, kind.__call__)

    def scoped_call(self: Any, *arguments: Any, **options: Any) -> Any:
        with jax.named_scope(self._scope):
            return call(self, *arguments, **options)

    return type(kind.__name__, (kind,), {"__call__": scoped_call})


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
