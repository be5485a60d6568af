"""Batches: {"image": (B, size, size, 3) uint8, "label": (B,) int32}, in an order that the global step determines."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import grain
import jax
import numpy as np

from lma_jax.data.sources import Source
from lma_jax.data.transforms import Preprocessing, eval_image, train_image

Batch = dict[str, Any]
# Batches that wait in memory beside those that the threads work on.
PREFETCH = 2


def train_batches(
    source: Source,
    *,
    preprocessing: Preprocessing,
    crop_scale: tuple[float, float],
    flip: bool,
    batch_size: int,
    seed: int,
    start_step: int,
    threads: int,
) -> Iterator[Batch]:
    """An endless stream of shuffled batches that starts at `start_step`.

    It is a function of (seed, step): every epoch has its own order, an example its own random numbers, and both
    are the same for any number of processes, each of which reads its share of the global `batch_size`.
    """

    def load(record: dict[str, Any], rng: np.random.Generator) -> Batch:
        size = preprocessing.image_size
        image = train_image(record["image"], rng, image_size=size, crop_scale=crop_scale, flip=flip)
        return {"image": image, "label": np.int32(record["label"])}

    dataset = grain.MapDataset.source(source.records).seed(seed).shuffle().repeat().random_map(load)
    return _read(dataset, batch_size, start_step, threads)


def eval_batches(source: Source, *, preprocessing: Preprocessing, batch_size: int, threads: int) -> Iterator[Batch]:
    """Every example once, in order. The last batch is filled up with blanks, whose "mask" (B,) is False."""

    def load(index: int) -> Batch:
        if index >= len(source):
            blank = np.zeros((preprocessing.image_size, preprocessing.image_size, 3), np.uint8)
            return {"image": blank, "label": np.int32(0), "mask": np.bool_(False)}
        record = source.records[index]
        image = eval_image(record["image"], preprocessing)
        return {"image": image, "label": np.int32(record["label"]), "mask": np.bool_(True)}

    padded = -(-len(source) // batch_size) * batch_size
    return _read(grain.MapDataset.range(padded).map(load), batch_size, 0, threads)


def _read(dataset: Any, batch_size: int, start_step: int, threads: int) -> Iterator[Batch]:
    share = dataset[jax.process_index() :: jax.process_count()].batch(batch_size // jax.process_count())
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(PREFETCH, threads))
    return iter(share[start_step:].to_iter_dataset(options))


def to_device(batches: Iterator[Batch], sharding: jax.sharding.Sharding) -> Iterator[Batch]:
    """Puts this process's share of each batch on its devices, one batch ahead of its use."""
    place = partial(jax.tree.map, partial(jax.make_array_from_process_local_data, sharding))
    ahead = None
    for batch in batches:
        placed = place(batch)
        if ahead is not None:
            yield ahead
        ahead = placed
    if ahead is not None:
        yield ahead
