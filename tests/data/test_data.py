"""Sources, transforms and batches."""

import io
import json
import math
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from lma_jax.data import regions, transforms
from lma_jax.data.augment import FILL, OPERATIONS, TWO_WAY
from lma_jax.data.loader import Reading, eval_batches, train_batches
from lma_jax.data.regions import decode_region
from lma_jax.data.sources import Source, open_source
from lma_jax.data.transforms import Augmentation, random_crop_box, train_image
from lma_jax.data.worker import end_with_parent
from lma_jax.errors import UserError
from lma_jax.images import BadImageError, decode, eval_image
from lma_jax.preprocessing import Preprocessing

SMALL = Preprocessing(image_size=8, resize_size=8, mean=(0.5,) * 3, std=(0.5,) * 3)


def augmentation(*, image_size=16, crop_scale=(1.0, 1.0), flip=False, rand_augment=0.0) -> Augmentation:
    return Augmentation(image_size, crop_scale, flip, rand_augment)


def encode(image: Image.Image, file_format: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def numbered_source(size: int) -> Source:
    """Images whose brightness is their index, so that a batch tells what is in it."""
    records = [{"image": encode(Image.new("L", (8, 8), index)), "label": index % 10} for index in range(size)]
    return Source("numbers", records, class_names=[*"0123456789"])


def training(source: Source, *, start_step=0, seed=3, batch_size=4, crop_scale=(1.0, 1.0), **options):
    return train_batches(
        source,
        augmentation=augmentation(image_size=8, crop_scale=crop_scale, flip=True),
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        reading=Reading(threads=2, **options),
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
    with pytest.raises(UserError, match=r"imagenet2012.*python -m lma_jax.data.prepare --archives="):
        open_source("imagenet2012", "train", data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"tfds build cifar10 --file_format=array_record"):
        open_source("cifar10", "train", data_dir=str(tmp_path))


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
    image = train_image(noise, np.random.default_rng(5), augmentation(crop_scale=(0.2, 0.9)))
    rng = np.random.default_rng(5)
    original = Image.open(io.BytesIO(noise))
    box = random_crop_box(50, 40, rng, scale=(0.2, 0.9))
    expected = original.crop(box).resize((16, 16), Image.Resampling.BILINEAR)
    difference = np.abs(image.astype(int) - np.asarray(expected))
    assert difference.max() <= 1
    assert difference.mean() <= 0.02


def test_half_of_the_training_images_are_mirrored(noise):
    plain = train_image(noise, np.random.default_rng(0), augmentation())
    seen = Counter()
    for seed in range(100):
        rng = np.random.default_rng(seed)
        image = train_image(noise, rng, augmentation(flip=True))
        box_differs = not (np.array_equal(image, plain) or np.array_equal(image, plain[:, ::-1]))
        seen["other" if box_differs else np.array_equal(image, plain)] += 1
    assert seen[True] + seen[False] > 20
    assert 0.25 < seen[True] / (seen[True] + seen[False]) < 0.75


def test_evaluation_pixels_are_a_resize_then_the_centre(noise):
    image = eval_image(noise, Preprocessing(image_size=12, resize_size=20, mean=(0,) * 3, std=(1,) * 3))
    expected = Image.open(io.BytesIO(noise)).resize((25, 20), Image.Resampling.BILINEAR).crop((6, 4, 18, 16))
    assert np.abs(image.astype(int) - np.asarray(expected)).max() <= 1


PICTURE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 9, 3), np.uint8)).resize((90, 60))
EXIF_ROTATED = Image.Exif()
EXIF_ROTATED[0x0112] = 6  # "rotate by 90 degrees"
SIXTEEN_BITS = Image.fromarray((np.asarray(PICTURE.convert("L")).astype(np.uint16) << 8) + 77)
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
    "16-bit PNG": (encode(SIXTEEN_BITS), PICTURE.convert("L")),
    "1-bit PNG": (encode(Image.new("1", (90, 60), 1)), Image.new("L", (90, 60), 255)),
    "WebP": (encode(PICTURE, "webp", lossless=True), PICTURE),
    "GIF": (encode(PICTURE, "gif"), PICTURE),
    "1 x 1": (encode(Image.new("RGB", (1, 1), (9, 8, 7))), Image.new("RGB", (1, 1), (9, 8, 7))),
    "1 x 3000": (encode(Image.new("RGB", (1, 3000), (9, 8, 7))), Image.new("RGB", (1, 3000), (9, 8, 7))),
    "huge": (encode(Image.new("L", (9000, 9900), 50), "jpeg"), Image.new("L", (9000, 9900), 50)),
}


