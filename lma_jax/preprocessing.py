"""What turns an image file into a network's input: sizes, mean and standard deviation. No decoder is imported."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Preprocessing:
    """What turns an image file into a network's input; it travels with every checkpoint.

    Attributes:
        image_size: side of the network's square input, in pixels.
        resize_size: the shorter side is resized to this before the centre crop of evaluation.
        mean, std: of the three channels, on the scale 0 to 1.
    """

    image_size: int
    resize_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def preprocessing_from(values: Mapping[str, Any]) -> Preprocessing:
    """The Preprocessing among `values`, such as a training config or a checkpoint's metadata."""
    return Preprocessing(
        image_size=values["image_size"],
        resize_size=values["resize_size"],
        mean=tuple(values["mean"]),
        std=tuple(values["std"]),
    )


def normalize(images: jax.Array, preprocessing: "Preprocessing") -> jax.Array:
    """uint8 (N, H, W, 3) -> float32, or float64 where JAX has it, without the data set's mean and deviation."""
    mean, std = jnp.asarray(preprocessing.mean), jnp.asarray(preprocessing.std)
    return (images / jnp.asarray(255.0) - mean) / std
