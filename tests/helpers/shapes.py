"""Networks of shapes without values, quick to build in both frameworks."""

from functools import cache
from unittest import mock

from flax import nnx

import lma_jax
import lma_torch
from lma_torch.layers import Network


def backbone_options(name: str) -> dict:
    """Options that take the randomness out of training mode."""
    return {"dropout": 0.0} if name.startswith("mobilenetv2") else {}


def narrow_options(name: str) -> dict:
    """Options that make a network a hundred times smaller and keep its depth and its blocks, without randomness."""
    width = {"width_mult": 0.1} if name.startswith("mobilenetv2") else {"width": 8}
    return {**width, **backbone_options(name)}


@cache
def _traced_model(name: str, options: tuple) -> nnx.Module:
    # Shapes need no new key each time, and counting keys while tracing is quadratic in the depth.
    with mock.patch.object(nnx.RngStream, "__call__", lambda stream: stream.key[...]):
        return nnx.eval_shape(lambda: lma_jax.create_model(name, rngs=nnx.Rngs(0), **dict(options)))


def jax_shapes(name: str, **options) -> nnx.Module:
    """A lma_jax network of shapes without values (the counterpart of PyTorch's meta device), quick to build."""
    return nnx.clone(_traced_model(name, tuple(options.items())))


def torch_shapes(name: str, **options) -> Network:
    """A lma_torch network on the meta device."""
    return lma_torch.create_model(name, device="meta", **options)
