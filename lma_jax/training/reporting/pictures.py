"""Pictures of a run: its training curves, and the images that the network is trained on."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lma_jax import files
from lma_jax.training.reporting.metrics import read_metrics

DRAWN = {"epoch", "train_top1", "train_top5", "val_top1", "val_top5"}


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


def draw_examples(workdir: Path, batch: Any) -> Path:
    """Writes up to 64 augmented images of a batch (N, H, W, 3) uint8 to <workdir>/examples.png, and returns its path.

    Raises:
        UserError: the file cannot be written.
    """
    images = np.pad(np.asarray(batch)[:64], ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=128)
    columns = min(8, len(images))
    rows = len(images) // columns
    height, width, channels = images.shape[1:]
    grid = images[: rows * columns].reshape(rows, columns, height, width, channels)
    sheet = Image.fromarray(grid.swapaxes(1, 2).reshape(rows * height, columns * width, channels))
    factor = max(1, 64 // width)
    path = workdir / "examples.png"
    enlarged = sheet.resize((sheet.width * factor, sheet.height * factor), Image.Resampling.NEAREST)
    with files.replacing(path) as temporary:
        enlarged.save(temporary)
    return path
