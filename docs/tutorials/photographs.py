"""The images of the tutorials: tiles of scikit-learn's two photographs, a temple and a flower, as an image folder."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

TILE = 64  # pixels
CLASSES = {"flower": "flower.jpg", "temple": "china.jpg"}


def write_tiles(folder: str, *, train: int = 128, val: int = 32) -> None:
    """Writes <folder>/train/<class>/ and <folder>/val/<class>/ with so many tiles in all.

    Tiles for training come from the left two thirds of a photograph, those for validation from the rest.
    """
    rng = np.random.default_rng(0)
    for name, photograph in CLASSES.items():
        pixels = load_sample_image(photograph)
        border = pixels.shape[1] * 2 // 3
        parts = {"train": (pixels[:, :border], train), "val": (pixels[:, border:], val)}
        for split, (part, count) in parts.items():
            Path(folder, split, name).mkdir(parents=True)
            for number in range(count // len(CLASSES)):
                top, left = (rng.integers(side - TILE) for side in part.shape[:2])
                tile = Image.fromarray(part[top : top + TILE, left : left + TILE])
                tile.save(Path(folder, split, name, f"{number:03}.jpg"), quality=95)


def write_both(file: str) -> None:
    """Writes one image of both classes: the flower on the left, the temple on the right."""
    flower, temple = (Image.fromarray(load_sample_image(CLASSES[name])) for name in ("flower", "temple"))
    both = Image.new("RGB", (320, 320))
    both.paste(flower.crop((240, 60, 400, 380)), (0, 0))
    both.paste(temple.crop((160, 60, 320, 380)), (160, 0))
    both.save(file, quality=95)
