"""Image files: which they are, how they are decoded, and the pixels of evaluation."""

import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image

from lma_jax.preprocessing import Preprocessing

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm")


# A file of a few kilobytes can claim gigabytes of pixels. ImageNet's largest image has 25 million.
MAX_PIXELS = 90_000_000


class BadImageError(Exception):
    """A file that holds no whole image."""


def decode(encoded: bytes) -> Image.Image:
    """Decodes an image file to RGB; EXIF orientation is ignored, as in the reference recipe.

    JPEGs go through libjpeg-turbo directly; what it refuses (other formats, CMYK, errors) goes through Pillow.

    Raises:
        BadImageError: the file is truncated, no image, or above MAX_PIXELS.
    """
    return Image.fromarray(decode_array(encoded))


def decode_array(encoded: bytes) -> np.ndarray:
    if simplejpeg.is_jpeg(encoded):
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
            require_size(width, height)
            return simplejpeg.decode_jpeg(encoded, "RGB")
        except ValueError:
            pass
    return np.asarray(_decode_by_pillow(encoded))


def _decode_by_pillow(encoded: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata, and the size, which is checked here
            image = Image.open(io.BytesIO(encoded))
            require_size(*image.size)
            if image.mode.startswith("I;16"):  # Pillow would clip 16 bits at 255
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadImageError(str(error)) from error


def require_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImageError(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")


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
