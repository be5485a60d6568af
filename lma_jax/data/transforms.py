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
from cykooz_resizer import FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer
from PIL import Image

from lma_jax.data.augment import rand_augment
from lma_jax.data.regions import decode_region

CROP_RATIO = (3 / 4, 4 / 3)
# A file of a few kilobytes can claim gigabytes of pixels. ImageNet's largest image has 25 million.
MAX_PIXELS = 90_000_000

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


def decode(encoded: bytes) -> Image.Image:
    """Decodes an image file to RGB; EXIF orientation is ignored, as in the reference recipe.

    JPEGs go through libjpeg-turbo directly; what it refuses (other formats, CMYK, errors) goes through Pillow.

    Raises:
        BadImageError: the file is truncated, no image, or above MAX_PIXELS.
    """
    return Image.fromarray(_decode(encoded))


def _decode(encoded: bytes) -> np.ndarray:
    if simplejpeg.is_jpeg(encoded):
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
            _require_size(width, height)
            return simplejpeg.decode_jpeg(encoded, "RGB")
        except ValueError:
            pass
    return np.asarray(_decode_by_pillow(encoded))


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
    pixels = _resize(_random_crop(encoded, rng, augmentation.crop_scale), augmentation.image_size)
    if augmentation.flip and rng.random() < 0.5:
        pixels = _mirror(pixels)
    if augmentation.rand_augment:
        pixels = np.asarray(rand_augment(Image.fromarray(pixels), rng, magnitude=augmentation.rand_augment))
    return pixels


def _random_crop(encoded: bytes, rng: np.random.Generator, scale: tuple[float, float]) -> np.ndarray:
    """A part of the image, (height, width, 3) uint8, that the thread's next call may overwrite."""
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(encoded)
        _require_size(width, height)
        whole = None
    except ValueError:
        whole = _decode(encoded)
        height, width, colors = *whole.shape[:2], "RGB"
    box = left, top, right, bottom = random_crop_box(width, height, rng, scale=scale)
    part = decode_region(encoded, box) if colors == "YCbCr" else None
    if part is not None:
        return part
    if whole is None:
        whole = _decode(encoded)
    return whole[top:bottom, left:right]


class _Resizers(threading.local):
    """One for each thread, since it is locked while it works."""

    def __init__(self) -> None:
        self.resizer = Resizer()


_resizers = _Resizers()
BILINEAR = ResizeOptions(ResizeAlg.convolution(FilterType.bilinear))


def _resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """Pillow's bilinear resize with antialiasing of (height, width, 3) to (size, size, 3), several times as fast.

    Both round to eight bits after each of two passes, in the order that Pillow 13 picks by cost. This one's weights
    have 16 bits, Pillow's 22: of 1,000 values, 3 differ, by one grey level. No processor changes them.
    """
    height, width, _ = pixels.shape
    tall = height > max(size, 2 * width - size)
    image = ImageData(width, height, PixelType.U8x3, pixels.tobytes())
    for shape in ((width, size) if tall else (size, height)), (size, size):
        resized = ImageData(*shape, PixelType.U8x3)
        _resizers.resizer.resize(image, resized, BILINEAR)
        image = resized
    return np.frombuffer(image.get_buffer(), np.uint8).reshape(size, size, 3)


def _mirror(pixels: np.ndarray) -> np.ndarray:
    mirrored = np.empty_like(pixels)
    for channel in range(3):  # five times as fast as all at once
        mirrored[..., channel] = pixels[:, ::-1, channel]
    return mirrored


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
