"""What a batch is: the one specification that the loader, the training step and the benchmarks share.

image    (N, size, size, 3) uint8    RGB pixels; the device normalises them
label    (N,) int32                  class
mask     (N,) bool                   False for a blank that only fills up the batch
skipped  (N,) int32                  undecodable files that were skipped to reach this example
"""

from typing import Any

import jax
import numpy as np

Batch = dict[str, Any]


def batch_spec(batch_size: int, image_size: int, *, sharding: Any = None) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch of `batch_size` images with sides of `image_size` pixels."""
    fields = {
        "image": ((image_size, image_size, 3), np.uint8),
        "label": ((), np.int32),
        "mask": ((), np.bool_),
        "skipped": ((), np.int32),
    }
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in fields.items()
    }


def blank_example(image_size: int) -> Batch:
    """The element of a batch that stands for no example: black, and masked out."""
    return {name: np.zeros(spec.shape[1:], spec.dtype) for name, spec in batch_spec(1, image_size).items()}


def random_batch(batch_size: int, image_size: int, *, num_classes: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of random pixels and labels, none of them masked out."""
    rng = np.random.default_rng(seed)
    values = {
        "image": rng.integers(0, 256, (batch_size, image_size, image_size, 3), np.uint8),
        "label": rng.integers(0, num_classes, batch_size, np.int32),
        "mask": np.ones(batch_size, np.bool_),
        "skipped": np.zeros(batch_size, np.int32),
    }
    assert {name: (value.shape, value.dtype) for name, value in values.items()} == {
        name: (spec.shape, spec.dtype) for name, spec in batch_spec(batch_size, image_size).items()
    }
    return values
