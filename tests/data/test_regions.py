"""Regions of JPEGs are decoded as in the whole image."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lma_jax.data import regions
from lma_jax.data.regions import decode_region
from lma_jax.images import decode
from tests.helpers.images import EXIF_ROTATED, encode, needs_region_decoder, photo

pytestmark = needs_region_decoder


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"exif": EXIF_ROTATED}], ids=["plain", "progressive", "EXIF"]
)
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_region_is_decoded_as_in_the_whole_image(subsampling, options):
    encoded = encode(photo((67, 45), subsampling), "jpeg", subsampling=subsampling, **options)
    whole, rng = decode(encoded), np.random.default_rng(0)
    for _ in range(200):
        (left, right), (top, bottom) = (sorted(rng.choice(side + 1, 2, replace=False)) for side in whole.size)
        part = decode_region(encoded, (left, top, right, bottom))
        assert (part is None) == (right - left == 1)
        if part is not None:
            np.testing.assert_array_equal(
                part, np.asarray(whole)[top:bottom, left:right], f"{left} {top} {right} {bottom}"
            )


@pytest.mark.parametrize("size", [(2, 1), (3, 2), (17, 300), (300, 17)])
def test_a_region_of_a_small_image_is_decoded_as_in_the_whole(size):
    encoded = encode(photo(size, 0), "jpeg")
    np.testing.assert_array_equal(np.asarray(decode_region(encoded, (0, 0, *size))), np.asarray(decode(encoded)))


def test_each_thread_decodes_regions_for_itself():
    files = [encode(photo((60 + 7 * number, 90), number), "jpeg") for number in range(8)]
    boxes = [(3, 5 + number, 60 - 4 * number, 80) for number in range(len(files))]
    expected = [np.asarray(decode(file).crop(box)) for file, box in zip(files, boxes)]

    def mistakes(thread: int) -> int:
        numbers = np.random.default_rng(thread).integers(len(files), size=100)
        parts = ((number, np.asarray(decode_region(files[number], boxes[number]))) for number in numbers)
        return sum(not np.array_equal(part, expected[number]) for number, part in parts)

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(mistakes, range(4))) == 0


def test_threads_that_start_together_find_the_same_decoder(monkeypatch):
    monkeypatch.delenv("NVIMGCODEC_EXTENSIONS_PATH", raising=False)
    encoded, start = encode(photo((60, 90), 0), "jpeg"), threading.Barrier(8)

    def part(thread: int) -> np.ndarray:
        start.wait()
        return np.array(decode_region(encoded, (3, 5, 40, 60)))

    for _ in range(20):
        regions._library.cache_clear()
        with ThreadPoolExecutor(8) as threads:
            parts = list(threads.map(part, range(8)))
        assert all(np.array_equal(other, parts[0]) for other in parts)
    assert "NVIMGCODEC_EXTENSIONS_PATH" not in os.environ


def test_an_old_decoder_without_regions_is_left_alone(monkeypatch):
    from nvidia import nvimgcodec

    monkeypatch.setenv("NVIMGCODEC_EXTENSIONS_PATH", "mine")
    with monkeypatch.context() as patch:
        patch.delattr(nvimgcodec, "Region")
        regions._library.cache_clear()
        assert decode_region(encode(photo((60, 90), 0), "jpeg"), (3, 5, 40, 60)) is None
    regions._library.cache_clear()
    assert decode_region(encode(photo((60, 90), 0), "jpeg"), (3, 5, 40, 60)) is not None
    assert os.environ["NVIMGCODEC_EXTENSIONS_PATH"] == "mine"
