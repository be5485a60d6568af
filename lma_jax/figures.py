"""Pictures of what a network looks at: class activation maps over images, and the gates of LMA layers.

A figure is a matplotlib Figure.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lma_jax import cam, files
from lma_jax.errors import UserError, one_line
from lma_jax.preprocessing import Preprocessing, normalize

SUFFIXES = (".png", ".pdf", ".svg")
# Written into every picture, whereby it is recognised.
CREATOR = "lma_jax.gradcam"
METHOD_NAMES = {"gradcam++": "Grad-CAM++", "gradcam": "Grad-CAM"}
GATED_LAYERS = 4


def require_suffix(path: Path) -> None:
    """Raises a UserError if `save` does not know the type of file."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} must end in {', '.join(SUFFIXES)}")


def save(figure: Any, path: Path) -> None:
    """Writes a figure atomically, as .png, .pdf or .svg.

    Raises:
        UserError: the file cannot be written.
    """
    with files.replacing(path) as temporary:
        write(figure, temporary, dpi=150)


def write(figure: Any, target: Path | BinaryIO, *, dpi: int) -> None:
    """Writes a figure, as the suffix of a path says or as PNG."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # in names that the font cannot write
        figure.savefig(target, dpi=dpi, metadata={"Creator": CREATOR})


def ranked_classes(logits: np.ndarray, loss: str) -> list[tuple[int, float]]:
    """The classes and their probabilities under a training loss ("softmax" or "sigmoid"), most probable first."""
    odds = np.exp(logits - logits.max())
    probabilities = 1 / (1 + np.exp(-logits)) if loss == "sigmoid" else odds / odds.sum()
    return [(int(index), float(probabilities[index])) for index in np.argsort(-logits, kind="stable")]


def labels(class_names: Sequence[str] | None) -> Callable[[int], str]:
    """What a class is called in lines and pictures: its name, or "class 3" if that is a number or unknown."""

    def label(index: int) -> str:
        name = str(index) if class_names is None else class_names[index]
        return f"class {name}" if name.isdecimal() else name

    return label


def draw_images(images: Mapping[str, np.ndarray], title: str) -> Any:
    """Draws images (H, W, 3) uint8, each below its caption."""
    return _draw_sheet([Tile(image, None, caption) for caption, image in images.items()], title, strip=1)


def draw_maps(
    model: nnx.Module,
    images: Mapping[str, np.ndarray],
    preprocessing: Preprocessing,
    title: str,
    *,
    layers: Sequence[str | None] = (None,),
    method: str = "gradcam++",
    class_id: int | None = None,
    class_names: Sequence[str] | None = None,
    loss: str = "softmax",
    top: int = 5,
    report: Callable[[str], None] = print,
) -> Any:
    """Draws each image beside one class activation map per layer, and reports its most probable classes.

    Args:
        model: a network.
        images: (H, W, 3) uint8 by name, as `images.read_image` gives them.
        preprocessing: turns an image into the network's input.
        title: of the figure.
        layers, method: see `cam.activation_map`.
        class_id: the class to explain; by default the most probable one of each image.
        class_names: by index; without them, class 3 is called "class 3".
        loss: of the training, which decides what a probability is.
        top: number of classes to report.
        report: receives a line for each image.

    Raises:
        ValueError: see `cam.activation_map`.
    """
    name_of = labels(class_names)
    tiles: list[Tile] = []
    for name, image in images.items():
        inputs = normalize(jnp.asarray(image[None]), preprocessing)
        overlays = []
        chosen = [layer or cam.earlier_layer(model, inputs) for layer in layers]
        for layer in chosen:
            maps, logits = cam.activation_map(model, inputs, class_id, layer=layer, method=method)
            overlays.append(np.asarray(cam.scale_and_resize(maps, image.shape[:2]))[0])
            if maps[0].size == 1 and not tiles:
                report(f"warning: the map of {layer or 'the last layer'} is one pixel: name an earlier --layer")
        ranked = ranked_classes(np.asarray(logits)[0], loss)
        best = ", ".join(f"{name_of(index)} {100 * p:.2f} %" for index, p in ranked[:top])
        report(one_line(f"{name}: {best}"))
        explained = next(f"{name_of(index)}, {100 * p:.1f} %" for index, p in ranked if class_id in (None, index))
        tiles.append(Tile(image, None, name))
        captions = [", ".join(filter(None, (layer, explained))) for layer in chosen]
        tiles += [Tile(image, overlay, caption) for overlay, caption in zip(overlays, captions)]
    return _draw_sheet(tiles, title, strip=1 + len(layers), label=f"{METHOD_NAMES[method]}, scaled to each image")


def draw_gates(
    model: nnx.Module, name: str, image: np.ndarray, preprocessing: Preprocessing, title: str, *, layers: Sequence[str]
) -> Any:
    """Draws the gates of LMA layers around an image (H, W, 3) uint8, a panel for each layer.

    Without `layers`, GATED_LAYERS from the first to the last are drawn.

    Raises:
        UserError: the network has no LMA layers.
        ValueError: no such layer.
    """
    from matplotlib.figure import Figure

    available = cam.lma_layers(model)
    if not available:
        raise UserError("the network has no LMA layers, so there are no gates to draw")
    spread = np.unique(np.linspace(0, len(available) - 1, GATED_LAYERS).round().astype(int))
    layers = layers or [available[index] for index in spread]
    gates = cam.gates(model, normalize(jnp.asarray(image[None]), preprocessing), layers)

    columns = min(2, len(layers))
    rows = -(-len(layers) // columns)
    side = 5.8  # inches
    figure = Figure(figsize=(side * columns, side * rows + 0.5))
    heading = f"LMA's gates, y = x · gate_h · gate_w: {files.printable(name)}, {title}"
    figure.suptitle(heading, y=1 - 0.25 / figure.get_figheight(), parse_math=False)
    for index, layer in enumerate(layers):
        gate_h, gate_w = (np.asarray(gate, np.float32)[0] for gate in gates[layer])
        corner = (side * (index % columns) + 0.55, side * (rows - 1 - index // columns) + 0.55)
        _draw_panel(figure, corner, layer, image, gate_h[:, 0], gate_w[0])
    return figure


class Tile(NamedTuple):
    """An image (H, W, 3), a map (H, W) in [0, 1] to lay over it, if any, and a caption."""

    image: np.ndarray
    overlay: np.ndarray | None
    caption: str


def _draw_sheet(tiles: Sequence[Tile], title: str, *, strip: int, label: str = "") -> Any:
    """Draws tiles, of which `strip` successive ones share a row, and a colour bar if there is a label for it."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    strips = len(tiles) // strip
    columns = strip * min(strips, max(1, round(math.sqrt(1.5 * strips / strip))))
    rows = -(-len(tiles) // columns)
    figure = Figure(figsize=(2.4 * columns + 1, 2.65 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, tile in zip(grid.flat, tiles):
        axes.imshow(tile.image)
        axes.set_title(files.printable(tile.caption), fontsize=9, parse_math=False)
        if tile.overlay is not None:
            axes.imshow(tile.overlay, cmap="jet", alpha=0.5, vmin=0, vmax=1)
    if label:
        bar = figure.colorbar(ScalarMappable(cmap="jet"), ax=grid, shrink=0.9, aspect=30 * rows)
        bar.set_label(label)
    figure.suptitle(title)
    return figure


def _draw_panel(
    figure: Any, corner: tuple[float, float], layer: str, image: np.ndarray, gate_h: np.ndarray, gate_w: np.ndarray
) -> None:
    """Draws gate_h (h, C) and gate_w (w, C) around an image. The panel's lower left corner is in inches.

    The mean of the products lies over the image. Beside and above it are the mean of each gate, and then the single
    channels, each without its own mean: their levels are so far apart that changes along an axis would not be seen.
    """
    size, channels = image.shape[0], gate_h.shape[1]

    def add_axes(x: float, y: float, width: float, height: float, **options: Any) -> Any:
        box = np.array([corner[0] + x, corner[1] + y, width, height])
        axes = figure.add_axes(box / np.tile(figure.get_size_inches(), 2), **options)
        axes.tick_params(labelsize=7)
        return axes

    whole: dict[str, Any] = dict(extent=(0, size, size, 0), aspect="auto")
    centre = add_axes(0, 0, 3, 3, xticks=[], yticks=[])
    centre.imshow(image.mean(-1), cmap="gray", **whole)
    product = centre.imshow(gate_h @ gate_w.T / channels, cmap="viridis", alpha=0.5, **whole)

    mean_w = add_axes(0, 3.1, 3, 0.55, xlim=(0, size), xticks=[])
    mean_w.stairs(gate_w.mean(1), np.linspace(0, size, len(gate_w) + 1), baseline=None)
    mean_h = add_axes(3.1, 0, 0.55, 3, ylim=(size, 0), yticks=[])
    mean_h.stairs(gate_h.mean(1), np.linspace(0, size, len(gate_h) + 1), baseline=None, orientation="horizontal")
    mean_h.tick_params(axis="x", labelrotation=90)

    change_w, change_h = gate_w - gate_w.mean(0), gate_h - gate_h.mean(0)
    limit = max(float(np.percentile(np.abs(np.concatenate([change_w, change_h])), 99)), 1e-6)
    options: dict[str, Any] = dict(cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    strip_w = add_axes(0, 3.75, 3, 1.2, xticks=[], ylabel="channels")
    strip_w.imshow(change_w.T, extent=(0, size, channels, 0), **options)
    strip_h = add_axes(3.75, 0, 1.2, 3, yticks=[], xlabel="channels")
    change = strip_h.imshow(change_h, extent=(0, channels, size, 0), **options)

    strip_w.set_title(
        f"{layer}, {len(gate_h)} x {len(gate_w)} pixels: gate_w, one value per column", fontsize=9, loc="left"
    )
    strip_h.set_title("gate_h, one value per row", fontsize=9, loc="right")
    for height, drawn, label in (
        (4.6, product, "mean of gate_h · gate_w"),
        (3.9, change, "gate - mean of its channel"),
    ):
        bar = figure.colorbar(drawn, cax=add_axes(3.3, height, 1.65, 0.1), orientation="horizontal")
        bar.ax.set_title(label, fontsize=8)
