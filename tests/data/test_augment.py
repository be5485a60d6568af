"""The operations of RandAugment."""

import numpy as np
from PIL import Image

from lma_jax.data.augment import FILL, OPERATIONS, TWO_WAY


def test_the_operations_of_rand_augment_grow_with_their_level():
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (8, 8, 3), np.uint8)).resize((64, 64))
    pixels = np.asarray(image).astype(int)

    def result(name: str, level: float) -> np.ndarray:
        return np.asarray(OPERATIONS[name](image, level)).astype(int)

    def distance(name: str, level: float) -> float:
        return np.abs(result(name, level) - pixels).mean()

    constant = {"autocontrast", "equalize", "invert"}
    for name in OPERATIONS:
        low, high = distance(name, 0.05), distance(name, 0.9)
        assert low == high if name in constant else low < high, name
    for name in TWO_WAY:
        assert not np.array_equal(result(name, 0.5), result(name, -0.5)), name


def test_the_operations_of_rand_augment_are_those_of_their_definition():
    image = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    pixels = np.asarray(image)

    def result(name: str, level: float) -> np.ndarray:
        return np.asarray(OPERATIONS[name](image, level))

    np.testing.assert_array_equal(result("invert", 0.5), 255 - pixels)
    np.testing.assert_array_equal(result("posterize", 0.5), pixels & 0b11000000)
    np.testing.assert_array_equal(result("solarize", 0.5), np.where(pixels < 128, pixels, 255 - pixels))
    np.testing.assert_array_equal(result("solarize_add", 0.5), np.where(pixels < 128, pixels + 55, pixels))
    np.testing.assert_array_equal(result("brightness", -0.5), (pixels * 0.55).astype(np.uint8))
    np.testing.assert_array_equal(result("translate_x", 1 / 3.6)[:, :7], pixels[:, 1:])
    np.testing.assert_array_equal(result("translate_y", -1 / 3.6)[1:], pixels[:-1])
    assert (result("translate_x", 1 / 3.6)[:, 7] == FILL).all()