@pytest.mark.parametrize("kind", ODD_FILES)
def test_any_kind_of_image_is_read_upright_and_in_rgb(kind):
    encoded, expected = ODD_FILES[kind]
    image = decode(encoded)
    assert (image.mode, image.size) == ("RGB", expected.size)
    part = (slice(None, None, 1 + image.height // 100), slice(None, None, 1 + image.width // 100))
    difference = np.asarray(image)[part].astype(int) - np.asarray(expected.convert("RGB"))[part]
    assert np.abs(difference).mean() < 12  # what a palette loses; another picture, or a turned one, is at 60
    for pixels in (eval_image(encoded, SMALL), train_image(encoded, np.random.default_rng(0), augmentation())):
        assert pixels.dtype == np.uint8
        assert pixels.shape in ((8, 8, 3), (16, 16, 3))


# The optional decoder's wheels are for Linux.
needs_decoder = pytest.mark.skipif(sys.platform != "linux", reason="nvImageCodec is for Linux")


@pytest.fixture(params=[pytest.param("decoding crops", marks=needs_decoder), "decoding whole images"])
def decoder(request, monkeypatch) -> str:
    """Both with and without the optional decoder."""
    if request.param == "decoding whole images":
        monkeypatch.setattr(transforms, "decode_region", lambda encoded, box: None)
    return request.param


def photo(size: tuple[int, int], seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("quality", [30, 75, 96])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_pixels_are_those_of_pillow(quality, subsampling, decoder):
    """At most 0.02 grey levels in the mean and 1 anywhere from Pillow's decoding, crop and resize."""
    encoded = encode(photo((401, 333), quality + subsampling), "jpeg", quality=quality, subsampling=subsampling)
    original = Image.open(io.BytesIO(encoded)).convert("RGB")
    box = random_crop_box(*original.size, np.random.default_rng(7), scale=(0.08, 1.0))
    train = original.crop(box).resize((96, 96), Image.Resampling.BILINEAR)
    evaluation = original.resize((134, 112), Image.Resampling.BILINEAR).crop((19, 8, 115, 104))
    preprocessing = Preprocessing(image_size=96, resize_size=112, mean=(0,) * 3, std=(1,) * 3)
    recipe = augmentation(image_size=96, crop_scale=(0.08, 1.0))
    for pixels, expected in (
        (train_image(encoded, np.random.default_rng(7), recipe), train),
        (eval_image(encoded, preprocessing), evaluation),
    ):
        difference = np.abs(pixels.astype(int) - np.asarray(expected))
        assert difference.mean() <= 0.02
        assert difference.max() <= 1


@pytest.mark.parametrize("size", [(333, 401), (50, 400), (400, 50), (96, 300), (300, 96), (96, 96), (40, 30), (1, 90)])
def test_the_resize_is_pillows_for_any_shape(size):
    image = photo(size, seed=0)
    resized = transforms._resize(np.asarray(image), 96).astype(int)
    difference = resized - image.resize((96, 96), Image.Resampling.BILINEAR)
    assert np.abs(difference).max() <= 1
    assert np.abs(difference).mean() <= 0.02


@needs_decoder
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


@needs_decoder
@pytest.mark.parametrize("size", [(2, 1), (3, 2), (17, 300), (300, 17)])
def test_a_region_of_a_small_image_is_decoded_as_in_the_whole(size):
    encoded = encode(photo(size, 0), "jpeg")
    np.testing.assert_array_equal(decode_region(encoded, (0, 0, *size)), decode(encoded))


@needs_decoder
def test_each_thread_decodes_regions_for_itself():
    files = [encode(photo((60 + 7 * number, 90), number), "jpeg") for number in range(8)]
    boxes = [(3, 5 + number, 60 - 4 * number, 80) for number in range(len(files))]
    expected = [np.asarray(decode(file).crop(box)) for file, box in zip(files, boxes)]

    def mistakes(thread: int) -> int:
        numbers = np.random.default_rng(thread).integers(len(files), size=100)
        regions = ((number, decode_region(files[number], boxes[number])) for number in numbers)
        return sum(not np.array_equal(region, expected[number]) for number, region in regions)

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(mistakes, range(4))) == 0


@needs_decoder
def test_threads_that_start_together_find_the_same_decoder(monkeypatch):
    monkeypatch.delenv("NVIMGCODEC_EXTENSIONS_PATH", raising=False)
    encoded, start = encode(photo((60, 90), 0), "jpeg"), threading.Barrier(8)

    def part(thread: int) -> np.ndarray:
        start.wait()
        return decode_region(encoded, (3, 5, 40, 60)).copy()

    for _ in range(20):
        regions._library.cache_clear()
        with ThreadPoolExecutor(8) as threads:
            parts = list(threads.map(part, range(8)))
        assert all(np.array_equal(other, parts[0]) for other in parts)
    assert "NVIMGCODEC_EXTENSIONS_PATH" not in os.environ


@needs_decoder
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


@pytest.mark.parametrize("kind", ODD_FILES)
def test_training_images_are_the_same_with_and_without_the_optional_decoder(monkeypatch, kind):
    def image() -> np.ndarray:
        return train_image(ODD_FILES[kind][0], np.random.default_rng(1), augmentation(crop_scale=(0.1, 0.9)))

    crops = image()
    monkeypatch.setattr(transforms, "decode_region", lambda encoded, box: None)
    np.testing.assert_array_equal(image(), crops)


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"no image",
        encode(PICTURE, "jpeg")[:-40],
        encode(PICTURE)[:-40],
        encode(PICTURE.convert("CMYK"), "jpeg")[:-200],
        encode(Image.new("L", (10000, 9001))),
        encode(Image.new("L", (10000, 9001)), "jpeg"),
    ],
    ids=["empty", "text", "cut JPEG", "cut PNG", "cut CMYK", "bomb PNG", "bomb JPEG"],
)
def test_what_is_no_whole_image_is_refused_never_guessed(encoded, decoder):
    with pytest.raises(BadImageError):
        decode(encoded)
    with pytest.raises(BadImageError):
        train_image(encoded, np.random.default_rng(0), augmentation())


