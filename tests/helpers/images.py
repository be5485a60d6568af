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
    "16-bit PGM": (encode(_SIXTEEN_BITS, "ppm"), PICTURE.convert("L")),
    "1-bit PNG": (encode(Image.new("1", (90, 60), 1)), Image.new("L", (90, 60), 255)),
    "WebP": (encode(PICTURE, "webp", lossless=True), PICTURE),
    "GIF": (encode(PICTURE, "gif"), PICTURE),
    "1 x 1": (encode(Image.new("RGB", (1, 1), (9, 8, 7))), Image.new("RGB", (1, 1), (9, 8, 7))),
    "1 x 3000": (encode(Image.new("RGB", (1, 3000), (9, 8, 7))), Image.new("RGB", (1, 3000), (9, 8, 7))),
    "16 megapixels": (encode(Image.new("L", (4000, 4000), 50), "jpeg"), Image.new("L", (4000, 4000), 50)),
}

_JPEG, _TIFF = encode(PICTURE, "jpeg"), encode(photo((300, 200), 0), "tiff", compression="jpeg")
_CMYK = encode(photo((300, 200), 0).convert("CMYK"), "jpeg")
_PROGRESSIVE = encode(photo((300, 200), 0), "jpeg", progressive=True)
_SCAN = _JPEG.index(b"\xff\xda")


def in_jpeg(at: int, added: bytes) -> bytes:
    """PICTURE as a JPEG with more bytes in front of position `at`."""
    return _JPEG[:at] + added + _JPEG[at:]


def overwritten(encoded: bytes, at: int, content: bytes) -> bytes:
    """The file with other bytes from position `at` on, which may be counted from the end."""
    at %= len(encoded)
    return encoded[:at] + content + encoded[at + len(content) :]


def closed(encoded: bytes, share: float) -> bytes:
    """A JPEG cut short to a share of its length, with an end marker."""
    return encoded[: int(len(encoded) * share)] + b"\xff\xd9"


def unusually_sampled() -> bytes:
    """A JPEG that libjpeg-turbo's API has no name for: only one of its colours has twice the samples of the rest."""
    encoded = _CMYK.replace(b"Adobe\0\x64\0\0\0\0\x00", b"Adobe\0\x64\0\0\0\0\x01")
    for marker, parameters in (
        (b"\xff\xc0", b"\x08\x00\xc8\x02\x58\x03\x01\x11\x00\x02\x21\x00\x03\x11\x00"),
        (b"\xff\xda", b"\x03\x01\x00\x02\x00\x03\x00\x00\x3f\x00"),
    ):
        start = encoded.index(marker) + 2
        end = start + int.from_bytes(encoded[start : start + 2])
        encoded = encoded[:start] + (len(parameters) + 2).to_bytes(2) + parameters + encoded[end:]
    return encoded


def with_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is there `count` times more."""
    start, end = _PROGRESSIVE.rindex(b"\xff\xda"), len(_PROGRESSIVE) - 2
    return _PROGRESSIVE[:end] + _PROGRESSIVE[start:end] * count + _PROGRESSIVE[end:]


# JPEGs of which libjpeg-turbo warns though no pixel is damaged, and others that are intact but odd.
INTACT_JPEGS = {
    "JFIF 2.1": _JPEG.replace(b"JFIF\0\1", b"JFIF\0\2"),
    "unknown Adobe transform": in_jpeg(2, b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x07").replace(b"JFIF", b"none"),
    "part of an ICC profile": in_jpeg(20, b"\xff\xe2\0\x20ICC_PROFILE\0\1\3" + bytes(16)),
    "SOS parameters of zero": overwritten(_JPEG, _SCAN + 11, bytes(3)),
    "one byte between headers": in_jpeg(20, b"?"),
    "bytes between headers": in_jpeg(20, b"anything"),
    **{f"{count} zeros at the end": in_jpeg(-2, bytes(count)) for count in (1, 8, 9, 5000)},
    "fill bytes at the end": in_jpeg(-2, b"\xff" * 20),
    "trailing bytes": _JPEG + b"trailing" * 9,
    "trailing end markers": _JPEG + b"?\xff\xd9" * 9,
    "restart markers": encode(PICTURE, "jpeg", restart_marker_rows=1),
    "two pictures": encode(PICTURE, "MPO", save_all=True, append_images=[PICTURE]),
    "RGB": encode(PICTURE, "jpeg", keep_rgb=True),
    "progressive": _PROGRESSIVE,
    "CMYK": _CMYK,
    "YCCK": _CMYK.replace(b"Adobe\0\x64\0\0\0\0\x00", b"Adobe\0\x64\0\0\0\0\x02"),
    "unusual sampling": unusually_sampled(),
}

BAD_FILES = {
    **{f"{share} of a JPEG, closed": closed(_JPEG, share) for share in (0.5, 0.9, 0.98)},
    **{f"{share} of a progressive JPEG, closed": closed(_PROGRESSIVE, share) for share in (0.5, 0.98)},
    "half of a CMYK JPEG, closed": closed(_CMYK, 0.5),
    "half of an unusual JPEG, closed": closed(unusually_sampled(), 0.5),
    "JPEG with a zeroed range": overwritten(_JPEG, _SCAN + 200, bytes(200)),
    "JPEG zeroed to its end marker": overwritten(_JPEG, -300, bytes(298)),
    "JPEG with bytes left over": in_jpeg(-2, bytes(range(1, 40))),
    "JPEG without its end marker": _JPEG[:-2],
    "JPEG without a restart marker": INTACT_JPEGS["restart markers"].replace(b"\xff\xd1", b""),
    "CMYK JPEG with a zeroed range": overwritten(_CMYK, -2000, bytes(1000)),
    "TIFF of a JPEG with a zeroed range": overwritten(_TIFF, len(_TIFF) // 2, bytes(1000)),
    "PNG with a damaged checksum": overwritten(encode(PICTURE), -16, b"?"),
    "TIFF of 32-bit integers": encode(PICTURE.convert("I"), "tiff"),
    "TIFF of floats": encode(PICTURE.convert("F"), "tiff"),
    "JPEG of too many scans": with_scans(60),
    "EPS": encode(PICTURE, "eps"),
    "half of an AVIF": b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miafMA1A" + bytes(200),
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(200),
    "empty": b"",
    "text": b"no image",
    "cut JPEG": encode(PICTURE, "jpeg")[:-40],
    "cut PNG": encode(PICTURE)[:-40],
    "cut CMYK": encode(PICTURE.convert("CMYK"), "jpeg")[:-200],
    "bomb PNG": png_claiming(10_000, 9_001),
    "bomb JPEG": jpeg_claiming(10_000, 9_001),
}
