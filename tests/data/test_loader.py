"""Batches: their order, their examples, and what happens to undecodable images."""

import math
import os
from collections import defaultdict
from itertools import islice
from typing import Any

import grain
import jax
import numpy as np
import pytest
from PIL import Image

from lma_jax.data import loader
from lma_jax.data.batch import batch_spec, random_batch
from lma_jax.data.loader import Reading, eval_batches, reading_from, to_device, train_batches
from lma_jax.data.sources import Source
from lma_jax.data.transforms import Augmentation
from lma_jax.errors import UserError
from lma_jax.preprocessing import Preprocessing
from tests.helpers.images import encode, grey, photo

SMALL = Preprocessing(image_size=8, resize_size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
DIGITS = tuple("0123456789")


def numbered_source(size: int) -> Source:
    """Images whose brightness is their index, so that a batch tells what is in it."""
    records = [{"image": grey(index), "label": index % 10} for index in range(size)]
    return Source("numbers", records, DIGITS)


def training(source: Source, *, start_step=0, seed=3, batch_size=4, crop_scale=(1.0, 1.0), **options):
    return train_batches(
        source,
        augmentation=Augmentation(image_size=8, crop_scale=crop_scale, flip=True, rand_augment=0.0),
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        reading=Reading(threads=2, **options),
    )


def evaluation(source: Source, *, batch_size=4, **options):
    return eval_batches(source, preprocessing=SMALL, batch_size=batch_size, reading=Reading(threads=2, **options))


def indices(batch) -> list[int]:
    return batch["image"][:, 0, 0, 0].tolist()


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
    source = Source("gradients", records, DIGITS)
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
        own = list(evaluation(numbered_source(size), batch_size=batch_size))
        batches.append(len(own))
        seen += [index for batch in own for index, valid in zip(indices(batch), batch["mask"]) if valid]
    assert sorted(seen) == list(range(size))
    assert batches == [math.ceil(size / batch_size)] * processes


def with_bad_images(*bad: int, size: int = 10) -> Source:
    source = numbered_source(size)
    for index in bad:
        source.records[index].update(image=source.records[index]["image"][:-30], file_name=f"file{index}.png")
    return source


def test_a_bad_image_ends_training_and_is_named():
    with pytest.raises(UserError, match=r"image 3 of numbers \(file3.png\) cannot be decoded: .*on_bad_image=skip"):
        list(islice(training(with_bad_images(3)), 5))


def test_the_next_image_replaces_a_bad_one(capfd):
    batches = list(islice(training(with_bad_images(3, 4), batch_size=5, on_bad_image="skip"), 2))
    assert sorted(index for batch in batches for index in indices(batch)) == [0, 1, 2, 5, 5, 5, 6, 7, 8, 9]
    assert sum(batch["skipped"].sum() for batch in batches) == 3  # 3 and 4 before one example, 4 before another
    assert all(batch["mask"].all() for batch in batches)
    errors = capfd.readouterr().err
    assert "warning: skipped image 3 of numbers (file3.png)" in errors
    assert "file4.png" in errors


def test_evaluation_leaves_a_bad_image_out(capfd):
    source = with_bad_images(3)
    with pytest.raises(UserError, match="image 3"):
        list(evaluation(source))
    batches = list(evaluation(source, on_bad_image="skip"))
    seen = [index for batch in batches for index, valid in zip(indices(batch), batch["mask"]) if valid]
    assert seen == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert sum(batch["skipped"].sum() for batch in batches) == 1
    assert "file3.png" in capfd.readouterr().err


def test_nothing_but_bad_images_is_refused(capfd):
    with pytest.raises(UserError, match="numbers holds no image that can be decoded"):
        next(training(with_bad_images(*range(10)), on_bad_image="skip"))


@pytest.mark.process
@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_nothing(workers):
    """Neither the batches nor the error at a bad image."""
    records = [{"image": encode(photo((60, 40), label), "jpeg"), "label": label} for label in range(12)]
    source, options = Source("photos", records, (*map(str, range(12)),)), dict(crop_scale=(0.1, 1.0), seed=1)
    first, *expected, last = islice(training(source, **options), 6)  # two epochs
    bad = min({*first["label"].tolist()} & {*last["label"].tolist()})
    records[bad].update(image=records[bad]["image"][:-30], file_name="bad.jpg")
    actual = training(source, **options, start_step=1, workers=workers)
    for batch in expected:
        other = next(actual)
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])
    with pytest.raises(UserError, match=rf"image {bad} of photos \(bad.jpg\) cannot be decoded: .*on_bad_image=skip"):
        next(actual)


def test_a_file_is_decoded_whole_until_all_of_it_was_seen(monkeypatch):
    """And again when it has changed, so that damage is found whether or not crops can be decoded alone."""
    known: dict[bytes, list[bool]] = defaultdict(list)

    def train_image(encoded, rng, augmentation, *, intact):
        known[encoded].append(intact)
        source.records[encoded[-1]]["image"] = b"changed" * (len(known[encoded]) >= 3) + encoded
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr(loader, "train_image", train_image)
    source = Source("files", [{"image": bytes([index]), "label": 0} for index in range(4)], DIGITS)
    augmentation = Augmentation(8, (1.0, 1.0), flip=False, rand_augment=0.0)
    options: dict[str, Any] = dict(batch_size=4, seed=0, start_step=0, reading=Reading(threads=1))
    list(islice(train_batches(source, augmentation=augmentation, **options), 6))
    assert len(known) >= 8
    assert all(intact == [number > 0 for number in range(len(intact))] for intact in known.values())


def test_threads_default_to_the_cores_that_the_process_may_use(monkeypatch):
    seen, read_options = [], grain.ReadOptions

    def spy(**given):
        seen.append(given["num_threads"])
        return read_options(**given)

    monkeypatch.setattr(grain, "ReadOptions", spy)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {*range(6)}, raising=False)
    for threads, workers in ((0, 0), (3, 0), (0, 2), (0, 8)):
        loader._read(grain.MapDataset.range(8), 2, 0, Reading(threads, workers))
    assert seen == [6, 3, 3, 1]


@pytest.mark.parametrize("read", [training, evaluation])
def test_batches_have_the_shapes_and_types_of_their_specification(read):
    batch = next(read(numbered_source(5)))
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
        name: (spec.shape, spec.dtype) for name, spec in batch_spec(4, 8).items()
    }
    assert random_batch(4, 8, num_classes=10).keys() == batch.keys()


def test_devices_get_all_batches_in_order():
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    batches = list(to_device(evaluation(numbered_source(10)), sharding))
    assert [batch["label"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 0]]
    assert all(value.sharding == sharding for batch in batches for value in batch.values())


def test_the_reading_of_a_config():
    config = {"data_threads": 3, "data_workers": 2, "on_bad_image": "skip", "batch_size": 64}
    assert reading_from(config) == Reading(threads=3, workers=2, on_bad_image="skip")
