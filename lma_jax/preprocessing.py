"""What turns an image file into a network's input: sizes, mean and standard deviation. It imports no decoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Preprocessing:
    """What turns an image file into a network's input.

    Attributes:
        image_size: side of the network's square input, in pixels.
        resize_size: the shorter side is resized to this before the centre crop of evaluation.
        mean, std: of the three channels, on the scale 0 to 1.
    """

    image_size: int
    resize_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Preprocessing(image_size=224, resize_size=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def preprocessing_from(values: Mapping[str, Any]) -> Preprocessing:
    """The Preprocessing among `values`, such as a training config or the metadata of an export.

    Raises:
        KeyError: a value is missing.
    """
    return Preprocessing(
        image_size=values["image_size"],
        resize_size=values["resize_size"],
        mean=tuple(values["mean"]),
        std=tuple(values["std"]),
    )


def normalize(images: jax.Array, preprocessing: Preprocessing) -> jax.Array:
    """Subtracts the mean of each channel and divides by its standard deviation.

    Args:
        images: (N, H, W, 3) uint8.
        preprocessing: mean and standard deviation.

    Returns:
        (N, H, W, 3) float32, or float64 with jax_enable_x64.
    """
    mean, std = jnp.asarray(preprocessing.mean), jnp.asarray(preprocessing.std)
    return (images / jnp.asarray(255.0) - mean) / std
