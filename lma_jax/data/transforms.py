"""Pixels as in torchvision's reference recipe: encoded bytes in, (size, size, 3) uint8 out."""

import io
import math
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from cykooz_resizer import FilterType, ResizeAlg, ResizeOptions, Resizer
from PIL import Image

from lma_jax.data.augment import rand_augment
from lma_jax.data.regions import decode_region

CROP_RATIO = (3 / 4, 4 / 3)
# A file of a few kilobytes can claim gigabytes of pixels. ImageNet's largest image has 25 million.
MAX_PIXELS = 90_000_000
# Pillow keeps the memory of so many images for the next ones: asking the system for it each time costs 5 %.
Image.core.set_blocks_max(8)

Box = tuple[int, int, int, int]


class BadImageError(Exception):
    """A file that holds no whole image."""


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


@dataclass(frozen=True)
class Augmentation:
    """What turns an image file into a training image.

    Attributes:
        image_size: side of the training image, in pixels.
        crop_scale: bounds of the random crop's area, as fractions of the image's.
        flip: whether half of the images are mirrored.
        rand_augment: magnitude of RandAugment, 0 to 10; 0 is off.
    """

    image_size: int
    crop_scale: tuple[float, float]
    flip: bool
    rand_augment: float


def decode(encoded: bytes, box: Box | None = None) -> Image.Image:
    """Decodes an image file, or `box` of it, to RGB; EXIF orientation is ignored, as in the reference recipe.

    JPEGs go through libjpeg-turbo directly; what it refuses (other formats, CMYK, errors) goes through Pillow.

    Raises:
        BadImageError: the file is truncated, no image, or above MAX_PIXELS.
    """
    if simplejpeg.is_jpeg(encoded):
        try:
            return _decode_jpeg(encoded, box)
        except ValueError:
            pass
    image = _decode_by_pillow(encoded)
    return image if box is None else image.crop(box)


def _decode_jpeg(encoded: bytes, box: Box | None) -> Image.Image:
    height, width, colors, _ = simplejpeg.decode_jpeg_header(encoded)
    _require_size(width, height)
    if box is None:
        return Image.fromarray(simplejpeg.decode_jpeg(encoded, "RGB"))
    part = decode_region(encoded, box) if colors == "YCbCr" else None
    if part is None:
        left, top, right, bottom = box
        part = Image.fromarray(simplejpeg.decode_jpeg(encoded, "RGB")[top:bottom, left:right])
    return part


def _decode_by_pillow(encoded: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata, and the size, which is checked here
            image = Image.open(io.BytesIO(encoded))
            _require_size(*image.size)
            if image.mode.startswith("I;16"):  # Pillow would clip 16 bits at 255
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadImageError(str(error)) from error


def _require_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImageError(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")


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
    w = max(1, min(width, round(height * CROP_RATIO[1])))
    h = max(1, min(height, round(width / CROP_RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def train_image(encoded: bytes, rng: np.random.Generator, augmentation: Augmentation) -> np.ndarray:
    """Random crop, bilinear resize with antialiasing, horizontal flip, RandAugment; the last two where asked for.

    Raises:
        BadImageError: see `decode`.
    """
    image = _resize(_random_crop(encoded, rng, augmentation.crop_scale), augmentation.image_size)
    if augmentation.flip and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augmentation.rand_augment:
        image = rand_augment(image, rng, magnitude=augmentation.rand_augment)
    return np.asarray(image)


def _random_crop(encoded: bytes, rng: np.random.Generator, scale: tuple[float, float]) -> Image.Image:
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        image = decode(encoded)
        return image.crop(random_crop_box(*image.size, rng, scale=scale))
    return decode(encoded, random_crop_box(width, height, rng, scale=scale))


class _Resizers(threading.local):
    """One for each thread, since it is locked while it works."""

    def __init__(self) -> None:
        self.resizer = Resizer()


_resizers = _Resizers()
BILINEAR = ResizeOptions(ResizeAlg.convolution(FilterType.bilinear))


def _resize(image: Image.Image, size: int) -> Image.Image:
    """Pillow's bilinear resize with antialiasing to `size` x `size`, five times as fast.

    Both round to eight bits after each of two passes, in the order that Pillow 13 picks by cost. This one's weights
    have 16 bits, Pillow's 22: of 1,000 values, 3 differ, by one grey level. No processor changes them.
    """
    width, height = image.size
    tall = height > max(size, 2 * width - size)
    for shape in ((width, size) if tall else (size, height)), (size, size):
        if image.size != shape:
            resized = Image.new("RGB", shape, None)
            _resizers.resizer.resize_pil(image, resized, BILINEAR)
            image = resized
    return image


def eval_image(encoded: bytes, preprocessing: Preprocessing) -> np.ndarray:
    """Resizes the shorter side to `resize_size`, then crops the central square of `image_size`.

    Only the pixels of the square are computed, which may differ by one grey level from those of the whole image.

    Raises:
        BadImageError: see `decode`.
    """
    image = decode(encoded)
    size, shorter = preprocessing.image_size, min(image.size)
    box = []
    for side in image.size:
        resized = int(preprocessing.resize_size * side / shorter)
        start = round((resized - size) / 2)
        box.append((start * side / resized, (start + size) * side / resized))
    (left, right), (top, bottom) = box
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, right, bottom)))


def preprocessing_from(values: Mapping[str, Any]) -> Preprocessing:
    """The Preprocessing among `values`, such as a training config or a checkpoint's metadata."""
    return Preprocessing(
        image_size=values["image_size"],
        resize_size=values["resize_size"],
        mean=tuple(values["mean"]),
        std=tuple(values["std"]),
    )


def augmentation_from(values: Mapping[str, Any]) -> Augmentation:
    """The Augmentation among the `values` of a training config."""
    return Augmentation(
        image_size=values["train_image_size"],
        crop_scale=tuple(values["crop_scale"]),
        flip=values["flip"],
        rand_augment=values["rand_augment"],
    )
