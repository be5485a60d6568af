"""Batches in an order that the global step determines. `lma_jax.data.batch` says what a batch holds.

Memory: as many batches as there are threads, at least PREFETCH, are being decoded or wait, and one more is in use.
With 16 threads and batches of 256 images of 224 x 224 pixels, those are 17 batches of 39 MB, 0.7 GB a process. The
images that are decoded at a time take up to 1.3 GB in a process, however many threads there are: see
`lma_jax.images.room_for`.
"""

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from lma_jax.data.batch import Batch, blank_example
from lma_jax.data.sources import Source
from lma_jax.data.transforms import Augmentation, train_image
from lma_jax.data.worker import end_with_parent, start_tracker
from lma_jax.errors import LostWorker, UserError, warn
from lma_jax.images import BadImageError, eval_image
from lma_jax.preprocessing import Preprocessing

PREFETCH = 2
# Python frees the batches that nobody fetched from the workers, and would say so.
SHARED_MEMORY_FREED = "ignore:resource_tracker:UserWarning"


@dataclass(frozen=True)
class Reading:
    """How images are read. None of it changes a batch of good images.

    Attributes:
        threads: threads that decode images, in this process or in each worker; 0: all together one for each core that
            this process may use.
        workers: processes that decode instead of this one; unnecessary below about 5,000 images a second.
        on_bad_image: what an undecodable image does: "error" ends the run, "skip" replaces it by the next example in
            training and leaves it out in evaluation.
    """

    threads: int
    workers: int = 0
    on_bad_image: str = "error"


def reading_from(values: Mapping[str, Any]) -> Reading:
    """The Reading among the `values` of a training config."""
    return Reading(values["data_threads"], values["data_workers"], values["on_bad_image"])


def train_batches(
    source: Source,
    *,
    augmentation: Augmentation,
    batch_size: int,
    seed: int,
    start_step: int,
    reading: Reading,
) -> Iterator[Batch]:
    """An endless stream of shuffled batches that starts at `start_step`; each process reads its share.

    The stream is a function of (seed, step): every epoch has its own order, and every example its own random numbers.
    The numbers of processes, threads and workers do not change a global batch.

    Args:
        source: the examples.
        augmentation: how an image file becomes a training image.
        batch_size: examples of a batch over all processes.
        seed: seed of the order and of the augmentation.
        start_step: number of batches to skip at the start, at no cost.
        reading: how images are read.

    Raises:
        UserError: an image is undecodable and `reading.on_bad_image` is "error", or all images are undecodable.
    """

    # Of the files that were decoded whole, which shows any damage: from then on, their crops may be decoded alone.
    checksums = np.full(len(source), -1, np.int64)

    def transform(encoded: bytes, number: int, rng: np.random.Generator) -> np.ndarray:
        checksum = zlib.crc32(encoded)
        image = train_image(encoded, rng, augmentation, intact=checksums[number] == checksum)
        checksums[number] = checksum
        return image

    def load(index: int, rng: np.random.Generator) -> Batch:
        for skipped in range(len(source)):
            number = (index + skipped) % len(source)
            example = _load(source, number, partial(transform, number=number, rng=rng), reading)
            if example is not None:
                return {**example, "skipped": np.int32(skipped)}
        raise UserError(f"{source.name} holds no image that can be decoded")

    dataset = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat().random_map(load)
    return _read(dataset, batch_size, start_step, reading)


