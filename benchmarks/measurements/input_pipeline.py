"""What reading and decoding images costs: processor time, pixels, and scaling over threads and worker processes."""

import contextlib
import io
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import simplejpeg
from PIL import Image

from convert.measure.timing import Quartiles, quartiles
from lma_jax.data.loader import Reading, train_batches
from lma_jax.data.regions import decode_region
from lma_jax.data.sources import Source
from lma_jax.data.transforms import Augmentation, random_crop_box, resize, train_image
from lma_jax.images import decode_pixels, eval_image
from lma_jax.preprocessing import IMAGENET

AUGMENTATION = Augmentation(image_size=224, crop_scale=(0.08, 1.0), flip=True, rand_augment=0.0)
ROUNDS = 9
BATCH_SIZE = 32
SCALING = ((1, 0), (2, 0), (1, 1), (1, 2))  # threads (in each worker process, if any) and worker processes
SCALING_BATCHES = 60
MEMORY = {"threads": 16, "batch_size": 256}
GPUS = 8
GPU_RATES = (1000, 3000)  # images/s that one GPU trains on; the latter is an H100 with a ResNet-50


def draw_jpegs(count: int) -> list[bytes]:
    """Draws JPEGs of ImageNet's typical size, 500 x 375 pixels and about 110 KB.

    They have structure on every scale and some noise, so that they compress as photographs do.
    """
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(count):
        picture = rng.normal(0, 11, (375, 500, 3))
        for scale in (4, 16, 64, 250):
            noise = Image.fromarray(rng.integers(0, 256, (scale * 3 // 4, scale, 3), np.uint8))
            picture += np.asarray(noise.resize((500, 375), Image.Resampling.BICUBIC)) * (0.5 if scale < 100 else 0.25)
        buffer = io.BytesIO()
        Image.fromarray(np.clip(picture / 1.75, 0, 255).astype(np.uint8)).save(buffer, "jpeg", quality=95)
        encoded.append(buffer.getvalue())
    return encoded


def read_jpegs(folder: Path, count: int) -> list[bytes]:
    """Reads the first JPEGs of a folder, at any depth."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    return [path.read_bytes() for path in paths[:count]]


def decodes_crops(file: bytes) -> bool:
    """Whether nvImageCodec, which decodes only the crop of an image, is installed."""
    return decode_region(file, (0, 0, 2, 1)) is not None


def known_train_image(encoded: bytes, rng: np.random.Generator, augmentation: Augmentation, **_: bool) -> np.ndarray:
    """Stands for `train_image` of a file that was decoded before."""
    return train_image(encoded, rng, augmentation, intact=True)


def decode_no_region(encoded: bytes, box: tuple[int, int, int, int]) -> None:
    """Stands for `decode_region` without nvImageCodec; a mock would cost time."""


def pillow_train(encoded: bytes, rng: np.random.Generator) -> np.ndarray:
    """A training image of the reference recipe, computed by Pillow alone."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    box = random_crop_box(*image.size, rng, scale=AUGMENTATION.crop_scale)
    image = image.crop(box).resize((224, 224), Image.Resampling.BILINEAR)
    return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image)


def pillow_eval(encoded: bytes) -> np.ndarray:
    """An evaluation image of the reference recipe, computed by Pillow alone."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    width, height = (int(256 * side / min(image.size)) for side in image.size)
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224)))


def torchvision_transforms() -> dict[str, Callable[[bytes], Any]]:
    """The reference recipe's own transforms on Pillow, up to the tensor of bytes; none where torchvision is missing."""
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError):  # the latter beside a PyTorch of another build
        return {}
    train = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    evaluation = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])
    return {
        "train by torchvision": lambda file: train(Image.open(io.BytesIO(file)).convert("RGB")),
        "eval by torchvision": lambda file: evaluation(Image.open(io.BytesIO(file)).convert("RGB")),
    }


