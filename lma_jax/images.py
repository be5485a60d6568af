"""Image files: which files are images, how they are decoded, and the pixels that evaluation sees.

The package's only module with a decoder outside of `lma_jax.data`.
"""

import io
import os
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from lma_jax.errors import UserError, warn
from lma_jax.jpeg import (
    END_OF_IMAGE,
    START_OF_IMAGE,
    BadImageError,
    JpegHeader,
    decode_intact,
    has_many_scans,
    lengthened,
    read_header,
)
from lma_jax.preprocessing import Preprocessing

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm")
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")  # Pillow's names of them

# Pillow's 16 MB blocks stay with the C library once they are freed, in each thread. It returns what is above 32 MB.
Image.core.set_block_size(64 << 20)

# A file of a few kilobytes can claim gigabytes of pixels. The largest image of ImageNet has 25 million.
MAX_PIXELS = 90_000_000
JPEG_IN_TIFF = 7  # a value of the tag "compression"
MAX_BYTES = 6 * MAX_PIXELS  # of a file: 16 bits for each colour, uncompressed


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
                    if is_image(entry.name) and _is_regular(entry):
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
    if os.path.isfile(path):
        return [path]
    if not os.path.isdir(path):
        problem = "is neither a regular file nor a folder" if os.path.exists(path) else "does not exist"
        raise UserError(f"image {path} {problem}")
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
        return eval_image(read_file(path), preprocessing)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except BadImageError as error:
        raise UserError(f"{path} cannot be decoded as an image ({error})") from error


def read_images(paths: Iterable[Path], preprocessing: Preprocessing) -> Iterator[tuple[Path, np.ndarray]]:
    """The files that can be read, with what `read_image` returns. The others get a warning on stderr."""
    for path in paths:
        try:
            yield path, read_image(path, preprocessing)
        except UserError as error:
            warn(error)


@contextmanager
def open_file(path: str | Path) -> Iterator[io.FileIO]:
    """Opens a regular file, unbuffered.

    Raises:
        BadImageError: it is a FIFO, a device or the like.
        OSError: it cannot be opened.
    """
    # Without O_NONBLOCK, opening a FIFO would wait for its writer.
    with open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise BadImageError("not a regular file")
        yield file


