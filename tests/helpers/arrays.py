"""Arrays of the tests: draws, layouts and differences."""

import jax
import jax.numpy as jnp
import numpy as np
import torch


def relative_error(actual, expected, *, scale: float = 0.0) -> float:
    """The largest difference, relative to the largest expected value (or to `scale` where that is larger)."""
    actual, expected = (np.asarray(a.detach() if isinstance(a, torch.Tensor) else a) for a in (actual, expected))
    assert actual.shape == expected.shape
    scale = max(scale, np.abs(expected).max(initial=0))
    return float(np.abs(actual - expected).max(initial=0) / (scale or 1))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal values in float64, drawn as the golden inputs are."""
    return np.random.default_rng([seed, 12345]).normal(size=shape)


def to_nhwc(array) -> jax.Array:
    return jnp.asarray(np.moveaxis(np.asarray(array), 1, -1))


def to_nchw(array) -> np.ndarray:
    return np.moveaxis(np.asarray(array), -1, 1)
