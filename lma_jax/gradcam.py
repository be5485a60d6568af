"""Shows what a network looks at: python -m lma_jax.gradcam --checkpoint runs/r50 --image cat.jpg --output cam.png

The picture holds the image as the network sees it and, over it, where the evidence for its top class (or --class_id)
lies. A folder instead of an image makes a contact sheet. --gates draws the gates of LMA layers instead.
"""

import contextlib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from lma_jax import cam, cli
from lma_jax.errors import UserError

# Other commands have these flags as well; one process, such as that of the tests, may import them all.
SHARED: dict[str, Any] = dict(allow_override=True)
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Workdir of a training run.", required=True, **SHARED)
STEP = flags.DEFINE_string(
    "step", "newest", "Which checkpoint: newest, best (by validation top-1), or its step.", **SHARED
)
IMAGE = flags.DEFINE_string("image", None, "Image file, or a folder of them.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Picture to write: .png, .pdf or .svg.", required=True, **SHARED)
METHOD = flags.DEFINE_enum("method", "gradcam++", list(cam.METHODS), "How the channels are weighed.")
LAYER = flags.DEFINE_list(
    "layer", None, "Paths such as layer3,layer4.1. Default: the last feature map; with --gates: LMAs of all depths."
)
CLASS_ID = flags.DEFINE_integer("class_id", None, "Class to explain. Default: each image's top class.", lower_bound=0)
TOP = flags.DEFINE_integer("top", 5, "Classes to print an image.", lower_bound=1)
GATES = flags.DEFINE_bool("gates", False, "Draw the gates of LMA layers over one image.")

METHOD_NAMES = {"gradcam++": "Grad-CAM++", "gradcam": "Grad-CAM"}
SUFFIXES = (".png", ".pdf", ".svg")
MAX_IMAGES = 40
GATED_LAYERS = 4


def main() -> None:
    import jax.numpy as jnp

    from lma_jax.checkpoint.format import load_checkpoint
    from lma_jax.checkpoint.restore import restore_model
    from lma_jax.images import image_files, read_image
    from lma_jax.preprocessing import normalize, preprocessing_from

    output = Path(OUTPUT.value)
    if output.suffix not in SUFFIXES:
        raise UserError(f"{output} must end in {', '.join(SUFFIXES)}")
    path = Path(IMAGE.value)
    files = image_files(path)
    if GATES.value and (len(files) > 1 or CLASS_ID.value is not None):
        raise UserError("--gates takes one image file, and no --class_id: the gates are the same for all classes")
    checkpoint = load_checkpoint(CHECKPOINT.value, STEP.value)
    metadata = checkpoint.metadata
    if CLASS_ID.value is not None and CLASS_ID.value >= metadata["num_classes"]:
        raise UserError(f"--class_id={CLASS_ID.value}: the network's classes are 0 to {metadata['num_classes'] - 1}")
    preprocessing = preprocessing_from(metadata["preprocessing"])
    folder = path if path.is_dir() else path.parent
    images = {file.relative_to(folder).as_posix(): read_image(file, preprocessing) for file in files[:MAX_IMAGES]}
    if len(files) > MAX_IMAGES:
        print(f"{IMAGE.value} holds {len(files):,} images, the first {MAX_IMAGES} are shown")

    model = restore_model(checkpoint)
    inputs = {name: normalize(jnp.asarray(image[None]), preprocessing) for name, image in images.items()}
    title = f"{metadata['model']}, step {checkpoint.step:,}"
    try:
        if GATES.value:
            figure = _gates_figure(model, images, inputs, title)
        else:
            figure = _maps_figure(model, images, inputs, title, loss=metadata["config"]["loss"])
    except ValueError as error:
        raise UserError(str(error)) from error
    _save(figure, output)


def _maps_figure(model: Any, images: dict[str, np.ndarray], inputs: dict[str, Any], title: str, *, loss: str) -> Any:
    """Each image beside one overlay a layer; prints the top classes on the way."""
    layers: list[Any] = LAYER.value or [None]
    tiles: list[tuple[np.ndarray, np.ndarray | None, str]] = []
    for name, image in images.items():
        overlays = []
        for layer in layers:
            maps, logits = cam.activation_map(model, inputs[name], CLASS_ID.value, layer=layer, method=METHOD.value)
            overlays.append(np.asarray(cam.scale_and_resize(maps, image.shape[:2]))[0])
            if maps[0].size == 1 and name == min(images):
                print(f"warning: the map of {layer or 'the last layer'} is one pixel: name an earlier --layer")
        ranked = _ranked(np.asarray(logits)[0], loss)
        print(f"{name}: " + ", ".join(f"class {index} {100 * p:.2f} %" for index, p in ranked[: TOP.value]), flush=True)
        explained = next(f"class {index}, {100 * p:.1f} %" for index, p in ranked if CLASS_ID.value in (None, index))
        tiles.append((image, None, name))
        tiles += [
            (image, overlay, ", ".join(filter(None, (layer, explained)))) for layer, overlay in zip(layers, overlays)
        ]
    return _draw_sheet(tiles, title, strip=1 + len(layers))


