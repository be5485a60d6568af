"""Batches in an order that the global step determines.

A batch is {"image": (B, size, size, 3) uint8, "label": (B,) int32, "mask": (B,) bool, "skipped": (B,) int32}:
"mask" is False where there is no example, "skipped" counts the undecodable files passed over at that place.

Memory: each of the threads works on one batch, and up to PREFETCH more wait. With 16 threads and 256 images of
224 x 224 that is 18 batches of 39 MB, 0.7 GB a process.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from lma_jax.data.sources import Source
from lma_jax.data.transforms import Augmentation, train_image
from lma_jax.errors import UserError
from lma_jax.images import BadImageError, eval_image
from lma_jax.preprocessing import Preprocessing

Batch = dict[str, Any]
# Batches that wait in memory beside those that the threads work on.
PREFETCH = 2


def train_batches(
    source: Source,
    *,
    augmentation: Augmentation,
    batch_size: int,
    seed: int,
    start_step: int,
    threads: int,
    workers: int = 0,
    on_bad_image: str = "error",
) -> Iterator[Batch]:
    """An endless stream of shuffled batches that starts at `start_step`; each process reads its share.

    It is a function of (seed, step): every epoch has its own order and an example its own random numbers. Neither
    the number of processes nor that of threads or workers changes a global batch.

    Args:
        source: the examples.
        augmentation: what is done to them.
        batch_size: over all processes.
        seed: of the order and of the augmentation.
        start_step: batches that are left out at the start, at no cost.
        threads: that decode images, in this process or in each worker.
        workers: processes that decode instead of this one; 0 is right up to about 5,000 images a second.
        on_bad_image: "error", or "skip": the next example takes the place of an undecodable one.

    Raises:
        UserError: an undecodable image, if `on_bad_image` is "error"; or nothing but such images.
    """

    def load(index: int, rng: np.random.Generator) -> Batch:
        for skipped in range(len(source)):
            number = (index + skipped) % len(source)
            example = _load(source, number, lambda encoded: train_image(encoded, rng, augmentation), on_bad_image)
            if example is not None:
                return {**example, "skipped": np.int32(skipped)}
        raise UserError(f"{source.name} holds no image that can be decoded")

    dataset = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat().random_map(load)
    return _read(dataset, batch_size, start_step, threads, workers)


def eval_batches(
    source: Source,
    *,
    preprocessing: Preprocessing,
    batch_size: int,
    threads: int,
    workers: int = 0,
    on_bad_image: str = "error",
) -> Iterator[Batch]:
    """Every example once, in order; the last batch is filled up with blanks. Arguments as of `train_batches`."""
    side = preprocessing.image_size
    blank = {"image": np.zeros((side, side, 3), np.uint8), "label": np.int32(0), "mask": np.bool_(False)}

    def load(index: int) -> Batch:
        if index >= len(source):
            return {**blank, "skipped": np.int32(0)}
        example = _load(source, index, lambda encoded: eval_image(encoded, preprocessing), on_bad_image)
        return {**blank, "skipped": np.int32(1)} if example is None else {**example, "skipped": np.int32(0)}

    padded = -(-len(source) // batch_size) * batch_size
    return _read(grain.MapDataset.range(padded).map(load), batch_size, 0, threads, workers)


def _load(
    source: Source, index: int, transform: Callable[[bytes], np.ndarray], on_bad_image: str
) -> dict[str, Any] | None:
    """One example; None where its file is bad and may be skipped."""
    name = ""
    try:
        record = source.records[index]
        name = record.get("file_name", "")
        return {"image": transform(record["image"]), "label": np.int32(record["label"]), "mask": np.bool_(True)}
    except (BadImageError, OSError) as error:
        message = f"image {index:,} of {source.name}{name and f' ({name})'} cannot be decoded: {error}"
        if on_bad_image == "error":
            raise UserError(f"{message}. Mend or remove it, or set config.on_bad_image=skip") from error
        print(f"warning: skipped {message}", file=sys.stderr, flush=True)
        return None


def _read(dataset: Any, batch_size: int, start_step: int, threads: int, workers: int) -> Iterator[Batch]:
    # Blocks of whole batches, so that one process with two devices and two with one feed the devices the same.
    share = dataset.batch(batch_size // jax.process_count())[jax.process_index() :: jax.process_count()]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(PREFETCH, threads))
    batches = share[start_step:].to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain asks for it, in a program without absl as well
        processes = grain.multiprocessing.MultiprocessingOptions(num_workers=workers)
        batches = batches.mp_prefetch(processes, worker_init_fn=partial(_end_with_parent, os.getpid()))
    return iter(batches)


def _end_with_parent(parent: int, worker: int, workers: int) -> None:
    """Ends a worker with its parent, and with nothing else.

    Grain leaves workers behind when the parent is killed; and Ctrl-C or a cluster's SIGTERM, which reach them as well,
    would take the data away from a parent that is about to save.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Timed(Iterator[Batch]):
    """Iterates over `batches` and adds up the `seconds` that the caller waited for them."""

    def __init__(self, batches: Generator[Batch]):
        self._batches = batches
        self.seconds = 0.0

    def close(self) -> None:
        """Ends the threads and processes behind the batches."""
        self._batches.close()

    def __next__(self) -> Batch:
        start = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.seconds += time.perf_counter() - start


def to_device(batches: Any, sharding: jax.sharding.Sharding) -> Generator[Batch]:
    """Puts this process's share of each batch on its devices, one batch ahead of its use, and closes `batches`."""
    place: Callable[[Batch], Batch] = partial(jax.tree.map, partial(jax.make_array_from_process_local_data, sharding))
    ahead = None
    with contextlib.closing(batches):
        for batch in batches:
            placed = place(batch)
            if ahead is not None:
                yield ahead
            ahead = placed
    if ahead is not None:
        yield ahead
