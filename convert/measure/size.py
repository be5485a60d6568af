"""The size of a network: parameters and multiply-accumulates."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lma_jax.checkpoint.format import Metadata
from lma_jax.flops import count_macs
from lma_jax.registry import create_model


def size_of(metadata: Metadata) -> tuple[int, int]:
    """The parameters of a checkpoint's network, and its multiply-accumulates for an image of the evaluation's size."""
    side = metadata.preprocessing.image_size
    options: dict[str, Any] = dict(num_classes=metadata.num_classes, **metadata.model_options)
    model = nnx.eval_shape(lambda: create_model(metadata.model, rngs=nnx.Rngs(0), **options))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    return parameters, count_macs(model, jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))
