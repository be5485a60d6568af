"""Sources, transforms and batches."""

import io
import math
from collections import Counter
from itertools import islice

import jax
import numpy as np
import pytest
from PIL import Image

from lma_jax.data.loader import eval_batches, train_batches
from lma_jax.data.sources import Source, open_source
from lma_jax.data.transforms import Preprocessing, eval_image, random_crop_box, train_image
from lma_jax.errors import UserError

SMALL = Preprocessing(image_size=8, resize_size=8, mean=(0.5,) * 3, std=(0.5,) * 3)


def encode(image: Image.Image, file_format: str = "png") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return buffer.getvalue()


def numbered_source(size: int) -> Source:
    """Images whose brightness is their index, so that a batch tells what is in it."""
    records = [{"image": encode(Image.new("L", (8, 8), index)), "label": index % 10} for index in range(size)]
    return Source(records, num_classes=10)


def training(source: Source, *, start_step: int = 0, seed: int = 3, batch_size: int = 4, crop_scale=(1.0, 1.0)):
    return train_batches(
        source,
        preprocessing=SMALL,
        crop_scale=crop_scale,
        flip=True,
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        threads=2,
    )


def indices(batch) -> list[int]:
    return batch["image"][:, 0, 0, 0].tolist()


@pytest.fixture
def noise() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    return encode(Image.fromarray(pixels))


def test_digits_are_split_without_overlap_into_every_class():
    train, test = open_source("digits", "train"), open_source("digits", "test")
    assert (len(train), len(test), train.num_classes) == (1437, 360, 10)
    for source in (train, test):
        assert {source.records[index]["label"] for index in range(len(source))} == set(range(10))


def test_a_missing_dataset_says_how_to_prepare_it(tmp_path):
    with pytest.raises(UserError, match=r"imagenet2012.*tfds build imagenet2012 --file_format=array_record"):
        open_source("imagenet2012", "train", data_dir=str(tmp_path))


def test_an_unknown_dataset_and_split_are_named(tmp_path):
    with pytest.raises(UserError, match="no data set 'imagenot'"):
        open_source("imagenot", "train", data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"no split 'validation'; it has .*test"):
        open_source("digits", "validation")


def test_a_damaged_dataset_is_refused(tmp_path):
    open_source("digits", "train", data_dir=str(tmp_path))
    (file,) = tmp_path.rglob("*train.array_record*")
    file.write_bytes(file.read_bytes()[:20000])
    with pytest.raises(UserError, match=r"train.array_record.* holds 0 of 1,437 examples"):
        open_source("digits", "train", data_dir=str(tmp_path))


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (10, 1000), (1000, 10), (1, 1), (3, 2)])
def test_random_crops_lie_inside_the_image(size):
    rng = np.random.default_rng(0)
    for _ in range(300):
        left, top, right, bottom = random_crop_box(*size, rng, scale=(0.08, 1.0))
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]


def test_random_crops_are_uniform_in_area_and_log_uniform_in_aspect():
    rng = np.random.default_rng(0)
    boxes = np.array([random_crop_box(4000, 4000, rng, scale=(0.1, 0.5)) for _ in range(4000)], float)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, aspect = width * height / 4000**2, np.log(width / height) / math.log(4 / 3)
    # Mean and standard deviation of uniform numbers on [0.1, 0.5] and [-1, 1], at 4 standard errors.
    np.testing.assert_allclose([area.mean(), area.std()], [0.3, 0.4 / 12**0.5], atol=0.008)
    np.testing.assert_allclose([aspect.mean(), aspect.std()], [0.0, 2 / 12**0.5], atol=0.04)


def test_an_extreme_image_falls_back_to_its_largest_centred_crop():
    class Hopeless:
        def uniform(self, low, high):
            return high

    assert random_crop_box(1000, 30, Hopeless(), scale=(1.0, 1.0)) == (480, 0, 520, 30)


