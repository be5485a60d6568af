"""The attention modules by name. Each is a constructor called as `attention(channels, dtype=, param_dtype=, rngs=)`."""

from collections.abc import Callable

from flax import nnx

from lma_jax.lma import LMA

Attention = Callable[..., nnx.Module]

ATTENTIONS: dict[str, Attention] = {"lma": LMA}
