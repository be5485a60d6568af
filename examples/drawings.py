"""Drawings of rectangles, circles and triangles with their boxes, for examples that need no download.

    python examples/drawings.py --output runs/shapes/data [--count 1200] [--size 64]

writes drawings of one shape each as an image folder of three classes, on which lma_jax.train pretrains a backbone.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("circle", "rectangle", "triangle")
# Sides of a box, as shares of the image's.
SMALLEST, LARGEST = 0.25, 0.5


class Drawing(NamedTuple):
    """An image with shapes that do not overlap.

    Attributes:
        image: (size, size, 3) uint8.
        boxes: (n, 4) float32: left, top, right and bottom in pixels, right and bottom excluded.
        labels: (n,) int64, indices of CLASSES.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def draw(rng: np.random.Generator, *, size: int, shapes: int = 4) -> Drawing:
    """Draws 1 to `shapes` shapes of random kinds, places, sizes and colours on a noisy background."""
    background = rng.integers(0, 256, 3)
    image = Image.fromarray(np.clip(background + rng.normal(0, 20, (size, size, 3)), 0, 255).astype(np.uint8))
    canvas = ImageDraw.Draw(image)
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    for _ in range(rng.integers(1, shapes + 1)):
        label = int(rng.integers(len(CLASSES)))
        width, height = rng.uniform(SMALLEST * size, LARGEST * size, 2).astype(int)
        height = width if CLASSES[label] == "circle" else height
        left, top = rng.integers(0, size - width + 1), rng.integers(0, size - height + 1)
        box = (int(left), int(top), int(left + width), int(top + height))
        if not any(overlap(box, other) for other in boxes):  # otherwise this shape is left out
            colour = tuple(((background + rng.integers(80, 176, 3)) % 256).tolist())
            draw_shape(canvas, CLASSES[label], box, colour)
            boxes.append(box)
            labels.append(label)
    return Drawing(np.asarray(image), np.array(boxes, np.float32), np.array(labels, np.int64))


def draw_shape(canvas: ImageDraw.ImageDraw, kind: str, box: tuple[int, int, int, int], colour: tuple[int, ...]) -> None:
    """Draws one of CLASSES so that it touches all four sides of its box."""
    left, top, right, bottom = box[0], box[1], box[2] - 1, box[3] - 1  # Pillow includes the last pixel
    if kind == "circle":
        canvas.ellipse((left, top, right, bottom), fill=colour)
    elif kind == "rectangle":
        canvas.rectangle((left, top, right, bottom), fill=colour)
    else:
        canvas.polygon([((left + right) // 2, top), (right, bottom), (left, bottom)], fill=colour)


def overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    """Whether two boxes have a pixel in common."""
    return max(one[0], other[0]) < min(one[2], other[2]) and max(one[1], other[1]) < min(one[3], other[3])


def write_folder(folder: Path, *, count: int, size: int, seed: int) -> None:
    """Writes `count` drawings of one shape as folder/<class>/<number>.png."""
    rng = np.random.default_rng(seed)
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        drawing = draw(rng, size=size, shapes=1)
        Image.fromarray(drawing.image).save(folder / CLASSES[drawing.labels[0]] / f"{number}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write train/ and val/ into")
    parser.add_argument("--count", type=int, default=1200, help="drawings for training; a fifth of it for validation")
    parser.add_argument("--size", type=int, default=64, help="side of the drawings in pixels")
    options = parser.parse_args()
    write_folder(options.output / "train", count=options.count, size=options.size, seed=0)
    write_folder(options.output / "val", count=options.count // 5, size=options.size, seed=1)


if __name__ == "__main__":
    main()