def eval_batches(source: Source, *, preprocessing: Preprocessing, batch_size: int, reading: Reading) -> Iterator[Batch]:
    """Every example once, in order; blanks fill up the last batch. Arguments and errors as of `train_batches`."""
    blank = blank_example(preprocessing.image_size)

    def load(index: int) -> Batch:
        if index >= len(source):
            return blank
        example = _load(source, index, lambda encoded: eval_image(encoded, preprocessing), reading)
        return {**blank, "skipped": np.int32(1)} if example is None else {**blank, **example}

    padded = -(-len(source) // batch_size) * batch_size
    return _read(grain.MapDataset.range(padded).map(load), batch_size, 0, reading)


def _load(
    source: Source, index: int, transform: Callable[[bytes], np.ndarray], reading: Reading
) -> dict[str, Any] | None:
    """One example; None if its file is undecodable and may be skipped."""
    name = ""
    try:
        record = source.records[index]
        name = record.get("file_name", "")
        return {"image": transform(record["image"]), "label": np.int32(record["label"]), "mask": np.bool_(True)}
    except (BadImageError, OSError) as error:
        message = f"image {index:,} of {source.name}{name and f' ({name})'} cannot be decoded: {error}"
        if reading.on_bad_image == "error":
            raise UserError(f"{message}. Repair or remove it, or set config.on_bad_image=skip") from error
        warn(f"skipped {message}")
        return None


def _read(dataset: Any, batch_size: int, start_step: int, reading: Reading) -> Iterator[Batch]:
    # A process reads a contiguous part of each global batch, so that the devices get the same examples from one process
    # with two devices as from two processes with one device.
    share = dataset.batch(batch_size // jax.process_count())[jax.process_index() :: jax.process_count()]
    threads = reading.threads or max(1, _cores() // max(1, reading.workers))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(PREFETCH, threads))
    batches = share[start_step:].to_iter_dataset(options)
    if reading.workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain requires it even of programs without absl flags
        processes = grain.multiprocessing.MultiprocessingOptions(num_workers=reading.workers)
        batches = batches.mp_prefetch(processes, worker_init_fn=partial(end_with_parent, os.getpid()))
        if SHARED_MEMORY_FREED not in sys.warnoptions:
            sys.warnoptions.append(SHARED_MEMORY_FREED)  # workers and their tracker inherit it
        start_tracker()
    return iter(batches)


def _cores() -> int:
    """The cores that this process may use, which a scheduler may have limited."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Timed(Iterator[Batch]):
    """Iterates over `batches` and adds up in `seconds` how long the caller waited for them."""

    def __init__(self, batches: Generator[Batch]):
        self._batches = batches
        self.seconds = 0.0

    def close(self) -> None:
        """Ends the threads and processes that read the batches."""
        self._batches.close()

    def __next__(self) -> Batch:
        start = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.seconds += time.perf_counter() - start


def to_device(batches: Any, sharding: jax.sharding.Sharding) -> Generator[Batch]:
    """Puts this process's share of each batch on its devices, one batch ahead of its use; closes `batches` at the end.

    Args:
        batches: an iterator of batches of NumPy arrays, with `close`.
        sharding: sharding of the leading axis over the devices of all processes.

    Raises:
        LostWorker: a process that reads was killed.
    """

    def put(batch: Batch) -> Batch:
        return jax.tree.map(partial(jax.make_array_from_process_local_data, sharding), batch)

    current = None
    workers: set[Any] = set()
    with contextlib.closing(batches), _worker_loss():
        for batch in batches:
            _require_alive(workers)
            ahead = put(batch)
            if current is not None:
                yield current
            current = ahead
    if current is not None:
        yield current


@contextlib.contextmanager
def _worker_loss() -> Iterator[None]:
    """Ends the other workers when one is gone: Grain would wait for them."""
    try:
        yield
    except LostWorker:
        _kill_workers()
        raise
    except RuntimeError as error:
        lost = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
        if lost is None:
            raise
        _kill_workers()
        raise _loss(int(lost[1])) from None


def _require_alive(workers: set[Any]) -> None:
    """Raises LostWorker if a worker was killed since an earlier call, which noted it in `workers`.

    Grain sees it only where it waits for a batch of that worker.
    """
    workers.update(multiprocessing.active_children())
    for worker in workers:
        if (worker.exitcode or 0) < 0:
            raise _loss(worker.exitcode)


def _loss(exit_code: int) -> LostWorker:
    cause = f"by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"with exit code {exit_code}"
    return LostWorker(
        f"the end of a data worker ({cause}; if memory was short, lower config.data_workers or config.data_threads)"
    )


def _kill_workers() -> None:
    for worker in multiprocessing.active_children():
        worker.kill()