def test_rand_augment_keeps_shape_and_follows_its_random_numbers(noise):
    recipe = augmentation(rand_augment=6.0)
    images = [train_image(noise, np.random.default_rng(seed), recipe) for seed in [*range(60), *range(60)]]
    assert {(image.shape, image.dtype.name) for image in images} == {((16, 16, 3), "uint8")}
    for first, second in zip(images[:60], images[60:]):
        np.testing.assert_array_equal(first, second)
    plain = [train_image(noise, np.random.default_rng(seed), augmentation()) for seed in range(60)]
    changed = np.mean([not np.array_equal(*pair) for pair in zip(images, plain)])
    assert 0.5 < changed < 0.95  # two operations, each with probability 1/2


def test_the_operations_of_rand_augment_grow_with_their_level():
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (8, 8, 3), np.uint8)).resize((64, 64))
    pixels = np.asarray(image).astype(int)

    def distance(name: str, level: float) -> float:
        return np.abs(np.asarray(OPERATIONS[name](image, level)).astype(int) - pixels).mean()

    constant = {"autocontrast", "equalize", "invert"}
    for name in OPERATIONS:
        low, high = distance(name, 0.05), distance(name, 0.9)
        assert low == high if name in constant else low < high, name
    for name in TWO_WAY:
        assert not np.array_equal(OPERATIONS[name](image, 0.5), OPERATIONS[name](image, -0.5)), name


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
    records = [{"image": encode(Image.fromarray(gradient)), "label": label} for label in range(10)]
    source = Source("gradients", records, class_names=[*"0123456789"])
    options = dict(crop_scale=(0.1, 1.0), start_step=1)
    whole = next(training(source, **options))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    shares = []
    for process in range(2):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        shares.append(next(training(source, **options)))
    for name in ("image", "label"):
        np.testing.assert_array_equal(np.concatenate([share[name] for share in shares]), whole[name])


@pytest.mark.parametrize(("size", "batch_size"), [(1, 4), (7, 4), (8, 4), (9, 4), (13, 6)])
@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_reads_every_example_once(monkeypatch, size, batch_size, processes):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    seen, batches = [], []
    for process in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        own = list(eval_batches(numbered_source(size), preprocessing=SMALL, batch_size=batch_size, reading=Reading(2)))
        batches.append(len(own))
        seen += [index for batch in own for index, valid in zip(indices(batch), batch["mask"]) if valid]
    assert sorted(seen) == list(range(size))
    assert batches == [math.ceil(size / batch_size)] * processes


def with_bad_images(*bad: int, size: int = 10) -> Source:
    source = numbered_source(size)
    for index in bad:
        source.records[index].update(image=source.records[index]["image"][:-30], file_name=f"file{index}.png")
    return source


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_ends_training_and_is_named(workers):
    with pytest.raises(Exception, match=r"image 3 of numbers \(file3.png\) cannot be decoded: .*on_bad_image=skip"):
        list(islice(training(with_bad_images(3), workers=workers), 5))


