"""Measures what feeding images costs: CPU time an image against a plain decode of the same bytes, and its scaling.

    python benchmarks/input_pipeline.py [--images 192] [--folder <folder of JPEGs>] [--json <file>]

Without --folder it draws JPEGs of ImageNet's typical size (500 x 375, about 110 KB). Each figure is a ratio of CPU
times taken in turns within one process, since the clock of a shared machine cannot be compared with another's.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import simplejpeg
from PIL import Image

from lma_jax.data.loader import train_batches
from lma_jax.data.regions import decode_region
from lma_jax.data.sources import Source
from lma_jax.data.transforms import Augmentation, random_crop_box, train_image
from lma_jax.images import eval_image
from lma_jax.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(image_size=224, resize_size=256, mean=(0.0,) * 3, std=(1.0,) * 3)
AUGMENTATION = Augmentation(image_size=224, crop_scale=(0.08, 1.0), flip=True, rand_augment=0.0)
ROUNDS = 9
BATCH_SIZE = 32
SCALING = ((1, 0), (2, 0), (1, 1), (1, 2))  # threads (of each worker process, if any) and worker processes
SCALING_BATCHES = 60
GPUS = 8
GPU_RATES = (1000, 3000)  # images/s that one GPU trains on; the latter is an H100 with a ResNet-50


def draw_jpegs(count: int) -> list[bytes]:
    """Pictures with structure on every scale and some noise, so that they compress as photographs do."""
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


def pillow_train(encoded: bytes, rng: np.random.Generator) -> np.ndarray:
    """The reference recipe's pixels, by Pillow alone."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    box = random_crop_box(*image.size, rng, scale=AUGMENTATION.crop_scale)
    image = image.crop(box).resize((224, 224), Image.Resampling.BILINEAR)
    return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image)


def pillow_eval(encoded: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    width, height = (int(256 * side / min(image.size)) for side in image.size)
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224)))


def distances(files: list[bytes]) -> dict[str, dict[str, float]]:
    """How far the pixels are from Pillow's, in grey levels."""
    result = {}
    for name, ours, reference in (
        ("train", lambda f, i: train_image(f, np.random.default_rng(i), AUGMENTATION), pillow_train),
        ("eval", lambda f, i: eval_image(f, PREPROCESSING), lambda f, rng: pillow_eval(f)),
    ):
        differences = [
            np.abs(ours(file, index).astype(int) - reference(file, np.random.default_rng(index)))
            for index, file in enumerate(files)
        ]
        result[name] = {"mean": float(np.mean(differences)), "largest": int(np.max(differences))}
        print("{} pixels against Pillow's: mean {mean:.4f}, largest {largest} grey levels".format(name, **result[name]))
    return result


class Repeated(Sequence[dict[str, Any]]):
    """The files over and over, as many as ImageNet has: Grain's shuffle of a few hundred would cost 0.3 ms an image."""

    def __init__(self, files: list[bytes]):
        self._files = files

    def __len__(self) -> int:
        return 1_281_167

    def __getitem__(self, index: Any) -> dict[str, Any]:
        return {"image": self._files[index % len(self._files)], "label": 0}


def batches_of(files: list[bytes], threads: int, workers: int) -> Any:
    return train_batches(
        Source("benchmark", Repeated(files), classes=["one"]),
        augmentation=AUGMENTATION,
        batch_size=BATCH_SIZE,
        seed=0,
        start_step=0,
        threads=threads,
        workers=workers,
    )


def load_seconds(files: list[bytes]) -> float:
    """CPU time of the whole loader with one thread, which works on the next batch whenever one is taken."""
    with contextlib.closing(batches_of(files, threads=1, workers=0)) as batches:
        next(batches)
        count = len(files) // BATCH_SIZE
        seconds = cpu_seconds(lambda: [next(batches)["label"] for _ in range(count)]) / (count * BATCH_SIZE)
    time.sleep(0.3)  # until the batch that it works on is done
    return seconds


def loader_over_decode(images: int, repeats: int) -> list[float]:
    """Quartiles of the loader's images a second of CPU time over those of a plain decode."""
    files = draw_jpegs(images)
    decode_all = mean_seconds(lambda file: simplejpeg.decode_jpeg(file, "RGB"), files)
    return np.percentile([decode_all() / load_seconds(files) for _ in range(repeats)], (25, 50, 75)).tolist()


def mean_seconds(function: Callable[[bytes], Any], files: list[bytes]) -> Callable[[], float]:
    """What measures the CPU time of `function` a file."""

    def run() -> None:
        for file in files:  # nothing is kept: the memory of all would have to come from the system
            function(file)

    return lambda: cpu_seconds(run) / len(files)


