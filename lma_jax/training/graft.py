"""A plain network with LMA grafted on, computing the same function.

With kernels of zero, LMA is exactly y = x / 4. The layer beside it takes the factor 4: in a ResNet the BatchNorm
before it, in MobileNetV2 the convolution after it. Factors of 4 are exact in binary arithmetic.
"""

import itertools
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lma_jax.layers import Sequential
from lma_jax.lma import LMA
from lma_jax.resnet import Bottleneck

Model = TypeVar("Model", bound=nnx.Module)


def graft_lma(plain: nnx.Module, network: Model) -> Model:
    """Gives an LMA network the weights and statistics of the plain network, scaled so that both compute the same.

    Args:
        plain: network without LMA.
        network: the same backbone with LMA; its variables may hold shapes alone (`nnx.eval_shape`).

    Returns:
        `network`.

    Raises:
        ValueError: the two are not of one backbone.
    """
    _copy_variables(plain, network)
    module: Any
    for _, module in list(nnx.iter_modules(network)):
        if isinstance(module, LMA):
            for conv in (module.conv_h, module.conv_w):
                conv.kernel.set_value(jnp.zeros(conv.kernel.shape, conv.kernel.dtype))
        elif isinstance(module, Sequential):
            for layer, following in itertools.pairwise(module):
                if isinstance(layer, LMA):
                    _multiply(following.kernel)
        elif isinstance(getattr(module, "attention", None), LMA):
            norm = module.bn3 if isinstance(module, Bottleneck) else module.bn2
            _multiply(norm.scale)
            _multiply(norm.bias)
    return network


def _copy_variables(plain: nnx.Module, network: nnx.Module) -> None:
    """Copies all variables, module by module, past the LMA layers of `network`."""
    for source, target in zip(_layers(plain), _layers(network), strict=True):
        for name, variable in vars(source).items():
            if isinstance(variable, nnx.Param | nnx.BatchStat):
                copy = getattr(target, name)
                copy.set_value(jax.device_put(np.array(variable[...], copy.dtype)))


def _layers(module: nnx.Module) -> Iterator[nnx.Module]:
    """The module and all modules below it, without LMA layers."""
    yield module
    members = list(module) if isinstance(module, Sequential) else [value for _, value in sorted(vars(module).items())]
    for member in members:
        if isinstance(member, nnx.Module) and not isinstance(member, LMA):
            yield from _layers(member)


def _multiply(variable: nnx.Variable) -> None:
    variable.set_value(4 * variable[...])
