"""Proves that the two frameworks compute the same network, layer by layer.

python -m convert.verify --model resnet50_lma                               random weights
python -m convert.verify --checkpoint runs/r50 --weights r50.safetensors    a checkpoint against its export
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
from absl import flags

from lma_jax import cli
from lma_jax.errors import UserError

MODEL = flags.DEFINE_string("model", None, "Definition to compare with random weights, one of list_models().")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Workdir of a training run, to compare with --weights.")
STEP = flags.DEFINE_string("step", "newest", "Which checkpoint: newest, best (by validation top-1), or its step.")
WEIGHTS = flags.DEFINE_string("weights", None, "Export of the checkpoint, .safetensors or .pth.")
IMAGES = flags.DEFINE_integer("images", 4, "Number of random images.", lower_bound=1)
FOLDER = flags.DEFINE_string("image_folder", None, "Folder of images to compare on instead.")
BY_LAYER = flags.DEFINE_bool("by_layer", False, "Print every layer, not only the logits and the worst layer.")
JSON = flags.DEFINE_string("json", None, "File to write all differences to.")


def _random_pair(name: str):
    from flax import nnx

    import lma_jax
    import lma_torch
    from convert.weights import to_torch

    try:
        jax_model = nnx.jit(lambda: lma_jax.create_model(name, rngs=nnx.Rngs(0)))()
    except ValueError as error:
        raise UserError(str(error)) from error
    torch_model = lma_torch.create_model(name)
    torch_model.load_state_dict(to_torch(jax_model))
    return jax_model, torch_model, None


def _exported_pair(workdir: str, step: str, weights: Path):
    import lma_torch
    from convert.files import read_weights
    from lma_jax.checkpoint.format import load_checkpoint
    from lma_jax.checkpoint.restore import restore_model
    from lma_jax.preprocessing import preprocessing_from

    state_dict, _ = read_weights(weights)
    checkpoint = load_checkpoint(workdir, step)
    metadata = checkpoint.metadata
    torch_model = lma_torch.create_model(metadata["model"], num_classes=metadata["num_classes"])
    try:
        torch_model.load_state_dict(state_dict)
    except RuntimeError as error:
        raise UserError(f"{weights} does not fit the checkpoint, a {metadata['model']}: {error}") from error
    return restore_model(checkpoint), torch_model, preprocessing_from(metadata["preprocessing"])


def _images(preprocessing) -> np.ndarray:
    """Random images, or those of --image_folder as evaluation sees them."""
    from configs import common
    from lma_jax.images import image_files, read_image
    from lma_jax.preprocessing import preprocessing_from

    preprocessing = preprocessing or preprocessing_from(common.get_config())
    if FOLDER.value is None:
        size = preprocessing.image_size
        return np.random.default_rng(0).normal(size=(IMAGES.value, size, size, 3))
    pixels = np.stack([read_image(path, preprocessing) for path in image_files(FOLDER.value)])
    return (pixels / 255 - preprocessing.mean) / preprocessing.std


def main() -> None:
    from convert.comparison import compare, report
    from convert.results import write_text

    if MODEL.value and not (CHECKPOINT.value or WEIGHTS.value):
        jax_model, torch_model, preprocessing = _random_pair(MODEL.value)
    elif CHECKPOINT.value and WEIGHTS.value and not MODEL.value:
        jax_model, torch_model, preprocessing = _exported_pair(CHECKPOINT.value, STEP.value, Path(WEIGHTS.value))
    else:
        raise UserError("give either --model, or --checkpoint and --weights")
    images = _images(preprocessing)
    differences = compare(jax_model, torch_model, images)
    print(f"JAX against PyTorch on {len(images)} images, {images.shape[1]} x {images.shape[2]}")
    print("\n".join(report(differences, by_layer=BY_LAYER.value)))
    if JSON.value:
        rows = [{**asdict(row), "passed": row.passed} for row in differences]
        write_text(JSON.value, json.dumps(rows, indent=1))
    if not all(row.passed for row in differences):
        print("error: the two frameworks do not compute the same", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
