"""Predicts the classes of images: python -m lma_jax.predict --checkpoint runs/r50 --image cat.jpg

A folder instead of an image takes all images in it. Each image gets a line with its most probable classes. --json and
--csv write them to files, and --output draws the first images with their top classes.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from lma_jax import cli
from lma_jax.errors import UserError, one_line, require_packages
from lma_jax.overwriting import Kind, require_outputs

if TYPE_CHECKING:
    import numpy as np

    from lma_jax.checkpoint.format import Checkpoint

BATCH_SIZE = 64
MAX_DRAWN = 40
COLUMNS = ("image", "rank", "class_id", "name", "probability")


class Prediction(NamedTuple):
    """An image file, its pixels (H, W, 3) as the network sees them, and its classes with their probabilities."""

    file: Path
    image: "np.ndarray"
    classes: list[tuple[int, float]]


def define_flags() -> None:
    cli.define_checkpoint()
    flags.DEFINE_string("image", None, "Image file, or a folder of them.", required=True)
    flags.DEFINE_integer("top", 5, "Number of classes for each image.", lower_bound=1)
    flags.DEFINE_string("output", None, f"Picture to draw, .png, .pdf or .svg, of at most {MAX_DRAWN} images.")
    flags.DEFINE_string("json", None, "File to write the classes to.")
    flags.DEFINE_string("csv", None, "The same as a table.")
    cli.define_force()


def main() -> None:
    from lma_jax import figures, files
    from lma_jax.checkpoint.format import load_checkpoint
    from lma_jax.images import image_files

    options, path = flags.FLAGS, Path(flags.FLAGS.image)
    if options.output:
        require_packages("a picture", "matplotlib")
        figures.require_suffix(Path(options.output))
    found = image_files(path)
    require_outputs(
        {
            "output": (options.output, Kind(holds=(figures.CREATOR,))),
            "json": (options.json, Kind(holds=('"predictions":',))),
            "csv": (options.csv, Kind(holds=(",".join(COLUMNS),))),
        },
        inputs=[*found, Path(options.checkpoint, "checkpoints")],
        force=options.force,
    )
    checkpoint = load_checkpoint(options.checkpoint, options.step)
    folder = path if path.is_dir() else path.parent
    label = figures.labels(checkpoint.metadata.class_names)
    rows: list[dict[str, Any]] = []
    drawn: dict[str, Any] = {}
    for file, image, classes in predict(checkpoint, found):
        name, best = file.relative_to(folder).as_posix(), classes[: options.top]
        line = f"{name}: " + ", ".join(f"{label(index)} {100 * p:.2f} %" for index, p in best)
        print(one_line(line), flush=True)
        for rank, (index, probability) in enumerate(best, 1):
            rows.append(dict(zip(COLUMNS, (name, rank, index, label(index), probability))))
        if len(drawn) < MAX_DRAWN:
            drawn[f"{name}\n{label(best[0][0])}, {100 * best[0][1]:.1f} %"] = image
    if not rows:
        raise UserError(f"none of the {len(found):,} images of {path} can be decoded")
    model, step = checkpoint.metadata.model, checkpoint.step
    if options.json:
        content = {"checkpoint": options.checkpoint, "step": step, "model": model, "predictions": rows}
        files.write(options.json, json.dumps(content, indent=1) + "\n")
    if options.csv:
        files.write(options.csv, files.csv_text(rows))
    if options.output:
        figures.save(figures.draw_images(drawn, f"{model}, step {step:,}"), Path(options.output))


def predict(checkpoint: "Checkpoint", files: Sequence[Path]) -> Iterator[Prediction]:
    """The classes of image files, most probable first. Files that cannot be decoded get a warning on stderr instead."""
    import jax
    import numpy as np
    from flax import nnx

    from lma_jax.checkpoint.restore import restore_model
    from lma_jax.figures import ranked_classes
    from lma_jax.images import read_images
    from lma_jax.preprocessing import normalize

    preprocessing, loss = checkpoint.metadata.preprocessing, checkpoint.metadata.config["loss"]
    model = restore_model(checkpoint)
    model.eval()
    graphdef, state = nnx.split(model)
    forward = jax.jit(lambda state, images: nnx.merge(graphdef, state)(normalize(images, preprocessing)))
    for start in range(0, len(files), BATCH_SIZE):
        images = dict(read_images(files[start : start + BATCH_SIZE], preprocessing))
        if images:
            size = min(len(files), BATCH_SIZE)  # of one shape, so that one program serves all
            pixels = np.resize(np.stack(list(images.values())), (size, *next(iter(images.values())).shape))
            logits = np.asarray(forward(state, pixels))
            for (file, image), scores in zip(images.items(), logits):
                yield Prediction(file, image, ranked_classes(scores, loss))


if __name__ == "__main__":
    cli.run(main, define_flags)
