"""Image files of tests."""

import io
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

needs_region_decoder = pytest.mark.skipif(sys.platform != "linux", reason="nvImageCodec's wheels are for Linux")


def encode(image: Image.Image, file_format: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def grey(value: int, size: int = 8) -> bytes:
    """A square PNG of one grey level."""
    return encode(Image.new("L", (size, size), value))


def noise() -> bytes:
    """A PNG of 50 x 40 random pixels."""
    return encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)))


def photo(size: tuple[int, int], seed: int) -> Image.Image:
    """Random colours with smooth transitions."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims another size."""
    encoded = grey(0)
    header = encoded[12:16] + width.to_bytes(4) + height.to_bytes(4) + encoded[24:29]
    return encoded[:12] + header + zlib.crc32(header).to_bytes(4) + encoded[33:]


def jpeg_claiming(width: int, height: int) -> bytes:
    """A JPEG of a few bytes whose header claims another size."""
    encoded = encode(Image.new("L", (8, 8)), "jpeg")
    start = encoded.index(b"\xff\xc0") + 5  # marker, length and precision of the frame header
    return encoded[:start] + height.to_bytes(2) + width.to_bytes(2) + encoded[start + 4 :]


PICTURE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 9, 3), np.uint8)).resize((90, 60))
EXIF_ROTATED = Image.Exif()
EXIF_ROTATED[0x0112] = 6  # "rotate by 90 degrees"
_SIXTEEN_BITS = Image.fromarray((np.asarray(PICTURE.convert("L")).astype(np.uint16) << 8) + 77)

# Kinds of files that data sets contain: the file, and the picture in it.
ODD_FILES = {
    "JPEG": (encode(PICTURE, "jpeg"), PICTURE),
    "progressive JPEG without subsampling": (encode(PICTURE, "jpeg", progressive=True, subsampling=0), PICTURE),
    "grey JPEG": (encode(PICTURE.convert("L"), "jpeg"), PICTURE.convert("L")),
    "CMYK JPEG": (encode(PICTURE.convert("CMYK"), "jpeg"), PICTURE),
    "JPEG rotated by EXIF, which the recipe ignores": (encode(PICTURE, "jpeg", exif=EXIF_ROTATED), PICTURE),
    "PNG": (encode(PICTURE), PICTURE),
    "palette PNG": (encode(PICTURE.convert("P", palette=Image.Palette.ADAPTIVE)), PICTURE),
    "palette PNG with transparency": (encode(PICTURE.quantize(200), transparency=bytes([0, 128, 255])), PICTURE),
    "PNG with alpha": (encode(PICTURE.convert("RGBA")), PICTURE),
    "16-bit PNG": (encode(_SIXTEEN_BITS), PICTURE.convert("L")),
    "1-bit PNG": (encode(Image.new("1", (90, 60), 1)), Image.new("L", (90, 60), 255)),
    "WebP": (encode(PICTURE, "webp", lossless=True), PICTURE),
    "GIF": (encode(PICTURE, "gif"), PICTURE),
    "1 x 1": (encode(Image.new("RGB", (1, 1), (9, 8, 7))), Image.new("RGB", (1, 1), (9, 8, 7))),
    "1 x 3000": (encode(Image.new("RGB", (1, 3000), (9, 8, 7))), Image.new("RGB", (1, 3000), (9, 8, 7))),
    "16 megapixels": (encode(Image.new("L", (4000, 4000), 50), "jpeg"), Image.new("L", (4000, 4000), 50)),
}

BAD_FILES = {
    "empty": b"",
    "text": b"no image",
    "cut JPEG": encode(PICTURE, "jpeg")[:-40],
    "cut PNG": encode(PICTURE)[:-40],
    "cut CMYK": encode(PICTURE.convert("CMYK"), "jpeg")[:-200],
    "bomb PNG": png_claiming(10_000, 9_001),
    "bomb JPEG": jpeg_claiming(10_000, 9_001),
}
