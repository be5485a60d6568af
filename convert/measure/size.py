"""The size of a network: parameters and multiply-accumulates."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lma_jax.checkpoint.format import Metadata
from lma_jax.flops import count_macs
from lma_jax.registry import create_model


def size_of(metadata: Metadata) -> tuple[int, int]:
    """The parameters of a checkpoint's network, and its multiply-accumulates for an image of the evaluation's size.

    Raises:
        ValueError, TypeError: the network has options that are impossible.
    """
    options = metadata.model_options
    return _size(metadata.model, metadata.num_classes, metadata.preprocessing.image_size, **options)


@functools.cache
def _size(name: str, num_classes: int, side: int, **options: Any) -> tuple[int, int]:
    model = nnx.eval_shape(lambda: create_model(name, num_classes=num_classes, rngs=nnx.Rngs(0), **options))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    return parameters, count_macs(model, jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))
