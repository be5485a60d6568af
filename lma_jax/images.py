"""Image files: which files are images, how they are decoded, and the pixels that evaluation sees.

The package's only module with a decoder outside of `lma_jax.data`.
"""

import io
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from lma_jax.errors import UserError
from lma_jax.preprocessing import Preprocessing

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm")

# A file of a few kilobytes can claim gigabytes of pixels. The largest image of ImageNet has 25 million.
MAX_PIXELS = 90_000_000


class BadImageError(Exception):
    """The file does not contain a complete image."""


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image: it has one of IMAGE_SUFFIXES and is not hidden.

    >>> is_image("cat.JPEG"), is_image(".cat.jpg"), is_image("notes.txt")
    (True, False, False)
    """
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def find_images(folder: str | Path) -> list[str]:
    """Finds the images in `folder` at any depth.

    Hidden files, hidden subfolders and links to subfolders are ignored.

    Returns:
        Paths relative to `folder`, separated by slashes and sorted.

    Raises:
        UserError: a folder cannot be read.
    """
    found, folders = [], [""]
    while folders:
        parent = folders.pop()
        try:
            with os.scandir(os.path.join(folder, parent)) as entries:
                for entry in entries:
                    if is_image(entry.name) and entry.is_file():
                        found.append(parent + entry.name)
                    elif not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                        folders.append(f"{parent}{entry.name}/")
        except OSError as error:
            raise UserError(f"cannot read folder {os.path.join(folder, parent)}: {error.strerror}") from error
    return sorted(found)


def image_files(path: str | Path) -> list[Path]:
    """The image files that `path` stands for: the file itself whatever its name, or all images of a folder.

    Raises:
        UserError: `path` does not exist, or is a folder without images.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"image {path} does not exist")
    names = find_images(path)
    if not names:
        raise UserError(f"folder {path} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return [path / name for name in names]


def read_image(path: str | Path, preprocessing: Preprocessing) -> np.ndarray:
    """Reads an image file as evaluation sees it: (image_size, image_size, 3) uint8.

    Raises:
        UserError: the file cannot be read or decoded.
    """
    try:
        return eval_image(Path(path).read_bytes(), preprocessing)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except BadImageError as error:
        raise UserError(f"{path} cannot be decoded as an image ({error})") from error


def eval_image(encoded: bytes, preprocessing: Preprocessing) -> np.ndarray:
    """Resizes the shorter side to `resize_size`, then crops the central square of `image_size`.

    Only the pixels of the square are computed. They may differ by one grey level from a crop of the resized image.

    Returns:
        (image_size, image_size, 3) uint8.

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


def decode(encoded: bytes) -> Image.Image:
    """Decodes an image file to RGB. EXIF orientation is ignored, as in torchvision's reference recipe.

    libjpeg-turbo decodes JPEGs; Pillow decodes other formats, CMYK, and what libjpeg-turbo refuses.

    Raises:
        BadImageError: the file is truncated, is not an image, or has more than MAX_PIXELS.
    """
    pixels = _decode_jpeg(encoded)
    return _decode_by_pillow(encoded) if pixels is None else Image.fromarray(pixels)


def decode_pixels(encoded: bytes) -> np.ndarray:
    """The same as `decode`, as (height, width, 3) uint8."""
    pixels = _decode_jpeg(encoded)
    return np.asarray(_decode_by_pillow(encoded)) if pixels is None else pixels


class JpegHeader(NamedTuple):
    """Size in pixels, and the colour space as libjpeg-turbo calls it, such as "YCbCr"."""

    height: int
    width: int
    color_space: str


def jpeg_header(encoded: bytes) -> JpegHeader | None:
    """The header of a JPEG; None if libjpeg-turbo cannot read it.

    Raises:
        BadImageError: the image has more than MAX_PIXELS.
    """
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return None
    _require_size(width, height)
    return JpegHeader(height, width, color_space)


def _decode_jpeg(encoded: bytes) -> np.ndarray | None:
    """The pixels of a JPEG; None if libjpeg-turbo refuses the file."""
    if not simplejpeg.is_jpeg(encoded) or jpeg_header(encoded) is None:
        return None
    try:
        return simplejpeg.decode_jpeg(encoded, "RGB")
    except ValueError:
        return None


def _decode_by_pillow(encoded: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata, and about the size, which is checked here
            image = Image.open(io.BytesIO(encoded))
            _require_size(*image.size)
            if image.mode.startswith("I;16"):  # Pillow would clip 16-bit values at 255
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise BadImageError("not an image file") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadImageError(str(error)) from error


def _require_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImageError(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")
