"""Pictures of a run: its training curves, and the images that the network is trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from lma_jax import files
from lma_jax.training.reporting.metrics import read_metrics

DRAWN = {"epoch", "train_top1", "train_top5", "val_top1", "val_top5"}

GREY = (128, 128, 128)
# In pixels, around an example and below it.
MARGIN, LABEL_HEIGHT = 2, 13


def draw_curves(workdir: Path, *, title: str) -> Path | None:
    """Draws top-1 and top-5 error of training and validation to <workdir>/curves.png, and returns its path.

    Before the first evaluation nothing is drawn, and it returns None.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = [row for row in read_metrics(workdir) if row.keys() >= DRAWN]
    if not rows:
        return None
    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("top1", "top5")):
        for split, style, label in (("train", "--", "training"), ("val", "-", "validation")):
            errors = [100 - row[f"{split}_{name}"] for row in rows]
            axes.plot(epochs, errors, style, marker="." if len(rows) < 30 else "", label=f"{label}, {errors[-1]:.2f} %")
        axes.set(xlabel="epoch", ylabel=f"top-{name[-1]} error (%)", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    path = workdir / "curves.png"
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
    return path


def draw_examples(workdir: Path, batch: Any, labels: Sequence[str]) -> Path:
    """Writes up to 64 augmented images to <workdir>/examples.png, each above its label, and returns the path.

    Args:
        workdir: folder of the run.
        batch: images (N, H, W, 3) uint8.
        labels: a label of each. Letters that are not those of Western Europe become question marks.

    Raises:
        UserError: the file cannot be written.
    """
    tiles = [_tile(image, label) for image, label in zip(np.asarray(batch)[:64], labels)]
    columns = min(8, len(tiles))
    width, height = tiles[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), GREY)
    for index, tile in enumerate(tiles):
        sheet.paste(tile, (index % columns * width, index // columns * height))
    path = workdir / "examples.png"
    with files.replacing(path) as temporary:
        sheet.save(temporary)
    return path


def _tile(pixels: np.ndarray, label: str) -> Image.Image:
    """An image, enlarged if it is small, with a margin and as much of its label as there is room for."""
    side = pixels.shape[0] * max(1, 64 // pixels.shape[0])
    tile = Image.new("RGB", (side + 2 * MARGIN, side + 2 * MARGIN + LABEL_HEIGHT), GREY)
    tile.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST), (MARGIN, MARGIN))
    text = label.encode("latin-1", "replace").decode("latin-1")
    ImageDraw.Draw(tile).text((MARGIN + 1, side + MARGIN), text, fill="black")
    return tile
