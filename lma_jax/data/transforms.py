"""Pixels as in torchvision's reference recipe, by Pillow: encoded bytes in, (size, size, 3) uint8 out."""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

CROP_RATIO = (3 / 4, 4 / 3)

Box = tuple[int, int, int, int]


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


def decode(encoded: bytes) -> Image.Image:
    """Decodes an image file to RGB; EXIF orientation is ignored, as in the reference recipe."""
    return Image.open(io.BytesIO(encoded)).convert("RGB")


def random_crop_box(width: int, height: int, rng: np.random.Generator, *, scale: tuple[float, float]) -> Box:
    """The crop of torchvision's RandomResizedCrop: (left, top, right, bottom).

    Its area is uniform in `scale` times the image's and its aspect ratio log-uniform in [3/4, 4/3]; after ten
    boxes that do not fit, the largest centred one of an allowed ratio.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w = min(width, round(height * CROP_RATIO[1]))
    h = min(height, round(width / CROP_RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def train_image(
    encoded: bytes, rng: np.random.Generator, *, image_size: int, crop_scale: tuple[float, float], flip: bool
) -> np.ndarray:
    """Random crop, bilinear resize with antialiasing and, if `flip`, a horizontal flip half of the time."""
    image = decode(encoded)
    box = random_crop_box(*image.size, rng, scale=crop_scale)
    image = image.crop(box).resize((image_size, image_size), Image.Resampling.BILINEAR)
    if flip and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def eval_image(encoded: bytes, preprocessing: Preprocessing) -> np.ndarray:
    """Resizes the shorter side to `resize_size`, then crops the central square of `image_size`."""
    image = decode(encoded)
    shorter = min(image.size)
    width, height = (int(preprocessing.resize_size * side / shorter) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    size = preprocessing.image_size
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def preprocessing_from(values: Mapping[str, Any]) -> Preprocessing:
    """The Preprocessing among `values`, such as a training config or a checkpoint's metadata."""
    return Preprocessing(
        image_size=values["image_size"],
        resize_size=values["resize_size"],
        mean=tuple(values["mean"]),
        std=tuple(values["std"]),
    )
