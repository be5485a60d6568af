"""Pixels of training."""

import io
import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lma_jax.data import transforms
from lma_jax.data.transforms import Augmentation, random_crop_box, train_image
from lma_jax.images import BadImageError
from tests.helpers.images import BAD_FILES, INTACT_JPEGS, ODD_FILES, encode, needs_region_decoder, noise, photo


def augmentation(*, image_size=16, crop_scale=(1.0, 1.0), flip=False, rand_augment=0.0) -> Augmentation:
    return Augmentation(image_size, crop_scale, flip, rand_augment)


@pytest.fixture(params=[pytest.param("decoding crops", marks=needs_region_decoder), "decoding whole images"])
def decoder(request, monkeypatch) -> str:
    """With the optional decoder, and without it."""
    if request.param == "decoding whole images":
        monkeypatch.setattr(transforms, "decode_region", lambda encoded, box: None)
    return request.param


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (10, 1000), (1000, 10), (1, 1), (3, 2)])
def test_random_crops_lie_inside_the_image(size):
    rng, (width, height) = np.random.default_rng(0), size
    for _ in range(300):
        left, top, right, bottom = random_crop_box(width, height, rng, scale=(0.08, 1.0))
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


def test_random_crops_are_uniform_in_area_and_log_uniform_in_aspect():
    rng = np.random.default_rng(0)
    boxes = np.array([random_crop_box(4000, 4000, rng, scale=(0.1, 0.5)) for _ in range(4000)], float)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, aspect = width * height / 4000**2, np.log(width / height) / math.log(4 / 3)
    # Mean and standard deviation of uniform numbers on [0.1, 0.5] and [-1, 1], at 4 standard errors.
    np.testing.assert_allclose([area.mean(), area.std()], [0.3, 0.4 / 12**0.5], atol=0.008)
    np.testing.assert_allclose([aspect.mean(), aspect.std()], [0.0, 2 / 12**0.5], atol=0.04)


@pytest.mark.parametrize("size", [(8, 8), (16, 8), (15, 40)])
def test_a_padded_crop_is_a_square_of_the_whole_image_on_black(size):
    whole = Image.fromarray(np.random.default_rng(0).integers(1, 256, (size[1], size[0], 3), np.uint8))
    encoded = io.BytesIO()
    whole.save(encoded, "PNG")
    options = Augmentation(image_size=8, crop_scale=(0.1, 0.2), flip=False, rand_augment=0.0, crop_padding=4)
    crops = {train_image(encoded.getvalue(), np.random.default_rng(seed), options).tobytes() for seed in range(400)}
    width, height = (int(8 * side / min(size)) for side in size)
    resized = np.asarray(whole.resize((width, height), Image.Resampling.BILINEAR))
    padded = np.pad(resized, ((4, 4), (4, 4), (0, 0)))
    places = [(top, left) for top in range(height + 1) for left in range(width + 1)]
    possible = {padded[top : top + 8, left : left + 8].tobytes() for top, left in places}
    assert crops <= possible
    assert len(crops) > len(possible) / 2


def test_an_extreme_image_falls_back_to_its_largest_centred_crop():
    largest: Any = SimpleNamespace(uniform=lambda low, high: high)
    assert random_crop_box(1000, 30, largest, scale=(1.0, 1.0)) == (480, 0, 520, 30)


def test_training_pixels_are_a_crop_then_an_antialiased_resize():
    image = train_image(noise(), np.random.default_rng(5), augmentation(crop_scale=(0.2, 0.9)))
    rng = np.random.default_rng(5)
    original = Image.open(io.BytesIO(noise()))
    box = random_crop_box(50, 40, rng, scale=(0.2, 0.9))
    expected = original.crop(box).resize((16, 16), Image.Resampling.BILINEAR)
    difference = np.abs(image.astype(int) - np.asarray(expected))
    assert difference.max() <= 1
    assert difference.mean() <= 0.02


def test_half_of_the_training_images_are_mirrored():
    file = noise()
    plain = train_image(file, np.random.default_rng(0), augmentation())
    seen: Counter[object] = Counter()
    for seed in range(100):
        rng = np.random.default_rng(seed)
        image = train_image(file, rng, augmentation(flip=True))
        box_differs = not (np.array_equal(image, plain) or np.array_equal(image, plain[:, ::-1]))
        seen["other" if box_differs else np.array_equal(image, plain)] += 1
    assert seen[True] + seen[False] > 20
    assert 0.25 < seen[True] / (seen[True] + seen[False]) < 0.75


