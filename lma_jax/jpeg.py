"""JPEGs as libjpeg-turbo reads them, and what of its warnings is damage.

libjpeg decodes a damaged file to the end, with grey or noise in the place of what is missing, and says so in a warning.
These warnings (JWRN_ in its jerror.h) are damage:

    Corrupt JPEG data: premature end of data segment        Premature end of JPEG file
    Corrupt JPEG data: bad Huffman code                     Inconsistent progression sequence for component ...
    Corrupt JPEG data: bad arithmetic code                  Corrupt JPEG data: ... extraneous bytes before marker ...
    Corrupt JPEG data: found marker ... instead of RST...

No pixel depends on what these warn of, so that such files are intact:

    Warning: unknown JFIF revision number ...               Corrupt JPEG data: bad ICC marker
    Unknown Adobe color transform code ...                  Invalid SOS parameters for sequential JPEG
    Corrupt JPEG data: ... extraneous bytes before marker ..., if they are between headers, or zeros at a scan's end

Other extraneous bytes at the end of a scan are what is left over when the decoder has lost its place in damaged data.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import simplejpeg

# A scan goes over the whole image, however few bytes it has. Encoders write up to 18, for progressive CMYK.
MAX_SCANS = 32
MAX_SEGMENTS = 10_000  # a gigabyte of metadata would have fewer

START_OF_IMAGE, END_OF_IMAGE = b"\xff\xd8", b"\xff\xd9"
DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG file", "Inconsistent progression sequence")

_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")  # neither a stuffed 0xff of a scan, a restart nor a fill byte
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker")
_PREFETCHED = 8  # bytes after the end of a scan that libjpeg-turbo may have read and does not count as extraneous
_START, _END, _SCAN, _JFIF, _ADOBE = 0xD8, 0xD9, 0xDA, 0xE0, 0xEE
_ALONE = (0x01, _START, _END)  # markers without parameters
_METADATA = {*range(0xE0, 0xF0), 0xFE}
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = (0xC0, 0xC1, 0xC9)


class BadImageError(Exception):
    """The file does not contain a complete image."""


class JpegHeader(NamedTuple):
    """Size in pixels, and the colour space as libjpeg-turbo calls it, such as "YCbCr"."""

    height: int
    width: int
    color_space: str


def read_header(encoded: bytes) -> JpegHeader | None:
    """The header of a JPEG; None if libjpeg-turbo cannot read it."""
    if not encoded.startswith(START_OF_IMAGE):
        return None
    try:
        return JpegHeader(*simplejpeg.decode_jpeg_header(encoded, strict=False)[:3])
    except (ValueError, KeyError):  # KeyError: a colour space or sampling that simplejpeg has no name for
        return None


def decode_intact(encoded: bytes, header: JpegHeader) -> np.ndarray | None:
    """The pixels of a JPEG, (height, width, 3) uint8 in RGB, or (height, width, 4) in inverted CMYK.

    Returns None if libjpeg-turbo cannot decode such a file.

    Raises:
        BadImageError: libjpeg-turbo reports damage.
    """
    color_space = "CMYK" if header.color_space in ("CMYK", "YCCK") else "RGB"
    try:
        return simplejpeg.decode_jpeg(encoded, color_space)
    except ValueError as warning:
        try:
            return simplejpeg.decode_jpeg(tidied(encoded, str(warning)), color_space)
        except ValueError as error:
            if str(error).startswith(DAMAGE):
                raise BadImageError(str(error)) from error
            return None


def has_many_scans(encoded: bytes) -> bool:
    """Whether it is a JPEG of more than one scan, for which libjpeg-turbo keeps all coefficients: 6 bytes for a pixel.

    Raises:
        BadImageError: it has more than MAX_SCANS.
    """
    if not encoded.startswith(START_OF_IMAGE):
        return False
    components = 0
    for segment in _segments(encoded):
        if segment.marker in _FRAMES:
            components = _components(encoded, segment)
            if segment.marker not in _SEQUENTIAL:
                break
        elif segment.marker == _SCAN:
            if encoded[segment.start + 4 : segment.start + 5] == bytes([components]):
                return False
            break
    scans = sum(segment.marker == _SCAN for segment in _segments(encoded))
    if scans > MAX_SCANS:
        raise BadImageError(f"a JPEG of {scans:,} scans, more than {MAX_SCANS}")
    return True


def tidied(encoded: bytes, warning: str) -> bytes:
    """A JPEG of the same pixels without what causes a harmless warning; see the head of this module.

    Args:
        encoded: the file.
        warning: the warning of libjpeg-turbo.
    """
    extraneous = _EXTRANEOUS.search(warning)
    surplus = int(extraneous[1]) if extraneous else 0
    segments = [*_segments(encoded)]
    if not segments or segments[-1].marker != _END:
        return encoded
    frame = next((segment for segment in segments if segment.marker in _FRAMES), segments[-1])
    transform = 2 if _components(encoded, frame) == 4 else 1  # what libjpeg takes an unknown one for
    parts = [START_OF_IMAGE]
    for (marker, start, end), following in pairwise(segments):
        segment, scan = bytearray(encoded[start:end]), b""
        if marker == _JFIF and segment[4:].startswith(b"JFIF\0"):
            segment[9] = 1
        elif marker == _ADOBE and segment[4:].startswith(b"Adobe") and len(segment) >= 16:
            segment[15] = segment[15] if segment[15] in (0, transform) else transform
        elif marker in _METADATA:
            continue
        elif marker == _SCAN:
            if frame.marker in _SEQUENTIAL:
                segment[-3:] = b"\x00\x3f\x00"
            scan = encoded[end : following.start]
            content = scan.rstrip(b"\0")
            content += b"\0" if content.endswith(b"\xff") else b""
            if 0 < surplus <= len(scan) - len(content) <= surplus + _PREFETCHED:
                scan = content
        elif following.start > end:
            surplus = 0  # they are here, and are left out
        parts += [bytes(segment), scan]
    return b"".join([*parts, END_OF_IMAGE])


def lengthened(encoded: bytes) -> bytes:
    """A JPEG with more data at its end. If data lacks there, it has other pixels."""
    end = next((segment.start for segment in _segments(encoded) if segment.marker == _END), len(encoded))
    return encoded[:end] + bytes(range(1, 255)) + encoded[end:]


class _Segment(NamedTuple):
    """A marker and its parameters: what is in encoded[start:end]."""

    marker: int
    start: int
    end: int


def _segments(encoded: bytes) -> Iterator[_Segment]:
    """The segments of a JPEG up to its end marker, or as many as there are. Scans and garbage lie between them."""
    marker, end, count = 0, len(START_OF_IMAGE), 0
    while marker != _END and (match := _MARKER.search(encoded, end)):
        marker, end = match[1][0], match.end()
        if marker not in _ALONE:
            end += max(2, int.from_bytes(encoded[end : end + 2]))
        count += 1
        if count > MAX_SEGMENTS:
            raise BadImageError(f"a JPEG of more than {MAX_SEGMENTS:,} segments")
        yield _Segment(marker, match.start(), end)


def _components(encoded: bytes, frame: _Segment) -> int:
    return int.from_bytes(encoded[frame.start + 9 : frame.start + 10])
