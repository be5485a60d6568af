"""Whatever the bytes of an image file are, it is decoded or a bad image.

LMA_FUZZ=100000 pytest -n0 tests/data/test_fuzzed_images.py tries 100,000 files that were not tried before.
"""

import os
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lma_jax import images
from lma_jax.data.transforms import Augmentation, train_image
from lma_jax.images import BadImageError, decode, decode_pixels
from tests.helpers.images import BAD_FILES, INTACT_JPEGS, ODD_FILES, PICTURE, encode

AUGMENTATION = Augmentation(8, (0.1, 0.9), flip=True, rand_augment=0.0)
TIFFS = [encode(PICTURE, "tiff", compression=kind) for kind in ("raw", "jpeg", "tiff_lzw", "tiff_adobe_deflate")]
OTHERS = [
    *TIFFS,
    *(encode(PICTURE, kind) for kind in ("bmp", "ppm")),
    encode(PICTURE, "webp"),
    *(encode(PICTURE, kind, save_all=True, append_images=[PICTURE.rotate(90)]) for kind in ("gif", "webp", "png")),
]
SEEDS = [
    file
    for file in [*INTACT_JPEGS.values(), *(encoded for encoded, _ in ODD_FILES.values()), *BAD_FILES.values(), *OTHERS]
    if len(file) < 30_000
]


@st.composite
def damaged_files(draw) -> bytes:
    """A file of SEEDS, with up to six ranges that are overwritten, removed, inserted, repeated or another file's."""
    encoded = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 6))):
        # Half of the damage is among the headers.
        start = draw(st.one_of(st.integers(0, min(700, len(encoded))), st.integers(0, len(encoded))))
        end = start + draw(st.one_of(st.integers(0, 4), st.integers(0, 2000)))
        match draw(st.sampled_from(["bytes", "fill", "cut", "insert", "repeat", "splice", "end"])):
            case "bytes":
                content = draw(st.binary(min_size=1, max_size=8))
                encoded[start : start + len(content)] = content
            case "fill":
                encoded[start:end] = bytes([draw(st.sampled_from([0, 1, 127, 255]))]) * len(encoded[start:end])
            case "cut":
                del encoded[start:end]
            case "insert":
                encoded[start:start] = draw(st.binary(max_size=20))
            case "repeat":
                encoded[start:start] = encoded[start:end] * draw(st.integers(1, 40))
            case "splice":
                encoded[start:end] = draw(st.sampled_from(SEEDS))[start:end]
            case "end":
                encoded[start:] = b"\xff\xd9"
    return bytes(encoded)


def outcome(read) -> np.ndarray | str:
    try:
        return np.asarray(read())
    except BadImageError as error:
        return str(error)


@pytest.fixture(scope="module")
def few_pixels():
    """Headers that claim more pixels are refused, so that no time goes into large images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "MAX_PIXELS", 500_000)
        yield


@settings(
    max_examples=int(os.environ.get("LMA_FUZZ", "250")),
    derandomize="LMA_FUZZ" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(encoded=damaged_files(), seed=st.integers(0, 9))
@example(encoded=b"\xff\xd8", seed=0)
@example(encoded=b"\xff\xd8" + b"\xff\xfe\x00\x02" * 20_000, seed=0)
@example(encoded=INTACT_JPEGS["9 zeros at the end"][:-2] + bytes(10**6) + b"\x01\xff\xd9", seed=0)
def test_any_file_is_decoded_or_a_bad_image(few_pixels, encoded, seed):
    """In the same way by everything that decodes, with and without the decoder of crops, and soon."""
    start = time.process_time()
    whole = outcome(lambda: decode(encoded))
    pixels = outcome(lambda: decode_pixels(encoded))
    np.testing.assert_array_equal(pixels, whole)
    first = outcome(lambda: train_image(encoded, np.random.default_rng(seed), AUGMENTATION))
    if isinstance(whole, str):
        assert isinstance(first, str)
        assert whole
    else:
        assert whole.dtype == np.uint8
        assert whole.shape[2] == 3
        known = outcome(lambda: train_image(encoded, np.random.default_rng(seed), AUGMENTATION, intact=True))
        np.testing.assert_array_equal(known, first)
    assert images._room._free == images._room._size
    assert time.process_time() - start < 20
