"""Measures what feeding images costs: CPU time an image against a plain decode of the same bytes, and memory.

    python benchmarks/input_pipeline.py [--images 200] [--folder <folder of JPEGs>]

Without --folder it draws JPEGs of ImageNet's typical size (500 x 375, about 110 KB). Each figure is a ratio of CPU
times taken in turns within one process, since the clock of a shared machine cannot be compared with another's.
"""

import argparse
import io
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from lma_jax.data.loader import train_batches
from lma_jax.data.sources import Source
from lma_jax.data.transforms import Augmentation, Preprocessing, eval_image, random_crop_box, train_image

PREPROCESSING = Preprocessing(image_size=224, resize_size=256, mean=(0.0,) * 3, std=(1.0,) * 3)
AUGMENTATION = Augmentation(image_size=224, crop_scale=(0.08, 1.0), flip=True, rand_augment=0.0)
REPEATS = 5


def draw_jpegs(count: int) -> list[bytes]:
    """Pictures with structure on every scale, so that they compress as photographs do."""
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(count):
        picture = np.zeros((375, 500, 3))
        for scale in (4, 16, 64, 250):
            noise = Image.fromarray(rng.integers(0, 256, (scale * 3 // 4, scale, 3), np.uint8))
            picture += np.asarray(noise.resize((500, 375), Image.Resampling.BICUBIC)) * (0.5 if scale < 100 else 0.25)
        buffer = io.BytesIO()
        Image.fromarray(np.clip(picture / 1.75, 0, 255).astype(np.uint8)).save(buffer, "jpeg", quality=92)
        encoded.append(buffer.getvalue())
    return encoded


def cpu_seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


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


def distances(files: list[bytes]) -> None:
    """Prints how far the pixels are from Pillow's."""
    for name, ours, reference in (
        ("train", lambda f, i: train_image(f, np.random.default_rng(i), AUGMENTATION), pillow_train),
        ("eval", lambda f, i: eval_image(f, PREPROCESSING), lambda f, rng: pillow_eval(f)),
    ):
        differences = [
            np.abs(ours(file, index).astype(int) - reference(file, np.random.default_rng(index)))
            for index, file in enumerate(files)
        ]
        mean, largest = np.mean(differences), np.max(differences)
        print(f"{name:5} pixels against Pillow's: mean {mean:.4f}, largest {largest} grey levels")


def loader_seconds(files: list[bytes]) -> float:
    """CPU time of the whole loader, its threads included, to fill batches of 32 from the files."""
    records = [{"image": file, "label": 0} for file in files]
    count = len(files) // 32

    def load() -> None:
        batches = train_batches(
            Source("benchmark", records, classes=["one"]),
            augmentation=AUGMENTATION,
            batch_size=32,
            seed=0,
            start_step=0,
            threads=1,
        )
        for _ in range(count):
            next(batches)

    return cpu_seconds(load) / (32 * count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    if options.folder:
        paths = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        files = [path.read_bytes() for path in paths[: options.images]]
    else:
        files = draw_jpegs(options.images)
    print(f"{len(files)} files of {np.mean([len(file) for file in files]) / 1e3:.0f} KB")
    distances(files)

    rng = np.random.default_rng(0)
    tasks = {
        "plain decode": lambda: [simplejpeg.decode_jpeg(file, "RGB") for file in files],
        "train transform": lambda: [train_image(file, rng, AUGMENTATION) for file in files],
        "eval transform": lambda: [eval_image(file, PREPROCESSING) for file in files],
        "train by Pillow": lambda: [pillow_train(file, rng) for file in files],
        "eval by Pillow": lambda: [pillow_eval(file) for file in files],
    }
    seconds: dict[str, list[float]] = {name: [] for name in (*tasks, "loader")}
    for _ in range(REPEATS):
        for name, task in tasks.items():
            seconds[name].append(cpu_seconds(task) / len(files))
        seconds["loader"].append(loader_seconds(files))
    plain = np.median(seconds["plain decode"])
    for name, values in seconds.items():
        print(f"{name:16} {1e3 * np.median(values):6.3f} ms of CPU an image, {np.median(values) / plain:5.2f} x decode")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")


if __name__ == "__main__":
    main()
