"""Decodes a part of a JPEG, by nvImageCodec's CPU decoder where it is installed (the extra `fast`).

It skips what lies outside of the part and gives the very pixels of a whole decode: nothing but speed depends on it.
"""

import functools
import importlib.util
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

END_OF_IMAGE = b"\xff\xd9"


def decode_region(encoded: bytes, box: tuple[int, int, int, int]) -> np.ndarray | None:
    """The pixels inside of `box`, (left, top, right, bottom), of a YCbCr JPEG; EXIF orientation is ignored.

    Damage below the box goes unnoticed, except that a file was cut off.

    Returns:
        (bottom - top, right - left, 3) uint8, until the thread's next call, which uses the same memory; None where
        the file has to be decoded as a whole: nvImageCodec is not installed or refuses it, its end is missing, or the
        box is one pixel wide (then libjpeg-turbo does not smooth colours as it should).
    """
    left, top, right, bottom = box
    codec = _library()
    if codec is None or right - left < 2 or not encoded.endswith(END_OF_IMAGE):
        return None
    thread = _threads(codec)
    try:
        part = codec.CodeStream(encoded).get_sub_code_stream(region=codec.Region(top, left, bottom, right))
        image = thread.decoder.decode(part, image=thread.image, params=thread.params)
    except RuntimeError:  # it cannot read the header
        return None
    if image is None:
        return None
    thread.image = image
    return np.asarray(image.cpu())


# Threads that ask at the same time would undo each other's environment.
_loading = threading.Lock()


@functools.cache
def _library() -> Any:
    """nvImageCodec with libjpeg-turbo as its only extension: the others look for CUDA's libraries and complain."""
    try:
        package = importlib.util.find_spec("nvidia.nvimgcodec")
    except ModuleNotFoundError:  # nothing at all of nvidia
        return None
    if package is None or package.origin is None:
        return None
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # what it refuses is decoded otherwise
    with _loading, tempfile.TemporaryDirectory() as folder, _environment("NVIMGCODEC_EXTENSIONS_PATH", folder):
        for extension in Path(package.origin).parent.glob("extensions/libjpeg_turbo_ext.so*"):
            (Path(folder) / extension.name).symlink_to(extension)
        try:
            from nvidia import nvimgcodec
        except ImportError:  # its library does not load here
            return None
    return nvimgcodec if hasattr(nvimgcodec, "Region") else None  # older ones, of other packages, lack regions


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


class _Threads(threading.local):
    """For each thread a decoder, which starts no other threads, and the memory that it decodes to."""

    def __init__(self, codec: Any) -> None:
        backends = [codec.Backend(codec.CPU_ONLY)]
        self.decoder = codec.Decoder(codec.NVIMGCODEC_DEVICE_CPU_ONLY, max_num_cpu_threads=1, backends=backends)
        self.image: Any = None
        self.params = codec.DecodeParams(apply_exif_orientation=False, sample_format=codec.SampleFormat.I_RGB)


_threads = functools.cache(_Threads)