@pytest.mark.parametrize("quality", [30, 75, 96])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_training_pixels_are_those_of_pillow(quality, subsampling, decoder):
    """At most 0.02 grey levels in the mean and 1 anywhere from Pillow's decoding, crop and resize."""
    encoded = encode(photo((401, 333), quality + subsampling), "jpeg", quality=quality, subsampling=subsampling)
    original = Image.open(io.BytesIO(encoded)).convert("RGB")
    box = random_crop_box(*original.size, np.random.default_rng(7), scale=(0.08, 1.0))
    expected = original.crop(box).resize((96, 96), Image.Resampling.BILINEAR)
    pixels = train_image(encoded, np.random.default_rng(7), augmentation(image_size=96, crop_scale=(0.08, 1.0)))
    difference = np.abs(pixels.astype(int) - np.asarray(expected))
    assert difference.mean() <= 0.02
    assert difference.max() <= 1


@pytest.mark.parametrize("size", [(333, 401), (50, 400), (400, 50), (96, 300), (300, 96), (96, 96), (40, 30), (1, 90)])
def test_the_resize_is_pillows_for_any_shape(size):
    image = photo(size, seed=0)
    resized = transforms.resize(np.asarray(image), 96).astype(int)
    difference = resized - image.resize((96, 96), Image.Resampling.BILINEAR)
    assert np.abs(difference).max() <= 1
    assert np.abs(difference).mean() <= 0.02


@needs_region_decoder
@pytest.mark.parametrize("kind", ["JPEG", *INTACT_JPEGS])
def test_a_known_file_gives_the_same_pixels_faster(monkeypatch, kind):
    encoded = INTACT_JPEGS.get(kind, ODD_FILES["JPEG"][0])
    regions: list[Any] = []
    decode_region = transforms.decode_region

    def spy(*given):
        regions.append(given)
        return decode_region(*given)

    monkeypatch.setattr(transforms, "decode_region", spy)
    for seed in range(8):
        first, known = (
            train_image(encoded, np.random.default_rng(seed), augmentation(crop_scale=(0.1, 0.9)), intact=intact)
            for intact in (False, True)
        )
        np.testing.assert_array_equal(known, first)
    assert len(regions) == (0 if kind in ("RGB", "CMYK", "YCCK", "unusual sampling") else 8)


@pytest.mark.parametrize("kind", ODD_FILES)
def test_any_kind_of_image_gives_the_same_pixels_with_and_without_the_optional_decoder(monkeypatch, kind):
    def draw() -> list[np.ndarray]:
        scales = ((0.1, 0.9), (1.0, 1.0))
        return [train_image(ODD_FILES[kind][0], np.random.default_rng(1), augmentation(crop_scale=s)) for s in scales]

    expected = draw()
    assert {(pixels.dtype.name, pixels.shape) for pixels in expected} == {("uint8", (16, 16, 3))}
    monkeypatch.setattr(transforms, "decode_region", lambda encoded, box: None)
    np.testing.assert_array_equal(draw(), expected)


@pytest.mark.parametrize("kind", BAD_FILES)
def test_what_is_no_whole_image_is_refused_never_guessed(kind, decoder):
    with pytest.raises(BadImageError):
        train_image(BAD_FILES[kind], np.random.default_rng(0), augmentation())


def test_rand_augment_keeps_shape_and_follows_its_random_numbers():
    file, recipe = noise(), augmentation(rand_augment=6.0)
    images = [train_image(file, np.random.default_rng(seed), recipe) for seed in [*range(60), *range(60)]]
    assert {(image.shape, image.dtype.name) for image in images} == {((16, 16, 3), "uint8")}
    for first, second in zip(images[:60], images[60:]):
        np.testing.assert_array_equal(first, second)
    plain = [train_image(file, np.random.default_rng(seed), augmentation()) for seed in range(60)]
    changed = np.mean([not np.array_equal(*pair) for pair in zip(images, plain)])
    assert 0.5 < changed < 0.95  # two operations, each with probability 1/2
