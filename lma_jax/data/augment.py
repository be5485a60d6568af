"""RandAugment (Cubuk et al., NeurIPS 2020) in the form of "ResNet strikes back" (Wightman et al. 2021).

Two operations are drawn with replacement, and each is applied with probability 1/2. Its magnitude is drawn from
N(magnitude, 0.5) on a scale of 0 to 10, and its sign at random. No operation weakens as the magnitude grows: these are
the "increasing" variants of posterize, solarize and the enhancements.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

OPERATIONS_PER_IMAGE = 2
PROBABILITY = 0.5
MAGNITUDE_STD = 0.5
MAX_MAGNITUDE = 10.0
FILL = (124, 116, 104)  # ImageNet's mean colour; it fills the area that an operation moves the image out of

# An operation on an image at a level: the magnitude on a scale of 0 to 1, negative in the other of two directions.
Operation = Callable[[Image.Image, float], Image.Image]


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=FILL)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, level: kind(image).enhance(max(0.1, 1 + 0.9 * level))


def _solarize_add(image: Image.Image, level: float) -> Image.Image:
    """Adds up to 110 grey levels to the values below 128."""
    added = min(128, int(110 * level))
    return image.point([min(255, value + added) if value < 128 else value for value in range(256)] * 3)


ONE_WAY: dict[str, Operation] = {
    "autocontrast": lambda image, level: ImageOps.autocontrast(image),
    "equalize": lambda image, level: ImageOps.equalize(image),
    "invert": lambda image, level: ImageOps.invert(image),
    "posterize": lambda image, level: ImageOps.posterize(image, max(1, 4 - int(4 * level))),
    "solarize": lambda image, level: ImageOps.solarize(image, min(256, 256 - int(256 * level))),
    "solarize_add": _solarize_add,
}
TWO_WAY: dict[str, Operation] = {
    "rotate": lambda image, level: image.rotate(30 * level, Image.Resampling.BILINEAR, fillcolor=FILL),
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": lambda image, level: _affine(image, (1, 0.3 * level, 0, 0, 1, 0)),
    "shear_y": lambda image, level: _affine(image, (1, 0, 0, 0.3 * level, 1, 0)),
    "translate_x": lambda image, level: _affine(image, (1, 0, 0.45 * level * image.width, 0, 1, 0)),
    "translate_y": lambda image, level: _affine(image, (1, 0, 0, 0, 1, 0.45 * level * image.height)),
}
OPERATIONS = {**ONE_WAY, **TWO_WAY}


def rand_augment(image: Image.Image, rng: np.random.Generator, *, magnitude: float) -> Image.Image:
    """Applies RandAugment to an RGB image, at a `magnitude` of 0 to 10."""
    for name in rng.choice(list(OPERATIONS), OPERATIONS_PER_IMAGE):
        if rng.random() < PROBABILITY:
            level = float(np.clip(rng.normal(magnitude, MAGNITUDE_STD), 0, MAX_MAGNITUDE)) / MAX_MAGNITUDE
            sign = rng.choice((-1, 1)) if name in TWO_WAY else 1
            image = OPERATIONS[name](image, sign * level)
    return image