def train_pixels(whole: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What follows the decoding of a training image, but for the flip: crop and resize."""
    left, top, right, bottom = random_crop_box(whole.shape[1], whole.shape[0], rng, scale=AUGMENTATION.crop_scale)
    return resize(whole[top:bottom, left:right], AUGMENTATION.image_size)


def distances(files: list[bytes]) -> dict[str, dict[str, float]]:
    """Distance of the pixels from Pillow's in training and evaluation: its mean and largest in grey levels, and the
    shares of values that differ at all and by more than one.
    """
    rng = np.random.default_rng
    pairs = {
        "train": [
            (train_image(file, rng(i), AUGMENTATION), pillow_train(file, rng(i))) for i, file in enumerate(files)
        ],
        "eval": [(eval_image(file, IMAGENET), pillow_eval(file)) for file in files],
    }
    found = {}
    for name, images in pairs.items():
        apart = np.stack([np.abs(ours.astype(int) - reference) for ours, reference in images])
        shares = {"differ": float((apart > 0).mean()), "by more than 1": float((apart > 1).mean())}
        found[name] = {"mean": float(apart.mean()), "largest": int(apart.max()), **shares}
    return found


class Repeated:
    """The files over and over, as many as ImageNet has: Grain's shuffle of a few hundred would cost 0.3 ms an image."""

    def __init__(self, files: list[bytes]):
        self._files = files

    def __len__(self) -> int:
        return 1_281_167

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._files[index % len(self._files)], "label": 0}


def batches_of(files: list[bytes], threads: int, workers: int, batch_size: int = BATCH_SIZE) -> Any:
    """The trainer's batches of these files, an endless stream."""
    return train_batches(
        Source("benchmark", Repeated(files), class_names=("one",)),
        augmentation=AUGMENTATION,
        batch_size=batch_size,
        seed=0,
        start_step=0,
        reading=Reading(threads, workers),
    )


def cpu_seconds(task: Callable[[], object]) -> float:
    """Processor time of a call, over all threads."""
    start = time.process_time()
    task()
    return time.process_time() - start


def loader_seconds(files: list[bytes]) -> float:
    """Processor time per image of the whole loader with one thread, which reads the next batch when one is taken.

    As from the second epoch on, when crops are decoded alone.
    """
    known = mock.patch("lma_jax.data.loader.train_image", known_train_image)
    with known, contextlib.closing(batches_of(files, threads=1, workers=0)) as batches:
        next(batches)
        count = len(files) // BATCH_SIZE
        seconds = cpu_seconds(lambda: [next(batches)["label"] for _ in range(count)]) / (count * BATCH_SIZE)
    time.sleep(0.3)  # until the batch that the thread works on is done
    return seconds


def per_file(function: Callable[[bytes], Any], files: list[bytes]) -> Callable[[], float]:
    """A function that measures the processor time of `function` per file."""

    def run() -> None:
        for file in files:  # no result is kept: the memory for all would have to come from the system
            function(file)

    return lambda: cpu_seconds(run) / len(files)


def plain_decode(file: bytes) -> np.ndarray:
    """The reference of all costs: libjpeg-turbo decodes the whole image."""
    return simplejpeg.decode_jpeg(file, "RGB")


def loader_over_decode(*, images: int, rounds: int) -> Quartiles:
    """Quartiles of the loader's images per second of processor time over those of a plain decode."""
    files = draw_jpegs(images)
    decode = per_file(plain_decode, files)
    return quartiles([decode() / loader_seconds(files) for _ in range(rounds)])


