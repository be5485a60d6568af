"""Decodes a region of a JPEG with nvImageCodec's CPU decoder, if that is installed (the extra `fast`).

The decoder skips what is outside of the region. The pixels are those of decoding the whole image, so that the optional
decoder changes the speed only.
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

# Each thread keeps its memory for the next region, but not that of a larger one.
KEPT_PIXELS = 4_000_000


def decode_region(encoded: bytes, box: tuple[int, int, int, int]) -> np.ndarray | None:
    """The pixels in `box`, (left, top, right, bottom), of an intact YCbCr JPEG. EXIF orientation is ignored.

    Damage is not reported: nvImageCodec hides libjpeg-turbo's warnings, and skips what is below the box.

    Returns:
        (bottom - top, right - left, 3) uint8, valid until the thread's next call, which reuses the memory. None if the
        whole image must be decoded instead: nvImageCodec is not installed or refuses the file, or the box is one pixel
        wide, for which libjpeg-turbo upsamples the colours differently.
    """
    left, top, right, bottom = box
    codec = _library()
    if codec is None or right - left < 2:
        return None
    thread = _threads(codec)
    try:
        part = codec.CodeStream(encoded).get_sub_code_stream(region=codec.Region(top, left, bottom, right))
        image = thread.decoder.decode(part, image=thread.image, params=thread.params)
    except RuntimeError:  # the header is unreadable
        return None
    if image is None:
        return None
    thread.image = image if (right - left) * (bottom - top) <= KEPT_PIXELS else None
    return np.asarray(image.cpu())


# Threads that load the library at the same time would undo each other's environment variable.
_loading = threading.Lock()


@functools.cache
def _library() -> Any:
    """nvImageCodec with libjpeg-turbo as its only extension, since the others search for CUDA and warn; or None."""
    try:
        package = importlib.util.find_spec("nvidia.nvimgcodec")
    except ModuleNotFoundError:  # no package of the namespace `nvidia`
        return None
    if package is None or package.origin is None:
        return None
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # a file that it refuses is decoded by libjpeg-turbo or Pillow
    with _loading, tempfile.TemporaryDirectory() as folder, _environment("NVIMGCODEC_EXTENSIONS_PATH", folder):
        for extension in Path(package.origin).parent.glob("extensions/libjpeg_turbo_ext.so*"):
            (Path(folder) / extension.name).symlink_to(extension)
        try:
            from nvidia import nvimgcodec
        except ImportError:  # its shared library does not load on this system
            return None
    return nvimgcodec if hasattr(nvimgcodec, "Region") else None  # older versions lack regions


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
    """For each thread, a decoder that starts no threads of its own, and the memory that it decodes to."""

    def __init__(self, codec: Any) -> None:
        backends = [codec.Backend(codec.CPU_ONLY)]
        self.decoder = codec.Decoder(codec.NVIMGCODEC_DEVICE_CPU_ONLY, max_num_cpu_threads=1, backends=backends)
        self.image: Any = None
        self.params = codec.DecodeParams(apply_exif_orientation=False, sample_format=codec.SampleFormat.I_RGB)


_threads = functools.cache(_Threads)
