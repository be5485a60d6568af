"""The training curves: error over epochs, as in the paper's Figure 4."""

import os
from pathlib import Path

from lma_jax.training.metrics import read_metrics


def draw_curves(workdir: Path, *, title: str) -> Path | None:
    """Draws top-1 and top-5 error of training and validation to <workdir>/curves.png, and returns its path.

    Nothing is drawn before the first evaluation.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = [row for row in read_metrics(workdir) if "val_top1" in row]
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
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    os.replace(temporary, path)
    return path