def _ranked(logits: np.ndarray, loss: str) -> list[tuple[int, float]]:
    """Classes and their probabilities under the training loss, most probable first."""
    odds = np.exp(logits - logits.max())
    probabilities = 1 / (1 + np.exp(-logits)) if loss == "sigmoid" else odds / odds.sum()
    return [(int(index), float(probabilities[index])) for index in np.argsort(-logits, kind="stable")]


def _draw_sheet(tiles: list[tuple[np.ndarray, np.ndarray | None, str]], title: str, *, strip: int) -> Any:
    """Tiles of an image, the map (H, W) in [0, 1] over it, and a caption; `strip` successive ones share a row."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    strips = len(tiles) // strip
    columns = strip * min(strips, max(1, round(math.sqrt(1.5 * strips / strip))))
    rows = -(-len(tiles) // columns)
    figure = Figure(figsize=(2.4 * columns + 1, 2.65 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (image, overlay, caption) in zip(grid.flat, tiles):
        axes.imshow(image)
        axes.set_title(caption, fontsize=9)
        if overlay is not None:
            axes.imshow(overlay, cmap="jet", alpha=0.5, vmin=0, vmax=1)
    colours = figure.colorbar(ScalarMappable(cmap="jet"), ax=grid, shrink=0.9, aspect=30 * rows)
    colours.set_label(f"{METHOD_NAMES[METHOD.value]}, scaled to each image")
    figure.suptitle(title)
    return figure


def _gates_figure(model: Any, images: dict[str, np.ndarray], inputs: dict[str, Any], title: str) -> Any:
    """A panel for each of some LMA layers."""
    from matplotlib.figure import Figure

    available = cam.lma_layers(model)
    if not available:
        raise UserError("the network has no LMA layers, so there are no gates to draw")
    spread = np.unique(np.linspace(0, len(available) - 1, GATED_LAYERS).round().astype(int))
    layers = LAYER.value or [available[index] for index in spread]
    [(name, image)] = images.items()
    gates = cam.gates(model, inputs[name], layers)

    columns = min(2, len(layers))
    rows = -(-len(layers) // columns)
    side = 5.8  # inches
    figure = Figure(figsize=(side * columns, side * rows + 0.5))
    figure.suptitle(f"LMA's gates, y = x · gate_h · gate_w: {name}, {title}", y=1 - 0.25 / figure.get_figheight())
    for index, layer in enumerate(layers):
        gate_h, gate_w = (np.asarray(gate, np.float32)[0] for gate in gates[layer])
        corner = (side * (index % columns) + 0.55, side * (rows - 1 - index // columns) + 0.55)
        _draw_gates(figure, corner, layer, image, gate_h[:, 0], gate_w[0])
    return figure


def _draw_gates(
    figure: Any, corner: tuple[float, float], layer: str, image: np.ndarray, gate_h: np.ndarray, gate_w: np.ndarray
) -> None:
    """Draws gate_h (h, C) and gate_w (w, C) around an image, from a `corner` in inches.

    Over the image lies the mean of the products. Along its sides are the means of each gate, and then the channels one
    by one, as they differ from their own mean: their levels are far apart, which would hide how they change.
    """
    size, channels = image.shape[0], gate_h.shape[1]

    def add_axes(x: float, y: float, width: float, height: float, **options: Any) -> Any:
        box = np.array([corner[0] + x, corner[1] + y, width, height])
        axes = figure.add_axes(box / np.tile(figure.get_size_inches(), 2), **options)
        axes.tick_params(labelsize=7)
        return axes

    place = dict(extent=(0, size, size, 0), aspect="auto")
    centre = add_axes(0, 0, 3, 3, xticks=[], yticks=[])
    centre.imshow(image.mean(-1), cmap="gray", **place)
    product = centre.imshow(gate_h @ gate_w.T / channels, cmap="viridis", alpha=0.5, **place)

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
        f"{layer}, {len(gate_h)} x {len(gate_w)} pixels: gate_w, a value a column", fontsize=9, loc="left"
    )
    strip_h.set_title("gate_h, a value a row", fontsize=9, loc="right")
    for height, drawn, label in (
        (4.6, product, "mean of gate_h · gate_w"),
        (3.9, change, "gate - mean of its channel"),
    ):
        bar = figure.colorbar(drawn, cax=add_axes(3.3, height, 1.65, 0.1), orientation="horizontal")
        bar.ax.set_title(label, fontsize=8)


def _save(figure: Any, output: Path) -> None:
    """Writes the picture in one move."""
    temporary = output.with_name(f"{output.stem}.tmp{output.suffix}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, dpi=150)
        os.replace(temporary, output)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write {output}: {error.strerror}") from error
    print(f"{output} written")


if __name__ == "__main__":
    cli.run(main)