def costs(files: list[bytes]) -> dict[str, dict[str, float]]:
    """Processor time per image of each task, in ms and relative to a plain decode: medians over the rounds."""
    rng = np.random.default_rng(0)
    functions: dict[str, Callable[[bytes], Any]] = {
        "plain decode": plain_decode,
        "train transform": lambda file: train_image(file, rng, AUGMENTATION, intact=True),
        "train transform, first epoch": lambda file: train_image(file, rng, AUGMENTATION),
        "train by Pillow": lambda file: pillow_train(file, rng),
        "eval transform": lambda file: eval_image(file, IMAGENET),
        "eval by Pillow": pillow_eval,
        **torchvision_transforms(),
    }
    decoded = {file: decode_pixels(file) for file in files}
    functions["crop and resize alone"] = lambda file: train_pixels(decoded[file], rng)
    tasks = {name: per_file(function, files) for name, function in functions.items()}
    tasks["loader"] = lambda: loader_seconds(files)
    if decodes_crops(files[0]):
        without = mock.patch("lma_jax.data.transforms.decode_region", decode_no_region)
        tasks |= {f"{name} without nvImageCodec": without(tasks[name]) for name in ("train transform", "loader")}
    seconds = np.array([[task() for task in tasks.values()] for _ in range(ROUNDS)])
    ratios = np.median(seconds / seconds[:, :1], axis=0)
    milliseconds = 1e3 * np.median(seconds, axis=0)
    return {name: {"ms": float(ms), "x decode": float(ratio)} for name, ms, ratio in zip(tasks, milliseconds, ratios)}


def loader_memory(files: list[bytes], *, threads: int, batch_size: int) -> dict[str, float]:
    """Memory of a loader in a process of its own, in MB: its peak above that of the process before, and a batch's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        above = pool.apply(_peak_above, (files, threads, batch_size))
    batch = batch_size * AUGMENTATION.image_size**2 * 3 / 1e6
    return {"threads": threads, "MB": above, "MB of a batch": batch}


def _peak_above(files: list[bytes], threads: int, batch_size: int) -> float:
    before = _megabytes("VmRSS")
    with contextlib.closing(batches_of(files, threads, 0, batch_size)) as batches:
        for _ in range(6):
            next(batches)
    return _megabytes("VmHWM") - before


def _megabytes(name: str) -> float:
    """A figure of /proc/self/status; needs Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def scaling(files: list[bytes]) -> list[dict[str, float]]:
    """Wall-clock images/s and processor time per image in the first epoch, by threads and worker processes.

    On a shared machine, images/s scale no further than the cores that the loader gets.
    """
    return [
        {"threads": threads, "workers": workers, **_throughput(files, threads, workers)} for threads, workers in SCALING
    ]


def _throughput(files: list[bytes], threads: int, workers: int) -> dict[str, float]:
    with contextlib.closing(batches_of(files, threads, workers)) as batches:
        for _ in range(8):  # until all threads work, and no batch waits that was read before
            next(batches)
        wall, parent, children = time.perf_counter(), time.process_time(), children_cpu_seconds()
        for _ in range(SCALING_BATCHES):
            next(batches)
        wall, parent = time.perf_counter() - wall, time.process_time() - parent
        total = parent + children_cpu_seconds() - children
    images = BATCH_SIZE * SCALING_BATCHES
    return {
        "images/s": images / wall,
        "cores": total / wall,
        "ms of CPU": 1e3 * total / images,
        "ms in the parent": 1e3 * parent / images,
    }


def children_cpu_seconds() -> float:
    """Processor time of the worker processes that are alive; needs Linux."""
    identifiers = (child.pid for child in multiprocessing.active_children())
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in identifiers if pid is not None)


def cores_needed(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """By kind of parallelism, images/s per core ("a core"), and the cores that feed GPUS GPUs at each of GPU_RATES.

    Assumes that all cores are as fast as this machine's when all are busy, and that files are in memory.

    Args:
        rows: of `scaling`.
    """
    found = {}
    for name, row in (("threads", rows[1]), ("worker processes", rows[-1])):
        per_core = 1e3 / row["ms of CPU"]
        found[name] = {"a core": per_core, **{f"{rate} images/s": GPUS * rate / per_core for rate in GPU_RATES}}
    return found
