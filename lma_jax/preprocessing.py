"""What turns an image file into a network's input: sizes, mean and standard deviation.

It imports no decoder, and JAX only to normalise.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax


@dataclass(frozen=True)
class Preprocessing:
    """What turns an image file into a network's input.

    Attributes:
        image_size: side of the network's square input, in pixels.
        resize_size: the shorter side is resized to this before the centre crop of evaluation.
        mean, std: of the three channels, on the scale 0 to 1.

    Raises:
        ValueError: a size is no whole number from 1 to LARGEST_SIZE, or mean and std are not three finite numbers,
            those of std positive.
    """

    image_size: int
    resize_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        for name in ("image_size", "resize_size"):
            size = getattr(self, name)
            if type(size) is not int or not 1 <= size <= LARGEST_SIZE:
                raise ValueError(f"{name} must be a whole number from 1 to {LARGEST_SIZE:,}, got {size!r:.40}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            is_finite = [type(value) in (int, float) and abs(value) < math.inf for value in values]
            if is_finite != [True] * 3 or (name == "std" and min(values) <= 0):
                kind = "positive" if name == "std" else "finite"
                raise ValueError(f"{name} must be three {kind} numbers, got {str(values)[:80]}")


# Of an image's side: beyond it, a batch does not fit into any memory.
LARGEST_SIZE = 10_000


IMAGENET = Preprocessing(image_size=224, resize_size=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def preprocessing_from(values: Mapping[str, Any]) -> Preprocessing:
    """The Preprocessing among `values`, such as a training config or the metadata of an export.

    Raises:
        KeyError: a value is missing.
        ValueError: a value is impossible.
    """
    sizes = {name: values[name] for name in ("image_size", "resize_size")}
    lists = {name: values[name] for name in ("mean", "std")}
    for name, value in lists.items():
        if not isinstance(value, Sequence) or len(value) != 3:
            raise ValueError(f"{name} must be three numbers, got {value!r:.80}")
    options: dict[str, Any] = {**sizes, **{name: tuple(value) for name, value in lists.items()}}
    return Preprocessing(**options)


def normalize(images: "jax.Array", preprocessing: Preprocessing) -> "jax.Array":
    """Subtracts the mean of each channel and divides by its standard deviation.

    Args:
        images: (N, H, W, 3) uint8.
        preprocessing: mean and standard deviation.

    Returns:
        (N, H, W, 3) float32, or float64 with jax_enable_x64.
    """
    import jax.numpy as jnp

    mean, std = jnp.asarray(preprocessing.mean), jnp.asarray(preprocessing.std)
    return (images / jnp.asarray(255.0) - mean) / std