def test_training_pixels_are_a_crop_then_an_antialiased_resize(noise):
    image = train_image(noise, np.random.default_rng(5), image_size=16, crop_scale=(0.2, 0.9), flip=False)
    rng = np.random.default_rng(5)
    original = Image.open(io.BytesIO(noise))
    box = random_crop_box(50, 40, rng, scale=(0.2, 0.9))
    expected = original.crop(box).resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(image, np.asarray(expected))


def test_half_of_the_training_images_are_mirrored(noise):
    plain = train_image(noise, np.random.default_rng(0), image_size=16, crop_scale=(1.0, 1.0), flip=False)
    seen = Counter()
    for seed in range(100):
        rng = np.random.default_rng(seed)
        image = train_image(noise, rng, image_size=16, crop_scale=(1.0, 1.0), flip=True)
        box_differs = not (np.array_equal(image, plain) or np.array_equal(image, plain[:, ::-1]))
        seen["other" if box_differs else np.array_equal(image, plain)] += 1
    assert seen[True] + seen[False] > 20
    assert 0.25 < seen[True] / (seen[True] + seen[False]) < 0.75


def test_evaluation_pixels_are_a_resize_then_the_centre(noise):
    image = eval_image(noise, Preprocessing(image_size=12, resize_size=20, mean=(0,) * 3, std=(1,) * 3))
    expected = Image.open(io.BytesIO(noise)).resize((25, 20), Image.Resampling.BILINEAR).crop((6, 4, 18, 16))
    np.testing.assert_array_equal(image, np.asarray(expected))


@pytest.mark.parametrize(("mode", "file_format"), [("L", "png"), ("P", "png"), ("RGBA", "png"), ("CMYK", "jpeg")])
def test_any_kind_of_image_becomes_rgb(mode, file_format):
    encoded = encode(Image.new("RGB", (9, 7), (200, 30, 90)).convert(mode), file_format)
    image = eval_image(encoded, SMALL)
    assert (image.shape, image.dtype) == ((8, 8, 3), np.uint8)


def test_every_epoch_has_every_example_once_in_an_order_of_its_own():
    source = numbered_source(10)
    stream = [index for batch in islice(training(source, batch_size=5), 6) for index in indices(batch)]
    epochs = [stream[0:10], stream[10:20], stream[20:30]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_stream_is_a_function_of_the_seed_and_the_step():
    source = numbered_source(7)
    whole = list(islice(training(source, crop_scale=(0.1, 1.0)), 9))
    resumed = list(islice(training(source, crop_scale=(0.1, 1.0), start_step=4), 5))
    for expected, actual in zip(whole[4:], resumed):
        np.testing.assert_array_equal(actual["image"], expected["image"])
        np.testing.assert_array_equal(actual["label"], expected["label"])
    other = list(islice(training(source, seed=4), 9))
    assert [indices(batch) for batch in other] != [indices(batch) for batch in whole]


def test_augmentation_belongs_to_the_example_not_to_the_process(monkeypatch):
    gradient = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    source = Source([{"image": encode(Image.fromarray(gradient)), "label": label} for label in range(10)], 10)
    options = dict(crop_scale=(0.1, 1.0), start_step=1)
    whole = next(training(source, **options))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    shares = []
    for process in range(2):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        shares.append(next(training(source, **options)))
    for name in ("image", "label"):
        np.testing.assert_array_equal(shares[0][name], whole[name][0::2])
        np.testing.assert_array_equal(shares[1][name], whole[name][1::2])


@pytest.mark.parametrize(("size", "batch_size"), [(1, 4), (7, 4), (8, 4), (9, 4), (13, 6)])
@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_reads_every_example_once(monkeypatch, size, batch_size, processes):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    seen, batches = [], []
    for process in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        own = list(eval_batches(numbered_source(size), preprocessing=SMALL, batch_size=batch_size, threads=2))
        batches.append(len(own))
        seen += [index for batch in own for index, valid in zip(indices(batch), batch["mask"]) if valid]
    assert sorted(seen) == list(range(size))
    assert batches == [math.ceil(size / batch_size)] * processes