def read_file(path: str | Path) -> bytes:
    """The content of an image file.

    Raises:
        BadImageError: it is not a regular file, or has more than MAX_BYTES.
        OSError: it cannot be read.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise BadImageError(f"{size:,} bytes, more than {MAX_BYTES:,}")
        return file.read()


def eval_image(encoded: bytes, preprocessing: Preprocessing) -> np.ndarray:
    """Resizes the shorter side to `resize_size`, then crops the central square of `image_size`.

    Only the pixels of the square are computed. They may differ by one grey level from a crop of the resized image.

    Returns:
        (image_size, image_size, 3) uint8.

    Raises:
        BadImageError: see `decode`.
    """
    size = preprocessing.image_size
    with room_for(encoded):
        image = decode(encoded)
        box, shorter = [], min(image.size)
        for side in image.size:
            resized = int(preprocessing.resize_size * side / shorter)
            start = round((resized - size) / 2)
            box.append((start * side / resized, (start + size) * side / resized))
        (left, right), (top, bottom) = box
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, right, bottom)))


def decode(encoded: bytes) -> Image.Image:
    """Decodes an image file to RGB. EXIF orientation is ignored, as in torchvision's reference recipe.

    libjpeg-turbo decodes JPEGs; Pillow decodes other formats, and JPEGs whose sampling libjpeg-turbo's API cannot name.

    Raises:
        BadImageError: the file is damaged, is not an image of one of FORMATS, or has more than MAX_PIXELS or MAX_SCANS.
    """
    pixels = _decode_jpeg(encoded)
    return _decode_by_pillow(encoded) if pixels is None else _rgb_image(pixels)


def decode_pixels(encoded: bytes) -> np.ndarray:
    """The same as `decode`, as (height, width, 3) uint8."""
    pixels = _decode_jpeg(encoded)
    if pixels is not None and pixels.shape[2] == 3:
        return pixels
    return np.asarray(_decode_by_pillow(encoded) if pixels is None else _rgb_image(pixels))


def jpeg_header(encoded: bytes) -> JpegHeader | None:
    """The header of a JPEG; None if libjpeg-turbo cannot read it.

    Raises:
        BadImageError: the image has more than MAX_PIXELS.
    """
    header = read_header(encoded)
    if header is not None:
        _require_size(header.width, header.height)
    return header


@contextmanager
def room_for(encoded: bytes) -> Iterator[None]:
    """Waits until all threads together decode no more than MAX_PIXELS, this image included.

    Raises:
        BadImageError: see `decode`.
    """
    header = jpeg_header(encoded)
    if header is None:
        with open_by_pillow(encoded) as image:
            pixels = image.width * image.height
    else:
        pixels = header.width * header.height
    with _room.taken(pixels * (3 if has_many_scans(encoded) else 1)):
        yield


class _Room:
    """Room for pixels, which threads take in the order in which they ask."""

    def __init__(self, pixels: int):
        self._size = self._free = pixels
        self._turn = threading.Lock()
        self._change = threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        pixels = min(pixels, self._size)
        with self._turn, self._change:
            self._change.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._change:
                self._free += pixels
                self._change.notify()


_room = _Room(MAX_PIXELS)


def _decode_jpeg(encoded: bytes) -> np.ndarray | None:
    """See `lma_jax.jpeg.decode_intact`; None also for other formats."""
    header = jpeg_header(encoded)
    has_many_scans(encoded)
    return None if header is None else decode_intact(encoded, header)


def _rgb_image(pixels: np.ndarray) -> Image.Image:
    """An image of what `decode_intact` returns."""
    height, width, channels = pixels.shape
    if channels == 3:
        return Image.fromarray(pixels)
    return Image.frombytes("CMYK", (width, height), (255 - pixels).tobytes()).convert("RGB")


def _decode_by_pillow(encoded: bytes) -> Image.Image:
    with open_by_pillow(encoded) as image:
        if image.format == "TIFF":
            _require_intact_parts(encoded, image)
        image.verify()  # the checksums of a PNG; the image must be opened anew
    rgb = _pillow_rgb(encoded)
    # Pillow hides libjpeg's warnings.
    if encoded.startswith(START_OF_IMAGE) and _pillow_rgb(lengthened(encoded)) != rgb:
        raise BadImageError("Premature end of JPEG data")
    return rgb


def _require_intact_parts(encoded: bytes, image: Any) -> None:
    """Checks the JPEGs of which a TIFF may consist, whose warnings libtiff hides."""
    if image.tag_v2.get(TiffImagePlugin.COMPRESSION) != JPEG_IN_TIFF:
        return
    tags = TiffImagePlugin.TILEOFFSETS, TiffImagePlugin.TILEBYTECOUNTS
    if tags[0] not in image.tag_v2:
        tags = TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.STRIPBYTECOUNTS
    tables = image.tag_v2.get(TiffImagePlugin.JPEGTABLES, END_OF_IMAGE)[: -len(END_OF_IMAGE)]
    for start, count in zip(*(image.tag_v2[tag] for tag in tags)):
        part = encoded[start : start + count]
        _decode_jpeg(tables + part[len(START_OF_IMAGE) :] if tables else part)


def _pillow_rgb(encoded: bytes) -> Image.Image:
    with open_by_pillow(encoded) as image:
        # Pillow would clip values of more than 8 bits at 255; those of these formats end at 65,535.
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        if image.mode in ("I", "F"):
            raise BadImageError("values of 32 bits, whose range is unknown: save it with 8 or 16 bits")
        return image.convert("RGB")


@contextmanager
def open_by_pillow(encoded: bytes) -> Iterator[Image.Image]:
    """An image that Pillow has opened; what goes wrong with it is a BadImageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata, and about the size, which is checked here
            with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
                _require_size(*image.size)
                yield image
    except UnidentifiedImageError as error:
        raise BadImageError("not an image file") from error
    except BadImageError:
        raise
    except Exception as error:  # the parsers of broken files raise anything: struct.error, KeyError, MemoryError, ...
        raise BadImageError(str(error) or type(error).__name__) from error


def _require_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImageError(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")


def _is_regular(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False) or (entry.is_symlink() and os.path.isfile(entry.path))