def costs(files: list[bytes]) -> dict[str, dict[str, float]]:
    """CPU time an image of each task, in ms and as a ratio to a plain decode: the medians over the rounds."""
    rng = np.random.default_rng(0)
    transforms: dict[str, Callable[[bytes], Any]] = {
        "plain decode": lambda file: simplejpeg.decode_jpeg(file, "RGB"),
        "train transform": lambda file: train_image(file, rng, AUGMENTATION),
        "train by Pillow": lambda file: pillow_train(file, rng),
        "eval transform": lambda file: eval_image(file, PREPROCESSING),
        "eval by Pillow": lambda file: pillow_eval(file),
    }
    tasks = {name: mean_seconds(transform, files) for name, transform in transforms.items()}
    tasks["loader"] = lambda: load_seconds(files)
    if decode_region(files[0], (0, 0, 2, 1)) is not None:
        without = mock.patch("lma_jax.data.transforms.decode_region", refuse)
        tasks |= {f"{name} without nvImageCodec": without(tasks[name]) for name in ("train transform", "loader")}
    seconds = np.array([[task() for task in tasks.values()] for _ in range(ROUNDS)])
    ratios = np.median(seconds / seconds[:, :1], axis=0)
    result = {}
    for name, milliseconds, ratio in zip(tasks, 1e3 * np.median(seconds, axis=0), ratios):
        result[name] = {"ms": float(milliseconds), "x decode": float(ratio)}
        print(f"{name:36} {milliseconds:6.3f} ms of CPU an image, {ratio:5.2f} x decode")
    return result


def refuse(encoded: bytes, box: tuple[int, int, int, int]) -> None:
    """Stands for an nvImageCodec that is not installed."""


def cpu_seconds(task: Callable[[], object]) -> float:
    start = time.process_time()
    task()
    return time.process_time() - start


def scaling(files: list[bytes]) -> list[dict[str, float]]:
    """Wall-clock images a second, and CPU time an image, by threads and worker processes.

    On a machine that others use, images a second scale no further than the cores that the loader got.
    """
    rows = []
    for threads, workers in SCALING:
        with contextlib.closing(batches_of(files, threads, workers)) as batches:
            for _ in range(8):  # until all work, and nothing waits from before
                next(batches)
            wall, parent, children = time.perf_counter(), time.process_time(), children_cpu_seconds()
            for _ in range(SCALING_BATCHES):
                next(batches)
            wall, parent = time.perf_counter() - wall, time.process_time() - parent
            total = parent + children_cpu_seconds() - children
        images = BATCH_SIZE * SCALING_BATCHES
        figures = {"images/s": images / wall, "cores": total / wall}
        figures |= {"ms of CPU": 1e3 * total / images, "ms in the parent": 1e3 * parent / images}
        rows.append({"threads": threads, "workers": workers, **figures})
    print("\nthreads  worker processes  images/s  cores that it got  ms of CPU an image  of it in the parent")
    for row in rows:
        print("{:7}  {:16}  {:8.0f}  {:17.2f}  {:18.3f}  {:19.3f}".format(*row.values()))
    return rows


def children_cpu_seconds() -> float:
    """CPU time of the worker processes that live, by the number that Linux gives a process's clock."""
    return sum(time.clock_gettime((~child.pid << 3) | 2) for child in multiprocessing.active_children())


def prediction(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """CPU cores that feed GPUS GPUs: GPUS x rate / images a second and core.

    It assumes cores as fast as this machine's when all are busy, and images already in memory.
    """
    result = {}
    print(f"\ncores to feed {GPUS} GPUs = {GPUS} x images/s of a GPU / images a second and core (this machine's cores)")
    for name, row in (("threads", rows[1]), ("worker processes", rows[-1])):
        a_core = 1e3 / row["ms of CPU"]
        result[name] = {f"{rate} images/s": GPUS * rate / a_core for rate in GPU_RATES}
        needs = ", ".join(f"{cores:.0f} for {rate}" for rate, cores in result[name].items())
        print(f"{name:16} {a_core:5.0f} images a second and core: {needs} a GPU")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=192, help=f"at least {BATCH_SIZE}, a batch of the loader")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None, help="file for all figures")
    options = parser.parse_args()
    if options.folder:
        paths = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        files = [path.read_bytes() for path in paths[: options.images]]
    else:
        files = draw_jpegs(options.images)
    if len(files) < BATCH_SIZE:
        parser.error(f"a batch of the loader takes {BATCH_SIZE} JPEGs, these are {len(files)}")
    size = float(np.mean([len(file) for file in files]) / 1e3)
    fast = decode_region(files[0], (0, 0, 2, 1)) is not None
    print(f"{len(files)} files of {size:.0f} KB; nvImageCodec is {'' if fast else 'not '}installed")
    figures: dict[str, Any] = {"files": len(files), "KB": size, "nvImageCodec": fast}
    figures["distances"] = distances(files)
    figures["costs"] = costs(files)
    figures["scaling"] = scaling(files)
    figures["cores"] = prediction(figures["scaling"])
    figures["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak memory {figures['peak MB']:,.0f} MB")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