def test_the_next_image_takes_the_place_of_a_bad_one(capfd):
    batches = list(islice(training(with_bad_images(3, 4), batch_size=5, on_bad_image="skip"), 2))
    assert sorted(index for batch in batches for index in indices(batch)) == [0, 1, 2, 5, 5, 5, 6, 7, 8, 9]
    assert sum(batch["skipped"].sum() for batch in batches) == 3  # 3 and 4 for one place, 4 for another
    assert all(batch["mask"].all() for batch in batches)
    errors = capfd.readouterr().err
    assert "warning: skipped image 3 of numbers (file3.png)" in errors
    assert "file4.png" in errors


def test_evaluation_leaves_a_bad_image_out(capfd):
    source = with_bad_images(3)
    with pytest.raises(UserError, match="image 3"):
        list(eval_batches(source, preprocessing=SMALL, batch_size=4, reading=Reading(2)))
    batches = list(eval_batches(source, preprocessing=SMALL, batch_size=4, reading=Reading(2, on_bad_image="skip")))
    seen = [index for batch in batches for index, valid in zip(indices(batch), batch["mask"]) if valid]
    assert seen == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert sum(batch["skipped"].sum() for batch in batches) == 1
    assert "file3.png" in capfd.readouterr().err


def test_nothing_but_bad_images_is_refused(capfd):
    with pytest.raises(UserError, match="numbers holds no image that can be decoded"):
        next(training(with_bad_images(*range(10)), on_bad_image="skip"))


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_nothing(workers):
    records = [{"image": encode(photo((60, 40), label), "jpeg"), "label": label} for label in range(11)]
    source = Source("photos", records, class_names=[*map(str, range(11))])
    options = dict(crop_scale=(0.1, 1.0), start_step=2)
    expected = list(islice(training(source, **options), 5))
    actual = list(islice(training(source, **options, workers=workers), 5))
    for batch, other in zip(expected, actual):
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_worker_ends_with_its_parent(moment):
    """Even where the parent was killed before the worker came to look for it."""
    parent = os.getpid() if moment == "after" else -1
    worker = multiprocessing.get_context("spawn").Process(target=work, args=(parent,))
    worker.start()
    worker.join(30)
    assert worker.exitcode == (1 if moment == "before" else 0)


def work(parent: int) -> None:
    end_with_parent(parent, 0, 1)
    time.sleep(20 if parent == -1 else 0.2)


@pytest.fixture
def folder(tmp_path) -> Path:
    for split, numbers in (("train", range(6)), ("val", range(6, 9))):
        for number in numbers:
            file = tmp_path / split / ("cat", "dog", "emu")[number % 3] / f"{number}.{('JPEG', 'png')[number % 2]}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(Image.new("RGB", (9, 9), (number,) * 3)))
    (tmp_path / "train/cat/notes.txt").write_text("no image")
    (tmp_path / "train/.cache").mkdir()
    return tmp_path


def test_an_image_folder_is_a_source(folder):
    train, val = (open_source("folder", split, data_dir=str(folder)) for split in ("train", "validation"))
    assert (len(train), len(val), train.num_classes, val.num_classes) == (6, 3, 3, 3)
    records = [train.records[index] for index in range(6)]
    assert [record["label"] for record in records] == [0, 0, 1, 1, 2, 2]
    assert [record["file_name"] for record in records[:3]] == ["cat/0.JPEG", "cat/3.png", "dog/1.png"]
    assert np.asarray(decode(records[1]["image"]))[0, 0, 0] == 3
    with pytest.raises(UserError, match=r"missing/train does not exist.*<data_dir>/<split>/<class>/\*"):
        open_source("folder", "train", data_dir=str(folder / "missing"))
    with pytest.raises(UserError, match="cat must be a folder that holds a folder of images for each class"):
        open_source("folder", "cat", data_dir=str(folder / "train"))
    (folder / "train/fox").mkdir()
    with pytest.raises(UserError, match=r"class folder .*train/fox holds no images"):
        open_source("folder", "train", data_dir=str(folder))


def test_a_build_without_random_access_says_how_to_convert_it(tmp_path):
    builder_dir = Path(open_source_dir(tmp_path))
    info = json.loads((builder_dir / "dataset_info.json").read_text())
    target = tmp_path / "mine/1.0.0"
    shutil.copytree(builder_dir, target)
    (target / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord", "name": "mine"}))
    with pytest.raises(UserError, match=rf"has the format tfrecord.*convert_format --dataset_version_dir={target}"):
        open_source("mine", "train", data_dir=str(tmp_path))


def open_source_dir(data_dir: Path) -> str:
    """Where the digits were built."""
    open_source("digits", "train", data_dir=str(data_dir))
    return str(next(data_dir.rglob("dataset_info.json")).parent)
